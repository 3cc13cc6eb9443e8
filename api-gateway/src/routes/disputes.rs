//! Results that customers say are wrong.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use nave_domain::{
    JobId,
    dispute::{DISPUTE_MS_MAX, DISPUTES_PER_DAY, check_reason},
};
use nave_sdk::wire::rest::{Dispute, DisputeRequest};
use nave_store::{Disputed, Disputing};

use crate::{
    app::App,
    caller::{Caller, JobsWrite},
    error::ApiError,
    extract::{self, Nothing, Path, Query},
    view,
};

/// Says that the result of an attempt is wrong, once for each: its host is tested again as soon as it is free.
/// The same again changes nothing.
#[utoipa::path(post, path = "/v1/jobs/{job}/dispute", tag = "jobs", operation_id = "jobs_dispute",
    params(("job" = String, Path, description = "The job's id")),
    request_body = DisputeRequest, security(("key" = ["jobs:write"])),
    responses(
        (status = 201, description = "The dispute, on record", body = Dispute),
        (status = 200, description = "The dispute that was on record before", body = Dispute),
    ))]
pub(crate) async fn open(
    State(app): State<App>,
    caller: Caller<JobsWrite>,
    Path(job): Path<JobId>,
    Query(Nothing {}): Query<Nothing>,
    body: extract::Json<DisputeRequest>,
) -> Result<Response, ApiError> {
    let DisputeRequest { reason, attempt } = body.value;
    check_reason(&reason).map_err(|bad| ApiError::refused("request_invalid", bad.to_string()))?;
    let disputing = Disputing { customer: caller.customer, job, attempt, reason: &reason };
    let disputed = app.store.dispute_open(&disputing).await?;
    let (status, attempt) = match disputed {
        Disputed::Taken(attempt) => (StatusCode::CREATED, attempt),
        Disputed::Again(attempt) => (StatusCode::OK, attempt),
        Disputed::Otherwise | Disputed::NoResult | Disputed::TooLate | Disputed::TooMany(_) => {
            return Err(refused(disputed));
        }
    };
    let mut all = app.store.disputes_of_jobs(&[job]).await?;
    let rows = all.remove(&job).unwrap_or_default().rows;
    let row = rows.into_iter().find(|row| row.attempt == attempt);
    let row = row.ok_or_else(|| ApiError::internal(format!("the dispute of {job} is not there")))?;
    Ok((status, Json(view::dispute(row))).into_response())
}

fn refused(disputed: Disputed) -> ApiError {
    let conflict = |code, detail: String| ApiError::new(StatusCode::CONFLICT, code, detail);
    match disputed {
        Disputed::TooMany(wait) => {
            let detail = format!("{DISPUTES_PER_DAY} disputes were opened within a day, which is the most");
            let seconds = u64::try_from(wait.0 / 1_000 + 1).unwrap_or(1);
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_disputes", detail)
                .suggest("wait as long as Retry-After says; one dispute has the whole host tested")
                .retry_in(seconds)
        }
        Disputed::TooLate => {
            let hours = DISPUTE_MS_MAX.0 / 3_600_000;
            conflict("dispute_too_late", format!("the attempt ended more than {hours} hours ago"))
                .suggest("run the job again, with replicas that can be compared")
        }
        Disputed::NoResult => {
            let detail =
                "there is no such attempt that has ended with a result which was paid for".to_owned();
            conflict("nothing_to_dispute", detail)
                .suggest("wait until the attempt has ended; see its outcome in the job")
        }
        Disputed::Otherwise | Disputed::Taken(_) | Disputed::Again(_) => {
            let detail = "the result of this attempt is disputed already, with another reason".to_owned();
            conflict("already_disputed", detail).suggest("look at the job for what came of it")
        }
    }
}
