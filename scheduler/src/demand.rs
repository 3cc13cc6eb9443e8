//! Which jobs that wait are worth a machine of a cloud, and which machine. Pure.
//!
//! Jobs are looked at oldest first. What is rented already and free, or on its way, takes them first; a
//! machine that is chosen for one takes those after it that fit beside it. What must fit is what an agent
//! will offer of the machine, not what the cloud calls it.

mod keep;
mod room;
mod shape;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use nave_clouds::{
    CloudOffer,
    provider::{Availability, Cloud, Hosting},
};
use nave_domain::{JobId, MicroUsd, Millis, Timestamp};
use nave_store::{MachineRow, WaitingJob};
use uuid::Uuid;

pub use keep::{Need, drains_from, is_paid_for, lost, needs, not_rented, wanted};
use room::Room;
pub use shape::{Models, Shape, shape};

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
    /// Percent of what a machine costs that jobs are to pay at the least: those which wait for it, and those it has.
    pub share_percent: i64,
    /// What machines may cost within a day beyond what jobs on them are charged.
    pub loss: MicroUsd,
    /// How many machines are paid for within a day because of one customer's jobs that end before they ran.
    pub unused: u32,
    /// Whether offers and clouds rest after machines that came to nothing.
    pub rests: bool,
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
            loss: MicroUsd(25_000_000),
            unused: 3,
            rests: true,
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
    /// After how many jobs that did not pay for it with all beside them an offer is for those alone who pay by themselves.
    const UNPAID_MAX: u32 = 16;
}

/// A machine that is rented, or will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rented {
    /// Its id.
    pub machine: Uuid,
    /// The job that it was rented for, which comes first there.
    pub job: Option<JobId>,
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
    models: &Models,
    rented: &[Rented],
    refused: &BTreeSet<Refused>,
    limits: &Limits,
    now: Timestamp,
) -> Vec<Purchase> {
    let mut market = Market::new(offers, models, rented, refused, limits, now);
    let mut waiting = units(jobs, |job| is_worth_it(job, limits, now));
    Room::welcome(&mut market.stock.rooms, waiting.iter().flatten().copied());
    waiting.retain(|unit| !market.stock.takes_all(unit));
    // Of a gang some alone would be of no use.
    market.singles = waiting.iter().filter(|unit| unit.len() == 1).flatten().copied().collect();
    while let Some(unit) = waiting.pop_front() {
        if market.serve(&unit) {
            waiting.retain(|unit| !unit.iter().all(|job| market.stock.has(job)));
        }
    }
    market.stock.purchases
}

/// A job, or all jobs of a gang.
type Unit<'a> = Vec<&'a WaitingJob>;

/// The jobs for which `wishes` is true, oldest first; of a gang all or none.
fn units(jobs: &[WaitingJob], wishes: impl Fn(&WaitingJob) -> bool) -> VecDeque<Unit<'_>> {
    let mut units = BTreeMap::<JobId, Unit<'_>>::new();
    for job in jobs.iter().filter(|job| wishes(job)) {
        units.entry(job.gang.unwrap_or(job.job)).or_default().push(job);
    }
    let is_whole = |unit: &Unit<'_>| {
        let of = unit.first().filter(|job| job.gang.is_some()).and_then(|job| job.request.gang);
        of.is_none_or(|of| unit.len() >= usize::from(of))
    };
    units.into_values().filter(is_whole).collect()
}

/// Whether a job waits for something that a machine would change.
fn asks(job: &WaitingJob, limits: &Limits) -> bool {
    let waits_for_place =
        matches!(job.code.as_str(), "waiting_for_capacity" | "kept_for_others" | "gang_waits")
            || job.code.starts_with("no_host");
    // All machines have one owner, and replicas must not; what outlives a machine would be lost with it.
    waits_for_place
        && job.request.apart.is_none()
        && job.request.limits.longest().0 + MachineRow::MARGIN.0 <= limits.life.0 / 2
}

/// Whether such a job has waited for long enough, and still waits when a machine is there.
fn is_worth_it(job: &WaitingJob, limits: &Limits, now: Timestamp) -> bool {
    let waits = now.since(job.queued_at);
    let is_unfit = job.code.starts_with("no_host");
    let patience = if is_unfit { limits.patience.min(Limits::SHORT) } else { limits.patience };
    let left = job.request.limits.queue_ms.0.saturating_sub(job.queued.0).saturating_sub(waits.0);
    asks(job, limits)
        && waits >= patience
        && left >= Limits::BOOT.0
        && job.machines < Limits::MACHINES_PER_JOB
}

struct Market<'a> {
    /// Offers that may be taken, cheapest first.
    offers: Vec<(&'a CloudOffer, Shape)>,
    stock: Stock,
    limits: Limits,
    /// The jobs that wait and are no part of a gang, oldest first.
    singles: Vec<&'a WaitingJob>,
    /// Those of them that would go on a machine that has nothing else, by the place of its offer.
    beside: BTreeMap<usize, Beside<'a>>,
    /// Jobs for which nothing was bought, as text: less is left for those like them.
    unserved: BTreeSet<String>,
}

/// Jobs that would go on a machine.
struct Beside<'a> {
    jobs: Vec<&'a WaitingJob>,
    /// How often it was not paid for by a job with all of those after it that fit.
    unpaid: u32,
}

/// What there is, and what more there may be.
#[derive(Clone)]
struct Stock {
    rooms: Vec<Room>,
    purchases: Vec<Purchase>,
    machines_left: u32,
    hourly_left: MicroUsd,
}

