//! What is tested of hosts, and why.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a challenge tests: at most one of each kind is open for a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Computing power.
    Cpu,
    /// Memory.
    Memory,
    /// GPUs.
    Devices,
    /// Disk.
    Storage,
    /// Software.
    Software,
    /// Network.
    Transfer,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Cpu, Self::Memory, Self::Devices, Self::Storage, Self::Software, Self::Transfer];

    /// The name in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Devices => "devices",
            Self::Storage => "storage",
            Self::Software => "software",
            Self::Transfer => "transfer",
        }
    }
}

/// Text that names no kind of test.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tests are of cpu, memory, devices, storage, software or transfer, not of {0:?}")]
pub struct NoKind(String);

impl FromStr for Kind {
    type Err = NoKind;

    fn from_str(text: &str) -> Result<Self, NoKind> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| NoKind(text.to_owned()))
    }
}

/// Why a host is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It claims what it has never proven, or has failed.
    Enrolment,
    /// What it says it is has changed since it proved its claims.
    Identity,
    /// At a time that nobody could foresee.
    Random,
    /// At the same moment as all others with GPUs.
    Window,
    /// A lease of GPUs has begun.
    LeaseStart,
    /// At a time that nobody could foresee, while GPUs are leased.
    Lease,
    /// A lease of GPUs has ended.
    LeaseEnd,
    /// Its owner was right to object to a verdict.
    Appeal,
    /// The operator wants it.
    Operator,
    /// A customer says that a result of it is wrong.
    Dispute,
}

impl Cause {
    /// All causes.
    pub const ALL: [Self; 10] = [
        Self::Enrolment,
        Self::Identity,
        Self::Random,
        Self::Window,
        Self::LeaseStart,
        Self::Lease,
        Self::LeaseEnd,
        Self::Appeal,
        Self::Operator,
        Self::Dispute,
    ];

    /// The name in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enrolment => "enrolment",
            Self::Identity => "identity",
            Self::Random => "random",
            Self::Window => "window",
            Self::LeaseStart => "lease_start",
            Self::Lease => "lease",
            Self::LeaseEnd => "lease_end",
            Self::Appeal => "appeal",
            Self::Operator => "operator",
            Self::Dispute => "dispute",
        }
    }

    /// Whether the test goes on beside the jobs of a host: it is small, and takes the host out
    /// only for what cannot be an accident.
    #[must_use]
    pub fn is_beside_jobs(self) -> bool {
        match self {
            Self::LeaseStart | Self::Lease | Self::LeaseEnd => true,
            Self::Enrolment
            | Self::Identity
            | Self::Random
            | Self::Window
            | Self::Appeal
            | Self::Operator
            | Self::Dispute => false,
        }
    }
}
