//! When a call is sent again.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use tokio::time::Instant;

/// How long a client keeps trying and how it spaces its tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Time after the first try in which the last one may begin.
    pub total: Duration,
    /// Wait after the first try; it doubles with every further one.
    pub first: Duration,
    /// Longest wait between two tries.
    pub longest: Duration,
}

impl Default for Patience {
    /// One minute: long enough for a control plane that restarts.
    fn default() -> Self {
        Self {
            total: Duration::from_secs(60),
            first: Duration::from_millis(200),
            longest: Duration::from_secs(5),
        }
    }
}

impl Patience {
    /// The wait after `tries` failed tries: half of it fixed, half spread by
    /// `noise` so that many clients do not return at once. A longer wait that the
    /// server asks for is respected.
    fn wait(self, tries: u32, noise: u64, asked: Option<Duration>) -> Duration {
        let doubled =
            self.first.saturating_mul(1_u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX));
        let full = doubled.min(self.longest);
        let half = full / 2;
        let span = u64::try_from(half.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        (half + Duration::from_millis(noise % span)).max(asked.unwrap_or_default())
    }
}

/// The tries of one call.
#[derive(Debug)]
pub(super) struct Tries {
    patience: Patience,
    began: Instant,
    failed: u32,
}

impl Tries {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, began: Instant::now(), failed: 0 }
    }

    /// The wait before the next try; `None` when patience has run out.
    pub(super) fn next_wait(&mut self, asked: Option<Duration>) -> Option<Duration> {
        self.failed = self.failed.saturating_add(1);
        let noise = RandomState::new().hash_one(self.failed);
        let wait = self.patience.wait(self.failed, noise, asked);
        (self.began.elapsed().saturating_add(wait) <= self.patience.total).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let waits = [1, 2, 3, 6, 60].map(|tries| Patience::default().wait(tries, 0, None).as_millis());
        assert_eq!(waits, [100, 200, 400, 2_500, 2_500]);
    }

    #[test]
    fn a_server_that_asks_for_more_time_gets_it() {
        let asked = Duration::from_secs(9);
        assert_eq!(Patience::default().wait(1, 0, Some(asked)), asked);
    }

    #[test]
    fn patience_ends() {
        let mut tries = Tries::new(Patience { total: Duration::ZERO, ..Patience::default() });
        assert_eq!(tries.next_wait(None), None);
    }

    proptest! {
        #[test]
        fn a_wait_lies_between_half_and_the_whole_step(tries in 1..200_u32, noise: u64) {
            let (patience, wait) = (Patience::default(), Patience::default().wait(tries, noise, None));
            prop_assert!(wait >= patience.first / 2 && wait <= patience.longest);
        }
    }
}
