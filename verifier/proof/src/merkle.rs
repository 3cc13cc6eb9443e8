//! Hash trees, and proofs for several leaves at once.
//!
//! A level with an odd count hands its last digest up as it is. A proof holds
//! exactly the digests that cannot be computed from the leaves it is for, level by
//! level from below, each from left to right: there is one proof for a set of
//! leaves, and every byte of it matters.

use std::collections::BTreeMap;

use crate::{Digest, sha::TREE};

fn parent(left: &Digest, right: &Digest) -> Digest {
    TREE.pair(left, right)
}

/// A hash tree with all its levels, leaves first.
#[derive(Debug, Clone)]
pub struct Tree {
    levels: Vec<Vec<Digest>>,
}

impl Tree {
    /// Builds the tree; an empty one has no root.
    #[must_use]
    pub fn over(leaves: Vec<Digest>) -> Self {
        let mut levels = vec![leaves];
        while let Some(below) = levels.last().filter(|level| level.len() > 1) {
            let pairs = below.chunks(2).map(|pair| match pair {
                [left, right] => parent(left, right),
                alone => alone[0],
            });
            levels.push(pairs.collect());
        }
        Self { levels }
    }

    /// What stands for all leaves.
    #[must_use]
    pub fn root(&self) -> Option<Digest> {
        self.levels.last().and_then(|level| level.first()).copied()
    }

    pub(crate) fn leaf(&self, index: u64) -> Option<Digest> {
        self.at(0, index)
    }

    /// The digest at a place: level 0 are the leaves.
    #[must_use]
    pub fn at(&self, level: usize, index: u64) -> Option<Digest> {
        self.levels.get(level)?.get(usize::try_from(index).ok()?).copied()
    }

    /// The proof for `leaves`.
    #[must_use]
    pub fn proof(&self, leaves: impl IntoIterator<Item = u64>) -> Vec<Digest> {
        let count = self.levels.first().map_or(0, |leaves| leaves.len() as u64);
        let places = places(leaves, count);
        places.into_iter().filter_map(|(level, index)| self.at(level, index)).collect()
    }
}

/// Where the digests of a proof for `leaves` of `count` stand in the tree, in their order: each
/// is a level and an index in it. It is for who does not keep the whole tree.
#[must_use]
pub fn places(leaves: impl IntoIterator<Item = u64>, count: u64) -> Vec<(usize, u64)> {
    let mut known: Vec<u64> = leaves.into_iter().collect();
    known.sort_unstable();
    known.dedup();
    let (mut count, mut level, mut places) = (count, 0, Vec::new());
    while count > 1 {
        let siblings = known.iter().map(|index| index ^ 1);
        let lonely = siblings.filter(|sibling| *sibling < count && known.binary_search(sibling).is_err());
        places.extend(lonely.map(|sibling| (level, sibling)));
        known.iter_mut().for_each(|index| *index /= 2);
        known.dedup();
        (count, level) = (count.div_ceil(2), level + 1);
    }
    places
}

/// The root that `leaves` of `count` and a proof give; `None` when the proof is too short or too long.
#[must_use]
pub fn root(leaves: BTreeMap<u64, Digest>, count: u64, proof: &[Digest]) -> Option<Digest> {
    let (mut known, mut count, mut proof) = (leaves, count, proof.iter());
    while count > 1 {
        let mut above = BTreeMap::new();
        for (index, digest) in &known {
            let sibling = index ^ 1;
            let other = match known.get(&sibling) {
                // The pair was made when its left half came.
                Some(_) if sibling < *index => continue,
                Some(other) => Some(other),
                None if sibling < count => Some(proof.next()?),
                None => None,
            };
            let up = match other {
                Some(right) if sibling > *index => parent(digest, right),
                Some(left) => parent(left, digest),
                None => *digest,
            };
            above.insert(index / 2, up);
        }
        (known, count) = (above, count.div_ceil(2));
    }
    known.get(&0).copied().filter(|_| proof.next().is_none())
}

/// How many digests a proof for `leaves` of `count` has.
#[must_use]
pub fn proof_len(leaves: impl IntoIterator<Item = u64>, count: u64) -> usize {
    places(leaves, count).len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::transcript::hash;

    fn leaves(count: u64) -> Vec<Digest> {
        (0..count).map(|index| hash("test", &[&index.to_le_bytes()])).collect()
    }

    proptest! {
        #[test]
        fn any_set_of_leaves_proves_the_root(count in 1_u64..70, picks in prop::collection::vec(any::<u64>(), 1..9)) {
            let all = leaves(count);
            let tree = Tree::over(all.clone());
            let picked: BTreeMap<u64, Digest> =
                picks.iter().map(|pick| pick % count).map(|index| (index, all[index as usize])).collect();
            let proof = tree.proof(picked.keys().copied());
            prop_assert_eq!(proof.len(), proof_len(picked.keys().copied(), count));
            prop_assert_eq!(root(picked, count, &proof), tree.root());
        }

        #[test]
        fn a_changed_leaf_or_proof_gives_another_root(count in 2_u64..70, pick: u64, bit in 0_usize..256) {
            let all = leaves(count);
            let tree = Tree::over(all.clone());
            let index = pick % count;
            let mut leaf = all[index as usize];
            leaf.0[bit / 8] ^= 1 << (bit % 8);
            let proof = tree.proof([index]);
            prop_assert_ne!(root([(index, leaf)].into(), count, &proof), tree.root());
            for at in 0..proof.len() {
                let mut changed = proof.clone();
                changed[at].0[bit / 8] ^= 1 << (bit % 8);
                prop_assert_ne!(root([(index, all[index as usize])].into(), count, &changed), tree.root());
            }
            let longer: Vec<Digest> = proof.iter().copied().chain([leaf]).collect();
            prop_assert_eq!(root([(index, all[index as usize])].into(), count, &longer), None);
        }
    }
}
