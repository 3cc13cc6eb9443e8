//! Memory of a GPU: blocks that are slow to compute, and reads all over them.
//!
//! A block of 32 bytes costs a chain of hashes, so that what is not kept costs more than what is read.
//! Lanes are chains of reads in which each decides about the next: they show that
//! all of the fill is there. Passes read it from end to end: they show how fast it is. The verifier derives the
//! few blocks that chosen lanes and chunks touch.

use std::collections::BTreeMap;

use crate::{
    Digest, Fill, Lanes, Spill, Stream,
    device::{CHUNK, PassChunk, VRAM_BLOCK},
    merkle,
    mix::below,
    sha::{self, LANE, STREAM, Words},
    transcript::draw,
};

/// States that a chunk is read by.
const STATES: usize = 32;
/// Blocks that each of them reads.
const STEPS: u64 = CHUNK / VRAM_BLOCK / STATES as u64;
/// Chains of hashes that are computed side by side.
const ABREAST: usize = 2;

/// What a device's memory holds: a fill, of which the first part may have been made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    pub(crate) fill: Fill,
    seed: Digest,
    /// How many of the first blocks have a seed of their own, and that.
    anew: (u64, Digest),
}

impl Contents {
    /// A fill as it was made.
    #[must_use]
    pub fn new(fill: &Fill, seed: &Digest) -> Self {
        Self { fill: *fill, seed: *seed, anew: (0, *seed) }
    }

    /// The same fill after a spill: what was copied is made anew, with `seed`.
    #[must_use]
    pub fn spilled(self, spill: &Spill, seed: &Digest) -> Self {
        Self { anew: (spill.bytes / VRAM_BLOCK, *seed), ..self }
    }

    /// The seed that a block comes from.
    fn seed_of(&self, number: u64) -> &Digest {
        let (count, seed) = &self.anew;
        if number < *count { seed } else { &self.seed }
    }

    /// A block, computed alone.
    pub(crate) fn block(&self, number: u64) -> Words {
        let [block] = sha::chains([(self.seed_of(number), number)], self.fill.depth);
        block
    }
}

/// Blocks of a fill.
#[must_use]
pub fn blocks(fill: &Fill) -> u64 {
    fill.bytes / VRAM_BLOCK
}

/// Whole chunks in a number of bytes.
#[must_use]
pub fn chunks(bytes: u64) -> u64 {
    bytes / CHUNK
}

/// The lanes that `seed` chooses, ascending.
#[must_use]
pub fn chosen_lanes(lanes: &Lanes, seed: &Digest) -> Vec<u64> {
    draw(seed, lanes.samples, u64::from(lanes.lanes))
}

/// The chunks of all passes that `seed` chooses, ascending.
#[must_use]
pub fn chosen_of_passes(stream: &Stream, fill: &Fill, seed: &Digest) -> Vec<PassChunk> {
    let chunks = chunks(fill.bytes).max(1);
    let drawn = draw(seed, stream.samples, u64::from(stream.passes) * chunks);
    drawn.into_iter().map(|at| PassChunk { pass: (at / chunks) as u32, chunk: at % chunks }).collect()
}

/// The chunks of a copy that `seed` chooses, ascending.
#[must_use]
pub fn chosen_of_copy(spill: &Spill, seed: &Digest) -> Vec<u64> {
    draw(seed, spill.samples, chunks(spill.bytes))
}

/// The chosen chunks of each pass that has any, ascending.
#[must_use]
pub fn by_pass(wanted: &[PassChunk]) -> BTreeMap<u32, Vec<u64>> {
    let mut passes: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for PassChunk { pass, chunk } in wanted {
        passes.entry(*pass).or_default().push(*chunk);
    }
    passes
}

/// Takes a block into a state: added without carry, then a double round of half a ChaCha.
#[inline(always)]
fn take_in(state: &mut Words, block: &Words) {
    state.iter_mut().zip(block).for_each(|(word, other)| *word ^= other);
    quarter(state, [0, 1, 2, 3]);
    quarter(state, [4, 5, 6, 7]);
    quarter(state, [0, 5, 2, 7]);
    quarter(state, [4, 1, 6, 3]);
}

