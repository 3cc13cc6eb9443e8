//! The watch over open leases: limits that ran out and hosts that fell silent, both on the
//! control clock.

use nave_domain::{
    Millis,
    lease::{LeaseState, StopReason},
};
use nave_store::OpenLease;

/// How long hosts may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Silence, on the control clock, after which a host takes no new jobs.
    pub suspect: Millis,
    /// Silence, on the control clock, after which its jobs are given up. Longer than the
    /// fence by a margin, so that the host has ended them before they start elsewhere.
    pub lost: Millis,
    /// Time, on the control clock, to confirm a stop, or to deliver logs and results after the end.
    pub finish: Millis,
    /// Time, on the control clock, between the notice to a lease that yields and its end.
    pub notice: Millis,
}

impl Patience {
    /// What follows from the hosts' fence and report interval.
    #[must_use]
    pub fn from_protocol(fence: Millis, report: Millis) -> Self {
        Self {
            suspect: Millis(report.0.saturating_mul(3)),
            lost: Millis(fence.0.saturating_add((fence.0 / 3).max(2_000))),
            finish: Millis(600_000),
            notice: Millis(30_000),
        }
    }
}

/// What to do with a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Tell the host to end it.
    Stop(StopReason),
    /// Give it up.
    Lose,
}

/// What to do with an open lease now, if anything.
#[must_use]
pub fn watch(lease: &OpenLease, patience: &Patience) -> Option<Decision> {
    if lease.silent > patience.lost {
        return Some(Decision::Lose);
    }
    let over = |limit: Millis| lease.in_state > limit;
    match lease.state {
        LeaseState::Placed if over(lease.limits.start_ms) => Some(Decision::Stop(StopReason::StartTimeout)),
        LeaseState::Running if over(lease.run_max) => {
            let spent = lease.capped_by_spend;
            Some(Decision::Stop(if spent { StopReason::SpendCap } else { StopReason::RunTimeout }))
        }
        LeaseState::Placed | LeaseState::Running
            if lease.noticed.is_some_and(|ago| ago > patience.notice) =>
        {
            Some(Decision::Stop(StopReason::Preempted))
        }
        LeaseState::Stopping | LeaseState::Draining if over(patience.finish) => Some(Decision::Lose),
        LeaseState::Placed
        | LeaseState::Running
        | LeaseState::Stopping
        | LeaseState::Draining
        | LeaseState::Closed => None,
    }
}
