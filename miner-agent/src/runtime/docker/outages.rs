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

use nave_domain::{Millis, Timestamp};

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

    /// The engine came back while no agent watched: it began at `engine`, the earlier agent was
    /// there until `agent` at least, both on the boot clock, and both are here `now`.
    pub fn missed(&self, engine: Millis, agent: Millis, now: Millis) {
        if engine > agent {
            let (from, to) = (now.0 - agent.0, self::now());
            self.begin_at(to.saturating_sub(from));
            self.end_at(to);
        }
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
    fn an_engine_that_came_back_while_no_agent_watched_was_away_until_now() {
        let in_ms = |ms: i64| serde_json::to_value(Timestamp(now() + ms)).expect("a time");
        let covers = |outages: &Outages, ms| outages.cover(in_ms(ms).as_str().expect("text"));
        let outages = Outages::default();
        outages.missed(Millis(5_000), Millis(6_000), Millis(10_000));
        assert!(!covers(&outages, -3_000), "the engine is older than the agent's last sign");
        outages.missed(Millis(8_000), Millis(6_000), Millis(10_000));
        assert!(covers(&outages, -3_000) && !covers(&outages, -5_000) && !covers(&outages, 2_000));
    }

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
