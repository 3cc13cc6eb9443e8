//! What the scheduler sees.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    Bytes, CustomerId, HostId, JobId, LeaseId, MicroUsd, MilliCpu, MilliGpu, Millis, Timestamp,
    fraction::{Fraction, Shared},
    host::{Inventory, Proven},
    job::JobRequest,
    rate::{Rate, Size},
    wish::{Region, Terms},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result, Store, baseline,
    baseline::Baselines,
    cloud,
    error::{self, readable},
    held, place,
    quote::{self, AskedQuote},
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
    /// Wishes for quotes that wait for an answer, oldest first.
    pub quotes: Vec<AskedQuote>,
    /// What clouds ask for devices.
    pub baselines: Baselines,
}

/// A job that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedJob {
    /// Its id; ids sort by age.
    pub job: JobId,
    /// Who pays.
    pub customer: CustomerId,
    /// What was asked for, without the command and its variables: those may be long, and a
    /// queue is read at every look.
    pub request: JobRequest,
    /// What may still be spent on it.
    pub left: MicroUsd,
    /// Since when it waits.
    pub queued_at: Timestamp,
    /// How long it waited before.
    pub queued: Millis,
    /// How often it was placed.
    pub attempts: u32,
    /// Hosts on which an attempt ended through the host, latest last.
    pub failed_on: Vec<HostId>,
    /// The gang that it starts with, by its first job; none once it has run.
    pub gang: Option<JobId>,
    /// Open leases of its group.
    pub group_leases: u32,
    /// Owners of hosts that have, or had, one of the jobs that it is kept apart from.
    pub apart_from: BTreeSet<String>,
    /// Bytes that its order would take in the spec of a host.
    pub order_bytes: i64,
}

/// A host that takes jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SupplyHost {
    /// Who owns it.
    pub hotkey: String,
    /// Generation of its spec; a placement is refused when it has moved on.
    pub generation: u64,
    /// Its price.
    pub rate: Rate,
    /// On which terms it is there.
    pub terms: Terms,
    /// How much longer what is placed there can go on: until its end, or until it is to be free for a test that is
    /// overdue; none where neither is known.
    pub lasts: Option<Millis>,
    /// What it says it has.
    pub inventory: Inventory,
    /// Classes of its GPUs, by identifier; those without one are unrated.
    pub classes: BTreeMap<String, String>,
    /// The models of those classes, by identifier.
    pub models: BTreeMap<String, Vec<String>>,
    /// What it has done and lost.
    pub past: Past,
    /// The same of all other hosts of its owner.
    pub past_elsewhere: Past,
    /// Leases that end soon, or that end when somebody else needs their place; they occupy it until then.
    pub yielding: Vec<Yielding>,
    /// Whose each lease and quote on it is, and whether that one is to be alone there.
    pub tenants: Vec<(CustomerId, bool)>,
    /// Bytes that the orders of its leases take in its spec, at most
    /// [`ORDERS_BYTES_MAX`](crate::ORDERS_BYTES_MAX).
    pub order_bytes: i64,
    /// CPU leased or held.
    pub milli_cpu_used: MilliCpu,
    /// Memory leased or held.
    pub memory_used: Bytes,
    /// Disk leased or held.
    pub disk_used: Bytes,
    /// GPUs leased or held whole, and slices.
    pub devices_used: Vec<String>,
    /// GPUs of which shares are leased.
    pub shared: BTreeMap<String, Shared<CustomerId>>,
}

impl SupplyHost {
    /// Adds what a lease or a quote occupies.
    pub fn occupy(&mut self, part: Occupied) {
        self.milli_cpu_used.0 = self.milli_cpu_used.0.saturating_add(part.size.milli_cpu.0);
        self.memory_used.0 = self.memory_used.0.saturating_add(part.size.memory.0);
        self.disk_used.0 = self.disk_used.0.saturating_add(part.disk.0);
        self.order_bytes = self.order_bytes.saturating_add(part.order_bytes);
        match part.share {
            Some(fraction) => self.share(part.devices, part.customer, fraction),
            None => self.devices_used.extend(part.devices),
        }
        self.tenants.push((part.customer, part.alone));
    }

    /// Keeps devices for a test: nobody gets more of them, nor is anybody asked to yield there for it.
    fn hold(&mut self, devices: BTreeSet<String>) {
        self.yielding.retain(|lease| !lease.part.devices.iter().any(|device| devices.contains(device)));
        self.devices_used.extend(devices);
    }

