//! What is waited for, what is rented, and what more is wanted: all that a decision to rent rests on.

use std::collections::BTreeMap;

use nave_crash_point::crash_point;
use nave_domain::{
    Bytes, CustomerId, JobId, MicroUsd, MilliCpu, MilliGpu, Millis, Timestamp,
    host::{HostState, Inventory, Proven},
    job::JobRequest,
    rate::{Rate, Size, charge},
};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result, Store, StoreError,
    cloud::{MachineRow, RawMachine},
    error::{self, readable},
};

/// A machine to be wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMachine<'a> {
    /// Its id, and that of its ticket.
    pub machine: Uuid,
    /// Where.
    pub cloud: &'a str,
    /// What its keeper is to know of it.
    pub known: Value,
    /// What it has and costs for jobs.
    pub shape: Value,
    /// Who signs its ticket.
    pub hotkey: &'a str,
    /// The job that it is rented for, first of all.
    pub job: JobId,
}

/// A job that waits and has no place, with why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingJob {
    /// Its id; ids sort by age.
    pub job: JobId,
    /// Who pays.
    pub customer: CustomerId,
    /// What was asked for, without the command and its variables.
    pub request: JobRequest,
    /// What may still be spent on it.
    pub left: MicroUsd,
    /// Since when it waits.
    pub queued_at: Timestamp,
    /// How long it waited before.
    pub queued: Millis,
    /// Why it waits, for programs.
    pub code: String,
    /// How many machines were paid for because of it.
    pub machines: u32,
    /// The gang that it starts with, by its first job; none once it has run.
    pub gang: Option<JobId>,
    /// How many machines were paid for within a day because of jobs of its customer that ended without a lease.
    pub in_vain: u32,
    /// What it was told of why no machine is rented for it.
    pub not_rented: Option<String>,
}

/// A machine that is not closed, or was wanted lately, and what becomes of it as a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RentedMachine {
    /// Its row.
    pub row: MachineRow,
    /// Where its host stands.
    pub host: Option<HostState>,
    /// What its host has to offer, and what it has proven, while it takes jobs.
    pub has: Option<(Inventory, Option<Proven>)>,
    /// Whether its host has leases.
    pub is_busy: bool,
    /// Whether a quote holds some of it.
    pub is_held: bool,
    /// Whether its host ever had a lease.
    pub has_worked: bool,
    /// Whether it has for long enough that jobs which wait do so in spite of it.
    pub is_long_busy: bool,
    /// Whether the job that it was rented for still waits.
    pub job_waits: bool,
    /// What jobs have used of its host within [`RentedMachine::PAID_SPAN`], in money.
    pub paid: MicroUsd,
}

impl RentedMachine {
    /// How far back it is seen what jobs pay for a machine.
    pub const PAID_SPAN: Millis = Millis(1_800_000);
}

/// A machine and what all jobs on it have been charged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineAccount {
    /// Its row.
    pub row: MachineRow,
    /// Charges less refunds.
    pub charged: MicroUsd,
}

/// What is waited for and what is rented, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RentSnapshot {
    /// When it was taken.
    pub now: Timestamp,
    /// Jobs that wait, oldest first.
    pub jobs: Vec<WaitingJob>,
    /// Machines.
    pub machines: Vec<RentedMachine>,
    /// How many machines there ever were: whoever wants more must have seen all.
    pub seen: i64,
}

/// Most jobs in one snapshot, shared equally among the customers who have some waiting: many jobs of one do not hide
/// those of others.
const JOBS_MAX: i64 = 1_000;
/// For how long it counts against a customer that machines were paid for in vain.
const VAIN_MS: i64 = 86_400_000;
/// How long after its first lease a host may still get those that were planned with it.
const SETTLE_MS: i64 = 30_000;

/// The columns of a machine among those of a row.
macro_rules! raw_machine {
    ($row:ident) => {
        RawMachine {
            machine_id: $row.machine_id,
            version: $row.version,
            cloud: $row.cloud,
            made_at_ms: $row.made_at_ms,
            demand: $row.demand,
            idle_at_ms: $row.idle_at_ms,
            enrolled_at_ms: $row.enrolled_at_ms,
            ending: $row.ending,
            is_closed: $row.is_closed,
            cost: $row.cost,
            known: $row.known,
            shape: $row.shape,
            job_id: $row.job_id,
            host_id: $row.host_id,
        }
    };
}

