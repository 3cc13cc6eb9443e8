//! Addresses of the mesh and the public keys of its members.
//!
//! Everyone derives the same addresses from the market's key and from ids, so
//! no address is ever handed out, stored twice or in need of an agreement.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::{HostId, LeaseId};

/// Length of a market's prefix, in bits.
pub const PREFIX_BITS: u8 = 48;

/// Largest packet a mesh interface carries: what WireGuard leaves of an Ethernet
/// frame over IPv6.
pub const MTU_MAX: u16 = 1420;
/// Smallest packet every IPv6 link carries, by RFC 8200.
pub const MTU_MIN: u16 = 1280;

/// The addresses of one market: a unique local /48 of RFC 4193.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix([u8; 6]);

/// Whom an address belongs to; the group after the prefix says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Hub = 0,
    Host = 1,
    Lease = 2,
}

impl Prefix {
    /// The prefix of the market with this Ed25519 public key: `fd` and the first 40
    /// bits of the key's SHA-256, in place of the random bits of RFC 4193.
    #[must_use]
    pub fn of_market(market_key: &[u8; 32]) -> Self {
        let mut prefix = [0xfd; 6];
        prefix[1..].copy_from_slice(&Sha256::digest(market_key)[..5]);
        Self(prefix)
    }

    /// The address of the market's hub, `prefix::1`.
    #[must_use]
    pub fn hub(self) -> Ipv6Addr {
        self.address(Kind::Hub, 1_u64.to_be_bytes())
    }

    /// The address of a host: the last 64 bits of its id, in the network of hosts.
    #[must_use]
    pub fn host(self, host: HostId) -> Ipv6Addr {
        self.address(Kind::Host, tail(host.0))
    }

    /// The address of a lease's container: the last 64 bits of its id, in the network of leases.
    #[must_use]
    pub fn lease(self, lease: LeaseId) -> Ipv6Addr {
        self.address(Kind::Lease, tail(lease.0))
    }

    /// The address that all of the prefix begins with, as in `fd00::/48`.
    #[must_use]
    pub fn network(self) -> Ipv6Addr {
        self.address(Kind::Hub, [0; 8])
    }

    /// Whether an address is this market's.
    #[must_use]
    pub fn contains(self, address: Ipv6Addr) -> bool {
        address.octets().starts_with(&self.0)
    }

    /// Whether an address is one that a host of this market can have.
    #[must_use]
    pub fn is_host(self, address: Ipv6Addr) -> bool {
        self.contains(address) && address.segments()[3] == Kind::Host as u16
    }

    /// Whether an address is one that a lease of this market can have.
    #[must_use]
    pub fn is_lease(self, address: Ipv6Addr) -> bool {
        self.contains(address) && address.segments()[3] == Kind::Lease as u16
    }

    fn address(self, kind: Kind, tail: [u8; 8]) -> Ipv6Addr {
        let mut octets = [0; 16];
        octets[..6].copy_from_slice(&self.0);
        octets[7] = kind as u8;
        octets[8..].copy_from_slice(&tail);
        Ipv6Addr::from(octets)
    }
}

fn tail(id: Uuid) -> [u8; 8] {
    id.as_u64_pair().1.to_be_bytes()
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{PREFIX_BITS}", self.network())
    }
}

/// Text that is not the prefix of a market.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a unique local /{PREFIX_BITS}, such as fd12:3456:789a::/{PREFIX_BITS}")]
pub struct BadPrefix;

impl FromStr for Prefix {
    type Err = BadPrefix;

    fn from_str(text: &str) -> Result<Self, BadPrefix> {
        let (network, bits) = text.split_once('/').ok_or(BadPrefix)?;
        let network: Ipv6Addr = network.parse().map_err(|_| BadPrefix)?;
        let octets = network.octets();
        let rest_is_zero = octets[6..].iter().all(|octet| *octet == 0);
        if bits != "48" || octets[0] != 0xfd || !rest_is_zero {
            return Err(BadPrefix);
        }
        let mut prefix = [0; 6];
        prefix.copy_from_slice(&octets[..6]);
        Ok(Self(prefix))
    }
}

/// Text that is not a WireGuard public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard public key: 32 bytes in base64, not all of them zero, as X25519 writes them")]
pub struct BadMeshKey;

/// The WireGuard public key of a member of the mesh, written in base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String))]
pub struct MeshKey([u8; 32]);

impl MeshKey {
    /// The key with these bytes.
    ///
    /// # Errors
    /// [`BadMeshKey`] when all are zero, which WireGuard takes for no key at all, and when
    /// other bytes mean the same key: who tells keys apart by bytes would see two of them, and
    /// who computes with them one.
    pub fn new(bytes: [u8; 32]) -> Result<Self, BadMeshKey> {
        if bytes == [0; 32] || !is_reduced(&bytes) { Err(BadMeshKey) } else { Ok(Self(bytes)) }
    }

