//! Slots: markets on one machine share its network, so each takes its own bridge names,
//! address ranges and firewall table.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

/// A market's share of the machine's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u8);

/// How many markets fit on a machine: the address ranges 10.150.0.0/16 to 10.213.0.0/16.
const SLOTS: u8 = 64;
const POOL_FIRST: u8 = 150;
/// Cleared when the machine restarts, as networks are.
const CLAIMS: &str = "/run/lock";

impl Slot {
    /// The slot of the market in `root`, claimed if it has none yet.
    ///
    /// # Errors
    /// When all are taken or claims cannot be written.
    pub fn claim(root: &Path) -> anyhow::Result<Self> {
        claim(Path::new(CLAIMS), root)
    }

    /// Whether the market in `root` has a slot, and with it perhaps containers and networks.
    pub fn is_held(root: &Path) -> bool {
        held(Path::new(CLAIMS), root).is_some()
    }

    /// Gives the slot of the market in `root` back.
    pub fn release(root: &Path) {
        if let Some(slot) = held(Path::new(CLAIMS), root) {
            // Where it stays, the next market that finds its owner gone takes it over.
            drop(fs::remove_file(path(Path::new(CLAIMS), slot)));
        }
    }

    /// First letters of bridge names.
    pub fn bridge_prefix(self) -> String {
        let letter = |n: u8| char::from(b'a' + n);
        format!("nv{}{}", letter(self.0 / 26), letter(self.0 % 26))
    }

    /// Second byte of the IPv4 range, last byte of the IPv6 one.
    pub fn pool(self) -> u8 {
        POOL_FIRST + self.0
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

fn claim(claims: &Path, root: &Path) -> anyhow::Result<Slot> {
    if let Some(slot) = held(claims, root) {
        return Ok(Slot(slot));
    }
    let claim = claims.join(format!("nave-claim-{}", std::process::id()));
    fs::write(&claim, root.to_string_lossy().as_bytes())
        .with_context(|| format!("write {}", claim.display()))?;
    let found = (0..SLOTS).find(|slot| {
        if owner(claims, *slot).is_some_and(|market| !Path::new(&market).exists()) {
            drop(fs::remove_file(path(claims, *slot)));
        }
        // Fails where there is a claim, and never leaves half of one.
        fs::hard_link(&claim, path(claims, *slot)).is_ok()
    });
    fs::remove_file(&claim)?;
    found.map(Slot).with_context(|| format!("{SLOTS} markets run on this machine already"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markets_get_different_slots_and_keep_them_until_they_are_gone() {
        let claims = tempfile::tempdir().expect("a directory");
        let markets: Vec<_> = (0..3).map(|_| tempfile::tempdir().expect("a market")).collect();
        let slots: Vec<Slot> =
            markets.iter().map(|m| claim(claims.path(), m.path()).expect("a slot")).collect();
        assert_eq!(slots, [Slot(0), Slot(1), Slot(2)]);
        assert_eq!(claim(claims.path(), markets[1].path()).expect("the same"), Slot(1));
        let gone = markets.into_iter().nth(1).expect("a market");
        drop(gone);
        let next = tempfile::tempdir().expect("a market");
        assert!(claim(claims.path(), next.path()).expect("a slot").0 <= 2, "a slot is used again");
    }
}
