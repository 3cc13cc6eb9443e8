//! Waits between attempts: twice as long each time, with jitter, so that many
//! agents do not return to a restarted control plane in step.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// The waits of one series of attempts.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// Waits before the next attempt.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.step()).await;
    }

    /// Begins again after a success.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }

    fn step(&mut self) -> Duration {
        let span = self.next;
        self.next = (span * 2).min(LONGEST);
        jitter(span, getrandom::u32().unwrap_or(0))
    }
}

/// Between a half and the whole of `span`, as `random` says.
fn jitter(span: Duration, random: u32) -> Duration {
    let half = span / 2;
    let share = (half.as_nanos() * u128::from(random)) >> 32;
    half + Duration::from_nanos(u64::try_from(share).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_begin_again() {
        let mut backoff = Backoff::default();
        assert!(backoff.step() <= FIRST);
        for _ in 0..20 {
            let wait = backoff.step();
            assert!(wait <= LONGEST);
        }
        assert!(backoff.step() >= LONGEST / 2);
        backoff.reset();
        assert!(backoff.step() <= FIRST);
    }
}
