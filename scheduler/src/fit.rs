//! Whether a job fits a host, and what keeps it off.

use nave_domain::{
    MicroUsd,
    host::Device,
    job::{Egress, GpuRequest, Isolation, JobRequest},
    wish::{Unmet, is_model, unmet},
};
use nave_store::{Baselines, QueuedJob, SupplyHost};

/// What keeps a job off a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lack {
    Cpu,
    Memory,
    Disk,
    Egress,
    Group,
    Alone,
    Apart,
    Wish(Unmet),
    Gpus,
}

impl Lack {
    /// For programs.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Egress => "egress",
            Self::Group => "group",
            Self::Alone => "not_alone",
            Self::Apart => "not_apart",
            Self::Wish(Unmet::MaxPrice) => "max_price",
            Self::Wish(Unmet::Region) => "region",
            Self::Wish(Unmet::Term) => "term",
            Self::Wish(Unmet::Trust) => "trust",
            Self::Gpus => "gpus",
        }
    }

    /// What the host does not have, in words.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Cpu => "enough CPU",
            Self::Memory => "enough memory",
            Self::Disk => "enough disk",
            Self::Egress => "a way to enforce its egress policy",
            Self::Group => "a way to keep it to its group",
            Self::Alone => "nobody else's jobs",
            Self::Apart => "an owner who has none of the jobs that it is kept apart from",
            Self::Wish(Unmet::MaxPrice) => "a price within max_price",
            Self::Wish(Unmet::Region) => "its place in that region",
            Self::Wish(Unmet::Term) => "that term",
            Self::Wish(Unmet::Trust) => "that trust",
            Self::Gpus => "enough GPUs with that much memory",
        }
    }
}

/// The models of GPUs to try for a request, one after the other; none stands for any.
pub(crate) fn models(request: &JobRequest) -> Vec<Option<&str>> {
    request.resources.gpu.as_ref().map_or_else(|| vec![None], |gpu| gpu.choices().collect())
}

/// The first thing a host does not have enough of for a job, whose GPUs are of `model` if that is named.
pub(crate) fn lack(host: &SupplyHost, job: &QueuedJob, model: Option<&str>) -> Option<Lack> {
    let wanted = &job.request.resources;
    let has = &host.inventory;
    if wanted.milli_cpu.0 > has.milli_cpu.0 - host.milli_cpu_used.0 {
        return Some(Lack::Cpu);
    }
    if wanted.memory.0 > has.memory.0 - host.memory_used.0 {
        return Some(Lack::Memory);
    }
    if wanted.disk.0 > has.disk.0 - host.disk_used.0 {
        return Some(Lack::Disk);
    }
    if !has.egress.contains(&job.request.egress) {
        return Some(Lack::Egress);
    }
    // What keeps a job to public addresses keeps it to its group.
    if job.request.group.is_some() && !has.egress.contains(&Egress::Public) {
        return Some(Lack::Group);
    }
    if is_in_the_way(host, job) {
        return Some(Lack::Alone);
    }
    if job.apart_from.contains(&host.hotkey) {
        return Some(Lack::Apart);
    }
    if let Some(wish) = unmet(&job.request, &host.terms, host.rate) {
        return Some(Lack::Wish(wish));
    }
    match &wanted.gpu {
        Some(gpu) if free_devices(host, gpu, model).count() < usize::from(gpu.count) => Some(Lack::Gpus),
        Some(_) | None => None,
    }
}

/// Whether somebody has the host alone, or is on it where this job wants it alone.
fn is_in_the_way(host: &SupplyHost, job: &QueuedJob) -> bool {
    let is_other = |customer: &_| *customer != job.customer;
    let wants_alone = match job.request.isolation {
        Isolation::Host => true,
        Isolation::Any | Isolation::Device => false,
    };
    host.reserved.as_ref().is_some_and(is_other) || wants_alone && host.tenants.iter().any(is_other)
}

/// The devices for a request: the smallest that suffice, so that large ones stay free.
pub(crate) fn devices<'a>(host: &'a SupplyHost, gpu: &GpuRequest, model: Option<&str>) -> Vec<&'a Device> {
    let mut free: Vec<&Device> = free_devices(host, gpu, model).collect();
    free.sort_by(|a, b| a.vram.cmp(&b.vram).then_with(|| a.uuid.cmp(&b.uuid)));
    free.truncate(usize::from(gpu.count));
    free
}

fn free_devices<'a>(
    host: &'a SupplyHost,
    gpu: &GpuRequest,
    model: Option<&str>,
) -> impl Iterator<Item = &'a Device> {
    let is_wanted = move |device: &Device| {
        let class = host.classes.get(&device.uuid).map(String::as_str);
        model.is_none_or(|model| is_model(model, &device.model, class))
    };
    host.inventory.rentable_devices().filter(move |device| {
        gpu.fits(device.vram) && !host.devices_used.contains(&device.uuid) && is_wanted(device)
    })
}

/// What clouds ask for an hour of one of these devices, on average; none where nobody knows it of each.
pub(crate) fn baseline(baselines: &Baselines, host: &SupplyHost, devices: &[&Device]) -> Option<MicroUsd> {
    let of = |device: &&Device| baselines.of(host.classes.get(&device.uuid)?, host.terms.region.as_ref());
    let prices: Vec<i64> =
        devices.iter().map(|device| of(device).map(|price| price.0)).collect::<Option<_>>()?;
    let sum = prices.iter().try_fold(0_i64, |sum, price| sum.checked_add(*price))?;
    sum.checked_div(i64::try_from(prices.len()).ok()?).map(MicroUsd)
}
