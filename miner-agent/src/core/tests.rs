use nave_domain::{Bytes, HostId, MilliCpu, host::HostState, job::Egress, lease::StopReason, mesh::MeshKey};
use nave_sdk::wire::host::{MeshSpec, PROTOCOL};
use proptest::prelude::*;

use super::*;

const FENCE: i64 = 60_000;
const NOW: Millis = Millis(1_000_000);

fn mesh_key(byte: u8) -> MeshKey {
    MeshKey::new([byte; 32]).expect("a key")
}

fn lease(n: u8) -> LeaseId {
    format!("lease_{n:032x}").parse().expect("an id")
}

fn job() -> JobId {
    format!("job_{:032x}", 1).parse().expect("an id")
}

fn order(stop: Option<StopReason>) -> Order {
    Order {
        job: job(),
        attempt: 1,
        stop,
        image: String::new(),
        argv: vec!["true".into()],
        env: BTreeMap::new(),
        milli_cpu: MilliCpu(1_000),
        memory: Bytes(1 << 26),
        disk: Bytes(1 << 26),
        devices: vec![],
        share: None,
        egress: Egress::None,
        address: None,
        peers: BTreeMap::new(),
    }
}

fn spec(leases: &[(u8, Option<StopReason>)]) -> HostSpec {
    let host: HostId = format!("host_{:032x}", 1).parse().expect("an id");
    HostSpec {
        protocol: PROTOCOL,
        generation: 1,
        host,
        state: HostState::Ready,
        reason: None,
        fence_ms: Millis(FENCE),
        report_ms: Millis(5_000),
        mesh: MeshSpec { key: mesh_key(1), hub_key: mesh_key(2), hub_endpoints: vec![] },
        challenges: BTreeMap::new(),
        serve: BTreeMap::new(),
        release: None,
        leases: leases.iter().map(|(n, stop)| (lease(*n), order(*stop))).collect(),
    }
}

fn seen(phase: Phase) -> Observed {
    Observed { job: job(), attempt: 1, phase }
}

fn exited(code: i32) -> Phase {
    Phase::Exited { code, oom: false }
}

/// One lease and everything around it.
#[derive(Debug)]
struct Case {
    spec: Option<HostSpec>,
    observed: BTreeMap<LeaseId, Observed>,
    memory: Memory,
    now: Millis,
}

impl Case {
    fn listed() -> Self {
        Self::with(Some(spec(&[(1, None)])))
    }

    fn stopping() -> Self {
        Self::with(Some(spec(&[(1, Some(StopReason::Cancelled))])))
    }

    fn unlisted() -> Self {
        Self::with(Some(spec(&[])))
    }

    fn with(spec: Option<HostSpec>) -> Self {
        let memory = Memory { heard: NOW, in_touch: true, ..Memory::default() };
        Self { spec, observed: BTreeMap::new(), memory, now: NOW }
    }

    fn sees(mut self, phase: Phase) -> Self {
        self.observed.insert(lease(1), seen(phase));
        self.memory.learn(&self.observed);
        self
    }

    fn busy(mut self, task: Task) -> Self {
        self.memory.busy.insert(lease(1), task);
        self
    }

    fn notes(mut self, note: Note) -> Self {
        self.memory.notes.insert(lease(1), note);
        self
    }

    fn silent_for(mut self, ms: i64) -> Self {
        self.now = Millis(NOW.0 + ms);
        self
    }

    fn decide(&self) -> (Option<Action>, Option<LeaseReport>) {
        let mut decision = decide(self.spec.as_ref(), &self.observed, &self.memory, self.now);
        (decision.actions.remove(&lease(1)), decision.leases.remove(&lease(1)))
    }
}

fn ended(ending: Ending) -> Note {
    Note { started: true, ending: Some(ending), finished: None }
}

fn report_of(exit: Exit) -> Option<LeaseReport> {
    Some(LeaseReport::Finished { exit, result: None })
}

#[test]
fn an_order_of_before_a_restart_waits_until_the_control_plane_was_heard_since() {
    let mut old = Case::listed();
    old.memory.in_touch = false;
    assert_eq!(old.decide(), (None, Some(LeaseReport::Preparing)));
    old.memory.answered(NOW, 2);
    assert!(!old.memory.catch_up(1), "it told of a newer spec");
    assert_eq!(old.decide().0, None);
    assert!(old.memory.catch_up(2));
    assert_eq!(old.decide().0, Some(Action::Start(order(None))));
}

