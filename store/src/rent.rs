//! What is waited for, what is rented, and what more is wanted: all that a decision to rent rests on.

use nave_crash_point::crash_point;
use nave_domain::{CustomerId, JobId, MicroUsd, Millis, Timestamp, host::HostState, job::JobRequest};
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
}

/// A machine that is not closed, or was wanted lately, and what becomes of it as a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RentedMachine {
    /// Its row.
    pub row: MachineRow,
    /// Where its host stands.
    pub host: Option<HostState>,
    /// Whether its host has leases, or a quote holds some of it.
    pub is_busy: bool,
    /// Whether it has for long enough that jobs which wait do so in spite of it.
    pub is_long_busy: bool,
    /// Whether the job that it was rented for still waits.
    pub job_waits: bool,
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

/// Most jobs in one snapshot.
const JOBS_MAX: i64 = 1_000;
/// How long after its first lease a host may still get those that were planned with it.
const SETTLE_MS: i64 = 30_000;

impl Store {
    /// Wants machines, all of them or none.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when there are others than the `seen` that the decision rests on.
    pub async fn machines_want(&self, seen: i64, wanted: &[NewMachine<'_>]) -> Result<()> {
        let mut tx = self.pool.begin().await?;
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
        let mut tx = self.pool.begin().await?;
        sqlx::query!("set transaction isolation level repeatable read read only").execute(&mut *tx).await?;
        let now = sqlx::query_scalar!(r#"select now_ms() as "now!""#).fetch_one(&mut *tx).await?;
        Ok(RentSnapshot {
            now: Timestamp(now),
            jobs: jobs(&mut tx).await?,
            machines: rented(&mut tx, lately).await?,
            seen: count(&mut tx).await?,
        })
    }
}

async fn count(tx: &mut PgConnection) -> Result<i64> {
    Ok(sqlx::query_scalar!(r#"select count(*) as "count!" from machines"#).fetch_one(tx).await?)
}

async fn jobs(tx: &mut PgConnection) -> Result<Vec<WaitingJob>> {
    let rows = sqlx::query!(
        r#"select job_id, customer_id, request || '{"argv": [], "env": {}}' as "request!",
                max_spend - charged as "left!", queued_at_ms as "queued_at_ms!", queued_ms, reason_code as "code!",
                (select count(*) from machines m where m.job_id = j.job_id and m.cost > 0) as "machines!"
           from jobs j where state = 'queued' and reason_code is not null order by job_id limit $1"#,
        JOBS_MAX
    );
    let jobs = rows.fetch_all(tx).await?.into_iter().map(|row| {
        Ok(WaitingJob {
            job: row.job_id.into(),
            customer: row.customer_id.into(),
            request: error::read_json("a job's request", row.request)?,
            left: MicroUsd(row.left),
            queued_at: Timestamp(row.queued_at_ms),
            queued: Millis(row.queued_ms),
            code: row.code,
            machines: u32::try_from(row.machines).unwrap_or(u32::MAX),
        })
    });
    Ok(jobs.filter_map(readable).collect())
}

async fn rented(tx: &mut PgConnection, lately: Millis) -> Result<Vec<RentedMachine>> {
    let rows = sqlx::query!(
        r#"select m.machine_id, m.version, m.cloud, m.made_at_ms, m.demand, m.idle_at_ms, m.enrolled_at_ms, m.ending,
                m.is_closed, m.cost, m.known, m.shape, m.job_id, m.host_id, h.state as "state?",
                exists (select from leases l where l.host_id = m.host_id and l.state <> 'closed')
                or exists (select from quotes q where q.host_id = m.host_id and q.job_id is null
                           and q.expires_at_ms > now_ms()) as "is_busy!",
                exists (select from leases l where l.host_id = m.host_id and l.state <> 'closed'
                        and l.placed_at_ms < now_ms() - $2::bigint) as "is_long_busy!",
                exists (select from jobs j where j.job_id = m.job_id and j.state = 'queued') as "job_waits!"
           from machines m left join hosts h using (host_id)
           where not m.is_closed or m.made_at_ms > now_ms() - $1::bigint order by m.machine_id"#,
        lately.0,
        SETTLE_MS
    );
    let machines = rows.fetch_all(tx).await?.into_iter().map(|row| {
        let raw = RawMachine {
            machine_id: row.machine_id,
            version: row.version,
            cloud: row.cloud,
            made_at_ms: row.made_at_ms,
            demand: row.demand,
            idle_at_ms: row.idle_at_ms,
            enrolled_at_ms: row.enrolled_at_ms,
            ending: row.ending,
            is_closed: row.is_closed,
            cost: row.cost,
            known: row.known,
            shape: row.shape,
            job_id: row.job_id,
            host_id: row.host_id,
        };
        Ok(RentedMachine {
            row: raw.read()?,
            host: row.state.map(|state| error::read_name("a host's state", state)).transpose()?,
            is_busy: row.is_busy,
            is_long_busy: row.is_long_busy,
            job_waits: row.job_waits,
        })
    });
    machines.collect()
}
