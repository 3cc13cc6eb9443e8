//! What is made of evidence.

use nave_domain::{Bytes, MilliCpu, Millis};
use serde::{Deserialize, Serialize};

use crate::Findings;

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
    /// GPUs, in the order of their slots.
    Devices(Vec<DeviceProven>),
    /// A disk.
    Storage {
        /// What was written and read.
        written: Bytes,
        /// From the nonce to the commitment that it is written.
        write_ms: Millis,
        /// From the second nonce to the commitment of all lanes.
        reads_ms: Millis,
        /// Dependent reads of 4 KiB in a second, all lanes together.
        reads_per_s: u64,
    },
    /// What the agent found, as it says; nothing in it is proof.
    Software(Box<Findings>),
    /// A transfer from another host: measured and not proven, since two hosts and the way through
    /// the hub have a part in it, and hosts that help one another need not send anything.
    Transfer {
        /// What came.
        bytes: u64,
        /// From the nonce that was asked with to the commitment to all chunks.
        elapsed_ms: Millis,
        /// Bytes in a second, at least.
        bytes_per_s: u64,
    },
}

/// What evidence showed of one GPU. A rate is there where its phase was part of the test; it is
/// a lower bound, since all devices of a host share one span and the way counts, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceProven {
    /// As the inventory names it.
    pub uuid: String,
    /// Operations on signed bytes in a second: two for each product that is added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops_per_s: Option<u64>,
    /// Memory that was filled and stayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram: Option<Bytes>,
    /// Compressions of SHA-256 in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes_per_s: Option<u64>,
    /// Dependent reads of 32 bytes in a second, all lanes together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads_per_s: Option<u64>,
    /// Bytes of its memory read in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<u64>,
    /// Bytes in a second from the host's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub return_bytes_per_s: Option<u64>,
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
    /// A GPU cannot be used: no driver, an old one, no memory, an error of the device.
    DeviceUnavailable,
    /// A GPU did less than what it claims to be must do.
    DeviceMismatch,
    /// A GPU did far less beside a job than what it claims to be does.
    DeviceThrottled,
    /// A GPU is claimed by another host.
    DeviceElsewhere,
    /// Another program holds a GPU's memory.
    DeviceBusy,
    /// The reads took so long that a part of a GPU's memory must have been elsewhere.
    VramMissing,
    /// What was copied to the host's memory came back so slowly that it was not there.
    ReturnTooSlow,
    /// The disk has no room for what the host claims.
    DiskMissing,
    /// Reads of the disk took too long.
    DiskTooSlow,
    /// A driver, kernel, container runtime or toolkit has a flaw that is known.
    SoftwareOutdated,
    /// Something is preloaded into programs or mounted over the driver.
    DriverTampered,
    /// The container runtime does not run containers, or not with GPUs.
    RuntimeBroken,
    /// Transfers from several other hosts were too slow.
    TransferTooSlow,
    /// Hosts of several other miners could not connect to it in the mesh.
    PortUnreachable,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 23] = [
        Self::CpuOverclaimed,
        Self::MemoryMissing,
        Self::MemoryUnavailable,
        Self::EvidenceWrong,
        Self::EvidenceMalformed,
        Self::BindingWrong,
        Self::TooLate,
        Self::Aborted,
        Self::VersionUnknown,
        Self::DeviceUnavailable,
        Self::DeviceMismatch,
        Self::DeviceThrottled,
        Self::DeviceElsewhere,
        Self::DeviceBusy,
        Self::VramMissing,
        Self::ReturnTooSlow,
        Self::DiskMissing,
        Self::DiskTooSlow,
        Self::SoftwareOutdated,
        Self::DriverTampered,
        Self::RuntimeBroken,
        Self::TransferTooSlow,
        Self::PortUnreachable,
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
            Self::DeviceUnavailable => "device_unavailable",
            Self::DeviceMismatch => "device_mismatch",
            Self::DeviceThrottled => "device_throttled",
            Self::DeviceElsewhere => "device_elsewhere",
            Self::DeviceBusy => "device_busy",
            Self::VramMissing => "vram_missing",
            Self::ReturnTooSlow => "return_too_slow",
            Self::DiskMissing => "disk_missing",
            Self::DiskTooSlow => "disk_too_slow",
            Self::SoftwareOutdated => "software_outdated",
            Self::DriverTampered => "driver_tampered",
            Self::RuntimeBroken => "runtime_broken",
            Self::TransferTooSlow => "transfer_too_slow",
            Self::PortUnreachable => "port_unreachable",
        }
    }
}
