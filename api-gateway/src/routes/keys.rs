//! API keys of a customer.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use nave_domain::KeyId;
use nave_sdk::wire::rest::{Key, KeyRequest, NewKey, SCOPES};

use crate::{
    app::App,
    caller::{Caller, KeysWrite},
    error::ApiError,
    extract::{self, Nothing, Path, Query},
    view,
};

/// Longest label, in bytes.
const LABEL_BYTES_MAX: usize = 100;
/// Most working keys of one customer.
const KEYS_MAX: usize = 100;

/// The customer's working keys, oldest first.
#[utoipa::path(get, path = "/v1/keys", tag = "keys", operation_id = "keys_list",
    security(("key" = ["keys:write"])), responses((status = 200, description = "Keys without secrets", body = Vec<Key>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller<KeysWrite>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<Vec<Key>>, ApiError> {
    let rows = app.store.key_list(caller.customer).await?;
    Ok(Json(rows.into_iter().map(view::key).collect()))
}

/// Makes a key. Its token is in this answer and nowhere else.
#[utoipa::path(post, path = "/v1/keys", tag = "keys", operation_id = "keys_create", request_body = KeyRequest,
    security(("key" = ["keys:write"])), responses((status = 201, description = "The key and its token", body = NewKey)))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller<KeysWrite>,
    Query(Nothing {}): Query<Nothing>,
    body: extract::Json<KeyRequest>,
) -> Result<Response, ApiError> {
    let mut request = body.value;
    request.scopes.sort();
    request.scopes.dedup();
    check(&request, &caller.scopes)?;
    if app.store.key_list(caller.customer).await?.len() >= KEYS_MAX {
        let detail = format!("there are {KEYS_MAX} working keys already");
        return Err(ApiError::new(StatusCode::CONFLICT, "too_many_keys", detail).suggest("end one first"));
    }
    let (row, token) = app.store.key_create(caller.customer, &request.label, &request.scopes).await?;
    Ok((StatusCode::CREATED, Json(NewKey { key: view::key(row), token })).into_response())
}

/// A key cannot make one that may do more than itself.
fn check(request: &KeyRequest, own: &[String]) -> Result<(), ApiError> {
    let label = &request.label;
    if label.is_empty() || label.len() > LABEL_BYTES_MAX || label.contains(char::is_control) {
        let detail = format!("label: it has 1 to {LABEL_BYTES_MAX} bytes and no control characters");
        return Err(ApiError::refused("request_invalid", detail));
    }
    let unknown = request.scopes.iter().find(|scope| !SCOPES.contains(&scope.as_str()));
    if request.scopes.is_empty() || unknown.is_some() {
        let detail = format!("scopes: name at least one of {} and no other", SCOPES.join(", "));
        return Err(ApiError::refused("request_invalid", detail));
    }
    match request.scopes.iter().find(|scope| !own.contains(scope)) {
        None => Ok(()),
        Some(scope) => {
            let detail = format!("this key lacks the scope {scope}, so it cannot give it");
            Err(ApiError::new(StatusCode::FORBIDDEN, "scope_missing", detail)
                .suggest("use a key that has every scope of the new one"))
        }
    }
}

/// Ends a key; ending it again changes nothing.
#[utoipa::path(delete, path = "/v1/keys/{key}", tag = "keys", operation_id = "keys_revoke",
    params(("key" = String, Path, description = "The key's id")), security(("key" = ["keys:write"])),
    responses((status = 204, description = "The key works no more")))]
pub(crate) async fn revoke(
    State(app): State<App>,
    caller: Caller<KeysWrite>,
    Path(key): Path<KeyId>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<StatusCode, ApiError> {
    app.store.key_revoke(caller.customer, key).await?;
    Ok(StatusCode::NO_CONTENT)
}
