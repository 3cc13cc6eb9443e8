//! What the scheduler sees, and how it places.

use std::collections::BTreeMap;

use nave_crash_point::crash_point;
use nave_domain::{
    Bytes, HostId, JobId, LeaseId, MicroUsd, MilliCpu, Millis, Timestamp,
    host::Inventory,
    job::{JobEvent, JobRequest, JobState},
    rate::{Rate, Size},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result, Store, StoreError,
    error::{self, readable},
    group,
    job::{advance, lock},
    notify::{Changes, announce},
};

/// A consistent view of the queue and the supply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// When it was taken.
    pub now: Timestamp,
    /// Jobs that wait, oldest first.
    pub jobs: Vec<QueuedJob>,
    /// Hosts that take jobs, by id.
    pub hosts: BTreeMap<HostId, SupplyHost>,
}

/// A job that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedJob {
    /// Its id; ids sort by age.
    pub job: JobId,
    /// What was asked for, without the command and its variables: those may be long, and a
    /// queue is read at every look.
    pub request: JobRequest,
    /// What may still be spent on it.
    pub left: MicroUsd,
    /// Since when it waits.
    pub queued_at: Timestamp,
    /// How long it waited before.
    pub queued: Millis,
    /// Hosts on which an attempt ended through the host, latest last.
    pub failed_on: Vec<HostId>,
    /// Open leases of its group.
    pub group_leases: u32,
}

/// A host that takes jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SupplyHost {
    /// Generation of its spec; a placement is refused when it has moved on.
    pub generation: u64,
    /// Its price.
    pub rate: Rate,
    /// What it says it has.
    pub inventory: Inventory,
    /// CPU leased; all of it where no further order fits into the host's spec.
    pub milli_cpu_used: MilliCpu,
    /// Memory leased.
    pub memory_used: Bytes,
    /// Disk leased.
    pub disk_used: Bytes,
    /// GPUs leased.
    pub devices_used: Vec<String>,
}

/// A decision to place a job.
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

/// Most jobs in one snapshot, shared equally among the customers who have some waiting, so
/// that many jobs which no host fits do not hide those of others.
const JOBS_MAX: i64 = 1_000;

/// Most bytes that the orders of one host take together: what fits into one document.
pub const ORDERS_BYTES_MAX: i64 = 15 << 18;
/// Most bytes that one order takes: 256 KiB of arguments that JSON writes six times as long,
/// and the names of its devices.
const ORDER_BYTES_MAX: i64 = 7 << 18;
/// Bytes of an order beside its request and its devices.
const ORDER_BYTES: i64 = 1_024;
/// Bytes of a device in an order.
const DEVICE_BYTES: i64 = 264;

/// Takes a host as the planner saw it.
pub(crate) async fn hold(tx: &mut PgConnection, placement: &Placement) -> Result<()> {
    let held = sqlx::query!(
        "update hosts set generation = generation + 1 where host_id = $1 and generation = $2 and state = 'ready' and not paused",
        placement.host.0,
        placement.generation.cast_signed()
    )
    .execute(tx)
    .await?;
    if held.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Stale("host")) }
}

