//! Jobs: submitting, reading, cancelling.

use nave_crash_point::crash_point;
use nave_domain::{Bytes, MilliCpu, MilliGpu};
use nave_domain::{
    CustomerId, HostId, JobId, LeaseId, MicroUsd, Millis, Timestamp,
    host::Inventory,
    job::{self, JobEvent, JobRequest, JobState},
    lease::{LeaseState, Outcome, StopReason},
    ledger::Posting,
    rate::{Rate, Size},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result, Store, StoreError, apart, error, group, lease, ledger,
    notify::{Changes, announce},
    place::{self, Basis, Grounds},
    quote::{self, LockedQuote, QuoteFault},
};

/// A request to be accepted.
#[derive(Debug, Clone)]
pub struct Submission<'a> {
    /// Who pays.
    pub customer: CustomerId,
    /// Chosen by the customer.
    pub key: &'a str,
    /// SHA-256 of the request as it came, so that a key is not used for another one.
    pub hash: [u8; 32],
    /// The request, checked, with its image pinned.
    pub request: &'a JobRequest,
}

/// An accepted request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submitted {
    /// The job.
    pub job: JobId,
    /// Whether it is new; `false` when the same request came before.
    pub fresh: bool,
}

/// A job without its attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    /// Its id.
    pub job: JobId,
    /// Who pays.
    pub customer: CustomerId,
    /// Where it stands.
    pub state: JobState,
    /// What was asked for.
    pub request: JobRequest,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it became final.
    pub finished_at: Option<Timestamp>,
    /// Exit code of the attempt that settled it.
    pub exit_code: Option<i32>,
    /// Why it failed or what it waits for: code and sentence.
    pub reason: Option<(String, String)>,
    /// Charges less refunds.
    pub charged: MicroUsd,
    /// SHA-256 of the result archive.
    pub result: Option<Vec<u8>>,
    /// Whether files were left out of it because it would be too large.
    pub result_truncated: bool,
}

/// One attempt, with what is known of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// Its lease.
    pub lease: LeaseId,
    /// The job.
    pub job: JobId,
    /// Counted from 1.
    pub attempt: u32,
    /// Where it ran.
    pub host: HostId,
    /// The host's name.
    pub host_name: String,
    /// The host's owner.
    pub hotkey: String,
    /// What the host said it has.
    pub inventory: Option<Inventory>,
    /// Why it ran there, and what was known then.
    pub grounds: Grounds,
    /// Where the lease stands.
    pub state: LeaseState,
    /// What was leased.
    pub size: Size,
    /// At which rate.
    pub rate: Rate,
    /// GPUs.
    pub devices: Vec<String>,
    /// When the host was chosen.
    pub placed_at: Timestamp,
    /// When it was heard running.
    pub started_at: Option<Timestamp>,
    /// When it was heard to have ended.
    pub ended_at: Option<Timestamp>,
    /// Use added up.
    pub used: Millis,
    /// Charges less refunds.
    pub charged: MicroUsd,
    /// How it ended.
    pub outcome: Option<Outcome>,
}

/// A job row under lock, as state changes need it.
pub(crate) struct LockedJob {
    pub job: JobId,
    pub customer: CustomerId,
    pub state: JobState,
    pub max_spend: MicroUsd,
    pub charged: MicroUsd,
    pub tries: job::Tries,
    pub request: JobRequest,
}

/// Locks a job; the first lock of every transaction that changes one.
pub(crate) async fn lock(tx: &mut PgConnection, job: JobId) -> Result<LockedJob> {
    let row = sqlx::query!(
        "select customer_id, state, max_spend, charged, tries_command, tries_host, request
         from jobs where job_id = $1 for update",
        job.0
    )
    .fetch_optional(tx)
    .await?
    .ok_or(StoreError::NotFound("job"))?;
    Ok(LockedJob {
        job,
        customer: row.customer_id.into(),
        state: error::read_name("a job's state", row.state)?,
        max_spend: MicroUsd(row.max_spend),
        charged: MicroUsd(row.charged),
        tries: job::Tries { command: row.tries_command.unsigned_abs(), host: row.tries_host.unsigned_abs() },
        request: error::read_json("a job's request", row.request)?,
    })
}

