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
pub mod inspect;
pub mod inventory;
pub mod link;
pub mod membership;
pub mod proof;
pub mod purge;
pub mod routes;
pub mod runtime;
pub mod share;
pub mod shell;
pub mod state;
pub mod status;
pub mod transfer;
pub mod upgrade;
pub mod verdicts;
pub mod xids;

/// Version that this agent was built as.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Version of the agent, as it stands in an inventory. A test of upgrades can have a
/// development build say another one.
#[must_use]
pub fn version() -> &'static str {
    static SAID: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let said =
        SAID.get_or_init(|| std::env::var(upgrade::VERSION_SAID).ok().filter(|_| cfg!(debug_assertions)));
    said.as_deref().unwrap_or(VERSION)
}
