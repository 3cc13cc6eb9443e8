//! What verdicts rest on beside evidence: the classes of devices, and the floors of software and disks.
//!
//! Both are data that is checked in and part of the program. Everything here is a function of its
//! arguments, so whoever has what was shown reaches the same verdict: the verifier, and everyone else.

pub mod calibrate;
pub mod catalogue;
pub mod class;
pub mod floors;
mod gravity;
mod judge;
pub mod shadow;
pub mod size;

use std::sync::OnceLock;

use nave_proof::Digest;
use sha2::{Digest as _, Sha256};

pub use gravity::{Gravity, gravity, may_be_a_jobs_doing, told};
pub use judge::{judge, judge_devices, weigh};

/// The name of these rules: the SHA-256 of `catalogue.toml` and `floors.toml`, one after the other.
#[must_use]
pub fn digest() -> Digest {
    static DIGEST: OnceLock<Digest> = OnceLock::new();
    let of_files =
        || Sha256::new().chain_update(catalogue::TEXT).chain_update(floors::TEXT).finalize().into();
    *DIGEST.get_or_init(|| Digest(of_files()))
}
