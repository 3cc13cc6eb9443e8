//! Jobs: submitting, looking, waiting, cancelling, fetching the result.

use std::{io, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use nave_crash_point::crash_point;
use nave_domain::{
    CustomerId, JobId, Millis,
    job::{JobRequest, JobState},
};
use nave_sdk::wire::rest::{IDEMPOTENCY_KEY_BYTES_MAX, Job, Page, WAIT_MS_MAX};
use nave_store::{Changes, JobRow, Submission, Submitted};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, timeout, timeout_at},
};

use crate::{
    app::App,
    caller::{Caller, JobsRead, JobsWrite},
    error::ApiError,
    extract::{self, Nothing, Path, Query},
    page::{Limit, cut, page},
    view,
};

/// Longest time without looking again, should an announcement be missed.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Longest wait for a turn to send a result.
pub(super) const TURN_MAX: Duration = Duration::from_secs(5);
/// Longest time that what is fetched takes to send: whoever reads slower than that has no turn any more.
pub(super) const SEND_MAX: Duration = Duration::from_secs(120);
/// Size in which a result is handed to the connection, in bytes.
const PIECE_BYTES: usize = 64 << 10;

/// Which jobs to list.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Most jobs in one answer; 50 if not given.
    #[serde(default)]
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Limit,
    /// `next` of the answer before.
    #[param(value_type = Option<String>)]
    before: Option<JobId>,
    /// Only jobs in this state.
    #[param(inline)]
    state: Option<JobState>,
}

/// The customer's jobs, newest first.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", operation_id = "jobs_list", params(ListQuery),
    security(("key" = ["jobs:read"])), responses((status = 200, description = "A page of jobs", body = Page<Job>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller<JobsRead>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<Job>>, ApiError> {
    let limit = query.limit;
    let mut rows =
        app.store.job_list(caller.customer, query.state, query.before, limit.rows_and_one()).await?;
    let next = cut(&mut rows, limit, |row| row.job.to_string());
    Ok(Json(page(view::load_jobs(&app, rows).await?, next)))
}

/// Submits a job. The same key with the same body gives the same job, whatever happened meanwhile.
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs", operation_id = "jobs_submit",
    params(("Idempotency-Key" = String, Header, description = "Chosen by the caller, new for every job; 1 to 200 visible ASCII characters")),
    request_body = JobRequest, security(("key" = ["jobs:write"])),
    responses(
        (status = 201, description = "The job, accepted", body = Job, headers(("Location" = String, description = "Where the job is"))),
        (status = 200, description = "The job that this key was used for before", body = Job),
    ))]
pub(crate) async fn submit(
    State(app): State<App>,
    caller: Caller<JobsWrite>,
    Query(Nothing {}): Query<Nothing>,
    headers: HeaderMap,
    body: extract::Json<JobRequest>,
) -> Result<Response, ApiError> {
    let key = idempotency_key(&headers)?;
    let hash: [u8; 32] = Sha256::digest(&body.bytes).into();
    let customer = caller.customer;
    let submitted = match app.store.job_submitted(customer, key, hash).await? {
        Some(job) => Submitted { job, fresh: false },
        None => {
            let request = accept(&app, body.value).await?;
            app.store.job_submit(&Submission { customer, key, hash, request: &request }).await?
        }
    };
    crash_point!("gateway.submit.before_answer");
    let job = load(&app, customer, submitted.job).await?;
    let status = if submitted.fresh { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, [(header::LOCATION, format!("/v1/jobs/{}", submitted.job))], Json(job)).into_response())
}

pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<&str, ApiError> {
    let mut values = headers.get_all("idempotency-key").iter();
    let missing = |detail: String| {
        ApiError::new(StatusCode::BAD_REQUEST, "idempotency_key_invalid", detail)
            .suggest("send one header Idempotency-Key, new for every job, the same when you repeat a request")
    };
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(missing("the request does not carry exactly one Idempotency-Key".to_owned()));
    };
    value
        .to_str()
        .ok()
        .filter(|key| (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()))
        .filter(|key| key.bytes().all(|b| b.is_ascii_graphic()))
        .ok_or_else(|| {
            missing(format!(
                "an Idempotency-Key has 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters"
            ))
        })
}

