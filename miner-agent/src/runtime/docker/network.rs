//! Networks: one small bridge for each job that may reach the public internet or its group.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use anyhow::{Context as _, bail};
use bollard::{
    Docker as Client,
    errors::Error as ApiError,
    models::{Ipam, IpamConfig, Network, NetworkCreateRequest, NetworkDisconnectRequest},
    query_parameters::ListNetworksOptionsBuilder,
};
use nave_domain::{HostId, LeaseId, job::Egress, mesh::MTU_MIN};
use tokio::sync::Mutex;

use super::{LABEL_HOST, LABEL_LEASE, container, settle};
use crate::config::{BridgePrefix, Pools};

/// Makes and removes the networks of one host.
#[derive(Debug)]
pub struct Networks {
    client: Client,
    host: HostId,
    prefix: BridgePrefix,
    pools: Pools,
    /// Held from the choice of a subnet until it is taken.
    choosing: Mutex<()>,
}

impl Networks {
    /// Networks of `host`, named after `prefix` and cut from `pools`.
    #[must_use]
    pub fn new(client: Client, host: HostId, prefix: BridgePrefix, pools: Pools) -> Self {
        Self { client, host, prefix, pools, choosing: Mutex::new(()) }
    }

    /// Makes the network of a lease, in which it has `address` if it has a group, and
    /// answers its name, which is its bridge's too.
    ///
    /// # Errors
    /// When no subnet is free or the engine refuses.
    pub async fn create(
        &self,
        lease: LeaseId,
        egress: Egress,
        address: Option<Ipv6Addr>,
    ) -> anyhow::Result<String> {
        let name = name(&self.prefix, lease, address.map(|_| egress));
        let _choosing = self.choosing.lock().await;
        let existing = self.client.list_networks(None).await.context("list networks")?;
        if existing.iter().any(|network| network.name.as_deref() == Some(&name)) {
            self.remove(lease).await?;
        }
        let taken = self.taken(&existing)?;
        let index = choose(lease, &taken).context("every subnet for jobs is taken")?;
        let request = self.request(&name, lease, index, address)?;
        self.client.create_network(request).await.with_context(|| format!("create network {name}"))?;
        skip_address_detection(&name);
        Ok(name)
    }

    fn request(
        &self,
        name: &str,
        lease: LeaseId,
        index: u16,
        address: Option<Ipv6Addr>,
    ) -> anyhow::Result<NetworkCreateRequest> {
        let subnet = |subnet: String| IpamConfig { subnet: Some(subnet), ..IpamConfig::default() };
        let v6 = Path::new("/proc/sys/net/ipv6").exists();
        let mut subnets = vec![subnet(self.pools.subnet4(index))];
        let option = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut options = HashMap::from([option("com.docker.network.bridge.name", name)]);
        match address {
            Some(_) if !v6 => bail!("this kernel has no IPv6, over which groups are reached"),
            Some(address) => {
                subnets.push(around(address));
                // Nobody but the egress filter translates addresses, and peers see the job's own.
                options.extend([
                    option("com.docker.network.bridge.enable_ip_masquerade", "false"),
                    option("com.docker.network.bridge.gateway_mode_ipv6", "routed"),
                    // Every way through the mesh carries packets of this size.
                    option("com.docker.network.driver.mtu", &MTU_MIN.to_string()),
                ]);
            }
            None => subnets.extend(v6.then(|| subnet(self.pools.subnet6(index)))),
        }
        Ok(NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".into()),
            enable_ipv6: Some(v6),
            ipam: Some(Ipam { config: Some(subnets), ..Ipam::default() }),
            options: Some(options),
            labels: Some(HashMap::from([
                option(LABEL_HOST, &self.host.to_string()),
                option(LABEL_LEASE, &lease.to_string()),
            ])),
            ..NetworkCreateRequest::default()
        })
    }

    /// Indices that a network of this engine or an interface of this machine uses.
    fn taken(&self, networks: &[Network]) -> anyhow::Result<BTreeSet<u16>> {
        let subnets = networks.iter().filter_map(|network| network.ipam.as_ref()?.config.as_ref()).flatten();
        let of_networks =
            subnets.filter_map(|config| config.subnet.as_deref()?.split('/').next()?.parse().ok());
        let of_interfaces = super::firewall::addresses()?.into_iter().map(|site| site.address);
        Ok(of_networks.chain(of_interfaces).filter_map(|address| index_of(self.pools, address)).collect())
    }

    /// Removes the network of a lease whose container is gone, where there is one.
    ///
    /// # Errors
    /// When the engine refuses.
    pub async fn remove(&self, lease: LeaseId) -> anyhow::Result<()> {
        for name in [None, Some(Egress::None)].map(|group| name(&self.prefix, lease, group)) {
            let mut removed = self.client.remove_network(&name).await;
            if matches!(removed, Err(ApiError::DockerResponseServerError { status_code: 403, .. })) {
                self.disconnect(lease, &name).await;
                removed = self.client.remove_network(&name).await;
            }
            settle(removed, &[404]).with_context(|| format!("remove network {name}"))?;
        }
        Ok(())
    }

    /// An engine that is killed while a container ends can keep the end of its cable for good.
    async fn disconnect(&self, lease: LeaseId, network: &str) {
        let container = container::name(lease);
        let request = NetworkDisconnectRequest { container, force: Some(true) };
        if let Err(error) = self.client.disconnect_network(network, request).await {
            tracing::info!(network, %error, "what the engine still has in a network stays in it");
        }
    }

    /// Every lease of this host that has a network.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn leases(&self) -> anyhow::Result<BTreeSet<LeaseId>> {
        let filters = HashMap::from([("label", vec![format!("{LABEL_HOST}={}", self.host)])]);
        let options = ListNetworksOptionsBuilder::default().filters(&filters).build();
        let networks = self.client.list_networks(Some(options)).await.context("list networks")?;
        let lease = |network: Network| network.labels?.get(LABEL_LEASE)?.parse().ok();
        Ok(networks.into_iter().filter_map(lease).collect())
    }
}

