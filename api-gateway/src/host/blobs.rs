//! Blobs by their hash: result archives of a host's leases.

use std::time::Duration;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header::CONTENT_LENGTH},
};
use futures_util::StreamExt;
use nave_crash_point::crash_point;
use nave_sdk::wire::host::BLOB_BYTES_MAX;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::peer::PeerHost;
use crate::{
    app::App,
    error::ApiError,
    extract::{Nothing, Path, Query, too_large, too_slow},
};

/// Longest wait for a turn.
const TURN_MAX: Duration = Duration::from_secs(10);
/// Longest that one blob may travel: a slow host must not keep others from their turn.
const UPLOAD_MAX: Duration = Duration::from_secs(120);

/// Stores the bytes whose SHA-256 is the name; storing them again is a no-op.
pub(super) async fn store(
    State(app): State<App>,
    host: PeerHost,
    Path(name): Path<String>,
    Query(Nothing {}): Query<Nothing>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let sha256 = hash(&name)?;
    if app.store.leases_of_host(host.id).await?.is_empty() {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "no_open_lease", "this host holds no open lease")
            .suggest("store results before the lease is finished"));
    }
    let turn = timeout(TURN_MAX, app.uploads.acquire()).await;
    let Ok(Ok(_turn)) = turn else {
        return Err(ApiError::unavailable("uploads_busy", "too many blobs are on their way right now"));
    };
    let received = timeout(UPLOAD_MAX, receive(body, declared(&headers))).await;
    let bytes = received.map_err(|_| too_slow())??;
    if <[u8; 32]>::from(Sha256::digest(&bytes)) != sha256 {
        return Err(ApiError::refused(
            "hash_differs",
            "the SHA-256 of these bytes is not the name of the blob",
        )
        .suggest("send the bytes again"));
    }
    app.store.blob_put(sha256, &bytes).await?;
    crash_point!("gateway.blob.before_answer");
    Ok(StatusCode::NO_CONTENT)
}

fn hash(name: &str) -> Result<[u8; 32], ApiError> {
    let read = hex::decode(name).ok().and_then(|bytes| bytes.try_into().ok());
    read.ok_or_else(|| {
        ApiError::new(StatusCode::BAD_REQUEST, "path_invalid", "a blob's name has 64 hexadecimal digits")
            .suggest("name the blob by its SHA-256")
    })
}

fn declared(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a body, and gives up as soon as it is too long.
async fn receive(body: Body, declared: Option<usize>) -> Result<Vec<u8>, ApiError> {
    if declared.is_some_and(|bytes| bytes > BLOB_BYTES_MAX) {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(declared.unwrap_or_default());
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| {
            ApiError::new(StatusCode::BAD_REQUEST, "body_unreadable", "the body broke off").retryable()
        })?;
        if bytes.len() + piece.len() > BLOB_BYTES_MAX {
            return Err(too_large());
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}