impl Stock {
    fn has(&self, job: &WaitingJob) -> bool {
        self.rooms.iter().any(|room| room.jobs.contains(&job.job))
    }

    /// Whether there is room for a job, which it then has.
    fn takes(&mut self, job: &WaitingJob) -> bool {
        self.has(job) || self.rooms.iter_mut().any(|room| room.take(job))
    }

    /// Whether there is room for all of a unit, which it then has; else none of it has.
    fn takes_all(&mut self, unit: &[&WaitingJob]) -> bool {
        if let [job] = unit {
            return self.takes(job);
        }
        let before = self.rooms.clone();
        let is_taken = unit.iter().all(|job| self.takes(job));
        if !is_taken {
            self.rooms = before;
        }
        is_taken
    }
}

impl<'a> Market<'a> {
    fn new(
        offers: &'a [CloudOffer],
        models: &Models,
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
            .filter_map(|offer| Some((offer, shape(offer, models, limits.margin_percent)?)))
            .collect();
        offers.sort_by_key(|(offer, _)| (offer.price, offer.cloud, &offer.id, &offer.region));
        let spent = rented.iter().fold(0, |sum: i64, machine| sum.saturating_add(machine.price_max.0));
        let count = u32::try_from(rented.len()).unwrap_or(u32::MAX);
        let stock = Stock {
            rooms: Room::of_free(rented).collect(),
            purchases: Vec::new(),
            machines_left: limits.machines.saturating_sub(count),
            hourly_left: MicroUsd(limits.hourly.0.saturating_sub(spent)),
        };
        let (singles, beside, unserved) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
        Self { offers, stock, limits: *limits, singles, beside, unserved }
    }

    /// Finds room for all of a unit, on machines that are bought where it takes that, or buys nothing.
    fn serve(&mut self, unit: &[&'a WaitingJob]) -> bool {
        if self.stock.machines_left == 0 {
            return self.stock.takes_all(unit);
        }
        if let [job] = unit {
            let like = format!("{:?}", (job.customer, job.left, job.request.placing()));
            let is_served = self.stock.takes(job) || !self.unserved.contains(&like) && self.buy(job, &[]);
            if !is_served {
                self.unserved.insert(like);
            }
            return is_served;
        }
        let before = self.stock.clone();
        let is_served = (1..)
            .zip(unit)
            .all(|(next, job)| self.stock.takes(job) || self.buy(job, unit.get(next..).unwrap_or_default()));
        if !is_served {
            self.stock = before;
        }
        is_served
    }

    /// Buys the cheapest machine that would take the job and is paid for well enough by it, the others of its gang and
    /// those beside it, of the first model for which there is one.
    fn buy(&mut self, job: &'a WaitingJob, gang: &[&'a WaitingJob]) -> bool {
        if self.stock.machines_left == 0 || job.in_vain >= self.limits.unused {
            return false;
        }
        let models: Vec<_> =
            job.request.resources.gpu.as_ref().map_or(vec![None], |gpu| gpu.choices().collect());
        for model in models {
            let fits = |(_, (offer, shape)): &(usize, &(&CloudOffer, Shape))| {
                most(offer.price) <= self.stock.hourly_left && shape.takes(job, model)
            };
            let offers = self.offers.iter().enumerate().filter(fits);
            let offers: Vec<usize> = offers.map(|(at, _)| at).take(Limits::OFFERS_MAX).collect();
            let Some((at, room)) = offers.into_iter().find_map(|at| Some((at, self.filled(at, job, gang)?)))
            else {
                continue;
            };
            let (offer, shape) = &self.offers[at];
            let price_max = most(offer.price);
            self.stock.machines_left -= 1;
            self.stock.hourly_left.0 -= price_max.0;
            let (offer, shape) = ((*offer).clone(), shape.clone());
            self.stock.purchases.push(Purchase { job: job.job, offer, shape, price_max });
            self.stock.rooms.push(room);
            return true;
        }
        false
    }

    /// A machine of an offer with a job, the others of its gang and those beside it, where they pay for it. What several
    /// with all beside them did not pay for is looked at no more, but for those who pay alone.
    fn filled(&mut self, at: usize, job: &'a WaitingJob, gang: &[&'a WaitingJob]) -> Option<Room> {
        let (offer, shape) = &self.offers[at];
        let mut room = Room::new(Uuid::nil(), None, shape.clone());
        room.take(job);
        for other in gang.iter().filter(|other| !self.stock.has(other)) {
            room.take(other);
        }
        let beside = self.beside.entry(at).or_insert_with(|| {
            let is_fit = |job: &&&WaitingJob| Room::new(Uuid::nil(), None, shape.clone()).take(job);
            Beside { jobs: self.singles.iter().filter(is_fit).copied().collect(), unpaid: 0 }
        });
        let pays_alone = room.pays(offer.price, &self.limits);
        if !pays_alone && beside.unpaid >= Limits::UNPAID_MAX {
            return None;
        }
        let first = job.gang.unwrap_or(job.job);
        let after = beside.jobs.partition_point(|other| other.job <= first);
        for other in beside.jobs[after..].iter().filter(|other| !self.stock.has(other)) {
            if room.is_full() {
                break;
            }
            room.take(other);
        }
        let is_paid = room.pays(offer.price, &self.limits);
        beside.unpaid += u32::from(!is_paid);
        is_paid.then_some(room)
    }
}

/// The most that a machine of this price may cost.
fn most(price: MicroUsd) -> MicroUsd {
    MicroUsd(price.0.saturating_add(price.0.saturating_mul(Limits::RISE_PERCENT) / 100))
}

#[cfg(test)]
mod tests;