/// Checks a request and pins its image.
async fn accept(app: &App, mut request: JobRequest) -> Result<JobRequest, ApiError> {
    request.check().map_err(|bad| ApiError::refused("request_invalid", bad.to_string()))?;
    let image = match request.image.take() {
        Some(image) => image,
        None => default_image(app).await?,
    };
    Ok(JobRequest { image: Some(app.registry.pin(&image).await?), ..request })
}

async fn default_image(app: &App) -> Result<String, ApiError> {
    app.store.default_image().await?.ok_or_else(|| {
        let detail = "image: none is named and this market has no default image";
        ApiError::refused("no_default_image", detail).suggest("name an image")
    })
}

/// How long to wait.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ShowQuery {
    /// Answer as soon as the job is final, at the latest after so many milliseconds.
    #[param(value_type = Option<i64>, minimum = 0, maximum = 60_000)]
    wait_ms: Option<Millis>,
}

/// One job; with `wait_ms` as soon as it is final.
#[utoipa::path(get, path = "/v1/jobs/{job}", tag = "jobs", operation_id = "jobs_show",
    params(("job" = String, Path, description = "The job's id"), ShowQuery), security(("key" = ["jobs:read"])),
    responses((status = 200, description = "The job", body = Job)))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller<JobsRead>,
    Path(job): Path<JobId>,
    Query(query): Query<ShowQuery>,
) -> Result<Json<Job>, ApiError> {
    let wait = wait(query.wait_ms)?;
    let _turn = (!wait.is_zero()).then(|| app.turns.take(caller.customer)).transpose()?;
    let row = until_final(&app, caller.customer, job, wait).await?;
    Ok(Json(view::load_job(&app, row).await?))
}

/// Checks the length of a wait.
pub(crate) fn wait(wait_ms: Option<Millis>) -> Result<Duration, ApiError> {
    let wait = wait_ms.unwrap_or_default().0;
    u64::try_from(wait).ok().filter(|_| wait <= WAIT_MS_MAX.0).map(Duration::from_millis).ok_or_else(|| {
        let detail = format!("wait_ms: {wait} is not between 0 and {}", WAIT_MS_MAX.0);
        ApiError::new(StatusCode::BAD_REQUEST, "query_invalid", detail).suggest("wait several times")
    })
}

async fn until_final(
    app: &App,
    customer: CustomerId,
    job: JobId,
    wait: Duration,
) -> Result<JobRow, ApiError> {
    let end = Instant::now() + wait;
    loop {
        let watch = app.watch();
        let row = app.store.job_get(customer, job).await?;
        let left = end.saturating_duration_since(Instant::now());
        if row.state.is_final() || left.is_zero() || app.is_stopping() {
            return Ok(row);
        }
        watch.changed(Changes::Job(job), left.min(LOOK_AGAIN)).await;
    }
}

async fn load(app: &App, customer: CustomerId, job: JobId) -> Result<Job, ApiError> {
    let row = app.store.job_get(customer, job).await?;
    view::load_job(app, row).await
}

/// Cancels a job. One that is final stays as it is; cancelling again changes nothing.
#[utoipa::path(post, path = "/v1/jobs/{job}/cancel", tag = "jobs", operation_id = "jobs_cancel",
    params(("job" = String, Path, description = "The job's id")), security(("key" = ["jobs:write"])),
    responses((status = 200, description = "The job as it is now", body = Job)))]
pub(crate) async fn cancel(
    State(app): State<App>,
    caller: Caller<JobsWrite>,
    Path(job): Path<JobId>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<Job>, ApiError> {
    app.store.job_cancel(caller.customer, job).await?;
    Ok(Json(load(&app, caller.customer, job).await?))
}

/// The archive of a job's result files.
#[utoipa::path(get, path = "/v1/jobs/{job}/result", tag = "jobs", operation_id = "jobs_result",
    params(("job" = String, Path, description = "The job's id")), security(("key" = ["jobs:read"])),
    responses((status = 200, description = "A tar archive", body = Vec<u8>, content_type = "application/x-tar")))]
