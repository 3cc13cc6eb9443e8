//! Exact arithmetic: what does not fit 63 bits is an error, and divisions of numbers that are not negative round down.

use crate::Error;

/// Parts in a whole.
pub const MILLION: i64 = 1_000_000;

/// `value` as a number that a record can hold; `field` is what an error names.
///
/// # Errors
/// Where it does not fit.
pub fn fit(field: &'static str, value: i128) -> Result<i64, Error> {
    i64::try_from(value).map_err(|_| Error::new(field, "does not fit 63 bits"))
}

/// The product of `factors`, over `divisor`. None is negative, and the divisor is between 0 and 2⁶³.
///
/// Exact: a product beyond 127 bits has a quotient beyond 63.
///
/// # Errors
/// Where it does not fit.
pub fn ratio(field: &'static str, factors: &[i64], divisor: i64) -> Result<i64, Error> {
    let zero = factors.contains(&0);
    let product = factors.iter().try_fold(1_i128, |product, factor| product.checked_mul((*factor).into()));
    match product {
        _ if zero => Ok(0),
        Some(product) => fit(field, product / i128::from(divisor.max(1))),
        None => fit(field, i128::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_exact_or_an_error() {
        assert_eq!(ratio("x", &[7, 3], 2), Ok(10));
        assert_eq!(ratio("x", &[i64::MAX, i64::MAX], i64::MAX), Ok(i64::MAX));
        assert_eq!(ratio("x", &[i64::MAX, i64::MAX, 0], 1), Ok(0));
        assert_eq!(ratio("x", &[i64::MAX, 0, i64::MAX, i64::MAX], 1), Ok(0));
        assert!(ratio("x", &[i64::MAX, i64::MAX, 2], i64::MAX).is_err());
        assert!(ratio("x", &[i64::MAX, i64::MAX, i64::MAX], i64::MAX).is_err());
    }
}
