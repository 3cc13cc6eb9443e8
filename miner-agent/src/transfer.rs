//! Transfers between hosts that are tested: this host serves bytes to one other, or fetches them.
//!
//! What passes for that is read from the spec, like the routes of leases: one address is reached
//! while this host fetches, one port is open to one address while it serves, and nothing
//! is left of it when the spec does not say so any more.

pub mod fetch;
pub mod serve;

use std::{collections::BTreeSet, net::Ipv6Addr};

use nave_domain::mesh::Prefix;
use nave_mesh::guard::Door;
use nave_sdk::wire::{host::HostSpec, proof::Task};

/// What passes between this host and others while transfers are open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Crossings {
    /// The other hosts.
    pub peers: BTreeSet<Ipv6Addr>,
    /// Who may connect to which port here.
    pub doors: BTreeSet<Door>,
}

impl Crossings {
    /// Those that a spec asks for, of the host at `own`. There are none to anything but other hosts, whoever
    /// asks for it.
    #[must_use]
    pub fn of(spec: &HostSpec, prefix: Prefix, own: Ipv6Addr) -> Self {
        let is_other = |address: &Ipv6Addr| prefix.is_host(*address) && *address != own;
        let fetched = spec.challenges.values().filter_map(|challenge| match &challenge.task {
            Task::Transfer(task) => Some(task.source),
            Task::Cpu(_) | Task::Memory(_) | Task::Devices(_) | Task::Storage(_) | Task::Software(_) => None,
        });
        let served = spec.serve.values().filter(|serve| is_other(&serve.peer));
        let doors = served.clone().map(|serve| Door { from: serve.peer, port: serve.port }).collect();
        let peers = fetched.filter(is_other).chain(served.map(|serve| serve.peer)).collect();
        Self { peers, doors }
    }
}
