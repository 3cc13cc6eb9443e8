//! The planner: which job goes to which host.
//!
//! Jobs are taken oldest first. Each goes to the host with the least [`Score`] among
//! those that fit, and occupies it for the rest of the plan. The same snapshot always
//! gives the same plan.

use std::collections::BTreeMap;

use nave_domain::{
    Bytes, HostId, JobId, MicroUsd, MilliCpu, Millis, Timestamp,
    host::Device,
    job::{Egress, GROUP_LEASES_MAX, GpuRequest},
    rate::{affordable, hourly},
};
use nave_store::{Placement, QueuedJob, Snapshot, SupplyHost};

/// What to do with the queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Jobs to place, in this order: later ones count on the generations of earlier ones.
    pub placements: Vec<Placement>,
    /// Jobs that wait, and for what.
    pub waiting: Vec<(JobId, Reason)>,
    /// Jobs that cannot be placed any more.
    pub failed: Vec<(JobId, Reason)>,
}

/// Why a job is not placed: a code for programs and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Stable, such as `no_host_fits`.
    pub code: &'static str,
    /// With what to do about it.
    pub message: String,
}

/// How good a host is for a job; the least is best, and the order of the fields is the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// Attempts of this job that this host already ended.
    failures_here: usize,
    /// Whether a job without GPUs would occupy a host with GPUs.
    wastes_gpus: bool,
    /// Price per hour.
    hourly: MicroUsd,
    /// CPU left over: fuller hosts first, so that large jobs find room.
    cpu_left: MilliCpu,
    /// Makes ties repeatable.
    host: HostId,
}

/// Shortest run worth starting.
const RUN_MIN: Millis = Millis(1_000);

/// Decides what becomes of every queued job.
#[must_use]
pub fn plan(snapshot: &Snapshot) -> Plan {
    let mut hosts = snapshot.hosts.clone();
    let empty: Vec<SupplyHost> = hosts.values().map(emptied).collect();
    let mut plan = Plan::default();
    for job in &snapshot.jobs {
        match choose(snapshot.now, &hosts, &empty, job) {
            Choice::Place(placement) => {
                if let Some(host) = hosts.get_mut(&placement.host) {
                    occupy(host, &placement);
                }
                plan.placements.push(placement);
            }
            Choice::Wait(reason) => plan.waiting.push((job.job, reason)),
            Choice::Fail(reason) => plan.failed.push((job.job, reason)),
        }
    }
    plan
}

enum Choice {
    Place(Placement),
    Wait(Reason),
    Fail(Reason),
}

fn choose(
    now: Timestamp,
    hosts: &BTreeMap<HostId, SupplyHost>,
    empty: &[SupplyHost],
    job: &QueuedJob,
) -> Choice {
    let waited = Millis(job.queued.0.saturating_add(now.since(job.queued_at).0));
    if waited > job.request.limits.queue_ms {
        let limit = job.request.limits.queue_ms;
        return Choice::Fail(reason(
            "queue_timeout",
            format!("no host was free within its queue limit of {limit}"),
        ));
    }
    if now < job.queued_at.after(pause(job.failed_on.len())) {
        return Choice::Wait(reason(
            "backing_off",
            "a host failed to run it; it is tried again shortly".into(),
        ));
    }
    if job.group_leases >= GROUP_LEASES_MAX {
        return Choice::Wait(reason(
            "group_full",
            format!("{GROUP_LEASES_MAX} jobs of its group run, which is the most that know one another"),
        ));
    }
    let best = hosts
        .iter()
        .filter_map(|(id, host)| Some((score(*id, host, job)?, host)))
        .min_by_key(|(score, _)| *score);
    match best {
        Some((score, host)) => place(score.host, host, job),
        None => without_host(empty, job),
    }
}

/// Wait before the next attempt after `failures` attempts that hosts ended: 0, 1, 2, 4 s.
fn pause(failures: usize) -> Millis {
    match failures {
        0 => Millis::ZERO,
        n => Millis(1_000 << (n - 1).min(6)),
    }
}

/// The host's score, or `None` when the job does not fit now or cannot pay for it.
fn score(id: HostId, host: &SupplyHost, job: &QueuedJob) -> Option<Score> {
    if lacks(host, job).is_some() {
        return None;
    }
    run_max(host, job)?;
    let wanted = job.request.resources;
    Some(Score {
        failures_here: job.failed_on.iter().filter(|failed| **failed == id).count(),
        wastes_gpus: wanted.gpu.is_none() && host.inventory.rentable_devices().next().is_some(),
        hourly: hourly(wanted.size(), host.rate).ok()?,
        cpu_left: MilliCpu(host.inventory.milli_cpu.0 - host.milli_cpu_used.0 - wanted.milli_cpu.0),
        host: id,
    })
}

