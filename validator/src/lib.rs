//! Turns delivered service into charges and weights.
//!
//! [`events`] says whose fault it was when something went wrong; [`treasury`] charges customers for metered use; [`role`] closes
//! epochs, has them settled by [`mod@settle`] as the [`params`] say, and brings weights to a [`chain`].

pub mod chain;
pub mod events;
pub mod key;
pub mod params;
pub mod role;
pub mod settle;
pub mod treasury;

pub use role::run;
