//! When hosts are tested again: what is seen, the time and numbers in, actions out.

use std::collections::BTreeSet;

use nave_domain::{
    Bytes, HostId, LeaseId, MilliCpu, Millis, Timestamp,
    host::{Device, HostState, Inventory, Proven, Runtime},
    lease::LeaseState,
    verdict::{Cause, Kind},
};
use nave_store::{Moment, OpenWindow, Watch, WatchedHost, WatchedLease};
use nave_verifier::{
    Means,
    draw::Rules,
    schedule::{Action, Probe, plan},
};
use proptest::prelude::*;
use uuid::Uuid;

const HOUR: i64 = 3_600_000;
const MEANS: Means = Means { retest: Millis(6 * HOUR), probe: Millis(HOUR / 2), window: Millis(8 * HOUR) };
const NOW: Millis = Millis(100 * HOUR);

fn rules(enforced: &[Kind]) -> Rules {
    let enforced = enforced.iter().copied().collect();
    Rules { enforced, shadow: BTreeSet::new(), effort: Millis(1) }
}

fn all() -> Rules {
    rules(&[Kind::Cpu, Kind::Memory, Kind::Devices])
}

fn claims(devices: u8) -> Inventory {
    let device = |n| Device {
        uuid: format!("GPU-{n}"),
        model: "a GPU".into(),
        vram: Bytes(Bytes::GIB),
        driver: "1".into(),
        simulated: false,
        division: nave_domain::fraction::Division::default(),
    };
    Inventory {
        milli_cpu: MilliCpu(1_000),
        memory: Bytes(Bytes::GIB),
        disk: Bytes(Bytes::GIB),
        devices: (0..devices).map(device).collect(),
        cpu_model: "a processor".into(),
        os: "test".into(),
        kernel: "test".into(),
        runtime: Runtime::Simulated,
        egress: Vec::new(),
        agent: "test".into(),
    }
}

/// A host that takes jobs and has proven everything.
fn host(number: u128, devices: u8) -> WatchedHost {
    let claims = claims(devices);
    WatchedHost {
        host: HostId(Uuid::from_u128(number)),
        generation: 7,
        state: HostState::Ready,
        proven: Some(Proven { devices: Some(std::collections::BTreeMap::new()), ..Proven::of(&claims) }),
        claims,
        retest_up: Some(Millis(NOW.0 + 1)),
        strained_up: None,
        is_heard: true,
        open: BTreeSet::new(),
        is_disputed: false,
        in_window: false,
        leases: Vec::new(),
    }
}

fn lease(number: u128, state: LeaseState, has_devices: bool) -> WatchedLease {
    WatchedLease {
        lease: LeaseId(Uuid::from_u128(number)),
        state,
        was_started: state != LeaseState::Placed,
        devices: has_devices.then(|| "GPU-0".to_owned()).into_iter().collect(),
        is_share: false,
        probe_up: Some(Millis(NOW.0 + 1)),
        start_probed: true,
        end_probed: false,
    }
}

fn leased(lease: WatchedLease) -> WatchedHost {
    WatchedHost { leases: vec![lease], ..host(1, 1) }
}

fn watch(hosts: Vec<WatchedHost>) -> Watch {
    let now = Moment { at: Timestamp(0), up: NOW };
    Watch { now, hosts, ahead: Some((Uuid::from_u128(9), Millis(NOW.0 + 1))), opened: None, missed: None }
}

fn opened() -> Option<OpenWindow> {
    Some(OpenWindow { window: Uuid::from_u128(8), beacon: "be".repeat(32) })
}

fn actions(watch: &Watch, rules: &Rules) -> Vec<Action> {
    plan(watch, rules, &MEANS, &mut || 1 << 63)
}

fn of(host: WatchedHost) -> Vec<Action> {
    actions(&watch(vec![host]), &all())
}

fn causes(actions: &[Action]) -> Vec<Cause> {
    let cause = |action: &Action| match action {
        Action::Retest(_, _, cause) | Action::Probe(Probe { cause, .. }) => Some(*cause),
        Action::RetestAt(..)
        | Action::ProbeAt(..)
        | Action::Demand(..)
        | Action::Hidden(_)
        | Action::PlanWindow(_)
        | Action::ReplaceWindow(..)
        | Action::OpenWindow(_) => None,
    };
    actions.iter().filter_map(cause).collect()
}

