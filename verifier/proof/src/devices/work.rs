//! What host and verifier both derive: seeds, commitments, and what an opening has.

use sha2::{Digest as _, Sha256};

use crate::{
    DeviceTask, Digest, Phase,
    device::{PassChunk, TILE_BYTES, Tile},
    gemm::{self, Entry},
    merkle,
    transcript::hash,
    vram,
};

/// A digest in an opening, the unit of its length.
pub(crate) type Unit = [u8; 32];
/// Units that are one tile.
pub(crate) const TILE_UNITS: usize = TILE_BYTES / size_of::<Unit>();

/// What a device starts from after a reveal: no other device, slot or reveal has it.
pub(crate) fn seed(binding: &Digest, slot: usize, uuid: &str) -> Digest {
    let slot = u32::try_from(slot).unwrap_or(u32::MAX).to_le_bytes();
    hash("nave proof device", &[&binding.0, &slot, &Sha256::digest(uuid)])
}

/// How many roots a phase leaves.
pub(crate) fn roots(task: &DeviceTask, phase: Phase) -> usize {
    match phase {
        Phase::Fill | Phase::Spill => 0,
        Phase::Gemm => task.gemm.map_or(0, |gemm| gemm.rounds as usize),
        Phase::Lanes => 1,
        Phase::Stream => task.stream.map_or(0, |stream| stream.passes as usize),
        Phase::Return => 2,
    }
}

/// What a device says of a phase, given its seed and the roots that the phase left.
pub(crate) fn digest(phase: Phase, seed: &Digest, roots: &[Digest]) -> Digest {
    let over = |domain| hash(domain, &roots.iter().map(|root| &root.0[..]).collect::<Vec<_>>());
    match (phase, roots) {
        (Phase::Fill | Phase::Spill, _) => hash("nave proof filled", &[&seed.0]),
        (Phase::Gemm, _) => over("nave proof rounds"),
        (Phase::Lanes, [root, ..]) => *root,
        (Phase::Lanes, []) => over("nave proof lanes"),
        (Phase::Stream, _) => over("nave proof passes"),
        (Phase::Return, _) => over("nave proof return"),
    }
}

/// What a host commits to: what each of its devices says of a phase.
pub(crate) fn commitment(digests: &[Digest]) -> Digest {
    hash("nave proof devices", &digests.iter().map(|digest| &digest.0[..]).collect::<Vec<_>>())
}

/// What the last reveal chose of a phase of a device; everything ascends, and nothing is there twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Chosen {
    Nothing,
    Gemm { entries: Vec<Entry>, tiles: Vec<Tile> },
    Lanes(Vec<u64>),
    Stream(Vec<PassChunk>),
    Return { chunks: Vec<u64>, lanes: Vec<u64> },
}

impl Chosen {
    /// `seed` is the device's after the last reveal.
    pub(crate) fn of(task: &DeviceTask, phase: Phase, seed: &Digest) -> Self {
        let lot = &hash("nave proof lot", &[&seed.0, &[phase as u8]]);
        let chosen = match phase {
            Phase::Fill | Phase::Spill => None,
            Phase::Gemm => task.gemm.map(|gemm| {
                let entries = gemm::chosen(&gemm, lot);
                Self::Gemm { tiles: gemm::tiles(&gemm, &entries), entries }
            }),
            Phase::Lanes => task.lanes.map(|lanes| Self::Lanes(vram::chosen_lanes(&lanes, lot))),
            Phase::Stream => {
                let task = task.stream.zip(task.fill);
                task.map(|(stream, fill)| Self::Stream(vram::chosen_of_passes(&stream, &fill, lot)))
            }
            Phase::Return => task.spill.zip(task.lanes).map(|(spill, lanes)| Self::Return {
                chunks: vram::chosen_of_copy(&spill, lot),
                lanes: vram::chosen_lanes(&lanes, lot),
            }),
        };
        chosen.unwrap_or(Self::Nothing)
    }

    /// Tiles that an opening has for it.
    pub(crate) fn tiles(&self) -> usize {
        match self {
            Self::Gemm { tiles, .. } => tiles.len(),
            Self::Nothing | Self::Lanes(_) | Self::Stream(_) | Self::Return { .. } => 0,
        }
    }

    /// The lengths of the multiproofs that an opening has for it.
    pub(crate) fn proofs(&self, task: &DeviceTask) -> Vec<usize> {
        let lanes = task.lanes.map_or(0, |lanes| u64::from(lanes.lanes));
        let filled = task.fill.map_or(0, |fill| vram::chunks(fill.bytes));
        let len = |leaves: &[u64], count| merkle::proof_len(leaves.iter().copied(), count);
        match self {
            Self::Nothing => Vec::new(),
            Self::Gemm { tiles, .. } => {
                let count = task.gemm.as_ref().map_or(0, gemm::leaves);
                gemm::by_round(tiles).values().map(|leaves| len(leaves, count)).collect()
            }
            Self::Lanes(chosen) => vec![len(chosen, lanes)],
            Self::Stream(chosen) => {
                vram::by_pass(chosen).values().map(|chunks| len(chunks, filled)).collect()
            }
            Self::Return { chunks, lanes: chosen } => {
                let copied = task.spill.map_or(0, |spill| vram::chunks(spill.bytes));
                vec![len(chunks, copied), len(chosen, lanes)]
            }
        }
    }

    /// How many units an opening has for it, after the roots.
    pub(crate) fn units(&self, task: &DeviceTask) -> usize {
        self.tiles() * TILE_UNITS + self.proofs(task).iter().sum::<usize>()
    }
}

/// `GPU 3 (GPU-4f1f07c2…)`.
pub(crate) fn name(slot: usize, uuid: &str) -> String {
    match uuid.char_indices().nth(12) {
        Some((end, _)) => format!("GPU {slot} ({}…)", &uuid[..end]),
        None => format!("GPU {slot} ({uuid})"),
    }
}
