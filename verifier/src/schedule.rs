//! When hosts are tested again, and beside which jobs. Pure: time comes as an argument, and
//! chance as numbers that the caller draws.
//!
//! All moments that nobody is to foresee come from Poisson processes: whatever happened before,
//! the next one is as likely as ever. Windows are such moments for the whole market: whoever
//! shows one GPU under two names cannot do so at the same moment.

use nave_domain::{
    HostId, LeaseId, Millis,
    host::{Device, HostState, parts},
    lease::LeaseState,
    verdict::{Cause, Kind},
};
use nave_store::{OpenWindow, Watch, WatchedHost, WatchedLease};
use uuid::Uuid;

use crate::draw::Rules;

/// Time until the window that takes the place of one that was missed, on average and on the control clock.
const SOON: Millis = Millis(60_000);

/// For how long a host takes jobs that has not shown its GPUs beside them, or that share them all, on the control clock.
const STRAINED: Millis = Millis(6 * 3_600_000);

/// How often, on average and on the control clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Means {
    /// Time between two suites of a host that is free.
    pub retest: Millis,
    /// Time between two tests beside a lease of GPUs.
    pub probe: Millis,
    /// Time between two windows.
    pub window: Millis,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Remember when a host is tested again.
    RetestAt(HostId, Millis),
    /// Test a host again that is free, if its generation is still this one.
    Retest(HostId, u64, Cause),
    /// Give a host no further jobs before it has been tested, if its generation is still this one.
    Demand(HostId, u64),
    /// Remember since when a host can show none of its GPUs, since they are all shared.
    Hidden(HostId),
    /// Remember when the GPUs of a lease are tested.
    ProbeAt(LeaseId, Millis),
    /// Test the GPUs of a host beside a lease.
    Probe(Probe),
    /// Remember when the next window opens.
    PlanWindow(Millis),
    /// The same, sooner, since this one was missed.
    ReplaceWindow(Uuid, Millis),
    /// Open it.
    OpenWindow(Uuid),
}

/// A test of GPUs beside jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Whose.
    pub host: HostId,
    /// Beside which lease.
    pub lease: LeaseId,
    /// Which of its GPUs: those of which nobody has a share.
    pub devices: Vec<Device>,
    /// Why.
    pub cause: Cause,
    /// In which window.
    pub window: Option<OpenWindow>,
}

/// Decides about everything that is looked at; `draw` gives a number of which nobody knows anything.
pub fn plan(watch: &Watch, rules: &Rules, means: &Means, draw: &mut dyn FnMut() -> u64) -> Vec<Action> {
    let mut actions = Vec::new();
    if rules.has(Kind::Devices) {
        actions.extend(of_windows(watch, means, draw));
    }
    for host in &watch.hosts {
        if let Some(action) = of_host(watch, host, rules) {
            actions.push(action);
        }
        let is_overdue = host.strained_up.is_some_and(|up| watch.now.up.0 - up.0 >= STRAINED.0);
        if host.state == HostState::Ready && is_overdue && !is_free(host) {
            actions.push(Action::Demand(host.host, host.generation));
        }
        if host.state == HostState::Ready && host.strained_up.is_none() && is_hidden(host, rules) {
            actions.push(Action::Hidden(host.host));
        }
        if host.state == HostState::Ready && host.retest_up.is_none() {
            actions.push(Action::RetestAt(host.host, next(watch.now.up, means.retest, draw())));
        }
        if is_probed(host, rules) {
            let is_unset = |lease: &&WatchedLease| is_shown(host, lease) && lease.probe_up.is_none();
            let unset = host.leases.iter().filter(is_unset);
            actions.extend(
                unset.map(|lease| Action::ProbeAt(lease.lease, next(watch.now.up, means.probe, draw()))),
            );
        }
    }
    actions
}

/// What is to be done about windows: one that nobody was there to draw hosts into is soon followed by
/// another, and nobody knows when.
fn of_windows(watch: &Watch, means: &Means, draw: &mut dyn FnMut() -> u64) -> Option<Action> {
    let mut after = |mean| next(watch.now.up, mean, draw());
    match (watch.missed, watch.ahead) {
        (Some(missed), _) => Some(Action::ReplaceWindow(missed, after(means.window.min(SOON)))),
        (None, None) => Some(Action::PlanWindow(after(means.window))),
        (None, Some((window, opens))) => (opens <= watch.now.up).then_some(Action::OpenWindow(window)),
    }
}

/// The one test that a host is given now, if any.
fn of_host(watch: &Watch, host: &WatchedHost, rules: &Rules) -> Option<Action> {
    // Who draws a transfer out must not escape a window with it.
    let tested = host.open.iter().any(|kind| *kind != Kind::Transfer);
    let may_rest = host.state == HostState::Ready && is_free(host) && !tested;
    let retest = |cause| Action::Retest(host.host, host.generation, cause);
    if may_rest && host.proven.as_ref().is_some_and(|proven| rules.exceed(proven)) {
        return Some(retest(Cause::Operator));
    }
    if !host.is_heard {
        return None;
    }
    if is_probed(host, rules) {
        let window = watch.opened.as_ref().filter(|_| !host.in_window);
        // A GPU that was shared until now may be its daemon's for a moment yet: the window is open for longer.
        if window.is_some() && may_rest && shared(host).next().is_none() {
            return Some(retest(Cause::Window));
        }
        if let Some(probe) = probe(watch, host, window) {
            return Some(Action::Probe(probe));
        }
    }
    if may_rest && host.is_disputed {
        return Some(retest(Cause::Dispute));
    }
    let is_due = host.retest_up.is_some_and(|up| up <= watch.now.up);
    (may_rest && is_due).then(|| retest(Cause::Random))
}

