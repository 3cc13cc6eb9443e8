//! The planner: which job goes to which host.
//!
//! Jobs are taken oldest first. Each goes to the host with the least [`Score`] among
//! those that fit, and occupies it for the rest of the plan; a gang goes with its oldest member, all of it
//! or none. What is left is offered to those who ask for quotes. The same snapshot always gives the same plan.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use nave_domain::{
    Bytes, CustomerId, HostId, JobId, MicroUsd, MilliCpu, Millis, QuoteId, Timestamp,
    job::{GROUP_LEASES_MAX, Isolation},
    lease::ChosenFor,
    rate::{affordable, hourly},
};
use nave_store::{
    AskedQuote, Baselines, Considered, Grounds, Occupied, Placement, QueuedJob, QuoteAnswer, Snapshot,
    SupplyHost,
};

use uuid::Uuid;

use crate::{
    fit::{baseline, devices, lack, models},
    wait::explain,
};

/// What to do with the queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Jobs to place, in this order: later ones count on the generations of earlier ones.
    pub placements: Vec<Placement>,
    /// Jobs that wait, and for what.
    pub waiting: Vec<(JobId, Reason)>,
    /// Jobs that cannot be placed any more.
    pub failed: Vec<(JobId, Reason)>,
    /// Answers to those who ask for quotes, in this order, after the placements.
    pub quotes: Vec<Quoted>,
}

/// Why a job is not placed: a code for programs and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Stable, such as `no_host_fits`.
    pub code: &'static str,
    /// With what to do about it.
    pub message: String,
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

/// How good a host is for a job; the least is best, and the order of the fields is the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// Attempts of this job that this host already ended.
    failures_here: usize,
    /// Whether a job without GPUs would occupy a host with GPUs.
    wastes_gpus: bool,
    /// Price per hour.
    hourly: MicroUsd,
    /// CPU left over: fuller hosts first, so that large jobs find room.
    cpu_left: MilliCpu,
    /// Makes ties repeatable.
    host: HostId,
}

/// Shortest run worth starting.
const RUN_MIN: Millis = Millis(1_000);
/// Most hosts that a quote names beside the one it is for.
const CONSIDERED_MAX: usize = 8;

/// Decides what becomes of every queued job and of every wish for a quote.
#[must_use]
pub fn plan(snapshot: &Snapshot) -> Plan {
    let mut market = Market::new(snapshot);
    let mut plan = Plan::default();
    let mut gangs = gangs(&snapshot.jobs);
    for job in &snapshot.jobs {
        match gangs.remove(&job.job) {
            Some(Gang::Whole(members)) => market.plan_gang(&members, &mut plan),
            Some(Gang::Incomplete { queued, of }) => {
                let message = format!("{queued} of the {of} jobs of its gang are queued");
                settle(&mut plan, job.job, market.held_back(job).unwrap_or(wait("gang_incomplete", message)));
            }
            Some(Gang::Follower) => {}
            None => {
                let choice = market.choose(job);
                if let Choice::Place(placement) = &choice {
                    market.occupy(job, placement);
                }
                settle(&mut plan, job.job, choice);
            }
        }
    }
    for asked in &snapshot.quotes {
        let quoted = market.quote(asked);
        plan.quotes.push(quoted);
    }
    plan
}

fn settle(plan: &mut Plan, job: JobId, choice: Choice) {
    match choice {
        Choice::Place(placement) => plan.placements.push(placement),
        Choice::Wait(reason) => plan.waiting.push((job, reason)),
        Choice::Fail(reason) => plan.failed.push((job, reason)),
    }
}

/// What a job is in its gang.
enum Gang<'a> {
    /// The oldest member; with it all of them.
    Whole(Vec<&'a QueuedJob>),
    /// One that is placed with the oldest.
    Follower,
    /// Others are missing.
    Incomplete { queued: usize, of: usize },
}

