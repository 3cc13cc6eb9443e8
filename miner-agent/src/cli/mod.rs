//! The command line.

pub mod args;
pub mod explain;
pub mod join;
pub mod show;
