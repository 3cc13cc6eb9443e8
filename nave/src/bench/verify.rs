//! What proofs cost: a host its seconds, the verifier its milliseconds.

use std::{fs, thread, time::Duration};

use anyhow::Context as _;
use nave_domain::{Bytes, MilliCpu, Millis};
use nave_proof::{Digest, Gemm, Phase, Task};
use nave_rules::{
    catalogue::{Catalogue, Class},
    size::{calculated_ms, calculated_suite_ms, middle},
};
use serde::Serialize;
use sha2::block_api::compress256;

use super::{
    calibrate::simulated,
    exam::{Exam, resources, take},
    median, ms, others, sizes, thread_time,
};

/// How often each judgement is measured.
const TIMES: u32 = 9;
/// A host with so much memory has room for the copies of its devices.
const RAM: Bytes = Bytes(1 << 41);
/// How long cores of the reference rate work to prove themselves.
const EFFORT: Millis = Millis(5_000);

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: Machine,
    floor: Floor,
    proofs: Vec<Proof>,
    suites: Vec<Suite>,
    calculated: Vec<Calculated>,
}

/// How long a whole test would take a device of a class: nothing of it was measured.
#[derive(Debug, Serialize)]
struct Calculated {
    class: String,
    depth: u32,
    filled: Bytes,
    /// Fill, products, lanes, passes, spill, return.
    phases_ms: [u64; 6],
    total_ms: u64,
    /// As much of a device at the lower end of every band.
    slowest_ms: u64,
    /// The whole suite of a host of eight, cores and memory included.
    suite_ms: u64,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
struct Machine {
    processor: String,
    cores: usize,
    kernel: String,
    load: String,
}

/// What nobody can do without.
#[derive(Debug, Serialize)]
struct Floor {
    /// A compression of SHA-256, of two chains at once, in picoseconds.
    compression_ps: u64,
    /// SHA-256 over a long message.
    sha256_bytes_per_s: u64,
}

/// A whole proof that this machine did and judged.
#[derive(Debug, Serialize)]
struct Proof {
    name: &'static str,
    host_ms: u64,
    host_core_ms: u64,
    verifier_core_us: u64,
    opening_bytes: usize,
}

/// What judging one GPU of a class costs.
#[derive(Debug, Serialize)]
struct Suite {
    class: &'static str,
    depth: u32,
    samples: u32,
    gemm_us: u64,
    /// What the paths of the whole product are longer than those that were judged.
    paths_us: u64,
    lanes_us: u64,
    stream_us: u64,
    return_us: u64,
    total_us: u64,
    /// One pass of SHA-256 over the rows and columns, and the compressions of the samples' blocks.
    floor_us: u64,
    opening_bytes: usize,
}

/// Measures everything.
pub fn measure() -> anyhow::Result<Report> {
    eprintln!("measuring; this takes a minute or two");
    let (machine, floor) = (machine()?, floor()?);
    let proofs = [
        ("cores: 2, 2 s", Task::cpu(MilliCpu(2_000), Millis(2_000))),
        ("memory: 1 GiB", Task::memory(Bytes(Bytes::GIB), MilliCpu(2_000))),
        ("1 simulated device", Task::Devices(sizes::of("simulated", RAM, false)?)),
    ];
    let proofs = proofs.into_iter().map(|(name, task)| proof(name, &take(task, resources(&simulated()), 1)?));
    let others = [
        proof("disk: a file of 1 GiB", &others::storage()?),
        proof("transfer: 16 MiB", &others::transfer()?),
        proof("software", &others::software()?),
    ];
    let proofs = proofs.chain(others).collect::<anyhow::Result<_>>()?;
    let suites = [
        ("h200", Bytes(0), false),
        ("h200", RAM, false),
        ("h200", RAM, true),
        ("rtx-4090", RAM, false),
        ("rtx-4090", RAM, true),
    ];
    let suites = suites.map(|(class, memory, onboarding)| suite(&floor, class, memory, onboarding));
    let suites = suites.into_iter().collect::<anyhow::Result<_>>()?;
    Ok(Report { machine, floor, proofs, suites, calculated: calculated()? })
}

fn calculated() -> anyhow::Result<Vec<Calculated>> {
    let catalogue = Catalogue::embedded().map_err(anyhow::Error::msg)?;
    let classes = catalogue.classes.iter().filter(|class| !class.simulated);
    let one = |class: &Class| {
        let task = sizes::of(&class.name, RAM, true)?;
        let device = task.devices.first().context("a test without devices")?;
        let phases_ms = calculated_ms(catalogue, class, device, middle);
        let slowest_ms = calculated_ms(catalogue, class, device, |band| band.low);
        let fill = device.fill.context("a test without a fill")?;
        Ok(Calculated {
            class: class.name.clone(),
            depth: fill.depth,
            filled: Bytes(i64::try_from(fill.bytes)?),
            phases_ms,
            total_ms: phases_ms.iter().sum(),
            suite_ms: calculated_suite_ms(&sizes::host_of_eight(class), EFFORT, &phases_ms),
            slowest_ms: slowest_ms.iter().sum(),
        })
    };
    classes.map(one).collect()
}

fn machine() -> anyhow::Result<Machine> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let processors = read("/proc/cpuinfo")?;
    let field = |name: &str| {
        let line = processors.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim()).to_owned()
    };
    Ok(Machine {
        processor: format!("{} (family {})", field("model name"), field("cpu family")),
        cores: thread::available_parallelism().map_or(1, usize::from),
        kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        load: read("/proc/loadavg")?.split_whitespace().take(3).collect::<Vec<_>>().join(" "),
    })
}

