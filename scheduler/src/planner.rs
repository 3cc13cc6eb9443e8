//! The planner: which job goes to which host.
//!
//! The [fleet](crate::fleet) decides, by expected money; here the market becomes a fleet and its choices become
//! placements, each of which must pass `lack` once more. A gang goes all of it or none. What is left is offered to
//! those who ask for quotes. The same snapshots always give the same plans.

mod answers;
mod gangs;
mod hosts;
mod like;
mod load;
mod market;
mod money;
mod rivals;
mod wishes;

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    HostId, JobId, LeaseId, Millis, QuoteId, Timestamp,
    job::{GROUP_LEASES_MAX, TermWish},
};
use nave_store::{AskedQuote, Considered, Placement, QueuedJob, QuoteAnswer, Snapshot};

use crate::fleet::{Choice, DEVICES_MAX, Demand, Gang, Gpus, Places, Request, Waiting};
use gangs::{Unit, units};
use hosts::Hosts;
use like::Like;
use load::{Loaded, with_prior};
use market::{Market, Refusal, of_gang, wait};

/// What to do with the queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Jobs to place, in this order: later ones count on the generations of earlier ones.
    pub placements: Vec<Placement>,
    /// Leases that yield, to whom each.
    pub notices: Vec<Notice>,
    /// Jobs that wait, and for what.
    pub waiting: Vec<(JobId, Reason)>,
    /// Jobs that cannot be placed any more.
    pub failed: Vec<(JobId, Reason)>,
    /// Answers to those who ask for quotes, in this order, after the placements.
    pub quotes: Vec<Quoted>,
}

/// A lease that is to end, so that somebody gets its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notice {
    /// Where.
    pub host: HostId,
    /// Which.
    pub lease: LeaseId,
    /// The first job of those that get its place.
    pub for_job: JobId,
}

/// Why a job is not placed: a code for programs and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Stable, such as `no_host_fits`.
    pub code: &'static str,
    /// With what to do about it.
    pub message: String,
}

impl Reason {
    fn new(code: &'static str, message: String) -> Self {
        Self { code, message }
    }
}

/// The answer to a wish for a quote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted {
    /// Which.
    pub quote: QuoteId,
    /// The place, or why there is none.
    pub answer: QuoteAnswer,
    /// Hosts that were not chosen, best first.
    pub considered: Vec<Considered>,
}

/// How long a job waits until hosts are kept free for it.
const PATIENCE: Millis = Millis(300_000);
/// How often what is asked for is learned anew.
const LEARN_EVERY: Millis = Millis(30_000);
/// How often what was asked for loses an eighth of its weight.
const DECAY_EVERY: Millis = Millis(600_000);

/// Decides for one market after the other look at it, and remembers what was asked for.
#[derive(Debug, Clone, Default)]
pub struct Planner {
    hosts: Hosts,
    loaded: Loaded,
    demand: Demand,
    /// Jobs of the last look: each counts as asked for once.
    seen: BTreeSet<JobId>,
    learned_at: Option<Timestamp>,
    decayed_at: Option<Timestamp>,
    /// For whom hosts are kept free, by the first job of each.
    kept: BTreeMap<HostId, JobId>,
}

/// Decides without any memory what becomes of every queued job and of every wish for a quote.
#[must_use]
pub fn plan(snapshot: &Snapshot) -> Plan {
    Planner::default().plan(snapshot)
}

impl Planner {
    /// Forgets the hosts, which the next look reads anew. What comes of that look is the same.
    pub fn forget_hosts(&mut self) {
        self.hosts = Hosts::default();
        self.loaded.forget();
    }

