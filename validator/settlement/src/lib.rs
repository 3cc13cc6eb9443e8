//! How the evidence of an epoch becomes pay and weights, and how anyone recomputes both.
//!
//! The rules are `docs/settlement.md`, to the digit. [`Settling`] takes evidence and gives pay; [`bundle`] writes and
//! reads evidence as the market publishes it; [`audit`] finds where a bundle says something else than follows from it.

pub mod evidence;
pub mod exact;
pub mod params;

/// What cannot be settled, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {what}")]
pub struct Error {
    /// The field of a record that it is about.
    pub field: &'static str,
    /// What is wrong with it.
    pub what: String,
}

impl Error {
    pub(crate) fn new(field: &'static str, what: impl Into<String>) -> Self {
        Self { field, what: what.into() }
    }
}
