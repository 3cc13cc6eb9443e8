//! What the agent should do next: a pure function of what is wanted, what is
//! seen and what is remembered.
//!
//! The function is level-triggered: it never asks what happened, only what is.
//! Called twice with the same arguments it answers the same; called after a
//! crash at any line it continues from what it sees. The shell carries the
//! actions out, one at a time for each lease, and calls again.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{JobId, LeaseId, Millis};
use nave_sdk::wire::host::{DETAIL_BYTES_MAX, Exit, HostSpec, LeaseReport, Order, ResultRef};
use serde::{Deserialize, Serialize};

use crate::share::Over;

#[cfg(test)]
mod tests;

/// Time between SIGTERM and SIGKILL when the spec ends a command.
pub const STOP_GRACE: Millis = Millis(10_000);
/// The same when the fence ends it: shorter, because the control plane gives
/// the job to another host a margin after the fence.
pub const FENCE_GRACE: Millis = Millis(2_000);
/// The fence of an agent that has never seen a spec.
pub const FENCE_DEFAULT: Millis = Millis(60_000);

/// What the runtime sees of one lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The job it says it belongs to.
    pub job: JobId,
    /// The attempt it says it is.
    pub attempt: u32,
    /// Where its container stands.
    pub phase: Phase,
}

/// Where a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It exists and was never started.
    Created,
    /// Its command runs.
    Running,
    /// Its command has ended.
    Exited {
        /// Exit code; 128 + n for a signal n.
        code: i32,
        /// Whether the kernel ended a process of it for the memory limit.
        oom: bool,
    },
    /// Its command has ended while the engine was away: some of its output may be lost.
    CutOff,
}

/// What the agent remembers beyond what it can see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// When the control plane was last heard by an agent that had its newest spec, on the
    /// boot clock.
    pub heard: Millis,
    /// Whether that was since the machine started. Until then the spec is what an earlier
    /// agent left, and what it orders may be another host's by now: nothing is started.
    pub in_touch: bool,
    /// Answers that told of a newer spec than is at hand: its generation, and when the report
    /// was sent that was answered.
    pub ahead: BTreeMap<u64, Millis>,
    /// The machine has restarted since the notes were written, and nothing was seen since.
    pub restarted: bool,
    /// What is known of each lease.
    pub notes: BTreeMap<LeaseId, Note>,
    /// The control plane does not know this host any more: nothing new is begun, and
    /// the fence ends the rest.
    pub dismissed: bool,
    /// Leases that were seen to hold more than their share of a device.
    pub over: BTreeMap<LeaseId, Over>,
    /// Leases whose share of a device is gone, with what they computed on it.
    pub lost: BTreeSet<LeaseId>,
    /// The task under way for a lease, in this process; a restart forgets it.
    pub busy: BTreeMap<LeaseId, Task>,
}

/// What the agent remembers of one lease; written down before it matters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Its command was seen running or ended: it is never started again.
    pub started: bool,
    /// Why the agent ended it, once it began to.
    pub ending: Option<Ending>,
    /// How it ended, once everything was delivered or nothing can be.
    pub finished: Option<Finished>,
}

/// Why a lease ends other than by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// The spec said so.
    Stopped,
    /// The control plane was not heard in time.
    Fenced,
    /// The machine restarted under it.
    Cut,
    /// It held more memory than its share of a device has.
    Over(Over),
    /// Its share of a device is gone.
    Lost,
}

impl Ending {
    fn exit(self) -> Exit {
        match self {
            Self::Stopped => Exit::Stopped,
            Self::Fenced => Exit::Fenced,
            Self::Over(Over { asked, used }) => Exit::OutOfGpuMemory { asked, used },
            Self::Cut | Self::Lost => Exit::Lost,
        }
    }

    /// Time between SIGTERM and SIGKILL.
    #[must_use]
    pub fn grace(self) -> Millis {
        match self {
            Self::Stopped | Self::Cut | Self::Lost => STOP_GRACE,
            Self::Fenced => FENCE_GRACE,
            // Every moment of grace is one in which it holds what is not its own.
            Self::Over(_) => Millis::ZERO,
        }
    }
}

