//! Agents that hosts upgrade to.

use axum::{extract::State, http::header::CONTENT_TYPE, response::IntoResponse};
use nave_domain::HostId;
use nave_sdk::wire::sign::{Release, SignedRelease};

use super::peer::PeerHost;
use crate::{
    app::App,
    error::ApiError,
    extract::{Nothing, Path, Query},
};

/// The program of a release.
pub(super) async fn show(
    State(app): State<App>,
    _: PeerHost,
    Path((version, target)): Path<(String, String)>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<impl IntoResponse, ApiError> {
    let Ok(_turn) = app.downloads.acquire().await else {
        return Err(ApiError::unavailable("downloads_busy", "too many downloads are on their way right now"));
    };
    let bytes = app.store.release_bytes(&version, &target).await?;
    Ok(([(CONTENT_TYPE, "application/octet-stream")], bytes))
}

/// The release that a host should run, if there is a newer one. What the release key has not
/// signed is never offered.
pub(super) async fn offer(app: &App, host: HostId) -> Result<Option<SignedRelease>, ApiError> {
    let Some(key) = app.config.release_key else { return Ok(None) };
    let Some(row) = app.store.release_for(host).await? else { return Ok(None) };
    let release = serde_json::from_value::<Release>(row.manifest).ok();
    let signed = release
        .zip(row.signature.parse().ok())
        .map(|(release, signature)| SignedRelease { release, signature });
    let signed = signed.filter(|signed| signed.verify(&key).is_ok());
    if signed.is_none() {
        tracing::error!("the newest release is not signed by this market's release key");
    }
    Ok(signed)
}
