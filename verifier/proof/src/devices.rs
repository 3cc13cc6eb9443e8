//! Tests of all GPUs of a host at once: what sizes they may have.
//!
//! The bounds keep a host from being asked for work without end, and a verifier from having to
//! do it again. They are far above what any test needs.

#[cfg(feature = "judge")]
pub(crate) mod judge;
#[cfg(feature = "prover")]
pub(crate) mod prove;
#[cfg(any(feature = "judge", feature = "prover"))]
mod work;

use std::collections::BTreeSet;

use crate::{
    DeviceTask, DevicesTask, Fill, Gemm, Lanes, OPENING_MAX, Phase, Spill, Stream,
    sizes::{CHUNK, TILE, VRAM_BLOCK},
};

/// Most devices of a host.
pub(crate) const DEVICES_MAX: usize = 64;
/// Longest name of a device, in bytes.
const UUID_MAX: usize = 64;
/// Longest time for a step.
const PATIENCE_MS_MAX: i64 = 600_000;
/// Most rows and columns of a product.
const SIDE_MAX: u32 = 1 << 16;
/// Longest sum that 32 bits hold whatever is added.
const SUM_MAX: u32 = 131_071;
/// Most rounds or passes: each leaves a root.
const ROOTS_MAX: u32 = 1 << 12;
/// Most that is chosen of one kind.
const SAMPLES_MAX: u32 = 4096;
/// Most lanes: their ends are kept until the opening.
const LANES_MAX: u32 = 1 << 26;
/// Most reads in a lane.
const READS_MAX: u32 = 1 << 16;
/// Most of a device's memory.
const FILL_MAX: u64 = 1 << 41;
/// Most compressions for a block.
const DEPTH_MAX: u32 = 4096;
/// Most multiplications, compressions, reads and bytes of one phase of one device.
const PRODUCTS_MAX: u128 = 1 << 58;
const FILL_WORK_MAX: u128 = 1 << 43;
const READ_WORK_MAX: u128 = 1 << 41;
const STREAM_WORK_MAX: u128 = 1 << 53;
/// Most compressions that a verifier does again, for all devices together.
const COMPRESSIONS_MAX: u128 = 1 << 28;
/// Most bytes of matrices that a verifier derives again, for all devices together.
const MATRICES_MAX: u128 = 1 << 30;
/// Longest way from a leaf to a root: far more than any tree here has.
const PATH_MAX: u128 = 48;

/// Refuses sizes that would cost a host or the verifier too much.
pub(crate) fn check(task: &DevicesTask) -> Result<(), String> {
    if !(1..=DEVICES_MAX).contains(&task.devices.len()) {
        return Err(format!("{} devices are tested, not 1 to {DEVICES_MAX}", task.devices.len()));
    }
    let names: BTreeSet<&str> = task.devices.iter().map(|device| device.uuid.as_str()).collect();
    if names.len() != task.devices.len() {
        return Err("a device is tested twice".into());
    }
    let first = &task.devices[0];
    for (slot, device) in task.devices.iter().enumerate() {
        check_device(device).map_err(|what| format!("device {slot}: {what}"))?;
        if Phase::ALL.iter().any(|phase| device.has(*phase) != first.has(*phase)) {
            return Err(format!("device {slot} has other phases than the first"));
        }
    }
    check_steps(task)?;
    check_cost(task)
}

fn check_steps(task: &DevicesTask) -> Result<(), String> {
    let phases = task.phases().len();
    if phases == 0 {
        return Err("the devices have nothing to do".into());
    }
    let in_range = task.patience_ms.iter().all(|most| (1..=PATIENCE_MS_MAX).contains(&most.0));
    if in_range && task.patience_ms.len() == phases + 1 {
        return Ok(());
    }
    Err(format!("{} phases and the opening need {} times", phases, phases + 1))
}

fn check_device(task: &DeviceTask) -> Result<(), &'static str> {
    let is_name =
        |name: &str| (1..=UUID_MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
    let needs_fill = task.lanes.is_some() || task.stream.is_some() || task.spill.is_some();
    let rules = [
        (is_name(&task.uuid), "its name is none"),
        (task.fill.is_some() || !needs_fill, "what reads its memory needs a fill"),
        (task.lanes.is_some() || task.spill.is_none(), "a spill needs lanes that read what is filled anew"),
        (task.fill.as_ref().is_none_or(fill), "its fill is out of range"),
        (task.gemm.as_ref().is_none_or(gemm), "its products are out of range"),
        (task.lanes.as_ref().is_none_or(lanes), "its lanes are out of range"),
        (
            task.stream.as_ref().is_none_or(|stream| passes(stream, filled(task))),
            "its passes are out of range",
        ),
        (task.spill.as_ref().is_none_or(|copy| spill(copy, filled(task))), "its spill is out of range"),
    ];
    rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, why)| Err(why))
}

fn filled(task: &DeviceTask) -> u64 {
    task.fill.map_or(0, |fill| fill.bytes)
}

