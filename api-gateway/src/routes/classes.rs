//! Classes of devices: what they cost in clouds, and how much of them is leased.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use nave_sdk::wire::rest::{Baseline, DeviceClass};
use nave_store::{BaselineRow, BaselineSource};

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
    let seen = app.store.class_use().await?;
    let mut rows: BTreeMap<String, Vec<BaselineRow>> =
        seen.keys().map(|class| (class.clone(), Vec::new())).collect();
    for row in app.store.baseline_list().await? {
        rows.entry(row.class.clone()).or_default().push(row);
    }
    let class = |(class, mut rows): (String, Vec<BaselineRow>)| {
        rows.sort_by_key(|row| row.area);
        let used = seen.get(&class).copied().unwrap_or_default();
        DeviceClass {
            class,
            baselines: rows.into_iter().map(baseline).collect(),
            utilisation: used.utilisation(),
        }
    };
    Ok(Json(rows.into_iter().map(class).collect()))
}

fn baseline(row: BaselineRow) -> Baseline {
    let (listed, source) = match row.source {
        BaselineSource::Quotes(clouds) => (false, clouds),
        BaselineSource::List(source) => (true, source),
    };
    let region = row.area.map(|area| area.name().to_owned());
    Baseline { region, gpu_hour: row.gpu_hour, listed, source, fetched_at: row.fetched_at }
}
