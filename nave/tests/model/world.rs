//! Everything together on one clock: customers, the control plane, the network and the hosts.
//!
//! The planner, the watch, the meaning of reports and the agents' decisions are the production
//! ones. What reads, waits, sends and writes is acted out here, in pieces between which anything
//! else may happen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use nave_domain::{
    Bytes, CustomerId, HostId, JobId, LeaseId, MicroUsd, MilliCpu, Millis,
    host::{Device, HostEvent, Inventory, Runtime},
    job::{Egress, GpuRequest, JobRequest, JobState, Limits, Resources},
    lease::LeaseState,
    ledger::Posting,
    mesh::MeshKey,
    rate::Rate,
};
use nave_gateway::effects::{Effect, of_report, of_silence};
use nave_scheduler::{
    planner::plan,
    watch::{Decision, Patience, watch},
};
use nave_sdk::wire::host::{HostSpec, MeshSpec, Order, PROTOCOL};
use nave_store::{HeldLease, OpenLease, Placement};

use crate::{
    Mutation,
    check::Checker,
    machine::{Machine, Report},
    rows::{Rows, id},
    schedule::{Step, Wish},
};

pub const FENCE: Millis = Millis(60_000);
const REPORT: Millis = Millis(5_000);
/// Time between two looks of those that look by themselves.
const SLICE_MS: i64 = 500;
/// Most reports of one host that are on their way.
const REPORTS_MAX: usize = 4;
/// Longest that the gateway is held up while it writes a report down.
const HANDLING_MS_MAX: i64 = 20_000;
/// What a proof or an operator may do to a host.
const TRIALS: [HostEvent; 4] = [HostEvent::Claimed, HostEvent::Proved, HostEvent::Failed, HostEvent::Retry];
/// Longest that everything takes to come to rest once nothing is broken any more.
const REST_MS_MAX: i64 = 3_600_000;

enum Message {
    Report(usize, Report),
    Ack(usize, Report, u64),
    Spec(usize, u64, Box<HostSpec>),
}

impl Message {
    fn host(&self) -> usize {
        match self {
            Self::Report(host, _) | Self::Ack(host, ..) | Self::Spec(host, ..) => *host,
        }
    }
}

/// What the watch decided about a lease of a host, and whether for its silence.
type Decided = (HostId, LeaseId, Decision, bool);

/// A report that the gateway is writing down.
struct Handling {
    host: usize,
    report: Report,
    since: i64,
    /// The newest generation and the open leases before the report was registered.
    held: Option<(u64, BTreeMap<LeaseId, HeldLease>)>,
    effects: Option<VecDeque<(LeaseId, Effect)>>,
}

pub struct World {
    pub rows: Rows,
    pub machines: Vec<Machine>,
    net: Vec<Message>,
    handlings: Vec<Handling>,
    plan: Vec<Placement>,
    decisions: Vec<Decided>,
    scheduler_is_held: bool,
    patience: Patience,
    ids: u32,
    checker: Checker,
    /// What happened, for people; only where asked for.
    pub trace: Option<Vec<String>>,
}

impl World {
    pub fn new(mutation: Option<Mutation>) -> Self {
        let mut patience = Patience::from_protocol(FENCE, REPORT);
        if mutation == Some(Mutation::RequeueBeforeTheFence) {
            patience.lost = patience.suspect;
        }
        let mut rows = Rows::new(mutation);
        let mut machines = Vec::new();
        for n in 0..3 {
            let host = id(n + 1);
            rows.enrol(host, rate(n));
            machines.push(Machine::new(host, inventory(n), rows.now, mutation));
        }
        for n in 0..3 {
            let customer: CustomerId = id(n + 1);
            rows.post(Posting::credit("first", customer, MicroUsd(2_000_000)));
        }
        Self {
            rows,
            machines,
            net: Vec::new(),
            handlings: Vec::new(),
            plan: Vec::new(),
            decisions: Vec::new(),
            scheduler_is_held: false,
            patience,
            ids: 100,
            checker: Checker::default(),
            trace: None,
        }
    }

    fn say(&mut self, what: impl FnOnce(&Self) -> String) {
        if self.trace.is_some() {
            let line = format!("{:>8} {}", self.rows.now - 1_000_000, what(self));
            self.trace.iter_mut().for_each(|trace| trace.push(line.clone()));
        }
    }