fn is_free(host: &WatchedHost) -> bool {
    host.leases.iter().all(|lease| lease.state == LeaseState::Closed)
}

/// Whether GPUs of a host can be tested beside its jobs now.
fn is_probed(host: &WatchedHost, rules: &Rules) -> bool {
    rules.has(Kind::Devices)
        && !host.open.contains(&Kind::Devices)
        && !parts(&unshared_devices(host)).is_empty()
}

/// Whether jobs run on a host's GPUs and none of these can be tested beside them, since all are shared.
fn is_hidden(host: &WatchedHost, rules: &Rules) -> bool {
    let shares = host.leases.iter().any(|lease| is_used(lease) && lease.is_share);
    rules.enforced.contains(&Kind::Devices) && shares && parts(&unshared_devices(host)).is_empty()
}

/// The GPUs of which shares are leased: nothing computes there but their customer's jobs.
fn shared(host: &WatchedHost) -> impl Iterator<Item = &String> {
    host.leases.iter().filter(|lease| lease.is_share).flat_map(|lease| &lease.devices)
}

fn is_shared(host: &WatchedHost, device: &str) -> bool {
    shared(host).any(|shared| shared == device)
}

fn unshared_devices(host: &WatchedHost) -> Vec<Device> {
    host.claims.devices.iter().filter(|device| !is_shared(host, &device.uuid)).cloned().collect()
}

/// A lease whose command runs on GPUs.
fn is_used(lease: &WatchedLease) -> bool {
    !lease.devices.is_empty() && lease.state == LeaseState::Running
}

/// A lease of GPUs that nobody shares now.
fn is_unshared(host: &WatchedHost, lease: &WatchedLease) -> bool {
    lease.devices.iter().any(|device| !is_shared(host, device))
}

/// A lease whose command runs on GPUs that can be tested beside it.
fn is_shown(host: &WatchedHost, lease: &WatchedLease) -> bool {
    is_used(lease) && is_unshared(host, lease)
}

fn probe(watch: &Watch, host: &WatchedHost, window: Option<&OpenWindow>) -> Option<Probe> {
    let beside = |lease: &WatchedLease, cause, window| Probe {
        host: host.host,
        lease: lease.lease,
        devices: unshared_devices(host),
        cause,
        window,
    };
    let open = host.leases.iter().rev().find(|lease| lease.state != LeaseState::Closed);
    if let (Some(lease), Some(window)) = (open, window) {
        return Some(beside(lease, Cause::Window, Some(window.clone())));
    }
    let cause = |lease: &WatchedLease| {
        let has_ended = matches!(lease.state, LeaseState::Draining | LeaseState::Closed);
        if is_shown(host, lease) && !lease.start_probed {
            Some(Cause::LeaseStart)
        } else if is_unshared(host, lease) && lease.was_started && has_ended && !lease.end_probed {
            Some(Cause::LeaseEnd)
        } else {
            let is_due = lease.probe_up.is_some_and(|up| up <= watch.now.up);
            (is_shown(host, lease) && is_due).then_some(Cause::Lease)
        }
    };
    host.leases.iter().find_map(|lease| Some(beside(lease, cause(lease)?, None)))
}

/// The next moment of a Poisson process.
#[must_use]
pub fn next(now: Millis, mean: Millis, drawn: u64) -> Millis {
    Millis(now.0.saturating_add(exponential(mean, drawn).0))
}

/// A span with an exponential distribution, from 64 random bits: -ln(u) times the mean.
#[must_use]
pub fn exponential(mean: Millis, drawn: u64) -> Millis {
    /// ln 2, in units of 2^-32.
    const LN_2: u128 = 2_977_044_472;
    let halvings = u128::from(64_u64 << 32) - u128::from(log2(drawn.max(1)));
    let mean = u128::from(mean.0.clamp(0, 1 << 56).unsigned_abs());
    let span = (mean * halvings * LN_2) >> 64;
    Millis(i64::try_from(span).unwrap_or(i64::MAX))
}

/// log2 of a number from 1, in units of 2^-32, rounded down.
fn log2(number: u64) -> u64 {
    let whole = u64::from(number.ilog2());
    // From 2^63 to 2^64: the fraction of its logarithm comes bit by bit, by squaring.
    let mut mantissa = number << (63 - whole);
    let mut fraction = 0;
    for _ in 0..32 {
        let squared = u128::from(mantissa) * u128::from(mantissa);
        let carry = squared >> 127;
        fraction = (fraction << 1) | u64::try_from(carry).unwrap_or(0);
        mantissa = u64::try_from(squared >> (63 + carry)).unwrap_or(u64::MAX);
    }
    (whole << 32) | fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_exact_at_powers_of_two_and_grow_between_them() {
        assert_eq!((log2(1), log2(2), log2(1 << 63)), (0, 1 << 32, 63 << 32));
        // log2 3 = 1.584962500721…
        assert_eq!(log2(3) >> 12, 6_807_362_104 >> 12);
        assert!((1..5_000_u64).all(|number| log2(number) < log2(number + 1)));
    }

    #[test]
    fn spans_have_the_mean_and_the_median_that_they_should_have() {
        let mean = Millis(6_000_000);
        assert_eq!(exponential(mean, u64::MAX).0, 0);
        // Half of all are shorter than ln 2 times the mean.
        assert_eq!(exponential(mean, 1 << 63).0, 4_158_883);
        let step = u64::MAX / 10_000;
        let sum: i64 = (0..10_000).map(|n| exponential(mean, n * step + step / 2).0).sum();
        assert!((5_990_000..6_010_000).contains(&(sum / 10_000)), "{}", sum / 10_000);
        assert!(exponential(mean, 0).0 < 45 * mean.0, "however small the number is");
    }
}
