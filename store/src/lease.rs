//! Leases: what hosts report of them, what ends them, and what they cost.

use std::collections::BTreeMap;

use nave_crash_point::crash_point;
use nave_domain::{
    Bytes, HostId, JobId, LeaseId, MicroUsd, MilliCpu, MilliGpu, Millis,
    job::{self, JobEvent, Limits},
    lease::{self, LeaseEvent, LeaseState, Outcome, StopReason},
    ledger::Posting,
    rate::{Rate, Size, charge},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result, Store, StoreError, error, event, group, host,
    job::{LockedJob, Why, advance, release},
    ledger,
    notify::{Changes, announce},
};

mod meter;

use meter::{meter, meter_all};

/// An open lease, as the scheduler watches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenLease {
    /// Its id.
    pub lease: LeaseId,
    /// The job.
    pub job: JobId,
    /// Where it runs.
    pub host: HostId,
    /// Where it stands.
    pub state: LeaseState,
    /// How long it has been in that state, on the control clock: an outage of the control
    /// plane runs nobody into a limit.
    pub in_state: Millis,
    /// The job's limits.
    pub limits: Limits,
    /// Longest run.
    pub run_max: Millis,
    /// Whether the spend cap is what bounds the run.
    pub capped_by_spend: bool,
    /// How long ago, on the control clock, it was told that it ends for another job.
    pub noticed: Option<Millis>,
    /// How long the host has been silent, on the control clock.
    pub silent: Millis,
}

/// What is known of an open lease when its host reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldLease {
    /// Where it stands.
    pub state: LeaseState,
    /// Whether it was heard running.
    pub started: bool,
}

/// A result archive that a host says it has delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultRow {
    /// SHA-256 of the archive.
    pub sha256: [u8; 32],
    /// Whether files were left out because they were too much.
    pub truncated: bool,
}

/// A lease whose use has not been charged in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChargeDue {
    /// The lease.
    pub lease: LeaseId,
    /// The job.
    pub job: JobId,
}

struct LockedLease {
    lease: LeaseId,
    host: HostId,
    state: LeaseState,
    size: Size,
    rate: Rate,
    used: Millis,
    charged: MicroUsd,
    stop_reason: Option<StopReason>,
}

async fn lock(tx: &mut PgConnection, id: LeaseId) -> Result<LockedLease> {
    let row = sqlx::query!(
        "select host_id, state, milli_gpu, milli_cpu, memory, gpu_hour, vcpu_hour, gib_hour, used_ms, charged,
                stop_reason
         from leases where lease_id = $1 for update",
        id.0
    )
    .fetch_optional(tx)
    .await?
    .ok_or(StoreError::NotFound("lease"))?;
    Ok(LockedLease {
        lease: id,
        host: row.host_id.into(),
        state: error::read_name("a lease's state", row.state)?,
        size: Size {
            milli_gpu: MilliGpu(row.milli_gpu),
            milli_cpu: MilliCpu(row.milli_cpu),
            memory: Bytes(row.memory),
        },
        rate: Rate {
            gpu_hour: MicroUsd(row.gpu_hour),
            vcpu_hour: MicroUsd(row.vcpu_hour),
            gib_hour: MicroUsd(row.gib_hour),
        },
        used: Millis(row.used_ms),
        charged: MicroUsd(row.charged),
        stop_reason: row.stop_reason.map(|name| error::read_name("a stop reason", name)).transpose()?,
    })
}

/// The job of a lease, locked before the lease itself. `None` when this host holds no such lease.
async fn lock_both(
    tx: &mut PgConnection,
    host: HostId,
    id: LeaseId,
) -> Result<Option<(LockedJob, LockedLease)>> {
    let job =
        sqlx::query_scalar!("select job_id from leases where lease_id = $1 and host_id = $2", id.0, host.0)
            .fetch_optional(&mut *tx)
            .await?;
    let Some(job) = job else { return Ok(None) };
    let job = crate::job::lock(tx, job.into()).await?;
    Ok(Some((job, lock(tx, id).await?)))
}

