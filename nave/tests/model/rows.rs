//! The market's rows as the store must keep them, written down a second time and plainly.
//!
//! State machines, rates and postings are the production ones; what is written here is which row
//! changes when, and where the money goes.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    Bytes, CustomerId, HostId, JobId, LeaseId, MicroUsd, MilliCpu, Millis, Timestamp,
    host::{self, HostEvent, HostState, Inventory, Term, Trust},
    job::{self, JobEvent, JobRequest, JobState, Tries},
    lease::{self, LeaseEvent, LeaseState, Outcome, StopReason},
    ledger::{Account, Posting},
    rate::{Rate, Size, charge},
    wish::Terms,
};
use nave_store::{Baselines, HeldLease, OpenLease, Past, Placement, QueuedJob, Snapshot, SupplyHost};
use uuid::Uuid;

use crate::Mutation;

/// Longest gap between two reports that is charged.
const METERED_GAP_MS_MAX: i64 = 10_000;
/// Longest stretch that the control clock moves on at once.
const BEAT_MS_MAX: i64 = 1_000;

pub struct Job {
    pub customer: CustomerId,
    pub request: JobRequest,
    pub state: JobState,
    pub tries: Tries,
    pub charged: i64,
    pub attempts: u32,
    queued_at: i64,
    queued: i64,
    /// How often it became final.
    pub ends: u32,
}

pub struct Lease {
    pub job: JobId,
    pub attempt: u32,
    pub host: HostId,
    pub state: LeaseState,
    pub size: Size,
    pub rate: Rate,
    pub run_max: i64,
    capped_by_spend: bool,
    disk: Bytes,
    devices: Vec<String>,
    pub used: i64,
    metered_at: Option<i64>,
    started: bool,
    ended: bool,
    pub stop: Option<StopReason>,
    stop_at: Option<i64>,
    state_up: i64,
    pub charged: i64,
    pub outcome: Option<Outcome>,
    /// How often it closed.
    pub ends: u32,
}

pub struct Host {
    pub state: HostState,
    session: Option<u64>,
    sequence: u64,
    pub generation: u64,
    heard_up: Option<i64>,
    inventory: Option<Inventory>,
    pub rate: Rate,
}

pub struct Rows {
    /// Postgres's clock.
    pub now: i64,
    /// The control clock.
    pub up: i64,
    gateway_is_up: bool,
    down_since: i64,
    pub jobs: BTreeMap<JobId, Job>,
    pub leases: BTreeMap<LeaseId, Lease>,
    pub hosts: BTreeMap<HostId, Host>,
    pub accounts: BTreeMap<Account, i64>,
    pub postings: BTreeMap<String, Posting>,
    /// Grows with every change of a job, a lease or the ledger.
    pub changes: u64,
    /// What happened at least once.
    pub marks: BTreeSet<&'static str>,
    mutation: Option<Mutation>,
}

impl Rows {
    pub fn new(mutation: Option<Mutation>) -> Self {
        Self {
            now: 1_000_000,
            up: 500_000,
            gateway_is_up: true,
            down_since: 0,
            jobs: BTreeMap::new(),
            leases: BTreeMap::new(),
            hosts: BTreeMap::new(),
            accounts: BTreeMap::new(),
            postings: BTreeMap::new(),
            changes: 1,
            marks: BTreeSet::new(),
            mutation,
        }
    }

    // --- time

    pub fn advance(&mut self, ms: i64) {
        self.now += ms;
        if self.gateway_is_up {
            self.up += ms;
        }
    }

    pub fn gateway_is_up(&self) -> bool {
        self.gateway_is_up
    }

    pub fn set_gateway(&mut self, up: bool) {
        match (self.gateway_is_up, up) {
            (true, false) => self.down_since = self.now,
            (false, true) => self.up += (self.now - self.down_since).min(BEAT_MS_MAX),
            (true, true) | (false, false) => {}
        }
        self.gateway_is_up = up;
    }

    // --- money

