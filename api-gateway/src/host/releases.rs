//! Agents that hosts upgrade to.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use axum::{extract::State, http::header::CONTENT_TYPE, response::IntoResponse};
use bytes::Bytes;
use nave_domain::HostId;
use nave_sdk::wire::sign::{Release, SignedRelease};
use nave_store::Store;
use tokio::sync::Mutex;

use super::peer::PeerHost;
use crate::{
    app::App,
    error::ApiError,
    extract::{Nothing, Path, Query},
};

/// Version and target.
type Name = (String, String);

/// Programs that are on their way to hosts now. Each is in memory
/// once, however many hosts fetch it and however slowly they read.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    sent: Mutex<HashMap<Name, Weak<Vec<u8>>>>,
}

struct Program(Arc<Vec<u8>>);

impl AsRef<[u8]> for Program {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Programs {
    async fn get(&self, store: &Store, version: String, target: String) -> Result<Bytes, ApiError> {
        // Held while it is read: who comes next finds it here.
        let mut sent = self.sent.lock().await;
        sent.retain(|_, program| program.strong_count() > 0);
        let name = (version, target);
        if let Some(program) = sent.get(&name).and_then(Weak::upgrade) {
            return Ok(Bytes::from_owner(Program(program)));
        }
        let program = Arc::new(store.release_bytes(&name.0, &name.1).await?);
        sent.insert(name, Arc::downgrade(&program));
        Ok(Bytes::from_owner(Program(program)))
    }
}

/// The program of a release.
pub(super) async fn show(
    State(app): State<App>,
    _: PeerHost,
    Path((version, target)): Path<(String, String)>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<impl IntoResponse, ApiError> {
    let bytes = app.programs.get(&app.store, version, target).await?;
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
