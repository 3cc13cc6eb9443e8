//! Which jobs that wait are worth a machine of a cloud, and which machine. Pure.
//!
//! Jobs are looked at oldest first. What is rented already and free, or on its way, takes them first; a
//! machine that is chosen for one takes those after it that fit beside it. What must fit is what an agent
//! will offer of the machine, not what the cloud calls it.

use std::collections::{BTreeSet, VecDeque};

use nave_clouds::{
    CloudOffer,
    provider::{Availability, Cloud, Hosting},
};
use nave_domain::{
    Bytes, CustomerId, JobId, MicroUsd, MilliCpu, Millis, Timestamp,
    host::{HostState, Term, Trust},
    job::{Isolation, JobRequest},
    rate::{Rate, affordable, charge, hourly},
    wish::{GpuRequest, Known, Region, Terms, unmet},
};
use nave_store::{MachineDemand, MachineRow, RentedMachine, WaitingJob};
use serde::{Deserialize, Serialize};

/// What the operator allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most machines at once.
    pub machines: u32,
    /// The most that they may cost in an hour, together.
    pub hourly: MicroUsd,
    /// How long a machine is kept at the most. In the second half of it, it takes no new jobs.
    pub life: Millis,
    /// How long a job waits for hosts that are busy.
    pub patience: Millis,
    /// How long a machine is idle until it goes back at the end of what is paid for.
    pub idle: Millis,
    /// Percent on top of what a machine costs.
    pub margin_percent: i64,
    /// Percent of what a machine costs that the jobs which wait for it are to pay at the least.
    pub share_percent: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            machines: 4,
            hourly: MicroUsd(10_000_000),
            life: Millis(24 * 3_600_000),
            patience: Millis(60_000),
            idle: Millis(120_000),
            margin_percent: 10,
            share_percent: 50,
        }
    }
}

impl Limits {
    /// The shortest life of a machine: most of a shorter one would be spent on booting.
    pub const LIFE_MIN: Millis = Millis(2 * 3_600_000);
    /// How long a job waits that no host would take even if it were free: a host may be about to join.
    const SHORT: Millis = Millis(15_000);
    /// How much dearer than when it was chosen a machine may be, in percent.
    const RISE_PERCENT: i64 = 10;
    /// How many machines are rented for one job at the most: what they have is not what they were said to have.
    const MACHINES_PER_JOB: u32 = 2;
    /// How old an offer may be.
    const OFFER_AGE_MAX: Millis = Millis(900_000);
    /// How long a machine typically is paid for until it has proven what it claims.
    const BOOT: Millis = Millis(600_000);
    /// How many offers are looked at for one job, of those that it fits.
    const OFFERS_MAX: usize = 8;
    /// A job that could pay for this long on a machine is worth one, whatever it is expected to take.
    const PAID_MIN: Millis = Millis(3_600_000);
}

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
}

/// A machine that is rented, or will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rented {
    /// What it has; none where nobody knows, since it only turned up.
    pub shape: Option<Shape>,
    /// The most that it costs in an hour.
    pub price_max: MicroUsd,
    /// Whether it has no host yet, or one that has nothing to do, and stays.
    pub is_free: bool,
}

/// An offer that came to nothing lately: its cloud, its id, its region.
pub type Refused = (Cloud, String, String);

/// A machine to be rented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purchase {
    /// The job that it is rented for, first of all.
    pub job: JobId,
    /// What is rented.
    pub offer: CloudOffer,
    /// What that has.
    pub shape: Shape,
    /// The most that it may cost in an hour.
    pub price_max: MicroUsd,
}

/// The machines that are worth being rented now.
#[must_use]
pub fn demand(
    jobs: &[WaitingJob],
    offers: &[CloudOffer],
    rented: &[Rented],
    refused: &BTreeSet<Refused>,
    limits: &Limits,
    now: Timestamp,
) -> Vec<Purchase> {
    let mut market = Market::new(offers, rented, refused, limits, now);
    let mut purchases = Vec::new();
    let mut waiting: VecDeque<&WaitingJob> =
        jobs.iter().filter(|job| is_worth_it(job, limits, now)).collect();
    waiting.retain(|job| !market.rooms.iter_mut().any(|room| room.take(job)));
    while let Some(job) = waiting.pop_front() {
        let Some((purchase, room)) = market.buy(job, &waiting) else { continue };
        waiting.retain(|job| !room.jobs.contains(&job.job));
        purchases.push(purchase);
    }
    purchases
}

