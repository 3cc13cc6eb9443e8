//! Tests what hosts claim, before they take jobs.
//!
//! [`decide`](decide::decide) is pure: rows and the time in, decisions out; what it is
//! decided from is `nave-proof` and `nave-rules`, which everyone else can run, too. [`role`] draws
//! nonces, loads, judges and stores. Nothing is kept between two looks: a verifier that is
//! killed is continued by the next one, and several may run at once.

pub mod decide;
pub mod draw;
pub mod role;
pub mod schedule;
pub mod transfer;

pub use role::{Config, Verifier, run};
pub use schedule::Means;
