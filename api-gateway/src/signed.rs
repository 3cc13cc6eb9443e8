//! Requests that carry a signature instead of an API key: miners', and agents' that enrol.

use std::{fmt::Display, net::SocketAddr};

use axum::{
    body::Body,
    extract::{ConnectInfo, FromRequest, Request},
    http::{HeaderMap, StatusCode, request::Parts},
};
use bytes::Bytes;
use nave_sdk::{
    hotkey::Hotkey,
    wire::sign::{
        self, BadStamp, EXPIRY_HEADER, KEY_HEADER, NONCE_HEADER, PublicKey, SIGNATURE_HEADER, Stamp, sha256,
    },
};

use crate::{
    app::App,
    error::ApiError,
    extract::Raw,
    throttle::{source, too_fast},
};

/// The owner of a hotkey, who signed this request.
pub(crate) struct Miner {
    /// As SS58.
    pub(crate) hotkey: String,
    pub(crate) body: Bytes,
}

/// An agent, which signed this request.
pub(crate) struct Agent {
    pub(crate) key: PublicKey,
    pub(crate) body: Bytes,
}

impl FromRequest<App> for Miner {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let standing = app.signers.take(source(from(&parts)?.ip()));
        if !standing.allowed {
            return Err(too_fast("address", standing.next_s));
        }
        let body = read(&parts, body).await?;
        let key: Hotkey = check(app, &parts, &body, Stamp::verify_hotkey).await?;
        Ok(Self { hotkey: key.to_string(), body })
    }
}

impl FromRequest<App> for Agent {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let standing = app.joiners.take(source(from(&parts)?.ip()));
        if !standing.allowed {
            return Err(too_fast("address", standing.next_s));
        }
        let body = read(&parts, body).await?;
        let key = check(app, &parts, &body, Stamp::verify_agent).await?;
        Ok(Self { key, body })
    }
}

fn from(parts: &Parts) -> Result<SocketAddr, ApiError> {
    let from = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(from)| *from);
    from.ok_or_else(|| ApiError::internal("a listener does not tell where its peers are"))
}

async fn read(parts: &Parts, body: Body) -> Result<Bytes, ApiError> {
    let request = Request::from_parts(parts.clone(), body);
    Raw::from_request(request, &()).await.map(|Raw(bytes)| bytes)
}

/// Who signed a request. Its nonce is used up when the signature fits, and only then, so that
/// nobody can use up the nonces of others.
async fn check<K: Display>(
    app: &App,
    parts: &Parts,
    body: &[u8],
    verify: impl Fn(&Stamp, &sign::Request<'_>) -> Result<K, BadStamp>,
) -> Result<K, ApiError> {
    let stamp = stamp(&parts.headers).map_err(refusal)?;
    stamp.check_expiry(app.store.now().await?).map_err(refusal)?;
    let request = sign::Request {
        market: &app.config.market_key.public(),
        method: parts.method.as_str(),
        target: parts.uri.path_and_query().map_or("/", |target| target.as_str()),
        body: &sha256(body),
    };
    let key = verify(&stamp, &request).map_err(refusal)?;
    if app.store.nonce_use(&key.to_string(), &stamp.nonce.to_string(), stamp.expiry.0).await? {
        return Ok(key);
    }
    Err(ApiError::new(StatusCode::CONFLICT, "nonce_used", "this signed request was carried out before")
        .suggest("sign the request again with a new nonce"))
}

fn stamp(headers: &HeaderMap) -> Result<Stamp, BadStamp> {
    let names = [KEY_HEADER, NONCE_HEADER, EXPIRY_HEADER, SIGNATURE_HEADER];
    if let Some(twice) = names.into_iter().find(|name| headers.get_all(*name).iter().count() > 1) {
        return Err(BadStamp::Malformed(twice));
    }
    // What is no text is there, and is none of ours.
    Stamp::read(|name| headers.get(name).map(|value| value.to_str().unwrap_or("?")))
}

fn refusal(bad: BadStamp) -> ApiError {
    let (code, suggestion) = match bad {
        BadStamp::Missing(_) => ("signature_missing", "sign the request; see the API's description"),
        BadStamp::Malformed(_) => {
            ("signature_malformed", "write each of the four headers once, as described")
        }
        BadStamp::Expired | BadStamp::TooLong => {
            ("signature_expired", "set this machine's clock, then sign the request again")
        }
        BadStamp::Signature => {
            ("signature_invalid", "sign exactly what is sent, with the key that is named, for this market")
        }
    };
    ApiError::new(StatusCode::UNAUTHORIZED, code, bad.to_string()).suggest(suggestion)
}
