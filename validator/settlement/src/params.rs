//! The one document of numbers that pay follows from.

use serde::{Deserialize, Serialize};

use crate::{Error, exact::MILLION};

/// Parameters of a settlement, as in `docs/settlement.md`. Times in milliseconds, money in micro-USD, parts in ppm.
///
/// Fields stand in the order of the canonical form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// When it was made known.
    pub announced_ms: i64,
    /// What a confirmed breach takes from the adherence of an on-demand lease.
    pub breach_on_demand_ppm: i64,
    /// What a confirmed breach takes from the adherence of a spot lease.
    pub breach_spot_ppm: i64,
    /// On-demand offers are backed by the price of so much time.
    pub collateral_ms: i64,
    /// Within this time a host that was lost is back, or its absence confirms the breach.
    pub confirm_ms: i64,
    /// Collateral that is called back is paid after this time.
    pub cooldown_ms: i64,
    /// For how long a demotion lasts.
    pub demotion_ms: i64,
    /// Breaches per device-hour above which a hotkey is demoted, in ppm.
    pub demotion_ppm: i64,
    /// The epoch from which it holds.
    pub effective_epoch: i64,
    /// Silence that is no gap yet.
    pub gap_ms: i64,
    /// Baseline of a GiB-hour in leases without a baseline of their own.
    pub gib_hour: i64,
    /// Value of an epoch's emission on a chain that has none of its own.
    pub local_emission: i64,
    /// Part of what customers pay that nobody can earn back.
    pub margin_ppm: i64,
    /// A change is announced so many epochs before it holds.
    pub notice_epochs: i64,
    /// Standby is for devices that kept their obligations for this time.
    pub obliged_ms: i64,
    /// So many hosts at least fall silent at once where it was the platform.
    pub outage_hosts: i64,
    /// This part of all hosts falls silent at once where it was the platform.
    pub outage_ppm: i64,
    /// A confirmed breach costs the price of so much time.
    pub penalty_ms: i64,
    /// A price so far below the baseline earns full standby.
    pub price_band_ppm: i64,
    /// Device time that everyone is taken to have served with one breach.
    pub prior_device_ms: i64,
    /// A new hotkey sells as spot for this time.
    pub probation_ms: i64,
    /// The sink's part above which operators are told.
    pub sink_alarm_ppm: i64,
    /// Epochs over which the emission's value is averaged.
    pub smoothing: i64,
    /// Utilisation up to which standby is zero.
    pub standby_from_ppm: i64,
    /// Devices of each class that standby is for, at most; none in a class that is not listed. In order of classes.
    pub standby_targets: Vec<(String, i64)>,
    /// Standby at its highest, as a part of the baseline.
    pub standby_top_ppm: i64,
    /// Utilisation from which on standby is at its highest.
    pub standby_until_ppm: i64,
    /// A lease begins within this time.
    pub start_promise_ms: i64,
    /// Baseline of a vCPU-hour in leases without a baseline of their own.
    pub vcpu_hour: i64,
    /// Which document this is.
    pub version: i64,
    /// Standby vests over this time.
    pub vest_ms: i64,
    /// How long breaches and device time count.
    pub window_days: i64,
}

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

impl Default for Params {
    fn default() -> Self {
        Self {
            announced_ms: 0,
            breach_on_demand_ppm: 100_000,
            breach_spot_ppm: 50_000,
            collateral_ms: 3 * DAY,
            confirm_ms: HOUR,
            cooldown_ms: 14 * DAY,
            demotion_ms: 7 * DAY,
            demotion_ppm: 10_000,
            effective_epoch: 0,
            gap_ms: 15_000,
            gib_hour: 5_000,
            local_emission: 0,
            margin_ppm: 100_000,
            notice_epochs: 2,
            obliged_ms: 3 * DAY,
            outage_hosts: 5,
            outage_ppm: 300_000,
            penalty_ms: 16 * HOUR,
            price_band_ppm: 100_000,
            prior_device_ms: 250 * HOUR,
            probation_ms: 3 * DAY,
            sink_alarm_ppm: 500_000,
            smoothing: 5,
            standby_from_ppm: 500_000,
            standby_targets: Vec::new(),
            standby_top_ppm: 200_000,
            standby_until_ppm: 850_000,
            start_promise_ms: 300_000,
            vcpu_hour: 40_000,
            version: 0,
            vest_ms: 3 * DAY,
            window_days: 30,
        }
    }
}