async fn set_state(tx: &mut PgConnection, lease: &mut LockedLease, event: LeaseEvent) -> Result<bool> {
    let from = lease.state;
    let Some(to) = lease::next(from, event) else { return Ok(false) };
    sqlx::query!(
        "update leases set state = $3,
            started_at_ms = coalesce(started_at_ms, case when $4 then now_ms() end),
            metered_at_ms = coalesce(metered_at_ms, case when $4 then now_ms() end),
            ended_at_ms = coalesce(ended_at_ms, case when $3 = 'draining' then now_ms() end),
            state_up_ms = case when $2 = $3 then state_up_ms else control_ms() end
         where lease_id = $1 and state = $2",
        lease.lease.0,
        from.as_str(),
        to.as_str(),
        event == LeaseEvent::Started
    )
    .execute(tx)
    .await?;
    lease.state = to;
    Ok(true)
}

/// Whether a host has not been heard for longer than `silent`; it is not heard before the
/// transaction ends.
async fn still_silent(tx: &mut PgConnection, host: HostId, silent: Millis) -> Result<bool> {
    Ok(sqlx::query_scalar!(
        r#"select (select up_ms from control_clock) - coalesce(heard_up_ms, 0) > $2 as "silent!"
           from hosts where host_id = $1 for update"#,
        host.0,
        silent.0
    )
    .fetch_one(tx)
    .await?)
}

/// Tells the host of a job's open lease to end it.
pub(crate) async fn stop_open(tx: &mut PgConnection, job: JobId, reason: StopReason) -> Result<()> {
    let open =
        sqlx::query_scalar!("select lease_id from leases where job_id = $1 and state <> 'closed'", job.0)
            .fetch_optional(&mut *tx)
            .await?;
    let Some(open) = open else { return Ok(()) };
    let mut lease = lock(tx, open.into()).await?;
    stop(tx, &mut lease, reason).await
}

async fn stop(tx: &mut PgConnection, lease: &mut LockedLease, reason: StopReason) -> Result<()> {
    meter(tx, lease, true).await?;
    if !set_state(tx, lease, LeaseEvent::Stop).await? {
        return Ok(());
    }
    sqlx::query!(
        "update leases set stop_reason = coalesce(stop_reason, $2), stop_at_ms = coalesce(stop_at_ms, now_ms())
         where lease_id = $1",
        lease.lease.0,
        reason.as_str()
    )
    .execute(&mut *tx)
    .await?;
    host::bump(tx, lease.host).await
}

/// Charges what a lease has used and was not charged yet, within the job's hold.
async fn charge_rest(tx: &mut PgConnection, job: &mut LockedJob, lease: &mut LockedLease) -> Result<()> {
    let total = charge(lease.size, lease.used, lease.rate)?;
    let room = job.max_spend.minus(job.charged)?;
    let due = total.minus(lease.charged)?.min(room).max(MicroUsd::ZERO);
    let total = lease.charged.plus(due)?;
    let posting = Posting::charge(job.job, job.customer, lease.lease, due, total);
    if ledger::post(tx, &posting).await? {
        add_charged(tx, job, lease, due).await?;
    }
    Ok(())
}

async fn refund_all(tx: &mut PgConnection, job: &mut LockedJob, lease: &mut LockedLease) -> Result<()> {
    let posting = Posting::refund(job.job, job.customer, lease.lease, lease.charged);
    if ledger::post(tx, &posting).await? {
        let back = MicroUsd::ZERO.minus(lease.charged)?;
        add_charged(tx, job, lease, back).await?;
    }
    Ok(())
}

async fn add_charged(
    tx: &mut PgConnection,
    job: &mut LockedJob,
    lease: &mut LockedLease,
    amount: MicroUsd,
) -> Result<()> {
    job.charged = job.charged.plus(amount)?;
    lease.charged = lease.charged.plus(amount)?;
    sqlx::query!("update jobs set charged = $2 where job_id = $1", job.job.0, job.charged.0)
        .execute(&mut *tx)
        .await?;
    sqlx::query!("update leases set charged = $2 where lease_id = $1", lease.lease.0, lease.charged.0)
        .execute(tx)
        .await?;
    Ok(())
}

/// Locks the group of a job, and the hosts that its end is told, its own one with them. Says which others these are.
async fn lock_hosts(tx: &mut PgConnection, job: &LockedJob, own: HostId) -> Result<Vec<HostId>> {
    let others = group::lock(tx, job).await?;
    let hosts: Vec<Uuid> = others.iter().chain([&own]).map(|host| host.0).collect();
    sqlx::query!("select from hosts where host_id = any($1) order by host_id for update", &hosts)
        .execute(tx)
        .await?;
    Ok(others)
}