#[test]
fn a_host_whose_result_is_disputed_is_tested_as_soon_as_it_is_free() {
    let disputed = WatchedHost { is_disputed: true, ..host(1, 0) };
    let retest = [Action::Retest(disputed.host, 7, Cause::Dispute)];
    assert_eq!(of(disputed.clone()), retest);
    let closed = WatchedHost { leases: vec![lease(1, LeaseState::Closed, false)], ..disputed.clone() };
    assert_eq!(of(closed), retest);
    let busy = WatchedHost { leases: vec![lease(1, LeaseState::Running, false)], ..disputed.clone() };
    let silent = WatchedHost { is_heard: false, ..disputed.clone() };
    let tested = WatchedHost { open: BTreeSet::from([Kind::Cpu]), ..disputed };
    for other in [busy, silent, tested] {
        assert_eq!(causes(&of(other)), []);
    }
}

#[test]
fn a_host_is_tested_again_at_a_time_that_was_drawn_if_it_is_free() {
    let unset = WatchedHost { retest_up: None, ..host(1, 0) };
    let up = Millis(NOW.0 + 14_971_979);
    assert_eq!(of(unset.clone()), [Action::RetestAt(unset.host, up)], "ln 2 times six hours");
    assert_eq!(of(host(1, 0)), [], "its time has not come");
    let due = WatchedHost { retest_up: Some(NOW), ..host(1, 0) };
    assert_eq!(of(due.clone()), [Action::Retest(due.host, 7, Cause::Random)]);
    let busy = WatchedHost { leases: vec![lease(1, LeaseState::Running, false)], ..due.clone() };
    assert_eq!(of(busy), [], "a job of cores leaves no room for a test of cores");
    let silent = WatchedHost { is_heard: false, ..due.clone() };
    assert_eq!(of(silent), []);
    let tested = WatchedHost { open: BTreeSet::from([Kind::Cpu]), ..due };
    assert_eq!(of(tested), []);
}

#[test]
fn a_host_that_has_proven_less_than_is_wanted_by_now_is_tested_when_it_is_free() {
    let before = WatchedHost { proven: Some(Proven::of(&claims(1))), ..host(1, 1) };
    assert_eq!(of(before.clone()), [Action::Retest(before.host, 7, Cause::Operator)]);
    let few = rules(&[Kind::Cpu, Kind::Memory]);
    assert_eq!(actions(&watch(vec![before.clone()]), &few), [], "it has proven what was wanted");
    let busy = WatchedHost { leases: vec![lease(1, LeaseState::Running, false)], ..before };
    assert_eq!(of(busy), []);
}

/// A lease that has a share of a GPU.
fn share(number: u128, state: LeaseState, device: &str) -> WatchedLease {
    let share = lease(number, state, true);
    WatchedLease { start_probed: false, is_share: true, devices: vec![device.into()], ..share }
}

fn tested(actions: &[Action]) -> Vec<(Cause, Vec<String>)> {
    let tested = |action: &Action| match action {
        Action::Probe(probe) => Some(probe.clone()),
        Action::Retest(..)
        | Action::RetestAt(..)
        | Action::ProbeAt(..)
        | Action::Demand(..)
        | Action::Hidden(_)
        | Action::PlanWindow(_)
        | Action::ReplaceWindow(..)
        | Action::OpenWindow(_) => None,
    };
    let names = |probe: Probe| probe.devices.into_iter().map(|device| device.uuid).collect();
    actions.iter().filter_map(tested).map(|probe| (probe.cause, names(probe))).collect()
}

