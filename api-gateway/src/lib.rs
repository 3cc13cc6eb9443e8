//! The customers' REST API and the hosts' protocol.
//!
//! Two listeners: customers and those who join in the open, hosts inside the mesh. Handlers are thin: they
//! read a request, call the store, and write the answer; the rules are in the domain and
//! every state change is one transaction of the store.

mod app;
mod caller;
mod config;
mod error;
mod extract;
mod guard;
mod host;
mod image;
mod listen;
mod logs;
mod openapi;
mod page;
mod registry;
mod routes;
mod serve;
mod signed;
mod throttle;
mod turns;
mod view;

use std::future::Future;

use nave_store::Store;

pub use config::{Config, HostListen};
#[doc(hidden)]
pub use host::effects;
pub use openapi::openapi;
pub use serve::Gateway;

/// Serves customers and hosts until `shutdown`, then lets answers under way finish for a
/// short time.
///
/// # Errors
/// When it cannot listen, or a listener fails.
pub async fn run(
    config: Config,
    store: Store,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    Gateway::bind(config, store).await?.serve(shutdown).await
}
