//! The market's parameters.

use axum::{Json, extract::State};
use nave_sdk::wire::settlement::{Holds, Parameters, ParametersVersion};
use nave_store::ParamsRow;

use crate::{
    app::App,
    error::ApiError,
    extract::{Nothing, Query},
    routes::verdicts::Passer,
};

/// The market's parameters, with their history and what is announced. Nobody needs a key.
#[utoipa::path(get, path = "/v1/params", tag = "market", operation_id = "params_show",
    responses((status = 200, description = "Every version, the newest first", body = Parameters)))]
pub(crate) async fn show(
    State(app): State<App>,
    _: Passer,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<Parameters>, ApiError> {
    let rows = app.store.params_list().await?;
    let epoch = app.store.epoch_list(1).await?.first().map_or(0, |row| row.epoch);
    Ok(Json(Parameters { epoch, versions: versions(rows, epoch) }))
}

/// The newest of those whose epoch has come holds; what was announced before it does not any more.
fn versions(rows: Vec<ParamsRow>, epoch: i64) -> Vec<ParametersVersion> {
    let come = rows.iter().filter(|row| row.effective_epoch <= epoch);
    let now = come.max_by_key(|row| (row.effective_epoch, row.version)).map(|row| row.version);
    let version = |row: ParamsRow| ParametersVersion {
        holds: if row.effective_epoch > epoch {
            Holds::Announced
        } else if Some(row.version) == now {
            Holds::Now
        } else {
            Holds::Past
        },
        version: row.version,
        effective_epoch: row.effective_epoch,
        announced_at: row.announced_at,
        document: row.body,
    };
    rows.into_iter().map(version).collect()
}

#[cfg(test)]
mod tests {
    use nave_domain::Timestamp;
    use serde_json::Value;

    use super::*;

    #[test]
    fn one_version_holds_and_later_ones_are_announced() {
        let row = |version, effective_epoch| ParamsRow {
            version,
            effective_epoch,
            announced_at: Timestamp(0),
            body: Value::Null,
        };
        let holds: Vec<_> = versions(vec![row(4, 9), row(3, 7), row(2, 5), row(1, 0)], 7)
            .into_iter()
            .map(|version| (version.version, version.holds))
            .collect();
        assert_eq!(holds, [(4, Holds::Announced), (3, Holds::Now), (2, Holds::Past), (1, Holds::Past)]);
    }
}