#[test]
fn beside_a_shared_gpu_the_other_ones_of_its_host_are_tested() {
    for state in [LeaseState::Placed, LeaseState::Running, LeaseState::Draining, LeaseState::Closed] {
        let begun = WatchedLease { start_probed: false, ..lease(2, LeaseState::Running, true) };
        let due = WatchedLease { probe_up: Some(NOW), ..lease(2, LeaseState::Running, true) };
        let ended = lease(2, LeaseState::Closed, true);
        let whole = [(begun, Cause::LeaseStart), (due, Cause::Lease), (ended, Cause::LeaseEnd)];
        for (whole, cause) in whole {
            let host = WatchedHost { leases: vec![share(1, state, "GPU-1"), whole], ..host(1, 3) };
            let others = vec!["GPU-0".to_owned(), "GPU-2".to_owned()];
            assert_eq!(tested(&of(host)), [(cause, others)], "{state:?}");
        }
    }
    let shared = WatchedHost { leases: vec![share(1, LeaseState::Running, "GPU-1")], ..host(1, 3) };
    assert_eq!(of(shared.clone()), [], "nothing began on those that are not shared");
    let mut open = watch(vec![shared]);
    open.opened = opened();
    let others = vec!["GPU-0".to_owned(), "GPU-2".to_owned()];
    assert_eq!(tested(&actions(&open, &all())), [(Cause::Window, others)]);
}

#[test]
fn a_host_whose_gpus_are_all_shared_shows_none_and_it_is_remembered_since_when() {
    let shared = WatchedHost { leases: vec![share(1, LeaseState::Running, "GPU-0")], ..host(1, 1) };
    assert_eq!(of(shared.clone()), [Action::Hidden(shared.host)]);
    let mut open = watch(vec![shared.clone()]);
    open.opened = opened();
    assert_eq!(actions(&open, &all()), [Action::Hidden(shared.host)]);
    let since = |ms| WatchedHost { strained_up: Some(Millis(NOW.0 - ms)), ..shared.clone() };
    assert_eq!(of(since(6 * HOUR - 1)), []);
    assert_eq!(
        of(since(6 * HOUR)),
        [Action::Demand(shared.host, 7)],
        "and it is tested whole once it is free"
    );
    let mut shadow = rules(&[Kind::Cpu, Kind::Memory]);
    shadow.shadow.insert(Kind::Devices);
    assert_eq!(actions(&watch(vec![shared]), &shadow), []);
}

#[test]
fn a_gpu_that_was_shared_is_tested_like_others_once_its_daemon_has_ended() {
    let ending = WatchedHost { leases: vec![share(1, LeaseState::Closed, "GPU-0")], ..host(1, 1) };
    let mut open = watch(vec![ending.clone()]);
    open.opened = opened();
    assert_eq!((of(ending.clone()), actions(&open, &all())), (vec![], vec![]), "it may be its daemon's yet");
    let ended = WatchedLease { is_share: false, ..ending.leases[0].clone() };
    open.hosts[0].leases = vec![ended.clone()];
    assert_eq!(actions(&open, &all()), [Action::Retest(ending.host, 7, Cause::Window)]);
    open.opened = None;
    assert_eq!(causes(&actions(&open, &all())), [Cause::LeaseEnd]);
    open.hosts[0].leases = vec![ended, share(2, LeaseState::Placed, "GPU-0")];
    assert_eq!(actions(&open, &all()), [], "somebody has a share of it again");
}

#[test]
fn leased_gpus_are_tested_at_the_start_at_times_that_were_drawn_and_at_the_end() {
    let running = lease(1, LeaseState::Running, true);
    let probe = |lease| causes(&of(leased(lease)));
    assert_eq!(probe(WatchedLease { start_probed: false, ..running.clone() }), [Cause::LeaseStart]);
    assert_eq!(probe(running.clone()), []);
    assert_eq!(probe(WatchedLease { probe_up: Some(NOW), ..running.clone() }), [Cause::Lease]);
    for state in [LeaseState::Draining, LeaseState::Closed] {
        let ended = lease(1, state, true);
        assert_eq!(probe(ended.clone()), [Cause::LeaseEnd]);
        assert_eq!(probe(WatchedLease { end_probed: true, ..ended.clone() }), []);
        assert_eq!(probe(WatchedLease { was_started: false, ..ended.clone() }), [], "nothing ran");
        assert_eq!(probe(WatchedLease { devices: Vec::new(), ..ended }), []);
    }
    for state in [LeaseState::Placed, LeaseState::Stopping] {
        let other = WatchedLease { start_probed: false, probe_up: Some(NOW), ..lease(1, state, true) };
        assert_eq!(probe(other), [], "{state:?}");
    }
    let unset = WatchedLease { probe_up: None, ..running };
    let up = Millis(NOW.0 + 1_247_664);
    assert_eq!(of(leased(unset.clone())), [Action::ProbeAt(unset.lease, up)], "ln 2 times half an hour");
}

