//! Quotes: asked for by a customer, answered by the scheduler, used by a job.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use nave_domain::{CustomerId, HostId, QuoteId, rate};
use nave_sdk::wire::{
    quote::{ConsideredHost, Quote, QuoteRequest, QuoteState, QuotedPlace},
    rest::Reason,
};
use nave_store::{Asking, Changes, HostRow, Placement, QuoteAnswer, QuoteRow};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::jobs::{LOOK_AGAIN, idempotency_key};
use crate::{
    app::App,
    caller::{Caller, JobsRead, JobsWrite},
    error::ApiError,
    extract::{self, Nothing, Path, Query},
};

/// Longest wait for the scheduler's answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Asks for a quote: a placement that is held at its price until it expires, or with `dry_run` what
/// would be chosen. The same key with the same body gives the same quote.
#[utoipa::path(post, path = "/v1/quotes", tag = "jobs", operation_id = "quotes_create",
    params(("Idempotency-Key" = String, Header, description = "Chosen by the caller, new for every quote; 1 to 200 visible ASCII characters")),
    request_body = QuoteRequest, security(("key" = ["jobs:write"])),
    responses((status = 201, description = "The quote; where there is no place now, why", body = Quote)))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller<JobsWrite>,
    Query(Nothing {}): Query<Nothing>,
    headers: HeaderMap,
    body: extract::Json<QuoteRequest>,
) -> Result<Response, ApiError> {
    let key = idempotency_key(&headers)?;
    let wish = body.value;
    wish.check().map_err(|detail| ApiError::refused("request_invalid", detail))?;
    let _turn = app.turns.take(caller.customer)?;
    let asking = Asking {
        customer: caller.customer,
        key,
        hash: Sha256::digest(&body.bytes).into(),
        request: &wish.request,
        hold: (!wish.dry_run).then_some(wish.hold_ms),
    };
    let quote = app.store.quote_ask(&asking).await?;
    let row = answered(&app, caller.customer, quote).await?;
    Ok((StatusCode::CREATED, Json(load(&app, row).await?)).into_response())
}

/// One quote.
#[utoipa::path(get, path = "/v1/quotes/{quote}", tag = "jobs", operation_id = "quotes_show",
    params(("quote" = String, Path, description = "The quote's id")), security(("key" = ["jobs:read"])),
    responses((status = 200, description = "The quote", body = Quote)))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller<JobsRead>,
    Path(quote): Path<QuoteId>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<Quote>, ApiError> {
    let row = app.store.quote_get(caller.customer, quote).await?;
    Ok(Json(load(&app, row).await?))
}

/// Gives a quote back before it expires, so that it holds nothing any more. One that holds nothing stays as it is.
#[utoipa::path(post, path = "/v1/quotes/{quote}/release", tag = "jobs", operation_id = "quotes_release",
    params(("quote" = String, Path, description = "The quote's id")), security(("key" = ["jobs:write"])),
    responses((status = 200, description = "The quote", body = Quote)))]
pub(crate) async fn release(
    State(app): State<App>,
    caller: Caller<JobsWrite>,
    Path(quote): Path<QuoteId>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<Quote>, ApiError> {
    app.store.quote_release(caller.customer, quote).await?;
    let row = app.store.quote_get(caller.customer, quote).await?;
    Ok(Json(load(&app, row).await?))
}

/// The quote as soon as the scheduler has answered.
async fn answered(app: &App, customer: CustomerId, quote: QuoteId) -> Result<QuoteRow, ApiError> {
    let end = Instant::now() + ANSWER_MAX;
    loop {
        let watch = app.watch();
        let row = app.store.quote_get(customer, quote).await?;
        if row.answer.is_some() {
            return Ok(row);
        }
        if row.is_lapsed {
            let detail = format!("nobody has answered {quote} in time");
            return Err(ApiError::new(StatusCode::CONFLICT, "quote_lapsed", detail)
                .suggest("ask again, with a new Idempotency-Key"));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || app.is_stopping() {
            let detail = "the scheduler has not answered yet; the same call with the same key asks again";
            return Err(ApiError::unavailable("quote_unanswered", detail));
        }
        watch.changed(Changes::Quote(quote), left.min(LOOK_AGAIN)).await;
    }
}

async fn load(app: &App, row: QuoteRow) -> Result<Quote, ApiError> {
    let hosts = app.store.host_list().await?;
    let hosts: BTreeMap<HostId, HostRow> = hosts.into_iter().map(|host| (host.host, host)).collect();
    let name = |host: HostId| hosts.get(&host).map_or_else(|| host.to_string(), |row| row.name.clone());
    let state = state(&row);
    let (place, reason) = match row.answer {
        Some(QuoteAnswer::Place(placement)) => {
            (Some(place(*placement, &hosts, name).map_err(ApiError::from)?), None)
        }
        Some(QuoteAnswer::None(code, message)) => (None, Some(Reason { code, message })),
        None => (None, None),
    };
    let considered = row.considered.into_iter().map(|other| ConsideredHost {
        host_name: name(other.host),
        host: other.host,
        hourly: other.hourly,
        code: other.code,
    });
    Ok(Quote {
        quote: row.quote,
        state,
        request: row.request,
        asked_at: row.asked_at,
        expires_at: row.expires_at,
        place,
        reason,
        considered: considered.collect(),
        job: row.job,
    })
}

fn state(row: &QuoteRow) -> QuoteState {
    match (&row.answer, row.expires_at) {
        _ if row.job.is_some() => QuoteState::Used,
        _ if row.is_lapsed => QuoteState::Lapsed,
        (None, _) => QuoteState::Asked,
        (Some(QuoteAnswer::None(..)), _) => QuoteState::Refused,
        (Some(QuoteAnswer::Place(_)), None) => QuoteState::DryRun,
        (Some(QuoteAnswer::Place(_)), Some(_)) if row.is_expired => QuoteState::Expired,
        (Some(QuoteAnswer::Place(_)), Some(_)) => QuoteState::Held,
    }
}

fn place(
    placement: Placement,
    hosts: &BTreeMap<HostId, HostRow>,
    name: impl Fn(HostId) -> String,
) -> Result<QuotedPlace, nave_domain::Overflow> {
    let host = hosts.get(&placement.host);
    Ok(QuotedPlace {
        host: placement.host,
        host_name: name(placement.host),
        region: host.and_then(|host| host.region.clone()),
        term: host.map(|host| host.term).unwrap_or_default(),
        trust: placement.grounds.trust,
        reason: placement.grounds.reason,
        devices: placement.devices,
        share: placement.share,
        size: placement.size,
        rate: placement.rate,
        hourly: rate::hourly(placement.size, placement.rate)?,
        run_ms_max: placement.run_max,
        baseline: placement.grounds.baseline,
        saving: rate::saving(placement.grounds.baseline, placement.size, placement.rate),
    })
}
