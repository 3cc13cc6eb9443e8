//! What an operator decides about a gateway.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use nave_domain::Millis;
use nave_sdk::wire::{keys::PublicKey, sign::SecretKey};

/// A gateway's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where customers connect.
    pub api: SocketAddr,
    /// Where hosts connect.
    pub hosts: HostListen,
    /// What identifies the market; signs the answers to enrolments.
    pub market_key: Arc<SecretKey>,
    /// What signs upgrades of agents, where there are any.
    pub release_key: Option<PublicKey>,
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
    pub fn new(api: SocketAddr, hosts: HostListen, market_key: Arc<SecretKey>) -> Self {
        Self {
            api,
            hosts,
            market_key,
            release_key: None,
            fence_ms: Millis(45_000),
            report_ms: Millis(5_000),
            registries: ["docker.io", "ghcr.io", "quay.io", "nvcr.io"].map(str::to_owned).to_vec(),
            insecure_registries: Vec::new(),
        }
    }
}

/// How to listen for hosts.
///
/// The address a connection comes from is what identifies a host, so this must be a place
/// where nobody can choose it: the inside of the mesh.
#[derive(Clone)]
pub struct HostListen {
    /// Where, for the log.
    pub address: SocketAddr,
    /// Opens the socket. It is called until it succeeds, and now and then afterwards: when it
    /// succeeds again, the mesh was set up anew and the new socket takes over. May block.
    pub bind: Arc<dyn Fn() -> io::Result<TcpListener> + Send + Sync>,
}

impl fmt::Debug for HostListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostListen").field("address", &self.address).finish_non_exhaustive()
    }
}
