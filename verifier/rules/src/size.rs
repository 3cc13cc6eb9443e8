//! How large the test of a host's devices is. Pure.
//!
//! Sizes follow from what is claimed: a model that the catalogue knows has its own test, any other
//! one that is neither too long for a slow device nor too short for a fast one. A claim that
//! is wrong makes a test longer or shorter, never easier: no name leaves anything out, for a device or
//! for those beside it. Where a class has no products of its own, its devices are given those of
//! unknown models; what cannot compute even them says so, and its host proves nothing with it.

use std::collections::BTreeMap;

use nave_domain::{
    Bytes, MilliCpu, Millis,
    host::{Device, Inventory, parts},
};
use nave_proof::{
    DeviceTask, DevicesTask, Fill, Gemm, Lanes, Phase, Spill, Stream, Task, covered,
    device::{CHUNK, VRAM_BLOCK},
};

use crate::{
    catalogue::{Band, Catalogue, Class, Measure, Product},
    class::SHARED,
};

/// Entries of a product that are computed again.
const SAMPLES: u32 = 256;
/// Those of a host that is new: whoever leaves out 1 % of the work is found all but once in 30 000 times.
const SAMPLES_ONBOARDING: u32 = 1_024;
/// Fewest: 5 % of the work left out passes four times in a hundred.
const SAMPLES_MIN: u32 = 64;
/// Compressions that the verifier does again for the lanes of a device, and for its passes.
const HASHES: u64 = 1 << 20;
/// Most chunks of passes that are computed again.
const CHUNK_SAMPLES_MAX: u32 = 16;
/// Fewest compressions for a block of which a copy is sent to the host's memory.
const DEPTH_SPILLED: u32 = 64;
/// Memory of a device that its driver and the prover need.
const RESERVE: u64 = 512 << 20;
/// Matrices take at most this part of a device's memory.
const MATRICES: u64 = 12;
/// Share of a host's memory that takes in the copies of all devices, in hundredths.
const HOST_PERCENT: u64 = 60;
/// Most that is copied: what pinning so much costs is longer than the copy.
const SPILL_MAX: u64 = 16 << 30;
/// How many times as long as the slowest honest device needs is waited for.
const MARGIN: u64 = 3;
/// Shortest and longest wait for a step.
const PATIENCE_MS: (u64, u64) = (20_000, 600_000);
/// What the opening may take: chosen parts are computed again, then they travel.
const OPENING_MS: u64 = 120_000;
/// How long the products of a small proof take the slowest honest device when nobody else uses it: so long that the
/// way of an answer is a small part, since what was measured is compared.
const SMALL_MS: u64 = 2_000;
/// The same of a device that is held to what it did itself when it was free, since nobody has measured others like it. Its
/// step ends when it did less than a part of [`SHARED`] of that, so the way must count even less.
const SMALL_OWN_MS: u64 = 4_000;
/// How long an answer may be on its way then, and its prover may take to begin.
const WAY_MS: u64 = 4_000;
/// Longest sums of a small proof: with less memory they leave room for more rows, so that a large device is kept
/// as busy by them as by the products of a whole test.
const SMALL_SUM: u32 = 32_768;
/// Most rounds of a small proof.
const SMALL_ROUNDS_MAX: u32 = 4_096;

/// What of a host's memory its test has to leave for GPUs to be filled meanwhile: for the system, and for the prover
/// and driver of each.
const BESIDE: i64 = 2 * Bytes::GIB;
/// And how many of its cores each GPU may keep busy by waiting, with three others beside.
const BESIDE_CPU: i64 = 4_000;
/// Bytes of memory that a core of the reference rate fills in a second, and how many reads it does of it: measured on a
/// faster one, and divided by how much faster that computes chains.
const FILLED_PER_S: u64 = 400 << 20;
const READ_PER_S: u64 = 6_000_000;