    fn share(&mut self, devices: Vec<String>, tenant: CustomerId, fraction: Fraction) {
        for device in devices {
            let mut taken = self.shared.remove(&device);
            Shared::add(&mut taken, tenant, fraction);
            self.shared.extend(taken.map(|taken| (device, taken)));
        }
    }
}

/// What hosts have done, as far back as it counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Past {
    /// For how long leases ran, each by itself.
    pub served: Millis,
    /// How many of them were lost with their host.
    pub losses: i64,
}

/// A lease that ends soon, or that yields to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Yielding {
    /// Which.
    pub lease: LeaseId,
    /// What it occupies.
    pub part: Occupied,
    /// What it has done, which is done again should it end now.
    pub used: Millis,
    /// Whether it ends already.
    pub is_ending: bool,
}

/// What a lease or a quote occupies of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occupied {
    /// Whose it is.
    pub customer: CustomerId,
    /// Whether nobody else may be on the host meanwhile.
    pub alone: bool,
    /// CPU, memory and number of GPUs.
    pub size: Size,
    /// Working directory.
    pub disk: Bytes,
    /// GPUs.
    pub devices: Vec<String>,
    /// What it has of its one GPU, where that is a share.
    pub share: Option<Fraction>,
    /// Bytes that its order takes in the spec.
    pub order_bytes: i64,
}

/// Most jobs in one snapshot, shared equally among the customers who have some waiting, so
/// that many jobs which no host fits do not hide those of others.
const JOBS_MAX: i64 = 1_000;
/// Most bytes that one order takes: 256 KiB of arguments that JSON writes six times as long,
/// and the names of its devices.
pub const ORDER_BYTES_MAX: i64 = 7 << 18;

/// The share of a row, where it has one.
pub(crate) fn share(milli: Option<i64>, vram: Option<i64>) -> Option<Fraction> {
    Some(Fraction { milli: MilliGpu(milli?), vram: Bytes(vram?) })
}

/// What open leases and quotes occupy, by host.
pub(crate) async fn occupied(tx: &mut PgConnection) -> Result<BTreeMap<HostId, Vec<Occupied>>> {
    let leases = sqlx::query!(
        r#"select l.host_id, j.customer_id, j.request ->> 'isolation' is not distinct from 'host' as "alone!",
                l.milli_gpu, l.milli_cpu, l.memory, l.disk, l.devices, l.share_milli, l.share_vram, l.order_bytes
           from leases l join jobs j using (job_id) where l.state <> 'closed' order by l.lease_id"#
    )
    .fetch_all(&mut *tx)
    .await?;
    let mut occupied: BTreeMap<HostId, Vec<Occupied>> = BTreeMap::new();
    for row in leases {
        let part = Occupied {
            customer: row.customer_id.into(),
            alone: row.alone,
            size: Size {
                milli_gpu: MilliGpu(row.milli_gpu),
                milli_cpu: MilliCpu(row.milli_cpu),
                memory: Bytes(row.memory),
            },
            disk: Bytes(row.disk),
            devices: row.devices,
            share: share(row.share_milli, row.share_vram),
            order_bytes: row.order_bytes,
        };
        occupied.entry(row.host_id.into()).or_default().push(part);
    }
    for (host, part) in quote::held(tx).await? {
        occupied.entry(host).or_default().push(part);
    }
    Ok(occupied)
}

