//! What a reveal chose, computed again: of each tree only its upper part was kept.

use std::collections::{BTreeMap, BTreeSet};

use nave_proof::{
    Digest, Failure, Gemm,
    device::{GemmOpening, TILE, TILE_BYTES, Tile},
    merkle::Tree,
};

use super::{
    aborted,
    device::{Buffers, COLUMNS, DIGEST, KernelDevice, LanesRead, Pass, word},
    launch::{Arg, Kernel, Queue},
    trees::{Crown, SUBTREE, subtrees_of},
};

/// Subtrees that are computed again at once.
const AT_ONCE: usize = 4096;

impl KernelDevice {
    /// Chosen tiles with their proofs, round by round.
    pub(super) fn open_products(&mut self, wanted: &[Tile]) -> Result<GemmOpening, Failure> {
        let product = self.product.take().ok_or_else(|| aborted("nothing was multiplied"))?;
        let mut opening = GemmOpening { tiles: Vec::new(), proofs: Vec::new() };
        let done = wanted.chunk_by(|a, b| a.round == b.round).try_for_each(|of_round| {
            let (seed, crown) =
                product.rounds.get(of_round[0].round as usize).ok_or_else(|| aborted("no such product"))?;
            let leaves: Vec<u64> = of_round.iter().map(|tile| tile.leaf).collect();
            self.open_round(&product.task, &product.buffers, (seed, crown), &leaves, &mut opening)
        });
        self.product = Some(product);
        done.map(|()| opening)
    }

    fn open_round(
        &mut self,
        gemm: &Gemm,
        buffers: &Buffers,
        (seed, crown): (&Digest, &Crown),
        leaves: &[u64],
        opening: &mut GemmOpening,
    ) -> Result<(), Failure> {
        self.gpu.write(self.seed, &seed.0)?;
        self.expand(buffers.b, 0, (u64::from(gemm.n), gemm.k), COLUMNS)?;
        let mut subtrees = BTreeMap::new();
        let mut rest: &[u64] = &subtrees_of(leaves.iter().copied());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(fitting(gemm, buffers, rest));
            let rows = rows_of(gemm, now);
            self.compute_rows(gemm, buffers, &rows)?;
            let tiles = rows.len() as u64 * u64::from(gemm.n) / TILE as u64;
            self.hash_tiles(Queue::Work, buffers.sums[0], tiles, buffers.digests[0])?;
            let digests = self.digests(buffers.digests[0], tiles)?;
            let place = |leaf| place(gemm, &rows, leaf);
            for number in now {
                let slots: Vec<Digest> = (number * SUBTREE..(number + 1) * SUBTREE)
                    .map_while(|leaf| digests.get(place(leaf)?).copied())
                    .collect();
                subtrees.insert(*number, crown.subtree(*number, &slots));
            }
            for leaf in leaves.iter().filter(|leaf| now.binary_search(&(**leaf / SUBTREE)).is_ok()) {
                let at = place(*leaf).ok_or_else(|| aborted("no such tile"))?;
                let mut tile = [0; TILE_BYTES];
                self.gpu.read(buffers.sums[0] + (at * TILE_BYTES) as u64, &mut tile)?;
                opening.tiles.push(tile);
            }
            rest = later;
        }
        opening.proofs.push(crown.proof(leaves.iter().copied(), &subtrees)?);
        Ok(())
    }

    /// The sums of some rows, in their order, at the first of the buffers.
    fn compute_rows(&mut self, gemm: &Gemm, buffers: &Buffers, rows: &[u32]) -> Result<(), Failure> {
        let mut which = rows.to_vec();
        which.resize(rows.len().next_multiple_of(256), 0);
        let bytes: Vec<u8> = which.iter().flat_map(|row| row.to_le_bytes()).collect();
        let numbers = self.scratch(bytes.len() as u64)?;
        self.gpu.write(numbers, &bytes)?;
        self.expand(buffers.a, numbers, (which.len() as u64, gemm.k), 0)?;
        let rows = (rows.len() as u64).next_multiple_of(128);
        self.multiply(gemm, (buffers.a, buffers.b, buffers.sums[0]), rows)
    }

    pub(super) fn prove_lanes(&mut self, read: &LanesRead, lanes: &[u64]) -> Result<Vec<Digest>, Failure> {
        let args = |seeds: u64, which, count, out| {
            [
                Arg::At(seeds + DIGEST),
                Arg::U32(read.origin.task.depth),
                Arg::U64(read.origin.blocks()),
                Arg::At(seeds),
                Arg::At(which),
                Arg::U32(count),
                Arg::U64(u64::from(read.task.lanes)),
                Arg::U32(read.task.reads),
                Arg::At(out),
            ]
        };
        let again = Again { kernel: Kernel::LanesAgain, blocks: 1, seeds: (&read.seed, &read.origin.seed) };
        let subtrees = self.again(&read.crown, lanes, &again, args)?;
        read.crown.proof(lanes.iter().copied(), &subtrees)
    }

    /// As [`Self::prove_lanes`], for lanes over what memory still holds: after a spill no one seed derives it.
    pub(super) fn prove_resident_lanes(
        &mut self,
        read: &LanesRead,
        lanes: &[u64],
    ) -> Result<Vec<Digest>, Failure> {
        let ends = self.scratch(SUBTREE * DIGEST)?;
        self.gpu.write(self.seed, &read.seed.0)?;
        let mut subtrees = BTreeMap::new();
        for number in subtrees_of(lanes.iter().copied()) {
            let first = number * SUBTREE;
            let count = u64::from(read.task.lanes).saturating_sub(first).min(SUBTREE);
            self.run_lanes(&read.task, first, count, ends)?;
            let digests = self.digests(ends, count)?;
            subtrees.insert(number, read.crown.subtree(number, &digests));
        }
        read.crown.proof(lanes.iter().copied(), &subtrees)
    }

    pub(super) fn prove_chunks(&mut self, pass: &Pass, chunks: &[u64]) -> Result<Vec<Digest>, Failure> {
        let args = |seeds: u64, which, count, out| {
            [
                Arg::At(seeds + DIGEST),
                Arg::U32(pass.origin.task.depth),
                Arg::At(seeds),
                Arg::At(which),
                Arg::U32(count),
                Arg::U64(pass.chunks),
                Arg::At(out),
            ]
        };
        let again = Again { kernel: Kernel::StreamAgain, blocks: 8, seeds: (&pass.seed, &pass.origin.seed) };
        let subtrees = self.again(&pass.crown, chunks, &again, args)?;
        pass.crown.proof(chunks.iter().copied(), &subtrees)
    }

    /// The subtrees that `leaves` are in, from a kernel that computes them again.
    fn again<const N: usize>(
        &mut self,
        crown: &Crown,
        leaves: &[u64],
        again: &Again,
        args: impl Fn(u64, u64, u32, u64) -> [Arg; N],
    ) -> Result<BTreeMap<u64, Tree>, Failure> {
        let (seed, of_fill) = again.seeds;
        let mut trees = BTreeMap::new();
        for numbers in subtrees_of(leaves.iter().copied()).chunks(AT_ONCE) {
            let slots = numbers.len() as u64 * SUBTREE;
            let out = self.scratch(slots * DIGEST + numbers.len() as u64 * 8)?;
            let which = out + slots * DIGEST;
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            self.gpu.write(which, &bytes)?;
            self.gpu.write(self.seed, &[seed.0, of_fill.0].concat())?;
            let count = word(numbers.len() as u64)?;
            let args = args(self.seed, which, count, out);
            self.gpu.launch(Queue::Work, again.kernel, u64::from(count) * again.blocks, &args)?;
            let digests = self.digests(out, slots)?;
            for (number, slots) in numbers.iter().zip(digests.chunks(SUBTREE as usize)) {
                trees.insert(*number, crown.subtree(*number, slots));
            }
        }
        Ok(trees)
    }
}

