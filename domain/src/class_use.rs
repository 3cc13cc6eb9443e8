//! How much of a class of devices is leased.

use serde::{Deserialize, Serialize};

/// How much of a class was leased, summed over looks at it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClassUse {
    /// Devices that were seen, once for each look.
    pub devices: i64,
    /// Thousandths of them that were leased then.
    pub leased_milli: i64,
}

impl ClassUse {
    /// The part that was leased, in thousandths; none where nothing was seen.
    #[must_use]
    pub fn utilisation(self) -> Option<i64> {
        (self.devices > 0).then(|| (self.leased_milli / self.devices).clamp(0, 1_000))
    }
}