    /// Decides what becomes of every queued job and of every wish for a quote.
    pub fn plan(&mut self, snapshot: &Snapshot) -> Plan {
        let known = self.loaded.classes();
        let changes = self.hosts.follow(snapshot);
        self.loaded.follow(&self.hosts, &changes);
        let has_new_classes = self.loaded.classes() > known;
        let market = Market::new(snapshot, &self.hosts);
        let loaded = &mut self.loaded;
        let mut look = Look { market, loaded, refused: BTreeMap::new(), plan: Plan::default() };
        let units = look.units(&snapshot.jobs);
        let asked: Vec<(JobId, Request)> = units
            .iter()
            .flat_map(|unit| unit.jobs.iter().zip(&unit.members))
            .map(|(job, request)| (job.job, look.loaded.asked(request)))
            .collect();
        for (_, request) in asked.iter().filter(|(job, _)| !self.seen.contains(job)) {
            self.demand.observe(request);
        }
        self.seen = asked.into_iter().map(|(job, _)| job).collect();
        let decayed_at = *self.decayed_at.get_or_insert(snapshot.now);
        if snapshot.now >= decayed_at.after(DECAY_EVERY) {
            self.demand.decay();
            self.decayed_at = Some(snapshot.now);
        }
        if has_new_classes || self.learned_at.is_none_or(|at| snapshot.now >= at.after(LEARN_EVERY)) {
            look.loaded.fleet.learn(&with_prior(&self.demand, &look.market.hosts));
            self.learned_at = Some(snapshot.now);
        }
        self.kept = look.place(&units, &self.kept);
        snapshot.quotes.iter().for_each(|asked| look.quote(asked));
        look.plan.waiting.sort_by_key(|(job, _)| *job);
        look.plan.failed.sort_by_key(|(job, _)| *job);
        look.plan
    }
}

/// Jobs for which hosts are looked for, together.
struct Eligible<'a> {
    jobs: Vec<&'a QueuedJob>,
    /// The same as the fleet sees them.
    members: Vec<Request>,
}

/// One look at a market.
struct Look<'a> {
    market: Market<'a>,
    loaded: &'a mut Loaded,
    /// Why jobs that are like others are not placed.
    refused: BTreeMap<Like, Refusal>,
    plan: Plan,
}