    fn check(&mut self) -> Result<(), String> {
        self.checker.check(&self.rows, &self.machines)
    }

    /// Lets one thing happen and sees that no rule is broken.
    pub fn step(&mut self, step: &Step) -> Result<(), String> {
        self.say(|_| format!("{step:?}"));
        let now = self.rows.now;
        match step {
            Step::Submit { customer, wish } => self.submit(*customer, wish),
            Step::Cancel { job } => {
                if let Some(job) = self.rows.jobs.keys().rev().nth(*job).copied() {
                    self.rows.cancel(job);
                }
            }
            Step::Pass { ms } => self.pass(*ms)?,
            Step::Link { host, up } => self.machines[*host].linked = *up,
            Step::Slow { host, slow } => self.machines[*host].slow = *slow,
            Step::Crash { host, lines } => self.machines[*host].crash(*lines),
            Step::Reboot { host, down_ms } => self.machines[*host].reboot(now, *down_ms),
            Step::Kill { host, nth } => self.machines[*host].kill(*nth, now),
            Step::Gateway { up } => self.gateway(*up),
            Step::Hold { held } => self.scheduler_is_held = *held,
            // Those of another scheduler, which is slow.
            Step::Plan => self.plan = self.plan(),
            Step::Place => {
                let plan = std::mem::take(&mut self.plan);
                self.place(plan);
            }
            Step::Watch => self.decisions = self.watch(),
            Step::Act => {
                let decisions = std::mem::take(&mut self.decisions);
                self.act(decisions);
            }
            Step::Charge => self.rows.charge_all(),
            Step::Poll { host } => self.poll(*host),
            Step::Report { host } => self.report(*host),
            Step::Work { host, nth } => self.work(*host, *nth),
            Step::Deliver { nth } => self.deliver_nth(*nth),
            Step::Lose { nth } => self.lose(*nth),
            Step::Repeat { nth } => self.repeat(*nth),
            Step::Handle { nth } if !self.handlings.is_empty() => {
                let at = nth % self.handlings.len();
                self.handle(at);
            }
            Step::Handle { .. } => {}
            Step::Trial { host, nth } => {
                let host = self.machines[*host].id;
                self.rows.host_event(host, TRIALS[nth % TRIALS.len()]);
            }
        }
        self.check()
    }

    // --- customers

    fn submit(&mut self, customer: usize, wish: &Wish) {
        self.ids += 1;
        let (job, customer): (JobId, CustomerId) =
            (id(self.ids), id(u32::try_from(customer).expect("few") + 1));
        self.rows.submit(job, customer, request(wish));
    }

    // --- the control plane

    fn gateway(&mut self, up: bool) {
        self.rows.set_gateway(up);
        if !up {
            self.handlings.clear();
        }
    }

    fn plan(&mut self) -> Vec<Placement> {
        if !self.rows.jobs.values().any(|job| job.state == JobState::Queued) {
            return Vec::new();
        }
        let plan = plan(&self.rows.snapshot());
        plan.failed.into_iter().for_each(|(job, _)| self.rows.fail_queued(job));
        plan.placements
    }

    /// As the scheduler does: where a placement on a host fails, the later ones there are dropped.
    fn place(&mut self, placements: Vec<Placement>) {
        let mut moved = BTreeSet::new();
        for placement in placements {
            self.ids += 1;
            let lease = id(self.ids);
            if moved.contains(&placement.host) {
                continue;
            }
            if self.rows.place(lease, &placement) {
                self.say(|_| format!("  {lease} of {} on {}", placement.job, placement.host));
            } else {
                moved.insert(placement.host);
            }
        }
    }

    fn watch(&mut self) -> Vec<Decided> {
        self.rows.hosts_suspect(self.patience.suspect);
        let silent = |lease: &OpenLease| lease.silent > self.patience.lost;
        let open = self.rows.open_leases().into_iter();
        open.filter_map(|l| Some((l.host, l.lease, watch(&l, &self.patience)?, silent(&l)))).collect()
    }

