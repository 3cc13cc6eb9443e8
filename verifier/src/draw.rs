//! What a host must show next before it takes jobs, and how large the test of it is. Pure.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    Bytes, Millis,
    host::{Device, Inventory, Proven, ProvenDevice, parts},
    verdict::{Cause, Kind},
};
use nave_proof::{Challenge, Task, VERSION};
use nave_rules::{
    catalogue::Catalogue,
    class::{Judged, Rating},
    judge_devices,
    size::{Purpose, fills_beside_memory, size},
};
use nave_store::{Decided, DueHost};
use serde_json::Value;

use crate::decide::{Ruling, Written};

/// What is tested at the same time, in this order. Cores and memory are tested alone: each
/// needs all of them, and what is spilled from devices needs memory, too.
const STAGES: [&[Kind]; 3] = [&[Kind::Cpu], &[Kind::Memory], &[Kind::Devices, Kind::Storage, Kind::Software]];
/// The same of a host whose GPUs are filled while its memory is: they go on once that has its verdict.
const STAGES_BESIDE: [&[Kind]; 2] =
    [&[Kind::Cpu], &[Kind::Memory, Kind::Devices, Kind::Storage, Kind::Software]];
/// Memory of each device that a test beside a job may take.
pub const SLACK: Bytes = Bytes(384 << 20);

/// Which tests there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Kinds without which no host takes jobs.
    pub enforced: BTreeSet<Kind>,
    /// Kinds that are tested and refuse nobody.
    pub shadow: BTreeSet<Kind>,
    /// How long a core of the reference rate works to prove computing power.
    pub effort: Millis,
}

/// What is next for a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// What is open has to end first.
    Wait,
    /// These tests, at once.
    Draw(Vec<Kind>),
    /// Nothing: this is what it has proven.
    Done(Box<Proven>),
}

impl Rules {
    /// Whether a kind is tested at all.
    #[must_use]
    pub fn has(&self, kind: Kind) -> bool {
        self.enforced.contains(&kind) || self.shadow.contains(&kind)
    }

    /// Whether a kind's verdict means nothing for the host.
    #[must_use]
    pub fn is_shadow(&self, kind: Kind) -> bool {
        !self.enforced.contains(&kind)
    }

    /// Whether hosts have to show more than what was proven.
    #[must_use]
    pub fn exceed(&self, proven: &Proven) -> bool {
        self.enforced.iter().any(|kind| *kind != Kind::Transfer && !proven.has(*kind))
    }
}

/// What a host must show next, from what it has shown in this suite.
#[must_use]
pub fn due(host: &DueHost, rules: &Rules) -> Due {
    // A transfer is part of no suite, and takes little.
    let open: BTreeSet<Kind> = host.open.iter().copied().filter(|kind| *kind != Kind::Transfer).collect();
    for stage in stages(host) {
        let missing: Vec<Kind> =
            stage.iter().copied().filter(|kind| is_missing(host, rules, *kind)).collect();
        if missing.is_empty() {
            continue;
        }
        let beside = open.iter().all(|open| stage.contains(open));
        let next: Vec<Kind> = missing.into_iter().filter(|kind| !open.contains(kind)).collect();
        return if beside && !next.is_empty() { Due::Draw(next) } else { Due::Wait };
    }
    if open.is_empty() { Due::Done(Box::new(proven(host, rules))) } else { Due::Wait }
}

/// In a window nobody decides by the speed of their memory when their GPUs are full.
fn stages(host: &DueHost) -> &'static [&'static [Kind]] {
    let beside = host.cause != Some(Cause::Window) && fills_beside_memory(&host.claims);
    if beside { &STAGES_BESIDE } else { &STAGES }
}

fn is_missing(host: &DueHost, rules: &Rules, kind: Kind) -> bool {
    let is_asked = rules.has(kind)
        && (kind == Kind::Devices || !is_of_devices_only(host))
        && (kind != Kind::Devices || !parts(&host.claims.devices).is_empty());
    is_asked && !host.last.get(&kind).is_some_and(|last| is_settled(host, rules, kind, last))
}

/// In a window only GPUs are tested, if the rest is proven.
fn is_of_devices_only(host: &DueHost) -> bool {
    let covers = host.proven.as_ref().is_some_and(|proven| proven.covers(&host.claims));
    host.cause == Some(Cause::Window) && covers
}

/// Whether a verdict says what is to be known of these claims.
fn is_settled(host: &DueHost, rules: &Rules, kind: Kind, last: &Decided) -> bool {
    let read = serde_json::from_value::<Challenge>(last.body.clone());
    let is_present = read.is_ok_and(|challenge| challenge.version == VERSION);
    let counts = match ruling(last) {
        Some(Ruling::Passed(_)) => true,
        Some(Ruling::Failed(_)) => rules.is_shadow(kind),
        Some(Ruling::Void(_)) | None => false,
    };
    is_present && counts && is_same(kind, &last.claims, &host.claims)
}

