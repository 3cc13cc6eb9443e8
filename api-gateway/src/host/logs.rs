//! Output of a host's leases.

use axum::{Json, extract::State, http::StatusCode};
use nave_domain::LeaseId;
use nave_sdk::wire::host::{LOG_BYTES_MAX, LogAck, Stream};
use serde::Deserialize;

use super::peer::PeerHost;
use crate::{
    app::App,
    error::ApiError,
    extract::{Path, Query, Raw},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AppendQuery {
    offset: u64,
}

/// Appends to a stream. The answer says from where to send on, whatever this piece overlapped or missed.
pub(super) async fn append(
    State(app): State<App>,
    PeerHost(host): PeerHost,
    Path((lease, stream)): Path<(LeaseId, Stream)>,
    Query(query): Query<AppendQuery>,
    Raw(bytes): Raw,
) -> Result<Json<LogAck>, ApiError> {
    // Beyond this no stream can be, and the store counts in signed integers.
    if query.offset > LOG_BYTES_MAX {
        let detail = format!("offset: nothing is kept beyond {LOG_BYTES_MAX} bytes");
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "query_invalid", detail));
    }
    let appended =
        app.store.log_append(host, lease, stream.as_str(), query.offset, &bytes, LOG_BYTES_MAX).await?;
    Ok(Json(LogAck { next_offset: appended.next_offset, full: appended.full }))
}