/// The middle of several measurements of `work`, in time of this thread.
fn timed(mut work: impl FnMut()) -> anyhow::Result<Duration> {
    let mut once = || {
        let began = thread_time()?;
        work();
        Ok(thread_time()?.saturating_sub(began))
    };
    let mut all = (0..TIMES).map(|_| once()).collect::<anyhow::Result<Vec<_>>>()?;
    median(&mut all).context("nothing was measured")
}

fn floor() -> anyhow::Result<Floor> {
    const COMPRESSIONS: u64 = 1 << 20;
    const BYTES: usize = 32 << 20;
    let (mut state, mut other) = ([0_u32; 8], [1_u32; 8]);
    let chains = timed(|| {
        for _ in 0..COMPRESSIONS / 2 {
            compress256(&mut state, &[[7; 64]]);
            compress256(&mut other, &[[7; 64]]);
        }
    })?;
    let message = vec![[7_u8; 64]; BYTES / 64];
    let pass = timed(|| compress256(&mut state, &message))?;
    std::hint::black_box((state, other));
    let bytes_per_s = (BYTES as u128 * 1_000_000_000).checked_div(pass.as_nanos()).unwrap_or(0);
    Ok(Floor {
        compression_ps: u64::try_from(chains.as_nanos() * 1_000 / u128::from(COMPRESSIONS))?,
        sha256_bytes_per_s: u64::try_from(bytes_per_s)?,
    })
}

fn proof(name: &'static str, exam: &Exam) -> anyhow::Result<Proof> {
    Ok(Proof {
        name,
        host_ms: u64::try_from(exam.wall.as_millis())?,
        host_core_ms: u64::try_from(exam.core.as_millis())?,
        verifier_core_us: micros(exam.judge_time(TIMES)?),
        opening_bytes: exam.evidence.opening.len(),
    })
}

/// A model that takes no time beyond what its work takes.
fn unbraked() -> nave_proof::software::SoftwareModel {
    let most = u64::MAX;
    nave_proof::software::SoftwareModel {
        vram: Bytes(i64::MAX),
        ops_per_s: most,
        bytes_per_s: most,
        reads_per_s: most,
        hashes_per_s: most,
        return_bytes_per_s: most,
        ..simulated()
    }
}