    pub fn post(&mut self, posting: Posting) -> bool {
        if posting.amount == MicroUsd::ZERO || self.postings.contains_key(&posting.key) {
            return false;
        }
        self.changes += 1;
        for (account, amount) in posting.entries().expect("in range") {
            *self.accounts.entry(account).or_default() += amount.0;
        }
        self.postings.insert(posting.key.clone(), posting);
        true
    }

    fn charge_rest(&mut self, id: LeaseId) {
        let lease = &self.leases[&id];
        let job = &self.jobs[&lease.job];
        let total = charge(lease.size, Millis(lease.used), lease.rate).expect("in range").0;
        let already = if self.mutation == Some(Mutation::ChargeTwice) { 0 } else { lease.charged };
        let due = (total - already).min(job.request.max_spend.0 - job.charged).max(0);
        let (job, customer, total) = (lease.job, job.customer, MicroUsd(lease.charged + due));
        if self.post(Posting::charge(job, customer, id, MicroUsd(due), total)) {
            self.add_charged(id, due);
            self.mark("charged");
        }
    }

    fn refund_all(&mut self, id: LeaseId) {
        let lease = &self.leases[&id];
        let (job, charged) = (lease.job, lease.charged);
        let customer = self.jobs[&job].customer;
        if self.post(Posting::refund(job, customer, id, MicroUsd(charged))) {
            self.add_charged(id, -charged);
            self.mark("refunded");
        }
    }

    fn add_charged(&mut self, id: LeaseId, amount: i64) {
        let lease = self.leases.get_mut(&id).expect("a lease");
        lease.charged += amount;
        self.jobs.get_mut(&lease.job).expect("a job").charged += amount;
    }

    fn release(&mut self, id: JobId) {
        let job = &self.jobs[&id];
        let rest = MicroUsd(job.request.max_spend.0 - job.charged);
        self.post(Posting::release(id, job.customer, rest));
    }

    /// The treasury's round.
    pub fn charge_all(&mut self) {
        let due = |lease: &Lease| match lease.state {
            LeaseState::Running | LeaseState::Stopping | LeaseState::Draining => lease.used > 0,
            LeaseState::Placed | LeaseState::Closed => false,
        };
        let due: Vec<LeaseId> =
            self.leases.iter().filter(|(_, lease)| due(lease)).map(|(id, _)| *id).collect();
        due.into_iter().for_each(|id| self.charge_rest(id));
    }

    // --- jobs

    pub fn submit(&mut self, id: JobId, customer: CustomerId, request: JobRequest) -> bool {
        let available = self.accounts.get(&Account::Available(customer)).copied().unwrap_or(0);
        if available < request.max_spend.0 {
            self.mark("balance too low");
            return false;
        }
        self.post(Posting::hold(id, customer, request.max_spend));
        let job = Job {
            customer,
            request,
            state: JobState::Queued,
            tries: Tries::default(),
            charged: 0,
            attempts: 0,
            queued_at: self.now,
            queued: 0,
            ends: 0,
        };
        self.jobs.insert(id, job);
        true
    }

    pub fn cancel(&mut self, id: JobId) {
        let state = self.jobs[&id].state;
        if state.is_final() || state == JobState::Cancelling {
            return;
        }
        self.advance_job(id, JobEvent::Cancel);
        if self.jobs[&id].state.is_final() {
            self.release(id);
        } else if let Some(lease) = self.open_lease(id) {
            self.stop(lease, StopReason::Cancelled);
        }
    }

    pub fn fail_queued(&mut self, id: JobId) {
        if self.jobs[&id].state == JobState::Queued {
            self.advance_job(id, JobEvent::Fail);
            self.release(id);
            self.mark("failed in the queue");
        }
    }

    fn advance_job(&mut self, id: JobId, event: JobEvent) {
        let now = self.now;
        self.changes += 1;
        let job = self.jobs.get_mut(&id).expect("a job");
        let from = job.state;
        let to = job::next(from, event).unwrap_or_else(|| panic!("{id} is {from:?}: {event:?} is illegal"));
        if from == JobState::Queued && to != JobState::Queued {
            job.queued += now - job.queued_at;
        }
        if to == JobState::Queued {
            job.queued_at = now;
        }
        job.state = to;
        job.ends += u32::from(to.is_final());
    }

