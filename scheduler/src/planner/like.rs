//! Jobs that are alike: what becomes of one becomes of all of them.

use std::collections::BTreeSet;

use nave_domain::{
    Bytes, CustomerId, MicroUsd, Millis,
    host::Trust,
    job::{Egress, Isolation, TermWish},
    rate::Rate,
    wish::Region,
};
use nave_store::QueuedJob;

use super::money::pays;
use crate::fit::fraction;

/// All that decides whether a job may be on a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Like {
    /// Where it matters who else is on a host.
    customer: Option<CustomerId>,
    /// Where some host is too dear for what is left of its spend cap.
    left: Option<MicroUsd>,
    /// Where some host may have no room for it.
    order_bytes: i64,
    apart_from: BTreeSet<String>,
    egress: Egress,
    grouped: bool,
    isolation: Isolation,
    region: Option<Region>,
    term: TermWish,
    trust: BTreeSet<Trust>,
    most: Option<MicroUsd>,
    run_ms: Millis,
    longest: Millis,
    milli_cpu: i64,
    memory: Bytes,
    disk: Bytes,
    gpus: (u8, Option<u16>),
    vram: Option<(Bytes, Option<Bytes>)>,
    models: Vec<String>,
}

/// What decides on a market in what jobs must be alike.
#[derive(Debug, Clone, Copy)]
pub(super) struct Differences {
    /// Rates that no host exceeds.
    pub dearest: Rate,
    /// Whether somebody has a host alone.
    pub any_alone: bool,
    /// Bytes that one more order may take on any host.
    pub order_bytes: i64,
}

impl Like {
    pub fn new(job: &QueuedJob, differences: &Differences) -> Self {
        let request = &job.request;
        let resources = &request.resources;
        let is_personal =
            differences.any_alone || request.isolation == Isolation::Host || fraction(request).is_some();
        let is_long = job.order_bytes > differences.order_bytes;
        let gpu = resources.gpu.as_ref();
        Self {
            customer: is_personal.then_some(job.customer),
            left: (!pays(job, differences.dearest)).then_some(job.left),
            order_bytes: if is_long { job.order_bytes } else { 0 },
            apart_from: job.apart_from.clone(),
            egress: request.egress,
            grouped: request.group.is_some(),
            isolation: request.isolation,
            region: request.region.clone(),
            term: request.term,
            trust: request.trust.clone(),
            most: request.max_price,
            run_ms: request.limits.run_ms,
            longest: request.limits.longest(),
            milli_cpu: resources.milli_cpu.0,
            memory: resources.memory,
            disk: resources.disk,
            gpus: gpu.map_or((0, None), |gpu| (gpu.count, gpu.share)),
            vram: gpu.map(|gpu| (gpu.vram, gpu.vram_max)),
            models: gpu.map(|gpu| gpu.models.clone()).unwrap_or_default(),
        }
    }

    /// Whether what is left of its spend cap pays for it on any host.
    pub fn pays_any_rate(&self) -> bool {
        self.left.is_none()
    }

    /// The same where nobody is on any host.
    pub fn on_empty(self) -> Self {
        Self { customer: None, order_bytes: 0, ..self }
    }
}
