//! Taking away what a market has made on the machine outside of its directory.

use std::{fs, path::PathBuf};

use anyhow::Context as _;

use super::{
    agent_program, engine,
    host::LocalHost,
    inside::{self, What},
    keep,
    layout::{Layout, write_whole},
    network::{HOSTS_MAX, Network, RENTED},
    part::end_leftovers,
    program,
    slot::Slot,
    status::HostStatus,
};

/// Longest that an engine may take to stop.
pub const ENGINE_SECONDS: u64 = 20;

/// The hosts that may have left something on the machine, as they were noted.
pub fn traces(layout: &Layout) -> Option<Vec<HostStatus>> {
    let bytes = fs::read(layout.traces()).ok()?;
    Some(serde_json::from_slice(&bytes).unwrap_or_default())
}

/// Says that these hosts may leave something on the machine from now on.
///
/// # Errors
/// When the directory cannot be written.
pub fn note_traces(layout: &Layout, hosts: &[HostStatus]) -> anyhow::Result<()> {
    let text = serde_json::to_vec(hosts)?;
    write_whole(&layout.traces(), &text).context("note that the market begins to use the machine")
}

/// Takes away what a market has left whose parts do not run any more. Containers outlive a
/// private engine, so that has to come back for a moment.
///
/// # Errors
/// When something stays; it can be tried again.
pub async fn remove_traces(layout: &Layout) -> anyhow::Result<()> {
    if let Some((hosts, slot)) = traces(layout).zip(Slot::of(layout)) {
        remove_rented_but(layout, slot, &[]).await?;
        for host in left(layout, slot, &hosts) {
            purge_stopped(layout, &host).await.with_context(|| format!("clean up after {}", host.name))?;
        }
        remove_network(layout, slot).await?;
    }
    for number in 1..=*RENTED.end() {
        engine::unmount_leftovers(&layout.docker(number))?;
    }
    Ok(())
}

/// Takes interfaces, namespaces, tables and what engines forgot away; then there is nothing
/// left. No engine may run, and no container be there any more.
///
/// # Errors
/// When the kernel refuses.
pub async fn remove_network(layout: &Layout, slot: Slot) -> anyhow::Result<()> {
    engine::end_shims(layout.root());
    let removed = tokio::task::spawn_blocking(move || Network::remove(slot)).await?;
    removed.context("remove the market's network interfaces")?;
    // It may never have been written; either way it is not there now.
    drop(fs::remove_file(layout.traces()));
    Ok(())
}

/// Those of the hosts that have had an engine.
fn left(layout: &Layout, slot: Slot, hosts: &[HostStatus]) -> Vec<LocalHost> {
    let count = u8::try_from(hosts.len()).unwrap_or(HOSTS_MAX);
    let is_divided = hosts.iter().any(|host| host.namespace.is_some());
    let network = Network { slot, hosts: count, is_divided };
    let numbered = (1..=count).zip(hosts);
    let with_engine = numbered.filter_map(|(number, host)| {
        let socket = PathBuf::from(host.docker_host.as_ref()?.strip_prefix("unix://")?);
        Some(LocalHost::new(network, number, layout, None, Some(socket)).found())
    });
    with_engine.collect()
}

/// Ends what a killed supervisor left running: agents first, since an engine that is stopped while it does
/// something for one may never start again.
///
/// # Errors
/// When something stays; it can be tried again.
pub async fn end_parts(layout: &Layout) -> anyhow::Result<()> {
    for number in RENTED {
        if let Some(slot) = Slot::of(layout) {
            inside::end(rented(layout, slot, number).namespace.as_deref(), What::Agents).await?;
        }
    }
    end_leftovers(&layout.pids()).await
}

/// Takes away the machines of the local cloud that are there, but for those of some numbers.
///
/// # Errors
/// When something stays; it can be tried again.
pub async fn remove_rented_but(layout: &Layout, slot: Slot, kept: &[u8]) -> anyhow::Result<()> {
    for number in RENTED.filter(|number| !kept.contains(number)) {
        if rented(layout, slot, number).namespace.is_some() {
            remove_rented(layout, slot, number).await?;
        }
    }
    Ok(())
}

/// Takes away what a machine of the local cloud has made, but for what is in its directories. None of its
/// parts may run.
///
/// # Errors
/// When something stays; it can be tried again.
pub async fn remove_rented(layout: &Layout, slot: Slot, number: u8) -> anyhow::Result<()> {
    let (host, docker) = (rented(layout, slot, number), layout.docker(number));
    inside::end(host.namespace.as_deref(), What::Agents).await?;
    if docker.join("data").exists() {
        purge_stopped(layout, &host).await.with_context(|| format!("clean up after {}", host.name))?;
    }
    engine::unmount_leftovers(&docker)?;
    engine::end_shims(&docker);
    inside::end(host.namespace.as_deref(), What::Everything).await?;
    let network = Network { slot, hosts: 0, is_divided: true };
    tokio::task::spawn_blocking(move || network.remove_host(number)).await?
}

/// A machine of the local cloud; without a namespace where that is not there.
fn rented(layout: &Layout, slot: Slot, number: u8) -> LocalHost {
    let network = Network { slot, hosts: 0, is_divided: true };
    LocalHost::new(network, number, layout, None, Some(layout.docker_socket(number))).found()
}

async fn purge_stopped(layout: &Layout, host: &LocalHost) -> anyhow::Result<()> {
    let agent = agent_program()?;
    if host.socket != Some(layout.docker_socket(host.number)) {
        return host.purge(agent);
    }
    let dockerd = program::find("dockerd").context("Docker Engine is not installed any more")?;
    let (of_engine, number, namespace) = (layout.clone(), host.number, host.namespace.clone());
    let make = move || engine::dockerd(&dockerd, &of_engine, number, namespace.as_deref());
    let engine = keep(layout, format!("dockerd-{number}-cleaning"), ENGINE_SECONDS, Box::new(make));
    engine::answers(layout, number).await;
    let host = host.clone();
    let purged = tokio::task::spawn_blocking(move || host.purge(agent)).await;
    engine.stop().await;
    purged?
}

/// Removes what the agents of running engines have made.
pub async fn purge_running(hosts: &[LocalHost]) -> anyhow::Result<()> {
    let agent = agent_program()?;
    let mut tasks = tokio::task::JoinSet::new();
    for host in hosts.iter().cloned() {
        let agent = agent.clone();
        tasks.spawn_blocking(move || {
            host.purge(agent).with_context(|| format!("clean up after {}", host.name))
        });
    }
    while let Some(purged) = tasks.join_next().await {
        purged??;
    }
    Ok(())
}