/// Name of a lease's bridge: the prefix and the last 11 digits of the lease,
/// which are random. An interface name has at most 15 bytes.
///
/// A job that reaches nothing but its group has a `-` in place of one digit: whatever the
/// filter knows of the lease, it knows by the name that there is no way out.
pub(super) fn name(prefix: &BridgePrefix, lease: LeaseId, egress_of_group: Option<Egress>) -> String {
    let id = lease.to_string();
    match egress_of_group {
        Some(Egress::None) => format!("{}-{}", prefix.as_str(), &id[id.len() - 10..]),
        Some(Egress::Public) | None => format!("{}{}", prefix.as_str(), &id[id.len() - 11..]),
    }
}

/// The smallest network that holds an address and another one for its gateway, which is
/// neither of them its first address: that one stands for any router.
fn around(address: Ipv6Addr) -> IpamConfig {
    let bits = u128::from(address);
    let host = |length: u32| bits & (u128::MAX >> length);
    let length = (0..=124).rev().find(|length| host(*length) != 0).unwrap_or(0);
    let first = bits - host(length);
    let gateway = if host(length) == 1 { first + 2 } else { first + 1 };
    IpamConfig {
        subnet: Some(format!("{}/{length}", Ipv6Addr::from(first))),
        gateway: Some(Ipv6Addr::from(gateway).to_string()),
        ..IpamConfig::default()
    }
}

/// The first free index from one that depends on the lease, so that engines
/// which do not know each other rarely choose the same.
fn choose(lease: LeaseId, taken: &BTreeSet<u16>) -> Option<u16> {
    let id = lease.to_string();
    let first = u16::from_str_radix(&id[id.len() - 4..], 16).unwrap_or(0);
    (0..Pools::SIZE).map(|step| first.wrapping_add(step) % Pools::SIZE).find(|index| !taken.contains(index))
}

/// Which network of the pools an address lies in.
fn index_of(pools: Pools, address: IpAddr) -> Option<u16> {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            ([a, b] == pools.v4).then(|| u16::from_be_bytes([c, d]) >> 3)
        }
        IpAddr::V6(v6) => {
            let groups = v6.segments();
            (groups[..3] == pools.v6).then_some(groups[3])
        }
    }
}

/// A fresh bridge holds IPv6 packets back until it has asked whether anyone
/// else has its address. Nobody else is on it, so the job need not wait.
fn skip_address_detection(bridge: &str) {
    let path = format!("/proc/sys/net/ipv6/conf/{bridge}/accept_dad");
    if let Err(error) = std::fs::write(&path, "0") {
        tracing::debug!(%error, path, "the first IPv6 packets of the job will wait");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(n: u128) -> LeaseId {
        format!("lease_{n:032x}").parse().expect("an id")
    }

    #[test]
    fn a_bridge_name_fits_an_interface() {
        let longest = "nvjx".parse().expect("a prefix");
        for group in [None, Some(Egress::Public), Some(Egress::None)] {
            assert_eq!(name(&longest, lease(0xabc), group).len(), 15);
            assert_ne!(name(&longest, lease(1), group), name(&longest, lease(2), group));
        }
    }

    #[test]
    fn a_bridge_without_a_way_out_is_known_by_its_name() {
        let prefix = BridgePrefix::default();
        assert!(name(&prefix, lease(1), Some(Egress::None)).starts_with("nvj-"));
        assert!(!name(&prefix, lease(1), Some(Egress::Public)).contains('-'));
    }

    #[test]
    fn a_network_around_an_address_has_room_for_a_gateway() {
        for (address, subnet, gateway) in [
            ("fd00:0:0:2::25", "fd00:0:0:2::20/124", "fd00:0:0:2::21"),
            ("fd00:0:0:2::21", "fd00:0:0:2::20/124", "fd00:0:0:2::22"),
            ("fd00:0:0:2::30", "fd00:0:0:2::20/123", "fd00:0:0:2::21"),
            ("fd00:0:0:2::40", "fd00:0:0:2::/121", "fd00:0:0:2::1"),
        ] {
            let config = around(address.parse().expect("an address"));
            assert_eq!((config.subnet.as_deref(), config.gateway.as_deref()), (Some(subnet), Some(gateway)));
        }
    }

    #[test]
    fn a_taken_subnet_is_passed_over() {
        assert_eq!(choose(lease(5), &BTreeSet::new()), Some(5));
        assert_eq!(choose(lease(5), &BTreeSet::from([5, 6])), Some(7));
        assert_eq!(choose(lease(u128::from(Pools::SIZE) - 1), &BTreeSet::from([Pools::SIZE - 1])), Some(0));
        assert_eq!(choose(lease(5), &(0..Pools::SIZE).collect()), None);
    }

    #[test]
    fn an_address_in_a_pool_is_traced_to_its_network() {
        let pools = Pools::default();
        for index in [0, 33, Pools::SIZE - 1] {
            let v4: IpAddr = pools.subnet4(index).split('/').next().expect("address").parse().expect("v4");
            let v6: IpAddr = pools.subnet6(index).split('/').next().expect("address").parse().expect("v6");
            assert_eq!((index_of(pools, v4), index_of(pools, v6)), (Some(index), Some(index)));
        }
        assert_eq!(index_of(pools, "10.1.0.1".parse().expect("v4")), None);
    }
}
