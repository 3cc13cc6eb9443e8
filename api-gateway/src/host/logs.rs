//! Output of a host's leases.

use axum::{Json, extract::State, http::StatusCode};
use nave_crash_point::crash_point;
use nave_domain::{HostId, LeaseId};
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

/// What a customer reads at the end of a stream that is longer than is kept.
const FULL: &str = "\n[nave: nothing after the first 16 MiB of this stream is kept]\n";

/// Appends to a stream. The answer says from where to send on, whatever this piece overlapped or missed.
pub(super) async fn append(
    State(app): State<App>,
    host: PeerHost,
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
        app.store.log_append(host.id, lease, stream.as_str(), query.offset, &bytes, LOG_BYTES_MAX).await?;
    if appended.full {
        say_full(&app, host.id, lease, stream).await?;
    }
    crash_point!("gateway.log.before_answer");
    let next_offset = appended.next_offset.min(LOG_BYTES_MAX);
    Ok(Json(LogAck { next_offset, full: appended.full }))
}

/// Says once, after the last byte that is kept, that more is not.
async fn say_full(app: &App, host: HostId, lease: LeaseId, stream: Stream) -> Result<(), ApiError> {
    let end = LOG_BYTES_MAX.saturating_add(u64::try_from(FULL.len()).unwrap_or(0));
    app.store.log_append(host, lease, stream.as_str(), LOG_BYTES_MAX, FULL.as_bytes(), end).await?;
    Ok(())
}
