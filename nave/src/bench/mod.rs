//! What proofs cost: `naved bench verify` measures it on this machine, `naved bench calibrate` measures
//! the bands of devices, simulated or real. Nothing here needs a market.

pub mod calibrate;
mod exam;
mod program;
pub mod shadow;
mod sizes;
mod verify;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Measure what proofs cost a host and the verifier.
    Verify(VerifyArgs),
    /// Measure devices and print their bands, as the catalogue of classes has them.
    Calibrate(CalibrateArgs),
}

/// `naved bench verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Print everything as one JSON document.
    #[arg(long)]
    pub json: bool,
    /// Sessions that are open at the same time.
    #[arg(long, default_value_t = 200)]
    pub sessions: u32,
}

/// `naved bench calibrate`.
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// Whole tests, each a measurement.
    #[arg(long, default_value_t = 30)]
    pub trials: u32,
    /// Measure this machine's GPUs with this prover (`nave-prover`), instead of simulated ones.
    #[arg(long)]
    pub prover: Option<PathBuf>,
    /// Simulated devices that are tested at the same time.
    #[arg(long, default_value_t = 24)]
    pub devices: u16,
    /// Milliseconds that each answer travels: many of them, in the order in which they were measured.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    pub travel_ms: Vec<u32>,
}

/// Measures.
pub fn run(command: &BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Verify(args) => {
            let report = verify::measure(args)?;
            if args.json {
                return print_json(&report);
            }
            report.print();
            Ok(())
        }
        BenchCommand::Calibrate(args) => calibrate::print(args),
    }
}

fn print_json(report: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(report).context("write the measurements as JSON")?);
    Ok(())
}

/// Time that this thread was computing.
fn thread_time() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("read the clock of a thread")?.into())
}

/// Time that all threads of this process were computing.
fn process_time() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("read the clock of the process")?.into())
}

/// A line of `/proc/self/status`, in KiB.
fn memory_kib(name: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/self/status").context("read what memory this process takes")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).with_context(|| format!("find {name} of this process"))
}

/// `28.41 ms`.
fn ms(time: Duration) -> String {
    let micros = time.as_micros();
    format!("{}.{:02} ms", micros / 1000, micros % 1000 / 10)
}

/// The middle one.
fn median<T: Ord + Copy>(values: &mut [T]) -> Option<T> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}