impl Look<'_> {
    /// Those for whom hosts are looked for now; what becomes of the others is in the plan.
    fn units<'j>(&mut self, jobs: &'j [QueuedJob]) -> Vec<Eligible<'j>> {
        let mut eligible = Vec::new();
        for unit in units(jobs) {
            match unit {
                Unit::Incomplete { queued, of } => self.wait_for_more(&queued, of),
                Unit::Whole(jobs) => {
                    let refusal = self.refused(&jobs);
                    if refusal.is_empty() {
                        let members =
                            jobs.iter().map(|job| self.loaded.request(job, self.market.names)).collect();
                        eligible.push(Eligible { jobs, members });
                    }
                    self.refuse(refusal);
                }
            }
        }
        eligible
    }

    fn wait_for_more(&mut self, queued: &[&QueuedJob], of: usize) {
        let message = format!("{} of the {of} jobs of its gang are queued", queued.len());
        for job in queued {
            let refusal = self.market.held_back(job);
            self.refuse(vec![(job.job, refusal.unwrap_or(wait("gang_incomplete", message.clone())))]);
        }
    }

    /// What becomes of jobs that no host is looked for now.
    fn refused(&self, jobs: &[&QueuedJob]) -> Vec<(JobId, Refusal)> {
        let held_back = jobs.iter().find_map(|job| Some((job.job, self.market.held_back(job)?)));
        match (held_back, jobs) {
            (Some((job, refusal)), [_]) => vec![(job, refusal)],
            (Some((job, refusal)), jobs) => of_gang(jobs, 0, job, &refusal),
            (None, [_]) => Vec::new(),
            (None, jobs) => {
                let running = jobs.iter().map(|job| job.group_leases).max().unwrap_or(0);
                let all = jobs.len() + usize::try_from(running).unwrap_or(usize::MAX);
                if all <= GROUP_LEASES_MAX as usize {
                    return Vec::new();
                }
                let message = format!("its group would have more than {GROUP_LEASES_MAX} jobs that run");
                of_gang(jobs, 0, jobs[0].job, &wait("group_full", message))
            }
        }
    }

    fn refuse(&mut self, refusals: Vec<(JobId, Refusal)>) {
        for (job, refusal) in refusals {
            match refusal {
                Refusal::Wait(reason) => self.plan.waiting.push((job, reason)),
                Refusal::Fail(reason) => self.plan.failed.push((job, reason)),
            }
        }
    }

    /// Places what can be placed; says which hosts are kept for whom, and goes by what was kept before.
    fn place(&mut self, units: &[Eligible<'_>], kept: &BTreeMap<HostId, JobId>) -> BTreeMap<HostId, JobId> {
        let number = |job: &JobId| units.binary_search_by_key(job, |unit| unit.jobs[0].job).ok();
        for (host, job) in kept {
            if let (Some(handle), Some(number)) = (self.loaded.handle(*host), number(job)) {
                self.loaded.fleet.keep_host(handle, number as u64);
            }
        }
        let now = self.market.now;
        let mut waiting: Vec<Waiting> = (0..).zip(units).map(|(id, unit)| unit.waiting(id, now)).collect();
        waiting.sort_by_key(|waiting| (waiting.since_ms, waiting.gang.id));
        let (yielding, leases) = self.loaded.yielding(self.market.yielding());
        let mut planned = self.loaded.fleet.plan(&waiting, &yielding, now.0, PATIENCE.0);
        let placed: BTreeMap<u64, Places> = std::mem::take(&mut planned.placed).into_iter().collect();
        self.market.kept = self.kept().into_keys().collect();
        let mut without = Vec::new();
        for id in waiting.iter().map(|waiting| waiting.gang.id) {
            let Some(unit) = usize::try_from(id).ok().and_then(|at| units.get(at)) else { continue };
            let places = placed.get(&id);
            let is_placed = self.place_on_slice(id, unit, places)
                || places.is_some_and(|places| self.carry_out(unit, places));
            if !is_placed {
                without.push((id, unit));
            }
        }
        without.into_iter().for_each(|(id, unit)| self.without_place(id, unit));
        let placed: BTreeSet<JobId> = self.plan.placements.iter().map(|placement| placement.job).collect();
        for (lease, id) in planned.notices {
            let (Some((host, leases)), Some(unit)) = (leases.get(lease as usize), units.get(id as usize))
            else {
                continue;
            };
            // Whoever got a place that the fleet does not see needs nobody to yield.
            let for_job = unit.jobs[0].job;
            if !placed.contains(&for_job) {
                let notice = |lease: &LeaseId| Notice { host: *host, lease: *lease, for_job };
                self.plan.notices.extend(leases.iter().map(notice));
            }
        }
        let job = |id: u64| Some(units.get(usize::try_from(id).ok()?)?.jobs[0].job);
        self.kept().into_iter().filter_map(|(host, id)| Some((host, job(id)?))).collect()
    }

    /// The hosts that are kept free, and for which unit each.
    fn kept(&self) -> BTreeMap<HostId, u64> {
        let kept = self.loaded.fleet.kept().into_iter();
        kept.filter_map(|(handle, id)| Some((self.loaded.id(handle)?, id))).collect()
    }

    /// Places a job on a slice, which the fleet does not know, where one suffices and is free, and where that is what the job
    /// wishes first and costs least. It takes nothing from those who waited for longer: they have their places.
    fn place_on_slice(&mut self, id: u64, unit: &Eligible<'_>, places: Option<&Places>) -> bool {
        let ([job], [request]) = (unit.jobs.as_slice(), unit.members.as_slice()) else { return false };
        let choice = places.and_then(|places| places.first());
        let Some(found) = self.slice(job, request, Some(id)) else { return false };
        if choice.is_some_and(|choice| self.is_better(job, request, choice, &found)) {
            return false;
        }
        if let Some(places) = places {
            self.loaded.fleet.release_gang(places);
        }
        self.occupy(job, &found);
        self.plan.placements.push(Placement { gang: unit.gang(), ..found.placement });
        true
    }

    /// Whether a choice of the fleet comes before a slice: by what is wished first, and then by what is expected to be paid.
    fn is_better(&self, job: &QueuedJob, request: &Request, choice: &Choice, slice: &Found) -> bool {
        let Some(host) = self.loaded.id(choice.host) else { return false };
        let Some(placement) = self.market.placement(job, host, choice.request.gpus, &choice.devices) else {
            return false;
        };
        let milli = u16::try_from(slice.placement.size.milli_gpu.0).unwrap_or(u16::MAX);
        let request = Request { gpus: Gpus::Share { milli, vram_mib: 0 }, ..*request };
        let handle = self.loaded.handle(slice.placement.host);
        let cost = handle.and_then(|handle| self.loaded.fleet.expected_on(handle, &request));
        let turn = |placement| self.market.turn(job, placement);
        (turn(&placement), choice.cost) <= (turn(&slice.placement), cost.unwrap_or(i64::MAX))
    }

    fn slice(&self, job: &QueuedJob, request: &Request, whose: Option<u64>) -> Option<Found> {
        if !self.market.takes_slice(job) {
            return None;
        }
        let placement = self.market.slice(job, |host| self.is_kept(host, whose))?;
        Some(Found { placement, request: Request { gpus: Gpus::None, ..*request }, places: Vec::new() })
    }

    /// Places a unit where the fleet says; `false` and nothing done where one of it may not be there.
    fn carry_out(&mut self, unit: &Eligible<'_>, places: &Places) -> bool {
        let mut before = BTreeMap::new();
        let given = (unit.jobs.len() > 1).then(|| self.market.given.clone());
        let mut placements = Vec::new();
        for (job, choice) in unit.jobs.iter().zip(places) {
            let host = self.loaded.id(choice.host);
            let placement =
                host.and_then(|host| self.market.placement(job, host, choice.request.gpus, &choice.devices));
            let Some(placement) = placement else {
                self.market.restore(before, given);
                return false;
            };
            if let Some(supply) = self.market.hosts.get(&placement.host) {
                before.entry(placement.host).or_insert_with(|| supply.clone());
            }
            self.market.occupy(job, &placement);
            placements.push(Placement { gang: unit.gang(), ..placement });
        }
        self.plan.placements.append(&mut placements);
        true
    }

    /// Says why a unit has no place, unless one is found for a job that the fleet cannot place.
    fn without_place(&mut self, id: u64, unit: &Eligible<'_>) {
        let ([job], [request]) = (unit.jobs.as_slice(), unit.members.as_slice()) else {
            return self.refuse_gang(id, unit);
        };
        let like = self.market.like(job);
        if let Some(refusal) = self.refused.get(&like) {
            return self.refuse(vec![(job.job, refusal.clone())]);
        }
        if let Some(found) = self.by_hand(job, request, Some(id)) {
            self.occupy(job, &found);
            return self.plan.placements.push(Placement { gang: unit.gang(), ..found.placement });
        }
        let refusal = self.market.without_host(job);
        self.refused.insert(like, refusal.clone());
        self.refuse(vec![(job.job, refusal)]);
    }

    /// Says how many of a gang would fit, and what the next one waits for.
    fn refuse_gang(&mut self, id: u64, unit: &Eligible<'_>) {
        let mut places = Vec::new();
        for request in &unit.members {
            let Some(choice) = self.loaded.fleet.decide_for(request, Some(id)) else { break };
            self.loaded.fleet.place(choice.host, &choice.request, &choice.devices);
            places.push(choice);
        }
        self.loaded.fleet.release_gang(&places);
        let fit = places.len().min(unit.jobs.len() - 1);
        let stuck = unit.jobs[fit];
        let why = match self.market.without_host(stuck) {
            Refusal::Wait(why) if !why.code.starts_with("no_host") && !self.fits_when_empty(id, unit) => {
                wait(why.code, self.without_room())
            }
            why @ (Refusal::Wait(_) | Refusal::Fail(_)) => why,
        };
        self.refuse(of_gang(&unit.jobs, fit, stuck.job, &why));
    }

    fn fits_when_empty(&self, id: u64, unit: &Eligible<'_>) -> bool {
        self.loaded.fleet.fits_when_empty(&Gang { id, members: unit.members.clone() })
    }

    fn without_room(&self) -> String {
        let large = format!("; those with more than {DEVICES_MAX} GPUs take no gangs");
        let beyond = if self.market.has_too_large() { large } else { String::new() };
        format!(
            "the hosts have no room for it beside the others of its gang, even when they are empty{beyond}"
        )
    }

    /// A place for a job that the fleet does not see.
    fn by_hand(&mut self, job: &QueuedJob, request: &Request, whose: Option<u64>) -> Option<Found> {
        // Where a part of a MiB may decide, hosts are looked at to the byte.
        let all = load::loosened(job, request)
            .is_some_and(|request| self.loaded.fleet.decide_for(&request, whose).is_some());
        let is_kept = |host| self.is_kept(host, whose);
        if let Some((placement, places)) = self.market.fraction(job, is_kept) {
            let gpus = if places.is_empty() { Gpus::None } else { request.gpus };
            return Some(Found { placement, request: Request { gpus, ..*request }, places });
        }
        let (host, places) = self.market.by_hand(job, all, is_kept)?;
        let gpus = self.loaded.whole(job);
        let placement = self.market.placement(job, host, gpus, &places)?;
        Some(Found { placement, request: Request { gpus, ..*request }, places })
    }

    /// Whether a host is kept for somebody else.
    fn is_kept(&self, host: HostId, whose: Option<u64>) -> bool {
        let kept_for = self.loaded.handle(host).and_then(|handle| self.loaded.fleet.kept_for(handle));
        kept_for.is_some_and(|id| whose != Some(id))
    }

    fn occupy(&mut self, job: &QueuedJob, found: &Found) {
        self.market.occupy(job, &found.placement);
        self.loaded.take(found.placement.host, &found.request, &found.places);
    }

    /// Answers a wish for a quote, as if it were a job.
    fn quote(&mut self, asked: &AskedQuote) {
        let job = QueuedJob {
            job: JobId(asked.quote.0),
            customer: asked.customer,
            left: asked.request.max_spend,
            request: asked.request.clone(),
            queued_at: asked.asked_at,
            queued: Millis::ZERO,
            attempts: 0,
            failed_on: Vec::new(),
            gang: None,
            group_leases: 0,
            apart_from: BTreeSet::new(),
            // What the job will say is not known yet; rows take a quote for nothing, and look again when it is used.
            order_bytes: 0,
        };
        let request = self.loaded.request(&job, self.market.names);
        let found = match self.market.held_back(&job) {
            Some(refusal) => Err(refusal),
            None => self.find(&job, &request).ok_or_else(|| self.market.without_host(&job)),
        };
        let chosen = found.as_ref().ok().map(|found| found.placement.host);
        let considered = self.market.considered(&job, chosen);
        if let (Ok(found), true) = (&found, asked.is_held) {
            self.occupy(&job, found);
        }
        let answer = match found {
            Ok(found) => QuoteAnswer::Place(Box::new(found.placement)),
            Err(Refusal::Wait(Reason { code, message }) | Refusal::Fail(Reason { code, message })) => {
                QuoteAnswer::None(code.to_owned(), message)
            }
        };
        self.plan.quotes.push(Quoted { quote: asked.quote, answer, considered });
    }

    fn find(&mut self, job: &QueuedJob, request: &Request) -> Option<Found> {
        let choice = self.loaded.fleet.decide(request);
        let slice = self.slice(job, request, None).filter(|slice| {
            !choice.as_ref().is_some_and(|choice| self.is_better(job, request, choice, slice))
        });
        let seen = choice.and_then(|choice| {
            let host = self.loaded.id(choice.host)?;
            let placement = self.market.placement(job, host, choice.request.gpus, &choice.devices)?;
            Some(Found { placement, request: choice.request, places: choice.devices })
        });
        slice.or(seen).or_else(|| self.by_hand(job, request, None))
    }
}

