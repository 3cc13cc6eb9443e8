//! Tests of GPUs that a processor can do: smaller, but as dear for who judges them.
//!
//! What a judge does for a sample depends on the length of a sum, the depth of a block and the reads of a
//! lane, which stay; it does not depend on how many there were to choose from, but for the paths in
//! trees, which are measured apart.

use std::collections::BTreeMap;

use anyhow::Context as _;
use nave_domain::{
    Bytes, MilliCpu,
    host::{Device, Inventory, Runtime},
};
use nave_proof::{
    DeviceTask, DevicesTask, Digest, Gemm, Phase, Spill, Stream, Task, device::CHUNK, gemm, merkle, vram,
};
use nave_rules::{
    catalogue::{Catalogue, Class},
    size::{Purpose, size},
};

/// Chunks that are filled, and those that are copied.
const CHUNKS: u64 = 64;
const CHUNKS_COPIED: u64 = 16;
/// Lanes to choose from.
const LANES: u32 = 1024;
/// Bytes of a tile of a product in an opening.
const TILE: usize = 1024;

/// The test of one device of a class, as a host that claims `memory` gets it.
pub fn of(class: &str, memory: Bytes, onboarding: bool) -> anyhow::Result<DevicesTask> {
    let catalogue = Catalogue::embedded().map_err(anyhow::Error::msg)?;
    let class = catalogue.named(class).with_context(|| format!("find the class {class}"))?;
    match size(catalogue, &[device(class, 0)], memory, Purpose::Full { onboarding })
        .map_err(anyhow::Error::msg)?
    {
        Task::Devices(task) => Ok(task),
        Task::Cpu(_) | Task::Memory(_) | Task::Storage(_) | Task::Software(_) | Task::Transfer(_) => {
            anyhow::bail!("the test of devices is another one")
        }
    }
}

/// A host of eight devices of a class, with 12 GiB of memory for each core: as much as most such hosts have, or more.
pub fn host_of_eight(class: &Class) -> Inventory {
    Inventory {
        milli_cpu: MilliCpu(170_000),
        memory: Bytes(2_040 * Bytes::GIB),
        disk: Bytes(1 << 40),
        devices: (0..8).map(|slot| device(class, slot)).collect(),
        cpu_model: String::new(),
        os: String::new(),
        kernel: String::new(),
        runtime: Runtime::Simulated,
        egress: Vec::new(),
        agent: String::new(),
    }
}

fn device(class: &Class, slot: usize) -> Device {
    let vram_mib = class.datasheet.as_ref().map_or(1, |datasheet| i64::from(datasheet.vram_mib));
    Device {
        uuid: format!("{}{slot}", if class.simulated { "SIM-" } else { "GPU-" }),
        model: class.models.first().cloned().unwrap_or_default(),
        vram: Bytes(vram_mib * Bytes::MIB),
        driver: String::new(),
        simulated: class.simulated,
        division: nave_domain::fraction::Division::default(),
    }
}

/// Less of everything that a judge does not look at.
pub fn shrunk(task: &DevicesTask) -> DevicesTask {
    let device = |device: &DeviceTask| DeviceTask {
        uuid: device.uuid.clone(),
        fill: device.fill.map(|fill| nave_proof::Fill { bytes: fill.bytes.min(CHUNKS * CHUNK), ..fill }),
        gemm: device.gemm.map(|gemm| Gemm { m: 256, n: 256, rounds: 1, ..gemm }),
        lanes: device.lanes.map(|lanes| nave_proof::Lanes { lanes: lanes.lanes.min(LANES), ..lanes }),
        stream: device.stream.map(|stream| Stream { passes: 1, ..stream }),
        spill: device.spill.map(|spill| Spill { bytes: spill.bytes.min(CHUNKS_COPIED * CHUNK), ..spill }),
    };
    DevicesTask { devices: task.devices.iter().map(device).collect(), patience_ms: task.patience_ms.clone() }
}

/// Only some phases, and what they need.
pub fn only(task: &DevicesTask, phases: &[Phase]) -> DevicesTask {
    let has = |phase| phases.contains(&phase);
    let device = |device: &DeviceTask| DeviceTask {
        uuid: device.uuid.clone(),
        fill: device.fill.filter(|_| has(Phase::Fill)),
        gemm: device.gemm.filter(|_| has(Phase::Gemm)),
        lanes: device.lanes.filter(|_| has(Phase::Lanes)),
        stream: device.stream.filter(|_| has(Phase::Stream)),
        spill: device.spill.filter(|_| has(Phase::Spill)),
    };
    let devices: Vec<DeviceTask> = task.devices.iter().map(device).collect();
    let mut only = DevicesTask { devices, patience_ms: Vec::new() };
    let steps = only.phases().len() + 1;
    only.patience_ms = vec![nave_domain::Millis(600_000); steps];
    only
}

/// Compressions of SHA-256 that nobody who judges a device can do without: the blocks of its samples.
pub fn compressions(task: &DeviceTask) -> u64 {
    let depth = task.fill.map_or(0, |fill| u64::from(fill.depth));
    let lanes = task.lanes.map_or(0, |lanes| u64::from(lanes.samples) * u64::from(lanes.reads));
    let chunks = task.stream.map_or(0, |stream| stream.samples) + task.spill.map_or(0, |spill| spill.samples);
    let again = if task.spill.is_some() { 2 } else { 1 };
    (lanes * again + u64::from(chunks) * (CHUNK / 32)) * depth
}

/// The length of the opening of one device, in bytes: it follows from what is chosen.
pub fn opening_bytes(task: &DeviceTask, seed: &Digest) -> usize {
    let (mut digests, mut tiles) = (0, 0);
    if let Some(gemm) = &task.gemm {
        for (_, leaves) in gemm_leaves(gemm, seed) {
            tiles += leaves.len();
            digests += merkle::proof_len(leaves, gemm::leaves(gemm));
        }
        digests += gemm.rounds as usize;
    }
    if let Some(lanes) = &task.lanes {
        let times = if task.spill.is_some() { 2 } else { 1 };
        let proof = merkle::proof_len(vram::chosen_lanes(lanes, seed), u64::from(lanes.lanes));
        digests += times * (proof + 1);
    }
    if let (Some(stream), Some(fill)) = (&task.stream, &task.fill) {
        let chosen = vram::by_pass(&vram::chosen_of_passes(stream, fill, seed));
        let chunks = vram::chunks(fill.bytes);
        digests += chosen.into_values().map(|wanted| merkle::proof_len(wanted, chunks)).sum::<usize>();
        digests += stream.passes as usize;
    }
    if let Some(spill) = &task.spill {
        digests += merkle::proof_len(vram::chosen_of_copy(spill, seed), vram::chunks(spill.bytes)) + 1;
    }
    tiles * TILE + digests * 32
}

/// The chosen leaves of each product.
fn gemm_leaves(gemm: &Gemm, seed: &Digest) -> BTreeMap<u32, Vec<u64>> {
    gemm::by_round(&gemm::tiles(gemm, &gemm::chosen(gemm, seed)))
}

/// Hashes all paths of a device's products, and says how many compressions that were.
pub fn climb(gemm: &Gemm, seed: &Digest) -> usize {
    let mut digests = 0;
    for (_, leaves) in gemm_leaves(gemm, seed) {
        let proof = vec![*seed; merkle::proof_len(leaves.iter().copied(), gemm::leaves(gemm))];
        digests += proof.len();
        let leaves = leaves.into_iter().map(|leaf| (leaf, *seed)).collect();
        std::hint::black_box(merkle::root(leaves, gemm::leaves(gemm), &proof));
    }
    digests
}
