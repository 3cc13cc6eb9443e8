//! What may pass an interface: one nftables table for each, replaced as a whole.

use std::{collections::BTreeSet, fs, net::Ipv6Addr};

use crate::{Error, Name, Namespace, namespace::within, program};

/// Leave to send packets from one address to another, in this direction only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// The sender's address.
    pub from: Ipv6Addr,
    /// The receiver's address.
    pub to: Ipv6Addr,
}

/// Leave to connect to one TCP port of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Door {
    /// Who may.
    pub from: Ipv6Addr,
    /// The port.
    pub port: u16,
}

/// Of a hub: nothing passes from one host to another except between these pairs. The
/// namespace forwards only while there are any.
///
/// # Errors
/// When the kernel refuses; then nothing passes that did not pass before.
pub fn hub(name: &Name, namespace: &Namespace, pairs: &[Pair]) -> Result<(), Error> {
    let inside = Some(namespace);
    if pairs.is_empty() {
        forward(namespace, false)?;
        return load(&hub_table(name, pairs), inside);
    }
    load(&hub_table(name, pairs), inside)?;
    forward(namespace, true)
}

/// Of a host: the mesh reaches nothing on it but answers, echoes and these doors, and passes
/// through it only between these pairs, of which one is an address of a lease here.
///
/// # Errors
/// When the kernel refuses; then what was loaded before still holds.
pub fn host(name: &Name, namespace: Option<&Namespace>, pairs: &[Pair], doors: &[Door]) -> Result<(), Error> {
    load(&host_table(name, pairs, doors), namespace)
}

/// Takes the table of an interface away, where it is loaded.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(name: &Name, namespace: Option<&Namespace>) -> Result<(), Error> {
    let table = table(name);
    load(&format!("table inet {table}\ndelete table inet {table}\n"), namespace)
}

fn load(text: &str, namespace: Option<&Namespace>) -> Result<(), Error> {
    within(namespace, || program::run_with("nft", &["-f", "-"], text))??;
    Ok(())
}

fn forward(namespace: &Namespace, on: bool) -> Result<(), Error> {
    let switch = "/proc/sys/net/ipv6/conf/all/forwarding";
    let value = if on { "1" } else { "0" };
    namespace.enter(|| fs::write(switch, value))?.map_err(Error::io(format!("write {value} to {switch}")))
}

fn table(name: &Name) -> String {
    format!("nave_mesh_{name}")
}

/// The empty table first, so that deleting it always works.
fn replaced(name: &Name, chains: &str) -> String {
    let table = table(name);
    format!("table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{chains}}}\n")
}

fn pair_set(pairs: &[Pair]) -> String {
    let mut sorted = pairs.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let elements = elements(sorted.iter().map(|pair| format!("{} . {}", pair.from, pair.to)));
    format!("  set pairs {{ type ipv6_addr . ipv6_addr;{elements} }}\n")
}

fn door_set(doors: &[Door]) -> String {
    let sorted: BTreeSet<&Door> = doors.iter().collect();
    let elements = elements(sorted.into_iter().map(|door| format!("{} . {}", door.from, door.port)));
    format!("  set doors {{ type ipv6_addr . inet_service;{elements} }}\n")
}

fn elements(listed: impl Iterator<Item = String>) -> String {
    let listed: Vec<String> = listed.collect();
    if listed.is_empty() { String::new() } else { format!(" elements = {{ {} }};", listed.join(", ")) }
}

/// The namespace of a hub has no traffic of others to forward, so all else is dropped.
fn hub_table(name: &Name, pairs: &[Pair]) -> String {
    let chains = format!(
        "{}  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname \"{name}\" oifname \"{name}\" ip6 saddr . ip6 daddr @pairs accept
    counter
  }}
",
        pair_set(pairs)
    );
    replaced(name, &chains)
}

/// A host has other traffic, which is not judged here.
fn host_table(name: &Name, pairs: &[Pair], doors: &[Door]) -> String {
    let chains = format!(
        "{}{}  chain input {{
    type filter hook input priority filter; policy accept;
    iifname \"{name}\" goto from_mesh
  }}
  chain from_mesh {{
    ct state established,related accept
    icmpv6 type {{ echo-request, destination-unreachable, packet-too-big, time-exceeded, parameter-problem }} accept
    ip6 saddr . tcp dport @doors accept
    counter drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname \"{name}\" ip6 saddr . ip6 daddr @pairs accept
    iifname \"{name}\" counter drop
    oifname \"{name}\" ip6 saddr . ip6 daddr @pairs accept
    oifname \"{name}\" counter drop
  }}
",
        pair_set(pairs),
        door_set(doors)
    );
    replaced(name, &chains)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(from: u16, to: u16) -> Pair {
        let address = |last| Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, 0, last);
        Pair { from: address(from), to: address(to) }
    }

    #[test]
    fn a_guard_does_not_depend_on_the_order_of_its_pairs() {
        let name: Name = "nave0".parse().expect("a name");
        let text = hub_table(&name, &[pair(2, 1), pair(1, 2), pair(2, 1)]);
        assert_eq!(text, hub_table(&name, &[pair(1, 2), pair(2, 1)]));
        assert!(
            text.contains("elements = { fd00:0:0:2::1 . fd00:0:0:2::2, fd00:0:0:2::2 . fd00:0:0:2::1 };")
        );
    }

    #[test]
    fn a_guard_without_pairs_lets_nothing_through() {
        let name: Name = "nave0".parse().expect("a name");
        assert!(hub_table(&name, &[]).contains("set pairs { type ipv6_addr . ipv6_addr; }"));
        assert!(hub_table(&name, &[]).contains("policy drop"));
    }
}
