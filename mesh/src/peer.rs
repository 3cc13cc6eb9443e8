use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::SystemTime,
};

use nave_domain::mesh::MeshKey;
use wireguard_control::{AllowedIp, Key, PeerConfigBuilder, PeerInfo};

use crate::Error;

/// A member of the mesh as an interface should know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its public key.
    pub key: MeshKey,
    /// The addresses it may speak from, and that are reached through it.
    pub addresses: BTreeSet<Ipv6Addr>,
    /// Where it is found before it has spoken. A peer that speaks from elsewhere is
    /// answered there, and a restarted tunnel remembers it.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between packets that keep NATs open; none where the other side does it.
    pub keepalive_s: Option<u16>,
}

/// A peer as the interface sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its public key.
    pub key: MeshKey,
    /// Its addresses.
    pub addresses: BTreeSet<Ipv6Addr>,
    /// Where it was last heard, or is expected.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between packets that keep NATs open.
    pub keepalive_s: Option<u16>,
    /// When it last proved its key, on this machine's clock.
    pub handshake: Option<SystemTime>,
    /// Bytes received from it since it was added.
    pub rx_bytes: u64,
    /// Bytes sent to it since it was added.
    pub tx_bytes: u64,
}

impl Seen {
    /// What a device says; a peer without a key is none.
    pub(crate) fn of(info: PeerInfo) -> Option<Self> {
        let addresses = info.config.allowed_ips.iter().filter_map(|allowed| match allowed.address {
            IpAddr::V6(address) if allowed.cidr == 128 => Some(address),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        });
        Some(Self {
            key: MeshKey::new(info.config.public_key.0).ok()?,
            addresses: addresses.collect(),
            endpoint: info.config.endpoint,
            keepalive_s: info.config.persistent_keepalive_interval.filter(|seconds| *seconds > 0),
            handshake: info.stats.last_handshake_time,
            rx_bytes: info.stats.rx_bytes,
            tx_bytes: info.stats.tx_bytes,
        })
    }
}

/// Peers by their keys.
pub(crate) type Peers = BTreeMap<MeshKey, Peer>;

/// The peers by key, when no two of them share a key or an address.
pub(crate) fn checked(peers: &[Peer], own_key: MeshKey, own_address: Ipv6Addr) -> Result<Peers, Error> {
    let mut addresses = BTreeSet::from([own_address]);
    let mut checked = Peers::new();
    for peer in peers {
        if peer.key == own_key {
            return Err(Error::OwnKey(peer.key));
        }
        if let Some(address) = peer.addresses.iter().find(|address| !addresses.insert(**address)) {
            return Err(Error::DuplicateAddress(*address));
        }
        if checked.insert(peer.key, peer.clone()).is_some() {
            return Err(Error::DuplicateKey(peer.key));
        }
    }
    Ok(checked)
}

/// What has to change on a device.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub remove: Vec<MeshKey>,
    pub set: Vec<Peer>,
}

impl Change {
    /// From what a device has and what was asked of it before to what is asked now.
    /// A peer that was found elsewhere than at its endpoint stays there until another
    /// endpoint is asked for.
    pub fn between(seen: &[Seen], before: &Peers, now: &Peers) -> Self {
        let seen: BTreeMap<MeshKey, &Seen> = seen.iter().map(|peer| (peer.key, peer)).collect();
        let gone = seen.keys().filter(|key| !now.contains_key(key));
        let differs = |peer: &&Peer| {
            let moved = before.get(&peer.key).is_none_or(|before| before.endpoint != peer.endpoint);
            seen.get(&peer.key).is_none_or(|seen| {
                seen.addresses != peer.addresses
                    || seen.keepalive_s != peer.keepalive_s
                    || (moved && peer.endpoint.is_some() && seen.endpoint != peer.endpoint)
            })
        };
        Self { remove: gone.copied().collect(), set: now.values().filter(differs).cloned().collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty()
    }
}

/// A peer in the words of a device, replacing whatever it knew about it.
pub(crate) fn config(peer: &Peer, endpoint: Option<SocketAddr>) -> PeerConfigBuilder {
    let allowed: Vec<AllowedIp> =
        peer.addresses.iter().map(|address| AllowedIp { address: IpAddr::V6(*address), cidr: 128 }).collect();
    let config = PeerConfigBuilder::new(&Key(*peer.key.as_bytes()))
        .set_persistent_keepalive_interval(peer.keepalive_s.unwrap_or(0))
        .replace_allowed_ips()
        .add_allowed_ips(&allowed);
    match endpoint {
        Some(endpoint) => config.set_endpoint(endpoint),
        None => config,
    }
}

/// The order to forget a peer.
pub(crate) fn removal(key: MeshKey) -> PeerConfigBuilder {
    PeerConfigBuilder::new(&Key(*key.as_bytes())).remove()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> MeshKey {
        MeshKey::new([byte; 32]).expect("a key")
    }

    fn address(last: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, last)
    }

