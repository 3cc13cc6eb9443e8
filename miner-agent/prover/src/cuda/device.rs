//! The phases of a proof as launches of kernels.

use nave_proof::{
    Digest, Failure, Fill, Gemm, Lanes, Spill, Stream,
    device::{
        CHUNK, Device, GemmOpening, PassChunk, TILE, Tile, VRAM_BLOCK, lanes_of_return, next_pass, next_round,
    },
};

use super::{
    aborted,
    driver::Gpu,
    launch::{Arg, Kernel, Queue},
    trees::{Crown, SUBTREE},
};

/// Bytes of a digest.
pub(super) const DIGEST: u64 = 32;
/// Rows of a product that are multiplied at once.
const BAND: u64 = 2048;
/// Lanes that are read at once.
const LANES_AT_ONCE: u64 = 1 << 20;
/// Chunks that are read at once.
const CHUNKS_AT_ONCE: u64 = 1 << 15;
/// Bytes of a copy that lie together in the host's memory.
const PIECE: u64 = 1 << 26;
/// Where columns stand among the streams.
pub(super) const COLUMNS: u64 = 1 << 32;

/// A device that computes with kernels.
pub(super) struct KernelDevice {
    pub(super) gpu: Gpu,
    /// Where the seed of what is computed now lies.
    pub(super) seed: u64,
    fill: Option<Filled>,
    pub(super) product: Option<Product>,
    pub(super) lanes: Option<LanesRead>,
    pub(super) passes: Vec<Pass>,
    /// Memory for digests, and how much.
    scratch: (u64, u64),
    /// The copy in the host's memory, with the fill that it is of.
    copy: Option<(Vec<(u64, u64)>, Origin)>,
    pub(super) returned: Option<(Pass, LanesRead)>,
}

/// A fill by which blocks can be derived again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    pub(super) seed: Digest,
    pub(super) task: Fill,
}

impl Origin {
    pub(super) fn blocks(&self) -> u64 {
        self.task.bytes / VRAM_BLOCK
    }
}

/// Memory that is filled. After a spill its first part is of another seed than `origin` has.
#[derive(Debug, Clone, Copy)]
struct Filled {
    at: u64,
    origin: Origin,
}

/// The rounds of a product, and the buffers they are computed in.
pub(super) struct Product {
    pub(super) task: Gemm,
    pub(super) buffers: Buffers,
    /// Seed and tree of each round.
    pub(super) rounds: Vec<(Digest, Crown)>,
}

/// Operands, and twice what a band of rows gives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buffers {
    pub(super) a: u64,
    pub(super) b: u64,
    pub(super) sums: [u64; 2],
    pub(super) digests: [u64; 2],
    level8: u64,
    pub(super) band: u64,
}

/// Lanes that were read.
pub(super) struct LanesRead {
    pub(super) task: Lanes,
    pub(super) seed: Digest,
    pub(super) origin: Origin,
    pub(super) crown: Crown,
}

/// Chunks that were read.
pub(super) struct Pass {
    pub(super) seed: Digest,
    pub(super) origin: Origin,
    pub(super) chunks: u64,
    pub(super) crown: Crown,
}

impl KernelDevice {
    pub(super) fn new(mut gpu: Gpu) -> Result<Self, Failure> {
        let seed = gpu.take(2 * DIGEST)?;
        Ok(Self {
            gpu,
            seed,
            fill: None,
            product: None,
            lanes: None,
            passes: Vec::new(),
            scratch: (0, 0),
            copy: None,
            returned: None,
        })
    }

    fn filled(&self) -> Result<Filled, Failure> {
        self.fill.ok_or_else(|| aborted("memory is not filled"))
    }

    /// Memory for digests, as much as is needed now; what was there before is gone.
    pub(super) fn scratch(&mut self, bytes: u64) -> Result<u64, Failure> {
        let (address, size) = self.scratch;
        if bytes <= size {
            return Ok(address);
        }
        self.gpu.settle()?;
        if size > 0 {
            self.gpu.free(address);
            self.scratch = (0, 0);
        }
        self.scratch = (self.gpu.take(bytes)?, bytes);
        Ok(self.scratch.0)
    }

    /// Reads digests.
    pub(super) fn digests(&mut self, from: u64, count: u64) -> Result<Vec<Digest>, Failure> {
        let mut bytes = vec![0; usize::try_from(count * DIGEST).map_err(|_| aborted("too many digests"))?];
        self.gpu.read(from, &mut bytes)?;
        Ok(bytes.as_chunks().0.iter().copied().map(Digest).collect())
    }

    /// The tree over leaves whose eighth level lies at `level8`.
    fn crown(&mut self, leaves: u64, level8: u64) -> Result<Crown, Failure> {
        let level8 = self.digests(level8, leaves.div_ceil(SUBTREE))?;
        Ok(Crown::new(leaves, level8))
    }

