//! Receipts: what a job cost and why.

use axum::{Json, extract::State};
use nave_domain::{JobId, MicroUsd, Overflow, ledger::PostingKind};
use nave_sdk::wire::rest::{LedgerLine, Metered, Receipt};

use crate::{
    app::App,
    caller::{Caller, JobsRead},
    error::ApiError,
    extract::{Nothing, Path, Query},
    view,
};

/// What a job cost and why. To receipts of final jobs, lines are added only for what comes back.
#[utoipa::path(get, path = "/v1/jobs/{job}/receipt", tag = "jobs", operation_id = "jobs_receipt",
    params(("job" = String, Path, description = "The job's id")), security(("key" = ["jobs:read"])),
    responses((status = 200, description = "The receipt", body = Receipt)))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller<JobsRead>,
    Path(job): Path<JobId>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<Receipt>, ApiError> {
    // The job first: when it is final here, nothing that is read after it is charged later.
    let row = app.store.job_get(caller.customer, job).await?;
    let attempts = app.store.attempt_list(&[job]).await?;
    let lines: Vec<LedgerLine> =
        app.store.ledger_of_job(job).await?.into_iter().map(view::ledger_line).collect();
    let mut events = app.store.events_of_jobs(&[job]).await?;
    let attempts = attempts.into_iter().map(|row| view::metered(row, &mut events));
    let attempts: Vec<Metered> = attempts.collect::<Result<_, _>>()?;
    Ok(Json(Receipt {
        job,
        customer: row.customer,
        state: row.state,
        image: row.request.image.unwrap_or_default(),
        total: total(&lines)?,
        held: held(&lines)?,
        notice: notice(&attempts),
        attempts,
        lines,
    }))
}

/// Charges less refunds.
fn total(lines: &[LedgerLine]) -> Result<MicroUsd, Overflow> {
    of_kind(lines, PostingKind::Charge)?.minus(of_kind(lines, PostingKind::Refund)?)
}

/// What was set aside and neither charged nor released.
fn held(lines: &[LedgerLine]) -> Result<MicroUsd, Overflow> {
    let set_aside = of_kind(lines, PostingKind::Hold)?.minus(of_kind(lines, PostingKind::Release)?)?;
    set_aside.minus(total(lines)?)
}

fn of_kind(lines: &[LedgerLine], kind: PostingKind) -> Result<MicroUsd, Overflow> {
    view::sum(lines.iter().filter(|line| line.kind == kind).map(|line| line.amount))
}

const UNTRUSTED: &str = "These hosts gave no evidence of a trusted execution environment: whoever runs them can \
    read what ran on them and can forge what they returned, times and results included.";
const SIMULATED: &str = "NOTHING WAS EXECUTED: an attempt ran on a simulated host, which acts commands out. Its \
    output and exit code mean nothing.";

fn notice(attempts: &[Metered]) -> String {
    if attempts.iter().any(|attempt| attempt.runtime == "simulated") {
        return format!("{SIMULATED} {UNTRUSTED}");
    }
    UNTRUSTED.to_owned()
}
