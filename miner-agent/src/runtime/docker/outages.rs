//! Times at which the engine was away.
//!
//! An engine that is killed leaves its containers running. What a command writes then
//! waits for the next engine, but where the command also ends before that, the engine
//! drops what waited. Such an end must not pass for a whole one.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use nave_domain::Timestamp;

/// Uncertainty of either end of an outage, in milliseconds.
const SLACK_MS: i64 = 200;
/// Outages remembered; a lease's end is looked at soon after it.
const KEPT_MAX: usize = 64;

/// When the engine was away, on this machine's wall clock, as its own times are.
#[derive(Debug, Default)]
pub struct Outages(Mutex<VecDeque<Outage>>);

#[derive(Debug, Clone, Copy)]
struct Outage {
    from: i64,
    /// None while it lasts.
    to: Option<i64>,
}

impl Outages {
    /// The engine has gone.
    pub fn begin(&self) {
        self.begin_at(now());
    }

    /// The engine answers again.
    pub fn end(&self) {
        self.end_at(now());
    }

    /// Whether the engine was away at `at`, an RFC 3339 time; one that cannot be read counts
    /// as no time at all.
    #[must_use]
    pub fn cover(&self, at: &str) -> bool {
        let Ok(Timestamp(at)) = serde_json::from_value(serde_json::Value::from(at)) else { return false };
        let outages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        outages
            .iter()
            .any(|outage| at >= outage.from - SLACK_MS && outage.to.is_none_or(|to| at <= to + SLACK_MS))
    }

    fn begin_at(&self, from: i64) {
        let mut outages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        outages.truncate(KEPT_MAX - 1);
        outages.push_front(Outage { from, to: None });
    }

    fn end_at(&self, to: i64) {
        let mut outages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outage) = outages.front_mut() {
            outage.to = Some(to);
        }
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_within_an_outage_is_told_from_one_outside() {
        let outages = Outages::default();
        assert!(!outages.cover("2026-01-01T00:00:10Z"));
        let second = |n: i64| 1_767_225_600_000 + n * 1_000;
        outages.begin_at(second(10));
        assert!(outages.cover("2026-01-01T00:00:20.5Z"), "it lasts");
        outages.end_at(second(12));
        for (at, inside) in [("09.7", false), ("10.1", true), ("12.1", true), ("12.3", false)] {
            assert_eq!(outages.cover(&format!("2026-01-01T00:00:{at}Z")), inside, "{at}");
        }
        assert!(!outages.cover("no time"));
    }
}
