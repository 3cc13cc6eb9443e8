//! Placing: jobs get leases on hosts, as a planner decided or a quote says.

use std::collections::{BTreeMap, BTreeSet};

use nave_crash_point::crash_point;
use nave_domain::{
    Bytes, HostId, JobId, LeaseId, MicroUsd, Millis,
    fraction::Fraction,
    host::{Term, Trust},
    job::{self, JobEvent, JobRequest, JobState},
    lease::ChosenFor,
    rate::{Rate, Size},
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, Postgres, Transaction};
use uuid::Uuid;

use crate::{
    Result, Store, StoreError, apart, error, group, held,
    job::{LockedJob, advance, lock},
    notify::{Changes, announce, announce_all},
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
    /// GPUs, or a slice of one.
    pub devices: Vec<String>,
    /// What it gets of its one GPU, where that is a share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Fraction>,
    /// At which rate.
    pub rate: Rate,
    /// Longest run.
    pub run_max: Millis,
    /// Whether the spend cap is what bounds the run.
    pub capped_by_spend: bool,
    /// Why there.
    pub grounds: Grounds,
    /// The first job of the gang that it is placed with, all of it or none. The placements of a gang
    /// stand together in a plan. None where it has to do with no other job.
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
    /// For how long the host sells.
    #[serde(default)]
    pub term: Term,
}

impl Default for Grounds {
    fn default() -> Self {
        Self { reason: ChosenFor::default(), trust: Trust::Unrated, baseline: None, term: Term::OnDemand }
    }
}

/// Most bytes that the orders of one host take together: what fits into one document.
pub const ORDERS_BYTES_MAX: i64 = 15 << 18;
/// Bytes of an order beside its request and its devices.
const ORDER_BYTES: i64 = 1_024;
/// Bytes of a device in an order.
const DEVICE_BYTES: i64 = 264;

/// Bytes of the order of a job beside its request.
pub(crate) fn order_bytes(request: &JobRequest) -> i64 {
    let of_group = if request.group.is_some() { group::ORDER_BYTES } else { 0 };
    let devices = request.resources.gpu.as_ref().map_or(0, |gpu| i64::from(gpu.count));
    ORDER_BYTES + of_group + DEVICE_BYTES * devices
}

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
    let longest = jobs.iter().map(|job| job.request.limits.longest());
    held::admit(tx, &placements.iter().zip(longest).collect::<Vec<_>>()).await?;
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
                       returning attempts, octet_length(request::text) as bytes, request ->> 'term' as term)
         insert into leases (lease_id, job_id, attempt, host_id, devices, milli_gpu, milli_cpu, memory, disk,
                             gpu_hour, vcpu_hour, gib_hour, run_ms_max, capped_by_spend, order_bytes,
                             reason, trust, baseline_gpu_hour, share_milli, share_vram, term, class)
         select $1, $2, attempts, $3, $4::text[], $5, $6, $7, $8, $9, $10, $11, $12, $13,
                bytes + $14::bigint + $15::bigint * cardinality($4::text[]), $16, $17, $18, $19, $20,
                case when term = 'spot' then term else $21 end,
                (select proven #>> array['devices', ($4::text[])[1], 'class'] from hosts where host_id = $3) from next",
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
        placement.grounds.baseline.map(|price| price.0),
        placement.share.map(|share| share.milli.0),
        placement.share.map(|share| share.vram.0),
        placement.grounds.term.as_str()
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
        let mut tx = self.begin().await?;
        let mut jobs = Vec::new();
        for placement in &sorted {
            jobs.push(lock(&mut tx, placement.job).await?);
        }
        let leases = open(&mut tx, &mut jobs, &sorted, Basis::Snapshot).await?;
        commit(tx).await?;
        Ok(leases)
    }

    /// Carries out placements of jobs that have to do with no others, all of them or none, in as few statements as
    /// one takes. Those on one host stand in the order of its generations.
    ///
    /// # Errors
    /// As [`Store::job_place`], for any of them, and [`StoreError::Stale`] also for a job of a group or one that is
    /// kept apart from others: place it by itself.
    pub async fn batch_place(&self, placements: &[Placement]) -> Result<Vec<LeaseId>> {
        let mut tx = self.begin().await?;
        let longest = lock_queued(&mut tx, placements).await?;
        hold_all(&mut tx, placements).await?;
        let longest =
            |placement: &Placement| longest.get(&placement.job).copied().unwrap_or(Millis(i64::MAX));
        let lasting: Vec<_> = placements.iter().map(|placement| (placement, longest(placement))).collect();
        held::admit(&mut tx, &lasting).await?;
        let leases: Vec<LeaseId> = placements.iter().map(|_| LeaseId(Uuid::now_v7())).collect();
        insert_all(&mut tx, placements, &leases).await?;
        let hosts: BTreeSet<HostId> = placements.iter().map(|placement| placement.host).collect();
        let jobs = placements.iter().map(|placement| Changes::Job(placement.job));
        announce_all(&mut tx, jobs.chain(hosts.into_iter().map(Changes::Host))).await?;
        commit(tx).await?;
        Ok(leases)
    }
}

