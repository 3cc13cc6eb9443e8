//! The egress filter: jobs reach public unicast addresses, their groups, and nothing else.
//!
//! One nftables table for each bridge prefix holds it, so two agents on one
//! machine do not touch each other's. It is replaced in one transaction. The
//! engine's own chains see only some of the traffic (a job's packets to its host
//! pass none of them), so the table hooks into input and forward itself.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::PoisonError,
};

use anyhow::Context as _;
use nave_domain::job::Egress;
use nix::ifaddrs::getifaddrs;
use tokio::sync::Mutex;

use super::{forwarding::Forwarding, network};
use crate::{
    command,
    config::{BridgePrefix, MeshSide, Pools},
    routes::{Route, Routes},
};

/// IPv4 ranges that are not public unicast, by RFC 6890 and RFC 7526.
const PRIVATE4: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, \
     172.16.0.0/12, 192.0.0.0/24, 192.88.99.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3";
/// Inside 2000::/3 and still no places of their own: Teredo, benchmarking,
/// ORCHID and 6to4, which embeds IPv4 addresses.
const SPECIAL6: &str = "2001::/23, 2002::/16";

/// The filter of one agent.
#[derive(Debug)]
pub struct Firewall {
    prefix: BridgePrefix,
    pools: Pools,
    mesh: Option<MeshSide>,
    routes: std::sync::Mutex<Routes>,
    /// The rules as written and as the kernel listed them afterwards.
    loaded: Mutex<Option<(String, Vec<u8>)>>,
}

/// An address of this machine and the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// The address.
    pub address: IpAddr,
    /// Length of the prefix in bits.
    pub length: u8,
}

impl Firewall {
    /// The filter for bridges that begin with `prefix`; nothing is loaded yet.
    #[must_use]
    pub fn new(prefix: BridgePrefix, pools: Pools, mesh: Option<MeshSide>) -> Self {
        Self { prefix, pools, mesh, routes: std::sync::Mutex::default(), loaded: Mutex::new(None) }
    }

    /// Lets these leases reach their groups, and no others.
    ///
    /// # Errors
    /// As [`Self::ensure`], which then still has it to do.
    pub async fn route(&self, routes: Routes) -> anyhow::Result<()> {
        *self.routes.lock().unwrap_or_else(PoisonError::into_inner) = routes;
        self.ensure().await
    }

    /// Makes sure that exactly our rules are loaded and that packets are forwarded.
    ///
    /// # Errors
    /// When the kernel or its settings refuse; then no job may have a network.
    pub async fn ensure(&self) -> anyhow::Result<()> {
        let interfaces = sites(self.prefix.as_str())?;
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let group = self.mesh.as_ref().map(|mesh| (mesh, &routes));
        let wanted = ruleset(&self.prefix, self.pools, &interfaces, group);
        let mut loaded = self.loaded.lock().await;
        // Others may have turned it off again, whatever the rules are.
        Forwarding::default().need(&self.prefix).context("let the kernel forward packets")?;
        if let Some((text, listed)) = &*loaded
            && *text == wanted
            && self.list().await.ok().as_ref() == Some(listed)
        {
            return Ok(());
        }
        *loaded = None;
        command::run_with("nft", &["-f", "-"], wanted.as_bytes()).await.context("load the egress filter")?;
        pass_other_engines(&self.prefix, self.mesh.as_ref()).await;
        *loaded = Some((wanted, self.list().await?));
        Ok(())
    }

    async fn list(&self) -> Result<Vec<u8>, command::Failed> {
        // Without its counters, a listing changes only when the rules do.
        command::run("nft", &["-s", "list", "table", "inet", &table(&self.prefix)]).await
    }

    /// Takes the table away, where it is loaded, and forwards packets no longer for its sake.
    ///
    /// # Errors
    /// When nft fails.
    pub async fn unload(prefix: &BridgePrefix) -> anyhow::Result<()> {
        let name = table(prefix);
        let text = format!("table inet {name}\ndelete table inet {name}\n");
        command::run_with("nft", &["-f", "-"], text.as_bytes()).await.context("remove the egress filter")?;
        Forwarding::default().leave(prefix).context("put the kernel's forwarding back")
    }
}