impl Params {
    /// Whether pay can be computed with it.
    ///
    /// # Errors
    /// Names the first field that is out of its range.
    pub fn check(&self) -> Result<(), Error> {
        let broken = self.ranges().into_iter().find(|(_, value, range)| !range.contains(value));
        if let Some((field, _, range)) = broken {
            return Err(Error::Params(field, format!("is not from {} to {}", range.start(), range.end())));
        }
        if self.standby_from_ppm >= self.standby_until_ppm {
            return Err(Error::Params("standby_until_ppm", "is not above standby_from_ppm".to_owned()));
        }
        if !self.standby_targets.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(Error::Params("standby_targets", "is not in the order of classes".to_owned()));
        }
        if self.standby_targets.iter().any(|(_, devices)| *devices < 0) {
            return Err(Error::Params("standby_targets", "has a negative number".to_owned()));
        }
        Ok(())
    }

    /// Every number with where it may be.
    fn ranges(&self) -> [(&'static str, i64, std::ops::RangeInclusive<i64>); 31] {
        let part = |name, value| (name, value, 0..=MILLION);
        let any = |name, value| (name, value, 0..=i64::MAX);
        let some = |name, value| (name, value, 1..=i64::MAX);
        [
            any("announced_ms", self.announced_ms),
            part("breach_on_demand_ppm", self.breach_on_demand_ppm),
            part("breach_spot_ppm", self.breach_spot_ppm),
            any("collateral_ms", self.collateral_ms),
            any("confirm_ms", self.confirm_ms),
            any("cooldown_ms", self.cooldown_ms),
            any("demotion_ms", self.demotion_ms),
            any("demotion_ppm", self.demotion_ppm),
            any("effective_epoch", self.effective_epoch),
            any("gap_ms", self.gap_ms),
            any("gib_hour", self.gib_hour),
            any("local_emission", self.local_emission),
            part("margin_ppm", self.margin_ppm),
            any("notice_epochs", self.notice_epochs),
            any("obliged_ms", self.obliged_ms),
            any("outage_hosts", self.outage_hosts),
            part("outage_ppm", self.outage_ppm),
            any("penalty_ms", self.penalty_ms),
            ("price_band_ppm", self.price_band_ppm, 1..=MILLION),
            some("prior_device_ms", self.prior_device_ms),
            any("probation_ms", self.probation_ms),
            part("sink_alarm_ppm", self.sink_alarm_ppm),
            some("smoothing", self.smoothing),
            part("standby_from_ppm", self.standby_from_ppm),
            part("standby_top_ppm", self.standby_top_ppm),
            part("standby_until_ppm", self.standby_until_ppm),
            any("start_promise_ms", self.start_promise_ms),
            any("vcpu_hour", self.vcpu_hour),
            any("version", self.version),
            some("vest_ms", self.vest_ms),
            some("window_days", self.window_days),
        ]
    }

    /// For how many devices of `class` standby is.
    #[must_use]
    pub fn standby_target(&self, class: &str) -> Option<i64> {
        self.standby_targets.iter().find(|(name, _)| name == class).map(|(_, devices)| *devices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_can_be_computed_with() {
        assert_eq!(Params::default().check(), Ok(()));
    }

    #[test]
    fn a_field_out_of_its_range_is_named() {
        let field = |params: Params| match params.check() {
            Err(Error::Params(field, _)) => field,
            other => panic!("{other:?}"),
        };
        let of = Params::default;
        assert_eq!(field(Params { margin_ppm: 1_000_001, ..of() }), "margin_ppm");
        assert_eq!(field(Params { vest_ms: 0, ..of() }), "vest_ms");
        assert_eq!(field(Params { gap_ms: -1, ..of() }), "gap_ms");
        assert_eq!(field(Params { standby_from_ppm: 850_000, ..of() }), "standby_until_ppm");
        let twice = vec![("a".to_owned(), 1), ("a".to_owned(), 2)];
        assert_eq!(field(Params { standby_targets: twice, ..of() }), "standby_targets");
    }
}
