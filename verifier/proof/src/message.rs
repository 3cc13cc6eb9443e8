//! What travels between verifier and host.

use std::{fmt, net::Ipv6Addr, str::FromStr};

pub use nave_domain::verdict::Kind;
use nave_domain::{Bytes, ChallengeId, HostId, MilliCpu, Millis, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Version of everything in this crate that both sides must agree on.
pub const VERSION: u32 = 3;
/// Largest opening that travels inside a report; a larger one is a blob.
pub const INLINE_MAX: usize = 48 << 10;
/// Largest opening at all, in bytes.
pub const OPENING_MAX: usize = 16 << 20;
/// Longest explanation of a host, in bytes.
pub const EXPLANATION_MAX: usize = 512;

/// Text that is not 32 bytes in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not 64 hexadecimal digits")]
pub struct BadHex;

macro_rules! bytes32 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = BadHex;

            fn from_str(text: &str) -> Result<Self, BadHex> {
                let mut bytes = [0; 32];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| BadHex)?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

bytes32!(
    /// Fresh randomness of the verifier: 32 bytes, hexadecimal in JSON.
    Nonce
);
bytes32!(
    /// SHA-256 of something: 32 bytes, hexadecimal in JSON.
    Digest
);

/// A test of one claim of one host, as its spec carries it.
///
/// It grows while it lasts: each commitment of the host is answered by one more
/// nonce in `reveals`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// [`VERSION`]; a host that does not know it says so and computes nothing.
    pub version: u32,
    /// Which challenge.
    pub challenge: ChallengeId,
    /// Whose claim is tested; evidence of another host proves nothing.
    pub host: HostId,
    /// What is claimed and how it is tested.
    pub task: Task,
    /// Where the work starts from; it was never used before.
    pub nonce: Nonce,
    /// What all hosts are given that are tested in the same window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beacon: Option<Nonce>,
    /// What the verifier drew after each commitment, in their order.
    pub reveals: Vec<Nonce>,
}

/// A claim with the size of its test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Chains of sequential work, one for each core.
    Cpu(CpuTask),
    /// Dependent reads all over a memory that was filled before.
    Memory(MemoryTask),
    /// Everything that GPUs are for, on all of a host's at the same time.
    Devices(DevicesTask),
    /// Dependent reads all over a file that was written before.
    Storage(StorageTask),
    /// What is installed, loaded and mounted, as the agent finds it.
    Software(SoftwareTask),
    /// A transfer from another host, through the mesh.
    Transfer(TransferTask),
}

/// A test of all GPUs of a host at once.
///
/// A phase is part of it where every device has a size for it. Phases follow one another in
/// the order of [`Phase::ALL`], each from the reveal after the commitment of the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevicesTask {
    /// What each device does, in the order of their slots.
    pub devices: Vec<DeviceTask>,
    /// Longest time for each step, the opening last.
    pub patience_ms: Vec<Millis>,
}

/// What one GPU does; the formats are documented in `docs/proofs.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceTask {
    /// The device, as the inventory names it.
    pub uuid: String,
    /// What its memory is filled with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fill: Option<Fill>,
    /// The products it computes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gemm: Option<Gemm>,
    /// The dependent reads all over the fill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lanes: Option<Lanes>,
    /// The passes over the whole fill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// What is copied to the host's memory and back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spill: Option<Spill>,
}

/// Memory filled with blocks of 32 bytes that are slow to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fill {
    /// Bytes, whole chunks of 64 KiB.
    pub bytes: u64,
    /// Compressions of SHA-256 for each block.
    pub depth: u32,
}

/// Products of matrices of signed bytes, each from the commitment to the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gemm {
    /// Rows; a multiple of 256.
    pub m: u32,
    /// Columns; a multiple of 256.
    pub n: u32,
    /// Length of the sums; a multiple of 64, at most 131 071, so that 32 bits hold every sum.
    pub k: u32,
    /// How many products.
    pub rounds: u32,
    /// How many entries are computed again by the verifier.
    pub samples: u32,
}

