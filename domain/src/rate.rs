//! Prices and what a stretch of use costs.

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, MicroUsd, MilliCpu, MilliGpu, Millis, Overflow};

/// A price per hour in three parts, so that a host without GPUs earns too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// micro-USD per hour of one whole GPU.
    pub gpu_hour: MicroUsd,
    /// micro-USD per hour of one virtual CPU.
    pub vcpu_hour: MicroUsd,
    /// micro-USD per hour of one GiB (2³⁰ bytes) of memory.
    pub gib_hour: MicroUsd,
}

impl Rate {
    /// The same if a GPU cost what so much of one costs, rounded up.
    #[must_use]
    pub fn for_part(self, milli: MilliGpu) -> Self {
        let part = i128::from(self.gpu_hour.0) * i128::from(milli.0);
        let gpu_hour = MicroUsd(i64::try_from((part + 999) / 1_000).unwrap_or(i64::MAX));
        Self { gpu_hour, ..self }
    }
}

/// How the price of a host's GPUs is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GpuPrice {
    /// By its owner, until they change it.
    #[default]
    Fixed,
    /// It follows what clouds ask for such devices, the cheapest of them that the host has.
    BelowBaseline {
        /// By how many percent it is lower.
        percent: u8,
        /// What it never falls below, in micro-USD per hour of one GPU.
        floor: MicroUsd,
    },
}

impl GpuPrice {
    /// The largest part by which a price is lower than what clouds ask.
    pub const PERCENT_MAX: u8 = 99;

    /// micro-USD per hour of one GPU while clouds ask `baseline`, rounded down; none where the owner says.
    #[must_use]
    pub fn following(self, baseline: MicroUsd) -> Option<MicroUsd> {
        match self {
            Self::Fixed => None,
            Self::BelowBaseline { percent, floor } => {
                let part = i128::from(100_u8.saturating_sub(percent));
                let price = i64::try_from(i128::from(baseline.0) * part / 100).ok()?;
                Some(MicroUsd(price).max(floor))
            }
        }
    }
}

/// What a lease occupies, in the parts a [`Rate`] prices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Thousandths of a GPU.
    pub milli_gpu: MilliGpu,
    /// Thousandths of a virtual CPU.
    pub milli_cpu: MilliCpu,
    /// Memory in bytes.
    pub memory: Bytes,
}

/// Denominator of [`numerator`]: milliseconds per hour × thousandths × bytes per GiB.
const DENOMINATOR: i128 = 3_600_000 * 1_000 * (1 << 30);

/// Price of one millisecond of `size`, in 1/[`DENOMINATOR`] micro-USD.
fn numerator(size: Size, rate: Rate) -> i128 {
    let gib = 1_i128 << 30;
    let part = |price: MicroUsd, amount: i64, scale: i128| {
        (i128::from(price.0) * i128::from(amount)).saturating_mul(scale)
    };
    // What saturates is above any charge there can be.
    part(rate.gpu_hour, size.milli_gpu.0, gib)
        .saturating_add(part(rate.vcpu_hour, size.milli_cpu.0, gib))
        .saturating_add(part(rate.gib_hour, size.memory.0, 1_000))
}

/// Charge for `used` in total, in micro-USD, rounded down in the customer's favour.
///
/// A running total is charged as `charge(total) − already charged`, so rounding
/// never accumulates.
///
/// # Errors
/// [`Overflow`] above 2⁶³−1, the largest value a Postgres bigint holds.
pub fn charge(size: Size, used: Millis, rate: Rate) -> Result<MicroUsd, Overflow> {
    let total = numerator(size, rate).checked_mul(i128::from(used.0.max(0))).ok_or(Overflow)?;
    i64::try_from(total / DENOMINATOR).map(MicroUsd).map_err(|_| Overflow)
}

/// Price of one hour of `size`, in micro-USD, rounded down.
///
/// # Errors
/// [`Overflow`] as for [`charge`].
pub fn hourly(size: Size, rate: Rate) -> Result<MicroUsd, Overflow> {
    charge(size, Millis(3_600_000), rate)
}

/// Price of one hour of `size` for each whole GPU of it, its cores and memory included, rounded up; none where it
/// has no GPUs.
#[must_use]
pub fn gpu_hourly(size: Size, rate: Rate) -> Option<MicroUsd> {
    let milli_gpu = i128::from(size.milli_gpu.0);
    let hourly = numerator(size, rate).checked_mul(3_600_000 * 1_000).filter(|_| milli_gpu > 0)?;
    let scale = DENOMINATOR * milli_gpu;
    i64::try_from(hourly / scale + i128::from(hourly % scale > 0)).ok().map(MicroUsd)
}

/// How much less each GPU of `size` costs an hour here than the whole machines that `baseline` is the price of;
/// negative where it costs more.
#[must_use]
pub fn saving(baseline: Option<MicroUsd>, size: Size, rate: Rate) -> Option<MicroUsd> {
    baseline?.minus(gpu_hourly(size, rate)?).ok()
}

