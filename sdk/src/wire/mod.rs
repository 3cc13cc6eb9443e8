//! What goes over the wire: [`rest`] for customers, [`host`] for hosts, [`enrol`] for
//! hosts that join and for miners, [`sign`] for signatures.

pub mod enrol;
pub mod host;
pub mod keys;
pub mod rest;
pub mod sign;
pub mod ticket;

pub use nave_proof as proof;