#[test]
fn a_host_that_drains_is_tested_beside_its_leases_like_any_other() {
    let running = lease(1, LeaseState::Running, true);
    let begun = WatchedLease { start_probed: false, ..running.clone() };
    for lease in [begun, WatchedLease { probe_up: Some(NOW), ..running.clone() }] {
        let leaving = WatchedHost { state: HostState::Draining, ..leased(lease.clone()) };
        assert_eq!(of(leaving), of(leased(lease)));
    }
    let mut open = watch(vec![WatchedHost { state: HostState::Draining, ..leased(running) }]);
    open.opened = opened();
    assert_eq!(causes(&actions(&open, &all())), [Cause::Window]);
}

#[test]
fn a_host_that_has_not_shown_its_gpus_for_six_hours_gets_no_further_jobs_and_is_tested_once_it_is_free() {
    let since = |ms| WatchedHost {
        strained_up: Some(Millis(NOW.0 - ms)),
        retest_up: Some(Millis(NOW.0 - ms)),
        ..leased(lease(1, LeaseState::Running, true))
    };
    assert_eq!(of(since(6 * HOUR - 1)), [], "that may be its jobs' doing");
    let late = since(6 * HOUR);
    assert_eq!(of(late.clone()), [Action::Demand(late.host, 7)]);
    let told = WatchedHost { state: HostState::Verifying, ..late.clone() };
    assert_eq!(of(told), []);
    let free = WatchedHost { leases: Vec::new(), ..late };
    assert_eq!(of(free.clone()), [Action::Retest(free.host, 7, Cause::Random)]);
}

#[test]
fn one_test_of_gpus_is_open_at_a_time_and_none_where_there_is_nothing_to_test() {
    let due =
        WatchedLease { start_probed: false, probe_up: Some(NOW), ..lease(1, LeaseState::Running, true) };
    let two = WatchedHost {
        leases: vec![due.clone(), WatchedLease { lease: LeaseId(Uuid::from_u128(2)), ..due }],
        ..host(1, 2)
    };
    assert_eq!(causes(&of(two.clone())), [Cause::LeaseStart]);
    assert_eq!(causes(&of(WatchedHost { open: BTreeSet::from([Kind::Devices]), ..two.clone() })), []);
    let other = BTreeSet::from([Kind::Software]);
    assert_eq!(causes(&of(WatchedHost { open: other, ..two.clone() })), [Cause::LeaseStart]);
    assert_eq!(actions(&watch(vec![two]), &rules(&[Kind::Cpu])), []);
}

#[test]
fn all_gpus_are_tested_in_a_window_and_nobody_knows_when_the_next_one_is() {
    let mut empty = watch(Vec::new());
    empty.ahead = None;
    assert_eq!(
        actions(&empty, &all()),
        [Action::PlanWindow(Millis(NOW.0 + 19_962_638))],
        "ln 2 times 8 hours"
    );
    assert_eq!(actions(&empty, &rules(&[Kind::Cpu])), []);
    empty.ahead = Some((Uuid::from_u128(9), NOW));
    assert_eq!(actions(&empty, &all()), [Action::OpenWindow(Uuid::from_u128(9))]);

    let (free, busy) = (
        host(1, 1),
        WatchedHost { host: HostId(Uuid::from_u128(2)), ..leased(lease(1, LeaseState::Running, true)) },
    );
    let (silent, bare) = (WatchedHost { is_heard: false, ..host(3, 1) }, host(4, 0));
    let done = WatchedHost { in_window: true, ..host(5, 1) };
    let mut open = watch(vec![free.clone(), busy.clone(), silent, bare, done]);
    open.opened = opened();
    let beside = Probe {
        host: busy.host,
        lease: busy.leases[0].lease,
        devices: claims(1).devices,
        cause: Cause::Window,
        window: opened(),
    };
    let expected = [Action::Retest(free.host, 7, Cause::Window), Action::Probe(beside)];
    assert_eq!(actions(&open, &all()), expected);
}

