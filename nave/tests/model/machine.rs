//! A host: its containers, its disk and its agent, whose decisions are the production core's.
//!
//! An agent can die at every line at which the real one writes something down or asks its engine
//! for something; what it has written and what runs stays.

use std::collections::BTreeMap;

use nave_domain::{HostId, JobId, LeaseId, Millis, host::Inventory};
use nave_miner_agent::core::{Action, Finished, Memory, Note, Observed, Phase, decide, start_failed};
use nave_sdk::wire::host::{Exit, HostSpec, LeaseReport, ResultRef};

use crate::Mutation;

/// Time that an engine takes to start a container.
const ENGINE_MS: i64 = 300;
/// Exit code of a container that ran when its machine went down.
const CODE_OF_A_CUT: i32 = 255;
/// Exit code of a command that was ended from outside.
const KILLED: i32 = 137;

pub struct Container {
    pub job: JobId,
    pub attempt: u32,
    pub phase: Phase,
    /// The engine was asked to start it and does so then.
    starting_at: Option<i64>,
    run_ms: i64,
    code: i32,
    stubborn: bool,
    ends_at: i64,
    kill_at: Option<i64>,
    /// Its command ended without anybody's doing.
    pub by_itself: bool,
}

/// What survives an agent.
#[derive(Default)]
struct Disk {
    boot: u64,
    spec: Option<HostSpec>,
    notes: BTreeMap<LeaseId, Note>,
    heard: Option<(u64, Millis)>,
}

struct Doing {
    action: Action,
    stage: u8,
}

pub struct Agent {
    pub session: u64,
    pub sequence: u64,
    /// Generation after which it asks for a spec.
    pub after: u64,
    /// Whether a spec is on its way to it.
    pub polls: bool,
    pub bulletin: BTreeMap<LeaseId, LeaseReport>,
    pub generation: u64,
    pub reported_at: i64,
    pub unreported: bool,
    spec: Option<HostSpec>,
    memory: Memory,
    unsaved: bool,
    tasks: BTreeMap<LeaseId, Doing>,
    /// Lines until it dies.
    fuse: Option<u8>,
}

/// What a report says, and when it was sent.
#[derive(Clone)]
pub struct Report {
    pub session: u64,
    pub sequence: u64,
    pub generation: u64,
    pub inventory: Inventory,
    pub leases: BTreeMap<LeaseId, LeaseReport>,
    /// On the boot clock.
    pub sent: Millis,
    pub sent_at: i64,
}

pub struct Machine {
    pub id: HostId,
    pub inventory: Inventory,
    pub linked: bool,
    pub slow: bool,
    pub containers: BTreeMap<LeaseId, Container>,
    pub agent: Option<Agent>,
    /// When the next agent begins.
    begins_at: Option<i64>,
    boot: u64,
    booted_at: i64,
    sessions: u64,
    disk: Disk,
    /// When the newest report that was answered was sent.
    pub acked_at: i64,
    /// Agents that died since then.
    pub deaths: u32,
    /// Commands that were started, by lease, ever.
    pub starts: BTreeMap<LeaseId, u32>,
    /// How the command of a lease ended by itself.
    pub ends: BTreeMap<LeaseId, i32>,
    mutation: Option<Mutation>,
}

impl Machine {
    pub fn new(id: HostId, inventory: Inventory, now: i64, mutation: Option<Mutation>) -> Self {
        Self {
            id,
            inventory,
            linked: true,
            slow: false,
            containers: BTreeMap::new(),
            agent: None,
            begins_at: Some(now),
            boot: 1,
            booted_at: now - 100_000,
            sessions: 0,
            disk: Disk::default(),
            acked_at: i64::MIN / 2,
            deaths: 0,
            starts: BTreeMap::new(),
            ends: BTreeMap::new(),
            mutation,
        }
    }

    fn clock(&self, now: i64) -> Millis {
        Millis(now - self.booted_at)
    }

    pub fn running(&self) -> impl Iterator<Item = (&LeaseId, &Container)> {
        self.containers.iter().filter(|(_, container)| container.phase == Phase::Running)
    }

    pub fn is_clear(&self) -> bool {
        let notes = self.agent.as_ref().is_some_and(|agent| agent.memory.notes.is_empty());
        self.containers.is_empty() && notes
    }

