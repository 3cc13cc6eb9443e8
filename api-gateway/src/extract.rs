//! Reading requests. axum's own refusals become problem documents here.

use std::time::Duration;

use axum::{
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE, request::Parts},
};
use bytes::Bytes;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::timeout;

use crate::error::ApiError;

/// Longest time that a body may take.
const BODY_MAX: Duration = Duration::from_secs(30);

/// Query parameters; unknown ones are refused by name where `T` denies unknown fields.
pub(crate) struct Query<T>(pub(crate) T);

/// The query of a route that takes none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let read = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        read.map(|query| Self(query.0)).map_err(|refused| {
            ApiError::new(StatusCode::BAD_REQUEST, "query_invalid", refused.body_text())
                .suggest("correct or remove the query parameter")
        })
    }
}

/// Parameters in the path, such as an id.
pub(crate) struct Path<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let read = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        read.map(|path| Self(path.0)).map_err(|refused| {
            ApiError::new(StatusCode::BAD_REQUEST, "path_invalid", refused.body_text())
                .suggest("correct the id in the path")
        })
    }
}

/// The bytes of a body, within the route's limit.
pub(crate) struct Raw(pub(crate) Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Ok(read) = timeout(BODY_MAX, Bytes::from_request(request, state)).await else {
            return Err(too_slow());
        };
        read.map(Self).map_err(|refused| match refused.status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_large(),
            status => ApiError::new(status, "body_unreadable", "the body broke off").retryable(),
        })
    }
}

/// The refusal of a body beyond the route's limit.
pub(crate) fn too_large() -> ApiError {
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "the body is larger than this call takes")
        .suggest("send less")
}

/// The refusal of a body that takes too long.
pub(crate) fn too_slow() -> ApiError {
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", "the body did not arrive in time")
        .suggest("send it again")
        .retryable()
}

/// A JSON body, with its bytes as they came.
pub(crate) struct Json<T> {
    pub(crate) value: T,
    pub(crate) bytes: Bytes,
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "content_type_unsupported",
                "the body is not declared as JSON",
            )
            .suggest("send the header Content-Type: application/json"));
        }
        let Raw(bytes) = Raw::from_request(request, state).await?;
        Ok(Self { value: parse(&bytes)?, bytes })
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(declared) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    declared.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

/// Reads a JSON document: 400 when it is none, 422 naming the field when it is another one.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| {
        if error.is_data() {
            ApiError::refused("body_invalid", error.to_string())
                .suggest("correct the field; /v1/openapi.json describes every one")
        } else {
            ApiError::new(StatusCode::BAD_REQUEST, "body_malformed", format!("the body is not JSON: {error}"))
        }
    })
}