#[test]
fn an_answer_counts_for_the_fence_once_its_spec_is_at_hand() {
    let mut memory = Memory { heard: Millis(10), in_touch: true, ..Memory::default() };
    memory.answered(Millis(20), 4);
    memory.answered(Millis(30), 5);
    memory.answered(Millis(25), 5);
    assert!(!memory.catch_up(3));
    assert!(memory.catch_up(4));
    assert_eq!(memory.heard, Millis(20));
    assert!(memory.catch_up(u64::MAX));
    assert_eq!((memory.heard, memory.ahead.len()), (Millis(30), 0));
    (0..1_000).for_each(|generation| memory.answered(Millis(40), generation));
    assert!(memory.ahead.len() <= AHEAD_MAX);
}

#[test]
fn a_command_that_started_just_before_the_machine_went_down_was_cut_off() {
    let observed = BTreeMap::from([(lease(1), seen(exited(255)))]);
    let mut memory = Memory::default();
    memory.machine_restarted();
    assert!(memory.learn(&observed));
    assert_eq!(memory.notes[&lease(1)].ending, Some(Ending::Cut));
    let mut later = Memory::default();
    later.machine_restarted();
    later.learn(&BTreeMap::new());
    later.learn(&observed);
    assert_eq!(later.notes[&lease(1)].ending, None, "it ended since");
}

#[test]
fn a_new_lease_is_started_once() {
    let new = Case::listed();
    assert_eq!(new.decide(), (Some(Action::Start(order(None))), Some(LeaseReport::Preparing)));
    assert_eq!(new.busy(Task::Start).decide(), (None, Some(LeaseReport::Preparing)));
}

#[test]
fn a_running_lease_is_adopted_and_left_alone() {
    assert_eq!(Case::listed().sees(Phase::Running).decide(), (None, Some(LeaseReport::Running)));
}

#[test]
fn what_ran_before_the_engine_fell_silent_is_not_said_to_run() {
    let exit = Exit::Code { code: 3 };
    let ended = LeaseReport::Exited { exit };
    let told = [LeaseReport::Preparing, LeaseReport::Running, ended.clone()];
    let reports = told.into_iter().zip(1..).map(|(report, n)| (lease(n), report)).collect();
    let unseen: Vec<LeaseReport> = unseen(reports).into_values().collect();
    assert_eq!(unseen, [LeaseReport::Preparing, LeaseReport::Unseen, ended], "and it is still listed");
}

#[test]
fn a_host_that_was_sent_away_begins_nothing_new() {
    let mut sent_away = Case::listed();
    sent_away.memory.dismissed = true;
    assert_eq!(sent_away.decide(), (None, Some(LeaseReport::Preparing)));
    let running = sent_away.sees(Phase::Running);
    assert_eq!(running.decide(), (None, Some(LeaseReport::Running)));
    assert_eq!(running.silent_for(FENCE + 1).decide().0, Some(Action::Stop(Ending::Fenced)));
}

#[test]
fn a_start_that_was_cut_short_is_cleared_away_before_the_next() {
    let half = Case::listed().sees(Phase::Created);
    assert_eq!(half.decide().0, Some(Action::Remove));
    assert_eq!(half.busy(Task::Start).decide().0, None);
}

#[test]
fn an_ended_lease_delivers_and_then_is_finished_until_the_spec_drops_it() {
    let exit = Exit::Code { code: 3 };
    let ended = Case::listed().sees(exited(3));
    let report = Some(LeaseReport::Exited { exit: exit.clone() });
    assert_eq!(ended.decide(), (Some(Action::Drain(exit.clone())), report.clone()));
    assert_eq!(ended.busy(Task::Drain).decide(), (None, report));
    let done = Finished { exit: exit.clone(), result: None };
    let note = Note { started: true, ending: None, finished: Some(done) };
    assert_eq!(Case::listed().sees(exited(3)).notes(note.clone()).decide(), (None, report_of(exit)));
    assert_eq!(Case::unlisted().sees(exited(3)).notes(note).decide().0, Some(Action::Remove));
}

#[test]
fn a_lease_that_the_spec_dropped_is_stopped_then_removed() {
    assert_eq!(Case::unlisted().sees(Phase::Running).decide().0, Some(Action::Stop(Ending::Stopped)));
    assert_eq!(Case::unlisted().sees(exited(137)).decide().0, Some(Action::Remove));
    assert_eq!(Case::unlisted().notes(Note::default()).decide(), (Some(Action::Remove), None));
}

