//! The hosts' protocol: a spec down, reports up, and byte channels beside them.

mod blobs;
mod earnings;
pub mod effects;
mod logs;
mod peer;
mod proof;
pub(crate) mod releases;
mod report;
mod spec;
mod verdicts;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware::from_fn,
    routing::{get, post, put},
};
use nave_sdk::wire::host::{DOCUMENT_BYTES_MAX, LOG_CHUNK_BYTES_MAX};

use crate::{app::App, guard};

/// The whole protocol, ready to serve on a listener that tells who its peers are.
pub(crate) fn router(app: &App) -> Router {
    Router::new()
        .route("/host/v1/spec", get(spec::show))
        .route("/host/v1/report", post(report::take).layer(DefaultBodyLimit::max(DOCUMENT_BYTES_MAX)))
        .route(
            "/host/v1/leases/{lease}/logs/{stream}",
            post(logs::append).layer(DefaultBodyLimit::max(LOG_CHUNK_BYTES_MAX)),
        )
        .route("/host/v1/blobs/{sha256}", put(blobs::store).layer(DefaultBodyLimit::disable()))
        .route("/host/v1/verdicts", get(verdicts::list))
        .route("/host/v1/earnings", get(earnings::list))
        .route("/host/v1/releases/{version}/{target}", get(releases::show))
        .fallback(guard::no_such_route)
        .method_not_allowed_fallback(guard::no_such_method)
        .layer(from_fn(guard::catch_panics))
        .with_state(app.clone())
}
