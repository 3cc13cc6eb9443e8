//! A simulated GPU: it computes everything really, on a CPU, and takes the time that its model says.
//!
//! It is the reference for all devices: what it answers, bit for bit, is what every device must answer. With it a
//! whole market runs without a GPU, and attacks on it run against the code that real hosts run.

mod model;
mod pace;
#[cfg(test)]
mod tests;

pub use model::{Dishonesty, SoftwareModel};
use model::{Speed, Ways};
pub use pace::{Pace, Sleeping, Turn, Turns, VirtualClock};

use crate::{
    Digest, Failure, Fill, Gemm, Lanes, Phase, Reason, Spill, Stream, chacha,
    device::{
        Device, GemmOpening, PassChunk, TILE_BYTES, Tile, VRAM_BLOCK, lanes_of_return, next_pass, next_round,
    },
    gemm::{self, Product},
    merkle::Tree,
    mix::below,
    sha::{self, Words},
    transcript::{expand, hash},
    vram::{self, Contents},
};

/// A device that is computed on a CPU.
pub struct SoftwareDevice {
    ways: Ways,
    speed: Speed,
    vram: u64,
    pace: Box<dyn Pace>,
    turn: Option<Turn>,
    fill: Option<Filled>,
    copy: Option<Filled>,
    products: Vec<Product>,
    lanes: Option<Tree>,
    passes: Vec<Tree>,
    returned: Option<(Tree, Tree)>,
}

/// Memory that is filled, or a copy of it.
struct Filled {
    memory: Contents,
    /// The first blocks; what is not kept is computed again when it is read.
    kept: Vec<Words>,
}

impl Filled {
    fn block(&self, number: u64) -> Words {
        let kept = self.kept.get(usize::try_from(number).unwrap_or(usize::MAX)).copied();
        kept.unwrap_or_else(|| self.memory.block(number))
    }

    fn pass(&self, seed: &Digest, bytes: u64, made_up: u16) -> Tree {
        let leaf = |chunk: u64| match is_made_up(seed, chunk, made_up) {
            true => sha::STREAM.hash(&chunk.to_le_bytes()),
            false => vram::chunk(seed, chunk, |number| self.block(number)),
        };
        Tree::over((0..vram::chunks(bytes)).map(leaf).collect())
    }

    fn lanes(&self, lanes: &Lanes, seed: &Digest, made_up: u16) -> Tree {
        let blocks = vram::blocks(&self.memory.fill);
        let leaf = |lane: u64| match is_made_up(seed, lane, made_up) {
            true => sha::LANE.hash(&lane.to_le_bytes()),
            false => vram::lane((lanes, seed, blocks), lane, |number| self.block(number)),
        };
        Tree::over((0..u64::from(lanes.lanes)).map(leaf).collect())
    }
}

/// Whether a dishonest device makes up `number`: as likely for each, so that no sample is luckier.
fn is_made_up(seed: &Digest, number: u64, per_mille: u16) -> bool {
    per_mille > 0 && below(expand("nave proof made up", seed, number)[0], 1000) < u64::from(per_mille)
}

fn made_up_tile(seed: &Digest, number: u64) -> [u8; TILE_BYTES] {
    let mut tile = [0; TILE_BYTES];
    chacha::fill(&hash("nave proof made up", &[&seed.0]), number, &mut tile);
    tile
}

impl SoftwareDevice {
    /// A device of a model. Devices that have `turns` in common take turns where their models say that they
    /// are one.
    #[must_use]
    pub fn new(model: &SoftwareModel, pace: Box<dyn Pace>, turns: &Turns) -> Self {
        let ways = Ways::of(model);
        let turn = ways.shared.as_deref().map(|name| turns.of(name));
        let speed = Speed::new(model, &ways);
        let vram = u64::try_from(model.vram.0).unwrap_or(0);
        Self {
            ways,
            speed,
            vram,
            pace,
            turn,
            fill: None,
            copy: None,
            products: Vec::new(),
            lanes: None,
            passes: Vec::new(),
            returned: None,
        }
    }