#[test]
fn an_order_to_stop_ends_what_runs_and_what_is_being_prepared() {
    assert_eq!(Case::stopping().sees(Phase::Running).decide().0, Some(Action::Stop(Ending::Stopped)));
    assert_eq!(Case::stopping().busy(Task::Start).decide().0, Some(Action::Stop(Ending::Stopped)));
    assert_eq!(Case::stopping().decide(), (None, report_of(Exit::Stopped)));
}

#[test]
fn what_the_agent_stopped_is_reported_as_stopped_whatever_its_exit_code() {
    for code in [0, 137, 143] {
        let stopped = Case::stopping().sees(exited(code)).notes(ended(Ending::Stopped));
        assert_eq!(stopped.decide().1, Some(LeaseReport::Exited { exit: Exit::Stopped }));
    }
}

#[test]
fn exit_137_is_the_memory_limit_or_says_nothing_of_whose_fault_it_was() {
    let exit_of = |code, oom| match Case::listed().sees(Phase::Exited { code, oom }).decide().1 {
        Some(LeaseReport::Exited { exit }) => exit,
        other => panic!("{other:?}"),
    };
    assert_eq!(exit_of(137, true), Exit::OutOfMemory);
    assert_eq!(exit_of(137, false), Exit::Killed);
    assert_eq!(exit_of(1, true), Exit::Code { code: 1 });
    assert_eq!(exit_of(143, false), Exit::Code { code: 143 });
}

