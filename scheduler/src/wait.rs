//! Why a job waits, in words that say what to do about it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use nave_domain::{
    Bytes, HostId, MicroUsd,
    host::{Device, Trust},
    job::{GpuRequest, JobRequest, TermWish},
    rate::{gpu_hourly, hourly},
    wish::Unmet,
};
use nave_store::{QueuedJob, SupplyHost};

use crate::{
    fit::{Lack, Meant, Names, Supply, devices, fits, lack},
    planner::Reason,
};

/// A wish that customers can do without.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Of(Unmet),
    Models,
    VramMax,
}

/// In the order in which they are given up.
const WISHES: [Wish; 6] = [
    Wish::Of(Unmet::MaxPrice),
    Wish::Of(Unmet::Region),
    Wish::Models,
    Wish::VramMax,
    Wish::Of(Unmet::Term),
    Wish::Of(Unmet::Trust),
];

/// Why none of these hosts, all of them empty, would take a job: the first wish without which one
/// would, and the nearest one; or else what they lack.
pub(crate) fn explain(empty: &BTreeMap<HostId, Arc<Supply>>, names: &Names, job: &QueuedJob) -> Reason {
    for wish in WISHES {
        let Some(request) = wish.without(&job.request) else { continue };
        let without = QueuedJob { request, ..job.clone() };
        let models = names.choices(&without.request);
        let size = without.request.resources.size();
        let price = |supply: &&Arc<Supply>| hourly(size, supply.host.rate).ok();
        let fitting = empty.values().filter(|supply| fits(supply, &without, &models));
        if let Some(nearest) = fitting.min_by_key(price) {
            let model = models.iter().find(|model| lack(nearest, &without, model.as_ref()).is_none());
            let message = format!(
                "no host has {}{}; nearest: {}{}",
                wanted(&job.request),
                wish.words(&job.request),
                offered(nearest, &without.request, model.and_then(Option::as_ref)),
                wish.remedy(&job.request, &nearest.host)
            );
            return Reason { code: wish.code(), message };
        }
    }
    let model = names.choices(&job.request).first().cloned().flatten();
    let lacks: BTreeSet<Lack> =
        empty.values().filter_map(|supply| lack(supply, job, model.as_ref())).collect();
    let lacks: Vec<&str> = lacks.into_iter().map(Lack::words).collect();
    let message = format!("no host has {}; see `nave offers`", lacks.join(" or "));
    Reason { code: "no_host_fits", message }
}

impl Wish {
    fn code(self) -> &'static str {
        match self {
            Self::Of(Unmet::MaxPrice) => "no_host_at_price",
            Self::Of(Unmet::Region) => "no_host_in_region",
            Self::Of(Unmet::Term) => "no_host_on_term",
            Self::Of(Unmet::Trust) => "no_host_trusted",
            Self::Models | Self::VramMax => "no_host_of_model",
        }
    }

    /// The request without this wish; none where it has no such wish.
    fn without(self, request: &JobRequest) -> Option<JobRequest> {
        let mut other = request.clone();
        match self {
            // Nobody pays more for GPUs than clouds ask without saying so.
            Self::Of(Unmet::MaxPrice) if request.max_price.is_none() && request.resources.gpu.is_none() => {}
            Self::Of(Unmet::MaxPrice) => other.max_price = Some(MicroUsd(i64::MAX)),
            Self::Of(Unmet::Region) => other.region = None,
            Self::Of(Unmet::Term) => other.term = TermWish::Any,
            Self::Of(Unmet::Trust) => other.trust = Trust::ALL.into(),
            Self::Models => other.resources.gpu.as_mut()?.models.clear(),
            Self::VramMax => other.resources.gpu.as_mut()?.vram_max = None,
        }
        (other != *request).then_some(other)
    }

    /// What is asked for beside resources, as the end of "no host has 2 x H100".
    fn words(self, request: &JobRequest) -> String {
        match self {
            Self::Of(Unmet::MaxPrice) => match request.max_price {
                None => " for what clouds ask or less".to_owned(),
                Some(most) if request.resources.gpu.is_some() => format!(" for {most} an hour each or less"),
                Some(most) => format!(" for {most} an hour or less"),
            },
            Self::Of(Unmet::Region) => {
                request.region.as_ref().map(|region| format!(" in {region}")).unwrap_or_default()
            }
            Self::Of(Unmet::Term) => match request.term {
                TermWish::OnDemand => " on demand".to_owned(),
                TermWish::Spot => " as spot".to_owned(),
                TermWish::Any => String::new(),
            },
            Self::Of(Unmet::Trust) => format!(" and is {}", trusted(&request.trust, " or ")),
            Self::Models => String::new(),
            Self::VramMax => {
                let most = request.resources.gpu.as_ref().and_then(|gpu| gpu.vram_max).unwrap_or_default();
                format!(" of at most {most}")
            }
        }
    }

    /// What lets it run on the nearest host, where that is no matter of course.
    fn remedy(self, request: &JobRequest, host: &SupplyHost) -> String {
        match self {
            Self::Of(Unmet::Trust) => {
                let mut trust = request.trust.clone();
                trust.insert(host.terms.trust);
                format!("; to run there: --trust {}", trusted(&trust, ","))
            }
            Self::Of(Unmet::MaxPrice) => {
                let size = request.resources.size();
                let price = gpu_hourly(size, host.rate).or_else(|| hourly(size, host.rate).ok());
                let price = price.unwrap_or_default().to_string();
                format!("; to run there: --max-price {}", price.trim_start_matches('$'))
            }
            Self::Of(Unmet::Region | Unmet::Term) | Self::Models | Self::VramMax => String::new(),
        }
    }
}

fn trusted(trust: &BTreeSet<Trust>, between: &str) -> String {
    let names: Vec<&str> = trust.iter().map(|class| class.as_str()).collect();
    names.join(between)
}

/// What a request asks for, as in "2 x H100".
fn wanted(request: &JobRequest) -> String {
    let resources = &request.resources;
    let Some(gpu) = &resources.gpu else {
        return format!("{} milli-CPU and {} of memory", resources.milli_cpu.0, resources.memory);
    };
    let GpuRequest { count, vram, models, .. } = gpu;
    match (models.is_empty(), *vram > Bytes::ZERO) {
        (true, false) => format!("{count} x any GPU"),
        (true, true) => format!("{count} x {vram} GPU"),
        (false, false) => format!("{count} x {}", models.join(" or ")),
        (false, true) => format!("{count} x {} of {vram}", models.join(" or ")),
    }
}

/// What a host offers for a request, as in "2 x A100 80 GiB at $1.49 an hour each in us".
fn offered(supply: &Supply, request: &JobRequest, model: Option<&Meant>) -> String {
    let host = &supply.host;
    let region = host.terms.region.as_ref().map(|region| format!(" in {region}")).unwrap_or_default();
    let price = |amount: MicroUsd, each: &str| format!(" at {amount} an hour{each}{region}");
    let term = host.terms.term.as_str().replace('_', " ");
    let Some(gpu) = &request.resources.gpu else {
        let amount = hourly(request.resources.size(), host.rate).unwrap_or_default();
        return format!("the same{}, {term}", price(amount, ""));
    };
    let first: Option<&Device> = devices(supply, request, model).first().map(|(_, device)| *device);
    let label = first.map(|device| format!("{} {}", device.label(), device.vram)).unwrap_or_default();
    let (rate, trust) = (price(host.rate.gpu_hour, " each"), host.terms.trust.as_str());
    format!("{} x {label}{rate}, {term}, {trust}", gpu.count)
}
