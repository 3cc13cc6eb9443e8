//! What an operator decides about a gateway.

use std::{net::SocketAddr, path::PathBuf};

use nave_domain::Millis;

/// A gateway's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where customers connect.
    pub api: SocketAddr,
    /// Unix socket of the hosts on this machine. Only this user may open it: whoever can
    /// open it may speak for any host.
    pub host_socket: PathBuf,
    /// Time after which a host that hears nothing ends its jobs.
    pub fence_ms: Millis,
    /// Longest time between two reports of a host.
    pub report_ms: Millis,
    /// Registries in which an image's tag is looked up, such as `docker.io`. The gateway
    /// never connects to another one.
    pub registries: Vec<String>,
    /// Registries on this machine that speak plain HTTP, as `127.0.0.1:5000`.
    pub insecure_registries: Vec<String>,
}

impl Config {
    /// The defaults, listening on these places.
    #[must_use]
    pub fn new(api: SocketAddr, host_socket: PathBuf) -> Self {
        Self {
            api,
            host_socket,
            fence_ms: Millis(45_000),
            report_ms: Millis(5_000),
            registries: ["docker.io", "ghcr.io", "quay.io", "nvcr.io"].map(str::to_owned).to_vec(),
            insecure_registries: Vec::new(),
        }
    }
}