#[test]
fn an_end_that_the_engine_missed_is_the_hosts_fault_unless_the_agent_asked_for_it() {
    let exit_of = |case: Case| match case.sees(Phase::CutOff).decide() {
        (Some(Action::Drain(drained)), Some(LeaseReport::Exited { exit })) => {
            assert_eq!(drained, exit);
            exit
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(exit_of(Case::listed()), Exit::Lost);
    assert_eq!(exit_of(Case::stopping().notes(ended(Ending::Stopped))), Exit::Stopped);
}

#[test]
fn a_lease_that_holds_more_than_its_share_is_ended_at_once_and_says_why() {
    let found = Over { asked: Bytes(8 << 30), used: Bytes(9 << 30) };
    let mut case = Case::listed().sees(Phase::Running);
    assert_eq!(case.decide().0, None);
    case.memory.over.insert(lease(1), found);
    assert_eq!(case.decide().0, Some(Action::Stop(Ending::Over(found))));
    assert_eq!(Ending::Over(found).grace(), Millis::ZERO);
    // Its memory is given back by then, and what was noted still counts.
    let ended = Case::listed().sees(exited(137)).notes(ended(Ending::Over(found)));
    let exit = Exit::OutOfGpuMemory { asked: found.asked, used: found.used };
    assert_eq!(ended.decide().1, Some(LeaseReport::Exited { exit }));
}

#[test]
fn a_lease_whose_share_of_a_device_is_gone_ends_as_lost_whatever_its_command_makes_of_it() {
    let lost = |mut case: Case| {
        case.memory.lost.insert(lease(1));
        case
    };
    let running = lost(Case::listed().sees(Phase::Running));
    assert_eq!(running.decide().0, Some(Action::Stop(Ending::Lost)));
    assert_eq!(lost(Case::listed().busy(Task::Start)).decide().0, Some(Action::Stop(Ending::Lost)));
    for code in [1, 137, 143] {
        let failed = lost(Case::listed().sees(exited(code)));
        assert_eq!(failed.decide().0, Some(Action::Drain(Exit::Lost)), "{code}");
    }
    assert_eq!(lost(Case::listed().sees(Phase::CutOff)).decide().0, Some(Action::Drain(Exit::Lost)));
    let done = lost(Case::listed().sees(exited(0)));
    assert_eq!(done.decide().0, Some(Action::Drain(Exit::Code { code: 0 })), "it had done its work");
    // Nothing remembers it any more, and what was noted still counts.
    let ended = Case::listed().sees(exited(143)).notes(ended(Ending::Lost));
    assert_eq!(ended.decide().0, Some(Action::Drain(Exit::Lost)));
}

#[test]
fn silence_beyond_the_fence_ends_every_job_and_starts_none() {
    assert_eq!(Case::listed().sees(Phase::Running).silent_for(FENCE).decide().0, None);
    let silent = || Case::listed().silent_for(FENCE + 1);
    assert_eq!(silent().sees(Phase::Running).decide().0, Some(Action::Stop(Ending::Fenced)));
    assert_eq!(silent().busy(Task::Start).decide().0, Some(Action::Stop(Ending::Fenced)));
    assert_eq!(silent().decide(), (None, Some(LeaseReport::Preparing)));
}

#[test]
fn a_fenced_job_is_reported_as_fenced_when_the_control_plane_is_back() {
    let back = Case::listed().sees(exited(137)).notes(ended(Ending::Fenced));
    assert_eq!(back.decide().0, Some(Action::Drain(Exit::Fenced)));
}

#[test]
fn without_a_spec_jobs_run_on_until_the_fence() {
    let orphan = || Case::with(None).sees(Phase::Running);
    assert_eq!(orphan().decide().0, None);
    assert_eq!(orphan().silent_for(FENCE_DEFAULT.0 + 1).decide().0, Some(Action::Stop(Ending::Fenced)));
    assert_eq!(Case::with(None).sees(exited(0)).decide().0, None);
}

#[test]
fn a_container_that_vanished_is_lost_and_not_started_again() {
    let gone = Case::listed().notes(Note { started: true, ..Note::default() });
    assert_eq!(gone.decide(), (None, report_of(Exit::Lost)));
}

#[test]
fn a_failed_start_is_final() {
    let exit = start_failed("no such image\nsecond line");
    let failed = Finished { exit: exit.clone(), result: None };
    let case = Case::listed().notes(Note { finished: Some(failed), ..Note::default() });
    assert_eq!(case.decide(), (None, report_of(exit.clone())));
    assert_eq!(exit, Exit::StartFailed { detail: "no such image".into() });
}

#[test]
fn a_detail_is_cut_between_characters() {
    let Exit::StartFailed { detail } = start_failed(&"é".repeat(DETAIL_BYTES_MAX)) else {
        panic!("it is a failed start");
    };
    assert_eq!(detail.len(), DETAIL_BYTES_MAX);
    assert_eq!(start_failed(""), Exit::StartFailed { detail: "no reason given".into() });
}

#[test]
fn what_ran_when_the_machine_restarted_was_lost_by_it() {
    let mut case = Case::listed().sees(exited(255)).notes(Note { started: true, ..Note::default() });
    case.memory.machine_restarted();
    assert_eq!(case.decide().0, Some(Action::Drain(Exit::Lost)));
}

fn any_phase() -> impl Strategy<Value = Option<Phase>> {
    prop_oneof![
        Just(None),
        Just(Some(Phase::Created)),
        Just(Some(Phase::Running)),
        (prop_oneof![Just(0), Just(137)], any::<bool>())
            .prop_map(|(code, oom)| Some(Phase::Exited { code, oom })),
    ]
}

fn any_note() -> impl Strategy<Value = Note> {
    let ending = prop_oneof![
        3 => Just(None),
        1 => Just(Some(Ending::Stopped)),
        1 => Just(Some(Ending::Fenced)),
        1 => Just(Some(Ending::Over(Over { asked: Bytes(1), used: Bytes(2) }))),
        1 => Just(Some(Ending::Lost)),
    ];
    let finished = prop_oneof![
        3 => Just(None),
        1 => Just(Some(Finished { exit: Exit::Stopped, result: None })),
    ];
    (any::<bool>(), ending, finished).prop_map(|(started, ending, finished)| Note {
        started,
        ending,
        finished,
    })
}

fn any_busy() -> impl Strategy<Value = Option<Task>> {
    prop_oneof![
        3 => Just(None),
        1 => Just(Some(Task::Start)),
        1 => Just(Some(Task::Stop)),
        1 => Just(Some(Task::Drain)),
        1 => Just(Some(Task::Remove)),
    ]
}

/// Whether the spec lists the lease, and with an order to stop.
fn any_listing() -> impl Strategy<Value = Option<Option<bool>>> {
    prop_oneof![Just(None), Just(Some(None)), Just(Some(Some(false))), Just(Some(Some(true)))]
}

fn any_case() -> impl Strategy<Value = Case> {
    let silence = prop_oneof![Just(0), Just(FENCE), Just(FENCE + 1)];
    (any_listing(), any_phase(), any_note(), any_busy(), silence).prop_map(
        |(listing, phase, note, busy, silence)| {
            let entry = |stop: bool| (1, stop.then_some(StopReason::RunTimeout));
            let spec = listing.map(|listed| spec(&listed.map(entry).into_iter().collect::<Vec<_>>()));
            let mut case = Case::with(spec).notes(note).silent_for(silence);
            case.memory.busy.extend(busy.map(|task| (lease(1), task)));
            match phase {
                Some(phase) => case.sees(phase),
                None => case,
            }
        },
    )
}

proptest! {
    #[test]
    fn nothing_that_exists_or_ran_is_ever_started(case in any_case()) {
        let note = &case.memory.notes[&lease(1)];
        let exists = case.observed.contains_key(&lease(1));
        if let (Some(Action::Start(_)), _) = case.decide() {
            prop_assert!(!exists && !note.started && note.finished.is_none());
            prop_assert!(case.memory.busy.is_empty());
        }
    }

    #[test]
    fn what_ran_is_removed_only_when_the_spec_has_dropped_it(case in any_case()) {
        if let (Some(Action::Remove), _) = case.decide() {
            let spec = case.spec.as_ref().expect("nothing is removed without a spec");
            let never_ran = case.observed.get(&lease(1)).is_some_and(|seen| seen.phase == Phase::Created);
            prop_assert!(!spec.leases.contains_key(&lease(1)) || never_ran);
        }
    }

    #[test]
    fn beyond_the_fence_everything_that_runs_is_stopped(case in any_case()) {
        let running = case.observed.get(&lease(1)).is_some_and(|seen| seen.phase == Phase::Running);
        let free = !matches!(case.memory.busy.get(&lease(1)), Some(Task::Stop | Task::Remove | Task::Drain));
        if case.now.0 > NOW.0 + FENCE && running && free {
            prop_assert!(matches!(case.decide().0, Some(Action::Stop(_))));
        }
    }

    #[test]
    fn the_same_facts_give_the_same_decision(case in any_case()) {
        prop_assert_eq!(case.decide(), case.decide());
    }

    #[test]
    fn every_listed_lease_is_reported(case in any_case()) {
        let listed = case.spec.as_ref().is_some_and(|spec| spec.leases.contains_key(&lease(1)));
        if listed && case.memory.busy.is_empty() {
            prop_assert!(case.decide().1.is_some());
        }
    }

    /// Left alone, with every action carried out at once, a listed lease ends in
    /// `Finished` and an unlisted one in nothing at all.
    #[test]
    fn every_lease_comes_to_its_end(mut case in any_case()) {
        prop_assume!(case.spec.is_some());
        case.memory.busy.clear();
        case.now = NOW;
        let mut starts = 0;
        for _ in 0..8 {
            let (action, _) = case.decide();
            starts += usize::from(matches!(action, Some(Action::Start(_))));
            act(&mut case, action);
        }
        prop_assert!(starts <= 1);
        let listed = case.spec.as_ref().is_some_and(|spec| spec.leases.contains_key(&lease(1)));
        match (listed, case.decide()) {
            (true, (None, Some(LeaseReport::Finished { .. }))) => {}
            (false, (action, None)) => prop_assert!(action.is_none() && case.observed.is_empty()),
            (_, other) => prop_assert!(false, "{other:?}"),
        }
    }
}

/// Carries an action out at once, as a perfect runtime would; commands end by themselves.
fn act(case: &mut Case, action: Option<Action>) {
    let one = lease(1);
    let listed = case.spec.as_ref().is_some_and(|spec| spec.leases.contains_key(&one));
    match action {
        Some(Action::Start(_)) => drop(case.observed.insert(one, seen(Phase::Running))),
        Some(Action::Stop(why)) => {
            case.memory.notes.entry(one).or_default().ending.get_or_insert(why);
            case.observed.insert(one, seen(exited(137)));
        }
        Some(Action::Drain(exit)) => {
            let finished = Finished { exit, result: None };
            case.memory.notes.entry(one).or_default().finished = Some(finished);
        }
        Some(Action::Remove) => {
            case.observed.remove(&one);
            if !listed {
                case.memory.notes.remove(&one);
            }
        }
        None => {
            if case.observed.get(&one).is_some_and(|seen| seen.phase == Phase::Running) {
                case.observed.insert(one, seen(exited(0)));
            }
        }
    }
    case.memory.learn(&case.observed);
}
