//! Places jobs on hosts.
//!
//! [`plan`](planner::plan) and [`watch`](watch::watch) are pure: a snapshot and the
//! time in, decisions out. [`role`] loads, calls and carries out.

pub mod cloud;
pub mod demand;
mod fit;
pub mod fleet;
pub mod planner;
pub mod resting;
pub mod role;
mod wait;
pub mod watch;

pub use role::run;