async fn commit(tx: Transaction<'_, Postgres>) -> Result<()> {
    crash_point!("store.job_place.before_commit");
    tx.commit().await?;
    crash_point!("store.job_place.after_commit");
    Ok(())
}

/// Locks jobs that all wait and of which none has to do with another, and says how long each may take.
async fn lock_queued(tx: &mut PgConnection, placements: &[Placement]) -> Result<BTreeMap<JobId, Millis>> {
    let jobs: Vec<Uuid> = placements.iter().map(|placement| placement.job.0).collect();
    let locked = sqlx::query!(
        r#"select state = 'queued' and request ->> 'group' is null and request ->> 'apart' is null as "fine!", job_id,
                (request #>> '{limits,start_ms}')::bigint + (request #>> '{limits,run_ms}')::bigint as "longest!"
           from jobs where job_id = any($1) order by job_id for update"#,
        &jobs
    )
    .fetch_all(tx)
    .await?;
    if locked.len() == placements.len() && locked.iter().all(|job| job.fine) {
        return Ok(locked.into_iter().map(|job| (job.job_id.into(), Millis(job.longest))).collect());
    }
    Err(StoreError::Stale("job"))
}

/// Takes hosts as the planner saw them, for so many placements each.
async fn hold_all(tx: &mut PgConnection, placements: &[Placement]) -> Result<()> {
    let mut held: BTreeMap<HostId, (u64, u64)> = BTreeMap::new();
    for placement in placements {
        let (first, count) = held.entry(placement.host).or_insert((placement.generation, 0));
        if placement.generation != *first + *count {
            return Err(StoreError::Stale("host"));
        }
        *count += 1;
    }
    let hosts: Vec<Uuid> = held.keys().map(|host| host.0).collect();
    let generations: Vec<i64> = held.values().map(|(first, _)| first.cast_signed()).collect();
    let counts: Vec<i64> = held.values().map(|(_, count)| count.cast_signed()).collect();
    let taken = sqlx::query!(
        "with held as (
            select host_id, count from unnest($1::uuid[], $2::bigint[], $3::bigint[]) seen (id, was, count)
            join hosts on host_id = id and generation = was
            where state = 'ready' and not paused order by host_id for update of hosts)
         update hosts set generation = generation + held.count from held where hosts.host_id = held.host_id",
        &hosts,
        &generations,
        &counts
    )
    .execute(tx)
    .await?;
    if taken.rows_affected() == held.len() as u64 { Ok(()) } else { Err(StoreError::Stale("host")) }
}

/// A new lease, as the database reads it.
#[derive(Serialize)]
struct NewLease<'a> {
    lease_id: Uuid,
    job_id: Uuid,
    host_id: Uuid,
    devices: &'a [String],
    milli_gpu: i64,
    milli_cpu: i64,
    memory: i64,
    disk: i64,
    gpu_hour: i64,
    vcpu_hour: i64,
    gib_hour: i64,
    run_ms_max: i64,
    capped_by_spend: bool,
    reason: &'static str,
    trust: &'static str,
    baseline_gpu_hour: Option<i64>,
    share_milli: Option<i64>,
    share_vram: Option<i64>,
    term: &'static str,
}

