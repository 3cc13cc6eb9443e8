//! Offers: capacity that can be rented now.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use axum::{Json, extract::State, http::StatusCode};
use nave_domain::{
    Bytes, MicroUsd, MilliCpu,
    host::{Device, HostState, Inventory, Trust},
    job::{GpuRequest, Isolation, JobRequest, TermWish},
    wish::{Region, Terms, is_model, unmet},
};
use nave_sdk::wire::rest::{Capacity, DeviceGroup, Offer};
use nave_store::{Baselines, HostRow, Occupied};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    app::App,
    caller::{Caller, JobsRead},
    error::ApiError,
    extract::Query,
    view,
};

/// Which offers to list; each part as in a job's request.
#[derive(Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct OffersQuery {
    /// Only where so many GPUs of one kind are free.
    #[param(minimum = 1, maximum = 64)]
    gpus: Option<u8>,
    /// Only GPUs with so many bytes of memory at least.
    #[param(value_type = Option<i64>)]
    vram: Option<Bytes>,
    /// Only GPUs with so many bytes of memory at most.
    #[param(value_type = Option<i64>)]
    vram_max: Option<Bytes>,
    /// Only GPUs of one of these models or classes, separated by commas.
    models: Option<String>,
    /// Only where so many thousandths of a virtual CPU are free.
    #[param(value_type = Option<i64>)]
    milli_cpu: Option<MilliCpu>,
    /// Only where so many bytes of memory are free.
    #[param(value_type = Option<i64>)]
    memory: Option<Bytes>,
    /// Only where so many bytes of disk are free.
    #[param(value_type = Option<i64>)]
    disk: Option<Bytes>,
    /// Only hosts that are there.
    #[param(value_type = Option<String>)]
    region: Option<Region>,
    /// Only hosts on this term.
    #[param(inline)]
    #[serde(default)]
    term: TermWish,
    /// Only hosts of these trust classes, separated by commas.
    trust: Option<String>,
    /// Only what a job can have for itself in this way.
    #[param(inline)]
    #[serde(default)]
    isolation: Isolation,
    /// Only hosts where a GPU-hour, or without GPUs an hour of what is asked for, costs at most so much.
    #[param(value_type = Option<i64>)]
    max_price: Option<MicroUsd>,
}

/// What somebody looks for.
struct Wanted {
    request: JobRequest,
    trust: BTreeSet<Trust>,
    milli_cpu: i64,
    memory: Bytes,
    disk: Bytes,
}

impl OffersQuery {
    fn read(self) -> Result<Wanted, ApiError> {
        let models: Vec<String> = list("models", self.models.as_deref())?;
        let asks_for_gpus =
            self.gpus.is_some() || self.vram.is_some() || self.vram_max.is_some() || !models.is_empty();
        let mut request = JobRequest::of(vec!["-".to_owned()]);
        request.resources.gpu = asks_for_gpus.then(|| GpuRequest {
            count: self.gpus.unwrap_or(1),
            vram: self.vram.unwrap_or_default(),
            vram_max: self.vram_max,
            models,
            share: None,
        });
        request.resources.milli_cpu = self.milli_cpu.unwrap_or(request.resources.milli_cpu);
        request.resources.memory = self.memory.unwrap_or(request.resources.memory);
        request.resources.disk = self.disk.unwrap_or(request.resources.disk);
        request.region = self.region;
        request.term = self.term;
        request.isolation = self.isolation;
        request.max_price = self.max_price;
        request.trust = Trust::ALL.into();
        let trust = match self.trust {
            Some(trust) => list("trust", Some(&trust))?.into_iter().collect(),
            None => request.trust.clone(),
        };
        request.check().map_err(|bad| bad_query(&bad.to_string()))?;
        Ok(Wanted {
            milli_cpu: self.milli_cpu.unwrap_or(MilliCpu(1)).0,
            memory: self.memory.unwrap_or(Bytes(1)),
            disk: self.disk.unwrap_or(Bytes(1)),
            trust,
            request,
        })
    }
}

/// Values that are separated by commas.
fn list<T: DeserializeOwned>(field: &str, text: Option<&str>) -> Result<Vec<T>, ApiError> {
    let parts = text.into_iter().flat_map(|text| text.split(',')).map(|part| part.trim().to_owned());
    let values = parts.map(|part| serde_json::from_value(serde_json::Value::String(part)));
    values.collect::<Result<_, _>>().map_err(|error| bad_query(&format!("{field}: {error}")))
}

fn bad_query(detail: &str) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "query_invalid", detail)
}

/// Capacity that can be rented now, cheapest first: one offer for each host without GPUs, and for each
/// kind of GPUs of the others.
#[utoipa::path(get, path = "/v1/offers", tag = "market", operation_id = "offers_list", params(OffersQuery),
    security(("key" = ["jobs:read"])),
    responses((status = 200, description = "Hosts with room for a job", body = Vec<Offer>)))]
pub(crate) async fn list_offers(
    State(app): State<App>,
    _: Caller<JobsRead>,
    Query(query): Query<OffersQuery>,
) -> Result<Json<Vec<Offer>>, ApiError> {
    let wanted = query.read()?;
    let baselines = app.store.baselines().await?;
    let mut occupied = app.store.hosts_occupied().await?;
    let hosts = app.store.host_list().await?;
    let ready = hosts.into_iter().filter(|host| host.state == HostState::Ready && !host.paused);
    let mut offers: Vec<Offer> = ready
        .flat_map(|host| {
            let parts = occupied.remove(&host.host).unwrap_or_default();
            offers(&host, &parts, &baselines)
        })
        .filter(|offer| is_wanted(offer, &wanted))
        .collect();
    offers.sort_by_key(rank);
    Ok(Json(offers))
}

