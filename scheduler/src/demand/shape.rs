//! What machines have for jobs, and what it costs there.

use std::collections::BTreeMap;

use nave_clouds::CloudOffer;
use nave_domain::{
    Bytes, MicroUsd, MilliCpu, Millis,
    host::{Inventory, Proven, Term, Trust},
    job::JobRequest,
    rate::{Rate, affordable},
    wish::{GpuRequest, Known, Region, Terms, unmet},
};
use nave_store::WaitingJob;
use serde::{Deserialize, Serialize};

/// What devices of each class call themselves.
pub type Models = BTreeMap<String, Vec<String>>;

/// A job that could pay for this long on a machine is worth one, whatever it is expected to take.
const PAID_MIN: Millis = Millis(3_600_000);

/// What a machine has and costs for jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// The GPU, in the cloud's words.
    pub model: String,
    /// Its class.
    pub class: Option<String>,
    /// How many of them.
    pub devices: u32,
    /// Memory of each, as it is called.
    pub vram: Bytes,
    /// CPU for jobs.
    pub cpu: MilliCpu,
    /// Memory for jobs.
    pub memory: Bytes,
    /// Disk for jobs.
    pub disk: Bytes,
    /// Where it is, in the cloud's words.
    pub region: Option<Region>,
    /// What jobs pay.
    pub rate: Rate,
    /// What devices of its class call themselves.
    #[serde(default)]
    pub models: Vec<String>,
    /// Whether a host has proven all this, and not only a cloud said it.
    #[serde(default)]
    pub is_proven: bool,
}

/// What an agent will offer of what a cloud offers; none where too little is said.
#[must_use]
pub fn shape(offer: &CloudOffer, models: &Models, margin_percent: i64) -> Option<Shape> {
    // A kernel keeps some of what is sold as memory, and the agent a gibibyte and at most half of it.
    let memory = offer.memory.0 / 16 * 15;
    let memory = Bytes((memory - Bytes::GIB).max(memory / 2));
    // The agent offers half of what is free, and a system takes some of it.
    let disk = Bytes((offer.disk.0 / 16 * 15 - 10 * Bytes::GIB) / 2);
    let is_said = offer.cpu > MilliCpu::ZERO && memory > Bytes::ZERO && disk > Bytes::ZERO;
    let rate = rate(offer.price, margin_percent, offer.devices, offer.cpu, memory)?;
    is_said.then(|| Shape {
        model: offer.model.clone(),
        class: offer.class.map(str::to_owned),
        devices: offer.devices,
        vram: offer.vram_each.unwrap_or_default(),
        cpu: offer.cpu,
        memory,
        disk,
        region: region(&offer.region),
        rate,
        models: offer.class.and_then(|class| models.get(class)).cloned().unwrap_or_default(),
        is_proven: false,
    })
}

/// What parts of a machine cost so that all of them pay for it, with the margin; rounded up. Cores and
/// memory each bear a twentieth beside GPUs, and half of it without.
fn rate(price: MicroUsd, margin_percent: i64, devices: u32, cpu: MilliCpu, memory: Bytes) -> Option<Rate> {
    let up = |amount: i128, parts: i128| {
        let each = amount.checked_add(parts - 1)?.checked_div(parts)?;
        i64::try_from(each).ok().map(MicroUsd)
    };
    let total = i128::from(price.0) * i128::from(100 + margin_percent);
    let side = if devices > 0 { total / 20 } else { total / 2 };
    Some(Rate {
        gpu_hour: if devices > 0 { up(total - 2 * side, i128::from(devices) * 100)? } else { MicroUsd::ZERO },
        vcpu_hour: up(side * 1_000, i128::from(cpu.0.max(1)) * 100)?,
        gib_hour: up(side * i128::from(Bytes::GIB), i128::from(memory.0.max(1)) * 100)?,
    })
}

/// A cloud's word for a place, as hosts say where they are.
fn region(words: &str) -> Option<Region> {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = words.chars().map(plain).take(32).collect();
    name.trim_matches('-').parse().ok()
}

impl Shape {
    /// Whether it takes a job when it is empty, on GPUs of `model` if that is named.
    pub(super) fn takes(&self, job: &WaitingJob, model: Option<&str>) -> bool {
        let request = &job.request;
        let terms = Terms { term: Term::OnDemand, region: self.region.clone(), trust: Trust::Cloud };
        let has_size = request.resources.milli_cpu <= self.cpu
            && request.resources.memory <= self.memory
            && request.resources.disk <= self.disk;
        let has_gpus = request.resources.gpu.as_ref().is_none_or(|gpu| self.has(gpu, model));
        has_size && has_gpus && unmet(request, &terms, self.rate).is_none() && self.is_paid(request, job.left)
    }

    fn has(&self, gpu: &GpuRequest, model: Option<&str>) -> bool {
        u32::from(gpu.count) <= self.devices
            && gpu.vram <= self.vram_least()
            && gpu.vram_max.is_none_or(|most| self.vram <= most)
            && model.is_none_or(|model| self.is_called(model))
    }

    /// What of the memory of a device jobs have for sure: a cloud calls one after more than its driver shows.
    fn vram_least(&self) -> Bytes {
        if self.is_proven { self.vram } else { Bytes(self.vram.0 / 10 * 9) }
    }

    /// Whether its devices are what a wish names. Until they have been tested, they are so only where the cloud's words
    /// mean it and what such devices call themselves does, too: no class may come of the test.
    fn is_called(&self, wanted: &str) -> bool {
        let class = self.class.as_deref();
        if self.is_proven {
            return Known::of(&self.model, class.map(|class| (class, self.models.as_slice()))).is(wanted);
        }
        let as_sold = Known::of(&self.model, class.map(|class| (class, [].as_slice())));
        let is_so_called = |model: &String| Known::of(model, None).is(wanted);
        as_sold.is(wanted) && (self.models.is_empty() || self.models.iter().any(is_so_called))
    }

    /// The same machine as the host that it has become.
    #[must_use]
    pub fn proven(self, has: &Inventory, proven: Option<&Proven>) -> Self {
        let first = has.rentable_devices().next();
        let model = first.map(|device| device.model.clone()).unwrap_or_default();
        let alike = || has.rentable_devices().filter(|device| device.model == model);
        let shown = first.and_then(|device| proven?.device(&device.uuid));
        Self {
            class: shown.and_then(|shown| shown.class.clone()),
            models: shown.map(|shown| shown.models.clone()).unwrap_or_default(),
            devices: u32::try_from(alike().count()).unwrap_or(u32::MAX),
            vram: alike().map(|device| device.vram).min().unwrap_or_default(),
            cpu: has.milli_cpu,
            memory: has.memory,
            disk: has.disk,
            model,
            is_proven: true,
            ..self
        }
    }

    /// Whether what is left of the job's spend cap pays for as long as it is expected to run.
    fn is_paid(&self, request: &JobRequest, left: MicroUsd) -> bool {
        let needed = request.expected().min(request.limits.run_ms).min(PAID_MIN);
        affordable(request.resources.size(), left, self.rate).is_none_or(|paid| paid >= needed)
    }
}