    fn act(&mut self, decisions: Vec<Decided>) {
        for (host, lease, decision, silent) in decisions {
            self.say(|_| format!("  {lease}: {decision:?}"));
            match decision {
                Decision::Stop(reason) => self.rows.stop(lease, reason),
                Decision::Lose if silent && self.rows.silent(host) <= self.patience.lost => {
                    self.rows.mark("came back in time");
                }
                Decision::Lose => self.rows.lost(host, lease),
            }
        }
    }

    fn look(&mut self) {
        let plan = self.plan();
        self.place(plan);
        let decisions = self.watch();
        self.act(decisions);
    }

    // --- the network

    fn poll(&mut self, host: usize) {
        let machine = &mut self.machines[host];
        let generation = self.rows.hosts[&machine.id].generation;
        let reaches = machine.linked && self.rows.gateway_is_up();
        let Some(agent) = machine.agent.as_mut().filter(|agent| reaches && !agent.polls) else { return };
        if generation > agent.after {
            agent.polls = true;
            let (session, spec) = (agent.session, spec(&self.rows, machine.id));
            self.net.push(Message::Spec(host, session, Box::new(spec)));
        }
    }

    fn report(&mut self, host: usize) {
        let on_their_way = self.net.iter().filter(|m| matches!(m, Message::Report(of, _) if *of == host));
        if on_their_way.count() < REPORTS_MAX
            && let Some(report) = self.machines[host].report(self.rows.now)
        {
            self.net.push(Message::Report(host, report));
        }
    }

    fn deliver_nth(&mut self, nth: usize) {
        let free: Vec<usize> =
            (0..self.net.len()).filter(|at| self.machines[self.net[*at].host()].linked).collect();
        if !free.is_empty() {
            let message = self.net.remove(free[nth % free.len()]);
            self.deliver(message);
        }
    }

    fn deliver(&mut self, message: Message) {
        let now = self.rows.now;
        match message {
            Message::Report(host, report) if self.rows.gateway_is_up() => {
                self.say(|_| format!("  report {} of host {host}: {:?}", report.sequence, report.leases));
                self.handlings.push(Handling { host, report, since: now, held: None, effects: None });
            }
            Message::Report(..) => {}
            Message::Ack(host, report, generation) => self.machines[host].acked(&report, generation, now),
            Message::Spec(host, session, spec) => {
                self.say(|_| format!("  spec for host {host}: {:?}", spec.leases.keys()));
                self.machines[host].take_spec(session, *spec, now);
            }
        }
    }

    fn lose(&mut self, nth: usize) {
        if self.net.is_empty() {
            return;
        }
        if let Message::Spec(host, session, _) = self.net.remove(nth % self.net.len())
            && let Some(agent) = self.machines[host].agent.as_mut().filter(|a| a.session == session)
        {
            agent.polls = false;
        }
    }

    /// Only what a host sends can come twice: answers belong to one question.
    fn repeat(&mut self, nth: usize) {
        let reports = self.net.iter().filter_map(|message| match message {
            Message::Report(host, report) => Some((*host, report.clone())),
            Message::Ack(..) | Message::Spec(..) => None,
        });
        let reports: Vec<_> = reports.collect();
        if !reports.is_empty() {
            let (host, report) = reports[nth % reports.len()].clone();
            self.net.push(Message::Report(host, report));
        }
    }

    /// Does the next of what the gateway does with a report, each in a transaction of its own.
    /// Answers whether it was the last.
    fn handle(&mut self, at: usize) -> bool {
        let handling = &mut self.handlings[at];
        let host = self.machines[handling.host].id;
        if handling.held.is_none() {
            handling.held = Some((self.rows.hosts[&host].generation, self.rows.held(host)));
            return false;
        }
        let Some(effects) = &mut handling.effects else {
            let Report { session, sequence, generation, inventory, leases, .. } = &handling.report;
            let fresh = self.rows.host_hear(host, *session, *sequence, inventory);
            let (current, held) = handling.held.clone().unwrap_or_default();
            let mut effects = if fresh { of_report(leases.clone(), &held) } else { Vec::new() };
            if fresh && *generation >= current {
                effects.extend(of_silence(leases, &held));
            }
            let (heard, news): (Vec<_>, Vec<_>) = effects.into_iter().partition(|(_, e)| *e == Effect::Heard);
            heard.into_iter().for_each(|(lease, _)| self.rows.heard(host, lease));
            handling.effects = Some(news.into());
            return false;
        };
        if let Some((lease, effect)) = effects.pop_front() {
            self.say(|_| format!("  {lease}: {effect:?}"));
            self.apply(host, lease, effect);
            return false;
        }
        let handling = self.handlings.remove(at);
        let generation = self.rows.hosts[&host].generation;
        self.net.push(Message::Ack(handling.host, handling.report, generation));
        true
    }