/// Why a job is where it is: a code for programs and a sentence for people.
pub(crate) type Why = (&'static str, String);

/// Moves a locked job along and writes what goes with the new state. Money is the caller's.
pub(crate) async fn advance(
    tx: &mut PgConnection,
    job: &mut LockedJob,
    event: JobEvent,
    why: Option<Why>,
) -> Result<()> {
    let from = job.state;
    let to = job::next(from, event).ok_or(StoreError::Stale("job"))?;
    let (code, message) = why.map_or((None, None), |(code, message)| (Some(code), Some(message)));
    let changed = sqlx::query!(
        "update jobs set state = $3, reason_code = $4, reason_message = $5,
            finished_at_ms = case when $6 then now_ms() end,
            queued_ms = queued_ms + case when $2 = 'queued' and $3 <> 'queued' then now_ms() - queued_at_ms else 0 end,
            queued_at_ms = case when $3 = 'queued' then now_ms() end
         where job_id = $1 and state = $2",
        job.job.0,
        from.as_str(),
        to.as_str(),
        code,
        message,
        to.is_final()
    )
    .execute(&mut *tx)
    .await?;
    if changed.rows_affected() != 1 {
        return Err(StoreError::Stale("job"));
    }
    job.state = to;
    announce(tx, Changes::Job(job.job)).await?;
    if to == JobState::Queued { announce(tx, Changes::Supply).await } else { Ok(()) }
}

/// Gives back what a final job did not use. The customer's money must be locked.
pub(crate) async fn release(tx: &mut PgConnection, job: &LockedJob) -> Result<()> {
    let rest = job.max_spend.minus(job.charged)?;
    ledger::post(tx, &Posting::release(job.job, job.customer, rest)).await.map(drop)
}

impl Store {
    /// Accepts a request: the hold on the customer's balance and the job, in one
    /// transaction, and on a quote its lease, too. The same key and request again return the same job.
    ///
    /// # Errors
    /// [`StoreError::KeyReused`] for another request under the same key,
    /// [`StoreError::BalanceTooLow`] when the balance does not cover its spend cap,
    /// [`StoreError::Quote`] when its quote cannot be used for it.
    pub async fn job_submit(&self, submission: &Submission<'_>) -> Result<Submitted> {
        let mut tx = self.begin().await?;
        let quote = match submission.request.quote {
            Some(quote) => Some(quote::lock(&mut tx, submission.customer, quote).await?),
            None => None,
        };
        lock_key(&mut tx, submission).await?;
        // The host of a quote is locked before the customer's money.
        if quote.is_none() {
            ledger::lock(&mut tx, submission.customer).await?;
        }
        if let Some(job) = find_submitted(&mut tx, submission).await? {
            return Ok(Submitted { job, fresh: false });
        }
        apart::admit(&mut tx, submission.customer, submission.request.apart).await?;
        let job = insert(&mut tx, submission).await?;
        if let Some(quote) = quote {
            place_quoted(&mut tx, &quote, job).await?;
            ledger::lock(&mut tx, submission.customer).await?;
        }
        let held = submission.request.max_spend;
        ledger::post(&mut tx, &Posting::hold(job, submission.customer, held)).await?;
        announce(&mut tx, Changes::Supply).await?;
        crash_point!("store.job_submit.before_commit");
        tx.commit().await?;
        crash_point!("store.job_submit.after_commit");
        Ok(Submitted { job, fresh: true })
    }

    /// The job that was accepted under a key for the same request.
    ///
    /// # Errors
    /// [`StoreError::KeyReused`] when the key belongs to another request.
    pub async fn job_submitted(
        &self,
        customer: CustomerId,
        key: &str,
        hash: [u8; 32],
    ) -> Result<Option<JobId>> {
        let mut connection = self.pool.acquire().await?;
        find_by_key(&mut connection, customer, key, hash).await
    }

    /// One of a customer's jobs.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the customer has no such job.
    pub async fn job_get(&self, customer: CustomerId, job: JobId) -> Result<JobRow> {
        let row = sqlx::query_as!(
            RawJob,
            "select job_id, customer_id, state, request, created_at_ms, finished_at_ms, exit_code, reason_code,
                    reason_message, not_rented, charged, result_sha256, result_truncated
             from jobs where job_id = $1 and customer_id = $2",
            job.0,
            customer.0
        )
        .fetch_optional(&self.pool)
        .await?;
        row.ok_or(StoreError::NotFound("job"))?.read()
    }

    /// A customer's jobs older than `before`, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn job_list(
        &self,
        customer: CustomerId,
        state: Option<JobState>,
        before: Option<JobId>,
        limit: i64,
    ) -> Result<Vec<JobRow>> {
        let rows = sqlx::query_as!(
            RawJob,
            "select job_id, customer_id, state, request, created_at_ms, finished_at_ms, exit_code, reason_code,
                    reason_message, not_rented, charged, result_sha256, result_truncated
             from jobs
             where customer_id = $1 and ($2::text is null or state = $2) and ($3::uuid is null or job_id < $3)
             order by job_id desc limit $4",
            customer.0,
            state.map(JobState::as_str),
            before.map(|job| job.0),
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(RawJob::read).collect()
    }

    /// The attempts of some jobs, oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn attempt_list(&self, jobs: &[JobId]) -> Result<Vec<AttemptRow>> {
        let ids: Vec<Uuid> = jobs.iter().map(|job| job.0).collect();
        let rows = sqlx::query_as!(
            RawAttempt,
            "select l.lease_id, l.job_id, l.attempt, l.host_id, h.name as host_name, h.hotkey, h.inventory,
                    l.reason, l.trust, l.baseline_gpu_hour, l.term, l.state, l.milli_gpu, l.milli_cpu, l.memory, l.gpu_hour, l.vcpu_hour, l.gib_hour, l.devices,
                    l.placed_at_ms, l.started_at_ms, l.ended_at_ms, l.used_ms, l.charged, l.outcome
             from leases l join hosts h using (host_id)
             where l.job_id = any($1) order by l.job_id, l.attempt",
            &ids
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(RawAttempt::read).collect()
    }

    /// Ends a job at its customer's wish; one that is final or ends already stays as it is.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the customer has no such job.
    pub async fn job_cancel(&self, customer: CustomerId, job: JobId) -> Result<()> {
        let mut tx = self.begin().await?;
        let mut locked = lock(&mut tx, job).await?;
        if locked.customer != customer {
            return Err(StoreError::NotFound("job"));
        }
        if locked.state.is_final() || locked.state == JobState::Cancelling {
            return Ok(());
        }
        let why = ("cancelled", "the customer cancelled it".to_owned());
        advance(&mut tx, &mut locked, JobEvent::Cancel, Some(why)).await?;
        if locked.state.is_final() {
            ledger::lock(&mut tx, customer).await?;
            release(&mut tx, &locked).await?;
        } else {
            lease::stop_open(&mut tx, job, StopReason::Cancelled).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Ends a queued job that cannot be placed.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when it is not queued any more.
    pub async fn job_fail_queued(&self, job: JobId, code: &'static str, message: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        let mut locked = lock(&mut tx, job).await?;
        if locked.state != JobState::Queued {
            return Err(StoreError::Stale("job"));
        }
        advance(&mut tx, &mut locked, JobEvent::Fail, Some((code, message.to_owned()))).await?;
        ledger::lock(&mut tx, locked.customer).await?;
        release(&mut tx, &locked).await?;
        Ok(tx.commit().await?)
    }
}

async fn insert(tx: &mut PgConnection, submission: &Submission<'_>) -> Result<JobId> {
    let job = JobId(Uuid::now_v7());
    let gang = group::gang_of(tx, submission.customer, submission.request, job).await?;
    sqlx::query!(
        "insert into jobs (job_id, customer_id, idempotency_key, request_sha256, request, max_spend, gang, queued_at_ms)
         values ($1, $2, $3, $4, $5, $6, $7, now_ms())",
        job.0,
        submission.customer.0,
        submission.key,
        submission.hash.as_slice(),
        error::write_json(submission.request)?,
        submission.request.max_spend.0,
        gang.map(|gang| gang.0)
    )
    .execute(tx)
    .await?;
    Ok(job)
}

/// Gives a new job the place that its quote holds.
async fn place_quoted(tx: &mut PgConnection, quote: &LockedQuote, job: JobId) -> Result<()> {
    let job = lock(tx, job).await?;
    let placement = quote.place(job.job, &job.request)?;
    let opened = place::open(tx, &mut [job], std::slice::from_ref(&placement), Basis::Quote).await;
    match opened {
        Err(StoreError::Stale(_)) => Err(QuoteFault::Void.into()),
        Err(error) => Err(error),
        Ok(_) => quote.used(tx, &placement).await,
    }
}

/// Keeps others from submitting under the same key until the end of the transaction: they would wait for it with
/// the customer's money locked, which a job on a quote needs later.
async fn lock_key(tx: &mut PgConnection, submission: &Submission<'_>) -> Result<()> {
    sqlx::query!(
        "select pg_advisory_xact_lock(hashtextextended('key ' || $1::uuid || ' ' || $2::text, 0))",
        submission.customer.0,
        submission.key
    )
    .execute(tx)
    .await?;
    Ok(())
}

async fn find_submitted(tx: &mut PgConnection, submission: &Submission<'_>) -> Result<Option<JobId>> {
    find_by_key(tx, submission.customer, submission.key, submission.hash).await
}

async fn find_by_key(
    connection: &mut PgConnection,
    customer: CustomerId,
    key: &str,
    hash: [u8; 32],
) -> Result<Option<JobId>> {
    let row = sqlx::query!(
        "select job_id, request_sha256 from jobs where customer_id = $1 and idempotency_key = $2",
        customer.0,
        key
    )
    .fetch_optional(connection)
    .await?;
    match row {
        None => Ok(None),
        Some(row) if row.request_sha256 == hash => Ok(Some(row.job_id.into())),
        Some(_) => Err(StoreError::KeyReused),
    }
}

struct RawJob {
    job_id: Uuid,
    customer_id: Uuid,
    state: String,
    request: serde_json::Value,
    created_at_ms: i64,
    finished_at_ms: Option<i64>,
    exit_code: Option<i32>,
    reason_code: Option<String>,
    reason_message: Option<String>,
    not_rented: Option<String>,
    charged: i64,
    result_sha256: Option<Vec<u8>>,
    result_truncated: bool,
}

impl RawJob {
    fn read(self) -> Result<JobRow> {
        let state: JobState = error::read_name("a job's state", self.state)?;
        let not_rented = self.not_rented.filter(|_| state == JobState::Queued);
        let message = self.reason_message.map(|message| match not_rented {
            Some(why) => format!("{message}; {why}"),
            None => message,
        });
        Ok(JobRow {
            job: self.job_id.into(),
            customer: self.customer_id.into(),
            state,
            request: error::read_json("a job's request", self.request)?,
            created_at: Timestamp(self.created_at_ms),
            finished_at: self.finished_at_ms.map(Timestamp),
            exit_code: self.exit_code,
            reason: self.reason_code.zip(message),
            charged: MicroUsd(self.charged),
            result: self.result_sha256,
            result_truncated: self.result_truncated,
        })
    }
}

struct RawAttempt {
    lease_id: Uuid,
    job_id: Uuid,
    attempt: i32,
    host_id: Uuid,
    host_name: String,
    hotkey: String,
    inventory: Option<serde_json::Value>,
    reason: String,
    trust: String,
    baseline_gpu_hour: Option<i64>,
    term: String,
    state: String,
    milli_gpu: i64,
    milli_cpu: i64,
    memory: i64,
    gpu_hour: i64,
    vcpu_hour: i64,
    gib_hour: i64,
    devices: Vec<String>,
    placed_at_ms: i64,
    started_at_ms: Option<i64>,
    ended_at_ms: Option<i64>,
    used_ms: i64,
    charged: i64,
    outcome: Option<serde_json::Value>,
}

impl RawAttempt {
    fn read(self) -> Result<AttemptRow> {
        Ok(AttemptRow {
            lease: self.lease_id.into(),
            job: self.job_id.into(),
            attempt: self.attempt.unsigned_abs(),
            host: self.host_id.into(),
            host_name: self.host_name,
            hotkey: self.hotkey,
            inventory: self.inventory.map(|value| error::read_json("an inventory", value)).transpose()?,
            grounds: Grounds {
                reason: error::read_name("why a host was chosen", self.reason)?,
                trust: error::read_name("a trust class", self.trust)?,
                baseline: self.baseline_gpu_hour.map(MicroUsd),
                term: error::read_name("a term", self.term)?,
            },
            state: error::read_name("a lease's state", self.state)?,
            size: Size {
                milli_gpu: MilliGpu(self.milli_gpu),
                milli_cpu: MilliCpu(self.milli_cpu),
                memory: Bytes(self.memory),
            },
            rate: Rate {
                gpu_hour: MicroUsd(self.gpu_hour),
                vcpu_hour: MicroUsd(self.vcpu_hour),
                gib_hour: MicroUsd(self.gib_hour),
            },
            devices: self.devices,
            placed_at: Timestamp(self.placed_at_ms),
            started_at: self.started_at_ms.map(Timestamp),
            ended_at: self.ended_at_ms.map(Timestamp),
            used: Millis(self.used_ms),
            charged: MicroUsd(self.charged),
            outcome: self.outcome.map(|value| error::read_json("an outcome", value)).transpose()?,
        })
    }
}
