//! A customer's money: what there is, and how it came about.

use axum::{Json, extract::State, http::StatusCode};
use nave_sdk::wire::rest::{Balance, LedgerLine, Page};
use serde::Deserialize;

use crate::{
    app::App,
    caller::{BalanceRead, Caller},
    error::ApiError,
    extract::{Nothing, Query},
    page::{Limit, cut, page},
    view,
};

/// What can be spent and what is set aside.
#[utoipa::path(get, path = "/v1/balance", tag = "money", operation_id = "balance",
    security(("key" = ["balance:read"])), responses((status = 200, description = "The balance", body = Balance)))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller<BalanceRead>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<Balance>, ApiError> {
    let row = app.store.balance(caller.customer).await?;
    Ok(Json(Balance { customer: caller.customer, available: row.available, held: row.held }))
}

/// Which part of the ledger to list.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LedgerQuery {
    /// Most lines in one answer; 50 if not given.
    #[serde(default)]
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Limit,
    /// `next` of the answer before.
    before: Option<String>,
}

/// Every movement of the customer's money, newest first.
#[utoipa::path(get, path = "/v1/ledger", tag = "money", operation_id = "ledger", params(LedgerQuery),
    security(("key" = ["balance:read"])),
    responses((status = 200, description = "A page of the ledger", body = Page<LedgerLine>)))]
pub(crate) async fn ledger(
    State(app): State<App>,
    caller: Caller<BalanceRead>,
    Query(query): Query<LedgerQuery>,
) -> Result<Json<Page<LedgerLine>>, ApiError> {
    let before = query.before.as_deref().map(posting).transpose()?;
    let mut rows = app.store.ledger_list(caller.customer, before, query.limit.rows_and_one()).await?;
    let next = cut(&mut rows, query.limit, |row| row.posting.to_string());
    Ok(Json(page(rows.into_iter().map(view::ledger_line).collect(), next)))
}

fn posting(cursor: &str) -> Result<i64, ApiError> {
    let digits = !cursor.is_empty() && cursor.bytes().all(|b| b.is_ascii_digit());
    cursor.parse().ok().filter(|_| digits).ok_or_else(|| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "cursor_invalid",
            "before: it is not a cursor that this API gave out",
        )
        .suggest("pass `next` of the page before")
    })
}
