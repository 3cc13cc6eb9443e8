//! The whole judge: what evidence shows, and what the rules say of it. Pure.

use nave_domain::host::Device;
use nave_proof::{Challenge, DeviceProven, Evidence, Failure, Proven, Span, Task, Verdict};

use crate::{
    catalogue::Catalogue,
    class::{Judged, Rating, classify},
    floors,
};

/// A GPU that a job uses does at least this part of what it does when it is free.
const SHARED: u64 = 4;

/// Judges what a host that claims these devices has shown, perhaps beside jobs.
#[must_use]
pub fn judge(
    test: &Challenge,
    claims: &[Device],
    beside_jobs: bool,
    evidence: &Evidence,
    spans: &[Span],
) -> Verdict {
    let proven = match nave_proof::judge(test, evidence, spans) {
        Verdict::Passed(proven) => proven,
        Verdict::Failed(failure) => return Verdict::Failed(failure),
    };
    let refused = match &proven {
        Proven::Devices(shown) => mismatch(claims, &test.task, shown, beside_jobs),
        Proven::Cpu { .. }
        | Proven::Memory { .. }
        | Proven::Storage { .. }
        | Proven::Software(_)
        | Proven::Transfer { .. } => floors::weigh(&proven).refused,
    };
    refused.map_or(Verdict::Passed(proven), Verdict::Failed)
}

/// What a GPU should have done and did not.
fn mismatch(claims: &[Device], task: &Task, shown: &[DeviceProven], beside_jobs: bool) -> Option<Failure> {
    let mut shown = shown.to_vec();
    if beside_jobs {
        for device in &mut shown {
            device.ops_per_s = device.ops_per_s.map(|ops| ops.saturating_mul(SHARED));
        }
    }
    judge_devices(claims, task, &shown).into_iter().find_map(|judged| match judged.rating {
        Rating::Refused(failure) => Some(failure),
        Rating::Rated { .. } | Rating::Unrated { .. } => None,
    })
}

/// What each device is, from what it showed.
#[must_use]
pub fn judge_devices(claims: &[Device], task: &Task, shown: &[DeviceProven]) -> Vec<Judged> {
    let (Ok(catalogue), Task::Devices(task)) = (Catalogue::embedded(), task) else { return Vec::new() };
    let judged = shown.iter().filter_map(|shown| {
        let claim = claims.iter().find(|claim| claim.uuid == shown.uuid)?;
        let task = task.devices.iter().find(|task| task.uuid == shown.uuid)?;
        Some(classify(catalogue, claim, task, shown))
    });
    judged.collect()
}