    /// Does the work of a phase in the time `length` of the model, with the seed it uses.
    fn work<T>(
        &mut self,
        phase: Phase,
        length: impl FnOnce(&Speed) -> std::time::Duration,
        mut work: impl FnMut(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        if self.ways.broken.contains(&phase) {
            return Err(failure(Reason::DeviceUnavailable, "the simulated device broke down"));
        }
        let (length, turn) = (length(&self.speed), self.turn.clone());
        let mut pace = std::mem::replace(&mut self.pace, Box::new(Sleeping));
        let mut done = None;
        pace.spend(length, turn.as_ref(), &mut || done = Some(work(self)));
        self.pace = pace;
        done.unwrap_or_else(|| Err(failure(Reason::Aborted, "the simulated device did nothing")))
    }

    /// The seed that is used instead of the one that was given.
    fn seed(&self, seed: &Digest) -> Digest {
        if self.ways.is_precomputed { Digest([0; 32]) } else { *seed }
    }

    fn filled(&self) -> Result<&Filled, Failure> {
        self.fill.as_ref().ok_or_else(unfilled)
    }

    fn derive(&self, fill: &Fill, seed: &Digest) -> Filled {
        let kept = vram::derive(fill, seed, self.ways.kept(vram::blocks(fill)));
        Filled { memory: Contents::new(fill, seed), kept }
    }

    fn has_room(&self, fill: &Fill) -> Result<(), Failure> {
        let lent = u64::try_from(self.ways.lent_vram.0).unwrap_or(0);
        if fill.bytes > self.vram {
            let message = format!("a fill of {} bytes, but a memory of {}", fill.bytes, self.vram);
            return Err(Failure { code: Reason::DeviceUnavailable, message });
        }
        if fill.bytes > self.vram.saturating_sub(lent) {
            let message = format!("a fill of {} bytes, but others hold {lent} of {}", fill.bytes, self.vram);
            return Err(Failure { code: Reason::DeviceBusy, message });
        }
        Ok(())
    }
}

fn failure(code: Reason, message: &str) -> Failure {
    Failure { code, message: message.into() }
}

fn rooted(tree: &Tree) -> Result<Digest, Failure> {
    tree.root().ok_or_else(|| failure(Reason::Aborted, "there was nothing to do"))
}

fn unfilled() -> Failure {
    failure(Reason::Aborted, "the memory was never filled")
}

fn unknown() -> Failure {
    failure(Reason::Aborted, "what is wanted was never computed")
}

impl Device for SoftwareDevice {
    fn fill(&mut self, fill: &Fill, seed: &Digest) -> Result<(), Failure> {
        let seed = self.seed(seed);
        self.has_room(fill)?;
        self.work(
            Phase::Fill,
            |speed| speed.phase([speed.fill(fill)]),
            |device| {
                device.fill = Some(device.derive(fill, &seed));
                Ok(())
            },
        )
    }

    fn gemm(&mut self, gemm: &Gemm, seed: &Digest) -> Result<Vec<Digest>, Failure> {
        let seed = self.seed(seed);
        self.work(
            Phase::Gemm,
            |speed| speed.phase([speed.gemm(gemm)]),
            |device| {
                let (skip, mut seed, mut roots) = (device.ways.skip, seed, Vec::new());
                device.products.clear();
                for _ in 0..gemm.rounds {
                    let made_up = |leaf| is_made_up(&seed, leaf, skip).then(|| made_up_tile(&seed, leaf));
                    let product = Product::new(gemm, &seed, made_up);
                    let root = product.root().ok_or_else(unknown)?;
                    device.products.push(product);
                    seed = next_round(&seed, &root);
                    roots.push(root);
                }
                Ok(roots)
            },
        )
    }

    fn lanes(&mut self, lanes: &Lanes, seed: &Digest) -> Result<Digest, Failure> {
        let (seed, fill) = (self.seed(seed), self.filled()?.memory.fill);
        self.work(
            Phase::Lanes,
            |speed| speed.phase([speed.lanes(lanes, &fill)]),
            |device| {
                let tree = device.filled()?.lanes(lanes, &seed, device.ways.cheat_reads);
                rooted(device.lanes.insert(tree))
            },
        )
    }