    pub fn open_lease(&self, job: JobId) -> Option<LeaseId> {
        let open = |lease: &Lease| lease.job == job && lease.state != LeaseState::Closed;
        self.leases.iter().find(|(_, lease)| open(lease)).map(|(id, _)| *id)
    }

    // --- the scheduler's reads and writes

    pub fn snapshot(&self) -> Snapshot {
        let waits = self.jobs.iter().filter(|(_, job)| job.state == JobState::Queued);
        let jobs = waits.map(|(id, job)| QueuedJob {
            job: *id,
            customer: job.customer,
            request: job.request.clone(),
            left: MicroUsd(job.request.max_spend.0 - job.charged),
            queued_at: Timestamp(job.queued_at),
            queued: Millis(job.queued),
            attempts: job.attempts,
            failed_on: self.failed_on(*id),
            gang: None,
            group_leases: 0,
            apart_from: BTreeSet::new(),
            order_bytes: 0,
        });
        let ready = self.hosts.iter().filter(|(_, host)| host.state == HostState::Ready);
        let hosts = ready.filter_map(|(id, host)| Some((*id, self.supply(*id, host)?)));
        Snapshot {
            now: Timestamp(self.now),
            jobs: jobs.collect(),
            hosts: hosts.collect(),
            quotes: Vec::new(),
            baselines: Baselines::default(),
        }
    }

    fn failed_on(&self, job: JobId) -> Vec<HostId> {
        let of_job = self.leases.values().filter(|lease| lease.job == job);
        of_job
            .filter(|lease| lease.outcome.as_ref().is_some_and(Outcome::is_hosts_fault))
            .map(|lease| lease.host)
            .collect()
    }

    fn supply(&self, id: HostId, host: &Host) -> Option<SupplyHost> {
        let open = || {
            self.leases.values().filter(move |lease| lease.host == id && lease.state != LeaseState::Closed)
        };
        Some(SupplyHost {
            hotkey: id.to_string(),
            generation: host.generation,
            rate: host.rate,
            terms: Terms { term: Term::OnDemand, region: None, trust: Trust::Verified },
            lasts: None,
            inventory: host.inventory.clone()?,
            classes: BTreeMap::new(),
            models: BTreeMap::new(),
            past: Past::default(),
            past_elsewhere: Past::default(),
            yielding: Vec::new(),
            tenants: open().map(|lease| (self.jobs[&lease.job].customer, false)).collect(),
            order_bytes: 0,
            milli_cpu_used: MilliCpu(open().map(|lease| lease.size.milli_cpu.0).sum()),
            memory_used: Bytes(open().map(|lease| lease.size.memory.0).sum()),
            disk_used: Bytes(open().map(|lease| lease.disk.0).sum()),
            devices_used: open().flat_map(|lease| lease.devices.clone()).collect(),
            shared: BTreeMap::new(),
        })
    }

    pub fn place(&mut self, id: LeaseId, placement: &Placement) -> bool {
        let host = self.hosts.get_mut(&placement.host).expect("a host");
        if self.jobs[&placement.job].state != JobState::Queued
            || host.generation != placement.generation
            || host.state != HostState::Ready
        {
            self.mark("stale placement");
            return false;
        }
        host.generation += 1;
        let job = self.jobs.get_mut(&placement.job).expect("a job");
        job.attempts += 1;
        let lease = Lease {
            job: placement.job,
            attempt: job.attempts,
            host: placement.host,
            state: LeaseState::Placed,
            size: placement.size,
            rate: placement.rate,
            run_max: placement.run_max.0,
            capped_by_spend: placement.capped_by_spend,
            disk: placement.disk,
            devices: placement.devices.clone(),
            used: 0,
            metered_at: None,
            started: false,
            ended: false,
            stop: None,
            stop_at: None,
            state_up: self.up,
            charged: 0,
            outcome: None,
            ends: 0,
        };
        self.leases.insert(id, lease);
        self.advance_job(placement.job, JobEvent::Place);
        true
    }