/// The gangs among jobs, by job. One that ran before is in none: the others have begun without waiting.
fn gangs(jobs: &[QueuedJob]) -> BTreeMap<JobId, Gang<'_>> {
    let mut members: BTreeMap<_, Vec<&QueuedJob>> = BTreeMap::new();
    for job in jobs.iter().filter(|job| job.attempts == 0) {
        if let (Some(gang), Some(group)) = (job.request.gang, &job.request.group) {
            members.entry((job.customer, group, gang)).or_default().push(job);
        }
    }
    let mut gangs = BTreeMap::new();
    for ((_, _, size), members) in members {
        let of = usize::from(size).max(1);
        for some in members.chunks(of) {
            for (place, job) in some.iter().enumerate() {
                let gang = match (some.len() == of, place) {
                    (false, _) => Gang::Incomplete { queued: some.len(), of },
                    (true, 0) => Gang::Whole(some.to_vec()),
                    (true, _) => Gang::Follower,
                };
                gangs.insert(job.job, gang);
            }
        }
    }
    gangs
}

enum Choice {
    Place(Placement),
    Wait(Reason),
    Fail(Reason),
}

/// The supply while it is given away.
struct Market<'a> {
    now: Timestamp,
    hosts: BTreeMap<HostId, SupplyHost>,
    empty: Vec<SupplyHost>,
    /// The miners who were given jobs that are kept apart, by their customer and number.
    given: BTreeMap<(CustomerId, Uuid), BTreeSet<String>>,
    baselines: &'a Baselines,
}

