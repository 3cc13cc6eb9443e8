//! What leases of groups may reach, read from the spec.
//!
//! The runtime carries it out between a lease and this machine, the link between this
//! machine and the mesh. Both keep to it whatever a connection was before.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::Ipv6Addr,
};

use nave_domain::{JobId, LeaseId, job::Egress, mesh::Prefix};
use nave_mesh::guard::Pair;
use nave_sdk::wire::host::{HostSpec, Order};

/// What one lease may reach in the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Its own address.
    pub address: Ipv6Addr,
    /// The others of its group, by job.
    pub peers: BTreeMap<JobId, Ipv6Addr>,
    /// What it may reach besides.
    pub egress: Egress,
}

impl Route {
    /// That of an order, where its job has a group.
    #[must_use]
    pub fn of(order: &Order) -> Option<Self> {
        let address = order.address?;
        Some(Self { address, peers: order.peers.clone(), egress: order.egress })
    }

    /// The peers as a job reads them: a line `ADDRESS JOB` for each.
    #[must_use]
    pub fn list(&self) -> String {
        let mut text = String::new();
        for (job, address) in &self.peers {
            let _ = writeln!(text, "{address} {job}");
        }
        text
    }
}

/// The routes of all leases of a host that have a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes(pub BTreeMap<LeaseId, Route>);

impl Routes {
    /// Those that a spec asks for. An address that is not a lease's to have is passed over:
    /// there is no route to hub and hosts, whoever asks for it.
    #[must_use]
    pub fn of(spec: &HostSpec, prefix: Prefix) -> Self {
        let route = |lease: &LeaseId, order: &Order| {
            let mut route = Route::of(order).filter(|route| route.address == prefix.lease(*lease))?;
            route.peers.retain(|_, peer| prefix.is_lease(*peer) && *peer != route.address);
            Some((*lease, route))
        };
        Self(spec.leases.iter().filter_map(|(lease, order)| route(lease, order)).collect())
    }

    /// Addresses that are reached through the mesh.
    #[must_use]
    pub fn remote(&self) -> BTreeSet<Ipv6Addr> {
        let here: BTreeSet<Ipv6Addr> = self.0.values().map(|route| route.address).collect();
        let peers = self.0.values().flat_map(|route| route.peers.values().copied());
        peers.filter(|peer| !here.contains(peer)).collect()
    }

    /// What passes between this host and the mesh, in both directions.
    #[must_use]
    pub fn pairs(&self) -> Vec<Pair> {
        let remote = self.remote();
        let mut pairs = Vec::new();
        for route in self.0.values() {
            for peer in route.peers.values().filter(|peer| remote.contains(peer)) {
                pairs.push(Pair { from: route.address, to: *peer });
                pairs.push(Pair { from: *peer, to: route.address });
            }
        }
        pairs
    }
}

#[cfg(test)]
mod tests {
    use nave_domain::{Bytes, HostId, MilliCpu, Millis, host::HostState, mesh::MeshKey};
    use nave_sdk::wire::host::{MeshSpec, PROTOCOL};
    use uuid::Uuid;

    use super::*;

    fn prefix() -> Prefix {
        Prefix::of_market(&[7; 32])
    }

    fn lease(n: u128) -> LeaseId {
        LeaseId(Uuid::from_u128(n))
    }

    fn job(n: u128) -> JobId {
        JobId(Uuid::from_u128(n))
    }

    fn order(address: Option<Ipv6Addr>, peers: &[(u128, Ipv6Addr)]) -> Order {
        Order {
            job: job(1),
            attempt: 1,
            stop: None,
            image: String::new(),
            argv: vec![],
            env: BTreeMap::new(),
            milli_cpu: MilliCpu(1),
            memory: Bytes(1),
            disk: Bytes(1),
            devices: vec![],
            share: None,
            egress: Egress::None,
            address,
            peers: peers.iter().map(|(n, address)| (job(*n), *address)).collect(),
        }
    }

    fn routes(orders: Vec<(u128, Order)>) -> Routes {
        let key = MeshKey::new([1; 32]).expect("a key");
        let spec = HostSpec {
            protocol: PROTOCOL,
            generation: 1,
            host: HostId(Uuid::from_u128(1)),
            state: HostState::Ready,
            reason: None,
            fence_ms: Millis(1),
            report_ms: Millis(1),
            mesh: MeshSpec { key, hub_key: key, hub_endpoints: vec![] },
            challenges: BTreeMap::new(),
            serve: BTreeMap::new(),
            release: None,
            leases: orders.into_iter().map(|(n, order)| (lease(n), order)).collect(),
        };
        Routes::of(&spec, prefix())
    }

    #[test]
    fn only_peers_elsewhere_are_reached_through_the_mesh() {
        let [a, b, c] = [1, 2, 3].map(|n| prefix().lease(lease(n)));
        let routes =
            routes(vec![(1, order(Some(a), &[(2, b), (3, c)])), (2, order(Some(b), &[(1, a), (3, c)]))]);
        assert_eq!(routes.remote(), [c].into());
        let pairs: BTreeSet<Pair> = routes.pairs().into_iter().collect();
        let both = |from, to| [Pair { from, to }, Pair { from: to, to: from }];
        assert_eq!(pairs, [both(a, c), both(b, c)].concat().into_iter().collect());
    }

    #[test]
    fn no_spec_makes_a_route_to_the_hub_a_host_or_a_stranger() {
        let own = prefix().lease(lease(1));
        let others = [prefix().hub(), prefix().host(HostId(Uuid::from_u128(5))), Ipv6Addr::LOCALHOST, own];
        let peers: Vec<_> = (2..).zip(others).collect();
        let asked = routes(vec![
            (1, order(Some(own), &peers)),
            (2, order(Some(own), &[(9, prefix().lease(lease(9)))])),
            (3, order(None, &[])),
        ]);
        assert_eq!(asked.0.keys().copied().collect::<Vec<_>>(), [lease(1)], "nor has a lease another's");
        assert_eq!((asked.pairs(), asked.remote()), (vec![], BTreeSet::new()));
    }

    #[test]
    fn a_job_reads_its_peers_a_line_each() {
        let a = prefix().lease(lease(1));
        let route = Route { address: a, peers: [(job(2), a)].into(), egress: Egress::None };
        assert_eq!(route.list(), format!("{a} {}\n", job(2)));
    }
}
