//! What a report means for a host's leases. Pure: what is known and what is reported in,
//! what to write down out.

use std::collections::BTreeMap;

use nave_domain::{
    LeaseId,
    host::Device,
    lease::{LeaseState, Outcome},
};
use nave_sdk::wire::host::{DETAIL_BYTES_MAX, Exit, LeaseReport, ResultRef, XidReport};
use nave_store::{HeldLease, ResultRow, XidRow};

/// Something to write down about a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// It still runs.
    Heard,
    /// Its command runs now, or has run.
    Started,
    /// Its host has lost it: it prepares what it once ran.
    Lost,
    /// Its command has ended.
    Exited,
    /// All of it was delivered.
    Finished {
        /// How it ended; none when the control plane knows better.
        outcome: Option<Outcome>,
        /// Its result.
        result: Option<ResultRow>,
    },
}

/// What a report says that is new, in the order to write it down. Leases that this host
/// does not hold, or not any more, are passed over.
#[must_use]
pub fn of_report(
    reported: BTreeMap<LeaseId, LeaseReport>,
    held: &BTreeMap<LeaseId, HeldLease>,
) -> Vec<(LeaseId, Effect)> {
    let known = reported.into_iter().filter_map(|(id, report)| Some((id, report, *held.get(&id)?)));
    known
        .flat_map(|(id, report, held)| of_lease(report, held).into_iter().map(move |effect| (id, effect)))
        .collect()
}

/// What it means that a host is silent about leases it has in its spec. It has acted on the
/// newest spec, so it would know one that it ever began: it has forgotten it, or hides it,
/// and neither delivers what its customer pays for.
#[must_use]
pub fn of_silence(
    reported: &BTreeMap<LeaseId, LeaseReport>,
    held: &BTreeMap<LeaseId, HeldLease>,
) -> Vec<(LeaseId, Effect)> {
    let missing = held.iter().filter(|(id, held)| held.started && !reported.contains_key(id));
    missing.map(|(id, _)| (*id, Effect::Lost)).collect()
}

/// Leases that a host does not hold any more, and of which it says that it has lost them. That one was killed shows nothing:
/// its command may have called its end so.
#[must_use]
pub fn gone(reported: &BTreeMap<LeaseId, LeaseReport>, held: &BTreeMap<LeaseId, HeldLease>) -> Vec<LeaseId> {
    let is_gone = |report: &LeaseReport| match report {
        LeaseReport::Exited { exit } | LeaseReport::Finished { exit, result: _ } => {
            matches!(exit, Exit::Lost)
        }
        LeaseReport::Preparing | LeaseReport::Running | LeaseReport::Unseen => false,
    };
    let gone = reported.iter().filter(|(id, report)| !held.contains_key(id) && is_gone(report));
    gone.map(|(id, _)| *id).collect()
}

/// Errors of drivers, with what leases call the devices that had them.
#[must_use]
pub fn of_xids(reported: &[XidReport], devices: &[Device]) -> Vec<XidRow> {
    let rows = reported.iter().filter_map(|xid| {
        let device = devices.iter().find(|device| device.uuid == xid.device)?;
        let slices = device.parts().into_iter().map(|part| part.uuid);
        let parts = std::iter::once(device.uuid.clone()).chain(slices).collect();
        Some(XidRow { code: xid.code, device: xid.device.clone(), parts })
    });
    rows.collect()
}

fn of_lease(report: LeaseReport, held: HeldLease) -> Vec<Effect> {
    match report {
        LeaseReport::Preparing => preparing(held),
        LeaseReport::Running => running(held),
        LeaseReport::Unseen => Vec::new(),
        LeaseReport::Exited { exit } => exited(&exit, held),
        LeaseReport::Finished { exit, result } => {
            let mut effects = has_run(&exit, held);
            effects.push(Effect::Finished { outcome: outcome(exit), result: result.and_then(named) });
            effects
        }
    }
}

/// A host that prepares what ran already is about to run it again: that must be another attempt.
fn preparing(held: HeldLease) -> Vec<Effect> {
    match held.state {
        LeaseState::Running | LeaseState::Draining => vec![Effect::Lost],
        LeaseState::Placed | LeaseState::Stopping | LeaseState::Closed => Vec::new(),
    }
}

fn running(held: HeldLease) -> Vec<Effect> {
    match held.state {
        LeaseState::Placed | LeaseState::Running | LeaseState::Stopping if held.started => {
            vec![Effect::Heard]
        }
        LeaseState::Placed | LeaseState::Running | LeaseState::Stopping => vec![Effect::Started],
        LeaseState::Draining | LeaseState::Closed => Vec::new(),
    }
}

fn exited(exit: &Exit, held: HeldLease) -> Vec<Effect> {
    if matches!(held.state, LeaseState::Draining | LeaseState::Closed) {
        return Vec::new();
    }
    let mut effects = has_run(exit, held);
    effects.push(Effect::Exited);
    effects
}

/// A command may run and end between two reports.
fn has_run(exit: &Exit, held: HeldLease) -> Vec<Effect> {
    let has_run =
        matches!(exit, Exit::Code { .. } | Exit::OutOfMemory | Exit::OutOfGpuMemory { .. } | Exit::Killed);
    if has_run && !held.started { vec![Effect::Started] } else { Vec::new() }
}