fn ruling(last: &Decided) -> Option<Ruling> {
    let written = serde_json::from_value::<Written>(last.verdict.clone());
    written.ok().map(|written| written.ruling)
}

/// Whether a test of one of these claims is one of the other: claims that changed are tested
/// from the start.
fn is_same(kind: Kind, tested: &Inventory, claims: &Inventory) -> bool {
    let same_machine = Proven::of(tested) == Proven::of(claims) && tested.devices == claims.devices;
    let same_part = match kind {
        Kind::Storage => tested.disk == claims.disk,
        Kind::Software => tested.kernel == claims.kernel && tested.runtime == claims.runtime,
        Kind::Cpu | Kind::Memory | Kind::Devices | Kind::Transfer => true,
    };
    same_machine && same_part
}

/// What a host has proven at the end of its suite.
fn proven(host: &DueHost, rules: &Rules) -> Proven {
    let claims = &host.claims;
    let before = host.proven.clone().filter(|_| is_of_devices_only(host));
    let mut proven = before.unwrap_or_else(|| Proven {
        disk: rules.enforced.contains(&Kind::Storage).then_some(claims.disk),
        kernel: rules.enforced.contains(&Kind::Software).then(|| claims.kernel.clone()),
        ..Proven::of(claims)
    });
    proven.devices = rules.enforced.contains(&Kind::Devices).then(|| devices(host));
    proven
}

/// The devices of a host, or the slices of those that are cut, with their classes.
fn devices(host: &DueHost) -> BTreeMap<String, ProvenDevice> {
    let judged = host.last.get(&Kind::Devices).map(judged_before).unwrap_or_default();
    let device = |device: &Device| {
        let rating = judged.iter().find(|judged| judged.uuid == device.uuid).map(|judged| &judged.rating);
        let class = match rating {
            Some(Rating::Rated { class }) => Some(class.clone()),
            Some(Rating::Unrated { .. } | Rating::Refused(_)) | None => None,
        };
        let models = class.as_deref().map(models_of).unwrap_or_default();
        (device.uuid.clone(), ProvenDevice { models, ..ProvenDevice::of(device, class) })
    };
    parts(&host.claims.devices).iter().map(device).collect()
}

/// The models of a class, by which its devices may be asked for, too.
fn models_of(class: &str) -> Vec<String> {
    let catalogue = Catalogue::embedded().ok();
    catalogue
        .and_then(|catalogue| catalogue.named(class))
        .map(|class| class.models.clone())
        .unwrap_or_default()
}

fn judged_before(last: &Decided) -> Vec<Judged> {
    let challenge = serde_json::from_value::<Challenge>(last.body.clone());
    match (challenge.map(|challenge| challenge.task), ruling(last)) {
        (Ok(task), Some(Ruling::Passed(nave_proof::Proven::Devices(shown)))) => {
            judge_devices(&last.claims.devices, &task, &shown)
        }
        _ => Vec::new(),
    }
}

/// The test of a kind for a host in its suite.
///
/// # Errors
/// A sentence that says why there is none.
pub fn task(kind: Kind, host: &DueHost, rules: &Rules) -> Result<Task, String> {
    let claims = &host.claims;
    match kind {
        Kind::Cpu => Ok(Task::cpu(claims.milli_cpu, rules.effort)),
        Kind::Memory => Ok(Task::memory(claims.memory, claims.milli_cpu)),
        Kind::Devices => {
            let knows = |proven: &Proven| proven.devices.is_some() && proven.covers(claims);
            let purpose = Purpose::Full { onboarding: !host.proven.as_ref().is_some_and(knows) };
            size(Catalogue::embedded()?, &claims.devices, claims.memory, purpose)
        }
        Kind::Storage => Ok(Task::storage(claims.disk)),
        Kind::Software => Ok(Task::software()),
        Kind::Transfer => Err("a transfer is drawn with its source".into()),
    }
}

/// The test of these GPUs of a host, which has so much memory, beside its jobs; `whole` is the verdict on its GPUs that
/// was passed last when they were free.
///
/// # Errors
/// A sentence that says why there is none.
pub fn task_beside_jobs(devices: &[Device], memory: Bytes, whole: Option<Value>) -> Result<Task, String> {
    let catalogue = Catalogue::embedded()?;
    let written = whole.and_then(|whole| serde_json::from_value::<Written>(whole).ok());
    let shown = match written.map(|written| written.ruling) {
        Some(Ruling::Passed(nave_proof::Proven::Devices(shown))) => shown,
        Some(Ruling::Passed(_) | Ruling::Failed(_) | Ruling::Void(_)) | None => Vec::new(),
    };
    let shown = shown.into_iter().filter_map(|device| Some((device.uuid, device.ops_per_s?))).collect();
    size(catalogue, devices, memory, Purpose::Small { slack: SLACK, shown: &shown })
}
