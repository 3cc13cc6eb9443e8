//! Every transition of every state machine, as a table that a reviewer reads.
//!
//! `UPDATE_GOLDEN=1 cargo test -p nave-domain` rewrites it; the difference is the change of policy.

use std::{collections::BTreeSet, fmt::Debug, fs, path::Path};

use nave_domain::{
    Bytes,
    epoch::EpochState,
    host::{self, HostEvent, HostState, Term},
    job::{self, HOST_TRIES_MAX, JobEvent, JobState, Tries},
    lease::{self, LeaseEvent, LeaseState, Outcome, StopReason},
};

/// All that can happen to an epoch.
#[derive(Debug, Clone, Copy)]
struct Step;

const GOLDEN: &str = "tests/golden/transitions.txt";

/// One state machine: states down, events across, `.` where an event is illegal.
fn table<S: Copy + Debug, E: Copy + Debug>(
    title: &str,
    states: &[S],
    events: &[E],
    next: impl Fn(S, E) -> Option<S>,
) -> String {
    let mut rows = vec![vec![title.to_owned()]];
    rows[0].extend(events.iter().map(|event| format!("{event:?}")));
    for state in states {
        let mut row = vec![format!("{state:?}")];
        row.extend(
            events.iter().map(|event| next(*state, *event).map_or(".".into(), |to| format!("{to:?}"))),
        );
        rows.push(row);
    }
    align(&rows)
}

fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// Every way an attempt can end.
fn outcomes() -> Vec<Outcome> {
    let all = vec![
        Outcome::Exited { code: 0 },
        Outcome::Exited { code: 1 },
        Outcome::OutOfMemory,
        Outcome::OutOfGpuMemory { asked: Bytes(1), used: Bytes(2) },
        Outcome::Killed,
        Outcome::StartFailed { detail: String::new() },
        Outcome::StartTimeout,
        Outcome::RunTimeout,
        Outcome::SpendCap,
        Outcome::Cancelled,
        Outcome::Preempted,
        Outcome::HostLost,
    ];
    for outcome in &all {
        // A new outcome does not compile here until it stands in the list above.
        match outcome {
            Outcome::Exited { .. }
            | Outcome::OutOfMemory
            | Outcome::OutOfGpuMemory { .. }
            | Outcome::Killed
            | Outcome::StartFailed { .. }
            | Outcome::StartTimeout
            | Outcome::RunTimeout
            | Outcome::SpendCap
            | Outcome::Cancelled
            | Outcome::Preempted
            | Outcome::HostLost => {}
        }
    }
    all
}

fn name(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Exited { code } => format!("Exited {code}"),
        Outcome::StartFailed { .. } => "StartFailed".into(),
        Outcome::OutOfGpuMemory { .. } => "OutOfGpuMemory".into(),
        other @ (Outcome::OutOfMemory
        | Outcome::Killed
        | Outcome::StartTimeout
        | Outcome::RunTimeout
        | Outcome::SpendCap
        | Outcome::Cancelled
        | Outcome::Preempted
        | Outcome::HostLost) => format!("{other:?}"),
    }
}

