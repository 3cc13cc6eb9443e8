//! What the control plane made of this host's tests, as it says or as it last said, and what its miner earned.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use nave_sdk::wire::{settlement::Earnings, verdict::HostVerdict};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::{
    endpoint::ControlPlane,
    files::{self, Keep},
    link,
    membership::{self, Membership},
};

/// Longest wait for the control plane, for somebody who waits.
const ANSWER: Duration = Duration::from_secs(5);

/// Verdicts on this host, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Why the control plane was not asked now; these are what it said before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away: Option<String>,
    /// The verdicts.
    pub verdicts: Vec<HostVerdict>,
}

/// Asks the control plane through the mesh, or at `url` where a test stands in for it. What it says
/// is kept, for when it is away.
pub async fn ask(data: &Path, member: &Membership, url: Option<&str>) -> Told {
    let path = membership::dir(data).join("verdicts.json");
    match fetch(data, member, url).await {
        Ok(verdicts) => {
            let told = Told { away: None, verdicts };
            if let Err(error) = files::write_json(&path, &told, Keep::Process) {
                tracing::debug!(error = format!("{error:#}"), "could not keep verdicts");
            }
            told
        }
        Err(error) => {
            let kept: Option<Told> = files::read_json(&path).ok().flatten();
            let verdicts = kept.map(|kept| kept.verdicts).unwrap_or_default();
            // Those of a host that it was before say nothing of it.
            let verdicts = verdicts.into_iter().filter(|verdict| verdict.host == member.place.host).collect();
            Told { away: Some(format!("{error:#}")), verdicts }
        }
    }
}

/// What the host's miner earned, the newest epoch first.
///
/// # Errors
/// When the control plane does not answer.
pub async fn earnings(data: &Path, member: &Membership, url: Option<&str>) -> anyhow::Result<Vec<Earnings>> {
    let plane = plane(data, member, url)?;
    let answer = timeout(ANSWER, plane.earnings()).await;
    answer.context("the control plane did not answer in time")?.map_err(Into::into)
}

async fn fetch(data: &Path, member: &Membership, url: Option<&str>) -> anyhow::Result<Vec<HostVerdict>> {
    let plane = plane(data, member, url)?;
    let answer = timeout(ANSWER, plane.verdicts()).await;
    answer.context("the control plane did not answer in time")?.map_err(Into::into)
}

fn plane(data: &Path, member: &Membership, url: Option<&str>) -> anyhow::Result<ControlPlane> {
    let place = &member.place.mesh;
    let (base, through) = match url {
        Some(url) => (url.to_owned(), None),
        None => {
            let interface = link::interface_of(data).context("the agent has not joined the mesh")?;
            (format!("http://[{}]:{}", place.hub_address, place.port), Some((interface, place.address)))
        }
    };
    ControlPlane::new(&base, through)
}