    /// Fills memory from `at` on.
    fn write_fill(&mut self, at: u64, origin: Origin) -> Result<(), Failure> {
        self.gpu.write(self.seed, &origin.seed.0)?;
        let (blocks, depth) = (origin.blocks(), Arg::U32(origin.task.depth));
        // A launch of much less than a second, so that a display or a watchdog is not kept waiting.
        let at_once = 1 << 26;
        for first in (0..blocks).step_by(at_once) {
            let count = (blocks - first).min(at_once as u64);
            let args = [Arg::At(at), Arg::At(self.seed), Arg::U64(first), Arg::U64(count), depth];
            self.gpu.launch(Queue::Work, Kernel::Fill, count.div_ceil(256), &args)?;
        }
        self.gpu.settle()
    }

    fn buffers(&mut self, gemm: &Gemm) -> Result<Buffers, Failure> {
        let (m, n, padded) = (u64::from(gemm.m), u64::from(gemm.n), u64::from(gemm.k).next_multiple_of(128));
        // Bands are whole subtrees: 256 rows are n / 256 of them.
        let band = m.min(BAND);
        let tiles = band * n / TILE as u64;
        let mut take = |bytes| self.gpu.take(bytes);
        Ok(Buffers {
            a: take(m.max(band) * padded)?,
            b: take(n * padded)?,
            sums: [take(band * n * 4)?, take(band * n * 4)?],
            digests: [take(tiles * DIGEST)?, take(tiles * DIGEST)?],
            level8: take((m * n / TILE as u64).div_ceil(SUBTREE) * DIGEST)?,
            band,
        })
    }

    /// Expands rows of an operand: all of the first ones, or those whose numbers lie at `which`.
    pub(super) fn expand(
        &mut self,
        out: u64,
        which: u64,
        (rows, k): (u64, u32),
        stream: u64,
    ) -> Result<(), Failure> {
        let padded = u64::from(k).next_multiple_of(128);
        let args = [
            Arg::At(out),
            Arg::At(self.seed),
            Arg::At(which),
            Arg::U32(word(rows)?),
            Arg::U32(k),
            Arg::U64(stream),
        ];
        self.gpu.launch(Queue::Work, Kernel::Expand, rows * padded / 16_384, &args)
    }

    /// Multiplies `rows` rows from `a` into `sums`.
    pub(super) fn multiply(
        &mut self,
        gemm: &Gemm,
        (a, b, sums): (u64, u64, u64),
        rows: u64,
    ) -> Result<(), Failure> {
        let args = [
            Arg::At(a),
            Arg::At(b),
            Arg::At(sums),
            Arg::U32(word(rows)?),
            Arg::U32(gemm.n),
            Arg::U32(gemm.k),
        ];
        self.gpu.launch(Queue::Work, Kernel::Gemm, rows / 128 * u64::from(gemm.n / 256), &args)
    }

    /// Hashes `count` tiles of `sums`.
    pub(super) fn hash_tiles(
        &mut self,
        queue: Queue,
        sums: u64,
        count: u64,
        out: u64,
    ) -> Result<(), Failure> {
        let args = [Arg::At(sums), Arg::U64(count), Arg::At(out)];
        self.gpu.launch(queue, Kernel::Leaves, count.div_ceil(128), &args)
    }

    fn reduce(&mut self, queue: Queue, leaves: u64, count: u64, out: u64) -> Result<(), Failure> {
        let args = [Arg::At(leaves), Arg::U64(count), Arg::At(out)];
        self.gpu.launch(queue, Kernel::Tree256, count.div_ceil(SUBTREE), &args)
    }

    /// One product: a band is hashed while the next one is multiplied.
    fn round(&mut self, gemm: &Gemm, buffers: &Buffers, seed: &Digest) -> Result<Crown, Failure> {
        self.gpu.write(self.seed, &seed.0)?;
        let (m, n) = (u64::from(gemm.m), u64::from(gemm.n));
        let padded = u64::from(gemm.k).next_multiple_of(128);
        self.expand(buffers.a, 0, (m, gemm.k), 0)?;
        self.expand(buffers.b, 0, (n, gemm.k), COLUMNS)?;
        let mut hashed = [None, None];
        for (number, row) in (0..m).step_by(usize::try_from(buffers.band).unwrap_or(usize::MAX)).enumerate() {
            let (rows, at) = ((m - row).min(buffers.band), number % 2);
            if let Some(mark) = hashed[at] {
                self.gpu.wait(Queue::Work, mark)?;
            }
            self.multiply(gemm, (buffers.a + row * padded, buffers.b, buffers.sums[at]), rows)?;
            let multiplied = self.gpu.mark(Queue::Work)?;
            self.gpu.wait(Queue::Hash, multiplied)?;
            let tiles = rows * n / TILE as u64;
            self.hash_tiles(Queue::Hash, buffers.sums[at], tiles, buffers.digests[at])?;
            let level8 = buffers.level8 + DIGEST * (row * n / TILE as u64 / SUBTREE);
            self.reduce(Queue::Hash, buffers.digests[at], tiles, level8)?;
            hashed[at] = Some(self.gpu.mark(Queue::Hash)?);
        }
        self.crown(m * n / TILE as u64, buffers.level8)
    }