/// How subtrees are computed again.
struct Again<'a> {
    kernel: Kernel,
    /// Blocks of a subtree.
    blocks: u64,
    /// The seed of what was computed, and that of the fill it was computed from.
    seeds: (&'a Digest, &'a Digest),
}

/// How many of the subtrees have rows for which there is room; one at least.
fn fitting(gemm: &Gemm, buffers: &Buffers, subtrees: &[u64]) -> usize {
    let mut rows = BTreeSet::new();
    let full = subtrees.iter().position(|number| {
        rows.extend(rows_of(gemm, &[*number]));
        (rows.len() as u64).next_multiple_of(256) > buffers.band
    });
    full.unwrap_or(subtrees.len()).max(1)
}

/// The rows that tiles of subtrees are in, ascending and none twice.
fn rows_of(gemm: &Gemm, subtrees: &[u64]) -> Vec<u32> {
    let in_row = u64::from(gemm.n) / TILE as u64;
    let of_subtree = |number: &u64| {
        let rows = number * SUBTREE / in_row..=(number * SUBTREE + SUBTREE - 1) / in_row;
        rows.filter(|row| *row < u64::from(gemm.m))
    };
    let rows: BTreeSet<u64> = subtrees.iter().flat_map(of_subtree).collect();
    rows.into_iter().filter_map(|row| u32::try_from(row).ok()).collect()
}

/// Where a tile stands among those of `rows`.
fn place(gemm: &Gemm, rows: &[u32], leaf: u64) -> Option<usize> {
    let in_row = u64::from(gemm.n) / TILE as u64;
    let row = rows.binary_search(&u32::try_from(leaf / in_row).ok()?).ok()?;
    Some(row * usize::try_from(in_row).ok()? + usize::try_from(leaf % in_row).ok()?)
}
