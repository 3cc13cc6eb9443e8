//! The client and the command against a stub of the API.

mod client;
#[cfg(unix)]
mod command;
#[cfg(unix)]
mod miner;
mod stub;