    // --- what happens to it

    /// Lets time pass for the engine and for whoever restarts agents.
    pub fn tick(&mut self, now: i64) {
        let mut changed = false;
        for (lease, container) in &mut self.containers {
            changed |= container.tick(now);
            match container.phase {
                Phase::Running if container.starting_at.take().is_some() => {
                    *self.starts.entry(*lease).or_default() += 1;
                }
                Phase::Exited { code, .. } if container.by_itself => {
                    self.ends.insert(*lease, code);
                }
                Phase::Created | Phase::Running | Phase::Exited { .. } | Phase::CutOff => {}
            }
        }
        if self.agent.is_none() && self.begins_at.is_some_and(|at| at <= now) {
            self.begin(now);
            changed = true;
        }
        if changed {
            self.wake(now);
        }
    }

    /// The agent will die `lines` lines from here; another one follows soon.
    pub fn crash(&mut self, lines: u8) {
        if self.deaths > 0 {
            return;
        }
        if let Some(agent) = &mut self.agent {
            agent.fuse.get_or_insert(lines);
        }
    }

    pub fn reboot(&mut self, now: i64, down_ms: i64) {
        self.agent = None;
        self.boot += 1;
        self.booted_at = now + down_ms;
        self.begins_at = Some(now + down_ms);
        for container in self.containers.values_mut() {
            container.starting_at = None;
            if container.phase == Phase::Running {
                container.phase = Phase::Exited { code: CODE_OF_A_CUT, oom: false };
            }
        }
    }

    /// Something on the machine kills a command.
    pub fn kill(&mut self, nth: usize, now: i64) {
        let count = self.running().count();
        let mut running = self.containers.values_mut().filter(|c| c.phase == Phase::Running);
        if let Some(container) = running.nth(nth % count.max(1)) {
            container.phase = Phase::Exited { code: KILLED, oom: false };
            self.wake(now);
        }
    }

    // --- the agent's process

    /// As the agent begins: with what an earlier one left.
    fn begin(&mut self, now: i64) {
        let clock = self.clock(now);
        let mut memory = Memory { heard: clock, ..Memory::default() };
        if let Some((_, heard)) = self.disk.heard.filter(|(boot, _)| *boot == self.boot) {
            memory.heard = heard.min(clock);
            memory.in_touch = true;
        }
        if self.mutation != Some(Mutation::ForgetNotes) {
            memory.notes = self.disk.notes.clone();
        }
        if self.disk.boot != self.boot {
            memory.machine_restarted();
        }
        self.sessions += 1;
        self.begins_at = None;
        self.agent = Some(Agent {
            session: self.sessions,
            sequence: 0,
            after: 0,
            polls: false,
            bulletin: BTreeMap::new(),
            generation: 0,
            reported_at: i64::MIN / 2,
            unreported: true,
            spec: self.disk.spec.clone(),
            memory,
            unsaved: true,
            tasks: BTreeMap::new(),
            fuse: None,
        });
    }

    fn die(&mut self, now: i64) {
        self.agent = None;
        self.deaths += 1;
        self.begins_at = Some(now + 1_000);
        // What had only been asked to end by itself is not pressed any further.
        self.containers.values_mut().for_each(|container| container.kill_at = None);
    }

    /// Runs a piece of the agent; it may not survive it.
    fn run(&mut self, now: i64, piece: impl FnOnce(&mut Self) -> Option<()>) {
        let burnt = |agent: &Agent| agent.fuse == Some(0);
        if piece(self).is_none() && self.agent.as_ref().is_some_and(burnt) {
            self.die(now);
        }
    }

    /// A line at which the agent may die.
    fn line(&mut self) -> Option<()> {
        let agent = self.agent.as_mut()?;
        match &mut agent.fuse {
            None => Some(()),
            Some(0) => None,
            Some(left) => {
                *left -= 1;
                (*left > 0).then_some(())
            }
        }
    }

    fn save(&mut self) -> Option<()> {
        self.line()?;
        let agent = self.agent.as_ref()?;
        self.disk.boot = self.boot;
        self.disk.spec.clone_from(&agent.spec);
        self.disk.notes.clone_from(&agent.memory.notes);
        self.line()
    }

