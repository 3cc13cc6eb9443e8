//! What came of the tests of a host, for itself.

use axum::{Json, extract::State};
use nave_sdk::wire::verdict::{HOST_VERDICTS, HostVerdict};

use super::peer::PeerHost;
use crate::{
    app::App,
    error::ApiError,
    extract::{Nothing, Query},
    routes::verdicts,
};

/// The newest verdicts on the host that asks.
pub(super) async fn list(
    State(app): State<App>,
    host: PeerHost,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<Vec<HostVerdict>>, ApiError> {
    Ok(Json(verdicts::of_host(&app, host.id, HOST_VERDICTS).await?))
}