/// Closes a lease for good: its outcome, its money, what it means for the job, and the
/// host's spec, all in the caller's transaction. `told`: see [`event::lost`].
async fn close(
    tx: &mut PgConnection,
    job: &mut LockedJob,
    lease: &mut LockedLease,
    event: LeaseEvent,
    outcome: &Outcome,
    told: bool,
) -> Result<()> {
    if lease::next(lease.state, event) != Some(LeaseState::Closed) {
        return Ok(());
    }
    // Before any write: a row that is written twice has its host checked, which locks that.
    let others = lock_hosts(tx, job, lease.host).await?;
    let is_lost = *outcome == Outcome::HostLost;
    match is_lost {
        true => event::lost(tx, lease.lease, told).await?,
        false => event::began(tx, lease.lease).await?,
    }
    meter(tx, lease, !is_lost).await?;
    sqlx::query!(
        "with closed as (
            update leases set state = 'closed', outcome = $2, closed_at_ms = greatest(now_ms(), placed_at_ms),
                ended_at_ms = coalesce(ended_at_ms, now_ms()),
                used_ms = case when $3 then used_ms else 0 end
            where lease_id = $1 returning lease_id)
         insert into unsettled_leases select lease_id from closed",
        lease.lease.0,
        error::write_json(outcome)?,
        outcome.is_charged()
    )
    .execute(&mut *tx)
    .await?;
    lease.state = LeaseState::Closed;
    settle_job(tx, job, outcome).await?;
    group::left(tx, &others, lease.host).await?;
    host::served(tx, lease.host, lease.lease, lease.used).await?;
    announce(tx, Changes::Supply).await?;
    ledger::lock(tx, job.customer).await?;
    if outcome.is_charged() {
        charge_rest(tx, job, lease).await?;
    } else {
        refund_all(tx, job, lease).await?;
    }
    if job.state.is_final() { release(tx, job).await } else { Ok(()) }
}

async fn settle_job(tx: &mut PgConnection, job: &mut LockedJob, outcome: &Outcome) -> Result<()> {
    let by_command =
        matches!(outcome, Outcome::Exited { .. } | Outcome::OutOfMemory | Outcome::OutOfGpuMemory { .. });
    let (command, host) = (u32::from(by_command), u32::from(outcome.is_hosts_fault()));
    job.tries.command += command;
    job.tries.host += host;
    let event = job::after(outcome, job.tries, job.request.retries);
    let kept = if event == JobEvent::Requeue { None } else { outcome.exit_code() };
    sqlx::query!(
        "update jobs set tries_command = tries_command + $2, tries_host = tries_host + $3, exit_code = $4
         where job_id = $1",
        job.job.0,
        command.cast_signed(),
        host.cast_signed(),
        kept
    )
    .execute(&mut *tx)
    .await?;
    advance(tx, job, event, why(outcome)).await
}

/// Why a job is not where its customer wants it, after an attempt ended like this.
fn why(outcome: &Outcome) -> Option<Why> {
    let (code, message) = match outcome {
        Outcome::Exited { code: 0 } => return None,
        Outcome::Exited { code } => ("exited", format!("the command exited with code {code}")),
        Outcome::OutOfMemory => ("out_of_memory", "the command used more memory than it asked for".into()),
        Outcome::OutOfGpuMemory { asked, used } => (
            "out_of_gpu_memory",
            format!("the command used {used} of the memory of its GPU, and had asked for {asked}"),
        ),
        Outcome::Killed => ("killed", "the command was killed, or exited with code 137".into()),
        Outcome::StartFailed { detail } => ("start_failed", format!("the container did not start: {detail}")),
        Outcome::StartTimeout => {
            ("start_timeout", "the container did not start within its start limit".into())
        }
        Outcome::RunTimeout => ("run_timeout", "the command ran into its run limit".into()),
        Outcome::SpendCap => ("spend_cap", "the job used up its spend cap".into()),
        Outcome::Cancelled => ("cancelled", "the customer cancelled it".into()),
        Outcome::Preempted => ("preempted", "its spot job yielded to another one; it runs again".into()),
        Outcome::HostLost => ("host_lost", "the host lost the attempt, which is not charged".into()),
    };
    Some((code, message))
}