    /// Looks, decides and begins what was decided, as the agent does after every event.
    pub fn wake(&mut self, now: i64) {
        self.run(now, |machine| machine.look_and_act(now));
    }

    fn look_and_act(&mut self, now: i64) -> Option<()> {
        let clock = self.clock(now);
        let observed: BTreeMap<LeaseId, Observed> = self
            .containers
            .iter()
            .map(|(id, c)| (*id, Observed { job: c.job, attempt: c.attempt, phase: c.phase }))
            .collect();
        if self.agent.as_mut()?.memory.learn(&observed) {
            self.save()?;
        }
        let agent = self.agent.as_mut()?;
        if self.mutation == Some(Mutation::IgnoreTheFence) {
            agent.memory.heard = clock;
        }
        let decision = decide(agent.spec.as_ref(), &observed, &agent.memory, clock);
        let generation = agent.spec.as_ref().map_or(0, |spec| spec.generation);
        agent.unreported |= agent.bulletin != decision.leases || agent.generation != generation;
        agent.bulletin = decision.leases;
        agent.generation = generation;
        let mut news = false;
        for (lease, action) in &decision.actions {
            if let Action::Stop(why) = action {
                let ending = &mut agent.memory.notes.entry(*lease).or_default().ending;
                news |= ending.is_none();
                ending.get_or_insert(*why);
            }
        }
        if news {
            self.save()?;
        }
        for (lease, action) in decision.actions {
            self.line()?;
            let agent = self.agent.as_mut()?;
            agent.memory.busy.insert(lease, action.task());
            agent.tasks.insert(lease, Doing { action, stage: 0 });
        }
        let agent = self.agent.as_mut()?;
        if std::mem::take(&mut agent.unsaved) {
            self.save()?;
        }
        Some(())
    }

    // --- the agent's tasks

    pub fn tasks(&self) -> Vec<LeaseId> {
        self.agent.iter().flat_map(|agent| agent.tasks.keys().copied()).collect()
    }

    /// Carries one task one step further.
    pub fn work(&mut self, lease: LeaseId, now: i64, reaches_the_plane: bool) {
        self.run(now, |machine| machine.step(lease, now, reaches_the_plane));
    }

    fn step(&mut self, lease: LeaseId, now: i64, reaches_the_plane: bool) -> Option<()> {
        let agent = self.agent.as_mut()?;
        let doing = agent.tasks.get_mut(&lease)?;
        let stage = doing.stage;
        doing.stage = stage.saturating_add(1);
        match doing.action.clone() {
            Action::Start(order) => match stage {
                0 => {
                    let number = |name: &str| order.env[name].parse::<i64>().expect("a number");
                    let fails = number("FAILS") >= i64::from(order.attempt);
                    let container = Container {
                        job: order.job,
                        attempt: order.attempt,
                        phase: Phase::Created,
                        starting_at: None,
                        run_ms: number("RUN_MS"),
                        code: if fails { 3 } else { 0 },
                        stubborn: number("STUBBORN") == 1,
                        ends_at: i64::MAX,
                        kill_at: None,
                        by_itself: false,
                    };
                    self.containers.insert(lease, container);
                    self.line()
                }
                1 => match order.env["START"].as_str() {
                    "fails" => {
                        self.containers.remove(&lease);
                        self.line()?;
                        self.finish(lease, start_failed("no space left on device"), None, now)
                    }
                    "missing" => {
                        self.containers.remove(&lease);
                        self.line()?;
                        self.finish(lease, Exit::Code { code: 127 }, None, now)
                    }
                    _ => {
                        self.containers.get_mut(&lease)?.starting_at = Some(now + ENGINE_MS);
                        self.line()
                    }
                },
                _ if self.containers.get(&lease).is_some_and(|c| c.phase == Phase::Created) => Some(()),
                _ => self.done(lease, now, |note| note.started = true),
            },
            Action::Stop(why) => {
                let container = self.containers.get_mut(&lease).filter(|c| c.phase == Phase::Running);
                match container {
                    Some(container) if stage == 0 => {
                        let grace = if container.stubborn { why.grace().0 } else { 0 };
                        container.kill_at = Some(now + grace);
                        self.line()
                    }
                    Some(_) => Some(()),
                    None => self.settle(lease, now),
                }
            }
            Action::Drain(exit) => {
                if !reaches_the_plane {
                    return Some(());
                }
                self.line()?;
                let result = ResultRef { sha256: "00".repeat(32), size: 1, truncated: false };
                self.finish(lease, exit, Some(result), now)
            }
            Action::Remove => self.remove(lease, now),
        }
    }

