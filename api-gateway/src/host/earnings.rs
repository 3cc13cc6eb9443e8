//! What the miner of a host earns, for the host itself.

use axum::{Json, extract::State};
use nave_sdk::wire::settlement::{Earnings, HOST_EARNINGS};

use super::peer::PeerHost;
use crate::{
    app::App,
    error::ApiError,
    extract::{Nothing, Query},
    routes::earnings,
};

/// The newest epochs of the miner whose host asks.
pub(super) async fn list(
    State(app): State<App>,
    host: PeerHost,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<Vec<Earnings>>, ApiError> {
    let hotkey = app.store.host_hotkey(host.id).await?;
    let rows = app.store.earnings(&hotkey, None, HOST_EARNINGS).await?;
    Ok(Json(rows.into_iter().map(earnings::earnings).collect::<Result<_, _>>()?))
}