/// The end of a lease, as it is reported until the spec drops it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// How it ended.
    pub exit: Exit,
    /// Its result files, where there are any.
    pub result: Option<ResultRef>,
}

/// What the shell does for a lease, without its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Prepares and starts it.
    Start,
    /// Ends its command.
    Stop,
    /// Delivers its logs and its result.
    Drain,
    /// Clears everything of it away.
    Remove,
}

/// What the shell should do for a lease.
///
/// A stop or a removal ends a start or a drain that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Prepare and start it.
    Start(Order),
    /// Note the reason, then end its command with SIGTERM and, after the
    /// reason's grace, SIGKILL.
    Stop(Ending),
    /// Deliver the rest of its logs, then its result files.
    Drain(Exit),
    /// Remove its container, network and working directory. Fails where it runs
    /// after all; then the next look decides.
    Remove,
}

impl Action {
    /// Which task carries it out.
    #[must_use]
    pub fn task(&self) -> Task {
        match self {
            Self::Start(_) => Task::Start,
            Self::Stop(_) => Task::Stop,
            Self::Drain(_) => Task::Drain,
            Self::Remove => Task::Remove,
        }
    }
}

/// What follows from one look at the world.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// What to begin now; at most one action for each lease.
    pub actions: BTreeMap<LeaseId, Action>,
    /// What to report.
    pub leases: BTreeMap<LeaseId, LeaseReport>,
}

/// Decides what to begin and what to report at `now` on the boot clock.
///
/// Without a spec nothing is started or removed; the fence still counts.
#[must_use]
pub fn decide(
    spec: Option<&HostSpec>,
    observed: &BTreeMap<LeaseId, Observed>,
    memory: &Memory,
    now: Millis,
) -> Decision {
    let fenced = now > fence_at(spec, memory);
    let mut decision = Decision::default();
    for lease in leases(spec, observed, memory) {
        let view = View {
            order: spec.map(|spec| spec.leases.get(&lease)),
            seen: observed.get(&lease).map(|seen| seen.phase),
            note: memory.notes.get(&lease).cloned().unwrap_or_default(),
            busy: memory.busy.get(&lease).copied(),
            over: memory.over.get(&lease).copied(),
            lost: memory.lost.contains(&lease),
            in_touch: memory.in_touch,
            fenced,
            dismissed: memory.dismissed,
        };
        let (action, report) = view.decide();
        if let Some(action) = action.filter(|action| may_begin(view.busy, action.task())) {
            decision.actions.insert(lease, action);
        }
        if let Some(report) = report {
            decision.leases.insert(lease, report);
        }
    }
    decision
}

/// The last moment at which the agent runs jobs without hearing anything, on the boot clock.
#[must_use]
pub fn fence_at(spec: Option<&HostSpec>, memory: &Memory) -> Millis {
    let fence = spec.map_or(FENCE_DEFAULT, |spec| spec.fence_ms);
    Millis(memory.heard.0.saturating_add(fence.0.max(0)))
}

fn leases(
    spec: Option<&HostSpec>,
    observed: &BTreeMap<LeaseId, Observed>,
    memory: &Memory,
) -> BTreeSet<LeaseId> {
    let wanted = spec.iter().flat_map(|spec| spec.leases.keys());
    wanted.chain(observed.keys()).chain(memory.notes.keys()).copied().collect()
}

/// Whether `next` may begin while `busy` is under way: only what ends the work
/// in hand overtakes it.
fn may_begin(busy: Option<Task>, next: Task) -> bool {
    match busy {
        None => true,
        Some(Task::Start) => matches!(next, Task::Stop | Task::Remove),
        Some(Task::Drain) => next == Task::Remove,
        Some(Task::Stop | Task::Remove) => false,
    }
}

/// Everything that is known of one lease.
struct View<'a> {
    /// `None` without a spec; `Some(None)` when the spec does not list it.
    order: Option<Option<&'a Order>>,
    seen: Option<Phase>,
    note: Note,
    busy: Option<Task>,
    over: Option<Over>,
    lost: bool,
    in_touch: bool,
    fenced: bool,
    dismissed: bool,
}

type Verdict = (Option<Action>, Option<LeaseReport>);