/// What a test is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// Everything, while the devices are free.
    Full {
        /// Whether the host is new, or has new devices.
        onboarding: bool,
    },
    /// That the device is there and computes, while a customer uses it.
    Small {
        /// Memory of each device that customers do not get.
        slack: Bytes,
        /// Operations in a second of devices that were tested whole, by their identifiers.
        shown: &'a BTreeMap<String, u64>,
    },
}

/// A device with the test of its model.
struct Sized<'a> {
    claim: &'a Device,
    test: Test,
    class: Option<&'a Class>,
    /// Operations in a second that it did itself when it was free, where no band holds for it.
    own: Option<u64>,
}

/// The sizes of a test, whatever they are from.
struct Test {
    gemm: Product,
    depth: u32,
    lanes: u32,
    reads: u32,
    passes: u32,
    fill_max: u64,
    spill_max: u64,
    chunk_samples_max: u32,
}

/// The test of all devices of a host that claims `memory`, too. Of one that is cut, each slice has a test of its own.
///
/// # Errors
/// A sentence that says why they cannot be tested so.
pub fn size(
    catalogue: &Catalogue,
    devices: &[Device],
    memory: Bytes,
    purpose: Purpose<'_>,
) -> Result<Task, String> {
    let parts = parts(devices);
    let sized: Vec<Sized> = parts.iter().map(|claim| Sized::of(catalogue, claim, purpose)).collect();
    let wanted = match purpose {
        Purpose::Full { onboarding: true } => SAMPLES_ONBOARDING,
        Purpose::Full { onboarding: false } | Purpose::Small { .. } => SAMPLES,
    };
    let mut samples = wanted;
    loop {
        let tasks = match purpose {
            Purpose::Full { .. } => full(&sized, memory, samples),
            Purpose::Small { slack, shown: _ } => small(catalogue, &sized, slack, samples)?,
        };
        let patience_ms = patience(catalogue, &sized, &tasks);
        let task = Task::Devices(DevicesTask { devices: tasks, patience_ms });
        match task.check() {
            Ok(()) => return Ok(task),
            // The openings of many devices together are too long.
            Err(_) if samples > SAMPLES_MIN => samples /= 2,
            Err(why) => return Err(why),
        }
    }
}

impl<'a> Sized<'a> {
    fn of(catalogue: &'a Catalogue, claim: &'a Device, purpose: Purpose<'_>) -> Self {
        let same_kind = || catalogue.classes.iter().find(|class| claim.simulated && class.simulated);
        let class = catalogue.called(&claim.model, claim.simulated);
        let test = class
            .or_else(same_kind)
            .map_or_else(|| Test::unknown(catalogue), |class| Test::of(catalogue, class));
        let has_band = class.is_some_and(|class| catalogue.is_calibrated(class));
        let own = match purpose {
            Purpose::Small { slack: _, shown } => shown.get(&claim.uuid).copied().filter(|_| !has_band),
            Purpose::Full { .. } => None,
        };
        Self { claim, test, class, own }
    }

    fn vram(&self) -> u64 {
        u64::try_from(self.claim.vram.0).unwrap_or(0)
    }

    /// What the slowest honest device of its class does in a second.
    fn slowest(&self, catalogue: &Catalogue, measure: Measure) -> u64 {
        let band = self.class.and_then(|class| class.bands.get(&measure)).map(|band| band.low);
        let simulated = catalogue.classes.iter().find(|class| self.claim.simulated && class.simulated);
        let same_kind = || simulated.and_then(|class| class.bands.get(&measure)).map(|band| band.low / 8);
        let unknown = || catalogue.unknown.slowest.get(&measure).copied();
        band.or_else(same_kind).or_else(unknown).unwrap_or(1).max(1)
    }
}

impl Test {
    fn of(catalogue: &Catalogue, class: &Class) -> Self {
        let test = &class.test;
        Self {
            gemm: test.gemm.unwrap_or(catalogue.unknown.gemm),
            depth: test.depth,
            lanes: test.lanes,
            reads: test.reads,
            passes: test.passes,
            fill_max: test.fill_max.unwrap_or(u64::MAX),
            spill_max: test.spill_max.unwrap_or(SPILL_MAX),
            chunk_samples_max: test.chunk_samples_max.unwrap_or(CHUNK_SAMPLES_MAX),
        }
    }

