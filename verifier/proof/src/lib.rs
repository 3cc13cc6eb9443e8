//! Proofs of what a host claims: challenge → evidence → verdict.
//!
//! The verifier draws a [`Challenge`]; the host answers each of its nonces with a
//! [`ProofReport`]: first commitments, at the end an opening; [`judge`] turns what
//! came back, and when, into a [`Verdict`]. Everything here is a function of its
//! arguments: no clock, no randomness, no files, no network.
//!
//! | step | the host gets | the host answers, CPU | the host answers, memory |
//! |---|---|---|---|
//! | 0 | the challenge with its nonce | commitment: root over all chains' checkpoints | commitment: memory is filled |
//! | 1 | `reveals[0]` | opening: the segments it chooses | commitment: root over all lanes' ends |
//! | 2 | `reveals[1]` | | opening: the lanes it chooses |
//!
//! Only the verifier's clock counts: each step has a [`Span`] from the first
//! delivery of its nonce to the complete receipt of its answer.
//!
//! Without features there are only the messages. What judges, what proves and what transfers
//! share most of their code; each is there with the feature of its name.

#![cfg_attr(
    not(all(feature = "judge", feature = "prover")),
    allow(dead_code, unused_imports, reason = "each side alone leaves some of what they share unused")
)]

#[cfg(any(feature = "judge", feature = "prover", feature = "transfer"))]
mod chacha;
#[cfg(any(feature = "judge", feature = "prover"))]
mod cpu;
#[cfg(any(feature = "judge", feature = "prover"))]
pub mod device;
mod devices;
pub mod findings;
#[cfg(any(feature = "judge", feature = "prover"))]
pub mod gemm;
#[cfg(feature = "judge")]
mod judge;
#[cfg(any(feature = "judge", feature = "prover"))]
mod memory;
#[cfg(any(feature = "judge", feature = "prover", feature = "transfer"))]
pub mod merkle;
mod message;
#[cfg(any(feature = "judge", feature = "prover", feature = "transfer"))]
mod mix;
#[cfg(feature = "prover")]
mod prover;
#[cfg(any(feature = "judge", feature = "prover", feature = "transfer"))]
mod sha;
mod sizes;
#[cfg(feature = "prover")]
pub mod software;
#[cfg(any(feature = "judge", feature = "prover"))]
mod storage;
mod task;
#[cfg(any(feature = "judge", feature = "prover", feature = "transfer"))]
mod transcript;
#[cfg(any(feature = "judge", feature = "prover", feature = "transfer"))]
pub mod transfer;
#[cfg(test)]
mod vectors;
mod verdict;
#[cfg(any(feature = "judge", feature = "prover"))]
pub mod vram;

pub use findings::Findings;
#[cfg(feature = "judge")]
pub use judge::judge;
pub use message::{
    Challenge, CpuTask, DeviceTask, DevicesTask, Digest, EXPLANATION_MAX, Evidence, Fill, Gemm, INLINE_MAX,
    Kind, Lanes, MemoryTask, Message, Nonce, OPENING_MAX, Opening, Phase, ProofReport, SoftwareTask, Span,
    Spill, StorageTask, Stream, Task, TransferTask, VERSION,
};
#[cfg(feature = "prover")]
pub use prover::{Answer, Prover, Resources};
pub use sizes::{BLOCK, PIECE, STEPS, covered};
#[cfg(feature = "prover")]
pub use storage::prove::Disk;
pub use task::{REFERENCE_STEPS_PER_S, TOLERANCE};
pub use verdict::{DeviceProven, Failure, Proven, Reason, Verdict};
