//! Runs leases on a host: a pure state machine under a thin shell.
//!
//! [`core`] decides, [`shell`] asks the control plane and carries the decisions
//! out, [`runtime`] is what runs the commands: a Docker Engine, or nothing.
//! The agent keeps almost no state of its own: containers carry their lease in
//! labels, and a small state directory holds what labels cannot say.

pub mod archive;
pub mod backoff;
pub mod clock;
pub mod command;
pub mod config;
pub mod core;
pub mod doctor;
pub mod endpoint;
pub mod enrol;
pub mod files;
pub mod inventory;
pub mod link;
pub mod membership;
pub mod proof;
pub mod purge;
pub mod runtime;
pub mod shell;
pub mod state;

/// Version of the agent, as it stands in an inventory.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
