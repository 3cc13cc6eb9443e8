//! Why a cloud did not do what it was asked.

use std::fmt;

use nave_domain::Millis;
use serde::{Deserialize, Serialize};

/// The longest explanation of a cloud that is kept, in characters.
const MESSAGE_MAX: usize = 300;

/// Why, as far as what comes next depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It has no such machine left.
    OutOfStock,
    /// We may not have more machines.
    Quota,
    /// We have not paid.
    NoBalance,
    /// It costs more than when it was quoted.
    PriceRise,
    /// We ask too often.
    RateLimited {
        /// How long it wants not to be asked.
        after: Millis,
    },
    /// It does not know our key, or the session is over.
    Unauthorised,
    /// It has nothing by that id.
    NotFound,
    /// It will not do it, for another reason; so too a deletion while the machine is being made.
    Refused,
    /// It failed. What was asked may have been done.
    Unavailable,
    /// It did not answer in time, or the connection broke. What was asked may have been done.
    TimedOut,
    /// It could not be reached: nothing was asked.
    NotSent,
    /// Nobody can read what it answered. What was asked may have been done.
    Malformed,
}

impl Kind {
    /// Whether it is sure that nothing was done.
    #[must_use]
    pub fn is_settled(self) -> bool {
        match self {
            Self::OutOfStock
            | Self::Quota
            | Self::NoBalance
            | Self::PriceRise
            | Self::RateLimited { .. }
            | Self::Unauthorised
            | Self::NotFound
            | Self::Refused
            | Self::NotSent => true,
            Self::Unavailable | Self::TimedOut | Self::Malformed => false,
        }
    }

    /// For programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OutOfStock => "out_of_stock",
            Self::Quota => "quota",
            Self::NoBalance => "no_balance",
            Self::PriceRise => "price_rise",
            Self::RateLimited { .. } => "rate_limited",
            Self::Unauthorised => "unauthorised",
            Self::NotFound => "not_found",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timed_out",
            Self::NotSent => "not_sent",
            Self::Malformed => "malformed",
        }
    }
}

/// What a cloud said when it did not do what it was asked; never with a secret in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudError {
    /// What it means.
    pub kind: Kind,
    /// The cloud's own word for it, or its HTTP status.
    pub code: String,
    /// Its explanation.
    pub message: String,
}

impl CloudError {
    /// An error with as much of the explanation as is useful.
    #[must_use]
    pub fn new(kind: Kind, code: impl Into<String>, message: &str) -> Self {
        let short = |text: &str| text.chars().filter(|c| !c.is_control()).take(MESSAGE_MAX).collect();
        Self { kind, code: short(&code.into()), message: short(message) }
    }
}

impl fmt::Display for CloudError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.kind.name(), self.code, self.message)
    }
}

impl std::error::Error for CloudError {}

/// What an HTTP status means where nothing more is said.
#[must_use]
pub fn of_status(status: u16) -> Kind {
    match status {
        401 => Kind::Unauthorised,
        402 => Kind::NoBalance,
        404 => Kind::NotFound,
        408 => Kind::TimedOut,
        400..=499 => Kind::Refused,
        _ => Kind::Unavailable,
    }
}

/// What the words of a cloud mean: some say their reasons only in text.
#[must_use]
pub fn of_words(text: &str) -> Option<Kind> {
    const WORDS: [(&str, Kind); 22] = [
        ("out of stock", Kind::OutOfStock),
        ("out_of_stock", Kind::OutOfStock),
        ("insufficient-capacity", Kind::OutOfStock),
        ("insufficient capacity", Kind::OutOfStock),
        ("not enough capacity", Kind::OutOfStock),
        ("no capacity", Kind::OutOfStock),
        ("not enough stock", Kind::OutOfStock),
        ("sold out", Kind::OutOfStock),
        ("no longer any", Kind::OutOfStock),
        ("no longer available", Kind::OutOfStock),
        ("no_such_ask", Kind::OutOfStock),
        ("is not available", Kind::OutOfStock),
        ("quota", Kind::Quota),
        ("limit exceeded", Kind::Quota),
        ("limit reached", Kind::Quota),
        ("balance", Kind::NoBalance),
        ("insufficient_funds", Kind::NoBalance),
        ("insufficient funds", Kind::NoBalance),
        ("insufficient credit", Kind::NoBalance),
        ("insufficient_credit", Kind::NoBalance),
        ("invalid_price", Kind::PriceRise),
        ("price has changed", Kind::PriceRise),
    ];
    let text = text.to_ascii_lowercase();
    WORDS.iter().find(|(word, _)| text.contains(word)).map(|(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_have_been_done_is_unsettled() {
        let unsettled = [Kind::Unavailable, Kind::TimedOut, Kind::Malformed];
        assert!(unsettled.iter().all(|kind| !kind.is_settled()));
        assert!([Kind::OutOfStock, Kind::NotSent, Kind::Refused].iter().all(|kind| kind.is_settled()));
    }

    #[test]
    fn no_status_of_a_broken_cloud_is_taken_for_a_refusal() {
        for status in [500, 502, 503, 504, 408, 301, 600] {
            assert!(!of_status(status).is_settled(), "{status}");
        }
    }

    #[test]
    fn an_explanation_is_one_short_line() {
        let error = CloudError::new(Kind::Refused, "409", &format!("a\nb{}", "x".repeat(5_000)));
        assert_eq!(error.message.chars().count(), MESSAGE_MAX);
        assert!(error.to_string().starts_with("refused (409): ab"));
    }
}