impl View<'_> {
    fn decide(&self) -> Verdict {
        match self.order {
            Some(Some(order)) => self.listed(order),
            Some(None) => self.unlisted(),
            None => self.unknown(),
        }
    }

    /// The spec lists it: bring it from order to `Finished`.
    fn listed(&self, order: &Order) -> Verdict {
        if let Some(done) = &self.note.finished {
            let still_runs = self.seen == Some(Phase::Running);
            return (still_runs.then_some(Action::Stop(Ending::Stopped)), Some(finished(done.clone())));
        }
        match self.seen {
            None => self.listed_unseen(order),
            Some(Phase::Created) => self.listed_created(order),
            Some(Phase::Running) => (self.end_running(Some(order)), Some(LeaseReport::Running)),
            Some(ended @ (Phase::Exited { .. } | Phase::CutOff)) => {
                let exit = self.exit(ended);
                (Some(Action::Drain(exit.clone())), Some(LeaseReport::Exited { exit }))
            }
        }
    }

    fn listed_unseen(&self, order: &Order) -> Verdict {
        if self.note.started {
            // Its container is gone without the agent: nothing is left to deliver.
            return (None, self.busy.is_none().then(|| vanished(self.note.ending)));
        }
        match (self.reason(Some(order)), self.busy) {
            (Some(why), Some(Task::Start)) => (Some(Action::Stop(why)), Some(LeaseReport::Preparing)),
            (Some(_), Some(_)) => (None, Some(LeaseReport::Preparing)),
            // Beyond the fence the order may be stale; it waits for the control plane.
            (Some(Ending::Fenced), None) if self.note.ending.is_none() => {
                (None, Some(LeaseReport::Preparing))
            }
            (Some(why), None) => (None, Some(vanished(Some(why)))),
            (None, None) if !self.in_touch => (None, Some(LeaseReport::Preparing)),
            (None, _) if self.dismissed => (None, Some(LeaseReport::Preparing)),
            (None, _) => (Some(Action::Start(order.clone())), Some(LeaseReport::Preparing)),
        }
    }

    /// A start is under way, or one was cut short and leaves something to clear.
    fn listed_created(&self, order: &Order) -> Verdict {
        let action = match (self.busy, self.reason(Some(order))) {
            (Some(Task::Start), None) => None,
            (Some(Task::Start), Some(why)) => Some(Action::Stop(why)),
            (_, _) => Some(Action::Remove),
        };
        (action, Some(LeaseReport::Preparing))
    }

    /// The spec does not list it: end it, then clear it away.
    fn unlisted(&self) -> Verdict {
        match self.seen {
            Some(Phase::Running) => {
                let why = self.reason(None).unwrap_or(Ending::Stopped);
                (Some(Action::Stop(why)), Some(LeaseReport::Running))
            }
            Some(ended @ (Phase::Exited { .. } | Phase::CutOff)) => {
                (Some(Action::Remove), Some(LeaseReport::Exited { exit: self.exit(ended) }))
            }
            Some(Phase::Created) | None => (Some(Action::Remove), None),
        }
    }

    /// There is no spec: keep what runs until the fence.
    fn unknown(&self) -> Verdict {
        match self.seen {
            Some(Phase::Running) => (self.end_running(None), Some(LeaseReport::Running)),
            Some(ended @ (Phase::Exited { .. } | Phase::CutOff)) => {
                (None, Some(LeaseReport::Exited { exit: self.exit(ended) }))
            }
            Some(Phase::Created) | None => (None, None),
        }
    }

    fn end_running(&self, order: Option<&Order>) -> Option<Action> {
        self.reason(order).map(Action::Stop)
    }

    /// Why it must end, if it must. What was begun is finished for the same reason.
    fn reason(&self, order: Option<&Order>) -> Option<Ending> {
        let stopped = order.is_some_and(|order| order.stop.is_some()).then_some(Ending::Stopped);
        let over = self.over.map(Ending::Over);
        let lost = self.lost.then_some(Ending::Lost);
        self.note.ending.or(stopped).or(over).or(lost).or(self.fenced.then_some(Ending::Fenced))
    }

    /// How a command ended that is seen like this.
    ///
    /// 137 is the kernel's memory limit, or something on the host killed the command; but a
    /// command may call its end so, too, so that does not show whose fault it was.
    /// Where only a child was ended for memory and the command went on, its own
    /// code counts. No command can bring about an end whose output may be lost: that is the
    /// host's fault, whatever the code. Where the share of a device is gone, a command fails for that; one that
    /// says it did its work has done it before.
    fn exit(&self, ended: Phase) -> Exit {
        match (self.note.ending, ended) {
            (Some(why), _) => why.exit(),
            (None, Phase::Exited { code: 137, oom: true }) => Exit::OutOfMemory,
            (None, Phase::Exited { code: 0, .. }) => Exit::Code { code: 0 },
            (None, _) if self.lost => Exit::Lost,
            (None, Phase::Exited { code, .. }) if code != 137 => Exit::Code { code },
            (None, Phase::Exited { .. } | Phase::Created | Phase::Running) => Exit::Killed,
            (None, Phase::CutOff) => Exit::Lost,
        }
    }
}