    fn unknown(catalogue: &Catalogue) -> Self {
        let test = &catalogue.unknown;
        Self {
            gemm: test.gemm,
            depth: test.depth,
            lanes: test.lanes,
            reads: test.reads,
            passes: test.passes,
            fill_max: u64::MAX,
            spill_max: SPILL_MAX,
            chunk_samples_max: CHUNK_SAMPLES_MAX,
        }
    }
}

/// Everything, of all devices, since they work at the same time. Only the copies depend on the host, and
/// on the memory that it claims.
fn full(sized: &[Sized], memory: Bytes, samples: u32) -> Vec<DeviceTask> {
    let count = u64::try_from(sized.len()).unwrap_or(u64::MAX).max(1);
    let share = u64::try_from(memory.0).unwrap_or(0) / 100 * HOST_PERCENT / count;
    let spilled: Vec<u64> = sized.iter().map(|device| spill(device, share)).collect();
    let spills = spilled.iter().all(|bytes| *bytes >= CHUNK);
    let task = |(device, spilled): (&Sized, &u64)| {
        let (test, bytes) = (&device.test, filled(device));
        let depth = if spills { test.depth.max(DEPTH_SPILLED) } else { test.depth };
        let per_read = u64::from(test.reads) * u64::from(depth);
        let per_chunk = CHUNK / VRAM_BLOCK * u64::from(depth);
        let most = test.chunk_samples_max;
        let samples_of = |hashes: u64, least: u32, most: u32| within(hashes, least.min(most), most);
        let lanes = Lanes {
            lanes: test.lanes,
            reads: test.reads,
            samples: samples_of(HASHES / per_read, 8, 2 * most),
        };
        let stream = Stream { passes: test.passes, samples: samples_of(HASHES / per_chunk, 6, most) };
        let spill = Spill { bytes: *spilled, samples: samples_of(HASHES / per_chunk / 2, 4, most / 2) };
        DeviceTask {
            uuid: device.claim.uuid.clone(),
            fill: Some(Fill { bytes, depth }),
            gemm: Some(product(test.gemm, device.vram(), samples)),
            lanes: Some(lanes),
            stream: Some(stream),
            spill: spills.then_some(spill),
        }
    };
    sized.iter().zip(&spilled).map(task).collect()
}

fn within(count: u64, least: u32, most: u32) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX).clamp(least, most)
}

/// What of a device's memory is filled: nearly all, beside the matrices, in whole chunks.
fn filled(device: &Sized) -> u64 {
    let vram = device.vram();
    let matrices = operands(&product(device.test.gemm, vram, SAMPLES));
    let beside = vram.saturating_sub(matrices + RESERVE);
    // A device so small that it is none still has a test, which it fails by itself.
    let bytes = (vram / 100 * 97).min(beside.max(vram / 2)).min(device.test.fill_max);
    (bytes / CHUNK).max(1) * CHUNK
}

fn spill(device: &Sized, share: u64) -> u64 {
    share.min(filled(device)).min(device.test.spill_max) / CHUNK * CHUNK
}

/// A product whose matrices fit beside the fill; what is smaller is computed more often.
fn product(gemm: Product, vram: u64, samples: u32) -> Gemm {
    let mut sized = Gemm { m: gemm.m, n: gemm.n, k: gemm.k, rounds: gemm.rounds, samples };
    while operands(&sized) > vram / MATRICES && sized.m.min(sized.n) > 256 {
        (sized.m, sized.n, sized.rounds) = (sized.m / 2, sized.n / 2, sized.rounds.saturating_mul(4));
    }
    sized.rounds = sized.rounds.min(1 << 12);
    sized
}

