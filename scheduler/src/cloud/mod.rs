//! The role that rents machines from clouds, and that says what devices cost there.

pub mod boot;
pub mod config;
