//! The command line.

pub mod args;
pub mod join;
pub mod show;
