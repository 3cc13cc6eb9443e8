//! Machines rented from clouds, and what machines cost there.
//!
//! A cloud is a [`Provider`] of five calls; [`adapters`] has one for each. [`machine`] decides, purely,
//! what becomes of every machine that we want, so that none is leaked and none doubled; [`keeper`] is the
//! shell around it and [`ledger`] what it writes. [`baseline`] says what devices cost on demand.

pub mod adapters;
pub mod baseline;
pub mod classes;
pub mod error;
pub mod http;
pub mod keeper;
pub mod ledger;
pub mod machine;
pub mod money;
pub mod provider;
pub mod secret;
#[cfg(feature = "testing")]
pub mod testing;

pub use error::{CloudError, Kind};
pub use keeper::Keeper;
pub use ledger::Ledger;
pub use machine::{Row, Rules};
pub use provider::{Cloud, CloudOffer, Launch, Machine, Owner, Provider};
pub use secret::Secret;