fn is_whole_chunks(bytes: u64) -> bool {
    bytes > 0 && bytes.is_multiple_of(CHUNK)
}

fn fill(fill: &Fill) -> bool {
    is_whole_chunks(fill.bytes)
        && fill.bytes <= FILL_MAX
        && (1..=DEPTH_MAX).contains(&fill.depth)
        && hashes(fill) <= FILL_WORK_MAX
}

fn gemm(gemm: &Gemm) -> bool {
    let is_side = |side: u32| (1..=SIDE_MAX).contains(&side) && side.is_multiple_of(TILE as u32);
    is_side(gemm.m)
        && is_side(gemm.n)
        && (1..=SUM_MAX).contains(&gemm.k)
        && gemm.k.is_multiple_of(64)
        && (1..=ROOTS_MAX).contains(&gemm.rounds)
        && (1..=SAMPLES_MAX).contains(&gemm.samples)
        && products(gemm) <= PRODUCTS_MAX
}

fn lanes(lanes: &Lanes) -> bool {
    (1..=LANES_MAX).contains(&lanes.lanes)
        && (1..=READS_MAX).contains(&lanes.reads)
        && (1..=SAMPLES_MAX).contains(&lanes.samples)
        && reads(lanes) <= READ_WORK_MAX
}

fn passes(stream: &Stream, filled: u64) -> bool {
    (1..=ROOTS_MAX).contains(&stream.passes)
        && (1..=SAMPLES_MAX).contains(&stream.samples)
        && u128::from(stream.passes) * u128::from(filled) <= STREAM_WORK_MAX
}

fn spill(spill: &Spill, filled: u64) -> bool {
    is_whole_chunks(spill.bytes) && spill.bytes <= filled && (1..=SAMPLES_MAX).contains(&spill.samples)
}

/// Compressions of a whole fill.
pub(crate) fn hashes(fill: &Fill) -> u128 {
    u128::from(fill.bytes / VRAM_BLOCK) * u128::from(fill.depth)
}

/// Products of two numbers, of all rounds.
pub(crate) fn products(gemm: &Gemm) -> u128 {
    [gemm.rounds, gemm.m, gemm.n, gemm.k].into_iter().map(u128::from).product()
}

/// Reads of all lanes.
pub(crate) fn reads(lanes: &Lanes) -> u128 {
    u128::from(lanes.lanes) * u128::from(lanes.reads)
}

/// Bounds what the verifier does again, and what travels.
fn check_cost(task: &DevicesTask) -> Result<(), String> {
    let sum = |of: fn(&DeviceTask) -> u128| task.devices.iter().map(of).sum::<u128>();
    let rules = [
        (sum(compressions) <= COMPRESSIONS_MAX, "the verifier would have to hash too much"),
        (sum(matrix_bytes) <= MATRICES_MAX, "the verifier would have to multiply too much"),
        (32 + sum(opening_bytes) <= OPENING_MAX as u128, "the opening would be too long"),
    ];
    rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, why)| Err((*why).into()))
}

/// Compressions that the verifier does again.
fn compressions(task: &DeviceTask) -> u128 {
    let depth = u128::from(task.fill.map_or(0, |fill| fill.depth));
    let lanes = task.lanes.map_or(0, |lanes| u128::from(lanes.samples) * u128::from(lanes.reads));
    let returned = if task.spill.is_some() { lanes } else { 0 };
    let chunks = u128::from(task.stream.map_or(0, |stream| stream.samples))
        + u128::from(task.spill.map_or(0, |spill| spill.samples));
    (lanes + returned + chunks * u128::from(CHUNK / VRAM_BLOCK)) * depth
}

/// Bytes of rows and columns that the verifier derives again.
fn matrix_bytes(task: &DeviceTask) -> u128 {
    task.gemm.map_or(0, |gemm| 2 * u128::from(gemm.samples) * u128::from(gemm.k))
}

/// What a device's part of an opening never exceeds.
fn opening_bytes(task: &DeviceTask) -> u128 {
    let (mut digests, mut chosen) = (0, 0);
    if let Some(gemm) = &task.gemm {
        digests += u128::from(gemm.rounds);
        digests += gemm_digests(gemm);
    }
    if let Some(lanes) = &task.lanes {
        let phases = if task.spill.is_some() { 2 } else { 1 };
        digests += phases;
        chosen += phases * u128::from(lanes.samples);
    }
    if let Some(stream) = &task.stream {
        digests += u128::from(stream.passes);
        chosen += u128::from(stream.samples);
    }
    if let Some(spill) = &task.spill {
        digests += 1;
        chosen += u128::from(spill.samples);
    }
    32 * (digests + chosen * PATH_MAX)
}

/// Tiles of a product are at most 2^24, and each has a tile's bytes beside its path.
fn gemm_digests(gemm: &Gemm) -> u128 {
    let tiles = u64::from(gemm.m) * u64::from(gemm.n) / TILE as u64;
    let path = tiles.next_power_of_two().trailing_zeros();
    u128::from(gemm.samples) * (u128::from(path) + (TILE as u128 * 4) / 32)
}