    pub fn open_leases(&self) -> Vec<OpenLease> {
        let open = self.leases.iter().filter(|(_, lease)| lease.state != LeaseState::Closed);
        let open = open.map(|(id, lease)| OpenLease {
            lease: *id,
            job: lease.job,
            host: lease.host,
            state: lease.state,
            in_state: Millis(self.up - lease.state_up),
            limits: self.jobs[&lease.job].request.limits,
            run_max: Millis(lease.run_max),
            capped_by_spend: lease.capped_by_spend,
            noticed: None,
            silent: self.silent(lease.host),
        });
        open.collect()
    }

    pub fn silent(&self, host: HostId) -> Millis {
        Millis(self.up - self.hosts[&host].heard_up.unwrap_or(0))
    }

    pub fn hosts_suspect(&mut self, silent: Millis) {
        for id in self.hosts.keys().copied().collect::<Vec<_>>() {
            if self.hosts[&id].state == HostState::Ready && self.silent(id) > silent {
                self.host_event(id, HostEvent::Silent);
                self.mark("a host was suspect");
            }
        }
    }

    // --- hosts

    pub fn enrol(&mut self, id: HostId, rate: Rate) {
        let host = Host {
            state: HostState::Enrolled,
            session: None,
            sequence: 0,
            generation: 1,
            heard_up: None,
            inventory: None,
            rate,
        };
        self.hosts.insert(id, host);
    }

    /// Lets something happen to a host where it is legal; placements planned before are stale.
    pub fn host_event(&mut self, id: HostId, event: HostEvent) -> bool {
        let host = self.hosts.get_mut(&id).expect("a host");
        let Some(to) = host::next(host.state, event) else { return false };
        // As the store: silence bumps nothing, all else does when it changes something.
        host.generation += u64::from(to != host.state && event != HostEvent::Silent);
        host.state = to;
        true
    }

    /// Whether a report is news.
    pub fn host_hear(&mut self, id: HostId, session: u64, sequence: u64, inventory: &Inventory) -> bool {
        let host = self.hosts.get_mut(&id).expect("a host");
        let late = |known| session < known || (session == known && sequence <= host.sequence);
        if host.session.is_some_and(late) {
            return false;
        }
        host.session = Some(session);
        host.sequence = sequence;
        host.heard_up = Some(self.up);
        let another = host.inventory.as_ref() != Some(inventory);
        host.generation += u64::from(another);
        host.inventory = Some(inventory.clone());
        self.host_event(id, HostEvent::Heard)
    }

    pub fn held(&self, host: HostId) -> BTreeMap<LeaseId, HeldLease> {
        let open = self.leases.iter().filter(|(_, lease)| lease.host == host);
        let open = open.filter(|(_, lease)| lease.state != LeaseState::Closed);
        open.map(|(id, lease)| (*id, HeldLease { state: lease.state, started: lease.started })).collect()
    }

    fn bump(&mut self, host: HostId) {
        self.hosts.get_mut(&host).expect("a host").generation += 1;
    }

    // --- leases

    fn move_lease(&mut self, id: LeaseId, event: LeaseEvent) -> bool {
        let (now, up) = (self.now, self.up);
        self.changes += 1;
        let lease = self.leases.get_mut(&id).expect("a lease");
        let Some(to) = lease::next(lease.state, event) else { return false };
        if event == LeaseEvent::Started && !lease.started {
            lease.started = true;
            lease.metered_at = Some(now);
        }
        lease.ended |= to == LeaseState::Draining;
        if to != lease.state {
            lease.state_up = up;
        }
        lease.state = to;
        true
    }

    /// Use is the time between two readings, up to the stop, the longest gap and the longest run.
    fn meter(&mut self, id: LeaseId) {
        let now = self.now;
        let lease = self.leases.get_mut(&id).expect("a lease");
        let (Some(since), false) = (lease.metered_at, lease.ended) else { return };
        let until = lease.stop_at.map_or(now, |stop| stop.min(now));
        let used = (until - since).clamp(0, METERED_GAP_MS_MAX);
        lease.used = (lease.used + used).min(lease.run_max);
        lease.metered_at = Some(now);
    }

