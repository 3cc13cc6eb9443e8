//! Epochs: what miners delivered, and the weights that follow.

use axum::{Json, extract::State};
use nave_sdk::wire::rest::{Delivered, Epoch};
use nave_store::EpochRow;
use serde::Deserialize;

use crate::{
    app::App,
    caller::{Caller, JobsRead},
    error::ApiError,
    extract::{Nothing, Path, Query},
    page::Limit,
};

/// How many epochs to list.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Most epochs; 50 if not given.
    #[serde(default)]
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Limit,
}

/// The newest epochs, newest first.
#[utoipa::path(get, path = "/v1/epochs", tag = "market", operation_id = "epochs_list", params(ListQuery),
    security(("key" = ["jobs:read"])), responses((status = 200, description = "Epochs", body = Vec<Epoch>)))]
pub(crate) async fn list(
    State(app): State<App>,
    _: Caller<JobsRead>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<Epoch>>, ApiError> {
    let mut epochs = Vec::new();
    for row in app.store.epoch_list(query.limit.rows()).await? {
        epochs.push(load(&app, row).await?);
    }
    Ok(Json(epochs))
}

/// One epoch.
#[utoipa::path(get, path = "/v1/epochs/{epoch}", tag = "market", operation_id = "epochs_show",
    params(("epoch" = i64, Path, description = "Its number")), security(("key" = ["jobs:read"])),
    responses((status = 200, description = "The epoch", body = Epoch)))]
pub(crate) async fn show(
    State(app): State<App>,
    _: Caller<JobsRead>,
    Path(epoch): Path<i64>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<Epoch>, ApiError> {
    let row = app.store.epoch_get(epoch).await?;
    Ok(Json(load(&app, row).await?))
}

async fn load(app: &App, row: EpochRow) -> Result<Epoch, ApiError> {
    let delivered = app.store.epoch_delivered(row.epoch).await?;
    let delivered = delivered
        .into_iter()
        .map(|(hotkey, sum)| (hotkey, Delivered { used_ms: sum.used, value: sum.value }));
    Ok(Epoch {
        epoch: row.epoch,
        state: row.state,
        opened_at: row.opened_at,
        closed_at: row.closed_at,
        delivered: delivered.collect(),
        weights: row.weights.unwrap_or_default(),
        chain: row.chain,
    })
}