fn suite(floor: &Floor, class: &'static str, memory: Bytes, onboarding: bool) -> anyhow::Result<Suite> {
    let whole = sizes::of(class, memory, onboarding)?;
    let small = sizes::shrunk(&whole);
    let judged = |phases: &[Phase]| {
        let task = Task::Devices(sizes::only(&small, phases));
        Ok::<_, anyhow::Error>(micros(take(task, resources(&unbraked()), 1)?.judge_time(TIMES)?))
    };
    let device = whole.devices.first().context("a test without devices")?;
    let gemm = device.gemm.context("a device that does not multiply")?;
    let depth = device.fill.map_or(0, |fill| fill.depth);
    let gemm_us = judged(&[Phase::Gemm])?;
    let lanes_us = judged(&[Phase::Fill, Phase::Lanes])?;
    let stream_us = judged(&[Phase::Fill, Phase::Stream])?;
    let return_us = match device.spill {
        Some(_) => judged(&[Phase::Fill, Phase::Lanes, Phase::Spill])?.saturating_sub(lanes_us),
        None => 0,
    };
    let paths_us = paths_us(&gemm)?;
    let matrices = 2 * u64::from(gemm.samples) * u64::from(gemm.k);
    let hashed = u128::from(matrices) * 1_000_000 / u128::from(floor.sha256_bytes_per_s.max(1));
    let compressed = u128::from(sizes::compressions(device)) * u128::from(floor.compression_ps) / 1_000_000;
    Ok(Suite {
        class,
        depth,
        samples: gemm.samples,
        gemm_us,
        paths_us,
        lanes_us,
        stream_us,
        return_us,
        total_us: gemm_us + paths_us + lanes_us + stream_us + return_us,
        floor_us: u64::try_from(hashed + compressed)?,
        opening_bytes: 32 + sizes::opening_bytes(device, &Digest([1; 32])),
    })
}

/// What the paths of a whole product take more than those of one that a processor can compute.
fn paths_us(gemm: &Gemm) -> anyhow::Result<u64> {
    let small = Gemm { m: 256, n: 256, rounds: 1, ..*gemm };
    let seed = Digest([1; 32]);
    let time = |gemm: &Gemm| {
        timed(|| {
            std::hint::black_box(sizes::climb(gemm, &seed));
        })
    };
    Ok(micros(time(gemm)?.saturating_sub(time(&small)?)))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Report {
    /// For people.
    pub fn print(&self) {
        let Machine { processor, cores, kernel, load } = &self.machine;
        println!("{processor}, {cores} cores, kernel {kernel}, load {load}");
        let Floor { compression_ps, sha256_bytes_per_s } = self.floor;
        println!(
            "floor: a compression of SHA-256 {}.{} ns; SHA-256 over a long message {} MB/s",
            compression_ps / 1_000,
            compression_ps % 1_000 / 100,
            sha256_bytes_per_s / 1_000_000
        );
        self.print_proofs();
        self.print_suites();
        self.print_calculated();
    }

    fn print_proofs(&self) {
        println!("\n| proof | host | its cores | verifier, one core | opening |\n|---|---|---|---|---|");
        for proof in &self.proofs {
            let Proof { name, host_ms, host_core_ms, verifier_core_us, opening_bytes } = proof;
            let (verifier, opening) = (shown(*verifier_core_us), kib(*opening_bytes));
            println!("| {name} | {host_ms} ms | {host_core_ms} ms | {verifier} | {opening} |");
        }
    }

    fn print_suites(&self) {
        println!(
            "\n| judging one GPU | depth | samples | products | paths | lanes | passes | return | together | floor | opening |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|---|");
        for suite in &self.suites {
            let Suite { class, depth, samples, .. } = suite;
            let parts = [
                suite.gemm_us,
                suite.paths_us,
                suite.lanes_us,
                suite.stream_us,
                suite.return_us,
                suite.total_us,
                suite.floor_us,
            ];
            let parts = parts.map(shown).join(" | ");
            println!("| {class} | {depth} | {samples} | {parts} | {} |", kib(suite.opening_bytes));
        }
    }

    fn print_calculated(&self) {
        println!(
            "\n| calculated, never measured | depth | filled | fill | products | lanes | passes | spill | return | together | slowest | suite |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
        for Calculated { class, depth, filled, phases_ms, total_ms, slowest_ms, suite_ms } in &self.calculated
        {
            let phases = phases_ms.map(seconds).join(" | ");
            let [total, slowest, suite] = [total_ms, slowest_ms, suite_ms].map(|ms| seconds(*ms));
            println!("| {class} | {depth} | {filled} | {phases} | {total} | {slowest} | {suite} |");
        }
    }
}

/// `4.1 s`.
fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1_000, ms % 1_000 / 100)
}

fn shown(micros: u64) -> String {
    ms(Duration::from_micros(micros))
}

fn kib(bytes: usize) -> String {
    format!("{} KiB", bytes.div_ceil(1024))
}
