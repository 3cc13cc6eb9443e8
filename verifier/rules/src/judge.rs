//! The whole judge: what evidence shows, and what the rules say of it. Pure.

use nave_domain::host::{Device, parts};
use nave_proof::{Challenge, DeviceProven, Evidence, Failure, Proven, Span, Task, Verdict};

use crate::{
    catalogue::Catalogue,
    class::{Judged, Rating, classify},
    floors,
};

/// Judges what a host that claims these devices has shown.
#[must_use]
pub fn judge(test: &Challenge, claims: &[Device], evidence: &Evidence, spans: &[Span]) -> Verdict {
    match nave_proof::judge(test, evidence, spans) {
        Verdict::Passed(proven) => weigh(&test.task, claims, proven),
        failed @ Verdict::Failed(_) => failed,
    }
}

/// What the rules say of what evidence has shown.
#[must_use]
pub fn weigh(task: &Task, claims: &[Device], proven: Proven) -> Verdict {
    let refused = match &proven {
        Proven::Devices(shown) => mismatch(claims, task, shown),
        Proven::Cpu { .. }
        | Proven::Memory { .. }
        | Proven::Storage { .. }
        | Proven::Software(_)
        | Proven::Transfer { .. } => floors::weigh(&proven).refused,
    };
    refused.map_or(Verdict::Passed(proven), Verdict::Failed)
}

/// What a GPU should have done and did not.
fn mismatch(claims: &[Device], task: &Task, shown: &[DeviceProven]) -> Option<Failure> {
    judge_devices(claims, task, shown).into_iter().find_map(|judged| match judged.rating {
        Rating::Refused(failure) => Some(failure),
        Rating::Rated { .. } | Rating::Unrated { .. } => None,
    })
}

/// What each device is, and each slice of those that are cut, from what it showed.
#[must_use]
pub fn judge_devices(claims: &[Device], task: &Task, shown: &[DeviceProven]) -> Vec<Judged> {
    let (Ok(catalogue), Task::Devices(task)) = (Catalogue::embedded(), task) else { return Vec::new() };
    let claims = parts(claims);
    let judged = shown.iter().filter_map(|shown| {
        let claim = claims.iter().find(|claim| claim.uuid == shown.uuid)?;
        let task = task.devices.iter().find(|task| task.uuid == shown.uuid)?;
        Some(classify(catalogue, claim, task, shown))
    });
    judged.collect()
}