    fn remove(&mut self, lease: LeaseId, now: i64) -> Option<()> {
        if self.containers.get(&lease).is_some_and(|container| container.phase == Phase::Running) {
            return self.settle(lease, now);
        }
        self.containers.remove(&lease);
        self.line()?;
        let agent = self.agent.as_mut()?;
        if agent.spec.as_ref().is_some_and(|spec| spec.leases.contains_key(&lease)) {
            return self.settle(lease, now);
        }
        agent.memory.notes.remove(&lease);
        self.save()?;
        self.settle(lease, now)
    }

    fn finish(&mut self, lease: LeaseId, exit: Exit, result: Option<ResultRef>, now: i64) -> Option<()> {
        self.done(lease, now, |note| note.finished = Some(Finished { exit, result }))
    }

    fn done(&mut self, lease: LeaseId, now: i64, note: impl FnOnce(&mut Note)) -> Option<()> {
        self.line()?;
        note(self.agent.as_mut()?.memory.notes.entry(lease).or_default());
        self.save()?;
        self.settle(lease, now)
    }

    /// A task is over; the agent looks again.
    fn settle(&mut self, lease: LeaseId, now: i64) -> Option<()> {
        let agent = self.agent.as_mut()?;
        agent.tasks.remove(&lease);
        agent.memory.busy.remove(&lease);
        self.look_and_act(now)
    }

    // --- the agent's exchange with the control plane

    pub fn report(&mut self, now: i64) -> Option<Report> {
        let (sent, inventory) = (self.clock(now), self.inventory.clone());
        let agent = self.agent.as_mut()?;
        agent.sequence += 1;
        agent.reported_at = now;
        agent.unreported = false;
        Some(Report {
            session: agent.session,
            sequence: agent.sequence,
            generation: agent.generation,
            inventory,
            leases: agent.bulletin.clone(),
            sent,
            sent_at: now,
        })
    }

    /// The control plane has answered a report.
    pub fn acked(&mut self, report: &Report, generation: u64, now: i64) {
        let Some(agent) = self.agent.as_mut().filter(|agent| agent.session == report.session) else { return };
        if generation < report.generation {
            agent.after = 0;
        }
        agent.memory.answered(report.sent, generation);
        self.catch_up();
        if report.sent_at > self.acked_at {
            self.acked_at = report.sent_at;
            self.deaths = 0;
        }
        self.wake(now);
    }

    fn catch_up(&mut self) {
        let Some(agent) = self.agent.as_mut() else { return };
        let generation = agent.spec.as_ref().map_or(0, |spec| spec.generation);
        if agent.memory.catch_up(generation) {
            self.disk.heard = Some((self.boot, agent.memory.heard));
        }
    }

    pub fn take_spec(&mut self, session: u64, spec: HostSpec, now: i64) {
        let Some(agent) = self.agent.as_mut().filter(|agent| agent.session == session) else { return };
        agent.polls = false;
        agent.after = spec.generation;
        agent.unsaved |= agent.spec.as_ref() != Some(&spec);
        agent.spec = Some(spec);
        self.catch_up();
        self.wake(now);
    }
}

impl Container {
    /// Whether it changed.
    fn tick(&mut self, now: i64) -> bool {
        match self.phase {
            Phase::Created if self.starting_at.is_some_and(|at| at <= now) => {
                self.phase = Phase::Running;
                self.ends_at = now + self.run_ms;
                true
            }
            Phase::Running if self.kill_at.is_some_and(|at| at <= now) => {
                self.phase = Phase::Exited { code: 143, oom: false };
                true
            }
            Phase::Running if self.ends_at <= now => {
                self.phase = Phase::Exited { code: self.code, oom: false };
                self.by_itself = true;
                true
            }
            Phase::Created | Phase::Running | Phase::Exited { .. } | Phase::CutOff => false,
        }
    }
}
