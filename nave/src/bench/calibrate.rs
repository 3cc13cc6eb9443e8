//! The bands of devices: measured, with as many of them at once as a host has or may have.

use anyhow::{Context as _, bail};
use nave_domain::{Bytes, Millis, host::Device};
use nave_proof::{DeviceProven, Proven, Verdict, software::SoftwareModel};
use nave_rules::{
    calibrate::band,
    catalogue::{Catalogue, Measure},
    class::amount,
    size::{Purpose, size},
};

use super::{
    CalibrateArgs,
    exam::{Exam, resources, take, take_of},
    program::Program,
};

/// What a simulated device of the catalogue's class does; `miner-agent/prover/src/simulated.rs`
/// shows it as the entry of a file.
pub fn simulated() -> SoftwareModel {
    SoftwareModel {
        model: "Nave Simulated".into(),
        vram: Bytes(1 << 30),
        ops_per_s: 1 << 26,
        bytes_per_s: 1 << 19,
        reads_per_s: 1 << 17,
        hashes_per_s: 1 << 19,
        return_bytes_per_s: 1 << 18,
        dishonesty: Vec::new(),
    }
}

/// Measures and prints the bands as TOML.
pub fn print(args: &CalibrateArgs) -> anyhow::Result<()> {
    let catalogue = Catalogue::embedded().map_err(anyhow::Error::msg)?;
    let program = args.prover.as_deref().map(Program::new);
    let devices = match &program {
        Some(program) => program.devices()?,
        None => (0..args.devices).map(device).collect(),
    };
    let memory = if program.is_some() { memory()? } else { Bytes(1 << 34) };
    let purpose = Purpose::Full { onboarding: false };
    let task = size(catalogue, &devices, memory, purpose).map_err(anyhow::Error::msg)?;
    let mut shown: Vec<DeviceProven> = Vec::new();
    for trial in 0..args.trials {
        let exam = match &program {
            Some(program) => {
                let mut running = program.start()?;
                take_of(task.clone(), trial.into(), |challenge| running.answer(challenge))?
            }
            None => take(task.clone(), resources(&simulated()), trial.into())?,
        };
        eprintln!("{} of {} tests, {}", trial + 1, args.trials, steps(&exam));
        // All devices of a host share its times: they are one measurement.
        shown.extend(judged(exam, args, trial)?.into_iter().next());
    }
    let provenance = match (&program, devices.first()) {
        (Some(_), Some(device)) => format!("measured on {}, driver {}", device.model, device.driver),
        (Some(_) | None, _) => "measured_simulated".to_owned(),
    };
    println!("[class.bands]");
    for measure in Measure::ALL {
        let values: Vec<u64> = shown.iter().filter_map(|shown| amount(shown, measure)).collect();
        match band(measure, &values, &provenance) {
            Some(band) => println!("{measure} = {}", band.as_toml()),
            None => println!("# {measure}: no part of this test"),
        }
    }
    Ok(())
}

/// How long each step took.
fn steps(exam: &Exam) -> String {
    let steps = exam.spans.iter().map(|span| span.received.since(span.sent).to_string());
    format!("steps of {}", steps.collect::<Vec<_>>().join(", "))
}

/// What is free of this machine's memory.
fn memory() -> anyhow::Result<Bytes> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read what memory there is")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<i64>().ok());
    kib.map(|kib| Bytes(kib << 10)).context("find what memory there is")
}

fn device(slot: u16) -> Device {
    let SoftwareModel { model, vram, .. } = simulated();
    Device {
        uuid: format!("{}{slot}", Device::SIMULATED),
        model,
        vram,
        driver: String::new(),
        simulated: true,
        division: nave_domain::fraction::Division::default(),
    }
}

/// What all devices of a test showed, had each answer travelled as long as the next one of the list.
fn judged(mut exam: Exam, args: &CalibrateArgs, trial: u32) -> anyhow::Result<Vec<DeviceProven>> {
    let steps = exam.spans.len();
    let mut travels = args.travel_ms.iter().cycle().skip(trial as usize * steps);
    for span in &mut exam.spans {
        let travel = travels.next().copied().unwrap_or(0);
        span.received = span.received.after(Millis(travel.into()));
    }
    match exam.judge() {
        Verdict::Passed(Proven::Devices(shown)) => Ok(shown),
        Verdict::Failed(failure) => bail!("an honest host was refused: {}", failure.message),
        Verdict::Passed(proven) => bail!("the test of devices showed {proven:?}"),
    }
}
