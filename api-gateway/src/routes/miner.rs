//! A miner's own hosts.

use std::net::IpAddr;

use axum::{Json, extract::State, http::StatusCode};
use nave_crash_point::crash_point;
use nave_domain::{
    HostId,
    host::{HostState, Inventory},
};
use nave_sdk::wire::enrol::{HostPatch, InventorySummary, MinerHost};
use nave_store::{Departure, HostRow, StoreError};

use crate::{
    app::App,
    error::ApiError,
    extract::{self, Nothing, Path, Query},
    routes::offers,
    signed::Miner,
    view,
};

/// The miner's hosts, by name; those that have left too.
#[utoipa::path(get, path = "/v1/miner/hosts", tag = "miners", operation_id = "miner_hosts_list",
    security(("hotkey" = [])), responses((status = 200, description = "The signer's own hosts", body = Vec<MinerHost>)))]
pub(crate) async fn list(
    State(app): State<App>,
    Query(Nothing {}): Query<Nothing>,
    miner: Miner,
) -> Result<Json<Vec<MinerHost>>, ApiError> {
    let rows = app.store.hosts_of_miner(&miner.hotkey).await?;
    Ok(Json(rows.into_iter().map(host).collect()))
}

/// One host of the miner.
#[utoipa::path(get, path = "/v1/miner/hosts/{host}", tag = "miners", operation_id = "miner_hosts_show",
    params(("host" = String, Path, description = "The host's id")), security(("hotkey" = [])),
    responses((status = 200, description = "The host", body = MinerHost)))]
pub(crate) async fn show(
    State(app): State<App>,
    Path(id): Path<HostId>,
    Query(Nothing {}): Query<Nothing>,
    miner: Miner,
) -> Result<Json<MinerHost>, ApiError> {
    load(&app, &miner, id).await
}

/// Changes what the owner decides about a host. Leases that are open keep their price.
#[utoipa::path(patch, path = "/v1/miner/hosts/{host}", tag = "miners", operation_id = "miner_hosts_change",
    params(("host" = String, Path, description = "The host's id")), request_body = HostPatch,
    security(("hotkey" = [])), responses((status = 200, description = "The host", body = MinerHost)))]
pub(crate) async fn change(
    State(app): State<App>,
    Path(id): Path<HostId>,
    Query(Nothing {}): Query<Nothing>,
    miner: Miner,
) -> Result<Json<MinerHost>, ApiError> {
    let patch: HostPatch = extract::parse(&miner.body)?;
    patch.check().map_err(|problem| ApiError::refused("request_invalid", problem))?;
    let HostPatch { rate, gpu_price, term, region, paused } = patch;
    let patch = nave_store::HostPatch { rate, gpu_price, term, region, paused };
    let follows = patch.gpu_price.is_some();
    app.store.host_patch(&miner.hotkey, id, patch).await.map_err(has_left)?;
    if follows {
        app.store.prices_follow(Some(id)).await?;
    }
    load(&app, &miner, id).await
}

/// Takes a host out once its jobs are done; it gets no new ones.
#[utoipa::path(post, path = "/v1/miner/hosts/{host}/drain", tag = "miners", operation_id = "miner_hosts_drain",
    params(("host" = String, Path, description = "The host's id")), security(("hotkey" = [])),
    responses((status = 200, description = "The host", body = MinerHost)))]
pub(crate) async fn drain(
    State(app): State<App>,
    Path(id): Path<HostId>,
    Query(Nothing {}): Query<Nothing>,
    miner: Miner,
) -> Result<Json<MinerHost>, ApiError> {
    depart(&app, &miner, id, Departure::Drain).await
}

/// Takes a host out now; its jobs run again elsewhere.
#[utoipa::path(post, path = "/v1/miner/hosts/{host}/leave", tag = "miners", operation_id = "miner_hosts_leave",
    params(("host" = String, Path, description = "The host's id")), security(("hotkey" = [])),
    responses((status = 200, description = "The host", body = MinerHost)))]
pub(crate) async fn leave(
    State(app): State<App>,
    Path(id): Path<HostId>,
    Query(Nothing {}): Query<Nothing>,
    miner: Miner,
) -> Result<Json<MinerHost>, ApiError> {
    depart(&app, &miner, id, Departure::Leave).await
}

/// Asking again for what has happened meanwhile is no fault.
async fn depart(
    app: &App,
    miner: &Miner,
    id: HostId,
    departure: Departure,
) -> Result<Json<MinerHost>, ApiError> {
    let departed = app.store.host_depart(Some(&miner.hotkey), id, departure).await;
    crash_point!("gateway.miner.before_answer");
    match departed {
        Ok(_) => load(app, miner, id).await,
        Err(error @ StoreError::Stale(_)) => {
            let now = load(app, miner, id).await?;
            if now.state == HostState::Gone { Ok(now) } else { Err(has_left(error)) }
        }
        Err(error) => Err(error.into()),
    }
}

fn has_left(error: StoreError) -> ApiError {
    if !matches!(error, StoreError::Stale(_)) {
        return error.into();
    }
    ApiError::new(StatusCode::CONFLICT, "host_left", "this host has left the market")
        .suggest("enrol it anew with a new ticket")
}

async fn load(app: &App, miner: &Miner, id: HostId) -> Result<Json<MinerHost>, ApiError> {
    let rows = app.store.hosts_of_miner(&miner.hotkey).await?;
    let row = rows.into_iter().find(|row| row.host == id).ok_or(StoreError::NotFound("host"))?;
    Ok(Json(host(row)))
}

fn host(row: HostRow) -> MinerHost {
    MinerHost {
        actions: actions(row.state, row.paused),
        host: row.host,
        name: row.name,
        state: row.state,
        reason: row.reason.map(view::reason),
        paused: row.paused,
        rate: row.rate,
        gpu_price: row.gpu_price,
        term: row.term,
        region: row.region,
        trust: row.trust,
        inventory: row.inventory.as_ref().map(summary),
        proven: row.proven,
        mesh_address: row.mesh_address.and_then(|address| match address {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        }),
        heard_at: row.heard_at,
        leases: row.leases,
        enrolled_at: Some(row.enrolled_at),
    }
}

fn summary(inventory: &Inventory) -> InventorySummary {
    InventorySummary {
        capacity: offers::capacity(inventory, inventory.devices.iter()),
        cpu_model: inventory.cpu_model.clone(),
        os: inventory.os.clone(),
        runtime: view::runtime(&inventory.runtime).to_owned(),
        agent_version: inventory.agent.clone(),
    }
}

fn actions(state: HostState, paused: bool) -> Vec<String> {
    let (here, stays) = (state.is_member(), state.is_member() && state != HostState::Draining);
    let all = [
        ("pause", stays && !paused),
        ("resume", stays && paused),
        ("price", stays),
        ("term", stays),
        ("region", stays),
        ("drain", stays),
        ("leave", here),
    ];
    all.into_iter().filter(|(_, can)| *can).map(|(action, _)| action.to_owned()).collect()
}