    fn apply(&mut self, host: HostId, lease: LeaseId, effect: Effect) {
        match effect {
            Effect::Heard => self.rows.heard(host, lease),
            Effect::Started => self.rows.started(host, lease),
            Effect::Lost => self.rows.lost(host, lease),
            Effect::Exited => self.rows.exited(host, lease),
            Effect::Finished { outcome, .. } => self.rows.finished(host, lease, outcome),
        }
    }

    // --- hosts

    fn work(&mut self, host: usize, nth: usize) {
        let tasks = self.machines[host].tasks();
        if !tasks.is_empty() {
            self.work_on(host, tasks[nth % tasks.len()]);
        }
    }

    fn work_on(&mut self, host: usize, lease: LeaseId) {
        let machine = &mut self.machines[host];
        let reaches = machine.linked && self.rows.gateway_is_up();
        machine.work(lease, self.rows.now, reaches);
    }

    // --- time

    fn pass(&mut self, ms: i64) -> Result<(), String> {
        let mut left = ms;
        while left > 0 {
            let slice = left.min(SLICE_MS);
            left -= slice;
            self.slice(slice);
            self.check()?;
        }
        Ok(())
    }

    fn slice(&mut self, ms: i64) {
        self.rows.advance(ms);
        let now = self.rows.now;
        for host in 0..self.machines.len() {
            self.machines[host].tick(now);
            for lease in self.machines[host].tasks() {
                self.work_on(host, lease);
            }
            self.machines[host].wake(now);
            self.exchange(host);
        }
        while let Some(at) = self.handlings.iter().position(|h| now - h.since > HANDLING_MS_MAX) {
            self.handle(at);
        }
        if !self.scheduler_is_held {
            self.look();
        }
        self.rows.charge_all();
    }

    /// What an agent sends by itself; it arrives at once where nothing is slow.
    fn exchange(&mut self, host: usize) {
        let now = self.rows.now;
        let due = |agent: &crate::machine::Agent| agent.unreported || now - agent.reported_at >= REPORT.0;
        if self.machines[host].agent.as_ref().is_some_and(due) {
            self.report(host);
        }
        self.poll(host);
        while !self.machines[host].slow
            && self.machines[host].linked
            && let Some(at) = self.net.iter().position(|message| message.host() == host)
        {
            let message = self.net.remove(at);
            let is_report = matches!(message, Message::Report(..));
            self.deliver(message);
            if is_report && self.rows.gateway_is_up() {
                while !self.handle(self.handlings.len() - 1) {}
            }
        }
    }

    // --- the end

    /// Mends everything, lets time pass, and sees that all comes to its end.
    pub fn come_to_rest(&mut self) -> Result<(), String> {
        self.say(|_| "everything is mended".into());
        self.gateway(true);
        self.scheduler_is_held = false;
        for machine in &mut self.machines {
            machine.linked = true;
            machine.slow = false;
            self.rows.host_event(machine.id, HostEvent::Retry);
        }
        let end = self.rows.now + REST_MS_MAX;
        while self.rows.now < end {
            self.pass(SLICE_MS)?;
            if self.restless().is_none() {
                return Ok(());
            }
        }
        Err(format!("nothing comes to rest: {}", self.restless().unwrap_or_default()))
    }

