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
        Ok(Ok((image, clouds))) => (image, abandoned(&clouds)),
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

/// What is wrong with clouds, whose names are for the operator.
fn abandoned(clouds: &[CloudRow]) -> Vec<String> {
    let why = "nobody looks after machines that are rented: the scheduler is down, or their cloud is not in its file of \
               clouds; `naved admin machines` says which";
    clouds.iter().any(is_abandoned).then(|| why.to_owned()).into_iter().collect()
}

/// Whether machines of a cloud are open that no scheduler has in its file.
fn is_abandoned(cloud: &CloudRow) -> bool {
    cloud.open > 0 && !cloud.is_kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_that_nobody_looks_after_are_a_problem() {
        let cloud = |open, is_kept| {
            let (cloud, looked_at, resumed_at, stop) = ("lambda".to_owned(), None, None, None);
            CloudRow { cloud, looked_at, resumed_at, stop, open, is_kept }
        };
        assert_eq!(abandoned(&[cloud(2, true), cloud(0, false)]), Vec::<String>::new());
        let problems = abandoned(&[cloud(2, true), cloud(1, false)]);
        assert!(problems.len() == 1 && !problems[0].contains("lambda"), "{problems:?}");
    }
}
