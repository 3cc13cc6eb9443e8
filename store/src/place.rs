//! Placing: jobs get leases on hosts, as a planner decided or a quote says.

use nave_crash_point::crash_point;
use nave_domain::{
    Bytes, HostId, JobId, LeaseId, MicroUsd, Millis,
    host::Trust,
    job::{JobEvent, JobState},
    lease::ChosenFor,
    rate::{Rate, Size},
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result, Store, StoreError, apart, group,
    job::{LockedJob, advance, lock},
    notify::{Changes, announce},
};

/// A decision to place a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The job.
    pub job: JobId,
    /// Where.
    pub host: HostId,
    /// Generation of the host in the snapshot that the decision is based on.
    pub generation: u64,
    /// What it occupies.
    pub size: Size,
    /// Working directory.
    pub disk: Bytes,
    /// GPUs.
    pub devices: Vec<String>,
    /// At which rate.
    pub rate: Rate,
    /// Longest run.
    pub run_max: Millis,
    /// Whether the spend cap is what bounds the run.
    pub capped_by_spend: bool,
    /// Why there.
    pub grounds: Grounds,
    /// The first job of the gang that it is placed with, all of it or none. The placements of a gang
    /// stand together in a plan.
    pub gang: Option<JobId>,
}

/// Why a host was chosen, as it is recorded with the lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grounds {
    /// For programs.
    pub reason: ChosenFor,
    /// What is known of the host.
    pub trust: Trust,
    /// What clouds ask for an hour of one of the devices; none where nobody knows, or there are none.
    pub baseline: Option<MicroUsd>,
}

impl Default for Grounds {
    fn default() -> Self {
        Self { reason: ChosenFor::default(), trust: Trust::Unrated, baseline: None }
    }
}

/// Most bytes that the orders of one host take together: what fits into one document.
pub const ORDERS_BYTES_MAX: i64 = 15 << 18;
/// Bytes of an order beside its request and its devices.
const ORDER_BYTES: i64 = 1_024;
/// Bytes of a device in an order.
const DEVICE_BYTES: i64 = 264;

/// What a placement rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Basis {
    /// A snapshot: the host must be as it was then.
    Snapshot,
    /// A quote: its capacity is held, and the host need only take jobs.
    Quote,
}

/// Takes a host, as the planner saw it or as it is.
pub(crate) async fn hold(tx: &mut PgConnection, placement: &Placement, basis: Basis) -> Result<()> {
    let generation = (basis == Basis::Snapshot).then_some(placement.generation.cast_signed());
    let held = sqlx::query!(
        "update hosts set generation = generation + 1
         where host_id = $1 and ($2::bigint is null or generation = $2) and state = 'ready' and not paused",
        placement.host.0,
        generation
    )
    .execute(tx)
    .await?;
    if held.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Stale("host")) }
}

/// Opens a lease for every placement: of one job, or of a gang. The jobs are locked and belong to the
/// placements one by one.
///
/// # Errors
/// [`StoreError::Stale`] when a job does not wait or a host has changed.
pub(crate) async fn open(
    tx: &mut PgConnection,
    jobs: &mut [LockedJob],
    placements: &[Placement],
    basis: Basis,
) -> Result<Vec<LeaseId>> {
    let Some(first) = jobs.first() else { return Ok(Vec::new()) };
    if jobs.iter().any(|job| job.state != JobState::Queued) {
        return Err(StoreError::Stale("job"));
    }
    for (job, placement) in jobs.iter().zip(placements) {
        apart::keep(tx, job, placement.host).await?;
    }
    group::joined(tx, first, placements, basis).await?;
    let mut leases = Vec::new();
    for (job, placement) in jobs.iter_mut().zip(placements) {
        leases.push(insert(tx, job, placement).await?);
        advance(tx, job, JobEvent::Place, None).await?;
        announce(tx, Changes::Host(placement.host)).await?;
    }
    Ok(leases)
}

async fn insert(tx: &mut PgConnection, job: &LockedJob, placement: &Placement) -> Result<LeaseId> {
    let of_group = if job.request.group.is_some() { group::ORDER_BYTES } else { 0 };
    let lease = LeaseId(Uuid::now_v7());
    sqlx::query!(
        "with next as (update jobs set attempts = attempts + 1 where job_id = $2
                       returning attempts, octet_length(request::text) as bytes)
         insert into leases (lease_id, job_id, attempt, host_id, devices, milli_gpu, milli_cpu, memory, disk,
                             gpu_hour, vcpu_hour, gib_hour, run_ms_max, capped_by_spend, order_bytes,
                             reason, trust, baseline_gpu_hour)
         select $1, $2, attempts, $3, $4::text[], $5, $6, $7, $8, $9, $10, $11, $12, $13,
                bytes + $14::bigint + $15::bigint * cardinality($4::text[]), $16, $17, $18 from next",
        lease.0,
        job.job.0,
        placement.host.0,
        &placement.devices,
        placement.size.milli_gpu.0,
        placement.size.milli_cpu.0,
        placement.size.memory.0,
        placement.disk.0,
        placement.rate.gpu_hour.0,
        placement.rate.vcpu_hour.0,
        placement.rate.gib_hour.0,
        placement.run_max.0,
        placement.capped_by_spend,
        ORDER_BYTES + of_group,
        DEVICE_BYTES,
        placement.grounds.reason.as_str(),
        placement.grounds.trust.as_str(),
        placement.grounds.baseline.map(|price| price.0)
    )
    .execute(&mut *tx)
    .await?;
    let orders_bytes = sqlx::query_scalar!(
        r#"select sum(order_bytes)::bigint as "bytes!" from leases where host_id = $1 and state <> 'closed'"#,
        placement.host.0
    )
    .fetch_one(&mut *tx)
    .await?;
    if orders_bytes > ORDERS_BYTES_MAX { Err(StoreError::Stale("host")) } else { Ok(lease) }
}

impl Store {
    /// Carries out a placement if neither the job nor the host has changed since the snapshot
    /// and the host's spec has room for it.
    ///
    /// # Errors
    /// [`StoreError::Stale`] otherwise; look again.
    pub async fn job_place(&self, placement: &Placement) -> Result<LeaseId> {
        let leases = self.gang_place(std::slice::from_ref(placement)).await?;
        leases.first().copied().ok_or(StoreError::NotFound("job"))
    }

    /// Carries out the placements of a gang, all of them or none.
    ///
    /// # Errors
    /// As [`Store::job_place`], for any of them.
    pub async fn gang_place(&self, placements: &[Placement]) -> Result<Vec<LeaseId>> {
        let mut sorted = placements.to_vec();
        sorted.sort_by_key(|placement| placement.job);
        let mut tx = self.pool.begin().await?;
        let mut jobs = Vec::new();
        for placement in &sorted {
            jobs.push(lock(&mut tx, placement.job).await?);
        }
        let leases = open(&mut tx, &mut jobs, &sorted, Basis::Snapshot).await?;
        crash_point!("store.job_place.before_commit");
        tx.commit().await?;
        crash_point!("store.job_place.after_commit");
        Ok(leases)
    }
}
