//! Disputes: results that customers say are wrong. Each has the host tested again that it came from,
//! in a suite of its own; what came of that is written down with what it means for the host.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    ChallengeId, CustomerId, HostId, JobId, LeaseId, Millis, Timestamp,
    dispute::{DISPUTE_MS_MAX, DISPUTE_PAUSE, DISPUTE_WAIT, DISPUTES_PER_DAY, DisputeState},
    host::HostState,
    lease::Outcome,
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result, Store, StoreError, error,
    notify::{Changes, announce},
};

const DAY_MS: i64 = 86_400_000;

/// A customer's word that a result is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disputing<'a> {
    /// Who says so.
    pub customer: CustomerId,
    /// The job.
    pub job: JobId,
    /// Which attempt; none for the last one that has a result.
    pub attempt: Option<u32>,
    /// What is wrong, checked.
    pub reason: &'a str,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disputed {
    /// It is on record, and its host will be tested.
    Taken(u32),
    /// It was before, with the same reason.
    Again(u32),
    /// It was before, with another reason.
    Otherwise,
    /// No attempt of the job, or not this one, has ended with a result that was paid for.
    NoResult,
    /// It ended too long ago.
    TooLate,
    /// The customer has opened as many as they may in a day; until when to wait.
    TooMany(Millis),
}

/// A dispute as its customer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DisputeRow {
    /// Which attempt.
    pub attempt: u32,
    /// Who ran it.
    pub host: HostId,
    /// What the customer says is wrong.
    pub reason: String,
    /// Since when.
    pub opened_at: Timestamp,
    /// Where it stands.
    pub state: DisputeState,
    /// When it was known what came of it.
    pub decided_at: Option<Timestamp>,
    /// The verdict that says so.
    pub verdict: Option<ChallengeId>,
}

/// The disputes of a job, and whether there may be another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobDisputes {
    /// By attempt.
    pub rows: Vec<DisputeRow>,
    /// Whether the result of one of its attempts can be disputed now.
    pub possible: bool,
}

/// An attempt that has ended.
struct Ended {
    lease: LeaseId,
    attempt: u32,
    host: HostId,
    is_late: bool,
    reason: Option<String>,
}

impl Store {
    /// Puts on record that a customer says a result is wrong, once for each attempt; its host is tested for it
    /// as soon as it is free.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the customer has no such job.
    pub async fn dispute_open(&self, disputing: &Disputing<'_>) -> Result<Disputed> {
        let mut tx = self.begin().await?;
        // One after the other, so that their number is what it was.
        sqlx::query!(
            "select pg_advisory_xact_lock(hashtextextended('disputes ' || $1::uuid, 0))",
            disputing.customer.0
        )
        .execute(&mut *tx)
        .await?;
        let ended = ended(&mut tx, disputing).await?;
        let wanted = ended.into_iter().rfind(|one| disputing.attempt.is_none_or(|n| n == one.attempt));
        let Some(ended) = wanted else { return Ok(Disputed::NoResult) };
        match &ended.reason {
            Some(reason) if reason == disputing.reason => return Ok(Disputed::Again(ended.attempt)),
            Some(_) => return Ok(Disputed::Otherwise),
            None if ended.is_late => return Ok(Disputed::TooLate),
            None => {}
        }
        if let Some(wait) = full(&mut tx, disputing.customer).await? {
            return Ok(Disputed::TooMany(wait));
        }
        sqlx::query!(
            "insert into disputes (lease_id, host_id, customer_id, reason) values ($1, $2, $3, $4)",
            ended.lease.0,
            ended.host.0,
            disputing.customer.0,
            disputing.reason
        )
        .execute(&mut *tx)
        .await?;
        announce(&mut tx, Changes::Challenges).await?;
        tx.commit().await?;
        Ok(Disputed::Taken(ended.attempt))
    }