/// What is reported while the engine does not answer: that a lease ran when it was last
/// seen is no reason to charge for it now.
#[must_use]
pub fn unseen(leases: BTreeMap<LeaseId, LeaseReport>) -> BTreeMap<LeaseId, LeaseReport> {
    let unseen = |report| if report == LeaseReport::Running { LeaseReport::Unseen } else { report };
    leases.into_iter().map(|(lease, report)| (lease, unseen(report))).collect()
}

/// The report of a lease that has no container any more.
fn vanished(ending: Option<Ending>) -> LeaseReport {
    let exit = ending.map_or(Exit::Lost, Ending::exit);
    finished(Finished { exit, result: None })
}

fn finished(done: Finished) -> LeaseReport {
    LeaseReport::Finished { exit: done.exit, result: done.result }
}

/// A failed start as it is reported: one sentence of bounded length.
#[must_use]
pub fn start_failed(detail: &str) -> Exit {
    let line =
        detail.split(['\n', '\r', '\0']).find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    let mut end = line.len().min(DETAIL_BYTES_MAX);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    Exit::StartFailed { detail: line[..end].trim().to_owned() }
}

/// Most answers that are kept until their spec comes.
const AHEAD_MAX: usize = 64;

impl Memory {
    /// Takes in that a report sent `at` was answered while `generation` was the newest spec.
    /// It counts once that spec is at hand: who does not know what is wanted has not been told
    /// to go on. Call [`Self::catch_up`] then.
    pub fn answered(&mut self, at: Millis, generation: u64) {
        let sent = self.ahead.entry(generation).or_insert(at);
        *sent = at.max(*sent);
        if self.ahead.len() > AHEAD_MAX {
            self.ahead.pop_first();
        }
    }

    /// Takes in that the spec of `generation` is at hand. Answers whether something that was
    /// answered counts now.
    pub fn catch_up(&mut self, generation: u64) -> bool {
        let still_ahead = generation.checked_add(1).map(|next| self.ahead.split_off(&next));
        let known = std::mem::replace(&mut self.ahead, still_ahead.unwrap_or_default());
        let Some(at) = known.into_values().max() else { return false };
        self.heard = if self.in_touch { at.max(self.heard) } else { at };
        self.in_touch = true;
        true
    }

    /// Takes in what was seen: a command that ran or runs is never started again.
    /// Answers whether anything was new.
    pub fn learn(&mut self, observed: &BTreeMap<LeaseId, Observed>) -> bool {
        let mut news = false;
        let restarted = std::mem::take(&mut self.restarted);
        for (lease, seen) in observed.iter().filter(|(_, seen)| seen.phase != Phase::Created) {
            let note = self.notes.entry(*lease).or_default();
            if restarted && !note.started && seen.phase != Phase::Running {
                // It had started just before: its code says how the machine went down.
                note.ending.get_or_insert(Ending::Cut);
            }
            news |= !note.started;
            note.started = true;
        }
        news
    }

    /// Takes in that the machine has restarted: what ran then was cut off.
    pub fn machine_restarted(&mut self) {
        self.restarted = true;
        for note in self.notes.values_mut().filter(|note| note.started && note.finished.is_none()) {
            note.ending.get_or_insert(Ending::Cut);
        }
    }
}