async fn devices_used(tx: &mut PgConnection) -> Result<BTreeMap<Uuid, Vec<String>>> {
    let devices =
        sqlx::query!(r#"select host_id, unnest(devices) as "device!" from leases where state <> 'closed'"#)
            .fetch_all(tx)
            .await?;
    let mut used: BTreeMap<Uuid, Vec<String>> = BTreeMap::new();
    for row in devices {
        used.entry(row.host_id).or_default().push(row.device);
    }
    Ok(used)
}

impl Store {
    /// The queue and the supply at one moment.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        let mut tx = self.pool.begin().await?;
        sqlx::query!("set transaction isolation level repeatable read read only").execute(&mut *tx).await?;
        let now = sqlx::query_scalar!(r#"select now_ms() as "now!""#).fetch_one(&mut *tx).await?;
        let jobs = sqlx::query!(
            r#"select j.job_id, j.request || '{"argv": [], "env": {}}' as "request!", j.max_spend - j.charged as "left!", j.queued_at_ms as "queued_at_ms!",
                    j.queued_ms,
                    array(select l.host_id from leases l where l.job_id = j.job_id
                          and l.outcome ->> 'kind' in ('host_lost', 'start_failed', 'killed')
                          order by l.attempt) as "failed_on!",
                    (select count(*) from jobs p where p.customer_id = j.customer_id
                     and p.request ->> 'group' = j.request ->> 'group'
                     and p.state in ('placed', 'running', 'cancelling')) as "group_leases!"
               from (select *, row_number() over (partition by customer_id order by job_id) as turn
                     from jobs where state = 'queued') j
               order by j.turn, j.job_id limit $1"#,
            JOBS_MAX
        )
        .fetch_all(&mut *tx)
        .await?;
        let hosts = sqlx::query!(
            r#"select h.host_id, h.generation, h.gpu_hour, h.vcpu_hour, h.gib_hour, h.inventory as "inventory!",
                    coalesce(sum(l.milli_cpu), 0)::bigint as "milli_cpu!", coalesce(sum(l.memory), 0)::bigint as "memory!",
                    coalesce(sum(l.disk), 0)::bigint as "disk!", coalesce(sum(l.order_bytes), 0)::bigint as "order_bytes!"
               from hosts h left join leases l on l.host_id = h.host_id and l.state <> 'closed'
               where h.state = 'ready' and not h.paused and h.inventory is not null group by h.host_id"#
        )
        .fetch_all(&mut *tx)
        .await?;
        let mut used = devices_used(&mut tx).await?;
        let jobs = jobs.into_iter().map(|row| {
            Ok(QueuedJob {
                job: row.job_id.into(),
                request: error::read_json("a job's request", row.request)?,
                left: MicroUsd(row.left),
                queued_at: Timestamp(row.queued_at_ms),
                queued: Millis(row.queued_ms),
                failed_on: row.failed_on.into_iter().map(HostId).collect(),
                group_leases: u32::try_from(row.group_leases).unwrap_or(u32::MAX),
            })
        });
        let hosts = hosts.into_iter().map(|row| {
            let inventory: Inventory = error::read_json("an inventory", row.inventory)?;
            // A host whose spec has no room for another order is as good as busy.
            let is_full = row.order_bytes > ORDERS_BYTES_MAX - ORDER_BYTES_MAX;
            let milli_cpu_used =
                if is_full { inventory.milli_cpu.0.max(row.milli_cpu) } else { row.milli_cpu };
            let host = SupplyHost {
                generation: row.generation.cast_unsigned(),
                rate: Rate {
                    gpu_hour: MicroUsd(row.gpu_hour),
                    vcpu_hour: MicroUsd(row.vcpu_hour),
                    gib_hour: MicroUsd(row.gib_hour),
                },
                inventory,
                milli_cpu_used: MilliCpu(milli_cpu_used),
                memory_used: Bytes(row.memory),
                disk_used: Bytes(row.disk),
                devices_used: used.remove(&row.host_id).unwrap_or_default(),
            };
            Ok((row.host_id.into(), host))
        });
        let mut jobs: Vec<_> = jobs.filter_map(readable).collect();
        jobs.sort_unstable_by_key(|queued| queued.job);
        Ok(Snapshot { now: Timestamp(now), jobs, hosts: hosts.filter_map(readable).collect() })
    }

    /// Carries out a placement if neither the job nor the host has changed since the snapshot
    /// and the host's spec has room for it.
    ///
    /// # Errors
    /// [`StoreError::Stale`] otherwise; look again.
    pub async fn job_place(&self, placement: &Placement) -> Result<LeaseId> {
        let mut tx = self.pool.begin().await?;
        let mut job = lock(&mut tx, placement.job).await?;
        if job.state != JobState::Queued {
            return Err(StoreError::Stale("job"));
        }
        group::joined(&mut tx, &job, placement).await?;
        let of_group = if job.request.group.is_some() { group::ORDER_BYTES } else { 0 };
        let lease = LeaseId(Uuid::now_v7());
        sqlx::query!(
            "with next as (update jobs set attempts = attempts + 1 where job_id = $2
                           returning attempts, octet_length(request::text) as bytes)
             insert into leases (lease_id, job_id, attempt, host_id, devices, milli_gpu, milli_cpu, memory, disk,
                                 gpu_hour, vcpu_hour, gib_hour, run_ms_max, capped_by_spend, order_bytes)
             select $1, $2, attempts, $3, $4::text[], $5, $6, $7, $8, $9, $10, $11, $12, $13,
                    bytes + $14::bigint + $15::bigint * cardinality($4::text[]) from next",
            lease.0,
            placement.job.0,
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
            DEVICE_BYTES
        )
        .execute(&mut *tx)
        .await?;
        let orders_bytes = sqlx::query_scalar!(
            r#"select sum(order_bytes)::bigint as "bytes!" from leases where host_id = $1 and state <> 'closed'"#,
            placement.host.0
        )
        .fetch_one(&mut *tx)
        .await?;
        if orders_bytes > ORDERS_BYTES_MAX {
            return Err(StoreError::Stale("host"));
        }
        advance(&mut tx, &mut job, JobEvent::Place, None).await?;
        announce(&mut tx, Changes::Host(placement.host)).await?;
        crash_point!("store.job_place.before_commit");
        tx.commit().await?;
        crash_point!("store.job_place.after_commit");
        Ok(lease)
    }
}
