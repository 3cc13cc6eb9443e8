//! Who calls: the bearer token, its scopes and its rate.

use std::marker::PhantomData;

use axum::{
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use nave_domain::CustomerId;

use crate::{app::App, error::ApiError, throttle::too_fast};

/// A scope that a route asks for.
pub(crate) trait Scope: Send + Sync + 'static {
    /// Its name in keys.
    const NAME: &'static str;
}

macro_rules! scopes {
    ($($(#[$doc:meta])* $scope:ident = $name:literal;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $scope;

        impl Scope for $scope {
            const NAME: &'static str = $name;
        }
    )*};
}

scopes! {
    /// Jobs, logs, results, receipts, offers and epochs.
    JobsRead = "jobs:read";
    /// Submitting and cancelling.
    JobsWrite = "jobs:write";
    /// Balance and ledger.
    BalanceRead = "balance:read";
    /// Hosts.
    HostsRead = "hosts:read";
    /// API keys.
    KeysWrite = "keys:write";
}

/// The customer behind a request, whose key has scope `S`.
pub(crate) struct Caller<S> {
    pub(crate) customer: CustomerId,
    /// What the key may do.
    pub(crate) scopes: Vec<String>,
    scope: PhantomData<S>,
}

impl<S: Scope> FromRequestParts<App> for Caller<S> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        let caller = parts
            .extensions
            .remove::<nave_store::Caller>()
            .ok_or_else(|| ApiError::internal("a route that asks for a caller lies outside authenticate"))?;
        if !caller.scopes.iter().any(|scope| scope == S::NAME) {
            let detail = format!("this key lacks the scope {}", S::NAME);
            return Err(ApiError::new(StatusCode::FORBIDDEN, "scope_missing", detail)
                .suggest(format!("use a key with the scope {}", S::NAME)));
        }
        Ok(Self { customer: caller.customer, scopes: caller.scopes, scope: PhantomData })
    }
}

/// Lets known keys pass, at their rate.
pub(crate) async fn authenticate(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let caller = match identify(&app, request.headers()).await {
        Ok(caller) => caller,
        Err(error) => return error.into_response(),
    };
    let standing = app.throttle.take(caller.key);
    let mut response = if standing.allowed {
        request.extensions_mut().insert(caller);
        next.run(request).await
    } else {
        too_fast("key", standing.next_s).into_response()
    };
    standing.write(response.headers_mut());
    response
}

async fn identify(app: &App, headers: &HeaderMap) -> Result<nave_store::Caller, ApiError> {
    let token = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    let Some(token) = token else {
        return Err(unauthorized("token_missing", "the request carries no API key"));
    };
    let known = app.store.key_check(token).await?;
    known.ok_or_else(|| unauthorized("token_unknown", "this API key is unknown or was revoked"))
}

fn unauthorized(code: &'static str, detail: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, code, detail)
        .suggest("send Authorization: Bearer with a valid key")
}