/// Whether a job has waited for long enough, for something that a machine would change, and still waits when it is there.
fn is_worth_it(job: &WaitingJob, limits: &Limits, now: Timestamp) -> bool {
    let waits = now.since(job.queued_at);
    let patience = match job.code.as_str() {
        "waiting_for_capacity" | "kept_for_others" | "gang_waits" => limits.patience,
        code if code.starts_with("no_host") => limits.patience.min(Limits::SHORT),
        _ => return false,
    };
    let left = job.request.limits.queue_ms.0.saturating_sub(job.queued.0).saturating_sub(waits.0);
    // All machines have one owner, and replicas must not; what outlives a machine would be lost with it.
    waits >= patience
        && left >= Limits::BOOT.0
        && job.machines < Limits::MACHINES_PER_JOB
        && job.request.apart.is_none()
        && job.request.limits.longest().0 + MachineRow::MARGIN.0 <= limits.life.0 / 2
}

struct Market<'a> {
    /// Offers that may be taken, cheapest first.
    offers: Vec<(&'a CloudOffer, Shape)>,
    rooms: Vec<Room>,
    machines_left: u32,
    hourly_left: MicroUsd,
    limits: Limits,
}

impl<'a> Market<'a> {
    fn new(
        offers: &'a [CloudOffer],
        rented: &[Rented],
        refused: &BTreeSet<Refused>,
        limits: &Limits,
        now: Timestamp,
    ) -> Self {
        let may_be_had = |offer: &&CloudOffer| {
            matches!(offer.availability, Availability::Available(left) if left != Some(0))
                && offer.cloud.terms().hosting == Hosting::Machine
                && now.since(offer.fetched_at) <= Limits::OFFER_AGE_MAX
                && !refused.contains(&(offer.cloud, offer.id.clone(), offer.region.clone()))
        };
        let mut offers: Vec<_> = offers
            .iter()
            .filter(may_be_had)
            .filter_map(|offer| Some((offer, shape(offer, limits.margin_percent)?)))
            .collect();
        offers.sort_by_key(|(offer, _)| (offer.price, offer.cloud, &offer.id, &offer.region));
        let free = rented.iter().filter(|machine| machine.is_free);
        let spent = rented.iter().fold(0, |sum: i64, machine| sum.saturating_add(machine.price_max.0));
        let count = u32::try_from(rented.len()).unwrap_or(u32::MAX);
        Self {
            offers,
            rooms: free.filter_map(|machine| machine.shape.clone()).map(Room::new).collect(),
            machines_left: limits.machines.saturating_sub(count),
            hourly_left: MicroUsd(limits.hourly.0.saturating_sub(spent)),
            limits: *limits,
        }
    }

    /// The cheapest machine that would take the job and is paid for well enough by it and those beside it, of the
    /// first model for which there is one; with all that it takes.
    fn buy(&mut self, job: &WaitingJob, others: &VecDeque<&WaitingJob>) -> Option<(Purchase, Room)> {
        if self.machines_left == 0 {
            return None;
        }
        let models: Vec<_> =
            job.request.resources.gpu.as_ref().map_or(vec![None], |gpu| gpu.choices().collect());
        for model in models {
            let fits = |(offer, shape): &&(&CloudOffer, Shape)| {
                most(offer.price) <= self.hourly_left && shape.takes(job, model)
            };
            let filled = |(offer, shape): &(&'a CloudOffer, Shape)| {
                let mut room = Room::new(shape.clone());
                room.take(job);
                for other in others {
                    room.take(other);
                }
                room.pays(offer.price, &self.limits).then(|| (*offer, shape.clone(), room))
            };
            let found = self.offers.iter().filter(fits).take(Limits::OFFERS_MAX).find_map(filled);
            let Some((offer, shape, room)) = found else { continue };
            let price_max = most(offer.price);
            self.machines_left -= 1;
            self.hourly_left.0 -= price_max.0;
            return Some((Purchase { job: job.job, offer: offer.clone(), shape, price_max }, room));
        }
        None
    }
}

/// The most that a machine of this price may cost.
fn most(price: MicroUsd) -> MicroUsd {
    MicroUsd(price.0.saturating_add(price.0.saturating_mul(Limits::RISE_PERCENT) / 100))
}

/// What an agent will offer of what a cloud offers; none where too little is said.
#[must_use]
pub fn shape(offer: &CloudOffer, margin_percent: i64) -> Option<Shape> {
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
    fn takes(&self, job: &WaitingJob, model: Option<&str>) -> bool {
        let request = &job.request;
        let terms = Terms { term: Term::OnDemand, region: self.region.clone(), trust: Trust::Cloud };
        let has_size = request.resources.milli_cpu <= self.cpu
            && request.resources.memory <= self.memory
            && request.resources.disk <= self.disk;
        let has_gpus = request.resources.gpu.as_ref().is_none_or(|gpu| self.has(gpu, model));
        has_size && has_gpus && unmet(request, &terms, self.rate).is_none() && self.is_paid(request, job.left)
    }

    fn has(&self, gpu: &GpuRequest, model: Option<&str>) -> bool {
        // Drivers keep up to a sixteenth of what a device is called after.
        let real = Bytes(self.vram.0 / 16 * 15);
        let known = Known::of(&self.model, self.class.as_deref().map(|class| (class, [].as_slice())));
        u32::from(gpu.count) <= self.devices
            && gpu.vram <= real
            && gpu.vram_max.is_none_or(|most| self.vram <= most)
            && model.is_none_or(|model| known.is(model))
    }

    /// Whether what is left of the job's spend cap pays for as long as it is expected to run.
    fn is_paid(&self, request: &JobRequest, left: MicroUsd) -> bool {
        let needed = request.expected().min(request.limits.run_ms).min(Limits::PAID_MIN);
        affordable(request.resources.size(), left, self.rate).is_none_or(|paid| paid >= needed)
    }
}

