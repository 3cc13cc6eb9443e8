//! Turns delivered service into charges and weights.
//!
//! [`treasury`] charges customers for metered use; [`role`] closes epochs, computes
//! weights and brings them to a [`chain`].

pub mod chain;
pub mod role;
pub mod treasury;

pub use role::run;