fn table(prefix: &BridgePrefix) -> String {
    format!("nave_{}", prefix.as_str())
}

/// Every address of this machine, loopback and jobs' bridges included.
///
/// # Errors
/// When the kernel does not answer.
pub fn addresses() -> anyhow::Result<Vec<Site>> {
    Ok(named_addresses()?.into_iter().map(|(_, site)| site).collect())
}

/// Networks this machine is attached to other than through jobs' bridges.
fn sites(prefix: &str) -> anyhow::Result<BTreeSet<Site>> {
    let others = named_addresses()?.into_iter().filter(|(name, _)| !name.starts_with(prefix));
    Ok(others.map(|(_, site)| site).collect())
}

fn named_addresses() -> anyhow::Result<Vec<(String, Site)>> {
    let mut found = Vec::new();
    for interface in getifaddrs().context("list the machine's addresses")? {
        let (Some(address), Some(mask)) = (interface.address, interface.netmask) else { continue };
        let pair = (address.as_sockaddr_in(), mask.as_sockaddr_in());
        let pair6 = (address.as_sockaddr_in6(), mask.as_sockaddr_in6());
        let site = match (pair, pair6) {
            ((Some(address), Some(mask)), _) => {
                let length = u32::from(mask.ip()).leading_ones();
                Site { address: IpAddr::V4(address.ip()), length: u8::try_from(length)? }
            }
            (_, (Some(address), Some(mask))) => {
                let length = u128::from(mask.ip()).leading_ones();
                Site { address: IpAddr::V6(address.ip()), length: u8::try_from(length)? }
            }
            _ => continue,
        };
        found.push((interface.interface_name, site));
    }
    Ok(found)
}

/// The whole table, to be read by `nft -f`.
#[must_use]
pub fn ruleset(
    prefix: &BridgePrefix,
    pools: Pools,
    sites: &BTreeSet<Site>,
    group: Option<(&MeshSide, &Routes)>,
) -> String {
    let (table, bridges) = (table(prefix), prefix.as_str());
    let Group { sets, chains, from, to, nat } =
        group.map(|(mesh, routes)| Group::of(prefix, mesh, routes)).unwrap_or_default();
    let (pool4, pool6) = (pools.range4(), pools.range6());
    let (site4, site6) = site_sets(sites);
    format!(
        "table inet {table}
delete table inet {table}
table inet {table} {{
  set private4 {{ type ipv4_addr; flags interval; elements = {{ {PRIVATE4} }} }}
  set special6 {{ type ipv6_addr; flags interval; elements = {{ {SPECIAL6} }} }}
  # Networks this host is attached to, even where their addresses are public.
  set site4 {{ type ipv4_addr; flags interval; auto-merge; {site4} }}
  set site6 {{ type ipv6_addr; flags interval; auto-merge; {site6} }}
  # Addresses of leases that may reach the public internet, too.
{sets}  chain from_job {{
    # Neighbour discovery is how IPv6 finds its gateway; nothing else reaches the host.
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} ip6 hoplimit 255 accept
    counter drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname \"{bridges}*\" jump from_job
  }}
{chains}  chain egress_public {{
{from}    # Bridges of jobs that reach nothing but their group.
    iifname \"{bridges}-*\" counter drop
    ct state established,related accept
    oifname \"{bridges}*\" counter drop
    ip saddr != {pool4} counter drop
    ip6 saddr != {pool6} ip6 saddr != @open6 counter drop
    ip daddr @private4 counter drop
    ip daddr @site4 counter drop
    ip6 daddr != 2000::/3 counter drop
    ip6 daddr @special6 counter drop
    ip6 daddr @site6 counter drop
    meta nfproto {{ ipv4, ipv6 }} accept
    drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname \"{bridges}*\" goto egress_public
{to}    oifname \"{bridges}*\" ct state established,related accept
    oifname \"{bridges}*\" counter drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {pool4} oifname != \"{bridges}*\" masquerade
    ip6 saddr {pool6} oifname != \"{bridges}*\" masquerade
{nat}  }}
}}
"
    )
}