/// What the end of an attempt means for its job, with and without a try left, and for its customer.
fn after_table() -> String {
    let head = ["attempt ended", "a try left", "no try left", "charged", "exit code", "whose fault"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for outcome in outcomes() {
        let left = job::after(&outcome, Tries { command: 1, host: HOST_TRIES_MAX - 1 }, 1);
        let none = job::after(&outcome, Tries { command: 2, host: HOST_TRIES_MAX }, 1);
        rows.push(vec![
            name(&outcome),
            format!("{left:?}"),
            format!("{none:?}"),
            if outcome.is_charged() { "yes" } else { "no" }.to_owned(),
            outcome.exit_code().map_or(".".into(), |code| code.to_string()),
            if outcome.is_hosts_fault() { "host" } else { "." }.to_owned(),
        ]);
    }
    align(&rows)
}

fn stop_table() -> String {
    let mut rows = vec![vec!["stopped for".to_owned(), "ends as".to_owned()]];
    rows.extend(StopReason::ALL.map(|reason| vec![format!("{reason:?}"), name(&reason.outcome())]));
    align(&rows)
}

#[test]
fn every_transition_is_as_the_golden_table_says() {
    let tables = [
        table("job", &JobState::ALL, &JobEvent::ALL, job::next),
        table("lease", &LeaseState::ALL, &LeaseEvent::ALL, lease::next),
        table("host", &HostState::ALL, &HostEvent::ALL, host::next),
        table("epoch", &EpochState::ALL, &[Step], |state, Step| state.next()),
        after_table(),
        stop_table(),
    ];
    let actual = tables.join("\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &actual).expect("write the golden file");
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, golden, "a rule changed: review it, then UPDATE_GOLDEN=1 cargo test -p nave-domain");
}

#[test]
fn a_final_state_accepts_nothing() {
    for event in JobEvent::ALL {
        for state in JobState::ALL.into_iter().filter(|state| state.is_final()) {
            assert_eq!(job::next(state, event), None, "{state:?} {event:?}");
        }
    }
    for event in LeaseEvent::ALL {
        assert_eq!(lease::next(LeaseState::Closed, event), None, "{event:?}");
    }
    for event in HostEvent::ALL {
        for state in HostState::ALL.into_iter().filter(|state| !state.is_member()) {
            assert_eq!(host::next(state, event), None, "{state:?} {event:?}");
        }
    }
    assert_eq!(EpochState::Confirmed.next(), None);
}

/// What can be reached from `start`, and what of that nothing leads out of.
fn explore<S: Copy + Ord, E: Copy>(
    start: S,
    events: &[E],
    next: impl Fn(S, E) -> Option<S>,
) -> (BTreeSet<S>, BTreeSet<S>) {
    let mut seen = BTreeSet::from([start]);
    let mut todo = vec![start];
    let mut ends = BTreeSet::new();
    while let Some(state) = todo.pop() {
        let follow: Vec<S> = events.iter().filter_map(|event| next(state, *event)).collect();
        if follow.is_empty() {
            ends.insert(state);
        }
        todo.extend(follow.into_iter().filter(|to| seen.insert(*to)));
    }
    (seen, ends)
}

#[test]
fn every_state_is_reached_and_only_final_ones_are_dead_ends() {
    let (jobs, ends) = explore(JobState::Queued, &JobEvent::ALL, job::next);
    assert_eq!(jobs, JobState::ALL.into());
    assert_eq!(ends, JobState::ALL.into_iter().filter(|state| state.is_final()).collect());
    let (leases, ends) = explore(LeaseState::Placed, &LeaseEvent::ALL, lease::next);
    assert_eq!((leases, ends), (LeaseState::ALL.into(), [LeaseState::Closed].into()));
    let (hosts, ends) = explore(HostState::Enrolled, &HostEvent::ALL, host::next);
    assert_eq!((hosts, ends), (HostState::ALL.into(), [HostState::Gone, HostState::Banned].into()));
    let (epochs, ends) = explore(EpochState::Open, &[()], |state, ()| state.next());
    assert_eq!((epochs, ends), (EpochState::ALL.into(), [EpochState::Confirmed].into()));
}

#[test]
fn a_report_that_comes_again_changes_nothing_further() {
    for state in LeaseState::ALL {
        for event in [LeaseEvent::Started, LeaseEvent::Exited, LeaseEvent::Stop] {
            if let Some(to) = lease::next(state, event) {
                assert_eq!(lease::next(to, event), Some(to), "{state:?} {event:?}");
            }
        }
    }
    for state in HostState::ALL {
        for event in [HostEvent::Heard, HostEvent::Claimed, HostEvent::Silent, HostEvent::Drain] {
            if let Some(to) = host::next(state, event) {
                assert_eq!(host::next(to, event), Some(to), "{state:?} {event:?}");
            }
        }
    }
}

#[test]
fn the_names_in_sql_are_those_in_json() {
    fn check<S: Copy + Debug + serde::Serialize>(states: &[S], as_str: fn(S) -> &'static str) {
        for state in states {
            let json = serde_json::to_value(state).expect("serialise");
            assert_eq!(json, as_str(*state), "{state:?}");
        }
    }
    check(&JobState::ALL, JobState::as_str);
    check(&LeaseState::ALL, LeaseState::as_str);
    check(&HostState::ALL, HostState::as_str);
    check(&Term::ALL, Term::as_str);
    check(&EpochState::ALL, EpochState::as_str);
}

#[test]
fn only_a_host_whose_claims_are_proven_becomes_ready() {
    for state in HostState::ALL.into_iter().filter(|state| *state != HostState::Ready) {
        let into: Vec<HostEvent> = HostEvent::ALL
            .into_iter()
            .filter(|event| host::next(state, *event) == Some(HostState::Ready))
            .collect();
        assert!(
            into.iter().all(|event| matches!(event, HostEvent::Heard | HostEvent::Proved)),
            "{state:?}: {into:?}"
        );
    }
}
