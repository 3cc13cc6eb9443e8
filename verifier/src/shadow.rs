//! Checks that are recorded and refuse nobody: whether they would refuse honest hosts. Pure.

use std::collections::BTreeMap;

use nave_domain::HostId;
use nave_proof::Failure;

/// What a verdict says about one check of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Whose verdict.
    pub host: HostId,
    /// Which check: what it would have refused with, or the kind of test.
    pub check: String,
    /// What the check found.
    pub failure: Option<Failure>,
    /// Whether the host passed all that counts at that time.
    pub otherwise_passed: bool,
}

/// How often a check would have refused, over all hosts that otherwise passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Verdicts of hosts that otherwise passed.
    pub passed: u64,
    /// Of these, the ones that it would have refused.
    pub falsely: u64,
    /// Verdicts that it would have refused of hosts that were refused anyway.
    pub rightly: u64,
}

/// For each check, how often it would have refused a host that otherwise passed.
#[must_use]
pub fn false_reject_rate(sightings: &[Sighting]) -> BTreeMap<String, Count> {
    let mut counts: BTreeMap<String, Count> = BTreeMap::new();
    for sighting in sightings {
        let count = counts.entry(sighting.check.clone()).or_default();
        match (sighting.otherwise_passed, sighting.failure.is_some()) {
            (true, failed) => {
                count.passed += 1;
                count.falsely += u64::from(failed);
            }
            (false, failed) => count.rightly += u64::from(failed),
        }
    }
    counts
}

impl Count {
    /// Hosts that it would refuse among a million that otherwise pass.
    #[must_use]
    pub fn per_million(&self) -> Option<u64> {
        let million = u128::from(self.falsely) * 1_000_000;
        million.checked_div(u128::from(self.passed)).and_then(|rate| u64::try_from(rate).ok())
    }

    /// What that is at most, with 95 % confidence: the rule of three where it has refused nobody, and a
    /// little more than the exact bound where it has.
    #[must_use]
    pub fn per_million_at_most(&self) -> Option<u64> {
        let root = self.falsely.isqrt() + 1;
        let most = u128::from(self.falsely + 3 + 2 * root * u64::from(self.falsely > 0));
        let rate = (most * 1_000_000).checked_div(u128::from(self.passed))?;
        u64::try_from(rate).ok().map(|rate| rate.min(1_000_000))
    }
}

#[cfg(test)]
mod tests {
    use nave_proof::Reason;
    use uuid::Uuid;

    use super::*;

    fn sighting(check: &str, fails: bool, otherwise_passed: bool) -> Sighting {
        let failure = fails.then(|| Failure { code: Reason::TransferTooSlow, message: "slow".into() });
        Sighting { host: HostId(Uuid::from_u128(1)), check: check.into(), failure, otherwise_passed }
    }

    #[test]
    fn a_check_is_false_where_it_refuses_a_host_that_otherwise_passes() {
        let mut seen: Vec<Sighting> = (0..97).map(|_| sighting("transfer", false, true)).collect();
        seen.extend((0..3).map(|_| sighting("transfer", true, true)));
        seen.extend((0..5).map(|_| sighting("transfer", true, false)));
        seen.push(sighting("storage", false, true));
        let counts = false_reject_rate(&seen);
        assert_eq!(counts["transfer"], Count { passed: 100, falsely: 3, rightly: 5 });
        assert_eq!(counts["transfer"].per_million(), Some(30_000));
        assert_eq!(counts["storage"], Count { passed: 1, falsely: 0, rightly: 0 });
    }

    #[test]
    fn a_check_that_refused_nobody_may_still_refuse_three_in_as_many_as_were_seen() {
        assert_eq!(Count { passed: 3_000, falsely: 0, rightly: 0 }.per_million_at_most(), Some(1_000));
        assert_eq!(Count::default().per_million(), None);
        assert_eq!(Count::default().per_million_at_most(), None);
    }
}