impl Store {
    /// A host says that some of its leases run: metering goes on.
    ///
    /// Leases are locked in the order of their ids, as the close of an epoch does.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn leases_heard(&self, host: HostId, leases: &[LeaseId]) -> Result<()> {
        let ids: Vec<Uuid> = leases.iter().map(|lease| lease.0).collect();
        let mut connection = self.pool.acquire().await?;
        meter_all(&mut connection, host, &ids, true).await.map(drop)
    }

    /// A host says that a lease's command runs; charging begins. Closed leases stay closed.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn lease_started(&self, host: HostId, id: LeaseId) -> Result<()> {
        let mut tx = self.begin().await?;
        let Some((mut job, mut lease)) = lock_both(&mut tx, host, id).await? else { return Ok(()) };
        let begins = set_state(&mut tx, &mut lease, LeaseEvent::Started).await?;
        event::began(&mut tx, id).await?;
        if begins && job::next(job.state, JobEvent::Start).is_some_and(|to| to != job.state) {
            advance(&mut tx, &mut job, JobEvent::Start, None).await?;
        }
        crash_point!("store.lease_started.before_commit");
        tx.commit().await?;
        crash_point!("store.lease_started.after_commit");
        Ok(())
    }

    /// A host says that a lease's command has ended; charging ends.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn lease_exited(&self, host: HostId, id: LeaseId) -> Result<()> {
        let mut tx = self.begin().await?;
        let Some((_, mut lease)) = lock_both(&mut tx, host, id).await? else { return Ok(()) };
        meter(&mut tx, &mut lease, true).await?;
        set_state(&mut tx, &mut lease, LeaseEvent::Exited).await?;
        crash_point!("store.lease_exited.before_commit");
        tx.commit().await?;
        crash_point!("store.lease_exited.after_commit");
        Ok(())
    }

    /// A host has delivered all of a lease: it closes. A result counts when its bytes are here.
    ///
    /// Without an outcome the host ended it: for the reason it was given, or because it had lost contact. That it was lost, the
    /// host may say itself; not of what it was told to end.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn lease_finished(
        &self,
        host: HostId,
        id: LeaseId,
        outcome: Option<Outcome>,
        result: Option<ResultRow>,
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        let Some((mut job, mut lease)) = lock_both(&mut tx, host, id).await? else { return Ok(()) };
        if lease.state == LeaseState::Closed {
            return Ok(());
        }
        let told = outcome == Some(Outcome::HostLost);
        let outcome = match (outcome, lease.stop_reason) {
            (None | Some(Outcome::HostLost), Some(reason)) => reason.outcome(),
            (Some(outcome), _) => outcome,
            (None, None) => Outcome::HostLost,
        };
        // Also when there is none: a result is that of the last attempt.
        sqlx::query!(
            "update jobs
             set result_sha256 = (select sha256 from blobs where sha256 = $2),
                 result_truncated = $3 and exists (select from blobs where sha256 = $2)
             where job_id = $1",
            job.job.0,
            result.as_ref().map(|result| result.sha256.as_slice()),
            result.is_some_and(|result| result.truncated)
        )
        .execute(&mut *tx)
        .await?;
        close(&mut tx, &mut job, &mut lease, LeaseEvent::Finished, &outcome, told).await?;
        crash_point!("store.lease_finished.before_commit");
        tx.commit().await?;
        crash_point!("store.lease_finished.after_commit");
        Ok(())
    }

    /// Gives a lease up: its host does not come to its end.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn lease_lost(&self, host: HostId, id: LeaseId) -> Result<()> {
        self.lose(host, id, None, false).await
    }

    /// Gives a lease up whose host reports that it has lost it, for a reason of its own.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn lease_lost_told(&self, host: HostId, id: LeaseId) -> Result<()> {
        self.lose(host, id, None, true).await
    }

    /// Gives a lease up whose host has been silent for longer than `silent` on the control
    /// clock and still is: one that was heard meanwhile may have begun it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn lease_lost_silent(&self, host: HostId, id: LeaseId, silent: Millis) -> Result<()> {
        self.lose(host, id, Some(silent), false).await
    }

    async fn lose(&self, host: HostId, id: LeaseId, silent: Option<Millis>, told: bool) -> Result<()> {
        let mut tx = self.begin().await?;
        let Some((mut job, mut lease)) = lock_both(&mut tx, host, id).await? else { return Ok(()) };
        if let Some(silent) = silent {
            lock_hosts(&mut tx, &job, host).await?;
            if !still_silent(&mut tx, host, silent).await? {
                return Ok(());
            }
        }
        close(&mut tx, &mut job, &mut lease, LeaseEvent::Lost, &Outcome::HostLost, told).await?;
        crash_point!("store.lease_lost.before_commit");
        tx.commit().await?;
        crash_point!("store.lease_lost.after_commit");
        Ok(())
    }

    /// Tells the host to end a lease.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn lease_stop(&self, host: HostId, id: LeaseId, reason: StopReason) -> Result<()> {
        let mut tx = self.begin().await?;
        let Some((_, mut lease)) = lock_both(&mut tx, host, id).await? else { return Ok(()) };
        stop(&mut tx, &mut lease, reason).await?;
        Ok(tx.commit().await?)
    }

    /// The open leases of one host.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn leases_of_host(&self, host: HostId) -> Result<BTreeMap<LeaseId, HeldLease>> {
        let rows = sqlx::query!(
            r#"select lease_id, state, started_at_ms is not null as "started!" from leases
               where host_id = $1 and state <> 'closed'"#,
            host.0
        )
        .fetch_all(&self.pool)
        .await?;
        let leases = rows.into_iter().map(|row| {
            let state = error::read_name("a lease's state", row.state)?;
            Ok((row.lease_id.into(), HeldLease { state, started: row.started }))
        });
        leases.collect()
    }

    /// Every open lease that can be read.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn leases_open(&self) -> Result<Vec<OpenLease>> {
        let rows = sqlx::query!(
            r#"select l.lease_id, l.job_id, l.host_id, l.state, l.run_ms_max, l.capped_by_spend, j.request -> 'limits' as "limits!",
                    greatest(0, c.up_ms - coalesce(h.heard_up_ms, 0)) as "silent!",
                    greatest(0, control_ms() - l.state_up_ms) as "in_state!",
                    control_ms() - l.notice_up_ms as noticed
               from leases l join jobs j using (job_id) join hosts h using (host_id) cross join control_clock c
               where l.state <> 'closed' order by l.lease_id"#
        )
        .fetch_all(&self.pool)
        .await?;
        let leases = rows.into_iter().map(|row| {
            Ok(OpenLease {
                lease: row.lease_id.into(),
                job: row.job_id.into(),
                host: row.host_id.into(),
                state: error::read_name("a lease's state", row.state)?,
                in_state: Millis(row.in_state),
                limits: error::read_json("a job's limits", row.limits)?,
                run_max: Millis(row.run_ms_max),
                capped_by_spend: row.capped_by_spend,
                noticed: row.noticed.map(Millis),
                silent: Millis(row.silent),
            })
        });
        Ok(leases.filter_map(error::readable).collect())
    }

    /// Open leases that have been used.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn charges_due(&self) -> Result<Vec<ChargeDue>> {
        let rows = sqlx::query!(
            "select lease_id, job_id from leases
             where state in ('running', 'stopping', 'draining') and used_ms > 0 order by lease_id"
        )
        .fetch_all(&self.pool)
        .await?;
        let due =
            rows.into_iter().map(|row| ChargeDue { lease: row.lease_id.into(), job: row.job_id.into() });
        Ok(due.collect())
    }

    /// Charges an open lease up to its last reading.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn lease_charge(&self, due: ChargeDue) -> Result<()> {
        let mut tx = self.begin().await?;
        let mut job = crate::job::lock(&mut tx, due.job).await?;
        let mut lease = lock(&mut tx, due.lease).await?;
        if lease.state == LeaseState::Closed {
            return Ok(());
        }
        ledger::lock(&mut tx, job.customer).await?;
        charge_rest(&mut tx, &mut job, &mut lease).await?;
        crash_point!("store.lease_charge.before_commit");
        tx.commit().await?;
        crash_point!("store.lease_charge.after_commit");
        Ok(())
    }
}