    /// What has not come to its end, if anything.
    fn restless(&self) -> Option<String> {
        if let Some((id, lease)) = self.rows.leases.iter().find(|(_, l)| l.state != LeaseState::Closed) {
            return Some(format!("{id} of {} is {:?}", lease.job, lease.state));
        }
        if let Some(machine) = self.machines.iter().find(|machine| !machine.is_clear()) {
            return Some(format!("{} keeps what nobody wants", machine.id));
        }
        if self.rows.jobs.values().all(|job| job.state.is_final()) {
            return None;
        }
        let plan = plan(&self.rows.snapshot());
        let short = |code: &str| matches!(code, "no_hosts" | "no_host_fits");
        let waits: BTreeSet<JobId> =
            plan.waiting.into_iter().filter(|(_, why)| short(why.code)).map(|(job, _)| job).collect();
        let open = self.rows.jobs.iter().find(|(id, job)| !job.state.is_final() && !waits.contains(id));
        open.map(|(id, job)| format!("{id} is {:?}", job.state))
    }
}

fn rate(n: u32) -> Rate {
    let vcpu_hour = MicroUsd(3_600_000 * i64::from(n + 1));
    Rate { gpu_hour: MicroUsd(7_200_000), vcpu_hour, gib_hour: MicroUsd(360_000) }
}

fn inventory(n: u32) -> Inventory {
    let device = Device {
        uuid: "GPU-1".into(),
        model: "any".into(),
        vram: Bytes(24 * Bytes::GIB),
        driver: "1".into(),
        simulated: false,
        division: nave_domain::fraction::Division::default(),
    };
    Inventory {
        milli_cpu: MilliCpu(2_000),
        memory: Bytes(8 * Bytes::GIB),
        disk: Bytes(100 * Bytes::GIB),
        devices: if n == 0 { vec![device] } else { Vec::new() },
        cpu_model: String::new(),
        os: String::new(),
        kernel: String::new(),
        runtime: Runtime::Simulated,
        egress: vec![Egress::Public, Egress::None],
        agent: String::new(),
    }
}

fn request(wish: &Wish) -> JobRequest {
    let milli_cpu = MilliCpu(if wish.huge { 64_000 } else { 1_000 });
    let gpu = wish.gpu.then(|| GpuRequest { vram: Bytes(1), ..GpuRequest::default() });
    let env = [
        ("RUN_MS", wish.run_ms.to_string()),
        ("FAILS", wish.fails.to_string()),
        ("STUBBORN", u8::from(wish.stubborn).to_string()),
        ("START", wish.start.to_string()),
    ];
    let least: JobRequest = serde_json::from_str(r#"{"argv":["true"]}"#).expect("the smallest request");
    JobRequest {
        env: env.map(|(name, value)| (name.to_owned(), value)).into(),
        resources: Resources { gpu, milli_cpu, ..Resources::default() },
        egress: Egress::None,
        group: None,
        limits: Limits {
            queue_ms: Millis(600_000),
            start_ms: Millis(30_000),
            run_ms: Millis(wish.run_limit_ms),
        },
        retries: wish.retries,
        max_spend: MicroUsd(wish.max_spend),
        ..least
    }
}

fn key(n: u8) -> MeshKey {
    MeshKey::new([n; 32]).expect("not all are zero")
}

/// What the gateway tells a host.
fn spec(rows: &Rows, host: HostId) -> HostSpec {
    let open = rows.leases.iter().filter(|(_, l)| l.host == host && l.state != LeaseState::Closed);
    let order = |lease: &crate::rows::Lease| {
        let request = &rows.jobs[&lease.job].request;
        Order {
            job: lease.job,
            attempt: lease.attempt,
            stop: lease.stop,
            image: String::new(),
            argv: request.argv.clone(),
            env: request.env.clone(),
            milli_cpu: request.resources.milli_cpu,
            memory: request.resources.memory,
            disk: request.resources.disk,
            devices: Vec::new(),
            share: None,
            egress: request.egress,
            address: None,
            peers: std::collections::BTreeMap::new(),
        }
    };
    HostSpec {
        protocol: PROTOCOL,
        generation: rows.hosts[&host].generation,
        host,
        state: rows.hosts[&host].state,
        reason: None,
        fence_ms: FENCE,
        report_ms: REPORT,
        mesh: MeshSpec { key: key(1), hub_key: key(2), hub_endpoints: Vec::new() },
        challenges: BTreeMap::new(),
        serve: BTreeMap::new(),
        release: None,
        leases: open.map(|(id, lease)| (*id, order(lease))).collect(),
    }
}
