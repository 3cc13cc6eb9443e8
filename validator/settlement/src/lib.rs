//! How the evidence of an epoch becomes pay and weights, and how anyone recomputes both.
//!
//! The rules are `docs/settlement.md`, to the digit. [`Settling`] takes evidence and gives pay; [`bundle`] writes and
//! reads evidence as the market publishes it; [`audit`] finds where a bundle says something else than follows from it.

pub mod audit;
pub mod bundle;
pub mod evidence;
pub mod exact;
pub mod lease;
mod miner;
pub mod params;
mod settle;
mod soundness;
mod standby;
#[cfg(feature = "testing")]
pub mod testing;

pub use audit::{Report, audit};
pub use lease::LeasePay;
pub use settle::{Settlement, Settling};

/// Why evidence cannot be settled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A record with a number out of its range, or a list out of order.
    #[error("this {0} is not sound")]
    Unsound(&'static str),
    /// A parameter out of its range.
    #[error("parameter {0} {1}")]
    Params(&'static str, String),
    /// Parameters of another epoch.
    #[error("these parameters hold from a later epoch on")]
    TooEarly,
    /// More emissions than are averaged.
    #[error("there are more emissions than are averaged")]
    TooManyEmissions,
    /// A class or a hotkey that is there already.
    #[error("{0} is there twice")]
    Twice(String),
    /// A hotkey without a miner.
    #[error("there is no miner {0}")]
    NoMiner(String),
    /// A lease, and events of it on another host.
    #[error("events of lease {0} are of another host")]
    OtherHost(String),
    /// Events of a lease that is not there.
    #[error("there is no lease {0}, and there are events of it")]
    NoLease(String),
    /// A sum or a product.
    #[error("a number does not fit 63 bits")]
    Overflow,
}
