//! Classes of devices: what they cost in clouds, and how much of them is leased.

use std::collections::BTreeSet;

use axum::{Json, extract::State};
use nave_sdk::wire::rest::DeviceClass;

use crate::{
    app::App,
    caller::{Caller, JobsRead},
    error::ApiError,
    extract::{Nothing, Query},
};

/// Every class of which something is known, by name.
#[utoipa::path(get, path = "/v1/classes", tag = "market", operation_id = "classes_list",
    security(("key" = ["jobs:read"])),
    responses((status = 200, description = "The classes", body = Vec<DeviceClass>)))]
pub(crate) async fn list(
    State(app): State<App>,
    _caller: Caller<JobsRead>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<Vec<DeviceClass>>, ApiError> {
    let (baselines, seen) = (app.store.baselines().await?, app.store.class_use().await?);
    let names: BTreeSet<&str> = baselines.classes().chain(seen.keys().map(String::as_str)).collect();
    let class = |name: &str| {
        let (baseline, used) = (baselines.of(name, None), seen.get(name).copied().unwrap_or_default());
        DeviceClass {
            class: name.to_owned(),
            baseline,
            utilisation: used.utilisation(),
            standby: used.standby(baseline.unwrap_or_default()),
        }
    };
    Ok(Json(names.into_iter().map(class).collect()))
}