    fn peer(byte: u8) -> Peer {
        let addresses = BTreeSet::from([address(byte.into())]);
        Peer { key: key(byte), addresses, endpoint: None, keepalive_s: None }
    }

    fn seen(peer: &Peer) -> Seen {
        Seen {
            key: peer.key,
            addresses: peer.addresses.clone(),
            endpoint: Some(([192, 0, 2, 1], 7).into()),
            keepalive_s: peer.keepalive_s,
            handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
        }
    }

    fn peers(all: &[Peer]) -> Peers {
        checked(all, key(99), address(99)).expect("peers")
    }

    #[test]
    fn one_key_or_one_address_for_two_members_is_refused() {
        let twice = [peer(1), Peer { addresses: BTreeSet::from([address(2)]), ..peer(1) }];
        assert!(
            matches!(checked(&twice, key(9), address(9)), Err(Error::DuplicateKey(found)) if found == key(1))
        );
        let shared = [peer(1), Peer { key: key(2), ..peer(1) }];
        assert!(matches!(checked(&shared, key(9), address(9)), Err(Error::DuplicateAddress(_))));
        assert!(matches!(checked(&[peer(1)], key(1), address(9)), Err(Error::OwnKey(_))));
        assert!(matches!(checked(&[peer(1)], key(9), address(1)), Err(Error::DuplicateAddress(_))));
    }

    #[test]
    fn unchanged_peers_are_left_alone() {
        let all = peers(&[peer(1), peer(2)]);
        let change = Change::between(&[seen(&peer(1)), seen(&peer(2))], &all, &all);
        assert!(change.is_empty(), "{change:?}");
    }

    #[test]
    fn a_peer_that_is_no_longer_asked_for_is_removed() {
        let change = Change::between(&[seen(&peer(1)), seen(&peer(2))], &Peers::new(), &peers(&[peer(1)]));
        assert_eq!(change, Change { remove: vec![key(2)], set: vec![] });
    }

    #[test]
    fn a_peer_with_other_addresses_is_set_again_and_no_other() {
        let wider = Peer { addresses: BTreeSet::from([address(1), address(7)]), ..peer(1) };
        let now = peers(&[wider.clone(), peer(2)]);
        let change = Change::between(&[seen(&peer(1)), seen(&peer(2))], &peers(&[peer(1), peer(2)]), &now);
        assert_eq!(change, Change { remove: vec![], set: vec![wider] });
    }

    #[test]
    fn a_peer_that_roamed_is_not_called_back_until_its_endpoint_is_asked_for_anew() {
        let at = |port| Peer { endpoint: Some(([192, 0, 2, 9], port).into()), ..peer(1) };
        let same = Change::between(&[seen(&peer(1))], &peers(&[at(5)]), &peers(&[at(5)]));
        assert!(same.is_empty(), "{same:?}");
        let moved = Change::between(&[seen(&peer(1))], &peers(&[at(5)]), &peers(&[at(6)]));
        assert_eq!(moved.set, [at(6)]);
    }
}
