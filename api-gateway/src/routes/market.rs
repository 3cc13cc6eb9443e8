//! What identifies the market.

use axum::{Json, extract::State};
use nave_domain::mesh::BadMeshKey;
use nave_sdk::wire::enrol::{Hub, Market};
use nave_store::HubRow;

use crate::{
    app::App,
    error::ApiError,
    extract::{Nothing, Query},
};

/// What identifies the market and where its hosts meet it.
#[utoipa::path(get, path = "/v1/market", tag = "miners", operation_id = "market",
    responses((status = 200, description = "Keys to pin, and where hosts join the mesh", body = Market)))]
pub(crate) async fn show(
    State(app): State<App>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<Market>, ApiError> {
    Ok(Json(Market {
        market_key: app.config.market_key.public(),
        release_key: app.config.release_key,
        hub: app.store.hub().await?.map(hub).transpose()?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }))
}

fn hub(row: HubRow) -> Result<Hub, ApiError> {
    let key = row.key.parse().map_err(|error: BadMeshKey| ApiError::internal(error.to_string()))?;
    Ok(Hub { key, endpoints: row.endpoints })
}