/// How an end is recorded: as a loss only where the host itself names one. Ends that the control plane asked for, or that
/// it caused by its silence, are for it to name.
fn outcome(exit: Exit) -> Option<Outcome> {
    match exit {
        Exit::Code { code } => Some(Outcome::Exited { code }),
        Exit::OutOfMemory => Some(Outcome::OutOfMemory),
        Exit::OutOfGpuMemory { asked, used } => Some(Outcome::OutOfGpuMemory { asked, used }),
        Exit::Killed => Some(Outcome::Killed),
        Exit::Lost => Some(Outcome::HostLost),
        Exit::Stopped | Exit::Fenced => None,
        Exit::StartFailed { detail } => {
            Some(Outcome::StartFailed { detail: bounded(&detail, DETAIL_BYTES_MAX) })
        }
    }
}

/// A text of a host's, short enough to keep and without what Postgres does not store.
pub(super) fn bounded(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].replace('\0', "\u{fffd}")
}

/// A result whose name is a hash; under another name nothing is stored.
fn named(result: ResultRef) -> Option<ResultRow> {
    let sha256 = hex::decode(result.sha256).ok()?.try_into().ok()?;
    Some(ResultRow { sha256, truncated: result.truncated })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn lease(state: LeaseState, started: bool) -> HeldLease {
        HeldLease { state, started }
    }

    const FINISHED: Effect = Effect::Finished { outcome: Some(Outcome::Exited { code: 0 }), result: None };

    #[test]
    fn a_running_lease_is_started_once_and_then_only_heard() {
        assert_eq!(of_lease(LeaseReport::Running, lease(LeaseState::Placed, false)), [Effect::Started]);
        assert_eq!(of_lease(LeaseReport::Running, lease(LeaseState::Running, true)), [Effect::Heard]);
        assert_eq!(of_lease(LeaseReport::Running, lease(LeaseState::Stopping, true)), [Effect::Heard]);
        assert_eq!(of_lease(LeaseReport::Running, lease(LeaseState::Draining, true)), []);
    }

    #[test]
    fn a_host_that_prepares_what_it_ran_has_lost_it() {
        assert_eq!(of_lease(LeaseReport::Preparing, lease(LeaseState::Placed, false)), []);
        assert_eq!(of_lease(LeaseReport::Preparing, lease(LeaseState::Stopping, true)), []);
        assert_eq!(of_lease(LeaseReport::Preparing, lease(LeaseState::Running, true)), [Effect::Lost]);
        assert_eq!(of_lease(LeaseReport::Preparing, lease(LeaseState::Draining, true)), [Effect::Lost]);
    }

    #[test]
    fn a_command_that_ran_between_two_reports_has_started() {
        let exit = Exit::Code { code: 0 };
        let exited = of_lease(LeaseReport::Exited { exit: exit.clone() }, lease(LeaseState::Placed, false));
        assert_eq!(exited, [Effect::Started, Effect::Exited]);
        let finished = LeaseReport::Finished { exit, result: None };
        assert_eq!(of_lease(finished.clone(), lease(LeaseState::Placed, false)), [Effect::Started, FINISHED]);
        assert_eq!(of_lease(finished, lease(LeaseState::Draining, true)), [FINISHED]);
    }

    #[test]
    fn an_end_that_the_control_plane_caused_is_for_it_to_name() {
        assert_eq!([Exit::Stopped, Exit::Fenced].map(outcome), [None, None]);
    }

    #[test]
    fn an_end_is_a_loss_where_the_host_names_one_and_not_where_its_command_may_have_called_it_so() {
        assert_eq!(outcome(Exit::Lost), Some(Outcome::HostLost));
        assert_eq!(outcome(Exit::Killed), Some(Outcome::Killed));
    }

    #[test]
    fn a_lease_that_was_given_up_is_gone_where_the_host_says_so() {
        let [lost, fenced, killed, held] = [1, 2, 3, 4].map(|n| LeaseId(Uuid::from_u128(n)));
        let exited = |exit| LeaseReport::Exited { exit };
        let reported = BTreeMap::from([
            (lost, exited(Exit::Lost)),
            (fenced, exited(Exit::Fenced)),
            (killed, exited(Exit::Killed)),
            (held, exited(Exit::Lost)),
        ]);
        let holds = BTreeMap::from([(held, lease(LeaseState::Running, true))]);
        assert_eq!(gone(&reported, &holds), [lost]);
    }

    #[test]
    fn a_lease_that_the_host_does_not_hold_is_passed_over() {
        let reported = BTreeMap::from([(LeaseId(Uuid::from_u128(1)), LeaseReport::Running)]);
        assert_eq!(of_report(reported, &BTreeMap::new()), []);
    }

    #[test]
    fn a_lease_that_was_begun_and_is_kept_quiet_about_is_lost() {
        let [a, b] = [1, 2].map(|n| LeaseId(Uuid::from_u128(n)));
        let held =
            BTreeMap::from([(a, lease(LeaseState::Running, true)), (b, lease(LeaseState::Placed, false))]);
        assert_eq!(of_silence(&BTreeMap::new(), &held), [(a, Effect::Lost)], "one not begun may still come");
        let reported = BTreeMap::from([(a, LeaseReport::Running)]);
        assert_eq!(of_silence(&reported, &held), []);
        for state in [LeaseState::Stopping, LeaseState::Draining] {
            let held = BTreeMap::from([(a, lease(state, true))]);
            assert_eq!(of_silence(&BTreeMap::new(), &held), [(a, Effect::Lost)]);
        }
    }

    #[test]
    fn what_a_host_says_about_a_failure_is_cut_at_a_character() {
        let long = format!("\0{}€", "x".repeat(DETAIL_BYTES_MAX - 2));
        assert_eq!(bounded(&long, DETAIL_BYTES_MAX), format!("\u{fffd}{}", "x".repeat(DETAIL_BYTES_MAX - 2)));
    }
}