pub(crate) async fn result(
    State(app): State<App>,
    caller: Caller<JobsRead>,
    Path(job): Path<JobId>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Response, ApiError> {
    let row = app.store.job_get(caller.customer, job).await?;
    let sha256 = row.result.ok_or_else(|| no_result(row.state))?;
    let turn = timeout(TURN_MAX, app.downloads.clone().acquire_owned()).await;
    let Ok(Ok(turn)) = turn else {
        return Err(ApiError::unavailable("downloads_busy", "too many results are being fetched right now"));
    };
    let bytes = app.store.blob_get(&sha256).await?;
    let bytes = bytes.ok_or_else(|| ApiError::internal(format!("the result of {job} is not stored")))?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar")),
        (header::CONTENT_LENGTH, HeaderValue::from(bytes.len())),
    ];
    Ok((headers, pieces(bytes.into(), turn)).into_response())
}

/// Hands bytes out piece by piece and keeps the turn until the last one, or until the time is up.
pub(super) fn pieces(bytes: Bytes, turn: OwnedSemaphorePermit) -> Body {
    pieces_until(bytes, turn, Instant::now() + SEND_MAX)
}

/// A connection whose reader has stopped asks for no further piece, so time is kept beside it.
/// Pieces are copies: one that waits somewhere does not keep the whole in memory.
fn pieces_until(bytes: Bytes, turn: OwnedSemaphorePermit, end: Instant) -> Body {
    let (pieces, coming) = mpsc::channel(1);
    let left = bytes.len();
    tokio::spawn(async move {
        let _turn = turn;
        for piece in bytes.chunks(PIECE_BYTES) {
            let sent = timeout_at(end, pieces.send(Bytes::copy_from_slice(piece))).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    });
    whole(coming, left)
}

/// A body of `left` bytes that come one after the other; one that ends early is a broken one.
pub(super) fn whole(coming: mpsc::Receiver<Bytes>, left: usize) -> Body {
    Body::from_stream(stream::unfold((coming, left), |(mut coming, left)| async move {
        match coming.recv().await {
            Some(piece) => {
                let left = left.saturating_sub(piece.len());
                Some((Ok(piece), (coming, left)))
            }
            None if left > 0 => Some((Err(io::Error::from(io::ErrorKind::TimedOut)), (coming, 0))),
            None => None,
        }
    }))
}

fn no_result(state: JobState) -> ApiError {
    let detail = if state.is_final() { "the job left no result files" } else { "the job is not final yet" };
    let error = ApiError::new(StatusCode::NOT_FOUND, "no_result", detail);
    if state.is_final() {
        return error.suggest("write result files into the output directory of the job");
    }
    error.suggest("wait for the job with wait_ms").retryable()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::to_bytes;
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn what_is_read_in_time_comes_whole() {
        let turns = Arc::new(Semaphore::new(1));
        let turn = turns.clone().acquire_owned().await.expect("a turn");
        let bytes = Bytes::from((0..=255).cycle().take(3 * PIECE_BYTES + 1).collect::<Vec<u8>>());
        let body = to_bytes(pieces(bytes.clone(), turn), usize::MAX).await.expect("all of it");
        assert_eq!(body, bytes);
        drop(turns.acquire().await.expect("the turn is free again"));
    }

    #[tokio::test]
    async fn who_stops_reading_loses_the_turn_and_the_rest() {
        let turns = Arc::new(Semaphore::new(1));
        let turn = turns.clone().acquire_owned().await.expect("a turn");
        let bytes = Bytes::from(vec![1; 4 * PIECE_BYTES]);
        let body = pieces_until(bytes, turn, Instant::now() + Duration::from_millis(20));
        drop(turns.acquire().await.expect("nobody reads, and the turn is free all the same"));
        assert!(to_bytes(body, usize::MAX).await.is_err(), "what is cut off does not look whole");
    }

    #[tokio::test]
    async fn who_goes_away_loses_the_turn() {
        let turns = Arc::new(Semaphore::new(1));
        let turn = turns.clone().acquire_owned().await.expect("a turn");
        drop(pieces(Bytes::from(vec![1; 4 * PIECE_BYTES]), turn));
        drop(turns.acquire().await.expect("the turn is free again"));
    }
}
