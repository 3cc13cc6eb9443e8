//! Whether the control plane works.

use std::time::Duration;

use axum::{Json, extract::State};
use nave_sdk::wire::rest::Health;
use tokio::time::timeout;

use crate::{
    app::App,
    extract::{Nothing, Query},
};

/// Longest wait for the database before it counts as unreachable.
const DATABASE_MAX: Duration = Duration::from_secs(2);

/// Whether the control plane works, and what a job runs that names no image.
#[utoipa::path(get, path = "/v1/health", tag = "health", operation_id = "health",
    responses((status = 200, description = "How the control plane is", body = Health)))]
pub(crate) async fn show(State(app): State<App>, Query(Nothing {}): Query<Nothing>) -> Json<Health> {
    let asked = timeout(DATABASE_MAX, app.store.default_image()).await;
    let (default_image, problems) = match asked {
        Ok(Ok(image)) => (image, Vec::new()),
        Ok(Err(_)) | Err(_) => (None, vec!["the market's database does not answer".to_owned()]),
    };
    let status = if problems.is_empty() { "ok" } else { "degraded" };
    Json(Health {
        status: status.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        problems,
        default_image,
    })
}
