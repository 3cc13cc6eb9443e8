//! Which host speaks: the one place that knows.

use axum::{
    extract::{ConnectInfo, FromRequestParts, connect_info::Connected},
    http::{HeaderMap, StatusCode, request::Parts},
    serve::IncomingStream,
};
use nave_domain::HostId;
use nave_sdk::wire::host::HOST_HEADER;
use tokio::net::UnixListener;

use crate::error::ApiError;

/// Where a connection came from, as its listener knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// The unix socket of this machine. Its file permissions are the authentication: who
    /// may open it is this machine's operator, and may speak for any of its hosts.
    Local,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(_: IncomingStream<'_, UnixListener>) -> Self {
        Self::Local
    }
}

/// The host that sent a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerHost(pub(crate) HostId);

impl<S: Send + Sync> FromRequestParts<S> for PeerHost {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let ConnectInfo(peer) = parts
            .extensions
            .get::<ConnectInfo<Peer>>()
            .ok_or_else(|| ApiError::internal("a listener does not tell who its peers are"))?;
        match peer {
            Peer::Local => named(&parts.headers).map(Self),
        }
    }
}

fn named(headers: &HeaderMap) -> Result<HostId, ApiError> {
    let text = headers.get(HOST_HEADER).and_then(|value| value.to_str().ok());
    let host = text.and_then(|text| text.parse().ok());
    host.ok_or_else(|| {
        let detail = format!("the header {HOST_HEADER} does not name a host");
        ApiError::new(StatusCode::UNAUTHORIZED, "host_unnamed", detail)
            .suggest("name the host by its id, as enrolment gave it")
    })
}
