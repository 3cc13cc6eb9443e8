//! Prices as clouds write them, read exactly. Pure.
//!
//! A price arrives as cents, as a decimal in a string or as a JSON number. The text of a number is
//! what is read: it never becomes a float.

use nave_domain::MicroUsd;
use serde_json::value::RawValue;

/// The most that a machine may cost in an hour: more is a mistake in reading, or in writing.
const HOURLY_MAX: MicroUsd = MicroUsd(10_000_000_000);
/// The longest number that is read.
const DIGITS_MAX: usize = 30;

/// An amount in dollars, from a JSON number or a string, rounded up to micro-USD.
#[must_use]
pub fn dollars(raw: &RawValue) -> Option<MicroUsd> {
    amount(&text_of(raw)?, 6)
}

/// An amount in cents, from a JSON number or a string, rounded up to micro-USD.
#[must_use]
pub fn cents(raw: &RawValue) -> Option<MicroUsd> {
    amount(&text_of(raw)?, 4)
}

/// A whole number, from a JSON number or a string; fractions are cut off.
#[must_use]
pub fn whole(raw: &RawValue) -> Option<i64> {
    scaled(&text_of(raw)?, 0).map(|(amount, _)| amount)
}

/// A number in thousandths, rounded down.
#[must_use]
pub fn thousandths(raw: &RawValue) -> Option<i64> {
    scaled(&text_of(raw)?, 3).map(|(amount, _)| amount)
}

fn text_of(raw: &RawValue) -> Option<String> {
    let text = raw.get();
    if text.starts_with('"') { serde_json::from_str(text).ok() } else { Some(text.to_owned()) }
}

fn amount(text: &str, scale: i32) -> Option<MicroUsd> {
    let (amount, exact) = scaled(text, scale)?;
    let amount = MicroUsd(if exact { amount } else { amount.checked_add(1)? });
    (amount <= HOURLY_MAX).then_some(amount)
}

/// A decimal number times ten to the power of `scale`, rounded down, and whether that is exact.
///
/// Digits with at most one point and an exponent, as JSON allows, after an optional dollar sign;
/// nothing negative.
fn scaled(text: &str, scale: i32) -> Option<(i64, bool)> {
    let text = text.trim();
    let text = text.strip_prefix('$').unwrap_or(text);
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent = exponent.strip_prefix('+').unwrap_or(exponent).parse::<i16>().ok()?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if whole.is_empty() || digits.len() > DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse::<u128>().ok()?;
    let places = i32::from(exponent) + scale - i32::try_from(fraction.len()).ok()?;
    let power = 10_u128.checked_pow(places.unsigned_abs());
    let (amount, rest) = match (power, places >= 0) {
        (Some(power), true) => (number.checked_mul(power)?, 0),
        (Some(power), false) => (number / power, number % power),
        (None, true) if number > 0 => return None,
        (None, _) => (0, number),
    };
    Some((i64::try_from(amount).ok()?, rest == 0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).expect("JSON")
    }

    #[test]
    fn cents_strings_and_floats_are_the_same_money() {
        for text in ["1.1", "1.10", "\"1.10\"", "\"$1.1\"", "110e-2", "0.11E+1", "11e-1"] {
            assert_eq!(dollars(&raw(text)), Some(MicroUsd(1_100_000)), "{text}");
        }
        assert_eq!(cents(&raw("110")), Some(MicroUsd(1_100_000)));
        assert_eq!(cents(&raw("1592")), Some(MicroUsd(15_920_000)));
    }

    #[test]
    fn what_no_float_can_hold_is_read_to_the_digit_and_rounded_up() {
        assert_eq!(dollars(&raw("0.1")), Some(MicroUsd(100_000)));
        assert_eq!(dollars(&raw("0.134074074074074")), Some(MicroUsd(134_075)));
        assert_eq!(dollars(&raw("1e-9")), Some(MicroUsd(1)));
        assert_eq!(dollars(&raw("1e-300")), Some(MicroUsd(1)));
    }

    #[test]
    fn what_is_no_price_is_refused() {
        let wrong = [
            "-1", "null", "true", "\"\"", "\".5\"", "\"1,5\"", "1e400", "1e30", "[1]", "{}", "\"NaN\"",
            "99999999",
        ];
        for text in wrong {
            assert_eq!(dollars(&raw(text)), None, "{text}");
        }
    }

    #[test]
    fn counts_come_as_numbers_and_as_text() {
        assert_eq!(whole(&raw("8")), Some(8));
        assert_eq!(whole(&raw("\"8\"")), Some(8));
        assert_eq!(whole(&raw("15.9")), Some(15));
        assert_eq!(thousandths(&raw("7.5")), Some(7_500));
    }

    proptest! {
        #[test]
        fn every_amount_survives_its_text_forms(micro in 0..10_000_000_000_i64) {
            let text = format!("{}.{:06}", micro / 1_000_000, micro % 1_000_000);
            prop_assert_eq!(dollars(&raw(&text)), Some(MicroUsd(micro)));
            prop_assert_eq!(dollars(&raw(&format!("\"{text}\""))), Some(MicroUsd(micro)));
            prop_assert_eq!(dollars(&raw(&format!("{micro}e-6"))), Some(MicroUsd(micro)));
        }
    }
}
