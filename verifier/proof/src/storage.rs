//! Disks: a file of what is slow to compute, then read all over.
//!
//! The file's blocks are derived as those of memory are, under a name of their own. A lane is a
//! chain of reads of 4 KiB in which each piece decides about the next; all of a piece goes into
//! the state. The commitment is the root over the ends of all lanes; the verifier derives the
//! blocks that a few lanes touch, and reads those lanes again.
//!
//! What comes of it is measured more than proven. A block is computed in about 20 µs, in less
//! time than most disks need for a read, and a file of this size fits into memory. So a rate says
//! what a host does that is honest, and that one which is not spent as much memory or as many
//! cores; that the claim's room is there it shows for the part that was written, of a host
//! that wrote.

#[cfg(feature = "prover")]
pub(crate) mod prove;

use std::collections::BTreeMap;

use crate::{
    Digest, StorageTask,
    memory::Derived,
    merkle,
    mix::{State, add, below, round},
    sizes::{BLOCK, PIECE, WORDS},
    transcript::{draw, expand, hash, seal},
};

/// The name that blocks of a disk are derived under.
const BLOCKS: &str = "nave proof disk";
/// Words of 64 bits in a piece.
const PIECE_WORDS: usize = (PIECE / 8) as usize;
/// Pieces in a block.
const PIECES: u64 = BLOCK / PIECE;

/// Pieces of the whole file.
fn pieces(task: &StorageTask) -> u64 {
    task.bytes / PIECE
}

fn start(binding: &Digest, lane: u64) -> State {
    expand("nave proof disk lane", binding, lane)
}

fn end(binding: &Digest, lane: u64, state: &State) -> Digest {
    seal("nave proof disk lane end", binding, lane, state)
}

/// Takes a piece into a lane's state.
fn take_in(state: &mut State, piece: &[u64]) {
    for line in piece.chunks(WORDS as usize) {
        add(state, line);
        round(state);
    }
}

/// The commitment that says that the file is written. The reads show whether it is.
pub(crate) fn written(binding: &Digest) -> Digest {
    hash("nave proof written", &[&binding.0])
}

/// The lanes that `seed` chooses.
fn chosen(task: &StorageTask, seed: &Digest) -> Vec<u64> {
    draw(seed, task.samples, u64::from(task.lanes))
}

/// How many digests an opening has.
pub(crate) fn opening_len(task: &StorageTask, seed: &Digest) -> usize {
    merkle::proof_len(chosen(task, seed), u64::from(task.lanes))
}

/// Whether the opening shows chosen lanes of the reads that were committed to.
pub(crate) fn check(
    task: &StorageTask,
    (written, revealed, seed): (&Digest, &Digest, &Digest),
    commitment: &Digest,
    opening: &[Digest],
) -> Result<(), String> {
    let mut derived = Derived::new(BLOCKS, written);
    let mut ends = BTreeMap::new();
    for lane in chosen(task, seed) {
        let mut state = start(revealed, lane);
        for _ in 0..task.reads {
            let piece = below(state[0], pieces(task));
            let first = (piece % PIECES) as usize * PIECE_WORDS;
            take_in(&mut state, &derived.block(piece / PIECES)[first..first + PIECE_WORDS]);
        }
        ends.insert(lane, end(revealed, lane, &state));
    }
    match merkle::root(ends, u64::from(task.lanes), opening) {
        Some(root) if root == *commitment => Ok(()),
        Some(_) | None => Err("chosen lanes are not what was committed to".into()),
    }
}
