//! What is made of evidence.

use nave_domain::{Bytes, MilliCpu, Millis};
use serde::{Deserialize, Serialize};

/// The end of a challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The claim holds.
    Passed(Proven),
    /// It does not, or the host did not show it.
    Failed(Failure),
}

/// What evidence showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proven {
    /// Computing power.
    Cpu {
        /// In cores of the reference rate, rounded down; it may exceed the claim.
        milli_cpu: MilliCpu,
        /// Steps in a second, all chains together.
        steps_per_s: u64,
        /// From the nonce to the commitment.
        elapsed_ms: Millis,
    },
    /// Memory.
    Memory {
        /// What was filled and read.
        memory: Bytes,
        /// From the nonce to the commitment that it is filled.
        fill_ms: Millis,
        /// From the second nonce to the commitment of all lanes.
        reads_ms: Millis,
        /// Dependent reads in a second, all lanes together.
        reads_per_s: u64,
    },
}

/// Why a claim is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// For programs.
    pub code: Reason,
    /// For people: what was claimed and what was shown.
    pub message: String,
}

/// Why a claim is refused, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// More cores are claimed than work was done.
    CpuOverclaimed,
    /// The reads took so long that memory must have been missing.
    MemoryMissing,
    /// The host could not allocate what it claims.
    MemoryUnavailable,
    /// What was opened is not what the work gives, or not what was committed to.
    EvidenceWrong,
    /// The opening cannot be read.
    EvidenceMalformed,
    /// The opening belongs to another challenge, host, commitment or nonce.
    BindingWrong,
    /// An answer came after its deadline, or never.
    TooLate,
    /// The host gave up, or its prover ended.
    Aborted,
    /// The host does not know this version of the proofs.
    VersionUnknown,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 9] = [
        Self::CpuOverclaimed,
        Self::MemoryMissing,
        Self::MemoryUnavailable,
        Self::EvidenceWrong,
        Self::EvidenceMalformed,
        Self::BindingWrong,
        Self::TooLate,
        Self::Aborted,
        Self::VersionUnknown,
    ];

    /// The name in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CpuOverclaimed => "cpu_overclaimed",
            Self::MemoryMissing => "memory_missing",
            Self::MemoryUnavailable => "memory_unavailable",
            Self::EvidenceWrong => "evidence_wrong",
            Self::EvidenceMalformed => "evidence_malformed",
            Self::BindingWrong => "binding_wrong",
            Self::TooLate => "too_late",
            Self::Aborted => "aborted",
            Self::VersionUnknown => "version_unknown",
        }
    }
}
