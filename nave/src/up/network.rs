//! The machine's part of a network of local hosts: a bridge on which every host has one
//! link, as if it were a machine of its own. Where the machine itself is the only host there is none.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
};

use anyhow::Context as _;
use nave_mesh::{Name, Namespace, clean_up};
use nix::ifaddrs::getifaddrs;

use super::{program, slot::Slot};

/// Most local hosts of a market.
pub const HOSTS_MAX: u8 = 32;
/// Most machines that the local cloud has.
pub const RENTED_MAX: u8 = 8;
/// What those are numbered with, so that none is ever taken for a local host.
pub const RENTED: RangeInclusive<u8> = HOSTS_MAX + 1..=HOSTS_MAX + RENTED_MAX;
/// IPv4 ranges in which the machine's neighbours are; hosts on the bridge get no way there.
const PRIVATE4: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, \
                        192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3";

/// What a market with this many local hosts needs of the machine's network.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    pub slot: Slot,
    pub hosts: u8,
    /// Whether hosts have namespaces of their own, on a bridge.
    pub is_divided: bool,
}

impl Network {
    /// Where the hub's end of the mesh is.
    pub fn hub_namespace(self) -> String {
        format!("nave-{}-hub", self.slot.names())
    }

    /// The hub's WireGuard interface.
    pub fn hub_interface(self) -> String {
        format!("{}_hub", self.slot.names())
    }

    /// A host's WireGuard interface; hosts count from 1.
    pub fn host_interface(self, host: u8) -> String {
        format!("{}_h{host}", self.slot.names())
    }

    /// A host's namespace; none where the only host of a market is the machine itself.
    pub fn host_namespace(self, host: u8) -> Option<String> {
        self.is_divided.then(|| self.namespace(host))
    }

    /// Where hosts of this market find its hub, the likeliest first. A host may have been
    /// the only one before, or one of several.
    pub fn endpoints(self) -> Vec<String> {
        let port = self.slot.port();
        let bridge = format!("{}:{port}", self.slot.underlay(1));
        let loopback = format!("127.0.0.1:{port}");
        if self.is_divided { vec![bridge, loopback] } else { vec![loopback, bridge] }
    }

    /// A host's address on the bridge.
    pub fn address(self, host: u8) -> Ipv4Addr {
        self.slot.underlay(host + 1)
    }

    fn namespace(self, host: u8) -> String {
        format!("nave-{}-{host}", self.slot.names())
    }

    fn bridge(self) -> String {
        format!("{}_br", self.slot.names())
    }

    fn table(self) -> String {
        format!("nave_{}", self.slot.names())
    }

    /// The machine's end of a host's link.
    fn link(self, host: u8) -> String {
        format!("{}_u{host}", self.slot.names())
    }