/// Bytes of the matrices of a product.
fn operands(gemm: &Gemm) -> u64 {
    let (m, n, k) = (u64::from(gemm.m), u64::from(gemm.n), u64::from(gemm.k));
    (m + n) * k + 4 * m * n
}

/// Products alone for each device, in the memory that customers do not get.
fn small(
    catalogue: &Catalogue,
    sized: &[Sized],
    slack: Bytes,
    samples: u32,
) -> Result<Vec<DeviceTask>, String> {
    let slack = u64::try_from(slack.0).unwrap_or(0);
    let task = |device: &Sized| {
        let one = Product { rounds: 1, k: device.test.gemm.k.min(SMALL_SUM), ..device.test.gemm };
        let gemm = product(one, slack.saturating_mul(MATRICES), samples);
        if operands(&gemm) > slack {
            return Err(format!("a product takes more than {} bytes of a device's memory", slack));
        }
        let slowest = || (device.slowest(catalogue, Measure::OpsPerS), SMALL_MS);
        let (per_s, ms) = device.own.map_or_else(slowest, |own| (own, SMALL_OWN_MS));
        let wanted = per_s.saturating_mul(ms) / 1_000;
        let rounds = wanted.div_ceil(operations(&Gemm { rounds: 1, ..gemm }).max(1));
        let gemm = Gemm { rounds: within(rounds, 1, SMALL_ROUNDS_MAX), ..gemm };
        Ok(DeviceTask {
            uuid: device.claim.uuid.clone(),
            fill: None,
            gemm: Some(gemm),
            lanes: None,
            stream: None,
            spill: None,
        })
    };
    sized.iter().map(task).collect()
}

/// Operations of all rounds: two for each product that is added.
fn operations(gemm: &Gemm) -> u64 {
    let all = [gemm.rounds, gemm.m, gemm.n, gemm.k].into_iter().map(u128::from).product::<u128>();
    u64::try_from(2 * all).unwrap_or(u64::MAX)
}

/// How long each step may take, the opening last: what the slowest honest device of the host needs, and
/// some times as much again.
fn patience(catalogue: &Catalogue, sized: &[Sized], tasks: &[DeviceTask]) -> Vec<Millis> {
    let phases = Phase::ALL.into_iter().filter(|phase| tasks.iter().all(|task| task.has(*phase)));
    let longest = |phase: Phase| {
        let waits = |(device, task): (&Sized, &DeviceTask)| match device.own {
            Some(own) => work_ms(|_| own, task, phase).saturating_mul(SHARED).saturating_add(WAY_MS),
            None => work_ms(|measure| device.slowest(catalogue, measure), task, phase).saturating_mul(MARGIN),
        };
        let each = sized.iter().zip(tasks).map(waits);
        each.max().unwrap_or(0).clamp(PATIENCE_MS.0, PATIENCE_MS.1)
    };
    phases.map(longest).chain([OPENING_MS]).map(|ms| Millis(i64::try_from(ms).unwrap_or(i64::MAX))).collect()
}

/// Whether a host's GPUs are filled while its memory is tested, without either keeping the other from anything: the
/// first phase is all theirs, and where there are cores and memory enough beside, nothing waits for what drives them.
/// Simulated ones compute on the very cores.
#[must_use]
pub fn fills_beside_memory(claims: &Inventory) -> bool {
    let parts = parts(&claims.devices);
    let count = i64::try_from(parts.len()).unwrap_or(i64::MAX);
    let left = claims.memory.0.saturating_sub(covered(claims.memory).0);
    count > 0
        && parts.iter().all(|device| !device.simulated)
        && left >= BESIDE.saturating_mul(count.saturating_add(1))
        && claims.milli_cpu.0 >= BESIDE_CPU.saturating_mul(count)
}