/// The parts of the table that let leases reach their groups.
struct Group {
    sets: String,
    chains: String,
    /// First in what judges packets from jobs.
    from: String,
    /// First in what judges packets to jobs.
    to: String,
    nat: String,
}

impl Default for Group {
    fn default() -> Self {
        let none = String::new;
        let sets = "  set open6 { type ipv6_addr;  }\n".into();
        Self { sets, chains: none(), from: none(), to: none(), nat: none() }
    }
}

impl Group {
    /// Nothing here looks at connections, so what is not allowed any more ends at once. What
    /// a job sends carries its own address and comes from its own bridge.
    fn of(prefix: &BridgePrefix, mesh: &MeshSide, routes: &Routes) -> Self {
        let (bridges, market, interface) = (prefix.as_str(), mesh.prefix, &mesh.interface);
        let (mut sends, mut receives, mut open) = (Vec::new(), Vec::new(), Vec::new());
        for (lease, Route { address, peers, egress }) in &routes.0 {
            let bridge = network::name(prefix, *lease, Some(*egress));
            open.extend((*egress == Egress::Public).then(|| address.to_string()));
            for peer in peers.values() {
                sends.push(format!("\"{bridge}\" . {address} . {peer}"));
                receives.push(format!("\"{bridge}\" . {peer} . {address}"));
            }
        }
        let (sends, receives, open) = (elements(&sends), elements(&receives), elements(&open));
        let kind = "type ifname . ipv6_addr . ipv6_addr;";
        Self {
            sets: format!(
                "  set open6 {{ type ipv6_addr; {open} }}
  # Bridge, sender and receiver.
  set sends {{ {kind} {sends} }}
  set receives {{ {kind} {receives} }}
"
            ),
            chains: format!(
                "  chain to_group {{
    oifname . ip6 saddr . ip6 daddr @receives accept
    counter drop
  }}
  chain from_group {{
    iifname . ip6 saddr . ip6 daddr != @sends counter drop
    oifname \"{interface}\" accept
    goto to_group
  }}
"
            ),
            from: format!("    ip6 daddr {market} goto from_group\n"),
            to: format!(
                "    iifname \"{interface}\" oifname \"{bridges}*\" goto to_group
    ip6 saddr {market} oifname \"{bridges}*\" counter drop
"
            ),
            nat: format!("    ip6 saddr @open6 ip6 daddr != {market} oifname != \"{bridges}*\" masquerade\n"),
        }
    }
}

fn site_sets(sites: &BTreeSet<Site>) -> (String, String) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for site in sites {
        match site.address {
            IpAddr::V4(address) => v4.push(network4(address, site.length)),
            IpAddr::V6(address) => v6.push(network6(address, site.length)),
        }
    }
    (elements(&v4), elements(&v6))
}

fn elements(networks: &[String]) -> String {
    let mut text = String::new();
    if !networks.is_empty() {
        let _ = write!(text, "elements = {{ {} }}", networks.join(", "));
    }
    text
}

/// A network; a prefix shorter than any real site's would cut jobs off from the
/// internet, so then only the address itself counts.
fn network4(address: Ipv4Addr, length: u8) -> String {
    let length = if (8..=32).contains(&length) { length } else { 32 };
    let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
    format!("{}/{length}", Ipv4Addr::from(u32::from(address) & mask))
}

fn network6(address: Ipv6Addr, length: u8) -> String {
    let length = if (16..=128).contains(&length) { length } else { 128 };
    let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
    format!("{}/{length}", Ipv6Addr::from(u128::from(address) & mask))
}

