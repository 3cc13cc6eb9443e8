//! From measurements to a band. Pure.

use crate::catalogue::{Band, Measure, SPREAD};

/// Measurements that show how slow honest devices are at times; fewer do not.
const MANY: usize = 1_000;

/// The band of what was measured; none of nothing.
///
/// Who is slow is so by some factor, that of whatever else keeps its machine busy. A band of few measurements reaches below what
/// was seen by the root of the factor by which the slowest was slower than the middle one, one of many by a tenth: all bands of a
/// class have to hold at once. Either reaches above by twice as much as the fastest was faster, since a machine that nothing else
/// keeps busy is faster than any that was measured. What is filled does not vary.
///
/// Of 3000 measurements that depend on one another no more than on what is to come, the slowest is among the slowest
/// thousandth of all but once in twenty times, however they are spread: 0.999^3000 is 0.05.
#[must_use]
pub fn band(measure: Measure, values: &[u64], provenance: &str) -> Option<Band> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let at = |part: usize| sorted.get(part * (sorted.len() - 1) / (SPREAD - 1)).copied();
    let (least, median, most) = (*sorted.first()?, at(SPREAD / 2)?, *sorted.last()?);
    let (low, high) = match measure {
        Measure::Vram => (least, most),
        Measure::OpsPerS
        | Measure::BytesPerS
        | Measure::ReadsPerS
        | Measure::ReturnBytesPerS
        | Measure::HashesPerS => {
            (least - margin(least, median, sorted.len()), most.saturating_add(2 * (most - median)))
        }
    };
    let permille = |value: u64| u128::from(value) * 1_000 / u128::from(median.max(1));
    let spread = (0..SPREAD).filter_map(at).map(|value| u32::try_from(permille(value)).unwrap_or(u32::MAX));
    Some(Band {
        low: low.max(1),
        high: (measure != Measure::ReturnBytesPerS).then_some(high),
        median: Some(median),
        samples: u32::try_from(sorted.len()).unwrap_or(u32::MAX),
        shadow: false,
        provenance: provenance.into(),
        spread: spread.collect(),
    })
}

/// How far below the least that was seen a band begins.
fn margin(least: u64, median: u64, count: usize) -> u64 {
    let part = u128::from(least) * 1_000_000 / u128::from(median.max(1));
    let root = u64::try_from(u128::from(least) * part.isqrt() / 1_000).unwrap_or(least);
    if count < MANY { least.saturating_sub(root) } else { least / 10 }
}

impl Band {
    /// As it stands in the catalogue.
    #[must_use]
    pub fn as_toml(&self) -> String {
        let optional = |name: &str, value: Option<u64>| {
            value.map_or(String::new(), |value| format!("{name} = {}, ", grouped(value)))
        };
        let spread = match self.spread.as_slice() {
            [] => String::new(),
            spread => format!(", spread = {spread:?}"),
        };
        format!(
            "{{ low = {}, {}{}samples = {}, provenance = {:?}{spread} }}",
            grouped(self.low),
            optional("high", self.high),
            optional("median", self.median),
            self.samples,
            self.provenance
        )
    }
}

/// `1_234_567`.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    groups.map(String::from_utf8_lossy).collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_band_reaches_beyond_what_was_seen() {
        let values: Vec<u64> = (0..=100).map(|value| 1_000 + value).collect();
        let band = band(Measure::OpsPerS, &values, "measured").expect("a band");
        assert_eq!((band.low, band.high, band.median, band.samples), (975, Some(1_200), Some(1_050), 101));
        assert_eq!((band.spread.len(), band.spread[0], band.spread[10]), (SPREAD, 952, 1_000));
        assert!(band.as_toml().starts_with("{ low = 975, high = 1_200, median = 1_050, samples = 101, "));
    }

    #[test]
    fn a_band_of_many_measurements_knows_the_slowest() {
        let values: Vec<u64> = std::iter::once(500).chain(2_000..3_000).collect();
        let band = band(Measure::OpsPerS, &values, "measured").expect("a band");
        assert_eq!((band.low, band.samples), (450, 1_001));
    }

    #[test]
    fn nothing_measured_is_no_band() {
        assert_eq!(band(Measure::OpsPerS, &[], "measured"), None);
    }
}
