//! What stands around every route: unknown paths, wrong methods and panics.

use std::panic::AssertUnwindSafe;

use axum::{
    extract::Request,
    http::{Method, StatusCode, Uri},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;

use crate::error::ApiError;

/// Longest part of a path that is repeated in an answer, in characters.
const PATH_SHOWN: usize = 200;

pub(crate) async fn no_such_route(uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "route_not_found", format!("there is nothing at {}", shown(&uri)))
        .suggest("see /v1/openapi.json for every call")
}

pub(crate) async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let detail = format!("{} does not take {}", shown(&uri), method.as_str());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
        .suggest("see the header Allow, or /v1/openapi.json for every call")
}

fn shown(uri: &Uri) -> String {
    uri.path().chars().take(PATH_SHOWN).collect()
}

/// Turns a panic of a handler into an answer; the connection and the process live on.
pub(crate) async fn catch_panics(request: Request, next: Next) -> Response {
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(panic) => ApiError::internal(format!("a handler panicked: {}", said(&*panic))).into_response(),
    }
}

fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it said nothing")
}

#[cfg(test)]
mod tests {
    use axum::{Router, middleware::from_fn, routing::get};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_panicking_handler_answers_with_a_problem_that_tells_nothing() {
        async fn handler() {
            panic!("secret detail");
        }
        let app: Router = Router::new().route("/", get(handler)).layer(from_fn(catch_panics));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, app).await });
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]);
        let _ = rustls::crypto::ring::default_provider().install_default();
        let response = client.build().expect("a client").get(url).send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let text = response.text().await.expect("text");
        assert!(text.contains("\"internal\"") && !text.contains("secret"), "{text}");
    }
}
