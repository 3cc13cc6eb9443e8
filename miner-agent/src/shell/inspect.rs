//! Challenges that the agent answers itself: what is installed, mounted and connected on its
//! machine is not for a process with a cleared environment to see.

use anyhow::bail;
use nave_sdk::wire::proof::Task;

use super::prove::{Inbox, Said};
use crate::endpoint::ControlPlane;

/// Answers the steps of one challenge as they come.
///
/// # Errors
/// Why it cannot go on: a failure of this challenge.
pub(super) async fn answer(mut inbox: Inbox, _plane: &ControlPlane, _said: &Said) -> anyhow::Result<()> {
    while let Some(challenge) = inbox.recv().await {
        match &challenge.task {
            Task::Software(_) => bail!("this agent does not tell of its software"),
            Task::Transfer(_) => bail!("this agent transfers nothing"),
            Task::Cpu(_) | Task::Memory(_) | Task::Devices(_) | Task::Storage(_) => {
                bail!("this is for a prover to answer")
            }
        }
    }
    Ok(())
}