/// Leases that end soon, or yield to others: those of spot jobs. By host.
async fn yielding(tx: &mut PgConnection) -> Result<BTreeMap<HostId, Vec<Yielding>>> {
    let rows = sqlx::query!(
        r#"select l.lease_id, l.host_id, j.customer_id, j.request ->> 'isolation' is not distinct from 'host' as "alone!",
                l.milli_gpu, l.milli_cpu, l.memory, l.disk, l.devices, l.share_milli, l.share_vram, l.order_bytes, l.used_ms,
                l.notice_up_ms is not null or l.state in ('stopping', 'draining') as "is_ending!"
           from leases l join jobs j using (job_id)
           where l.state <> 'closed' and (l.state in ('stopping', 'draining') or j.request ->> 'term' = 'spot')
           order by l.lease_id"#
    )
    .fetch_all(tx)
    .await?;
    let mut yielding: BTreeMap<HostId, Vec<Yielding>> = BTreeMap::new();
    for row in rows {
        let part = Occupied {
            customer: row.customer_id.into(),
            alone: row.alone,
            size: Size {
                milli_gpu: MilliGpu(row.milli_gpu),
                milli_cpu: MilliCpu(row.milli_cpu),
                memory: Bytes(row.memory),
            },
            disk: Bytes(row.disk),
            devices: row.devices,
            share: share(row.share_milli, row.share_vram),
            order_bytes: row.order_bytes,
        };
        let (lease, used) = (row.lease_id.into(), Millis(row.used_ms));
        let lease = Yielding { lease, part, used, is_ending: row.is_ending };
        yielding.entry(row.host_id.into()).or_default().push(lease);
    }
    Ok(yielding)
}

async fn jobs(tx: &mut PgConnection) -> Result<Vec<QueuedJob>> {
    let rows = sqlx::query!(
        r#"select j.job_id, j.customer_id, j.request || '{"argv": [], "env": {}}' as "request!", j.max_spend - j.charged as "left!", j.queued_at_ms as "queued_at_ms!",
                j.queued_ms, j.attempts, j.gang, octet_length(j.request::text)::bigint as "request_bytes!",
                array(select l.host_id from leases l where l.job_id = j.job_id
                      and l.outcome ->> 'kind' in ('host_lost', 'start_failed', 'killed')
                      order by l.attempt) as "failed_on!",
                (select count(*) from jobs p where p.customer_id = j.customer_id
                 and p.request ->> 'group' = j.request ->> 'group'
                 and p.state in ('placed', 'running', 'cancelling')) as "group_leases!",
                array(select m from miners_apart(j.customer_id, j.request ->> 'apart', j.job_id) m) as "apart_from!"
           from (select *, min(number) over (partition by customer_id, coalesce(gang, job_id)) as turn
                 from (select *, row_number() over (partition by customer_id order by job_id) as number
                       from jobs where state = 'queued') numbered) j
           -- A gang is one, and never cut.
           order by j.turn, coalesce(j.gang, j.job_id) fetch first $1 rows with ties"#,
        JOBS_MAX
    )
    .fetch_all(tx)
    .await?;
    let jobs = rows.into_iter().map(|row| {
        let request: JobRequest = error::read_json("a job's request", row.request)?;
        Ok(QueuedJob {
            job: row.job_id.into(),
            customer: row.customer_id.into(),
            order_bytes: row.request_bytes + place::order_bytes(&request),
            request,
            left: MicroUsd(row.left),
            queued_at: Timestamp(row.queued_at_ms),
            queued: Millis(row.queued_ms),
            attempts: row.attempts.unsigned_abs(),
            failed_on: row.failed_on.into_iter().map(HostId).collect(),
            gang: row.gang.map(JobId).filter(|_| row.attempts == 0),
            group_leases: u32::try_from(row.group_leases).unwrap_or(u32::MAX),
            apart_from: row.apart_from.into_iter().collect(),
        })
    });
    let mut jobs: Vec<_> = jobs.filter_map(readable).collect();
    jobs.sort_unstable_by_key(|queued| queued.job);
    Ok(jobs)
}

