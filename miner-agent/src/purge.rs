//! Takes away everything that an agent has made on this machine.

use std::{collections::BTreeSet, path::Path};

use anyhow::Context as _;
use nave_domain::Millis;

use crate::{
    config::DockerConfig,
    link,
    membership::Membership,
    runtime::{
        Runtime,
        docker::{Docker, firewall::Firewall},
    },
    state::{self, StateDir},
};

/// Removes every container, network, mount and working directory of the host
/// whose state is in `data`, its egress filter and its mesh interface. Running jobs are killed.
/// Answers how many leases were removed.
///
/// # Errors
/// When an agent still runs there, or something could not be removed.
pub async fn remove_all(data: &Path, docker: &DockerConfig) -> anyhow::Result<usize> {
    let member = Membership::find(data)?.map(|member| member.place.host);
    let Some(host) = member.or_else(|| state::host_of(data)) else {
        return Ok(0);
    };
    let _state = StateDir::open(data, host)?;
    if let Some(interface) = link::interface_of(data) {
        nave_mesh::clean_up(&interface, None).context("remove the mesh interface")?;
    }
    let engine = Docker::open(docker, host, data).await?;
    let runtime = Runtime::Docker(Box::new(engine));
    let observed = runtime.observe().await?;
    for lease in observed.keys() {
        runtime.stop(*lease, Millis::ZERO).await.with_context(|| format!("kill {lease}"))?;
        runtime.remove(*lease).await.with_context(|| format!("remove {lease}"))?;
    }
    runtime.reap(&BTreeSet::new()).await?;
    Firewall::unload(&docker.prefix).await?;
    Ok(observed.len())
}
