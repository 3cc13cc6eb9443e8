//! Offers: capacity that can be rented now.

mod groups;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use axum::{Json, extract::State, http::StatusCode};
use nave_domain::{
    Bytes, CustomerId, MicroUsd, MilliCpu,
    fraction::{Fraction, WHOLE},
    host::{Device, HostState, Inventory, Trust},
    job::{GpuRequest, Isolation, JobRequest, TermWish},
    rate::{self, Rate, Size},
    wish::{Region, Terms, unmet},
};
use nave_sdk::wire::rest::{Capacity, DeviceGroup, Offer, OfferedFraction};
use nave_store::{Baselines, HostRow, Occupied};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    app::App,
    caller::{Caller, JobsRead},
    error::ApiError,
    extract::Query,
    view,
};
use groups::{Gpus, Group, Part};

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
    /// Only where so many thousandths of a GPU's computing can be had, with `vram` of its memory: fractions that
    /// suffice, or where none is free whole GPUs, as for a job.
    #[param(minimum = 1, maximum = 1000)]
    share: Option<u16>,
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
        let asks_for_gpus = self.gpus.is_some()
            || self.vram.is_some()
            || self.vram_max.is_some()
            || self.share.is_some()
            || !models.is_empty();
        let mut request = JobRequest::of(vec!["-".to_owned()]);
        request.resources.gpu = asks_for_gpus.then(|| GpuRequest {
            count: self.gpus.unwrap_or(1),
            vram: self.vram.unwrap_or_default(),
            vram_max: self.vram_max,
            models,
            share: self.share,
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
/// kind of GPUs of the others, and of slices of them. Shares of GPUs are listed where `share` is asked for.
#[utoipa::path(get, path = "/v1/offers", tag = "market", operation_id = "offers_list", params(OffersQuery),
    security(("key" = ["jobs:read"])),
    responses((status = 200, description = "Hosts with room for a job", body = Vec<Offer>)))]
pub(crate) async fn list_offers(
    State(app): State<App>,
    caller: Caller<JobsRead>,
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
            offers(&host, &parts, &baselines, &wanted, caller.customer)
        })
        .collect();
    // Whoever accepts a fraction gets no more where there is one.
    if wanted.accepts_fraction() && offers.iter().any(|offer| offer.fraction.is_some()) {
        offers.retain(|offer| offer.fraction.is_some());
    }
    offers.sort_by_key(rank);
    Ok(Json(offers))
}

impl Wanted {
    fn accepts_fraction(&self) -> bool {
        let gpu = self.request.resources.gpu.as_ref();
        gpu.is_some_and(|gpu| Fraction::wanted(gpu, self.request.isolation).is_some())
    }

    /// Whether a host's GPUs will do, or for whoever wants none whatever it has.
    fn takes_gpus(&self, group: Option<&Group>) -> bool {
        let Some(gpu) = &self.request.resources.gpu else { return true };
        group.is_some_and(|Group { known, devices, part }| {
            let suffices = match part {
                Some(part) => part.free > 0,
                None => devices.free >= u32::from(gpu.count) && gpu.fits(devices.vram),
            };
            suffices && gpu.choices().any(|model| model.is_none_or(|model| known.is(model)))
        })
    }

    fn takes(&self, offer: &Offer) -> bool {
        let terms = Terms { term: offer.term, region: offer.region.clone(), trust: offer.trust };
        let isolation = match self.request.isolation {
            Isolation::Any | Isolation::Device => true,
            Isolation::Host => offer.isolation == Isolation::Host,
        };
        let room = offer.free.milli_cpu >= self.milli_cpu
            && offer.free.memory >= self.memory
            && offer.free.disk >= self.disk;
        // An offer is shown with what is known of its GPUs, whatever a job needs of them.
        let trust = self.trust.contains(&offer.trust);
        let rate = offer.fraction.as_ref().map_or(offer.rate, |part| offer.rate.for_part(part.paid));
        room && isolation && trust && unmet(&self.request, &terms, rate).is_none()
    }
}