/// What is left of a machine for the jobs that wait.
struct Room {
    /// What is left of it.
    shape: Shape,
    /// Who is on it.
    tenants: BTreeSet<CustomerId>,
    /// Who has it alone.
    reserved: Option<CustomerId>,
    /// What it has taken.
    jobs: BTreeSet<JobId>,
    /// What those pay in an hour.
    hourly: i128,
    /// What they pay as long as they are expected to run, within what is left of their spend caps.
    paid: i128,
}

impl Room {
    fn new(shape: Shape) -> Self {
        let (tenants, jobs) = (BTreeSet::new(), BTreeSet::new());
        Self { shape, tenants, reserved: None, jobs, hourly: 0, paid: 0 }
    }

    /// Whether the job has a place here, which it then has taken.
    fn take(&mut self, job: &WaitingJob) -> bool {
        let request = &job.request;
        let is_other = |customer: &CustomerId| *customer != job.customer;
        let wants_alone = request.isolation == Isolation::Host;
        if self.reserved.as_ref().is_some_and(is_other) || wants_alone && self.tenants.iter().any(is_other) {
            return false;
        }
        let mut models =
            request.resources.gpu.as_ref().map_or(vec![None], |gpu| gpu.choices().collect()).into_iter();
        if !models.any(|model| self.shape.takes(job, model)) {
            return false;
        }
        let wanted = &request.resources;
        self.shape.cpu.0 -= wanted.milli_cpu.0;
        self.shape.memory.0 -= wanted.memory.0;
        self.shape.disk.0 -= wanted.disk.0;
        self.shape.devices -= wanted.gpu.as_ref().map_or(0, |gpu| u32::from(gpu.count));
        self.tenants.insert(job.customer);
        if wants_alone {
            self.reserved = Some(job.customer);
        }
        let (size, rate) = (wanted.size(), self.shape.rate);
        let expected = request.expected().min(request.limits.run_ms);
        let paid = charge(size, expected, rate).unwrap_or(job.left).min(job.left);
        self.jobs.insert(job.job);
        self.hourly += i128::from(hourly(size, rate).unwrap_or_default().0);
        self.paid += i128::from(paid.0);
        true
    }

    /// Whether what it has taken pays the operator's share of what it costs: in an hour, and in all of what a machine
    /// costs while it boots, proves what it has, and is idle before it goes back.
    fn pays(&self, price: MicroUsd, limits: &Limits) -> bool {
        let share = i128::from(price.0) * i128::from(limits.share_percent);
        let beside = i128::from(Limits::BOOT.0) + i128::from(limits.idle.0);
        self.hourly * 100 >= share && self.paid * 100 * 3_600_000 >= share * beside
    }
}

/// How long a machine may take from its enrolment until it has proven what it claims.
const PROVE_MAX: Millis = Millis(1_800_000);

/// Whether a machine is wanted; `is_asked` says whether its cloud was asked for it.
#[must_use]
pub fn wanted(machine: &RentedMachine, is_asked: bool, now: Timestamp) -> MachineDemand {
    let Some(host) = machine.host else {
        let is_needless = !is_asked && !machine.job_waits;
        return if is_needless { MachineDemand::Released } else { MachineDemand::Wanted };
    };
    if machine.is_busy {
        return MachineDemand::Wanted;
    }
    let enrolled_at = machine.row.enrolled_at.unwrap_or(now);
    let idle = match machine.row.demand {
        MachineDemand::Idle(since) => MachineDemand::Idle(since),
        MachineDemand::Wanted | MachineDemand::Released => MachineDemand::Idle(now),
    };
    match host {
        HostState::Enrolled | HostState::Verifying if now.since(enrolled_at) < PROVE_MAX => {
            MachineDemand::Wanted
        }
        HostState::Enrolled | HostState::Verifying | HostState::Ready | HostState::Suspect => idle,
        HostState::Refused | HostState::Draining | HostState::Gone | HostState::Banned => {
            MachineDemand::Released
        }
    }
}

/// When a machine stops taking new jobs, so that those it has end before it does: after half of its life.
#[must_use]
pub fn drains_from(made_at: Timestamp, dead_man: Timestamp) -> Timestamp {
    made_at.after(Millis(dead_man.since(made_at).0 / 2))
}

#[cfg(test)]
mod tests;