#[inline(always)]
fn quarter(state: &mut Words, [a, b, c, d]: [usize; 4]) {
    for (left, right) in [(16, 12), (8, 7)] {
        state[a] = state[a].wrapping_add(state[b]);
        state[d] = (state[d] ^ state[a]).rotate_left(left);
        state[c] = state[c].wrapping_add(state[d]);
        state[b] = (state[b] ^ state[c]).rotate_left(right);
    }
}

/// The block that a state reads next.
#[inline(always)]
fn next(state: &Words, blocks: u64) -> u64 {
    below(u64::from(state[0]) | u64::from(state[1]) << 32, blocks)
}

/// Fills memory: the first `kept` blocks of it.
#[cfg(feature = "prover")]
pub(crate) fn derive(fill: &Fill, seed: &Digest, kept: u64) -> Vec<Words> {
    let groups = (0..kept.div_ceil(ABREAST as u64)).map(|group| group * ABREAST as u64);
    let mut blocks: Vec<Words> = groups.flat_map(|first| group(seed, first, fill.depth)).collect();
    blocks.truncate(kept as usize);
    blocks
}

fn group(seed: &Digest, first: u64, depth: u32) -> [Words; ABREAST] {
    sha::chains(std::array::from_fn(|at| (seed, first + at as u64)), depth)
}

/// The end of a lane over `blocks` blocks that `block` gives.
#[cfg(feature = "prover")]
pub(crate) fn lane(
    (lanes, seed, blocks): (&Lanes, &Digest, u64),
    lane: u64,
    block: impl Fn(u64) -> Words,
) -> Digest {
    let mut state = sha::start(seed, lane);
    for _ in 0..lanes.reads {
        let read = block(next(&state, blocks));
        take_in(&mut state, &read);
    }
    LANE.words(&[state])
}

/// The end of a chunk in the pass of `seed`.
pub(crate) fn chunk(seed: &Digest, chunk: u64, mut block: impl FnMut(u64) -> Words) -> Digest {
    let mut states: [Words; STATES] =
        std::array::from_fn(|state| sha::start(seed, STATES as u64 * chunk + state as u64));
    let first = chunk * (CHUNK / VRAM_BLOCK);
    for step in 0..STEPS {
        for (state, at) in states.iter_mut().zip(0..) {
            take_in(state, &block(first + STATES as u64 * step + at));
        }
    }
    STREAM.words(&states)
}

/// A chunk of a fill in the pass of seed `pass`, with its blocks computed.
fn derived_chunk(fill: &Fill, seed: &Digest, pass: &Digest, number: u64) -> Digest {
    let (mut ahead, mut left) = ([[0; 8]; ABREAST], 0);
    chunk(pass, number, |at| {
        if left == 0 {
            (ahead, left) = (group(seed, at, fill.depth), ABREAST);
        }
        left -= 1;
        ahead[ABREAST - 1 - left]
    })
}

/// The ends of some lanes over a memory, with the blocks they read computed.
fn derived_lanes(memory: &Contents, lanes: &Lanes, seed: &Digest, some: &[u64]) -> Vec<Digest> {
    let Some(last) = some.last() else { return Vec::new() };
    let number = |at: usize| some.get(at).copied().unwrap_or(*last);
    let mut states: [Words; ABREAST] = std::array::from_fn(|at| sha::start(seed, number(at)));
    for _ in 0..lanes.reads {
        let wanted = states.each_ref().map(|state| next(state, blocks(&memory.fill)));
        let read = sha::chains(wanted.map(|number| (memory.seed_of(number), number)), memory.fill.depth);
        states.iter_mut().zip(&read).for_each(|(state, block)| take_in(state, block));
    }
    states.iter().take(some.len()).map(|state| LANE.words(&[*state])).collect()
}

/// Whether `proof` shows the chosen lanes of the reads that `root` stands for, all over `memory`, by
/// reading them again.
///
/// # Errors
/// A sentence.
#[cfg(feature = "judge")]
pub fn check_lanes(
    memory: &Contents,
    (lanes, seed): (&Lanes, &Digest),
    root: &Digest,
    chosen: &[u64],
    proof: &[Digest],
) -> Result<(), String> {
    let derived = |some| derived_lanes(memory, lanes, seed, some);
    let ends = chosen.iter().copied().zip(chosen.chunks(ABREAST).flat_map(derived)).collect();
    match merkle::root(ends, u64::from(lanes.lanes), proof) {
        Some(shown) if shown == *root => Ok(()),
        Some(_) | None => Err("chosen lanes are not what was committed to".into()),
    }
}