impl<'a> Market<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        Self {
            now: snapshot.now,
            hosts: snapshot.hosts.clone(),
            empty: snapshot.hosts.values().map(emptied).collect(),
            given: BTreeMap::new(),
            baselines: &snapshot.baselines,
        }
    }

    fn choose(&self, job: &QueuedJob) -> Choice {
        if let Some(choice) = self.held_back(job) {
            return choice;
        }
        let job = &*self.kept_apart(job);
        for model in models(&job.request) {
            let scores = self.scores(job, model);
            if let Some(best) = scores.iter().min()
                && let Some(host) = self.hosts.get(&best.host)
            {
                return self.place(*best, &scores, host, job, model);
            }
        }
        self.without_host(job)
    }

    /// The job with the miners that this plan has given others of it.
    fn kept_apart<'j>(&self, job: &'j QueuedJob) -> Cow<'j, QueuedJob> {
        match job.request.apart.and_then(|apart| self.given.get(&(job.customer, apart))) {
            Some(miners) => {
                let apart_from = job.apart_from.union(miners).cloned().collect();
                Cow::Owned(QueuedJob { apart_from, ..job.clone() })
            }
            None => Cow::Borrowed(job),
        }
    }

    /// What becomes of a job that no host is looked for now.
    fn held_back(&self, job: &QueuedJob) -> Option<Choice> {
        let limit = job.request.limits.queue_ms;
        let waited = Millis(job.queued.0.saturating_add(self.now.since(job.queued_at).0));
        if waited > limit {
            let message = format!("no host was free within its queue limit of {limit}");
            return Some(Choice::Fail(reason("queue_timeout", message)));
        }
        if self.now < job.queued_at.after(pause(job.failed_on.len())) {
            return Some(wait("backing_off", "a host failed to run it; it is tried again shortly".into()));
        }
        if job.group_leases >= GROUP_LEASES_MAX {
            let message =
                format!("{GROUP_LEASES_MAX} jobs of its group run, which is the most that know one another");
            return Some(wait("group_full", message));
        }
        None
    }

    fn scores(&self, job: &QueuedJob, model: Option<&str>) -> Vec<Score> {
        self.hosts.iter().filter_map(|(id, host)| score(*id, host, job, model)).collect()
    }

    fn place(
        &self,
        best: Score,
        scores: &[Score],
        host: &SupplyHost,
        job: &QueuedJob,
        model: Option<&str>,
    ) -> Choice {
        let wanted = &job.request.resources;
        let Some(run_max) = run_max(host, job) else { return Choice::Fail(too_dear(job)) };
        let devices = wanted.gpu.as_ref().map(|gpu| devices(host, gpu, model)).unwrap_or_default();
        let trust = if devices.is_empty() { host.terms.trust.without_gpus() } else { host.terms.trust };
        let baseline = baseline(self.baselines, host, &devices);
        Choice::Place(Placement {
            job: job.job,
            host: best.host,
            generation: host.generation,
            size: wanted.size(),
            disk: wanted.disk,
            devices: devices.iter().map(|device| device.uuid.clone()).collect(),
            rate: host.rate,
            run_max,
            capped_by_spend: run_max < job.request.limits.run_ms,
            grounds: Grounds { reason: chosen_for(best, scores), trust, baseline },
            gang: None,
        })
    }

    fn occupy(&mut self, job: &QueuedJob, placement: &Placement) {
        let Some(host) = self.hosts.get_mut(&placement.host) else { return };
        host.generation += 1;
        host.occupy(Occupied {
            customer: job.customer,
            alone: job.request.isolation == Isolation::Host,
            size: placement.size,
            disk: placement.disk,
            devices: placement.devices.clone(),
            order_bytes: 0,
        });
        if let Some(apart) = job.request.apart {
            self.given.entry((job.customer, apart)).or_default().insert(host.hotkey.clone());
        }
    }

    /// Places all members of a gang, or none of them: what was taken is given back then.
    fn plan_gang(&mut self, members: &[&QueuedJob], plan: &mut Plan) {
        let (mut before, mut placements) = (BTreeMap::new(), Vec::new());
        for member in members {
            let choice = if usize::try_from(member.group_leases).unwrap_or(usize::MAX) + members.len()
                > GROUP_LEASES_MAX as usize
            {
                wait("group_full", format!("its group would have more than {GROUP_LEASES_MAX} jobs that run"))
            } else {
                self.choose(member)
            };
            let Choice::Place(placement) = choice else {
                self.hosts.extend(before);
                return refuse_gang(members, (placements.len(), member.job, choice), plan);
            };
            if let Some(host) = self.hosts.get(&placement.host) {
                before.entry(placement.host).or_insert_with(|| host.clone());
            }
            self.occupy(member, &placement);
            placements.push(Placement { gang: members.first().map(|first| first.job), ..placement });
        }
        plan.placements.append(&mut placements);
    }

    /// Tells a wait for capacity from a wish that no host could meet even when empty, and
    /// from one that no host meets for what is left of its spend cap.
    fn without_host(&self, job: &QueuedJob) -> Choice {
        if self.empty.is_empty() {
            return wait("no_hosts", "no host is ready; see `nave hosts`".into());
        }
        let models = models(&job.request);
        let fits = |host: &&SupplyHost| models.iter().any(|model| lack(host, job, *model).is_none());
        let mut fitting = self.empty.iter().filter(fits).peekable();
        if fitting.peek().is_none() {
            return Choice::Wait(explain(&self.empty, job));
        }
        if fitting.all(|host| run_max(host, job).is_none()) {
            return Choice::Fail(too_dear(job));
        }
        wait("waiting_for_capacity", "every host that fits is busy".into())
    }

    /// Answers a wish for a quote, as if it were a job.
    fn quote(&mut self, asked: &AskedQuote) -> Quoted {
        let job = QueuedJob {
            job: JobId(asked.quote.0),
            customer: asked.customer,
            left: asked.request.max_spend,
            request: asked.request.clone(),
            queued_at: asked.asked_at,
            queued: Millis::ZERO,
            attempts: 0,
            failed_on: Vec::new(),
            group_leases: 0,
            apart_from: BTreeSet::new(),
        };
        let (answer, chosen) = match self.choose(&job) {
            Choice::Place(placement) => {
                let host = placement.host;
                (QuoteAnswer::Place(Box::new(placement)), Some(host))
            }
            Choice::Wait(Reason { code, message }) | Choice::Fail(Reason { code, message }) => {
                (QuoteAnswer::None(code.to_owned(), message), None)
            }
        };
        let considered = self.considered(&job, chosen);
        if let (QuoteAnswer::Place(placement), true) = (&answer, asked.is_held) {
            self.occupy(&job, placement);
        }
        Quoted { quote: asked.quote, answer, considered }
    }

    /// The hosts that were not chosen: those that fit, cheapest first, then the others.
    fn considered(&self, job: &QueuedJob, chosen: Option<HostId>) -> Vec<Considered> {
        let model = models(&job.request).first().copied().flatten();
        let others = self.hosts.iter().filter(|(id, _)| Some(**id) != chosen);
        let mut considered: Vec<(bool, Considered)> = others
            .filter_map(|(id, host)| {
                let hourly = hourly(job.request.resources.size(), host.rate).ok()?;
                let lacks = lack(host, job, model);
                let is_busy = lacks.is_some() && lack(&emptied(host), job, model).is_none();
                let code = lacks.map_or("not_better", |lack| if is_busy { "busy" } else { lack.code() });
                Some((lacks.is_some(), Considered { host: *id, hourly, code: code.to_owned() }))
            })
            .collect();
        considered.sort_by_key(|(lacks, other)| (*lacks, other.hourly, other.host));
        considered.into_iter().map(|(_, other)| other).take(CONSIDERED_MAX).collect()
    }
}