    /// Makes what is missing of it; what is there, and who uses it, stays.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ensure(self) -> anyhow::Result<()> {
        if !self.is_divided {
            return Ok(());
        }
        let outside = has_default_route();
        self.ensure_bridge()?;
        program::run_with("nft", &["-f", "-"], &self.rules(outside)?)?;
        if outside {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("let hosts reach image registries")?;
        }
        (1..=self.hosts).try_for_each(|host| self.ensure_host(host))
    }

    /// Makes what is missing of one host on the bridge.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ensure_host(self, host: u8) -> anyhow::Result<()> {
        self.connect(host, has_default_route())
            .with_context(|| format!("connect host {host} of this machine"))
    }

    fn ensure_bridge(self) -> anyhow::Result<()> {
        let bridge = self.bridge();
        if !exists(&bridge) {
            ip(&["link", "add", "name", &bridge, "type", "bridge"])?;
        }
        // Only what the rules below name shall reach the machine.
        without_ipv6(&bridge)?;
        ip(&["address", "replace", &format!("{}/24", self.slot.underlay(1)), "dev", &bridge])?;
        ip(&["link", "set", "dev", &bridge, "up"])
    }

    fn connect(self, host: u8, outside: bool) -> anyhow::Result<()> {
        let namespace = Namespace::ensure(&self.namespace(host))?;
        let (link, inside) = (self.link(host), namespace.name());
        if !exists(&link) {
            ip(&["link", "add", "name", &link, "type", "veth", "peer", "name", "eth0", "netns", inside])?;
        }
        ip(&["link", "set", "dev", &link, "master", &self.bridge()])?;
        without_ipv6(&link)?;
        // Hosts reach the machine and not each other, as if they were in different places.
        ip(&["link", "set", "dev", &link, "type", "bridge_slave", "isolated", "on"])?;
        ip(&["link", "set", "dev", &link, "up"])?;
        let address = format!("{}/24", self.address(host));
        ip(&["-n", inside, "address", "replace", &address, "dev", "eth0"])?;
        namespace.enter(|| without_ipv6("eth0"))?.context("keep IPv6 off the link")?;
        ip(&["-n", inside, "link", "set", "dev", "eth0", "up"])?;
        if outside {
            let gateway = self.slot.underlay(1).to_string();
            ip(&["-n", inside, "route", "replace", "default", "via", &gateway])?;
        }
        Ok(())
    }

    /// On the bridge, hosts reach the hub. Where the machine itself has a way out they also
    /// reach public addresses, to pull images, and the machine's resolvers.
    fn rules(self, outside: bool) -> anyhow::Result<String> {
        let (table, bridge) = (self.table(), self.bridge());
        let (port, hosts) = (self.slot.port(), format!("{}/24", self.slot.underlay(0)));
        let resolvers = set("resolvers", "", &if outside { resolvers() } else { Vec::new() });
        let sites = set("sites", "flags interval; auto-merge; ", &sites(&bridge)?);
        let (out, masquerade) = if outside {
            (
                "ip daddr @resolvers meta l4proto { tcp, udp } th dport 53 accept
    ip daddr @private counter drop
    ip daddr @sites counter drop
    meta nfproto ipv4 accept
    ",
                format!("    ip saddr {hosts} oifname != \"{bridge}\" masquerade\n"),
            )
        } else {
            ("", String::new())
        };
        Ok(format!(
            "table inet {table}
delete table inet {table}
table inet {table} {{
  set private {{ type ipv4_addr; flags interval; elements = {{ {PRIVATE4} }} }}
  {resolvers}
  {sites}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname \"{bridge}\" goto from_host
  }}
  chain from_host {{
    ct state established,related accept
    udp dport {port} accept
    icmp type echo-request accept
    counter drop
  }}
  chain to_public {{
    {out}counter drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    ct state established,related accept
    iifname \"{bridge}\" goto to_public
    oifname \"{bridge}\" counter drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
{masquerade}  }}
}}
"
        ))
    }

    /// Takes away what any number of hosts, and the hub, may have made. Nothing being there is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(slot: Slot) -> anyhow::Result<()> {
        let of_one = Self { slot, hosts: 1, is_divided: false };
        let hub: Name = of_one.hub_interface().parse()?;
        clean_up(&hub, Some(&Namespace::named(&of_one.hub_namespace())?))?;
        (1..=*RENTED.end()).try_for_each(|host| of_one.remove_host(host))?;
        clean_up(&of_one.host_interface(1).parse()?, None)?;
        let (bridge, table) = (of_one.bridge(), of_one.table());
        if exists(&bridge) {
            ip(&["link", "delete", "dev", &bridge])?;
        }
        program::run_with("nft", &["-f", "-"], &format!("table inet {table}\ndelete table inet {table}\n"))?;
        Ok(())
    }

    /// Takes away what one host on the bridge may have made. Nothing being there is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_host(self, host: u8) -> anyhow::Result<()> {
        let namespace = Namespace::named(&self.namespace(host))?;
        let interface: Name = self.host_interface(host).parse()?;
        // The namespace's end goes with it, and it with the namespace: it may just be going.
        let link = self.link(host);
        if exists(&link)
            && let Err(error) = ip(&["link", "delete", "dev", &link])
            && exists(&link)
        {
            return Err(error);
        }
        if namespace.path().exists() { Ok(clean_up(&interface, Some(&namespace))?) } else { Ok(()) }
    }
}

fn ip(args: &[&str]) -> anyhow::Result<()> {
    program::run("ip", args).map(drop)
}

/// Keeps an interface silent but for what is ours: no solicitations of routers, no names of
/// neighbours. A kernel without IPv6 has no such switch.
fn without_ipv6(interface: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1")
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn exists(interface: &str) -> bool {
    fs::exists(format!("/sys/class/net/{interface}")).unwrap_or(false)
}

fn has_default_route() -> bool {
    program::run("ip", &["-4", "route", "show", "default"]).is_ok_and(|routes| !routes.trim().is_empty())
}

/// The machine's resolvers, as far as they can be reached from a host on the bridge.
fn resolvers() -> Vec<String> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let named = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver "));
    let named = named.filter_map(|address| address.trim().parse::<Ipv4Addr>().ok());
    named.filter(|address| !address.is_loopback()).map(|address| address.to_string()).collect()
}

/// Networks that the machine is attached to, even where their addresses are public.
fn sites(bridge: &str) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for interface in getifaddrs().context("list the machine's addresses")? {
        let pair = interface
            .address
            .as_ref()
            .and_then(|address| address.as_sockaddr_in())
            .zip(interface.netmask.as_ref().and_then(|mask| mask.as_sockaddr_in()));
        let Some((address, mask)) = pair.filter(|_| interface.interface_name != bridge) else { continue };
        let length = u32::from(mask.ip()).leading_ones();
        // A mask wider than any real network's would close the internet.
        let (ip, length) = if length < 8 {
            (address.ip(), 32)
        } else {
            (Ipv4Addr::from(u32::from(address.ip()) & u32::from(mask.ip())), length)
        };
        if !IpAddr::V4(ip).is_loopback() {
            found.push(format!("{ip}/{length}"));
        }
    }
    Ok(found)
}

fn set(name: &str, flags: &str, elements: &[String]) -> String {
    let listed = if elements.is_empty() {
        String::new()
    } else {
        format!("elements = {{ {} }} ", elements.join(", "))
    };
    format!("set {name} {{ type ipv4_addr; {flags}{listed}}}")
}