impl Store {
    /// Wants machines, all of them or none.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when there are others than the `seen` that the decision rests on.
    pub async fn machines_want(&self, seen: i64, wanted: &[NewMachine<'_>]) -> Result<()> {
        let mut tx = self.begin().await?;
        // One at a time, or two would each want what one job waits for.
        sqlx::query!("select pg_advisory_xact_lock(hashtextextended('machines', 0))")
            .execute(&mut *tx)
            .await?;
        if count(&mut tx).await? != seen {
            return Err(StoreError::Stale("number of machines"));
        }
        for new in wanted {
            sqlx::query!(
                "insert into machines (machine_id, version, cloud, made_at_ms, known, shape, hotkey, job_id)
                 values ($1, 1, $2, now_ms(), $3, $4, $5, $6)",
                new.machine,
                new.cloud,
                new.known,
                new.shape,
                new.hotkey,
                new.job.0
            )
            .execute(&mut *tx)
            .await?;
        }
        crash_point!("store.machines_want.before_commit");
        Ok(tx.commit().await?)
    }

    /// What is waited for and what is rented; of closed machines those that were wanted within `lately`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn rent_snapshot(&self, lately: Millis) -> Result<RentSnapshot> {
        let mut tx = self.begin().await?;
        sqlx::query!("set transaction isolation level repeatable read read only").execute(&mut *tx).await?;
        let now = sqlx::query_scalar!(r#"select now_ms() as "now!""#).fetch_one(&mut *tx).await?;
        Ok(RentSnapshot {
            now: Timestamp(now),
            jobs: jobs(&mut tx).await?,
            machines: rented(&mut tx, lately).await?,
            seen: count(&mut tx).await?,
        })
    }

    /// Machines that are not closed, or were wanted or ended within `lately`, with what they brought in.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn machine_accounts(&self, lately: Millis) -> Result<Vec<MachineAccount>> {
        let rows = sqlx::query!(
            r#"select machine_id, version, cloud, made_at_ms, demand, idle_at_ms, enrolled_at_ms, ending, is_closed, cost,
                    known, shape, job_id, host_id,
                    (select coalesce(sum(charged), 0)::bigint from leases l where l.host_id = m.host_id) as "charged!"
               from machines m where not is_closed or made_at_ms > now_ms() - $1::bigint or ended_at_ms > now_ms() - $1::bigint
               order by machine_id"#,
            lately.0
        );
        let accounts = rows.fetch_all(&self.pool).await?.into_iter().map(|row| {
            let raw = raw_machine!(row);
            Ok(MachineAccount { row: raw.read()?, charged: MicroUsd(row.charged) })
        });
        accounts.collect()
    }

