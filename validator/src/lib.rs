//! Turns delivered service into charges and weights.
//!
//! [`events`] says whose fault it was when something went wrong; [`treasury`] charges customers for metered use; [`role`] closes epochs, computes
//! weights and brings them to a [`chain`].

pub mod chain;
pub mod events;
pub mod key;
pub mod role;
pub mod treasury;

pub use role::run;