    fn read_lanes(&mut self, task: &Lanes, seed: &Digest) -> Result<LanesRead, Failure> {
        let origin = self.filled()?.origin;
        let lanes = u64::from(task.lanes);
        let batch = lanes.min(LANES_AT_ONCE);
        let ends = self.scratch((batch + lanes.div_ceil(SUBTREE)) * DIGEST)?;
        let level8 = ends + batch * DIGEST;
        self.gpu.write(self.seed, &seed.0)?;
        for first in (0..lanes).step_by(usize::try_from(LANES_AT_ONCE).unwrap_or(usize::MAX)) {
            let count = (lanes - first).min(LANES_AT_ONCE);
            self.run_lanes(task, first, count, ends)?;
            self.reduce(Queue::Work, ends, count, level8 + first / SUBTREE * DIGEST)?;
        }
        let crown = self.crown(lanes, level8)?;
        Ok(LanesRead { task: *task, seed: *seed, origin, crown })
    }

    /// Runs `count` lanes over what memory holds now; their ends go to `ends`.
    pub(super) fn run_lanes(
        &mut self,
        task: &Lanes,
        first: u64,
        count: u64,
        ends: u64,
    ) -> Result<(), Failure> {
        let Filled { at, origin } = self.filled()?;
        let args = [
            Arg::At(at),
            Arg::U64(origin.blocks()),
            Arg::At(self.seed),
            Arg::U64(first),
            Arg::U64(count),
            Arg::U32(task.reads),
            Arg::At(ends),
        ];
        self.gpu.launch(Queue::Work, Kernel::Lanes, count.div_ceil(256), &args)
    }

    fn pass(&mut self, seed: &Digest) -> Result<Pass, Failure> {
        let Filled { at, origin } = self.filled()?;
        let chunks = origin.task.bytes / CHUNK;
        let ends = self.scratch((chunks + chunks.div_ceil(SUBTREE)) * DIGEST)?;
        self.gpu.write(self.seed, &seed.0)?;
        for first in (0..chunks).step_by(usize::try_from(CHUNKS_AT_ONCE).unwrap_or(usize::MAX)) {
            let count = (chunks - first).min(CHUNKS_AT_ONCE);
            self.read_chunks(Queue::Work, at + first * CHUNK, first, count, ends)?;
        }
        self.reduce(Queue::Work, ends, chunks, ends + chunks * DIGEST)?;
        let crown = self.crown(chunks, ends + chunks * DIGEST)?;
        Ok(Pass { seed: *seed, origin, chunks, crown })
    }

    fn read_chunks(
        &mut self,
        queue: Queue,
        data: u64,
        first: u64,
        count: u64,
        ends: u64,
    ) -> Result<(), Failure> {
        let args = [
            Arg::At(data),
            Arg::At(self.seed),
            Arg::U64(first),
            Arg::U64(count),
            Arg::At(ends + first * DIGEST),
        ];
        self.gpu.launch(queue, Kernel::Stream, count.div_ceil(32), &args)
    }

    /// Reads the copy back: while one piece is digested, the next one comes.
    fn pass_of_copy(&mut self, seed: &Digest) -> Result<Pass, Failure> {
        let Some((pieces, origin)) = self.copy.take() else { return Err(aborted("there is no copy")) };
        let bytes: u64 = pieces.iter().map(|(_, bytes)| bytes).sum();
        let chunks = bytes / CHUNK;
        let digests = (chunks + chunks.div_ceil(SUBTREE)) * DIGEST;
        let at_once = bytes.min(PIECE);
        let room = self.scratch(digests.next_multiple_of(256) + 2 * at_once)?;
        let halves = [room, room + at_once];
        let ends = room + 2 * at_once;
        self.gpu.write(self.seed, &seed.0)?;
        let mut first = 0;
        for ((host, bytes), queue_at) in pieces.iter().zip([0, 1].into_iter().cycle()) {
            let queue = [Queue::Work, Queue::Hash][queue_at];
            self.gpu.up(queue, halves[queue_at], *host, *bytes)?;
            self.read_chunks(queue, halves[queue_at], first, bytes / CHUNK, ends)?;
            first += bytes / CHUNK;
        }
        self.gpu.settle()?;
        self.reduce(Queue::Work, ends, chunks, ends + chunks * DIGEST)?;
        let crown = self.crown(chunks, ends + chunks * DIGEST)?;
        Ok(Pass { seed: *seed, origin, chunks, crown })
    }
}

