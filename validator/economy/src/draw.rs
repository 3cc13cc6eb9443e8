//! Repeatable chance: `SplitMix64` (Steele, Lea, Flood, OOPSLA'14).

use std::ops::RangeInclusive;

/// A stream of draws. Each concern has a stream of its own, so that what one strategy draws more changes no other.
#[derive(Debug, Clone)]
pub struct Draws(u64);

impl Draws {
    /// The stream of a concern.
    #[must_use]
    pub fn of(seed: u64, concern: u64) -> Self {
        let mut draws = Self(seed ^ concern.wrapping_mul(0xA076_1D64_78BD_642F));
        draws.next();
        draws
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `range`.
    pub fn between(&mut self, range: RangeInclusive<i64>) -> i64 {
        let span = range.end().abs_diff(*range.start()).saturating_add(1);
        let wide = (u128::from(self.next()) * u128::from(span)) >> 64;
        range.start().saturating_add_unsigned(u64::try_from(wide).unwrap_or(0))
    }

    /// True so often in a million.
    pub fn chance(&mut self, ppm: i64) -> bool {
        self.between(0..=999_999) < ppm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_stay_in_their_range_and_repeat() {
        let mut draws = Draws::of(7, 1);
        let seen: Vec<i64> = (0..1_000).map(|_| draws.between(3..=5)).collect();
        assert!(
            seen.iter().all(|drawn| (3..=5).contains(drawn)) && [3, 4, 5].iter().all(|x| seen.contains(x))
        );
        let mut again = Draws::of(7, 1);
        assert_eq!(seen[..9], (0..9).map(|_| again.between(3..=5)).collect::<Vec<_>>());
    }
}
