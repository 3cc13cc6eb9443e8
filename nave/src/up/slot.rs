//! Slots: markets on one machine share its network, so each takes its own names of
//! interfaces, ranges of addresses, firewall tables and its own UDP port.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::{Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::layout::{Layout, write_whole};

/// A market's share of the machine's network. It is the same for as long as the market's
/// directory is there: hosts remember the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u8);

/// How many markets fit on a machine: 10.150.0.0/16 to 10.213.0.0/16 for jobs,
/// 10.149.0.0/24 to 10.149.63.0/24 for hosts, UDP ports 17460 to 17523 for hubs.
const SLOTS: u8 = 64;
const POOL_FIRST: u8 = 150;
const UNDERLAY: [u8; 2] = [10, 149];
const PORT_FIRST: u16 = 17_460;
/// Cleared when the machine restarts, as networks are.
const CLAIMS: &str = "/run/lock";

impl Slot {
    /// The slot of a market, claimed if it has none yet.
    ///
    /// # Errors
    /// When all are taken, when another market has taken this one's, or claims cannot be written.
    pub fn claim(layout: &Layout) -> anyhow::Result<Self> {
        let claims = Path::new(CLAIMS);
        let kept = fs::read_to_string(layout.slot()).ok();
        let kept = kept.map(|text| text.trim().parse().context("read the market's slot")).transpose()?;
        let free = |slot: u8| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, Self(slot).port())).is_ok();
        let slot = claim(claims, layout.root(), kept, free)?;
        write_whole(&layout.slot(), slot.0.to_string().as_bytes())?;
        Ok(slot)
    }

    /// The slot of a market that has one.
    pub fn of(layout: &Layout) -> Option<Self> {
        held(Path::new(CLAIMS), layout.root()).map(Self)
    }

    /// First letters of the names of jobs' bridges.
    pub fn bridge_prefix(self) -> String {
        format!("nv{}", self.letters())
    }

    /// Second byte of the IPv4 range of jobs, last byte of their IPv6 one.
    pub fn pool(self) -> u8 {
        POOL_FIRST + self.0
    }

    /// First letters of everything else this market makes; no job's bridge begins so.
    pub fn names(self) -> String {
        format!("nw{}", self.letters())
    }

    /// Where the hub listens.
    pub fn port(self) -> u16 {
        PORT_FIRST + u16::from(self.0)
    }

    /// The address in the hosts' /24 that ends in `last`; 1 is the machine itself.
    pub fn underlay(self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(UNDERLAY[0], UNDERLAY[1], self.0, last)
    }

    fn letters(self) -> String {
        let letter = |n: u8| char::from(b'a' + n);
        format!("{}{}", letter(self.0 / 26), letter(self.0 % 26))
    }
}

fn path(claims: &Path, slot: u8) -> PathBuf {
    claims.join(format!("nave-slot-{slot}"))
}

fn owner(claims: &Path, slot: u8) -> Option<String> {
    fs::read_to_string(path(claims, slot)).ok()
}

fn held(claims: &Path, root: &Path) -> Option<u8> {
    (0..SLOTS).find(|slot| owner(claims, *slot).is_some_and(|owner| Path::new(&owner) == root))
}

/// `kept` is the slot that the market had when the machine last ran; `free` says whether
/// somebody else on the machine uses a new one's port.
fn claim(claims: &Path, root: &Path, kept: Option<u8>, free: impl Fn(u8) -> bool) -> anyhow::Result<Slot> {
    if let Some(slot) = held(claims, root) {
        return Ok(Slot(slot));
    }
    let claim = claims.join(format!("nave-claim-{}", std::process::id()));
    fs::write(&claim, root.to_string_lossy().as_bytes())
        .with_context(|| format!("write {}", claim.display()))?;
    let take = |slot: &u8| {
        if owner(claims, *slot).is_some_and(|market| !Path::new(&market).exists()) {
            drop(fs::remove_file(path(claims, *slot)));
        }
        // Fails where there is a claim, and never leaves half of one.
        fs::hard_link(&claim, path(claims, *slot)).is_ok()
    };
    let found = match kept {
        Some(slot) => Some(slot).filter(take),
        // Each market begins elsewhere, so that after a restart of the machine hardly any
        // finds its own slot taken by a new one.
        None => {
            let first = start(root);
            let mut slots = (0..SLOTS).map(|step| (first + step) % SLOTS);
            slots.find(|slot| {
                owner(claims, *slot).is_none_or(|m| !Path::new(&m).exists()) && free(*slot) && take(slot)
            })
        }
    };
    fs::remove_file(&claim)?;
    found.map(Slot).with_context(|| match kept {
        Some(slot) => format!(
            "the market in {} has taken this one's place on the machine's network (slot {slot}); stop and remove that one",
            owner(claims, slot).unwrap_or_default()
        ),
        None => format!("{SLOTS} markets are on this machine already"),
    })
}

fn start(root: &Path) -> u8 {
    let mut hasher = DefaultHasher::new();
    root.hash(&mut hasher);
    u8::try_from(hasher.finish() % u64::from(SLOTS)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn taken(claims: &Path, market: &Path, kept: Option<u8>) -> anyhow::Result<Slot> {
        claim(claims, market, kept, |_| true)
    }

    #[test]
    fn markets_get_different_slots_and_keep_them_until_they_are_gone() {
        let claims = tempfile::tempdir().expect("a directory");
        let claims = claims.path();
        let mut markets: Vec<_> = (0..SLOTS).map(|_| tempfile::tempdir().expect("a market")).collect();
        let slots: Vec<Slot> =
            markets.iter().map(|m| taken(claims, m.path(), None).expect("a slot")).collect();
        assert_eq!(slots.iter().map(|slot| slot.0).collect::<BTreeSet<_>>().len(), markets.len());
        assert_eq!(taken(claims, markets[1].path(), None).expect("the same"), slots[1]);
        let next = tempfile::tempdir().expect("a market");
        assert!(taken(claims, next.path(), None).is_err(), "the machine is full");
        drop(markets.remove(1));
        assert_eq!(taken(claims, next.path(), None).expect("a slot"), slots[1], "a slot is used again");
    }

    #[test]
    fn a_market_comes_back_to_its_slot_or_says_who_has_it() {
        let claims = tempfile::tempdir().expect("a directory");
        let (one, two) = (tempfile::tempdir().expect("a market"), tempfile::tempdir().expect("another"));
        assert_eq!(taken(claims.path(), one.path(), Some(7)).expect("a slot"), Slot(7));
        let error = taken(claims.path(), two.path(), Some(7)).expect_err("taken").to_string();
        assert!(error.contains(&*one.path().to_string_lossy()), "{error}");
    }

    #[test]
    fn a_slot_whose_port_somebody_uses_is_passed_over() {
        let claims = tempfile::tempdir().expect("a directory");
        let market = tempfile::tempdir().expect("a market");
        let slot = claim(claims.path(), market.path(), None, |slot| slot == 9).expect("a slot");
        assert_eq!(slot, Slot(9));
    }

    #[test]
    fn names_of_the_market_are_no_bridges_of_jobs_and_fit_an_interface() {
        for slot in [Slot(0), Slot(SLOTS - 1)] {
            assert!(!slot.names().starts_with("nv") && slot.names().len() == 4);
            assert!(slot.pool() < 254 && slot.port() < 32_768, "below the ports that are given out");
        }
    }
}
