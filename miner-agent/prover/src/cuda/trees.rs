//! Trees of which only the levels from the eighth up are kept.

use std::collections::BTreeMap;

use nave_proof::{
    Digest, Failure,
    merkle::{Tree, places},
};

use super::aborted;

/// Leaves below one digest of the lowest level that is kept.
pub(super) const SUBTREE: u64 = 256;
/// That level.
const LEVEL: usize = 8;

/// The upper part of a tree.
#[derive(Debug, Clone)]
pub(super) struct Crown {
    /// Leaves of the whole tree.
    count: u64,
    /// Level 8 and those above it.
    upper: Tree,
}

impl Crown {
    /// The tree of so many leaves over its eighth level.
    pub(super) fn new(count: u64, level8: Vec<Digest>) -> Self {
        Self { count, upper: Tree::over(level8) }
    }

    pub(super) fn root(&self) -> Result<Digest, Failure> {
        self.upper.root().ok_or_else(|| aborted("a tree has no leaves"))
    }

    /// The proof for `leaves`, with the subtrees they are in, by number.
    pub(super) fn proof(
        &self,
        leaves: impl IntoIterator<Item = u64>,
        subtrees: &BTreeMap<u64, Tree>,
    ) -> Result<Vec<Digest>, Failure> {
        let digest = |(level, index): (usize, u64)| match level.checked_sub(LEVEL) {
            Some(level) => self.upper.at(level, index),
            None => {
                let within = LEVEL - level;
                let tree = subtrees.get(&(index >> within))?;
                // Trees of few leaves end below: their last digest stands for what is above.
                tree.at(level, index & ((1 << within) - 1)).or_else(|| tree.root())
            }
        };
        let proof: Option<Vec<Digest>> = places(leaves, self.count).into_iter().map(digest).collect();
        proof.ok_or_else(|| aborted("a subtree is missing"))
    }

    /// The leaves of a subtree out of 256 slots for them, as a tree.
    pub(super) fn subtree(&self, number: u64, slots: &[Digest]) -> Tree {
        let there = self.count.saturating_sub(number * SUBTREE).min(SUBTREE);
        Tree::over(slots.iter().copied().take(usize::try_from(there).unwrap_or(usize::MAX)).collect())
    }
}

/// The subtrees that leaves are in, ascending and none twice.
pub(super) fn subtrees_of(leaves: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let mut numbers: Vec<u64> = leaves.into_iter().map(|leaf| leaf / SUBTREE).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}
