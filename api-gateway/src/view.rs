//! What rows look like to customers.

use std::collections::BTreeMap;

use nave_domain::{JobId, LeaseId, MicroUsd, Millis, Overflow, host::Runtime, job::JobState, rate};
use nave_sdk::wire::{
    enrol::StateReason,
    event::{EventDecision, ServiceEvent},
    rest::{Attempt, Dispute, Job, Key, LedgerLine, Metered, Reason},
};
use nave_store::{AttemptRow, DisputeRow, EventRow, HostReason, JobDisputes, JobRow, KeyRow, LedgerRow};

use crate::{app::App, error::ApiError};

/// One job with its attempts.
pub(crate) async fn load_job(app: &App, row: JobRow) -> Result<Job, ApiError> {
    let attempts = app.store.attempt_list(&[row.job]).await?;
    let disputes = app.store.disputes_of_jobs(&[row.job]).await?.remove(&row.job);
    let mut events = app.store.events_of_jobs(&[row.job]).await?;
    Ok(job(row, &attempts, &mut events, disputes.unwrap_or_default())?)
}

/// Several jobs with their attempts, read at once.
pub(crate) async fn load_jobs(app: &App, rows: Vec<JobRow>) -> Result<Vec<Job>, ApiError> {
    let ids: Vec<JobId> = rows.iter().map(|row| row.job).collect();
    let mut attempts: BTreeMap<JobId, Vec<AttemptRow>> = BTreeMap::new();
    for row in app.store.attempt_list(&ids).await? {
        attempts.entry(row.job).or_default().push(row);
    }
    let mut disputes = app.store.disputes_of_jobs(&ids).await?;
    let mut events = app.store.events_of_jobs(&ids).await?;
    let jobs = rows.into_iter().map(|row| {
        let of_job = attempts.remove(&row.job).unwrap_or_default();
        let disputes = disputes.remove(&row.job).unwrap_or_default();
        Ok(job(row, &of_job, &mut events, disputes)?)
    });
    jobs.collect()
}

fn job(
    row: JobRow,
    attempts: &[AttemptRow],
    events: &mut Events,
    disputes: JobDisputes,
) -> Result<Job, Overflow> {
    let has_result = row.result.is_some();
    Ok(Job {
        job: row.job,
        state: row.state,
        request: row.request,
        created_at: row.created_at,
        finished_at: row.finished_at,
        exit_code: row.exit_code,
        reason: row.reason.map(|(code, message)| Reason { code, message }),
        charged: row.charged,
        attempts: attempts.iter().map(|row| attempt(row, events)).collect::<Result<_, _>>()?,
        has_result,
        result_truncated: row.result_truncated,
        actions: actions(row.state, has_result, disputes.possible),
        disputes: disputes.rows.into_iter().map(dispute).collect(),
    })
}

/// A dispute as its customer sees it.
pub(crate) fn dispute(row: DisputeRow) -> Dispute {
    Dispute {
        attempt: row.attempt,
        host: row.host,
        reason: row.reason,
        opened_at: row.opened_at,
        state: row.state,
        decided_at: row.decided_at,
        verdict: row.verdict,
    }
}

fn actions(state: JobState, has_result: bool, can_dispute: bool) -> Vec<String> {
    let can_cancel = matches!(state, JobState::Queued | JobState::Placed | JobState::Running);
    let all = [
        ("cancel", can_cancel),
        ("logs", true),
        ("result", has_result),
        ("receipt", true),
        ("dispute", can_dispute),
    ];
    all.into_iter().filter(|(_, can)| *can).map(|(action, _)| action.to_owned()).collect()
}

/// Events by the leases that suffered.
pub(crate) type Events = BTreeMap<LeaseId, Vec<EventRow>>;

/// One attempt, with its events of `events`. Time that is not charged is not shown as used.
fn attempt(row: &AttemptRow, events: &mut Events) -> Result<Attempt, Overflow> {
    let is_charged = row.outcome.as_ref().is_none_or(nave_domain::lease::Outcome::is_charged);
    Ok(Attempt {
        lease: row.lease,
        attempt: row.attempt,
        host: row.host,
        host_name: row.host_name.clone(),
        state: row.state,
        reason: row.grounds.reason,
        hourly: rate::hourly(row.size, row.rate)?,
        baseline: row.grounds.baseline,
        saving: rate::saving(row.grounds.baseline, row.size, row.rate),
        placed_at: row.placed_at,
        started_at: row.started_at,
        ended_at: row.ended_at,
        used_ms: if is_charged { row.used } else { Millis::ZERO },
        charged: row.charged,
        outcome: row.outcome.clone(),
        events: events.remove(&row.lease).unwrap_or_default().into_iter().map(event).collect(),
    })
}

/// What went wrong with a lease or a host.
pub(crate) fn event(row: EventRow) -> ServiceEvent {
    let decision = row.decided.map(|(decided, at)| EventDecision {
        at,
        blame: decided.blame,
        confirmed_by: decided.confirmed_by,
        signature: hex::encode(decided.signature),
    });
    ServiceEvent {
        event: row.event,
        at: row.at,
        kind: row.kind,
        host: row.host,
        lease: row.lease,
        from: row.lost.from,
        until: row.lost.until,
        detail: row.detail,
        decision,
    }
}

/// One attempt in a receipt.
pub(crate) fn metered(row: AttemptRow, events: &mut Events) -> Result<Metered, Overflow> {
    Ok(Metered {
        attempt: attempt(&row, events)?,
        size: row.size,
        rate: row.rate,
        devices: row.devices,
        hotkey: row.hotkey,
        runtime: row.inventory.as_ref().map_or("unknown", |inventory| runtime(&inventory.runtime)).to_owned(),
        trust: row.grounds.trust,
    })
}

/// Why a host takes no jobs.
pub(crate) fn reason(reason: HostReason) -> StateReason {
    StateReason { code: reason.code, message: reason.message, since: reason.since }
}

/// The name of what runs a host's jobs.
pub(crate) fn runtime(runtime: &Runtime) -> &'static str {
    match runtime {
        Runtime::Docker { .. } => "docker",
        Runtime::Simulated => "simulated",
    }
}

pub(crate) fn ledger_line(row: LedgerRow) -> LedgerLine {
    LedgerLine { at: row.at, kind: row.kind, job: row.job, from: row.from, to: row.to, amount: row.amount }
}

pub(crate) fn key(row: KeyRow) -> Key {
    Key { key: row.key, label: row.label, scopes: row.scopes, created_at: row.created_at }
}

/// Adds amounts up.
pub(crate) fn sum(amounts: impl IntoIterator<Item = MicroUsd>) -> Result<MicroUsd, Overflow> {
    amounts.into_iter().try_fold(MicroUsd::ZERO, MicroUsd::plus)
}