/// Whether `proof` shows the chosen chunks of a pass of seed `pass` that `root` stands for, over the
/// first `bytes` of a fill of seed `filled`, by computing them again.
///
/// # Errors
/// A sentence.
#[cfg(feature = "judge")]
pub fn check_chunks(
    (fill, filled): (&Fill, &Digest),
    (bytes, pass): (u64, &Digest),
    root: &Digest,
    chosen: &[u64],
    proof: &[Digest],
) -> Result<(), String> {
    let derived = |number: &u64| (*number, derived_chunk(fill, filled, pass, *number));
    match merkle::root(chosen.iter().map(derived).collect(), chunks(bytes), proof) {
        Some(shown) if shown == *root => Ok(()),
        Some(_) | None => Err("chosen chunks are not what was committed to".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::Tree;

    const FILL: Fill = Fill { bytes: 4 * CHUNK, depth: 3 };
    const LANES: Lanes = Lanes { lanes: 300, reads: 20, samples: 7 };

    fn filled() -> (Digest, Vec<Words>) {
        let seed = Digest([1; 32]);
        (seed, derive(&FILL, &seed, blocks(&FILL)))
    }

    #[test]
    fn a_fill_has_each_block_that_it_would_have_alone() {
        let (seed, all) = filled();
        assert_eq!(all.len() as u64, blocks(&FILL));
        for number in [0, 1, 2, 3, 4, 8191] {
            assert_eq!(all[number as usize], Contents::new(&FILL, &seed).block(number));
        }
        assert_eq!(derive(&FILL, &seed, 6)[..], all[..6]);
    }

    #[test]
    fn a_spill_makes_the_part_anew_that_was_copied_and_no_other() {
        let ((seed, old), anew) = (filled(), Digest([6; 32]));
        let memory = Contents::new(&FILL, &seed).spilled(&Spill { bytes: CHUNK, samples: 1 }, &anew);
        let new = derive(&FILL, &anew, 2048);
        for number in [0, 1, 2047] {
            assert_eq!(memory.block(number), new[number as usize]);
        }
        for number in [2048, 2049, 8191] {
            assert_eq!(memory.block(number), old[number as usize]);
        }
        // Lanes that are read again side by side meet both parts, each in its own time.
        let seed = Digest([2; 32]);
        let end = |number| lane((&LANES, &seed, blocks(&FILL)), number, |block| memory.block(block));
        let tree = Tree::over((0..300).map(end).collect());
        let (root, lot) = (tree.root().unwrap(), [7, 8, 200]);
        let proof = tree.proof(lot);
        assert_eq!(check_lanes(&memory, (&LANES, &seed), &root, &lot, &proof), Ok(()));
        for other in [Contents::new(&FILL, &memory.seed), Contents::new(&FILL, &anew)] {
            assert!(check_lanes(&other, (&LANES, &seed), &root, &lot, &proof).is_err());
        }
    }

    #[test]
    fn a_quarter_round_is_chachas() {
        // RFC 8439, 2.1.1: the quarter round's own test vector.
        let mut state = [0x1111_1111, 0x0102_0304, 0x9b8d_6f43, 0x0123_4567, 0, 0, 0, 0];
        quarter(&mut state, [0, 1, 2, 3]);
        assert_eq!(state[..4], [0xea2a_92f4, 0xcb1c_f8ce, 0x4581_472e, 0x5881_c4bb]);
    }

    #[test]
    fn lanes_read_where_their_state_points_to() {
        assert_eq!(next(&[0; 8], 1000), 0);
        assert_eq!(next(&[u32::MAX; 8], 1000), 999);
        // Half of 2^64 is in the second word.
        assert_eq!(next(&[0, 1 << 31, 0, 0, 0, 0, 0, 0], 1000), 500);
    }

    #[test]
    fn chosen_lanes_are_proven_and_forged_ones_are_refused() {
        let ((filled, all), seed) = (filled(), Digest([2; 32]));
        let end = |number| lane((&LANES, &seed, blocks(&FILL)), number, |block| all[block as usize]);
        let tree = Tree::over((0..300).map(end).collect());
        let root = tree.root().unwrap();
        let lot = chosen_lanes(&LANES, &Digest([3; 32]));
        assert_eq!(lot.len(), 7);
        let proof = tree.proof(lot.iter().copied());
        let check = |filled: &Digest, seed: &Digest, root: &Digest, lot: &[u64], proof: &[Digest]| {
            check_lanes(&Contents::new(&FILL, filled), (&LANES, seed), root, lot, proof).is_ok()
        };
        assert!(check(&filled, &seed, &root, &lot, &proof));
        assert!(!check(&seed, &seed, &root, &lot, &proof), "another fill");
        assert!(!check(&filled, &filled, &root, &lot, &proof), "other lanes");
        assert!(!check(&filled, &seed, &seed, &lot, &proof), "another root");
        assert!(!check(&filled, &seed, &root, &lot, &proof[1..]), "a proof that is too short");
        let others: Vec<u64> = lot.iter().map(|lane| lane ^ 1).collect();
        assert!(!check(&filled, &seed, &root, &others, &proof), "others than were chosen");
        let mut forged = proof.clone();
        forged[0].0[0] ^= 1;
        assert!(!check(&filled, &seed, &root, &lot, &forged), "a forged proof");
    }

    #[test]
    fn one_wrong_block_in_a_lane_is_seen() {
        let ((filled, all), seed) = (filled(), Digest([2; 32]));
        let lanes = Lanes { lanes: 4, ..LANES };
        let missing = |number: u64| if number % 8 == 3 { [0; 8] } else { all[number as usize] };
        let tree =
            Tree::over((0..4).map(|number| lane((&lanes, &seed, blocks(&FILL)), number, missing)).collect());
        let lot = [0, 1, 2, 3];
        let memory = Contents::new(&FILL, &filled);
        let checked = check_lanes(&memory, (&lanes, &seed), &tree.root().unwrap(), &lot, &[]);
        assert_eq!(checked, Err("chosen lanes are not what was committed to".into()));
    }

    #[test]
    fn chosen_chunks_are_proven_and_forged_ones_are_refused() {
        let ((filled, all), pass) = (filled(), Digest([4; 32]));
        let leaf = |number| chunk(&pass, number, |block| all[block as usize]);
        let tree = Tree::over((0..4).map(leaf).collect());
        let root = tree.root().unwrap();
        let proof = tree.proof([1, 3]);
        let check = |filled: &Digest, pass: &Digest, chosen: &[u64], proof: &[Digest]| {
            check_chunks((&FILL, filled), (FILL.bytes, pass), &root, chosen, proof).is_ok()
        };
        assert!(check(&filled, &pass, &[1, 3], &proof));
        assert!(!check(&pass, &pass, &[1, 3], &proof), "another fill");
        assert!(!check(&filled, &filled, &[1, 3], &proof), "another pass");
        assert!(!check(&filled, &pass, &[0, 2], &proof), "others than were chosen");
        assert!(!check(&filled, &pass, &[1, 3], &proof[1..]), "a proof that is too short");
    }

    #[test]
    fn every_block_of_a_chunk_matters() {
        let (_, all) = filled();
        let digest = |changed: u64| {
            chunk(&Digest([4; 32]), 1, |block| {
                let mut words = all[block as usize];
                words[7] ^= u32::from(block == changed);
                words
            })
        };
        let honest = digest(u64::MAX);
        assert!((2048..4096).step_by(61).all(|changed| digest(changed) != honest));
        assert_eq!(digest(2047), honest);
        assert_eq!(digest(4096), honest);
    }

    #[test]
    fn chunks_are_chosen_from_all_passes() {
        let stream = Stream { passes: 5, samples: 12 };
        let chosen = chosen_of_passes(&stream, &FILL, &Digest([5; 32]));
        assert_eq!(chosen.len(), 12);
        assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(chosen.iter().all(|at| at.pass < 5 && at.chunk < 4));
        assert_eq!(by_pass(&chosen).values().map(Vec::len).sum::<usize>(), 12);
        let all = chosen_of_copy(&Spill { bytes: 3 * CHUNK, samples: 9 }, &Digest([5; 32]));
        assert_eq!(all, [0, 1, 2]);
    }
}