/// Another engine on this machine may drop every packet that is not its own.
/// Its chain for users is the place to say that ours are in order; our own table
/// has judged them. Where there is no such chain, there is nothing to say.
async fn pass_other_engines(prefix: &BridgePrefix, mesh: Option<&MeshSide>) {
    let bridges = format!("{}+", prefix.as_str());
    let rule = |words: &str| ["DOCKER-USER"].into_iter().chain(words.split(' ')).map(str::to_owned).collect();
    let mut rules: Vec<Vec<String>> = vec![
        rule(&format!("-i {bridges} -j ACCEPT")),
        rule(&format!("-o {bridges} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT")),
    ];
    rules.extend(mesh.map(|mesh| rule(&format!("-i {} -o {bridges} -j ACCEPT", mesh.interface))));
    for program in ["iptables", "ip6tables"] {
        if command::run(program, &["-w", "-S", "DOCKER-USER"]).await.is_err() {
            continue;
        }
        for rule in &rules {
            let rule: Vec<&str> = rule.iter().map(String::as_str).collect();
            let present = command::run(program, &[&["-w", "-C"], rule.as_slice()].concat()).await.is_ok();
            if !present
                && let Err(error) = command::run(program, &[&["-w", "-I"], rule.as_slice()].concat()).await
            {
                tracing::warn!(%error, "another engine's rules may cut jobs off from the network");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nave_domain::{JobId, LeaseId, mesh::Prefix};
    use uuid::Uuid;

    use super::*;

    fn site(address: &str, length: u8) -> Site {
        Site { address: address.parse().expect("an address"), length }
    }

    #[test]
    fn networks_of_the_host_are_closed_even_when_they_are_public() {
        let sites = BTreeSet::from([site("203.0.113.9", 28), site("2001:db8::5", 64)]);
        let text = ruleset(&BridgePrefix::default(), Pools::default(), &sites, None);
        assert!(text.contains("elements = { 203.0.113.0/28 }"), "{text}");
        assert!(text.contains("elements = { 2001:db8::/64 }"), "{text}");
    }

    #[test]
    fn a_host_without_addresses_still_gets_a_valid_table() {
        let text = ruleset(&BridgePrefix::default(), Pools::default(), &BTreeSet::new(), None);
        assert!(text.contains("auto-merge;  }"), "{text}");
        assert!(text.starts_with("table inet nave_nvj\ndelete table inet nave_nvj\n"));
    }

    #[test]
    fn a_lease_of_a_group_sends_from_its_own_bridge_and_address_only() {
        let mesh =
            MeshSide { prefix: Prefix::of_market(&[7; 32]), interface: "nave0".parse().expect("a name") };
        let lease = |n| LeaseId(Uuid::from_u128(n));
        let [own, peer] = [1, 2].map(|n| mesh.prefix.lease(lease(n)));
        let route =
            Route { address: own, peers: [(JobId(Uuid::from_u128(2)), peer)].into(), egress: Egress::None };
        let routes = Routes([(lease(1), route)].into());
        let text =
            ruleset(&BridgePrefix::default(), Pools::default(), &BTreeSet::new(), Some((&mesh, &routes)));
        assert!(text.contains(&format!("elements = {{ \"nvj-0000000001\" . {own} . {peer} }}")), "{text}");
        assert!(text.contains(&format!("elements = {{ \"nvj-0000000001\" . {peer} . {own} }}")), "{text}");
        assert!(text.contains("set open6 { type ipv6_addr;  }"), "it has no public egress: {text}");
    }

    #[test]
    fn a_default_route_on_an_interface_does_not_close_the_internet() {
        assert_eq!(network4(Ipv4Addr::new(203, 0, 113, 9), 0), "203.0.113.9/32");
        assert_eq!(network6(Ipv6Addr::LOCALHOST, 0), "::1/128");
    }

    #[test]
    fn this_machine_knows_its_loopback() {
        let all = addresses().expect("addresses");
        assert!(all.iter().any(|site| site.address == IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
