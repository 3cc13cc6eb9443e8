//! Challenges that the agent answers itself: what is installed, mounted and connected on its
//! machine is not for a process with a cleared environment to see.

use std::{net::Ipv6Addr, sync::Arc};

use anyhow::{Context as _, bail};
use nave_domain::host::Device;
use nave_sdk::wire::proof::{Message, Task};

use super::prove::{Inbox, Said, opening};
use crate::{
    config::Prover,
    endpoint::ControlPlane,
    inspect::{self, Site},
    runtime::Runtime,
    transfer::fetch::Fetch,
};

/// What the agent has to look at.
pub(super) struct Ground {
    /// What runs jobs.
    pub(super) runtime: Arc<Runtime>,
    /// The program that speaks to the GPU driver.
    pub(super) prover: Prover,
    /// The devices that are offered.
    pub(super) devices: Vec<Device>,
    /// This host's address in the mesh.
    pub(super) address: Option<Ipv6Addr>,
}

/// Answers the steps of one challenge as they come.
///
/// # Errors
/// Why it cannot go on: a failure of this challenge.
pub(super) async fn answer(
    ground: &Ground,
    mut inbox: Inbox,
    plane: &ControlPlane,
    said: &Said,
) -> anyhow::Result<()> {
    let mut fetch = Fetch::new(ground.address);
    while let Some(challenge) = inbox.recv().await {
        match &challenge.task {
            Task::Software(_) => {
                let Ground { runtime, prover, devices, address: _ } = ground;
                let found = inspect::look(&Site { runtime, prover, devices }, challenge.nonce).await;
                let found = inspect::written(found).context("write what was found as JSON")?;
                said.answer(0, Message::Opening(opening(plane, found).await?));
            }
            Task::Transfer(task) => {
                let step = u32::try_from(challenge.step()).unwrap_or(u32::MAX);
                said.answer(step, fetch.go_on(&challenge, task).await?);
            }
            Task::Cpu(_) | Task::Memory(_) | Task::Devices(_) | Task::Storage(_) => {
                bail!("this is for a prover to answer")
            }
        }
    }
    Ok(())
}
