//! What a GPU is asked to compute: one trait for real ones and simulated ones.
//!
//! A [`Device`] is driven through the phases of a devices challenge by one thread, in the order of
//! [`crate::Phase::ALL`], and then asked for what the last reveal chose. It remembers what a
//! phase gave until it is dropped. Two devices with the same task and seed answer with the same bytes,
//! whatever they are made of; the formats are those of the functions below.
//!
//! Words: `BH(name, data)` is SHA-256 over `name`, padded with zeros to 64 bytes, and `data`;
//! `H(name, parts)` is SHA-256 over the length of `name` as one byte, `name` and `parts`. A *root* is that
//! of a tree whose parents are `BH("nave proof tree", left ‖ right)` and in which a level with an odd count
//! hands its last digest up as it is. A *multiproof* holds exactly the digests that cannot be computed from
//! the leaves it is for, level by level from below, each from left to right. All numbers are little-endian.

pub use crate::sizes::{CHUNK, TILE, VRAM_BLOCK};
use crate::{Digest, Failure, Fill, Gemm, Lanes, Spill, Stream, transcript::hash};

/// Bytes that are one leaf of a product: 256 sums of 32 bits.
pub const TILE_BYTES: usize = 4 * TILE;

/// Whatever computes proofs of a GPU.
///
/// Each method fails with [`crate::Reason::DeviceUnavailable`] where the device or its driver does, with
/// [`crate::Reason::DeviceBusy`] where others hold the memory that is needed, with
/// [`crate::Reason::MemoryUnavailable`] where the host has no memory for a spill, and with
/// [`crate::Reason::Aborted`] where it is asked for what no phase before it has made.
pub trait Device: Send {
    /// Fills memory and keeps it: block `i` is SHA-256 of `seed ‖ i as u64`, then `depth - 1` times SHA-256
    /// of the 32 bytes before.
    ///
    /// # Errors
    /// See [`Device`].
    fn fill(&mut self, fill: &Fill, seed: &Digest) -> Result<(), Failure>;

    /// Computes all rounds and returns the root of each.
    ///
    /// Round 1 has `seed`; the next one has [`next_round`] of the seed and the root before. Row `i` of A
    /// is the first `k` bytes of ChaCha8 with the round's seed as key and stream `i`, column `j` of B those
    /// of stream `2^32 + j`, both signed. Leaf `i * (n / 256) + g` is
    /// `BH("nave proof gemm", C[i][256 g..256 (g + 1)])`, its sums as 32 bits each.
    ///
    /// # Errors
    /// See [`Device`].
    fn gemm(&mut self, gemm: &Gemm, seed: &Digest) -> Result<Vec<Digest>, Failure>;

    /// Reads all lanes over the fill and returns the root over their ends.
    ///
    /// A lane's state is eight words of 32 bits, at first those of SHA-256 of `seed ‖ lane as u64`. A read
    /// goes to block `hi64((w0 | w1 << 32) * blocks)`; the block's words are added to the state
    /// without carry, then come ChaCha's quarter rounds (0,1,2,3), (4,5,6,7), (0,5,2,7), (4,1,6,3). Leaf `lane` is
    /// `BH("nave proof lane", state)`.
    ///
    /// # Errors
    /// See [`Device`].
    fn lanes(&mut self, lanes: &Lanes, seed: &Digest) -> Result<Digest, Failure>;

    /// Reads the whole fill `passes` times and returns the root of each pass.
    ///
    /// Pass 1 has `seed`; the next one has [`next_pass`] of the seed and the root before. In chunk `c`,
    /// 32 states start as the words of SHA-256 of `seed ‖ (32 c + l) as u64`; in each of 64 steps state `l` takes in
    /// block `32 step + l` of the chunk, as a lane does. Leaf `c` is `BH("nave proof stream", states)`.
    ///
    /// # Errors
    /// See [`Device`].
    fn stream(&mut self, stream: &Stream, seed: &Digest) -> Result<Vec<Digest>, Failure>;

    /// Copies the first `bytes` of the fill to the host's memory, then fills that part anew, with `seed` and
    /// the depth of the fill; the rest stays as it is.
    ///
    /// # Errors
    /// See [`Device`].
    fn spill(&mut self, spill: &Spill, seed: &Digest) -> Result<(), Failure>;

    /// Reads the copy back from the host's memory as one pass of `seed`, and all of the fill, its new part
    /// and its old one, by lanes of [`lanes_of_return`]; returns the roots of the pass and of the lanes.
    ///
    /// # Errors
    /// See [`Device`].
    fn give_back(&mut self, spill: &Spill, lanes: &Lanes, seed: &Digest)
    -> Result<(Digest, Digest), Failure>;

    /// The leaves of products that were chosen, ascending and none twice.
    ///
    /// # Errors
    /// See [`Device`].
    fn gemm_open(&mut self, wanted: &[Tile]) -> Result<GemmOpening, Failure>;

    /// The multiproof for `lanes`, ascending and none twice, of the phase [`Device::lanes`].
    ///
    /// # Errors
    /// See [`Device`].
    fn lanes_proof(&mut self, lanes: &[u64]) -> Result<Vec<Digest>, Failure>;

    /// A multiproof for each pass that `wanted` names, ascending; chunks ascending and none twice.
    ///
    /// # Errors
    /// See [`Device`].
    fn stream_proofs(&mut self, wanted: &[PassChunk]) -> Result<Vec<Vec<Digest>>, Failure>;

    /// The multiproofs of [`Device::give_back`]: for `chunks` of the copy, and for `lanes`, each ascending
    /// and none twice.
    ///
    /// # Errors
    /// See [`Device`].
    fn return_proofs(&mut self, chunks: &[u64], lanes: &[u64])
    -> Result<(Vec<Digest>, Vec<Digest>), Failure>;
}

/// A leaf of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tile {
    /// Which product, from 0.
    pub round: u32,
    /// Row times tiles of a row, plus the tile in its row.
    pub leaf: u64,
}

/// A chunk as a pass read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PassChunk {
    /// Which pass, from 0.
    pub pass: u32,
    /// Which chunk of the fill.
    pub chunk: u64,
}

/// Chosen leaves of products, with what binds them to the roots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GemmOpening {
    /// The bytes of each leaf, in the order in which they were asked for.
    pub tiles: Vec<[u8; TILE_BYTES]>,
    /// A multiproof for each round that has a chosen leaf, ascending.
    pub proofs: Vec<Vec<Digest>>,
}

/// The seed of the product after the one of `seed` and `root`.
#[must_use]
pub fn next_round(seed: &Digest, root: &Digest) -> Digest {
    hash("nave proof round", &[&seed.0, &root.0])
}

/// The seed of the pass after the one of `seed` and `root`.
#[must_use]
pub fn next_pass(seed: &Digest, root: &Digest) -> Digest {
    hash("nave proof pass", &[&seed.0, &root.0])
}

/// The seed of the lanes that follow the return of a copy with `seed`.
#[must_use]
pub fn lanes_of_return(seed: &Digest) -> Digest {
    hash("nave proof lanes", &[&seed.0])
}