    /// Tells queued jobs why no machine is rented for them, and all others that nothing keeps one from them.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn jobs_not_rented(&self, told: &[(JobId, String)]) -> Result<()> {
        let jobs: Vec<Uuid> = told.iter().map(|(job, _)| job.0).collect();
        let messages: Vec<String> = told.iter().map(|(_, message)| message.clone()).collect();
        // Those that others have locked are told at the next look.
        sqlx::query!(
            "with told as (
                select job_id, message
                from jobs left join unnest($1::uuid[], $2::text[]) wait (id, message) on job_id = id
                where state = 'queued' and not_rented is distinct from message
                order by job_id for update of jobs skip locked)
             update jobs set not_rented = told.message from told where jobs.job_id = told.job_id",
            &jobs,
            &messages
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

async fn count(tx: &mut PgConnection) -> Result<i64> {
    Ok(sqlx::query_scalar!(r#"select count(*) as "count!" from machines"#).fetch_one(tx).await?)
}

async fn jobs(tx: &mut PgConnection) -> Result<Vec<WaitingJob>> {
    let rows = sqlx::query!(
        r#"with vain as (
               select j.customer_id, count(*) as count from machines m join jobs j using (job_id)
               where m.made_at_ms > now_ms() - $2::bigint and m.cost > 0 and j.attempts = 0 and j.finished_at_ms is not null
               group by j.customer_id)
           select job_id, j.customer_id, request || '{"argv": [], "env": {}}' as "request!",
                max_spend - charged as "left!", queued_at_ms as "queued_at_ms!", queued_ms, reason_code as "code!",
                (select count(*) from machines m where m.job_id = j.job_id and m.cost > 0) as "machines!",
                case when attempts = 0 then gang end as gang, coalesce(vain.count, 0) as "in_vain!", not_rented
           from (select *, min(number) over (partition by customer_id, coalesce(gang, job_id)) as turn
                 from (select *, row_number() over (partition by customer_id order by job_id) as number
                       from jobs where state = 'queued' and reason_code is not null) numbered) j
                left join vain using (customer_id)
           -- A gang is one, and never cut.
           order by j.turn, coalesce(j.gang, j.job_id) fetch first $1 rows with ties"#,
        JOBS_MAX,
        VAIN_MS
    );
    let count = |count: i64| u32::try_from(count).unwrap_or(u32::MAX);
    let jobs = rows.fetch_all(tx).await?.into_iter().map(|row| {
        Ok(WaitingJob {
            job: row.job_id.into(),
            customer: row.customer_id.into(),
            request: error::read_json("a job's request", row.request)?,
            left: MicroUsd(row.left),
            queued_at: Timestamp(row.queued_at_ms),
            queued: Millis(row.queued_ms),
            code: row.code,
            machines: count(row.machines),
            gang: row.gang.map(JobId),
            in_vain: count(row.in_vain),
            not_rented: row.not_rented,
        })
    });
    let mut jobs: Vec<WaitingJob> = jobs.filter_map(readable).collect();
    jobs.sort_unstable_by_key(|waiting| waiting.job);
    Ok(jobs)
}

async fn rented(tx: &mut PgConnection, lately: Millis) -> Result<Vec<RentedMachine>> {
    let mut paid = paid(&mut *tx).await?;
    let rows = sqlx::query!(
        r#"select m.machine_id, m.version, m.cloud, m.made_at_ms, m.demand, m.idle_at_ms, m.enrolled_at_ms, m.ending,
                m.is_closed, m.cost, m.known, m.shape, m.job_id, m.host_id, h.state as "state?",
                case when h.state = 'ready' then h.inventory end as inventory, h.proven as "proven?",
                exists (select from leases l where l.host_id = m.host_id and l.state <> 'closed') as "is_busy!",
                exists (select from quotes q where q.host_id = m.host_id and q.job_id is null
                        and q.expires_at_ms > now_ms()) as "is_held!",
                exists (select from leases l where l.host_id = m.host_id) as "has_worked!",
                exists (select from leases l where l.host_id = m.host_id and l.state <> 'closed'
                        and l.placed_at_ms < now_ms() - $2::bigint) as "is_long_busy!",
                exists (select from jobs j where j.job_id = m.job_id and j.state = 'queued') as "job_waits!"
           from machines m left join hosts h using (host_id)
           where not m.is_closed or m.made_at_ms > now_ms() - $1::bigint order by m.machine_id"#,
        lately.0,
        SETTLE_MS
    );
    let machines = rows.fetch_all(tx).await?.into_iter().map(|row| {
        let raw = raw_machine!(row);
        let inventory: Option<Inventory> =
            row.inventory.map(|value| error::read_json("an inventory", value)).transpose()?;
        let proven = row.proven.map(|value| error::read_json("what a host has proven", value)).transpose()?;
        Ok(RentedMachine {
            paid: paid.remove(&raw.machine_id).unwrap_or_default(),
            row: raw.read()?,
            host: row.state.map(|state| error::read_name("a host's state", state)).transpose()?,
            has: inventory.map(|inventory| (inventory, proven)),
            is_busy: row.is_busy,
            is_held: row.is_held,
            has_worked: row.has_worked,
            is_long_busy: row.is_long_busy,
            job_waits: row.job_waits,
        })
    });
    Ok(machines.filter_map(readable).collect())
}

/// What jobs have used of open machines of late, by machine; what is given back to them is left out.
async fn paid(tx: &mut PgConnection) -> Result<BTreeMap<Uuid, MicroUsd>> {
    let rows = sqlx::query!(
        r#"select m.machine_id, l.milli_gpu, l.milli_cpu, l.memory, l.gpu_hour, l.vcpu_hour, l.gib_hour,
                sum(greatest(0, least(l.used_ms, coalesce(l.ended_at_ms, now_ms())
                                                 - greatest(l.started_at_ms, now_ms() - $1::bigint))))::bigint as "used!"
           from machines m join leases l using (host_id)
           where not m.is_closed and l.started_at_ms is not null
               and (l.closed_at_ms is null or l.closed_at_ms > now_ms() - $1::bigint and l.charged > 0)
           group by m.machine_id, l.milli_gpu, l.milli_cpu, l.memory, l.gpu_hour, l.vcpu_hour, l.gib_hour"#,
        RentedMachine::PAID_SPAN.0
    );
    let mut paid = BTreeMap::<Uuid, MicroUsd>::new();
    for row in rows.fetch_all(tx).await? {
        let size = Size {
            milli_gpu: MilliGpu(row.milli_gpu),
            milli_cpu: MilliCpu(row.milli_cpu),
            memory: Bytes(row.memory),
        };
        let rate = Rate {
            gpu_hour: MicroUsd(row.gpu_hour),
            vcpu_hour: MicroUsd(row.vcpu_hour),
            gib_hour: MicroUsd(row.gib_hour),
        };
        let sum = paid.entry(row.machine_id).or_default();
        *sum = sum.plus(charge(size, Millis(row.used), rate)?)?;
    }
    Ok(paid)
}