impl<'a> NewLease<'a> {
    fn new(lease: LeaseId, placement: &'a Placement) -> Self {
        Self {
            lease_id: lease.0,
            job_id: placement.job.0,
            host_id: placement.host.0,
            devices: &placement.devices,
            milli_gpu: placement.size.milli_gpu.0,
            milli_cpu: placement.size.milli_cpu.0,
            memory: placement.size.memory.0,
            disk: placement.disk.0,
            gpu_hour: placement.rate.gpu_hour.0,
            vcpu_hour: placement.rate.vcpu_hour.0,
            gib_hour: placement.rate.gib_hour.0,
            run_ms_max: placement.run_max.0,
            capped_by_spend: placement.capped_by_spend,
            reason: placement.grounds.reason.as_str(),
            trust: placement.grounds.trust.as_str(),
            baseline_gpu_hour: placement.grounds.baseline.map(|price| price.0),
            share_milli: placement.share.map(|share| share.milli.0),
            share_vram: placement.share.map(|share| share.vram.0),
            term: placement.grounds.term.as_str(),
        }
    }
}

/// Opens leases of jobs and on hosts that are locked, and moves the jobs along.
async fn insert_all(tx: &mut PgConnection, placements: &[Placement], leases: &[LeaseId]) -> Result<()> {
    let placed = job::next(JobState::Queued, JobEvent::Place).ok_or(StoreError::Stale("job"))?;
    let rows: Vec<NewLease<'_>> =
        leases.iter().zip(placements).map(|(lease, placement)| NewLease::new(*lease, placement)).collect();
    let opened = sqlx::query!(
        "with fresh as (
            select * from jsonb_to_recordset($1) fresh (
                lease_id uuid, job_id uuid, host_id uuid, devices text[], milli_gpu bigint, milli_cpu bigint,
                memory bigint, disk bigint, gpu_hour bigint, vcpu_hour bigint, gib_hour bigint, run_ms_max bigint,
                capped_by_spend boolean, reason text, trust text, baseline_gpu_hour bigint, share_milli bigint, share_vram bigint, term text)),
         next as (
            update jobs set state = $2, attempts = attempts + 1, reason_code = null, reason_message = null,
                queued_ms = queued_ms + now_ms() - queued_at_ms, queued_at_ms = null
            from fresh where jobs.job_id = fresh.job_id and state = 'queued'
            returning jobs.job_id, attempts, octet_length(request::text) as bytes, request ->> 'term' as asked)
         insert into leases (lease_id, job_id, attempt, host_id, devices, milli_gpu, milli_cpu, memory, disk,
                             gpu_hour, vcpu_hour, gib_hour, run_ms_max, capped_by_spend, order_bytes,
                             reason, trust, baseline_gpu_hour, share_milli, share_vram, term, class)
         select lease_id, job_id, attempts, host_id, devices, milli_gpu, milli_cpu, memory, disk, gpu_hour, vcpu_hour,
                gib_hour, run_ms_max, capped_by_spend, bytes + $3::bigint + $4::bigint * cardinality(devices),
                reason, trust, baseline_gpu_hour, share_milli, share_vram,
                case when asked = 'spot' then asked else fresh.term end,
                (select proven #>> array['devices', devices[1], 'class'] from hosts where host_id = fresh.host_id)
         from fresh join next using (job_id)",
        error::write_json(&rows)?,
        placed.as_str(),
        ORDER_BYTES,
        DEVICE_BYTES
    )
    .execute(&mut *tx)
    .await?;
    let hosts: Vec<Uuid> = placements.iter().map(|placement| placement.host.0).collect();
    let overfull = sqlx::query_scalar!(
        r#"select exists (select from leases where host_id = any($1) and state <> 'closed'
                          group by host_id having sum(order_bytes) > $2::bigint) as "overfull!""#,
        &hosts,
        ORDERS_BYTES_MAX
    )
    .fetch_one(tx)
    .await?;
    if overfull {
        return Err(StoreError::Stale("host"));
    }
    if opened.rows_affected() == placements.len() as u64 { Ok(()) } else { Err(StoreError::Stale("job")) }
}