    /// The disputes of jobs; jobs without any, and without a result to dispute, are left out.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn disputes_of_jobs(&self, jobs: &[JobId]) -> Result<BTreeMap<JobId, JobDisputes>> {
        let ids: Vec<Uuid> = jobs.iter().map(|job| job.0).collect();
        let rows = sqlx::query!(
            r#"select l.job_id, l.attempt, l.host_id, l.started_at_ms, l.outcome as "lease_outcome!",
                    l.closed_at_ms < now_ms() - $2::bigint as "is_late!",
                    d.reason as "reason?", d.opened_at_ms as "opened_at_ms?", d.suite_at_ms, d.outcome, d.decided_at_ms,
                    d.challenge_id, h.state, coalesce(h.enrolled_at_ms > d.opened_at_ms, false) as "is_another!"
               from leases l join hosts h on h.host_id = l.host_id left join disputes d on d.lease_id = l.lease_id
               where l.job_id = any($1) and l.state = 'closed' order by l.job_id, l.attempt"#,
            &ids,
            DISPUTE_MS_MAX.0
        )
        .fetch_all(&self.pool)
        .await?;
        let mut all: BTreeMap<JobId, JobDisputes> = BTreeMap::new();
        for row in rows {
            let Some((reason, opened_at)) = row.reason.zip(row.opened_at_ms) else {
                let has_result = has_result(row.started_at_ms, row.lease_outcome)?;
                if has_result && !row.is_late {
                    all.entry(row.job_id.into()).or_default().possible = true;
                }
                continue;
            };
            let host: HostState = error::read_name("a host's state", row.state)?;
            let has_left = row.is_another || matches!(host, HostState::Gone | HostState::Banned);
            let state = match (row.outcome, has_left, row.suite_at_ms) {
                (Some(outcome), ..) => error::read_name("the outcome of a dispute", outcome)?,
                (None, true, _) => DisputeState::Left,
                (None, false, Some(_)) => DisputeState::Testing,
                (None, false, None) => DisputeState::Open,
            };
            all.entry(row.job_id.into()).or_default().rows.push(DisputeRow {
                attempt: row.attempt.unsigned_abs(),
                host: row.host_id.into(),
                reason,
                opened_at: Timestamp(opened_at),
                state,
                decided_at: row.decided_at_ms.map(Timestamp),
                verdict: row.challenge_id.map(ChallengeId),
            });
        }
        Ok(all)
    }

    /// Ends disputes whose hosts were never free for so long; those are tested for it once they are.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn disputes_expire(&self) -> Result<()> {
        let mut tx = self.begin().await?;
        let hosts = sqlx::query_scalar!(
            "select host_id from hosts h
             where h.state not in ('gone', 'banned') and exists (
                select from disputes d
                where d.host_id = h.host_id and d.suite_at_ms is null and d.outcome is null
                  and h.enrolled_at_ms <= d.opened_at_ms and d.opened_at_ms <= now_ms() - $1::bigint)
             order by host_id for update",
            DISPUTE_WAIT.0
        )
        .fetch_all(&mut *tx)
        .await?;
        sqlx::query!(
            "update disputes d set outcome = 'untested', decided_at_ms = now_ms() from hosts h
             where h.host_id = d.host_id and d.host_id = any($1) and d.suite_at_ms is null and d.outcome is null
               and h.enrolled_at_ms <= d.opened_at_ms and d.opened_at_ms <= now_ms() - $2::bigint",
            &hosts,
            DISPUTE_WAIT.0
        )
        .execute(&mut *tx)
        .await?;
        sqlx::query!(
            "update hosts set retest_up_ms = least(retest_up_ms, control_ms()) where host_id = any($1)",
            &hosts
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Hosts that are to be tested for a dispute: none that was just now, however many wait.
    pub(crate) async fn hosts_disputed(&self) -> Result<BTreeSet<HostId>> {
        let hosts = sqlx::query_scalar!(
            "select distinct d.host_id from disputes d join hosts h using (host_id)
             where d.suite_at_ms is null and d.outcome is null and h.state = 'ready' and h.enrolled_at_ms <= d.opened_at_ms
               and not exists (
                    select from disputes e where e.host_id = d.host_id and e.suite_at_ms > now_ms() - $1::bigint)",
            DISPUTE_PAUSE.0
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(hosts.into_iter().map(HostId).collect())
    }
}

/// Whether a dispute waits for a suite of a host that may begin.
pub(crate) async fn waits(tx: &mut PgConnection, host: HostId) -> Result<bool> {
    let waits = sqlx::query_scalar!(
        r#"select exists (
                select from disputes d join hosts h using (host_id)
                where d.host_id = $1 and d.suite_at_ms is null and d.outcome is null and h.enrolled_at_ms <= d.opened_at_ms)
            and not exists (
                select from disputes e where e.host_id = $1 and e.suite_at_ms > now_ms() - $2::bigint) as "waits!""#,
        host.0,
        DISPUTE_PAUSE.0
    );
    Ok(waits.fetch_one(tx).await?)
}

/// Whether an attempt ran and was paid for.
fn has_result(started_at_ms: Option<i64>, outcome: serde_json::Value) -> Result<bool> {
    let outcome: Outcome = error::read_json("an outcome", outcome)?;
    Ok(started_at_ms.is_some() && outcome.is_charged())
}