/// The first thing a host does not have enough of for a job.
fn lacks(host: &SupplyHost, job: &QueuedJob) -> Option<&'static str> {
    let wanted = job.request.resources;
    let has = &host.inventory;
    if wanted.milli_cpu.0 > has.milli_cpu.0 - host.milli_cpu_used.0 {
        return Some("enough CPU");
    }
    if wanted.memory.0 > has.memory.0 - host.memory_used.0 {
        return Some("enough memory");
    }
    if wanted.disk.0 > has.disk.0 - host.disk_used.0 {
        return Some("enough disk");
    }
    if !has.egress.contains(&job.request.egress) {
        return Some("a way to enforce its egress policy");
    }
    // What keeps a job to public addresses keeps it to its group.
    if job.request.group.is_some() && !has.egress.contains(&Egress::Public) {
        return Some("a way to keep it to its group");
    }
    match wanted.gpu {
        Some(gpu) if free_devices(host, gpu).count() < usize::from(gpu.count) => {
            Some("enough GPUs with that much memory")
        }
        _ => None,
    }
}

/// The devices for a request: the smallest that suffice, so that large ones stay free.
fn devices(host: &SupplyHost, gpu: GpuRequest) -> Vec<String> {
    let mut free: Vec<&Device> = free_devices(host, gpu).collect();
    free.sort_by(|a, b| a.vram.cmp(&b.vram).then_with(|| a.uuid.cmp(&b.uuid)));
    free.iter().take(usize::from(gpu.count)).map(|device| device.uuid.clone()).collect()
}

fn free_devices(host: &SupplyHost, gpu: GpuRequest) -> impl Iterator<Item = &Device> {
    let free = move |device: &&Device| device.vram >= gpu.vram && !host.devices_used.contains(&device.uuid);
    host.inventory.rentable_devices().filter(free)
}

/// The longest run that the limit allows and the rest of the spend cap pays for; `None`
/// when that is too short to start.
fn run_max(host: &SupplyHost, job: &QueuedJob) -> Option<Millis> {
    let limit = job.request.limits.run_ms;
    let paid = affordable(job.request.resources.size(), job.left, host.rate);
    let run_max = paid.map_or(limit, |paid| paid.min(limit));
    (run_max >= RUN_MIN.min(limit)).then_some(run_max)
}

fn place(id: HostId, host: &SupplyHost, job: &QueuedJob) -> Choice {
    let wanted = job.request.resources;
    let Some(run_max) = run_max(host, job) else { return Choice::Fail(too_dear(job)) };
    Choice::Place(Placement {
        job: job.job,
        host: id,
        generation: host.generation,
        size: wanted.size(),
        disk: wanted.disk,
        devices: wanted.gpu.map(|gpu| devices(host, gpu)).unwrap_or_default(),
        rate: host.rate,
        run_max,
        capped_by_spend: run_max < job.request.limits.run_ms,
    })
}

fn occupy(host: &mut SupplyHost, placement: &Placement) {
    host.generation += 1;
    host.milli_cpu_used.0 += placement.size.milli_cpu.0;
    host.memory_used.0 += placement.size.memory.0;
    host.disk_used.0 += placement.disk.0;
    host.devices_used.extend(placement.devices.iter().cloned());
}

/// Tells a wait for capacity from a wish that no host could meet even when empty, and
/// from one that no host meets for what is left of its spend cap.
fn without_host(empty: &[SupplyHost], job: &QueuedJob) -> Choice {
    if empty.is_empty() {
        return Choice::Wait(reason("no_hosts", "no host is ready; see `nave hosts`".into()));
    }
    let (fit, unfit): (Vec<_>, Vec<_>) =
        empty.iter().map(|host| (host, lacks(host, job))).partition(|(_, missing)| missing.is_none());
    if fit.is_empty() {
        let mut kinds: Vec<&str> = unfit.into_iter().filter_map(|(_, missing)| missing).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let message = format!("no host has {}; see `nave offers`", kinds.join(" or "));
        return Choice::Wait(reason("no_host_fits", message));
    }
    if fit.iter().all(|(host, _)| run_max(host, job).is_none()) {
        return Choice::Fail(too_dear(job));
    }
    Choice::Wait(reason("waiting_for_capacity", "every host that fits is busy".into()))
}

fn emptied(host: &SupplyHost) -> SupplyHost {
    SupplyHost {
        milli_cpu_used: MilliCpu::ZERO,
        memory_used: Bytes::ZERO,
        disk_used: Bytes::ZERO,
        devices_used: Vec::new(),
        ..host.clone()
    }
}

fn too_dear(job: &QueuedJob) -> Reason {
    let left = job.left;
    let message = format!("the {left} left of its spend cap pay for less than a second; raise max_spend");
    reason("spend_cap", message)
}

fn reason(code: &'static str, message: String) -> Reason {
    Reason { code, message }
}