/// A placement, and what the fleet is to know of it.
struct Found {
    placement: Placement,
    /// What is taken there.
    request: Request,
    /// The places of its devices.
    places: Vec<u8>,
}

impl Eligible<'_> {
    /// With whom it is placed: also one that is told of others or kept apart from them is placed by itself.
    fn gang(&self) -> Option<JobId> {
        let first = self.jobs[0];
        let is_alone = self.jobs.len() == 1 && first.request.group.is_none() && first.request.apart.is_none();
        (!is_alone).then_some(first.job)
    }

    fn waiting(&self, id: u64, now: Timestamp) -> Waiting {
        let longest = self.jobs.iter().map(|job| waited(job, now)).max().unwrap_or_default();
        Waiting {
            gang: Gang { id, members: self.members.clone() },
            since_ms: now.0.saturating_sub(longest.0),
            on_demand: self.jobs.iter().all(|job| job.request.term != TermWish::Spot),
        }
    }
}

/// How long a job has waited, over all its attempts.
fn waited(job: &QueuedJob, now: Timestamp) -> Millis {
    Millis(job.queued.0.saturating_add(now.since(job.queued_at).0))
}

/// Wait before the next attempt after `failures` attempts that hosts ended: 0, 1, 2, 4 s.
fn pause(failures: usize) -> Millis {
    match failures {
        0 => Millis::ZERO,
        n => Millis(1_000 << (n - 1).min(6)),
    }
}
