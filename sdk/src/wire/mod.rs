//! What goes over the wire: [`rest`] for customers, [`host`] for hosts, [`enrol`] for
//! hosts that join and for miners, [`verdict`] for what came of tests, [`settlement`] for what epochs
//! come to, [`sign`] for signatures.

pub mod enrol;
pub mod event;
pub mod host;
pub mod keys;
pub mod quote;
pub mod rest;
pub mod settlement;
pub mod sign;
pub mod ticket;
pub mod verdict;

pub use nave_proof as proof;
