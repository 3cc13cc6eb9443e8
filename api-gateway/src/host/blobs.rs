//! Blobs by their hash: result archives of a host's leases, and openings of its challenges.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header::CONTENT_LENGTH},
};
use futures_util::StreamExt;
use nave_crash_point::crash_point;
use nave_domain::HostId;
use nave_sdk::wire::{host::BLOB_BYTES_MAX, proof::OPENING_MAX};
use nave_store::BlobClaim;
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

/// Blobs of one host at a time; half of all, so that one that is slow does not hold up the others.
const OF_HOST_MAX: u32 = 2;
/// Longest silence within a blob: a way that broke off must not count for as long as a slow one.
const SILENCE_MAX: Duration = Duration::from_secs(20);

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
    // Asked before a byte is read, and once more when all have come.
    claim(&app, host.id, sha256, declared(&headers).unwrap_or_default()).await?;
    let _place = Place::take(&app.uploading, host.id)?;
    let runs = !app.store.leases_of_host(host.id).await?.is_empty();
    let (turns, most) = if runs { (&app.uploads, BLOB_BYTES_MAX) } else { (&app.openings, OPENING_MAX) };
    let Ok(Ok(_turn)) = timeout(TURN_MAX, turns.acquire()).await else {
        return Err(busy("too many blobs are on their way right now"));
    };
    let received = timeout(UPLOAD_MAX, receive(body, declared(&headers), most)).await;
    let bytes = received.map_err(|_| too_slow())??;
    if <[u8; 32]>::from(Sha256::digest(&bytes)) != sha256 {
        return Err(ApiError::refused(
            "hash_differs",
            "the SHA-256 of these bytes is not the name of the blob",
        )
        .suggest("send the bytes again"));
    }
    claim(&app, host.id, sha256, bytes.len()).await?;
    app.store.blob_put(sha256, &bytes).await?;
    crash_point!("gateway.blob.before_answer");
    Ok(StatusCode::NO_CONTENT)
}

/// One of a host's blobs on their way; over when dropped.
struct Place {
    uploading: Arc<Mutex<HashMap<HostId, u32>>>,
    host: HostId,
}

impl Place {
    fn take(uploading: &Arc<Mutex<HashMap<HostId, u32>>>, host: HostId) -> Result<Self, ApiError> {
        let mut taken = uploading.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(host).or_default();
        if *count >= OF_HOST_MAX {
            return Err(busy("other blobs of this host are on their way right now"));
        }
        *count += 1;
        Ok(Self { uploading: uploading.clone(), host })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.uploading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.host) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.host);
            }
        }
    }
}

fn busy(detail: &str) -> ApiError {
    ApiError::unavailable("uploads_busy", detail)
}

async fn claim(app: &App, host: HostId, sha256: [u8; 32], bytes: usize) -> Result<(), ApiError> {
    let size = u64::try_from(bytes).unwrap_or(u64::MAX);
    let (status, code, detail) = match app.store.blob_claim(host, sha256, size).await? {
        BlobClaim::Granted => return Ok(()),
        BlobClaim::NothingOpen => (
            StatusCode::FORBIDDEN,
            "nothing_open",
            "this host has neither an open lease nor an open challenge",
        ),
        BlobClaim::Full => (
            StatusCode::TOO_MANY_REQUESTS,
            "blobs_full",
            "this host has stored enough for its leases and challenges",
        ),
    };
    Err(ApiError::new(status, code, detail)
        .suggest("store one result for a lease before it is finished, and one opening for a challenge"))
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
async fn receive(body: Body, declared: Option<usize>, most: usize) -> Result<Vec<u8>, ApiError> {
    if declared.is_some_and(|bytes| bytes > most) {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(declared.unwrap_or_default());
    let mut pieces = body.into_data_stream();
    while let Some(piece) = timeout(SILENCE_MAX, pieces.next()).await.map_err(|_| too_slow())? {
        let piece = piece.map_err(|_| {
            ApiError::new(StatusCode::BAD_REQUEST, "body_unreadable", "the body broke off").retryable()
        })?;
        if bytes.len() + piece.len() > most {
            return Err(too_large());
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}