#[test]
fn a_window_that_was_missed_is_soon_followed_by_another_and_nobody_knows_when() {
    let missed = Uuid::from_u128(7);
    let soon = Action::ReplaceWindow(missed, Millis(NOW.0 + 41_588));
    for ahead in [None, Some((Uuid::from_u128(9), NOW)), Some((Uuid::from_u128(9), Millis(NOW.0 + HOUR)))] {
        let watch = Watch { ahead, missed: Some(missed), ..watch(Vec::new()) };
        assert_eq!(actions(&watch, &all()), std::slice::from_ref(&soon), "ln 2 times a minute");
        let often = Means { window: Millis(1_000), ..MEANS };
        let sooner = plan(&watch, &all(), &often, &mut || 1 << 63);
        assert_eq!(sooner, [Action::ReplaceWindow(missed, Millis(NOW.0 + 693))], "never later than usual");
    }
}

#[test]
fn a_host_that_draws_a_transfer_out_escapes_no_window_with_it() {
    let fetching = WatchedHost { open: BTreeSet::from([Kind::Transfer]), ..host(1, 1) };
    let mut open = watch(vec![fetching.clone()]);
    open.opened = opened();
    assert_eq!(actions(&open, &all()), [Action::Retest(fetching.host, 7, Cause::Window)]);
}

proptest! {
    /// However many hosts and leases there are: each host is given one test at most, and never one
    /// that a job would disturb.
    #[test]
    fn no_host_is_given_two_tests_at_once(
        hosts in proptest::collection::vec((0_u8..3, any::<bool>(), proptest::collection::vec((0_usize..5, any::<bool>(), any::<bool>(), any::<bool>()), 0..4), 0_i64..3), 0..6),
        window in any::<bool>(), draws in proptest::collection::vec(any::<u64>(), 64),
    ) {
        let hosts = hosts.into_iter().zip(1..).map(|((devices, heard, leases, retest), number)| {
            let leases = leases.into_iter().zip(1..).map(|((state, has_devices, probed, due), lease_number)| {
                let probe_up = due.then_some(NOW);
                let state = LeaseState::ALL[state];
                WatchedLease { probe_up, start_probed: probed, ..lease(number * 100 + lease_number, state, has_devices) }
            });
            let retest_up = [None, Some(NOW), Some(Millis(NOW.0 + 1))][usize::try_from(retest).expect("small")];
            WatchedHost { is_heard: heard, leases: leases.collect(), retest_up, ..host(number, devices) }
        });
        let mut watch = watch(hosts.collect());
        watch.opened = opened().filter(|_| window);
        let mut numbers = draws.iter().cycle();
        let planned = plan(&watch, &all(), &MEANS, &mut || *numbers.next().expect("endless"));
        for host in &watch.hosts {
            let free = host.leases.iter().all(|lease| lease.state == LeaseState::Closed);
            let tests = planned.iter().filter(|action| match action {
                Action::Retest(of, ..) => *of == host.host,
                Action::Probe(probe) => probe.host == host.host,
                Action::RetestAt(..)
                | Action::ProbeAt(..)
                | Action::Demand(..)
                | Action::Hidden(_)
                | Action::PlanWindow(_)
                | Action::ReplaceWindow(..)
                | Action::OpenWindow(_) => false,
            });
            let tests: Vec<&Action> = tests.collect();
            prop_assert!(tests.len() <= 1, "{tests:?}");
            prop_assert!(free || !tests.iter().any(|test| matches!(test, Action::Retest(..))));
        }
        for action in &planned {
            if let Action::RetestAt(_, up) | Action::ProbeAt(_, up) | Action::PlanWindow(up) = action {
                prop_assert!(*up >= NOW);
            }
        }
    }
}
