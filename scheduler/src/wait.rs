//! Why a job waits, in words that say what to do about it.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    Bytes, HostId, MicroUsd,
    host::{Device, Trust},
    job::{GpuRequest, JobRequest, TermWish},
    rate::{Rate, gpu_hourly, hourly},
    wish::unmet,
};
use nave_store::{QueuedJob, SupplyHost};

use crate::{
    fit::{Choices, Lack, Meant, Names, Supply, devices, fraction, lack, lack_beside_gpus, shares, slice},
    planner::Reason,
};

/// A wish that customers can do without; in the order in which they are given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wish {
    MaxPrice,
    Region,
    Models,
    VramMax,
    Term,
    Trust,
}

const WISHES: [Wish; 6] =
    [Wish::MaxPrice, Wish::Region, Wish::Models, Wish::VramMax, Wish::Term, Wish::Trust];
/// Those that hosts meet or do not, whatever their devices are.
const OF_HOSTS: [Wish; 4] = [Wish::MaxPrice, Wish::Region, Wish::Term, Wish::Trust];
/// Those that devices meet or do not.
const OF_DEVICES: [Wish; 3] = [Wish::MaxPrice, Wish::Models, Wish::VramMax];

/// How near an empty host comes to what a job asks for; the least is the nearest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Near {
    /// How many wishes those are.
    many: usize,
    /// Without which wishes it would do.
    pub(crate) without: Vec<Wish>,
    /// Whether that alone would not do: the job can pay for nothing there.
    pub(crate) is_unpaid: bool,
    price: Option<MicroUsd>,
    pub(crate) host: HostId,
}

/// A job as empty hosts are asked for it.
pub(crate) struct Asked<'a> {
    pub(crate) job: &'a QueuedJob,
    choices: Choices,
    /// The job without any wish that it can do without.
    bare: QueuedJob,
    /// The wishes that hosts may not meet, each alone.
    alone: Vec<(Wish, JobRequest)>,
    /// What is asked of devices without some of the wishes, the fewest first.
    without: Vec<(Vec<Wish>, JobRequest, Choices)>,
}

impl<'a> Asked<'a> {
    pub(crate) fn new(job: &'a QueuedJob, names: &Names) -> Self {
        let has: Vec<Wish> = WISHES.into_iter().filter(|wish| wish.without(&job.request).is_some()).collect();
        let bare = without(&job.request, &has);
        let only = |wish: &Wish| {
            let others: Vec<Wish> = has.iter().copied().filter(|other| other != wish).collect();
            (*wish, without(&job.request, &others))
        };
        let alone = OF_HOSTS.iter().filter(|wish| has.contains(wish)).map(only).collect();
        let of_devices: Vec<Wish> = OF_DEVICES.into_iter().filter(|wish| has.contains(wish)).collect();
        let mut some: Vec<Vec<Wish>> = (0..1_usize << of_devices.len())
            .map(|set| {
                (0..of_devices.len()).filter(|at| set >> at & 1 == 1).map(|at| of_devices[at]).collect()
            })
            .collect();
        some.sort_by_key(|some| (some.len(), some.clone()));
        let variant = |some: Vec<Wish>| {
            let request = without(&job.request, &some);
            let choices = names.choices(&request);
            (some, request, choices)
        };
        Self {
            job,
            choices: names.choices(&job.request),
            bare: QueuedJob { request: bare, ..job.clone() },
            alone,
            without: some.into_iter().map(variant).collect(),
        }
    }

    /// How near a host comes that nobody is on, or what it lacks whatever is given up.
    pub(crate) fn near(&self, id: HostId, empty: &Supply, pays: impl Fn(Rate) -> bool) -> Result<Near, Lack> {
        if self.has_part(empty, &pays) {
            return Ok(Near { many: 0, without: Vec::new(), is_unpaid: false, price: None, host: id });
        }
        let host = &empty.host;
        if let Some(lack) = lack_beside_gpus(empty, &self.bare, host.rate) {
            return Err(lack);
        }
        let is_unmet = |(_, request): &&(Wish, JobRequest)| unmet(request, &host.terms, host.rate).is_some();
        let of_host = self.alone.iter().filter(is_unmet).map(|(wish, _)| *wish);
        let count = self.job.request.resources.gpu.as_ref().map_or(0, |gpu| usize::from(gpu.count));
        let has_devices = |(_, request, choices): &&(Vec<Wish>, JobRequest, Choices)| {
            let has =
                |model: &Option<Meant>| empty.fitting(request, model.as_ref()).take(count).count() == count;
            choices.iter().any(has)
        };
        let Some((of_devices, ..)) = self.without.iter().find(has_devices) else { return Err(Lack::Gpus) };
        let without: BTreeSet<Wish> = of_host.chain(of_devices.iter().copied()).collect();
        Ok(Near {
            many: without.len(),
            is_unpaid: without.is_empty() && !pays(host.rate),
            without: without.into_iter().collect(),
            price: hourly(self.job.request.resources.size(), host.rate).ok(),
            host: id,
        })
    }

    /// Whether a fraction of a device of the host suffices.
    fn has_part(&self, empty: &Supply, pays: impl Fn(Rate) -> bool) -> bool {
        let is_paid = |milli| {
            let rate = empty.host.rate.for_part(milli);
            lack_beside_gpus(empty, self.job, rate).is_none() && pays(rate)
        };
        fraction(&self.job.request).is_some()
            && self.choices.iter().any(|model| {
                let slice = slice(empty, self.job, model.as_ref());
                let shares = shares(empty, self.job, model.as_ref());
                slice.into_iter().chain(shares).any(|piece| is_paid(piece.milli))
            })
    }

