//! The command line.

pub mod args;
pub mod earnings;
pub mod explain;
pub mod join;
pub mod show;