/// Chains of dependent reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lanes {
    /// How many chains.
    pub lanes: u32,
    /// Reads in each.
    pub reads: u32,
    /// How many lanes are read again by the verifier.
    pub samples: u32,
}

/// Passes over the whole fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// How many passes, each from the commitment to the one before.
    pub passes: u32,
    /// How many chunks are computed again by the verifier.
    pub samples: u32,
}

/// A part of the fill that goes to the host's memory and comes back, and is made anew meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spill {
    /// Bytes, whole chunks of 64 KiB, at most the fill's.
    pub bytes: u64,
    /// How many chunks of the copy are computed again by the verifier.
    pub samples: u32,
}

/// A part of a devices challenge: what lies between a reveal and a commitment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Memory is filled.
    Fill,
    /// Matrices are multiplied.
    Gemm,
    /// Lanes read all over the fill.
    Lanes,
    /// The fill is read from end to end.
    Stream,
    /// A part of the fill is copied to the host's memory, and made anew.
    Spill,
    /// The copy comes back, and lanes read all over the fill.
    Return,
}

impl Phase {
    /// All phases, in their order.
    pub const ALL: [Self; 6] = [Self::Fill, Self::Gemm, Self::Lanes, Self::Stream, Self::Spill, Self::Return];

    /// The name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::Gemm => "gemm",
            Self::Lanes => "lanes",
            Self::Stream => "stream",
            Self::Spill => "spill",
            Self::Return => "return",
        }
    }
}

/// A test of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageTask {
    /// What the host claims.
    pub disk: Bytes,
    /// Length of the file that is written, in bytes.
    pub bytes: u64,
    /// Chains of dependent reads of 4 KiB.
    pub lanes: u32,
    /// Reads in each lane.
    pub reads: u32,
    /// How many lanes are read again by the verifier.
    pub samples: u32,
    /// Longest time for writing, for reading, and for the opening.
    pub patience_ms: Vec<Millis>,
}

/// A look at what is installed, loaded and mounted. There is one step: its opening is the
/// agent's findings as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoftwareTask {
    /// Longest time for it.
    pub patience_ms: Millis,
}

/// A transfer from another host: the first commitment says that it is reached, the second is
/// the root over the chunks that came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferTask {
    /// The host that it comes from, by its mesh address.
    pub source: Ipv6Addr,
    /// Where that serves it.
    pub port: u16,
    /// How much, in bytes, whole chunks of 64 KiB.
    pub bytes: u64,
    /// How many chunks are computed again by the verifier.
    pub samples: u32,
    /// Longest time until the other host is reached, for the transfer, and for the opening.
    pub patience_ms: Vec<Millis>,
}

/// A test of computing power.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuTask {
    /// What the host claims.
    pub milli_cpu: MilliCpu,
    /// Length of a whole core's chain, in segments.
    pub segments: u32,
    /// How many segments are computed again by the verifier.
    pub samples: u32,
}

/// A test of memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryTask {
    /// What the host claims.
    pub memory: Bytes,
    /// Cores that the host claims: fill and reads are divided among them.
    pub milli_cpu: MilliCpu,
    /// Chains of dependent reads.
    pub lanes: u32,
    /// Reads in each lane.
    pub reads: u32,
    /// How many lanes are read again by the verifier.
    pub samples: u32,
    /// Longest time from the second nonce to the commitment of all lanes.
    pub reads_ms: Millis,
}

/// An answer of the host, as its report carries it until the spec shows the next step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofReport {
    /// Which challenge.
    pub challenge: ChallengeId,
    /// What it answers: the challenge (0) or `reveals[step - 1]`.
    pub step: u32,
    /// The answer.
    pub message: Message,
}

