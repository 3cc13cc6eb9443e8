//! The watch over open leases: every limit and every silence, and what follows.

use nave_domain::{
    HostId, JobId, LeaseId, Millis,
    job::Limits,
    lease::{LeaseState, StopReason},
};
use nave_scheduler::watch::{Decision, Patience, watch};
use nave_store::OpenLease;
use uuid::Uuid;

const PATIENCE: Patience = Patience {
    suspect: Millis(3_000),
    lost: Millis(40_000),
    finish: Millis(600_000),
    notice: Millis(30_000),
};

/// A lease that came into its state `in_state` milliseconds ago.
fn lease(state: LeaseState, in_state: i64) -> OpenLease {
    OpenLease {
        lease: LeaseId(Uuid::nil()),
        job: JobId(Uuid::nil()),
        host: HostId(Uuid::nil()),
        state,
        in_state: Millis(in_state),
        limits: Limits { queue_ms: Millis(1), start_ms: Millis(10_000), run_ms: Millis(60_000) },
        run_max: Millis(60_000),
        capped_by_spend: false,
        noticed: None,
        silent: Millis(0),
    }
}

fn decide(lease: &OpenLease) -> Option<Decision> {
    watch(lease, &PATIENCE)
}

#[test]
fn every_limit_holds_to_its_last_millisecond_and_then_ends_the_lease() {
    use LeaseState as S;
    let cases = [
        (S::Placed, 10_000, Some(Decision::Stop(StopReason::StartTimeout))),
        (S::Running, 60_000, Some(Decision::Stop(StopReason::RunTimeout))),
        (S::Stopping, 600_000, Some(Decision::Lose)),
        (S::Draining, 600_000, Some(Decision::Lose)),
        (S::Closed, i64::MAX >> 16, None),
    ];
    for (state, limit, decision) in cases {
        assert_eq!(decide(&lease(state, 0)), None, "{state:?}");
        assert_eq!(decide(&lease(state, limit)), None, "{state:?} at its limit");
        assert_eq!(decide(&lease(state, limit + 1)), decision, "{state:?} past its limit");
    }
}

#[test]
fn a_run_that_the_spend_cap_bounds_ends_for_that_reason() {
    let mut capped = lease(LeaseState::Running, 5_001);
    capped.run_max = Millis(5_000);
    capped.capped_by_spend = true;
    assert_eq!(decide(&capped), Some(Decision::Stop(StopReason::SpendCap)));
}

#[test]
fn a_host_silent_for_too_long_loses_its_leases_in_every_state() {
    for state in [LeaseState::Placed, LeaseState::Running, LeaseState::Stopping, LeaseState::Draining] {
        let mut quiet = lease(state, 0);
        quiet.silent = PATIENCE.lost;
        assert_eq!(decide(&quiet), None, "{state:?}");
        quiet.silent.0 += 1;
        assert_eq!(decide(&quiet), Some(Decision::Lose), "{state:?}");
    }
}

#[test]
fn a_lost_host_is_lost_even_when_a_limit_ran_out_too() {
    let mut both = lease(LeaseState::Running, 999_999);
    both.silent = Millis(PATIENCE.lost.0 + 1);
    assert_eq!(decide(&both), Some(Decision::Lose), "nobody would hear a stop");
}

#[test]
fn jobs_are_given_up_only_after_their_host_must_have_ended_them() {
    for (fence, report) in [(3_000, 1_000), (30_000, 2_000), (300_000, 10_000)] {
        let patience = Patience::from_protocol(Millis(fence), Millis(report));
        assert!(patience.lost.0 >= fence + 2_000, "{patience:?}");
        assert!(patience.suspect.0 > report, "{patience:?}");
        assert!(patience.suspect < patience.lost, "{patience:?}");
    }
}