/// The longest use of `size` that `cap` pays for; `None` when it costs nothing.
#[must_use]
pub fn affordable(size: Size, cap: MicroUsd, rate: Rate) -> Option<Millis> {
    let per_milli = numerator(size, rate);
    if per_milli <= 0 {
        return None;
    }
    let span = i128::from(cap.0.max(0)) * DENOMINATOR / per_milli;
    Some(Millis(i64::try_from(span).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate =
        Rate { gpu_hour: MicroUsd(2_000_000), vcpu_hour: MicroUsd(20_000), gib_hour: MicroUsd(3_000) };

    fn size(milli_gpu: i64, milli_cpu: i64, gib: i64) -> Size {
        Size {
            milli_gpu: MilliGpu(milli_gpu),
            milli_cpu: MilliCpu(milli_cpu),
            memory: Bytes(gib * Bytes::GIB),
        }
    }

    #[test]
    fn an_hour_of_everything_costs_the_sum_of_its_parts() {
        assert_eq!(hourly(size(1_000, 4_000, 10), RATE), Ok(MicroUsd(2_000_000 + 80_000 + 30_000)));
    }

    #[test]
    fn a_price_follows_what_clouds_ask_down_to_its_floor() {
        let how = GpuPrice::BelowBaseline { percent: 10, floor: MicroUsd(800_000) };
        assert_eq!(how.following(MicroUsd(1_999_999)), Some(MicroUsd(1_799_999)));
        assert_eq!(how.following(MicroUsd(1)), Some(MicroUsd(800_000)));
        assert_eq!(how.following(MicroUsd(i64::MAX)), Some(MicroUsd(8_301_034_833_169_298_226)));
        assert_eq!(GpuPrice::Fixed.following(MicroUsd(2_000_000)), None);
    }

    #[test]
    fn a_host_without_gpus_earns_too() {
        assert_eq!(hourly(size(0, 1_000, 1), RATE), Ok(MicroUsd(23_000)));
    }

    #[test]
    fn cores_and_memory_count_against_a_saving() {
        let clouds = Some(MicroUsd(2_500_000));
        assert_eq!(saving(clouds, size(2_000, 8_000, 20), RATE), Some(MicroUsd(500_000 - 80_000 - 30_000)));
        let dear_cores = Rate { vcpu_hour: MicroUsd(200_000), ..RATE };
        assert_eq!(saving(clouds, size(1_000, 4_000, 0), dear_cores), Some(MicroUsd(-300_000)));
        assert_eq!(
            saving(clouds, size(250, 1_000, 0), dear_cores),
            Some(MicroUsd(-300_000)),
            "as of a whole GPU"
        );
        assert_eq!(saving(clouds, size(0, 4_000, 0), RATE), None);
        assert_eq!(saving(None, size(1_000, 4_000, 0), RATE), None);
    }

    #[test]
    fn a_gpu_with_its_cores_and_memory_is_rounded_up() {
        let odd = Rate { gpu_hour: MicroUsd(1), ..Rate::default() };
        assert_eq!(gpu_hourly(size(1_000, 0, 0), odd), Some(MicroUsd(1)));
        let odd = Rate { vcpu_hour: MicroUsd(1), ..Rate::default() };
        assert_eq!(gpu_hourly(size(3_000, 1_000, 0), odd), Some(MicroUsd(1)));
    }

    #[test]
    fn a_charge_beyond_all_money_is_an_error_and_never_a_panic() {
        let (most, dear) = (i64::MAX, MicroUsd(i64::MAX));
        let size = Size { milli_gpu: MilliGpu(most), milli_cpu: MilliCpu(most), memory: Bytes(most) };
        let rate = Rate { gpu_hour: dear, vcpu_hour: dear, gib_hour: dear };
        assert_eq!(charge(size, Millis(1), rate), Err(Overflow));
        assert_eq!(charge(size, Millis(most), rate), Err(Overflow));
        assert_eq!(charge(size, Millis(0), rate), Ok(MicroUsd(0)));
    }

    #[test]
    fn what_costs_nothing_never_runs_out() {
        assert_eq!(affordable(size(0, 0, 0), MicroUsd(1), RATE), None);
    }

    proptest! {
        #[test]
        fn a_charge_never_shrinks_and_an_affordable_span_never_exceeds_its_cap(
            gpu in 0..8_000_i64, cpu in 1..64_000_i64, gib in 0..512_i64, ms in 0..10_000_000_i64, cap in 0..1_000_000_000_i64,
        ) {
            let size = size(gpu, cpu, gib);
            let now = charge(size, Millis(ms), RATE).expect("in range");
            prop_assert!(charge(size, Millis(ms + 1), RATE).expect("in range") >= now);
            let span = affordable(size, MicroUsd(cap), RATE).expect("it costs something");
            prop_assert!(charge(size, span, RATE).expect("in range") <= MicroUsd(cap));
        }
    }
}
