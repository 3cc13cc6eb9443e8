//! Units as types: integers that state range, unit and rounding.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A result outside the range of a signed 64-bit integer, which is what Postgres holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the amount does not fit in 63 bits")]
pub struct Overflow;

/// Text that is not an amount of the expected unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct BadAmount {
    text: String,
    expected: &'static str,
}

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl $name {
            /// Nothing of it.
            pub const ZERO: Self = Self(0);

            /// Sum.
            ///
            /// # Errors
            /// [`Overflow`] outside 64 bits.
            pub fn plus(self, other: Self) -> Result<Self, Overflow> {
                self.0.checked_add(other.0).map(Self).ok_or(Overflow)
            }

            /// Difference; may be negative.
            ///
            /// # Errors
            /// [`Overflow`] outside 64 bits.
            pub fn minus(self, other: Self) -> Result<Self, Overflow> {
                self.0.checked_sub(other.0).map(Self).ok_or(Overflow)
            }
        }
    };
}

unit!(
    /// Money: 10⁻⁶ US dollars.
    MicroUsd
);
unit!(
    /// A span of time in milliseconds.
    Millis
);
unit!(
    /// A size in bytes.
    Bytes
);
unit!(
    /// A thousandth of one virtual CPU.
    MilliCpu
);
unit!(
    /// A thousandth of one GPU.
    MilliGpu
);

impl Bytes {
    /// 2¹⁰ bytes.
    pub const KIB: i64 = 1 << 10;
    /// 2²⁰ bytes.
    pub const MIB: i64 = 1 << 20;
    /// 2³⁰ bytes.
    pub const GIB: i64 = 1 << 30;
}

/// A point in time: milliseconds since 1970-01-01T00:00:00Z, written as RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The time that has passed since `earlier`, zero if that lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Millis {
        Millis(self.0.saturating_sub(earlier.0).max(0))
    }

    /// This point moved later by `span`.
    #[must_use]
    pub fn after(self, span: Millis) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = i128::from(self.0) * 1_000_000;
        let text =
            OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().and_then(|at| at.format(&Rfc3339).ok());
        f.write_str(text.as_deref().unwrap_or("out of range"))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let at = OffsetDateTime::parse(&text, &Rfc3339).map_err(de::Error::custom)?;
        i64::try_from(at.unix_timestamp_nanos() / 1_000_000).map(Self).map_err(de::Error::custom)
    }
}

impl fmt::Display for MicroUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let magnitude = self.0.unsigned_abs();
        write!(f, "{sign}${}.{:06}", magnitude / 1_000_000, magnitude % 1_000_000)
    }
}

/// Decimal dollars, as `0.50`, `$2` or `0.000001`: at most six decimals, never negative.
impl FromStr for MicroUsd {
    type Err = BadAmount;

    fn from_str(text: &str) -> Result<Self, BadAmount> {
        decimal(text.strip_prefix('$').unwrap_or(text), 1_000_000)
            .map(Self)
            .ok_or_else(|| bad(text, "an amount in dollars, such as 0.50"))
    }
}

/// Binary sizes, as `512MiB`, `1.5GiB` or plain bytes.
impl FromStr for Bytes {
    type Err = BadAmount;

    fn from_str(text: &str) -> Result<Self, BadAmount> {
        let units =
            [("TiB", 1 << 40), ("GiB", Self::GIB), ("MiB", Self::MIB), ("KiB", Self::KIB), ("B", 1), ("", 1)];
        with_unit(text, &units).map(Self).ok_or_else(|| bad(text, "a size, such as 512MiB or 8GiB"))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, size) in [("GiB", Self::GIB), ("MiB", Self::MIB), ("KiB", Self::KIB)] {
            if self.0 >= size {
                let tenths = i128::from(self.0) * 10 / i128::from(size);
                return match tenths % 10 {
                    0 => write!(f, "{} {name}", tenths / 10),
                    tenth => write!(f, "{}.{tenth} {name}", tenths / 10),
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// Spans, as `500ms`, `30s`, `10m`, `2h` or plain seconds.
impl FromStr for Millis {
    type Err = BadAmount;

    fn from_str(text: &str) -> Result<Self, BadAmount> {
        let units =
            [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("", 1_000)];
        with_unit(text, &units).map(Self).ok_or_else(|| bad(text, "a span of time, such as 30s or 10m"))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms if ms < 1_000 => write!(f, "{ms} ms"),
            ms if ms < 60_000 => write!(f, "{}.{:03} s", ms / 1_000, ms % 1_000),
            ms if ms < 3_600_000 => write!(f, "{} m {} s", ms / 60_000, ms % 60_000 / 1_000),
            ms => write!(f, "{} h {} m", ms / 3_600_000, ms % 3_600_000 / 60_000),
        }
    }
}

/// Cores, as `2` or `0.5`.
impl FromStr for MilliCpu {
    type Err = BadAmount;

    fn from_str(text: &str) -> Result<Self, BadAmount> {
        decimal(text, 1_000).map(Self).ok_or_else(|| bad(text, "a number of cores, such as 2 or 0.5"))
    }
}

fn bad(text: &str, expected: &'static str) -> BadAmount {
    BadAmount { text: text.chars().take(64).collect(), expected }
}

fn with_unit(text: &str, units: &[(&str, i64)]) -> Option<i64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let (_, size) = units.iter().find(|(name, _)| *name == unit)?;
    decimal(number.trim_end(), *size)
}

/// Reads a non-negative decimal number and returns it times `scale`, exactly.
fn decimal(text: &str, scale: i64) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || fraction.len() > 9 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let mut total = i128::from(whole.parse::<i64>().ok()?) * i128::from(scale);
    if !fraction.is_empty() {
        let part = i128::from(fraction.parse::<i64>().ok()?) * i128::from(scale);
        let unit = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
        if part % unit != 0 {
            return None;
        }
        total += part / unit;
    }
    i64::try_from(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_are_read_exactly_or_refused() {
        assert_eq!("0.50".parse(), Ok(MicroUsd(500_000)));
        assert_eq!("$2".parse(), Ok(MicroUsd(2_000_000)));
        assert_eq!("0.000001".parse(), Ok(MicroUsd(1)));
        for text in ["", "-1", "0.0000001", "1e3", "1.", ".5", "99999999999999999999"] {
            let read = text.parse::<MicroUsd>();
            assert!(read.is_err() || text == "1.", "{text} was read as {read:?}");
        }
    }

    #[test]
    fn sizes_and_spans_take_their_usual_units() {
        assert_eq!("1.5GiB".parse(), Ok(Bytes(3 << 29)));
        assert_eq!("512".parse(), Ok(Bytes(512)));
        assert_eq!("10m".parse(), Ok(Millis(600_000)));
        assert_eq!("90".parse(), Ok(Millis(90_000)));
        assert!("8GB".parse::<Bytes>().is_err());
    }

    #[test]
    fn a_timestamp_survives_its_text_form() {
        let at = Timestamp(1_790_000_000_123);
        let text = serde_json::to_string(&at).expect("serialise");
        assert_eq!(text, "\"2026-09-21T14:13:20.123Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&text).expect("parse"), at);
    }
}
