//! What went wrong with hosts and their leases.

use axum::{Json, extract::State};
use nave_domain::{EventId, HostId};
use nave_sdk::wire::{event::ServiceEvent, rest::Page};
use serde::Deserialize;

use crate::{
    app::App,
    error::ApiError,
    extract::{Path, Query},
    page::{Limit, cut, page},
    signed::Miner,
    view,
};

/// Which events to list.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Most events in one answer; 50 if not given.
    #[serde(default)]
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Limit,
    /// `next` of the answer before.
    #[param(value_type = Option<String>)]
    before: Option<EventId>,
}

/// What went wrong with an own host and its leases, newest first, and whose fault it was.
#[utoipa::path(get, path = "/v1/miner/hosts/{host}/events", tag = "miners", operation_id = "miner_hosts_events",
    params(("host" = String, Path, description = "The host's id"), ListQuery), security(("hotkey" = [])),
    responses((status = 200, description = "A page of events", body = Page<ServiceEvent>)))]
pub(crate) async fn list(
    State(app): State<App>,
    Path(host): Path<HostId>,
    Query(query): Query<ListQuery>,
    miner: Miner,
) -> Result<Json<Page<ServiceEvent>>, ApiError> {
    let limit = query.limit;
    let mut rows = app.store.events_of_host(&miner.hotkey, host, query.before, limit.rows_and_one()).await?;
    let next = cut(&mut rows, limit, |row| row.event.to_string());
    Ok(Json(page(rows.into_iter().map(view::event).collect(), next)))
}