fn is_wanted(offer: &Offer, wanted: &Wanted) -> bool {
    let terms = Terms { term: offer.term, region: offer.region.clone(), trust: offer.trust };
    let isolation = match wanted.request.isolation {
        Isolation::Any | Isolation::Device => true,
        Isolation::Host => offer.isolation == Isolation::Host,
    };
    let devices = match (&wanted.request.resources.gpu, &offer.devices) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(gpu), Some(devices)) => {
            devices.free >= u32::from(gpu.count)
                && gpu.fits(devices.vram)
                && gpu.choices().any(|model| {
                    model.is_none_or(|model| is_model(model, &devices.model, devices.class.as_deref()))
                })
        }
    };
    let room = offer.free.milli_cpu >= wanted.milli_cpu
        && offer.free.memory >= wanted.memory
        && offer.free.disk >= wanted.disk;
    // An offer is shown with what is known of its GPUs, whatever a job needs of them.
    let trust = wanted.trust.contains(&offer.trust);
    room && devices && isolation && trust && unmet(&wanted.request, &terms, offer.rate).is_none()
}

/// Order among offers: the price of one of each thing that is offered, dearer ones
/// later; among equals the one with more free cores; then by id.
fn rank(offer: &Offer) -> (i128, Reverse<i64>, nave_domain::HostId, Option<String>) {
    let part = |price: MicroUsd, is_there: bool| if is_there { i128::from(price.0) } else { 0 };
    let gpu = part(offer.rate.gpu_hour, offer.devices.is_some());
    let price = gpu + part(offer.rate.vcpu_hour, true) + part(offer.rate.gib_hour, true);
    let model = offer.devices.as_ref().map(|devices| devices.model.clone());
    (price, Reverse(offer.free.milli_cpu), offer.host, model)
}

/// What a host offers; nothing when no job would fit.
fn offers(host: &HostRow, parts: &[Occupied], baselines: &Baselines) -> Vec<Offer> {
    let Some(inventory) = &host.inventory else { return Vec::new() };
    // Whoever has it alone shares it with nobody.
    if parts.iter().any(|part| part.alone) {
        return Vec::new();
    }
    let groups = groups(host, inventory, parts);
    let of = |devices: Option<DeviceGroup>| offer(host, inventory, parts, devices, baselines);
    if groups.is_empty() {
        of(None).into_iter().collect()
    } else {
        groups.into_iter().map(Some).filter_map(of).collect()
    }
}

/// The GPUs of a host by what they are.
fn groups(host: &HostRow, inventory: &Inventory, parts: &[Occupied]) -> Vec<DeviceGroup> {
    let mut groups: BTreeMap<_, DeviceGroup> = BTreeMap::new();
    for device in inventory.rentable_devices() {
        let proven = host.proven.as_ref().and_then(|proven| proven.device(&device.uuid));
        let class = proven.and_then(|proven| proven.class.clone());
        let group = groups.entry((device.label(), device.vram, class.clone())).or_insert_with(|| {
            DeviceGroup { model: device.label(), class, vram: device.vram, free: 0, total: 0 }
        });
        group.total += 1;
        group.free += u32::from(parts.iter().all(|part| !part.devices.contains(&device.uuid)));
    }
    groups.into_values().collect()
}

fn offer(
    host: &HostRow,
    inventory: &Inventory,
    parts: &[Occupied],
    devices: Option<DeviceGroup>,
    baselines: &Baselines,
) -> Option<Offer> {
    let gpus = |count: fn(&DeviceGroup) -> u32| {
        devices.iter().map(|group| (group.model.clone(), count(group))).collect::<BTreeMap<_, _>>()
    };
    let free = Capacity {
        gpus: gpus(|group| group.free),
        milli_cpu: rest(inventory.milli_cpu.0, parts.iter().map(|part| part.size.milli_cpu.0)),
        memory: Bytes(rest(inventory.memory.0, parts.iter().map(|part| part.size.memory.0))),
        disk: Bytes(rest(inventory.disk.0, parts.iter().map(|part| part.disk.0))),
    };
    if free.milli_cpu == 0 || free.memory == Bytes::ZERO || free.disk == Bytes::ZERO {
        return None;
    }
    let class = devices.as_ref().and_then(|group| group.class.as_deref());
    let baseline = class.and_then(|class| baselines.of(class, host.region.as_ref()));
    Some(Offer {
        host: host.host,
        host_name: host.name.clone(),
        total: Capacity { gpus: gpus(|group| group.total), ..whole(inventory) },
        free,
        rate: host.rate,
        term: host.term,
        region: host.region.clone(),
        isolation: if parts.is_empty() { Isolation::Host } else { Isolation::Device },
        trust: host.trust,
        baseline,
        saving: view::saving(baseline, host.rate),
        runtime: view::runtime(&inventory.runtime).to_owned(),
        devices,
    })
}

/// What is left; nothing when a host has shrunk under its leases.
fn rest(whole: i64, used: impl Iterator<Item = i64>) -> i64 {
    used.fold(whole, i64::saturating_sub).max(0)
}

fn whole(inventory: &Inventory) -> Capacity {
    let (milli_cpu, memory, disk) = (inventory.milli_cpu.0, inventory.memory, inventory.disk);
    Capacity { gpus: BTreeMap::new(), milli_cpu, memory, disk }
}

pub(super) fn capacity<'a>(inventory: &'a Inventory, devices: impl Iterator<Item = &'a Device>) -> Capacity {
    let mut gpus: BTreeMap<String, u32> = BTreeMap::new();
    for device in devices {
        *gpus.entry(device.label()).or_default() += 1;
    }
    Capacity { gpus, ..whole(inventory) }
}