    /// The bytes of the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Whether these are the bytes of a number below 2^255 - 19, the lowest first.
fn is_reduced(bytes: &[u8; 32]) -> bool {
    let [low, middle @ .., high] = bytes;
    *high < 0x7f || (*high == 0x7f && (*low < 0xed || middle.iter().any(|byte| *byte != 0xff)))
}

impl fmt::Display for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshKey({self})")
    }
}

impl FromStr for MeshKey {
    type Err = BadMeshKey;

    fn from_str(text: &str) -> Result<Self, BadMeshKey> {
        // Longer texts are no key and not worth the memory.
        let bytes = (text.len() == 44).then(|| STANDARD.decode(text).ok()).flatten().ok_or(BadMeshKey)?;
        Self::new(bytes.try_into().map_err(|_| BadMeshKey)?)
    }
}

impl Serialize for MeshKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MeshKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids() -> impl Strategy<Value = Uuid> {
        any::<u128>().prop_map(|bits| uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid())
    }

    proptest! {
        #[test]
        fn every_address_is_in_the_markets_own_unique_local_prefix(
            key: [u8; 32], host in ids(), lease in ids()
        ) {
            let prefix = Prefix::of_market(&key);
            for address in [prefix.hub(), prefix.host(HostId(host)), prefix.lease(LeaseId(lease))] {
                prop_assert!(prefix.contains(address));
                prop_assert_eq!(address.octets()[0], 0xfd);
            }
        }

        #[test]
        fn hub_hosts_and_leases_never_share_an_address(key: [u8; 32], id in ids()) {
            let prefix = Prefix::of_market(&key);
            let (hub, host, lease) = (prefix.hub(), prefix.host(HostId(id)), prefix.lease(LeaseId(id)));
            prop_assert!(hub != host && host != lease && lease != hub);
            prop_assert!(prefix.is_lease(lease) && !prefix.is_lease(host) && !prefix.is_lease(hub));
        }

        #[test]
        fn hosts_whose_ids_end_differently_have_different_addresses(key: [u8; 32], a in ids(), b in ids()) {
            let prefix = Prefix::of_market(&key);
            let same = prefix.host(HostId(a)) == prefix.host(HostId(b));
            prop_assert_eq!(same, a.as_bytes()[8..] == b.as_bytes()[8..]);
        }

        #[test]
        fn two_markets_share_no_address(a: [u8; 32], b: [u8; 32], id in ids()) {
            let (a, b) = (Prefix::of_market(&a), Prefix::of_market(&b));
            prop_assume!(a != b);
            prop_assert!(!a.contains(b.host(HostId(id))));
        }

        #[test]
        fn prefixes_and_keys_are_read_as_they_are_written(key: [u8; 32]) {
            let prefix = Prefix::of_market(&key);
            prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
            let Ok(key) = MeshKey::new(key) else { return Ok(()) };
            prop_assert_eq!(key.to_string().parse(), Ok(key));
        }
    }

    #[test]
    fn addresses_are_these_for_ever() {
        let prefix = Prefix::of_market(&[7; 32]);
        let id = Uuid::from_u128(0x0192_0000_0000_7000_8123_4567_89ab_cdef);
        assert_eq!(prefix.to_string(), "fd4b:b06f:8e4e::/48");
        assert_eq!(prefix.hub().to_string(), "fd4b:b06f:8e4e::1");
        assert_eq!(prefix.host(HostId(id)).to_string(), "fd4b:b06f:8e4e:1:8123:4567:89ab:cdef");
        assert_eq!(prefix.lease(LeaseId(id)).to_string(), "fd4b:b06f:8e4e:2:8123:4567:89ab:cdef");
    }

    #[test]
    fn other_peoples_prefixes_are_refused() {
        for text in ["fd00::", "fd00::/64", "fc00::/48", "2001:db8::/48", "fd00:0:0:1::/48", ""] {
            assert_eq!(text.parse::<Prefix>(), Err(BadPrefix), "{text}");
        }
    }

    #[test]
    fn text_that_is_no_key_is_refused() {
        let zero = STANDARD.encode([0_u8; 32]);
        let short = STANDARD.encode([1_u8; 31]);
        let long = STANDARD.encode([1_u8; 33]);
        let spaced = format!("{} ", STANDARD.encode([1_u8; 32]));
        for text in ["", &zero, &short, &long, &spaced] {
            assert_eq!(text.parse::<MeshKey>(), Err(BadMeshKey), "{text}");
        }
    }

    #[test]
    fn a_key_has_no_twin_that_means_the_same() {
        let near = |low, high| {
            let mut bytes = [0xff; 32];
            (bytes[0], bytes[31]) = (low, high);
            bytes
        };
        let mut flipped = [9; 32];
        flipped[31] |= 0x80;
        for bytes in [flipped, near(0xed, 0x7f), near(0xff, 0x7f), near(0, 0x80), near(0xff, 0xff)] {
            assert_eq!(MeshKey::new(bytes), Err(BadMeshKey), "{bytes:?}");
        }
        for bytes in [[9; 32], near(0xec, 0x7f), near(0xff, 0x7e)] {
            assert!(MeshKey::new(bytes).is_ok(), "{bytes:?}");
        }
    }
}
