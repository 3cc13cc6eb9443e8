//! `--since`: a time, or a span before now.

use nave_domain::{Millis, Timestamp};

/// A point in time as it was typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// At this time.
    At(Timestamp),
    /// This long ago.
    Ago(Millis),
}

impl Since {
    /// The point in time, seen from `now`.
    #[must_use]
    pub fn resolve(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago(span) => Timestamp(now.0.saturating_sub(span.0)),
        }
    }
}

/// Reads RFC 3339 or a span.
///
/// # Errors
/// A sentence with examples.
pub fn parse(text: &str) -> Result<Since, String> {
    let quoted = serde_json::Value::String(text.to_owned());
    if let Ok(at) = serde_json::from_value(quoted) {
        return Ok(Since::At(at));
    }
    text.parse()
        .map(Since::Ago)
        .map_err(|_| "give a span such as 10m or a time such as 2026-01-31T12:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_counts_back_from_now_and_a_time_stands() {
        let now = Timestamp(1_000_000);
        assert_eq!(parse("10s").expect("a span").resolve(now), Timestamp(990_000));
        assert_eq!(parse("1970-01-01T00:00:01Z").expect("a time").resolve(now), Timestamp(1_000));
        assert!(parse("yesterday").is_err());
    }
}
