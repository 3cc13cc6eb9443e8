//! Disputes: a customer says that a result is wrong, and the host that it came from is tested again.

use serde::{Deserialize, Serialize};

use crate::{job::BadRequest, units::Millis};

/// For how long after an attempt has ended its result can be disputed: 72 hours.
pub const DISPUTE_MS_MAX: Millis = Millis(72 * 3_600_000);
/// Longest reason, in bytes.
pub const REASON_BYTES_MAX: usize = 500;
/// Most disputes that a customer opens in a day.
pub const DISPUTES_PER_DAY: u32 = 20;
/// Shortest time between two suites of a host that disputes are the cause of: further disputes wait.
pub const DISPUTE_PAUSE: Millis = Millis(6 * 3_600_000);

/// For how long a dispute waits until its host is free: 72 hours. Then it ends without a test; its host has one all
/// the same once it is free.
pub const DISPUTE_WAIT: Millis = Millis(72 * 3_600_000);

/// Where a dispute stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DisputeState {
    /// The host is tested as soon as it is free.
    Open,
    /// The host is being tested.
    Testing,
    /// The host has shown again all that it claims. That does not make the result right.
    Passed,
    /// The host failed a test.
    Failed,
    /// The host always had other jobs, and was not tested while the dispute waited for that.
    Untested,
    /// The host left the market or joined anew before it had shown anything.
    Left,
}

impl DisputeState {
    /// The name in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Testing => "testing",
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Untested => "untested",
            Self::Left => "left",
        }
    }
}

/// Refuses a reason that says nothing, or more than is kept.
///
/// # Errors
/// [`BadRequest`] naming the field.
pub fn check_reason(reason: &str) -> Result<(), BadRequest> {
    let problem = if reason.trim().is_empty() {
        "say what is wrong with the result".to_owned()
    } else if reason.len() > REASON_BYTES_MAX {
        format!("it has {} bytes, at most {REASON_BYTES_MAX}", reason.len())
    } else if reason.contains('\0') {
        "it contains a NUL byte".to_owned()
    } else {
        return Ok(());
    };
    Err(BadRequest { field: "reason", problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_a_short_text_that_says_something() {
        let fine = ["x".repeat(REASON_BYTES_MAX), "two\nlines".to_owned()];
        assert!(fine.iter().all(|reason| check_reason(reason).is_ok()));
        let refused = [String::new(), " \n".into(), "x".repeat(REASON_BYTES_MAX + 1), "a\0b".into()];
        assert!(refused.iter().all(|reason| check_reason(reason).is_err()));
    }
}