impl ProofReport {
    /// Refuses what no honest host reports.
    ///
    /// # Errors
    /// A sentence that says what is out of range.
    pub fn check(&self) -> Result<(), String> {
        let in_range = match &self.message {
            Message::Commitment(_) => true,
            Message::Opening(Opening::Inline(bytes)) => bytes.len() <= INLINE_MAX,
            Message::Opening(Opening::Blob { sha256: _, size }) => *size <= OPENING_MAX as u64,
            Message::Failed(failure) => failure.message.len() <= EXPLANATION_MAX,
        };
        if in_range { Ok(()) } else { Err("proof: a message is too long".into()) }
    }
}

/// What a host answers to one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// What the host has computed, fixed before it learns what will be looked at.
    Commitment(Digest),
    /// What the last reveal chose.
    Opening(Opening),
    /// The host gives up. It is a failure, with the reason the host gives.
    Failed(crate::Failure),
}

/// The bytes of an opening, or where they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opening {
    /// The bytes themselves, [`INLINE_MAX`] at most, base64 in JSON.
    Inline(#[serde(with = "inline")] Vec<u8>),
    /// Bytes that were stored as a blob before.
    Blob {
        /// SHA-256 of the bytes.
        sha256: Digest,
        /// How many bytes, [`OPENING_MAX`] at most.
        size: u64,
    },
}

mod inline {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::{Deserialize, Deserializer, INLINE_MAX, Serializer, de};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > INLINE_MAX.div_ceil(3) * 4 {
            return Err(de::Error::custom("an inline opening is too long"));
        }
        STANDARD.decode(text).map_err(|_| de::Error::custom("an inline opening is not base64"))
    }
}

/// Everything that came back for a challenge, once its opening is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// One commitment for each reveal of the challenge.
    pub commitments: Vec<Digest>,
    /// The bytes of the opening.
    pub opening: Vec<u8>,
}

/// How long one step took, on the verifier's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// When the step's nonce first left for the host.
    pub sent: Timestamp,
    /// When its answer had come, with all its bytes.
    pub received: Timestamp,
}

impl Challenge {
    /// A challenge of today's [`VERSION`], of which nothing is revealed yet and which belongs to no window.
    #[must_use]
    pub fn new(challenge: ChallengeId, host: HostId, task: Task, nonce: Nonce) -> Self {
        Self { version: VERSION, challenge, host, task, nonce, beacon: None, reveals: Vec::new() }
    }

    /// The step that waits for an answer: 0 for the challenge itself.
    #[must_use]
    pub fn step(&self) -> usize {
        self.reveals.len()
    }
}

impl Task {
    /// How many commitments come before the opening.
    #[must_use]
    pub fn commitments(&self) -> usize {
        match self {
            Self::Cpu(_) => 1,
            Self::Memory(_) | Self::Storage(_) | Self::Transfer(_) => 2,
            Self::Devices(task) => task.phases().len(),
            Self::Software(_) => 0,
        }
    }

    /// What it tests.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Cpu(_) => Kind::Cpu,
            Self::Memory(_) => Kind::Memory,
            Self::Devices(_) => Kind::Devices,
            Self::Storage(_) => Kind::Storage,
            Self::Software(_) => Kind::Software,
            Self::Transfer(_) => Kind::Transfer,
        }
    }
}

impl DeviceTask {
    /// Whether it has a size for a phase.
    #[must_use]
    pub fn has(&self, phase: Phase) -> bool {
        match phase {
            Phase::Fill => self.fill.is_some(),
            Phase::Gemm => self.gemm.is_some(),
            Phase::Lanes => self.lanes.is_some(),
            Phase::Stream => self.stream.is_some(),
            Phase::Spill | Phase::Return => self.spill.is_some(),
        }
    }
}

impl DevicesTask {
    /// Its phases, in their order.
    #[must_use]
    pub fn phases(&self) -> Vec<Phase> {
        let all_have = |phase: &Phase| self.devices.iter().all(|device| device.has(*phase));
        Phase::ALL.into_iter().filter(all_have).collect()
    }
}