async fn hosts(tx: &mut PgConnection, now: Timestamp) -> Result<BTreeMap<HostId, SupplyHost>> {
    let rows = sqlx::query!(
        r#"with miners as (
            select hotkey, sum(served_ms)::bigint as all_served_ms, sum(losses)::bigint as all_losses from hosts group by hotkey)
           select host_id, hotkey, generation, gpu_hour, vcpu_hour, gib_hour, region, inventory as "inventory!", proven,
                case when spot_because is null then term else 'spot' end as "term!",
                exists (select from machines m where m.host_id = hosts.host_id) as "is_rented!",
                (select known -> 'dead_man' from machines m where m.host_id = hosts.host_id) as dead_man,
                served_ms, losses, all_served_ms as "all_served_ms!", all_losses as "all_losses!"
           from hosts join miners using (hotkey) join (select host_id, spot_because from offers) o using (host_id)
           where state = 'ready' and not paused and inventory is not null"#
    )
    .fetch_all(&mut *tx)
    .await?;
    let mut yielding = yielding(&mut *tx).await?;
    let mut occupied = occupied(&mut *tx).await?;
    let ids: Vec<Uuid> = rows.iter().map(|row| row.host_id).collect();
    let held = held::hosts(&mut *tx, &ids).await?;
    let mut held_devices = held::devices(tx, &ids).await?;
    let hosts = rows.into_iter().map(|row| {
        let inventory: Inventory = error::read_json("an inventory", row.inventory)?;
        let proven: Option<Proven> =
            row.proven.map(|value| error::read_json("what a host has proven", value)).transpose()?;
        let region: Option<Region> = row.region.map(|name| error::read_name("a region", name)).transpose()?;
        let terms = Terms {
            term: error::read_name("a term", row.term)?,
            region,
            trust: cloud::trust(row.is_rented, Some(&inventory), proven.as_ref()),
        };
        // In whole minutes, so that a host is not another one at each look.
        let lasts = held.get(&row.host_id.into()).map(|held| Millis(held.lasts.0 / 60_000 * 60_000));
        let mut host = SupplyHost {
            hotkey: row.hotkey,
            generation: row.generation.cast_unsigned(),
            rate: Rate {
                gpu_hour: MicroUsd(row.gpu_hour),
                vcpu_hour: MicroUsd(row.vcpu_hour),
                gib_hour: MicroUsd(row.gib_hour),
            },
            terms,
            lasts: [cloud::lasts(row.dead_man, now)?, lasts].into_iter().flatten().min(),
            inventory,
            classes: proven.iter().flat_map(Proven::classes).collect(),
            models: proven.iter().flat_map(Proven::models).collect(),
            past: Past { served: Millis(row.served_ms), losses: row.losses },
            past_elsewhere: Past {
                served: Millis(row.all_served_ms - row.served_ms),
                losses: row.all_losses - row.losses,
            },
            yielding: yielding.remove(&row.host_id.into()).unwrap_or_default(),
            tenants: Vec::new(),
            order_bytes: 0,
            milli_cpu_used: MilliCpu::ZERO,
            memory_used: Bytes::ZERO,
            disk_used: Bytes::ZERO,
            devices_used: Vec::new(),
            shared: BTreeMap::new(),
        };
        let parts = occupied.remove(&row.host_id.into()).unwrap_or_default();
        parts.into_iter().for_each(|part| host.occupy(part));
        host.hold(held_devices.remove(&row.host_id.into()).unwrap_or_default());
        Ok((row.host_id.into(), host))
    });
    Ok(hosts.filter_map(readable).collect())
}

impl Store {
    /// The queue and the supply at one moment.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        let mut tx = self.begin().await?;
        sqlx::query!("set transaction isolation level repeatable read read only").execute(&mut *tx).await?;
        let now = sqlx::query_scalar!(r#"select now_ms() as "now!""#).fetch_one(&mut *tx).await?;
        Ok(Snapshot {
            now: Timestamp(now),
            jobs: jobs(&mut tx).await?,
            hosts: hosts(&mut tx, Timestamp(now)).await?,
            quotes: quote::asked(&mut tx).await?,
            baselines: baseline::current(&mut tx).await?,
        })
    }

    /// Notes what queued jobs wait for: a code for programs and a sentence for people.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn jobs_wait<'a>(
        &self,
        waiting: impl Iterator<Item = (JobId, &'static str, &'a str)>,
    ) -> Result<()> {
        let mut waiting: Vec<_> =
            waiting.map(|(job, code, message)| (job.0, code.to_owned(), message.to_owned())).collect();
        waiting.sort_unstable();
        let jobs: Vec<Uuid> = waiting.iter().map(|(job, ..)| *job).collect();
        let codes: Vec<String> = waiting.iter().map(|(_, code, _)| code.clone()).collect();
        let messages: Vec<String> = waiting.into_iter().map(|(.., message)| message).collect();
        // Those that others have locked are told at the next look.
        sqlx::query!(
            "with told as (
                select job_id, code, message
                from unnest($1::uuid[], $2::text[], $3::text[]) wait (id, code, message) join jobs on job_id = id
                where state = 'queued' and reason_message is distinct from message
                order by job_id for update of jobs skip locked)
             update jobs set reason_code = told.code, reason_message = told.message
             from told where jobs.job_id = told.job_id",
            &jobs,
            &codes,
            &messages
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