impl Device for KernelDevice {
    fn fill(&mut self, fill: &Fill, seed: &Digest) -> Result<(), Failure> {
        let filled = Filled { at: self.gpu.take(fill.bytes)?, origin: Origin { seed: *seed, task: *fill } };
        self.write_fill(filled.at, filled.origin)?;
        self.fill = Some(filled);
        Ok(())
    }

    fn gemm(&mut self, gemm: &Gemm, seed: &Digest) -> Result<Vec<Digest>, Failure> {
        let buffers = self.buffers(gemm)?;
        let (mut rounds, mut roots, mut seed) = (Vec::new(), Vec::new(), *seed);
        for _ in 0..gemm.rounds {
            let crown = self.round(gemm, &buffers, &seed)?;
            let root = crown.root()?;
            rounds.push((seed, crown));
            roots.push(root);
            seed = next_round(&seed, &root);
        }
        self.product = Some(Product { task: *gemm, buffers, rounds });
        Ok(roots)
    }

    fn lanes(&mut self, lanes: &Lanes, seed: &Digest) -> Result<Digest, Failure> {
        let read = self.read_lanes(lanes, seed)?;
        let root = read.crown.root();
        self.lanes = Some(read);
        root
    }

    fn stream(&mut self, stream: &Stream, seed: &Digest) -> Result<Vec<Digest>, Failure> {
        let (mut seed, mut roots) = (*seed, Vec::new());
        self.passes.clear();
        for _ in 0..stream.passes {
            let pass = self.pass(&seed)?;
            let root = pass.crown.root()?;
            self.passes.push(pass);
            roots.push(root);
            seed = next_pass(&seed, &root);
        }
        Ok(roots)
    }

    fn spill(&mut self, spill: &Spill, seed: &Digest) -> Result<(), Failure> {
        let old = self.filled()?;
        let mut pieces = Vec::new();
        for first in (0..spill.bytes).step_by(usize::try_from(PIECE).unwrap_or(usize::MAX)) {
            let bytes = (spill.bytes - first).min(PIECE);
            let host = self.gpu.take_host(bytes)?;
            self.gpu.down(Queue::Work, host, old.at + first, bytes)?;
            pieces.push((host, bytes));
        }
        self.gpu.settle()?;
        self.copy = Some((pieces, old.origin));
        let task = Fill { bytes: spill.bytes, ..old.origin.task };
        self.write_fill(old.at, Origin { seed: *seed, task })
    }

    fn give_back(
        &mut self,
        _spill: &Spill,
        lanes: &Lanes,
        seed: &Digest,
    ) -> Result<(Digest, Digest), Failure> {
        let pass = self.pass_of_copy(seed)?;
        let read = self.read_lanes(lanes, &lanes_of_return(seed))?;
        let roots = (pass.crown.root()?, read.crown.root()?);
        self.returned = Some((pass, read));
        Ok(roots)
    }

    fn gemm_open(&mut self, wanted: &[Tile]) -> Result<GemmOpening, Failure> {
        self.open_products(wanted)
    }

    fn lanes_proof(&mut self, lanes: &[u64]) -> Result<Vec<Digest>, Failure> {
        let read = self.lanes.take().ok_or_else(|| aborted("no lanes were read"))?;
        let proof = self.prove_lanes(&read, lanes);
        self.lanes = Some(read);
        proof
    }

    fn stream_proofs(&mut self, wanted: &[PassChunk]) -> Result<Vec<Vec<Digest>>, Failure> {
        let passes = std::mem::take(&mut self.passes);
        let of_pass = |number: usize| {
            let of_it = wanted.iter().filter(move |chosen| chosen.pass as usize == number);
            of_it.map(|chosen| chosen.chunk).collect::<Vec<u64>>()
        };
        let chosen = passes.iter().enumerate().map(|(number, pass)| (pass, of_pass(number)));
        let proofs = chosen
            .filter(|(_, chunks)| !chunks.is_empty())
            .map(|(pass, chunks)| self.prove_chunks(pass, &chunks))
            .collect();
        self.passes = passes;
        proofs
    }

    fn return_proofs(
        &mut self,
        chunks: &[u64],
        lanes: &[u64],
    ) -> Result<(Vec<Digest>, Vec<Digest>), Failure> {
        let (pass, read) = self.returned.take().ok_or_else(|| aborted("nothing has come back"))?;
        let proofs = self
            .prove_chunks(&pass, chunks)
            .and_then(|of_chunks| Ok((of_chunks, self.prove_resident_lanes(&read, lanes)?)));
        self.returned = Some((pass, read));
        proofs
    }
}

pub(super) fn word(number: u64) -> Result<u32, Failure> {
    u32::try_from(number).map_err(|_| aborted("a product is too large"))
}