    fn stream(&mut self, stream: &Stream, seed: &Digest) -> Result<Vec<Digest>, Failure> {
        let (seed, fill) = (self.seed(seed), self.filled()?.memory.fill);
        self.work(
            Phase::Stream,
            |speed| speed.phase((0..stream.passes).map(|_| speed.pass(fill.bytes, &fill))),
            |device| {
                let (mut seed, mut roots) = (seed, Vec::new());
                device.passes.clear();
                for _ in 0..stream.passes {
                    let tree = device.filled()?.pass(&seed, fill.bytes, device.ways.cheat_stream);
                    let root = rooted(&tree)?;
                    device.passes.push(tree);
                    seed = next_pass(&seed, &root);
                    roots.push(root);
                }
                Ok(roots)
            },
        )
    }

    fn spill(&mut self, spill: &Spill, seed: &Digest) -> Result<(), Failure> {
        let (seed, fill) = (self.seed(seed), self.filled()?.memory.fill);
        self.work(
            Phase::Spill,
            |speed| speed.phase([speed.copy(spill.bytes, &fill), speed.fill_anew(spill, &fill)]),
            |device| {
                let filled = device.fill.as_mut().ok_or_else(unfilled)?;
                let (old, blocks) = (filled.memory, spill.bytes / VRAM_BLOCK);
                let copied = if device.ways.forgets_copy { 0 } else { blocks };
                let kept = (0..copied).map(|number| filled.block(number)).collect();
                let anew = vram::derive(&fill, &seed, blocks.min(filled.kept.len() as u64));
                filled.kept[..anew.len()].copy_from_slice(&anew);
                filled.memory = old.spilled(spill, &seed);
                device.copy = Some(Filled { memory: old, kept });
                Ok(())
            },
        )
    }

    fn give_back(
        &mut self,
        spill: &Spill,
        lanes: &Lanes,
        seed: &Digest,
    ) -> Result<(Digest, Digest), Failure> {
        let (seed, fill) = (self.seed(seed), self.filled()?.memory.fill);
        self.work(
            Phase::Return,
            |speed| {
                speed.phase([speed.copy_back(spill.bytes, &fill), speed.lanes_of_return(lanes, spill, &fill)])
            },
            |device| {
                let copy = device.copy.as_ref().ok_or_else(unknown)?;
                let pass = copy.pass(&seed, spill.bytes, device.ways.cheat_stream);
                let reads = lanes_of_return(&seed);
                let ends = device.filled()?.lanes(lanes, &reads, device.ways.cheat_reads);
                let (pass, ends) = device.returned.insert((pass, ends));
                Ok((rooted(pass)?, rooted(ends)?))
            },
        )
    }

    fn gemm_open(&mut self, wanted: &[Tile]) -> Result<GemmOpening, Failure> {
        gemm::open(&self.products, wanted).ok_or_else(unknown)
    }

    fn lanes_proof(&mut self, lanes: &[u64]) -> Result<Vec<Digest>, Failure> {
        Ok(self.lanes.as_ref().ok_or_else(unknown)?.proof(lanes.iter().copied()))
    }

    fn stream_proofs(&mut self, wanted: &[PassChunk]) -> Result<Vec<Vec<Digest>>, Failure> {
        let proof = |(pass, chunks): (u32, Vec<u64>)| {
            Ok(self.passes.get(pass as usize).ok_or_else(unknown)?.proof(chunks))
        };
        vram::by_pass(wanted).into_iter().map(proof).collect()
    }

    fn return_proofs(
        &mut self,
        chunks: &[u64],
        lanes: &[u64],
    ) -> Result<(Vec<Digest>, Vec<Digest>), Failure> {
        let (pass, ends) = self.returned.as_ref().ok_or_else(unknown)?;
        Ok((pass.proof(chunks.iter().copied()), ends.proof(lanes.iter().copied())))
    }
}
