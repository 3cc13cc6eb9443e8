//! Hosts, as the market knows them.

use axum::{Json, extract::State};
use nave_sdk::wire::rest::Host;
use nave_store::HostRow;

use crate::{
    app::App,
    caller::{Caller, HostsRead},
    error::ApiError,
    extract::{Nothing, Query},
    view,
};

/// Every host that has not left, by name.
#[utoipa::path(get, path = "/v1/hosts", tag = "market", operation_id = "hosts_list",
    security(("key" = ["hosts:read"])), responses((status = 200, description = "Hosts", body = Vec<Host>)))]
pub(crate) async fn list(
    State(app): State<App>,
    _: Caller<HostsRead>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<Vec<Host>>, ApiError> {
    Ok(Json(app.store.host_list().await?.into_iter().map(host).collect()))
}

fn host(row: HostRow) -> Host {
    Host {
        host: row.host,
        name: row.name,
        hotkey: row.hotkey,
        state: row.state,
        reason: row.reason.map(view::reason),
        paused: row.paused,
        term: row.term,
        region: row.region,
        trust: row.trust,
        inventory: row.inventory,
        rate: row.rate,
        heard_at: row.heard_at,
        leases: row.leases,
    }
}
