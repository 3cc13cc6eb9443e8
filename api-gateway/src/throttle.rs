//! How fast one key may call: a token bucket per API key, in this process' memory.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use nave_domain::KeyId;

/// Calls per second that a key may sustain.
const PER_SECOND: u64 = 50;
/// Calls that a rested key may make at once.
const BURST: u64 = 200;
/// Buckets kept; beyond, the full ones are forgotten, which changes nothing for their keys.
const BUCKETS_MAX: usize = 10_000;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STANDING: HeaderName = HeaderName::from_static("ratelimit");

/// Every key's bucket.
#[derive(Debug)]
pub(crate) struct Throttle {
    began: Instant,
    buckets: Mutex<HashMap<KeyId, Bucket>>,
}

/// Where a key stands after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Whether this call may go on.
    pub(crate) allowed: bool,
    /// Calls left right now.
    remaining: u64,
    /// Seconds until there is one more, rounded up.
    pub(crate) next_s: u64,
}

impl Throttle {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), buckets: Mutex::default() }
    }

    /// Counts one call of `key`.
    pub(crate) fn take(&self, key: KeyId) -> Standing {
        let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKETS_MAX {
            buckets.retain(|_, bucket| !bucket.is_full(now_ms));
        }
        buckets.entry(key).or_insert(Bucket { millitokens: BURST * 1_000, at_ms: now_ms }).take(now_ms)
    }
}

/// One key's bucket, in thousandths of a call so that integers suffice.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    millitokens: u64,
    at_ms: u64,
}

impl Bucket {
    fn level(&self, now_ms: u64) -> u64 {
        let gained = now_ms.saturating_sub(self.at_ms).saturating_mul(PER_SECOND);
        self.millitokens.saturating_add(gained).min(BURST * 1_000)
    }

    fn is_full(&self, now_ms: u64) -> bool {
        self.level(now_ms) == BURST * 1_000
    }

    fn take(&mut self, now_ms: u64) -> Standing {
        let level = self.level(now_ms);
        let allowed = level >= 1_000;
        *self = Self { millitokens: if allowed { level - 1_000 } else { level }, at_ms: now_ms };
        let missing = 1_000_u64.saturating_sub(self.millitokens);
        Standing {
            allowed,
            remaining: self.millitokens / 1_000,
            next_s: missing.div_ceil(PER_SECOND * 1_000),
        }
    }
}

impl Standing {
    /// Writes `RateLimit-Policy` and `RateLimit`, as the IETF draft
    /// `draft-ietf-httpapi-ratelimit-headers` describes them.
    pub(crate) fn write(self, headers: &mut HeaderMap) {
        let policy = format!("\"key\";q={BURST};w={}", BURST / PER_SECOND);
        let standing = format!("\"key\";r={};t={}", self.remaining, self.next_s);
        for (name, text) in [(POLICY, policy), (STANDING, standing)] {
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_may_burst_then_keeps_the_sustained_rate() {
        let mut bucket = Bucket { millitokens: BURST * 1_000, at_ms: 0 };
        assert!((0..BURST).all(|_| bucket.take(0).allowed));
        let refused = bucket.take(0);
        assert_eq!((refused.allowed, refused.remaining, refused.next_s), (false, 0, 1));
        let after_a_second = (0..100).filter(|_| bucket.take(1_000).allowed).count();
        assert_eq!(after_a_second, 50);
    }

    #[test]
    fn a_rested_bucket_is_no_fuller_than_full() {
        let mut bucket = Bucket { millitokens: 0, at_ms: 0 };
        assert_eq!(bucket.take(u64::MAX).remaining, BURST - 1);
    }

    #[test]
    fn one_key_does_not_slow_another() {
        let throttle = Throttle::new();
        let [a, b] = [1, 2].map(|n| KeyId(uuid::Uuid::from_u128(n)));
        while throttle.take(a).allowed {}
        assert!(throttle.take(b).allowed);
    }
}
