//! Which host speaks: the one place that knows.

use std::net::{IpAddr, SocketAddr};

use axum::{
    extract::{ConnectInfo, FromRequestParts},
    http::{StatusCode, request::Parts},
};
use nave_domain::HostId;
use nave_store::StoreError;

use crate::{app::App, error::ApiError};

/// The host that sent a request: the one whose address in the mesh the connection comes
/// from. The mesh lets nobody choose another address than that of their key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerHost {
    pub(crate) id: HostId,
    address: IpAddr,
}

impl FromRequestParts<App> for PeerHost {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let ConnectInfo(peer) = parts
            .extensions
            .get::<ConnectInfo<SocketAddr>>()
            .ok_or_else(|| ApiError::internal("a listener does not tell where its peers are"))?;
        Self::at(app, peer.ip().to_canonical()).await
    }
}

impl PeerHost {
    /// The member of the market at an address.
    async fn at(app: &App, address: IpAddr) -> Result<Self, ApiError> {
        match app.store.host_at(address).await {
            Ok((id, state)) if state.is_member() => Ok(Self { id, address }),
            Ok(_) | Err(StoreError::NotFound(_)) => Err(host_unknown()),
            Err(error) => Err(error.into()),
        }
    }

    /// Refuses who was sent away meanwhile.
    pub(crate) async fn check(&self, app: &App) -> Result<(), ApiError> {
        Self::at(app, self.address)
            .await
            .and_then(|now| if now.id == self.id { Ok(()) } else { Err(host_unknown()) })
    }
}

/// The refusal of who is no host, or none any more.
pub(super) fn host_unknown() -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "host_unknown", "this address belongs to no host of this market")
        .suggest("enrol again with a new ticket")
}
