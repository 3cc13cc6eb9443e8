//! Checks that are recorded and refuse nobody: whether they would refuse honest hosts. Pure.
//!
//! Kinds of tests are in shadow as the verifier's arguments say, bands as the catalogue says. What a
//! host that passes everything else fails in shadow is taken for a false refusal: either it is one, or the
//! check sees what no other does, which somebody should look at before it counts.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{HostId, Millis, Timestamp, host::Device, verdict::Kind};
use nave_proof::{DeviceProven, DeviceTask};

use crate::{
    catalogue::Catalogue,
    class::{amount, classify},
};

/// How much later than another of its suite a test may end.
const SUITE: Millis = Millis(600_000);

/// A test with its verdict, as rows have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// Whose.
    pub host: HostId,
    /// What was tested.
    pub kind: Kind,
    /// Whether it meant nothing for the host.
    pub shadow: bool,
    /// What came of it: `passed`, `void`, or why it failed.
    pub code: String,
    /// When that was written down.
    pub at: Timestamp,
}

/// What one check found of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Which check, for people.
    pub check: String,
    /// Whether it would have refused the host.
    pub failed: bool,
    /// Whether the host passed all that counts.
    pub otherwise_passed: bool,
}

/// How often a check would have refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Verdicts of hosts that otherwise passed.
    pub passed: u64,
    /// Of these, the ones that it would have refused.
    pub falsely: u64,
    /// Verdicts that it would have refused of hosts that were refused anyway.
    pub rightly: u64,
}

/// What kinds in shadow found. Void tests say nothing.
#[must_use]
pub fn of_kinds(decided: &[Decided]) -> Vec<Sighting> {
    let shadows = decided.iter().filter(|test| test.shadow && test.code != "void");
    let sighting = |test: &Decided| Sighting {
        check: test.kind.as_str().to_owned(),
        failed: test.code != "passed",
        otherwise_passed: passes(decided, test.host, test.at),
    };
    shadows.map(sighting).collect()
}

/// Whether a host passed the last test of each kind that counted then.
#[must_use]
pub fn passes(decided: &[Decided], host: HostId, at: Timestamp) -> bool {
    let of_it = decided.iter().filter(|test| test.host == host && !test.shadow && test.code != "void");
    let mut before: Vec<&Decided> = of_it.filter(|test| test.at <= at.after(SUITE)).collect();
    before.sort_by_key(|test| std::cmp::Reverse(test.at));
    let mut kinds = BTreeSet::new();
    !before.is_empty() && before.into_iter().all(|test| !kinds.insert(test.kind) || test.code == "passed")
}

/// What bands in shadow found of a device of a host that passed, or was refused anyway.
#[must_use]
pub fn of_bands(
    catalogue: &Catalogue,
    claim: &Device,
    (task, proven): (&DeviceTask, &DeviceProven),
    otherwise_passed: bool,
) -> Vec<Sighting> {
    let Some(class) = catalogue.called(&claim.model, claim.simulated) else { return Vec::new() };
    let judged = classify(catalogue, claim, task, proven);
    let shadows =
        class.bands.iter().filter(|(measure, band)| band.shadow && amount(proven, **measure).is_some());
    let sighting = |(measure, band): (&crate::catalogue::Measure, &crate::catalogue::Band)| Sighting {
        check: format!("{measure} of {}", class.name),
        failed: !judged.shadows.is_empty()
            && amount(proven, *measure).is_some_and(|amount| amount < band.low),
        otherwise_passed,
    };
    shadows.map(sighting).collect()
}

/// For each check, how often it would have refused a host that otherwise passed.
#[must_use]
pub fn false_reject_rate(sightings: &[Sighting]) -> BTreeMap<String, Count> {
    let mut counts: BTreeMap<String, Count> = BTreeMap::new();
    for sighting in sightings {
        let count = counts.entry(sighting.check.clone()).or_default();
        if sighting.otherwise_passed {
            count.passed += 1;
            count.falsely += u64::from(sighting.failed);
        } else {
            count.rightly += u64::from(sighting.failed);
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

    /// For people.
    #[must_use]
    pub fn say(&self) -> String {
        let Self { passed, falsely, rightly } = self;
        let percent = |rate: Option<u64>| {
            rate.map_or("-".into(), |rate| format!("{}.{:02} %", rate / 10_000, rate % 10_000 / 100))
        };
        format!(
            "would have refused {falsely} of {passed} that otherwise passed ({}, at most {}), and {rightly} that were \
             refused anyway",
            percent(self.per_million()),
            percent(self.per_million_at_most())
        )
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn decided(host: u128, kind: Kind, shadow: bool, code: &str, at_s: i64) -> Decided {
        Decided {
            host: HostId(Uuid::from_u128(host)),
            kind,
            shadow,
            code: code.into(),
            at: Timestamp(at_s * 1_000),
        }
    }

    #[test]
    fn a_check_is_false_where_it_refuses_a_host_that_otherwise_passes() {
        let rows = [
            decided(1, Kind::Cpu, false, "passed", 0),
            decided(1, Kind::Transfer, true, "transfer_too_slow", 10),
            decided(1, Kind::Memory, false, "passed", 20),
            decided(2, Kind::Cpu, false, "passed", 0),
            decided(2, Kind::Transfer, true, "transfer_too_slow", 10),
            decided(2, Kind::Memory, false, "memory_missing", 20),
            decided(3, Kind::Cpu, false, "passed", 0),
            decided(3, Kind::Transfer, true, "passed", 10),
            decided(3, Kind::Transfer, true, "void", 11),
        ];
        let counts = false_reject_rate(&of_kinds(&rows));
        assert_eq!(counts.len(), 1);
        assert_eq!(counts["transfer"], Count { passed: 2, falsely: 1, rightly: 1 });
    }

    #[test]
    fn a_host_counts_as_it_stood_when_the_check_was_made() {
        let rows = [
            decided(1, Kind::Cpu, false, "cpu_overclaimed", 0),
            decided(1, Kind::Cpu, false, "passed", 100),
            decided(1, Kind::Storage, true, "disk_too_slow", 110),
            decided(1, Kind::Cpu, false, "cpu_overclaimed", 100_000),
        ];
        assert_eq!(
            false_reject_rate(&of_kinds(&rows))["storage"],
            Count { passed: 1, falsely: 1, rightly: 0 }
        );
        let untested = [decided(1, Kind::Storage, true, "disk_too_slow", 110)];
        assert_eq!(
            false_reject_rate(&of_kinds(&untested))["storage"].passed,
            0,
            "nothing says that it is honest"
        );
    }

    #[test]
    fn a_check_that_refused_nobody_may_still_refuse_three_in_as_many_as_were_seen() {
        let count = Count { passed: 3_000, falsely: 0, rightly: 2 };
        assert_eq!(count.per_million_at_most(), Some(1_000));
        assert_eq!(
            count.say(),
            "would have refused 0 of 3000 that otherwise passed (0.00 %, at most 0.10 %), and 2 that were refused \
             anyway"
        );
        assert_eq!((Count::default().per_million(), Count::default().per_million_at_most()), (None, None));
    }
}
