//! What miners earn, line by line, and the collateral behind their offers.

use axum::{Json, extract::State, http::StatusCode};
use nave_domain::{EventId, LeaseId, Timestamp};
use nave_sdk::wire::{
    rest::Page,
    settlement::{Call, CallRequest, Collateral, Earnings, LeaseEarnings, LeaseEvent, Sold},
};
use nave_store::{CallRow, EarningsRow, LeaseEarned, OfferRow, StoreError};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    app::App,
    error::ApiError,
    extract::{self, Nothing, Path, Query},
    page::{Limit, cut, page},
    signed::Miner,
};

/// Which epochs to list.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EpochsQuery {
    /// Most epochs in one answer; 50 if not given.
    #[serde(default)]
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Limit,
    /// `next` of the answer before.
    before: Option<i64>,
}

/// Which leases to list.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LeasesQuery {
    /// Most leases in one answer; 50 if not given.
    #[serde(default)]
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Limit,
    /// `next` of the answer before.
    #[param(value_type = Option<String>)]
    after: Option<LeaseId>,
}

/// What came of the signer in each epoch, the newest first.
#[utoipa::path(get, path = "/v1/miner/earnings", tag = "miners", operation_id = "miner_earnings_list", params(EpochsQuery),
    security(("hotkey" = [])), responses((status = 200, description = "A page of epochs", body = Page<Earnings>)))]
pub(crate) async fn list(
    State(app): State<App>,
    Query(query): Query<EpochsQuery>,
    miner: Miner,
) -> Result<Json<Page<Earnings>>, ApiError> {
    let mut rows = app.store.earnings(&miner.hotkey, query.before, query.limit.rows_and_one()).await?;
    let next = cut(&mut rows, query.limit, |row| row.epoch.to_string());
    let items = rows.into_iter().map(earnings).collect::<Result<_, _>>()?;
    Ok(Json(page(items, next)))
}

/// What came of each of the signer's leases in an epoch, with what went wrong.
#[utoipa::path(get, path = "/v1/miner/earnings/{epoch}", tag = "miners", operation_id = "miner_earnings_show",
    params(("epoch" = i64, Path, description = "The epoch's number"), LeasesQuery), security(("hotkey" = [])),
    responses((status = 200, description = "A page of leases", body = Page<LeaseEarnings>)))]
pub(crate) async fn show(
    State(app): State<App>,
    Path(epoch): Path<i64>,
    Query(query): Query<LeasesQuery>,
    miner: Miner,
) -> Result<Json<Page<LeaseEarnings>>, ApiError> {
    app.store.epoch_get(epoch).await?;
    let rows = app.store.earnings_of_leases(&miner.hotkey, epoch, query.after, query.limit.rows_and_one());
    let mut rows = rows.await?;
    let next = cut(&mut rows, query.limit, |row| row.lease.to_string());
    let items = rows.into_iter().map(lease).collect::<Result<_, _>>()?;
    Ok(Json(page(items, next)))
}

/// The signer's collateral, and as what that lets hosts sell.
#[utoipa::path(get, path = "/v1/miner/collateral", tag = "miners", operation_id = "miner_collateral_show",
    security(("hotkey" = [])), responses((status = 200, description = "The collateral", body = Collateral)))]
pub(crate) async fn collateral(
    State(app): State<App>,
    Query(Nothing {}): Query<Nothing>,
    miner: Miner,
) -> Result<Json<Collateral>, ApiError> {
    let row = app.store.collateral(&miner.hotkey).await?;
    let offers = app.store.offers(&miner.hotkey).await?;
    let sold = |OfferRow { host, offered, spot_because }| Sold { host, offered, spot_because };
    Ok(Json(Collateral {
        balance: row.balance,
        called: row.called.into_iter().map(call).collect(),
        offers: offers.into_iter().map(sold).collect(),
    }))
}

/// Calls collateral back: it backs no offer any more, and is paid after the cooldown.
#[utoipa::path(post, path = "/v1/miner/collateral/call", tag = "miners", operation_id = "miner_collateral_call",
    request_body = CallRequest, security(("hotkey" = [])),
    responses((status = 201, description = "It will be paid", body = Call)))]
pub(crate) async fn call_back(
    State(app): State<App>,
    Query(Nothing {}): Query<Nothing>,
    miner: Miner,
) -> Result<(StatusCode, Json<Call>), ApiError> {
    let CallRequest { amount } = extract::parse(&miner.body)?;
    let called = app.store.collateral_call(&miner.hotkey, amount).await.map_err(too_low)?;
    Ok((StatusCode::CREATED, Json(call(called))))
}

fn too_low(error: StoreError) -> ApiError {
    if !matches!(error, StoreError::BalanceTooLow) {
        return error.into();
    }
    let detail = "there is not so much collateral that was not called back before";
    ApiError::new(StatusCode::CONFLICT, "collateral_too_low", detail)
        .suggest("look with `nave miner collateral`, then call back less")
}

fn call(row: CallRow) -> Call {
    Call { call: row.call, amount: row.amount, due_at: row.due_at }
}

/// An epoch of a miner as it goes over the wire.
pub(crate) fn earnings(row: EarningsRow) -> Result<Earnings, ApiError> {
    Ok(Earnings { epoch: row.epoch, closed_at: row.closed_at, pay: read(row.pay)? })
}

fn lease(row: LeaseEarned) -> Result<LeaseEarnings, ApiError> {
    let events = row.events.into_iter().map(event).collect::<Result<_, _>>()?;
    Ok(LeaseEarnings {
        lease: row.lease,
        host: row.host,
        used_ms: row.used,
        charged: row.charged,
        outcome: row.outcome,
        adherence_ppm: row.adherence_ppm,
        breaches: row.breaches,
        earned: row.earned,
        bid: row.bid,
        credit: row.credit,
        penalty: row.penalty,
        related: row.related,
        events,
    })
}

/// An event as the store tells it.
#[derive(Deserialize)]
struct Told {
    event: Uuid,
    kind: String,
    blame: String,
    confirmed_by: Option<String>,
    from_ms: i64,
    until_ms: i64,
    detail: String,
}

fn event(row: Value) -> Result<LeaseEvent, ApiError> {
    let Told { event, kind, blame, confirmed_by, from_ms, until_ms, detail } = read(row)?;
    let (from_at, until_at) = (Timestamp(from_ms), Timestamp(until_ms));
    Ok(LeaseEvent { event: EventId(event), kind, blame, confirmed_by, from_at, until_at, detail })
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    serde_json::from_value(value).map_err(|error| ApiError::internal(format!("a row of earnings: {error}")))
}