/// Order among offers: the price of one of each thing that is offered, dearer ones
/// later; among equals the one with more free cores; then by id.
fn rank(offer: &Offer) -> (i128, Reverse<i64>, nave_domain::HostId, Option<String>) {
    let gpu = match (&offer.devices, &offer.fraction) {
        (None, _) => 0,
        (Some(_), None) => i128::from(offer.rate.gpu_hour.0),
        (Some(_), Some(part)) => i128::from(part.gpu_hour.0),
    };
    let price = gpu + i128::from(offer.rate.vcpu_hour.0) + i128::from(offer.rate.gib_hour.0);
    let model = offer.devices.as_ref().map(|devices| devices.model.clone());
    (price, Reverse(offer.free.milli_cpu), offer.host, model)
}

/// What a host offers of what is wanted; nothing when no job would fit.
fn offers(
    host: &HostRow,
    parts: &[Occupied],
    baselines: &Baselines,
    wanted: &Wanted,
    customer: CustomerId,
) -> Vec<Offer> {
    let Some(inventory) = &host.inventory else { return Vec::new() };
    // Whoever has it alone shares it with nobody.
    if parts.iter().any(|part| part.alone) {
        return Vec::new();
    }
    let gpus = Gpus { inventory, proven: host.proven.as_ref(), parts };
    let mut groups: Vec<Option<Group>> = gpus.whole().into_iter().map(Some).collect();
    groups.extend(gpus.fractions(&wanted.request, customer).into_iter().map(Some));
    if groups.is_empty() {
        groups.push(None);
    }
    let wanted_groups = groups.into_iter().filter(|group| wanted.takes_gpus(group.as_ref()));
    let offers = wanted_groups.filter_map(|group| offer(host, inventory, parts, group, baselines));
    offers.filter(|offer| wanted.takes(offer)).collect()
}

fn offer(
    host: &HostRow,
    inventory: &Inventory,
    parts: &[Occupied],
    group: Option<Group>,
    baselines: &Baselines,
) -> Option<Offer> {
    let (devices, part) = group.map_or((None, None), |group| (Some(group.devices), group.part));
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
    let saving = rate::saving(baseline, gpu_share(inventory), host.rate);
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
        saving,
        runtime: view::runtime(&inventory.runtime).to_owned(),
        devices,
        fraction: part.map(|part| fraction(part, host.rate, baseline, saving)),
    })
}

/// What comes with one GPU where jobs share a host evenly, as they share a cloud's machine.
fn gpu_share(inventory: &Inventory) -> Size {
    let gpus = i64::try_from(inventory.devices.len().max(1)).unwrap_or(i64::MAX);
    Size {
        milli_gpu: WHOLE,
        milli_cpu: MilliCpu(inventory.milli_cpu.0 / gpus),
        memory: Bytes(inventory.memory.0 / gpus),
    }
}

fn fraction(part: Part, rate: Rate, baseline: Option<MicroUsd>, saving: Option<MicroUsd>) -> OfferedFraction {
    let rate = rate.for_part(part.paid);
    let clouds = |gpu_hour: MicroUsd| Rate { gpu_hour, ..Rate::default() }.for_part(part.paid).gpu_hour;
    // Rounded down, below zero, too.
    let saved =
        |saving: MicroUsd| (i128::from(saving.0) * i128::from(part.paid.0)).div_euclid(i128::from(WHOLE.0));
    OfferedFraction {
        profile: part.profile,
        share: part.fraction.milli,
        vram: part.fraction.vram,
        paid: part.paid,
        free: part.free,
        total: part.total,
        gpu_hour: rate.gpu_hour,
        baseline: baseline.map(clouds),
        saving: saving.and_then(|saving| i64::try_from(saved(saving)).ok().map(MicroUsd)),
    }
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
