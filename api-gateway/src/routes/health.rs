//! Whether the control plane works.

use std::time::Duration;

use axum::{Json, extract::State};
use nave_sdk::wire::rest::Health;
use nave_store::{CloudRow, StoreError};
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
    let asked = async {
        let image = app.store.default_image().await?;
        Ok::<_, StoreError>((image, app.store.cloud_list().await?))
    };
    let (default_image, problems) = match timeout(DATABASE_MAX, asked).await {
        Ok(Ok((image, clouds))) => (image, clouds.iter().filter_map(abandoned).collect()),
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

/// What is wrong with a cloud of which machines are open that no scheduler has in its file.
fn abandoned(cloud: &CloudRow) -> Option<String> {
    let is_abandoned = cloud.open > 0 && !cloud.is_kept;
    is_abandoned.then(|| {
        format!(
            "nobody looks after the rented machines of {}: the scheduler is down, or it is not in its file of clouds",
            cloud.cloud
        )
    })
}
