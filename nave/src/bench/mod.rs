//! What proofs cost: `naved bench verify` measures it on this machine, `naved bench calibrate` measures
//! the bands of devices, simulated or real. Nothing here needs a market.

pub mod calibrate;
mod exam;
mod others;
mod program;
pub mod shadow;
mod sizes;
mod verify;

use std::{path::PathBuf, time::Duration};

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
    /// Most simulated devices of a host: one test is of one device, the next of two, and so on to this many.
    #[arg(long, default_value_t = 8)]
    pub devices: u16,
    /// Hosts of simulated devices that are tested at the same time.
    #[arg(long, default_value_t = 3)]
    pub at_once: u16,
    /// Add what is measured to this file, and make the bands of all that it holds.
    #[arg(long)]
    pub keep: Option<PathBuf>,
    /// Make the bands of every other measurement, and count how many of the rest miss them.
    #[arg(long)]
    pub check: bool,
    /// Milliseconds that each answer travels: many of them, in the order in which they were measured.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    pub travel_ms: Vec<u32>,
}

/// Measures.
pub fn run(command: &BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Verify(args) => {
            let report = verify::measure()?;
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
