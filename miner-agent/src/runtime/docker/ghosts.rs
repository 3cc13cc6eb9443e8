//! Commands that are gone while the engine still lists them as running.
//!
//! An engine that loses its own helper at the wrong moment can miss a command's end for
//! good. The kernel knows better: the command's process is there or it is not.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nave_domain::LeaseId;

/// How long an engine may take to notice an end: three times what was seen of one whose
/// helper had been killed.
const NOTICE_MAX: Duration = Duration::from_secs(40);

/// The first process of each running lease, and since when it has been gone.
#[derive(Debug, Default)]
pub struct Ghosts(Mutex<BTreeMap<LeaseId, Process>>);

#[derive(Debug, Clone, Copy)]
struct Process {
    pid: i64,
    gone: Option<Instant>,
}

impl Ghosts {
    /// Whether the process of a lease is known.
    pub fn knows(&self, lease: LeaseId) -> bool {
        self.lock().contains_key(&lease)
    }

    /// Takes in the process of a lease.
    pub fn learn(&self, lease: LeaseId, pid: i64) {
        self.lock().insert(lease, Process { pid, gone: None });
    }

    /// Forgets a lease.
    pub fn forget(&self, lease: LeaseId) {
        self.lock().remove(&lease);
    }

    /// Whether the process of a lease has been gone for so long that its end was missed.
    pub fn is_ghost(&self, lease: LeaseId) -> bool {
        self.check(lease, runs, Instant::now())
    }

    fn check(&self, lease: LeaseId, runs: impl Fn(i64) -> bool, now: Instant) -> bool {
        let mut known = self.lock();
        let Some(process) = known.get_mut(&lease) else { return false };
        if runs(process.pid) {
            process.gone = None;
            return false;
        }
        now.duration_since(*process.gone.get_or_insert(now)) > NOTICE_MAX
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<LeaseId, Process>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a process is there and more than a name that waits to be reaped.
fn runs(pid: i64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may contain anything, so the state is looked for behind it.
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use nave_domain::LeaseId;

    use super::*;

    #[test]
    fn a_process_gone_for_long_is_a_ghost_and_one_that_is_back_is_not() {
        let (ghosts, lease) = (Ghosts::default(), LeaseId::from(uuid::Uuid::from_u128(1)));
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!ghosts.check(lease, |_| false, start), "unknown");
        ghosts.learn(lease, 7);
        assert!(!ghosts.check(lease, |_| false, after(0)));
        assert!(!ghosts.check(lease, |_| false, after(39)));
        assert!(ghosts.check(lease, |_| false, after(41)));
        assert!(!ghosts.check(lease, |pid| pid == 7, after(42)));
        assert!(!ghosts.check(lease, |_| false, after(43)), "the wait begins anew");
    }

    #[test]
    fn this_process_runs_and_an_impossible_one_does_not() {
        assert!(runs(i64::from(std::process::id())));
        assert!(!runs(i64::MAX));
    }
}
