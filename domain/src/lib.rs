//! Pure types and rules of the Nave market.
//!
//! Nothing here does IO, reads a clock or draws randomness: callers pass `now`
//! and snapshots in and get decisions back, so the same inputs give the same
//! bytes everywhere.

pub mod class_use;
pub mod dispute;
pub mod epoch;
pub mod event;
pub mod fraction;
pub mod host;
pub mod ids;
pub mod job;
pub mod lease;
pub mod ledger;
pub mod mesh;
pub mod rate;
pub mod region;
pub mod units;
pub mod verdict;
pub mod wish;

pub use ids::{ChallengeId, CustomerId, EventId, HostId, JobId, KeyId, LeaseId, QuoteId};
pub use units::{Bytes, MicroUsd, MilliCpu, MilliGpu, Millis, Overflow, Timestamp};