    /// Why the job waits, where this host is the nearest.
    pub(crate) fn reason(&self, near: &Near, empty: &Supply) -> Reason {
        let request = without(&self.job.request, &near.without);
        let job = QueuedJob { request, ..self.job.clone() };
        let choices = self.without.iter().find(|(_, request, _)| models(request) == models(&job.request));
        let model = choices.and_then(|(.., choices)| {
            choices.iter().find(|model| lack(empty, &job, model.as_ref()).is_none())
        });
        let wishes = || near.without.iter();
        let words: String = wishes().map(|wish| wish.words(&self.job.request)).collect();
        let remedies: Vec<String> =
            wishes().filter_map(|wish| wish.remedy(&self.job.request, &empty.host)).collect();
        let remedy = if remedies.is_empty() {
            String::new()
        } else {
            format!("; to run there: {}", remedies.join(" "))
        };
        let message = format!(
            "no host has {}{words}; nearest: {}{remedy}",
            wanted(&self.job.request),
            offered(empty, &job.request, model.and_then(Option::as_ref)),
        );
        Reason { code: near.without.first().map_or("no_host_fits", |wish| wish.code()), message }
    }
}

fn models(request: &JobRequest) -> &[String] {
    request.resources.gpu.as_ref().map_or(&[], |gpu| &gpu.models)
}

/// A request without some of its wishes.
fn without(request: &JobRequest, wishes: &[Wish]) -> JobRequest {
    wishes.iter().fold(request.clone(), |request, wish| wish.without(&request).unwrap_or(request))
}

/// Why a job waits where no host would do for any wish.
pub(crate) fn lacking(lacks: &BTreeMap<Lack, usize>) -> Reason {
    let lacks: Vec<&str> = lacks.keys().map(|lack| lack.words()).collect();
    let message = format!("no host has {}; see `nave offers`", lacks.join(" or "));
    Reason { code: "no_host_fits", message }
}

/// Why a job fails that could pay for nothing where it costs the least.
pub(crate) fn too_dear(job: &QueuedJob, cheapest: &Supply) -> Reason {
    let price = hourly(job.request.resources.size(), cheapest.host.rate).unwrap_or_default();
    let message = format!(
        "the {} left of its spend cap pay for less than a second at {price} an hour, which is the least that it costs; \
         raise max_spend",
        job.left
    );
    Reason { code: "spend_cap", message }
}

impl Wish {
    fn code(self) -> &'static str {
        match self {
            Self::MaxPrice => "no_host_at_price",
            Self::Region => "no_host_in_region",
            Self::Term => "no_host_on_term",
            Self::Trust => "no_host_trusted",
            Self::Models | Self::VramMax => "no_host_of_model",
        }
    }

    /// The request without this wish; none where it has no such wish.
    fn without(self, request: &JobRequest) -> Option<JobRequest> {
        let mut other = request.clone();
        match self {
            // Nobody pays more for GPUs than clouds ask without saying so.
            Self::MaxPrice if request.max_price.is_none() && request.resources.gpu.is_none() => {}
            Self::MaxPrice => other.max_price = Some(MicroUsd(i64::MAX)),
            Self::Region => other.region = None,
            Self::Term => other.term = TermWish::Any,
            Self::Trust => other.trust = Trust::ALL.into(),
            Self::Models => other.resources.gpu.as_mut()?.models.clear(),
            Self::VramMax => other.resources.gpu.as_mut()?.vram_max = None,
        }
        (other != *request).then_some(other)
    }

    /// What is asked for beside resources, as the end of "no host has 2 x H100".
    fn words(self, request: &JobRequest) -> String {
        match self {
            Self::MaxPrice => match request.max_price {
                None => " for what clouds ask or less".to_owned(),
                Some(most) if request.resources.gpu.is_some() => format!(" for {most} an hour each or less"),
                Some(most) => format!(" for {most} an hour or less"),
            },
            Self::Region => request.region.as_ref().map(|region| format!(" in {region}")).unwrap_or_default(),
            Self::Term => match request.term {
                TermWish::OnDemand => " on demand".to_owned(),
                TermWish::Spot => " as spot".to_owned(),
                TermWish::Any => String::new(),
            },
            Self::Trust => format!(" and is {}", trusted(&request.trust, " or ")),
            Self::Models => String::new(),
            Self::VramMax => {
                let most = request.resources.gpu.as_ref().and_then(|gpu| gpu.vram_max).unwrap_or_default();
                format!(" of at most {most}")
            }
        }
    }

    /// What lets it run on the nearest host, where that is no matter of course.
    fn remedy(self, request: &JobRequest, host: &SupplyHost) -> Option<String> {
        match self {
            Self::Trust => {
                let mut trust = request.trust.clone();
                trust.insert(host.terms.trust);
                Some(format!("--trust {}", trusted(&trust, ",")))
            }
            Self::MaxPrice => {
                let size = request.resources.size();
                let price = gpu_hourly(size, host.rate).or_else(|| hourly(size, host.rate).ok());
                let price = price.unwrap_or_default().to_string();
                Some(format!("--max-price {}", price.trim_start_matches('$')))
            }
            Self::Region | Self::Term | Self::Models | Self::VramMax => None,
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