/// The attempts of a job that have ended with a result, oldest first.
async fn ended(tx: &mut PgConnection, of: &Disputing<'_>) -> Result<Vec<Ended>> {
    let rows = sqlx::query!(
        r#"select l.lease_id as "lease_id?", l.attempt as "attempt?", l.host_id as "host_id?", l.started_at_ms, l.outcome,
                coalesce(l.closed_at_ms < now_ms() - $3::bigint, false) as "is_late!", d.reason as "reason?"
           from jobs j left join leases l on l.job_id = j.job_id and l.state = 'closed'
                left join disputes d on d.lease_id = l.lease_id
           where j.job_id = $1 and j.customer_id = $2 order by l.attempt"#,
        of.job.0,
        of.customer.0,
        DISPUTE_MS_MAX.0
    )
    .fetch_all(tx)
    .await?;
    if rows.is_empty() {
        return Err(StoreError::NotFound("job"));
    }
    let mut all = Vec::new();
    for row in rows {
        let (Some(lease), Some(attempt), Some(host)) = (row.lease_id, row.attempt, row.host_id) else {
            continue;
        };
        let Some(outcome) = row.outcome else { continue };
        if has_result(row.started_at_ms, outcome)? {
            let (lease, host, attempt) = (lease.into(), host.into(), attempt.unsigned_abs());
            all.push(Ended { lease, attempt, host, is_late: row.is_late, reason: row.reason });
        }
    }
    Ok(all)
}

/// How long a customer has to wait who has opened as many disputes as they may in a day.
async fn full(tx: &mut PgConnection, customer: CustomerId) -> Result<Option<Millis>> {
    let row = sqlx::query!(
        r#"select count(*) as "count!", min(opened_at_ms) - now_ms() + $2::bigint as left_ms
           from disputes where customer_id = $1 and opened_at_ms > now_ms() - $2::bigint"#,
        customer.0,
        DAY_MS
    )
    .fetch_one(tx)
    .await?;
    let is_full = row.count >= i64::from(DISPUTES_PER_DAY);
    Ok(is_full.then(|| Millis(row.left_ms.unwrap_or(DAY_MS))))
}

/// The suite of a host begins that answers all its disputes which wait; the host is locked.
pub(crate) async fn begun(tx: &mut PgConnection, host: HostId) -> Result<()> {
    sqlx::query!(
        "update disputes d set suite_at_ms = now_ms() from hosts h
         where d.host_id = $1 and h.host_id = $1 and d.suite_at_ms is null and d.outcome is null
           and h.enrolled_at_ms <= d.opened_at_ms",
        host.0
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// A host has proven everything again; it is locked.
pub(crate) async fn passed(tx: &mut PgConnection, host: HostId) -> Result<()> {
    sqlx::query!(
        "update disputes d set outcome = 'passed', decided_at_ms = now_ms(), challenge_id = (
            select c.challenge_id from challenges c
            where c.host_id = $1 and c.code = 'passed' and c.lease_id is null and c.kind <> 'transfer'
              and c.drawn_at_ms >= d.suite_at_ms order by c.challenge_id desc limit 1)
         from hosts h
         where d.host_id = $1 and h.host_id = $1 and d.suite_at_ms is not null and d.outcome is null
           and h.enrolled_at_ms <= d.opened_at_ms",
        host.0
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// A challenge has its verdict; its host is locked. A slow line says nothing about results.
pub(crate) async fn judged(tx: &mut PgConnection, challenge: ChallengeId) -> Result<()> {
    sqlx::query!(
        "update disputes d set outcome = 'failed', decided_at_ms = now_ms(), challenge_id = c.challenge_id
         from challenges c join hosts h on h.host_id = c.host_id
         where c.challenge_id = $1 and d.host_id = c.host_id and d.outcome is null and d.suite_at_ms <= c.drawn_at_ms
           and h.enrolled_at_ms <= d.opened_at_ms
           and not c.shadow and c.lease_id is null and c.kind <> 'transfer' and c.code not in ('passed', 'void')",
        challenge.0
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// A verdict was taken back: what it had decided is open again, and its host is being tested.
pub(crate) async fn reopened(tx: &mut PgConnection, challenge: ChallengeId) -> Result<()> {
    sqlx::query!(
        "update disputes set outcome = null, decided_at_ms = null, challenge_id = null
         where challenge_id = $1 and outcome = 'failed'",
        challenge.0
    )
    .execute(tx)
    .await?;
    Ok(())
}