/// All members wait, but for one that cannot be placed any more.
fn refuse_gang(members: &[&QueuedJob], (fit, stuck, choice): (usize, JobId, Choice), plan: &mut Plan) {
    let why = match choice {
        Choice::Fail(reason) => {
            let why = reason.message.clone();
            plan.failed.push((stuck, reason));
            why
        }
        Choice::Wait(reason) => reason.message,
        Choice::Place(_) => return,
    };
    for member in members.iter().filter(|member| plan.failed.last().is_none_or(|(job, _)| *job != member.job))
    {
        let message =
            format!("{fit} of the {} jobs of its gang would fit now; the next: {why}", members.len());
        plan.waiting.push((member.job, reason("gang_waits", message)));
    }
}

/// Wait before the next attempt after `failures` attempts that hosts ended: 0, 1, 2, 4 s.
fn pause(failures: usize) -> Millis {
    match failures {
        0 => Millis::ZERO,
        n => Millis(1_000 << (n - 1).min(6)),
    }
}

/// The host's score, or `None` when the job does not fit now or cannot pay for it.
fn score(id: HostId, host: &SupplyHost, job: &QueuedJob, model: Option<&str>) -> Option<Score> {
    if lack(host, job, model).is_some() {
        return None;
    }
    run_max(host, job)?;
    let wanted = &job.request.resources;
    Some(Score {
        failures_here: job.failed_on.iter().filter(|failed| **failed == id).count(),
        wastes_gpus: wanted.gpu.is_none() && host.inventory.rentable_devices().next().is_some(),
        hourly: hourly(wanted.size(), host.rate).ok()?,
        cpu_left: MilliCpu(host.inventory.milli_cpu.0 - host.milli_cpu_used.0 - wanted.milli_cpu.0),
        host: id,
    })
}

/// Why the best of all that fit was chosen.
fn chosen_for(best: Score, scores: &[Score]) -> ChosenFor {
    let cheaper: Vec<&Score> = scores.iter().filter(|other| other.hourly < best.hourly).collect();
    if scores.len() == 1 {
        ChosenFor::OnlyFit
    } else if cheaper.is_empty() {
        ChosenFor::Cheapest
    } else if cheaper.iter().any(|other| other.failures_here > best.failures_here) {
        ChosenFor::FailedElsewhere
    } else {
        ChosenFor::KeepsGpusFree
    }
}

/// The longest run that the limit allows and the rest of the spend cap pays for; `None`
/// when that is too short to start.
fn run_max(host: &SupplyHost, job: &QueuedJob) -> Option<Millis> {
    let limit = job.request.limits.run_ms;
    let paid = affordable(job.request.resources.size(), job.left, host.rate);
    let run_max = paid.map_or(limit, |paid| paid.min(limit));
    (run_max >= RUN_MIN.min(limit)).then_some(run_max)
}

fn emptied(host: &SupplyHost) -> SupplyHost {
    SupplyHost {
        milli_cpu_used: MilliCpu::ZERO,
        memory_used: Bytes::ZERO,
        disk_used: Bytes::ZERO,
        devices_used: Vec::new(),
        tenants: std::collections::BTreeSet::new(),
        reserved: None,
        ..host.clone()
    }
}

fn too_dear(job: &QueuedJob) -> Reason {
    let left = job.left;
    let message = format!("the {left} left of its spend cap pay for less than a second; raise max_spend");
    reason("spend_cap", message)
}

fn wait(code: &'static str, message: String) -> Choice {
    Choice::Wait(reason(code, message))
}

fn reason(code: &'static str, message: String) -> Reason {
    Reason { code, message }
}
