//! How fast one caller may call: a token bucket for each, in this process' memory.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::Instant,
};

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::error::ApiError;

/// How fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Calls per second that a caller may sustain.
    per_second: u64,
    /// Calls that a rested caller may make at once.
    burst: u64,
}

/// The pace of an API key, and of an address that signs its calls.
pub(crate) const CALLS: Pace = Pace { per_second: 50, burst: 200 };
/// The pace at which one address may look at what is open to everyone.
pub(crate) const LOOKS: Pace = Pace { per_second: 20, burst: 200 };
/// The pace at which one address may enrol hosts.
pub(crate) const ENROLMENTS: Pace = Pace { per_second: 2, burst: 60 };
/// Buckets kept; beyond, the full ones are forgotten, which changes nothing for their keys.
const BUCKETS_MAX: usize = 10_000;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STANDING: HeaderName = HeaderName::from_static("ratelimit");

/// Every caller's bucket.
#[derive(Debug)]
pub(crate) struct Throttle<K> {
    pace: Pace,
    began: Instant,
    buckets: Mutex<HashMap<K, Bucket>>,
}

/// Where a caller stands after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Whether this call may go on.
    pub(crate) allowed: bool,
    /// Calls left right now.
    remaining: u64,
    /// Seconds until there is one more, rounded up.
    pub(crate) next_s: u64,
    pace: Pace,
}

impl<K: Eq + Hash> Throttle<K> {
    pub(crate) fn new(pace: Pace) -> Self {
        Self { pace, began: Instant::now(), buckets: Mutex::default() }
    }

    /// Counts one call of `caller`.
    pub(crate) fn take(&self, caller: K) -> Standing {
        let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKETS_MAX {
            buckets.retain(|_, bucket| !bucket.is_full(self.pace, now_ms));
        }
        let full = Bucket { millitokens: self.pace.burst * 1_000, at_ms: now_ms };
        buckets.entry(caller).or_insert(full).take(self.pace, now_ms)
    }
}

/// Who counts as one caller among addresses: an IPv4 address, or the /64 that one IPv6
/// customer of a provider has at least.
pub(crate) fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(network))
        }
        IpAddr::V4(address) => IpAddr::V4(address),
    }
}

/// The refusal of who calls too fast.
pub(crate) fn too_fast(who: &str, seconds: u64) -> ApiError {
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", format!("this {who} calls too often"))
        .suggest("wait as long as Retry-After says; use wait_ms or follow instead of polling")
        .retry_in(seconds)
}

/// One caller's bucket, in thousandths of a call so that integers suffice.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    millitokens: u64,
    at_ms: u64,
}

impl Bucket {
    fn level(&self, pace: Pace, now_ms: u64) -> u64 {
        let gained = now_ms.saturating_sub(self.at_ms).saturating_mul(pace.per_second);
        self.millitokens.saturating_add(gained).min(pace.burst * 1_000)
    }

    fn is_full(&self, pace: Pace, now_ms: u64) -> bool {
        self.level(pace, now_ms) == pace.burst * 1_000
    }

    fn take(&mut self, pace: Pace, now_ms: u64) -> Standing {
        let level = self.level(pace, now_ms);
        let allowed = level >= 1_000;
        *self = Self { millitokens: if allowed { level - 1_000 } else { level }, at_ms: now_ms };
        let missing = 1_000_u64.saturating_sub(self.millitokens);
        Standing {
            allowed,
            remaining: self.millitokens / 1_000,
            next_s: missing.div_ceil(pace.per_second * 1_000),
            pace,
        }
    }
}

impl Standing {
    /// Writes `RateLimit-Policy` and `RateLimit`, as the IETF draft
    /// `draft-ietf-httpapi-ratelimit-headers` describes them.
    pub(crate) fn write(self, headers: &mut HeaderMap) {
        let policy = format!("\"key\";q={};w={}", self.pace.burst, self.pace.burst / self.pace.per_second);
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
        let mut bucket = Bucket { millitokens: CALLS.burst * 1_000, at_ms: 0 };
        assert!((0..CALLS.burst).all(|_| bucket.take(CALLS, 0).allowed));
        let refused = bucket.take(CALLS, 0);
        assert_eq!((refused.allowed, refused.remaining, refused.next_s), (false, 0, 1));
        let after_a_second = (0..100).filter(|_| bucket.take(CALLS, 1_000).allowed).count();
        assert_eq!(after_a_second, 50);
    }

    #[test]
    fn a_rested_bucket_is_no_fuller_than_full() {
        let mut bucket = Bucket { millitokens: 0, at_ms: 0 };
        assert_eq!(bucket.take(CALLS, u64::MAX).remaining, CALLS.burst - 1);
    }

    #[test]
    fn one_key_does_not_slow_another() {
        let throttle = Throttle::new(CALLS);
        while throttle.take(1).allowed {}
        assert!(throttle.take(2).allowed);
    }

    #[test]
    fn a_network_of_ipv6_addresses_is_one_caller() {
        let of = |text: &str| source(text.parse().expect("an address"));
        assert_eq!(of("2001:db8:0:1::7"), of("2001:db8:0:1:ffff::9"));
        assert_ne!(of("2001:db8:0:1::7"), of("2001:db8:0:2::7"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