    /// The open lease that a host speaks of, if it is its own.
    fn own(&self, host: HostId, id: LeaseId) -> Option<LeaseState> {
        let lease = self.leases.get(&id).filter(|lease| lease.host == host)?;
        Some(lease.state).filter(|state| *state != LeaseState::Closed)
    }

    pub fn heard(&mut self, host: HostId, id: LeaseId) {
        if matches!(self.own(host, id), Some(LeaseState::Running | LeaseState::Stopping)) {
            self.meter(id);
        }
    }

    pub fn started(&mut self, host: HostId, id: LeaseId) {
        if self.own(host, id).is_none() || !self.move_lease(id, LeaseEvent::Started) {
            return;
        }
        let job = self.leases[&id].job;
        let state = self.jobs[&job].state;
        if job::next(state, JobEvent::Start).is_some_and(|to| to != state) {
            self.advance_job(job, JobEvent::Start);
        }
    }

    pub fn exited(&mut self, host: HostId, id: LeaseId) {
        if self.own(host, id).is_some() {
            self.meter(id);
            self.move_lease(id, LeaseEvent::Exited);
        }
    }

    pub fn finished(&mut self, host: HostId, id: LeaseId, outcome: Option<Outcome>) {
        let again = self.mutation == Some(Mutation::CountAnEndTwice)
            && self.leases[&id].ends == 1
            && !self.jobs[&self.leases[&id].job].state.is_final();
        if self.own(host, id).is_none() && !again {
            return;
        }
        let reason = self.leases[&id].stop;
        let outcome = outcome.or_else(|| reason.map(StopReason::outcome)).unwrap_or(Outcome::HostLost);
        self.close(id, &outcome);
    }

    pub fn lost(&mut self, host: HostId, id: LeaseId) {
        if self.own(host, id).is_some() {
            self.mark("a lease was lost");
            self.close(id, &Outcome::HostLost);
        }
    }

    pub fn stop(&mut self, id: LeaseId, reason: StopReason) {
        if self.leases[&id].state == LeaseState::Closed {
            return;
        }
        self.meter(id);
        if !self.move_lease(id, LeaseEvent::Stop) {
            return;
        }
        let now = self.now;
        let lease = self.leases.get_mut(&id).expect("a lease");
        lease.stop.get_or_insert(reason);
        lease.stop_at.get_or_insert(now);
        let host = lease.host;
        self.bump(host);
        self.mark(reason.as_str());
    }

    fn close(&mut self, id: LeaseId, outcome: &Outcome) {
        self.changes += 1;
        self.meter(id);
        let lease = self.leases.get_mut(&id).expect("a lease");
        lease.state = LeaseState::Closed;
        lease.ended = true;
        lease.outcome = Some(outcome.clone());
        lease.ends += 1;
        if !outcome.is_charged() {
            lease.used = 0;
        }
        let (job, host) = (lease.job, lease.host);
        self.settle_job(job, outcome);
        self.bump(host);
        if outcome.is_charged() {
            self.charge_rest(id);
        } else {
            self.refund_all(id);
        }
        if self.jobs[&job].state.is_final() {
            self.release(job);
        }
    }

    fn settle_job(&mut self, id: JobId, outcome: &Outcome) {
        let job = self.jobs.get_mut(&id).expect("a job");
        let by_command =
            matches!(outcome, Outcome::Exited { .. } | Outcome::OutOfMemory | Outcome::OutOfGpuMemory { .. });
        job.tries.command += u32::from(by_command);
        job.tries.host += u32::from(outcome.is_hosts_fault());
        let event = job::after(outcome, job.tries, job.request.retries);
        if event == JobEvent::Requeue {
            self.mark("queued again");
        }
        self.advance_job(id, event);
    }

    pub fn mark(&mut self, what: &'static str) {
        self.marks.insert(what);
    }
}

/// The n-th id of any kind: ids sort by age.
pub fn id<T: From<Uuid>>(n: u32) -> T {
    T::from(Uuid::from_u128(u128::from(n)))
}