/// How long the test of memory takes a host all of whose cores are of the reference rate, without any way.
#[must_use]
pub fn calculated_memory_ms(memory: Bytes, milli_cpu: MilliCpu) -> u64 {
    let reads = match Task::memory(memory, milli_cpu) {
        Task::Memory(task) => u64::from(task.lanes) * u64::from(task.reads),
        Task::Cpu(_) | Task::Devices(_) | Task::Storage(_) | Task::Software(_) | Task::Transfer(_) => 0,
    };
    let bytes = u64::try_from(covered(memory).0).unwrap_or(0);
    let core_ms = bytes / (FILLED_PER_S / 1_000) + reads / (READ_PER_S / 1_000);
    core_ms.saturating_mul(1_000) / u64::try_from(milli_cpu.0).unwrap_or(0).max(1)
}

/// How long everything that a new host shows takes it, when all its cores are of the reference rate, from how long each
/// phase takes its devices; without any way, and without its disk and software, which are tested beside. `effort` is how
/// long its cores are.
#[must_use]
pub fn calculated_suite_ms(claims: &Inventory, effort: Millis, phases_ms: &[u64; Phase::ALL.len()]) -> u64 {
    let [fill_ms, rest_ms @ ..] = phases_ms;
    let memory_ms = calculated_memory_ms(claims.memory, claims.milli_cpu);
    let filled_ms = if fills_beside_memory(claims) { memory_ms.max(*fill_ms) } else { memory_ms + fill_ms };
    effort.0.unsigned_abs() + filled_ms + rest_ms.iter().sum::<u64>()
}

/// How long each phase of a test takes a device that does of every measure what `rate` makes of its class's band,
/// without any way. Where the class has no band, it does the least that is waited for.
#[must_use]
pub fn calculated_ms(
    catalogue: &Catalogue,
    class: &Class,
    task: &DeviceTask,
    rate: impl Fn(&Band) -> u64,
) -> [u64; Phase::ALL.len()] {
    let per_s = |measure: Measure| {
        let unknown = || catalogue.unknown.slowest.get(&measure).copied();
        class.bands.get(&measure).map(&rate).or_else(unknown).unwrap_or(1)
    };
    Phase::ALL.map(|phase| work_ms(per_s, task, phase))
}

/// What a device in the middle of a band does; twice the least where there is no most.
#[must_use]
pub fn middle(band: &Band) -> u64 {
    band.high.map_or(band.low.saturating_mul(2), |high| band.low.midpoint(high))
}

/// How long a phase takes a device that does so much of each measure in a second.
fn work_ms(per_s: impl Fn(Measure) -> u64, task: &DeviceTask, phase: Phase) -> u64 {
    let needs = |amount: u128, measure: Measure| {
        let ms = amount.saturating_mul(1_000) / u128::from(per_s(measure).max(1));
        u64::try_from(ms).unwrap_or(u64::MAX)
    };
    let hashes = |bytes: Option<u64>| {
        let depth = task.fill.map_or(0, |fill| fill.depth);
        needs(u128::from(bytes.unwrap_or(0) / VRAM_BLOCK) * u128::from(depth), Measure::HashesPerS)
    };
    let reads = || {
        let of = |lanes: &Lanes| u128::from(lanes.lanes) * u128::from(lanes.reads);
        needs(task.lanes.as_ref().map_or(0, of), Measure::ReadsPerS)
    };
    let back = || needs(task.spill.map_or(0, |spill| spill.bytes.into()), Measure::ReturnBytesPerS);
    match phase {
        Phase::Fill => hashes(task.fill.map(|fill| fill.bytes)),
        Phase::Gemm => needs(task.gemm.as_ref().map_or(0, |gemm| operations(gemm).into()), Measure::OpsPerS),
        Phase::Lanes => reads(),
        Phase::Stream => {
            let bytes = task.fill.map_or(0, |fill| u128::from(fill.bytes));
            let passes = task.stream.map_or(0, |stream| u128::from(stream.passes));
            needs(bytes * passes, Measure::BytesPerS)
        }
        Phase::Spill => back().saturating_add(hashes(task.spill.map(|spill| spill.bytes))),
        Phase::Return => back().saturating_add(reads()),
    }
}
