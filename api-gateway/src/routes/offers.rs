//! Offers: capacity that can be rented now.

use std::{cmp::Reverse, collections::BTreeMap};

use axum::{Json, extract::State};
use nave_domain::{
    Bytes, MicroUsd,
    host::{Device, HostState, Inventory},
};
use nave_sdk::wire::rest::{Capacity, Offer};
use nave_store::{HostRow, UsageRow};

use crate::{
    app::App,
    caller::{Caller, JobsRead},
    error::ApiError,
    extract::{Nothing, Query},
    view,
};

/// Capacity that can be rented now, cheapest first.
#[utoipa::path(get, path = "/v1/offers", tag = "market", operation_id = "offers_list",
    security(("key" = ["jobs:read"])),
    responses((status = 200, description = "Hosts with room for a job", body = Vec<Offer>)))]
pub(crate) async fn list(
    State(app): State<App>,
    _: Caller<JobsRead>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<Vec<Offer>>, ApiError> {
    let mut usage = app.store.hosts_usage().await?;
    let hosts = app.store.host_list().await?;
    let ready = hosts.into_iter().filter(|host| host.state == HostState::Ready && !host.paused);
    let mut offers: Vec<Offer> = ready
        .filter_map(|host| {
            let used = usage.remove(&host.host);
            offer(host, used.as_ref())
        })
        .collect();
    offers.sort_by_key(rank);
    Ok(Json(offers))
}

/// Order among offers: the price of one of each thing that the host has, dearer hosts
/// later; among equals the one with more free cores; then by id.
fn rank(offer: &Offer) -> (i128, Reverse<i64>, nave_domain::HostId) {
    let part = |price: MicroUsd, is_there: bool| if is_there { i128::from(price.0) } else { 0 };
    let gpu = part(offer.rate.gpu_hour, !offer.total.gpus.is_empty());
    let price = gpu + part(offer.rate.vcpu_hour, true) + part(offer.rate.gib_hour, true);
    (price, Reverse(offer.free.milli_cpu), offer.host)
}

/// What a host offers; nothing when no job would fit.
fn offer(host: HostRow, used: Option<&UsageRow>) -> Option<Offer> {
    let inventory = host.inventory?;
    let free = free(&inventory, used);
    if free.milli_cpu == 0 || free.memory == Bytes::ZERO || free.disk == Bytes::ZERO {
        return None;
    }
    Some(Offer {
        host: host.host,
        host_name: host.name,
        free,
        total: capacity(&inventory, inventory.rentable_devices()),
        rate: host.rate,
        term: host.term,
        trust: host.trust,
        runtime: view::runtime(&inventory.runtime).to_owned(),
    })
}

fn free(inventory: &Inventory, used: Option<&UsageRow>) -> Capacity {
    let is_free = |device: &&Device| used.is_none_or(|used| !used.devices.contains(&device.uuid));
    let whole = capacity(inventory, inventory.rentable_devices().filter(is_free));
    let Some(used) = used else { return whole };
    Capacity {
        gpus: whole.gpus,
        milli_cpu: rest(whole.milli_cpu, used.milli_cpu.0),
        memory: Bytes(rest(whole.memory.0, used.memory.0)),
        disk: Bytes(rest(whole.disk.0, used.disk.0)),
    }
}

/// What is left; nothing when a host has shrunk under its leases.
fn rest(whole: i64, used: i64) -> i64 {
    whole.saturating_sub(used).max(0)
}

pub(super) fn capacity<'a>(inventory: &'a Inventory, devices: impl Iterator<Item = &'a Device>) -> Capacity {
    let mut gpus: BTreeMap<String, u32> = BTreeMap::new();
    for device in devices {
        *gpus.entry(device.label()).or_default() += 1;
    }
    Capacity { gpus, milli_cpu: inventory.milli_cpu.0, memory: inventory.memory, disk: inventory.disk }
}
