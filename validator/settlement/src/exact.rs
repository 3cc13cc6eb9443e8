//! Exact arithmetic: what does not fit 63 bits is an error, and divisions of numbers that are not negative round down.

use crate::Error;

/// Parts in a whole.
pub const MILLION: i64 = 1_000_000;

/// `value` as a number that a record can hold.
///
/// # Errors
/// Where it does not fit.
pub fn fit(value: i128) -> Result<i64, Error> {
    i64::try_from(value).map_err(|_| Error::Overflow)
}

/// The product of `factors` over `divisor`, none of which is negative.
///
/// Exact: a product beyond 127 bits has a quotient beyond 63.
///
/// # Errors
/// Where it does not fit.
pub fn ratio(factors: &[i64], divisor: i64) -> Result<i64, Error> {
    if factors.contains(&0) {
        return Ok(0);
    }
    let product = factors.iter().try_fold(1_i128, |product, factor| product.checked_mul((*factor).into()));
    fit(product.ok_or(Error::Overflow)? / i128::from(divisor.max(1)))
}

/// So many millionths of `value`.
///
/// # Errors
/// Where it does not fit.
pub fn part(value: i64, ppm: i64) -> Result<i64, Error> {
    ratio(&[value, ppm], MILLION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_exact_or_an_error() {
        assert_eq!(ratio(&[7, 3], 2), Ok(10));
        assert_eq!(ratio(&[i64::MAX, i64::MAX], i64::MAX), Ok(i64::MAX));
        assert_eq!(ratio(&[i64::MAX, i64::MAX, 0], 1), Ok(0));
        assert_eq!(ratio(&[i64::MAX, 0, i64::MAX, i64::MAX], 1), Ok(0));
        assert_eq!(ratio(&[i64::MAX, i64::MAX, 2], i64::MAX), Err(Error::Overflow));
        assert_eq!(ratio(&[i64::MAX, i64::MAX, i64::MAX], i64::MAX), Err(Error::Overflow));
    }
}
