//! What idle devices of a class are worth: little while many are idle, more as they run out.

use serde::{Deserialize, Serialize};

use crate::units::MicroUsd;

/// How much of a class was leased, summed over looks at it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClassUse {
    /// Devices that were seen, once for each look.
    pub devices: i64,
    /// Thousandths of them that were leased then.
    pub leased_milli: i64,
}

/// Leased part, in thousandths, up to which idle devices are worth nothing.
const FROM: i64 = 500;
/// Leased part, in thousandths, from which on they are worth the most.
const UNTIL: i64 = 850;
/// The most they are worth, in percent of the baseline.
const PERCENT_MAX: i64 = 20;

impl ClassUse {
    /// The part that was leased, in thousandths; none where nothing was seen.
    #[must_use]
    pub fn utilisation(self) -> Option<i64> {
        (self.devices > 0).then(|| (self.leased_milli / self.devices).clamp(0, 1_000))
    }

    /// What an hour of an idle device is worth while clouds ask `baseline`, in micro-USD, rounded down: nothing up
    /// to a half leased, a fifth of the baseline from 85 % on, and in between in proportion.
    #[must_use]
    pub fn standby(self, baseline: MicroUsd) -> MicroUsd {
        let above = (self.utilisation().unwrap_or(0).min(UNTIL) - FROM).max(0);
        let most = i128::from(baseline.0.max(0)) * i128::from(PERCENT_MAX) * i128::from(above);
        MicroUsd(i64::try_from(most / (100 * i128::from(UNTIL - FROM))).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_devices_are_worth_more_the_fewer_there_are() {
        let standby = |leased_milli| ClassUse { devices: 10, leased_milli }.standby(MicroUsd(2_000_000)).0;
        assert_eq!([standby(0), standby(5_000), standby(6_750)], [0, 0, 200_000]);
        assert_eq!([standby(8_500), standby(10_000), standby(99_000)], [400_000; 3]);
        assert_eq!(ClassUse { devices: 1, leased_milli: 1_000 }.standby(MicroUsd(i64::MAX)).0, i64::MAX / 5);
        let unseen = ClassUse::default();
        assert_eq!((unseen.utilisation(), unseen.standby(MicroUsd(1))), (None, MicroUsd(0)));
    }
}
