//! What goes over the wire: [`rest`] for customers, [`host`] for hosts.

pub mod host;
pub mod rest;
