//! The bands of devices: measured, with as many of them at once as a host has or may have.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context as _, bail};
use nave_domain::{Bytes, Millis, host::Device};
use nave_proof::{DeviceProven, Proven, Task, Verdict, software::SoftwareModel};
use nave_rules::{
    calibrate::band,
    catalogue::{Band, Catalogue, Measure},
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
    let (mut shown, provenance) = match args.prover.as_deref().map(Program::new) {
        Some(program) => of_program(args, &program)?,
        None => (of_simulated(args)?, "measured_simulated".to_owned()),
    };
    if let Some(path) = &args.keep {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let read = |line| serde_json::from_str(line).context("read what was measured before");
        shown = text.lines().map(read).collect::<anyhow::Result<_>>()?;
    }
    let mut others = Vec::new();
    if args.check {
        let (even, odd): (Vec<_>, Vec<_>) =
            shown.into_iter().enumerate().partition(|(number, _)| number % 2 == 0);
        let without =
            |numbered: Vec<(usize, DeviceProven)>| numbered.into_iter().map(|(_, shown)| shown).collect();
        (shown, others) = (without(even), without(odd));
    }
    println!("[class.bands]");
    let mut bands = Vec::new();
    for measure in Measure::ALL {
        let values: Vec<u64> = shown.iter().filter_map(|shown| amount(shown, measure)).collect();
        match band(measure, &values, &provenance) {
            Some(band) => {
                println!("{measure} = {}", band.as_toml());
                bands.push((measure, band));
            }
            None => println!("# {measure}: no part of this test"),
        }
    }
    let missed = others.iter().filter(|shown| !holds(&bands, shown)).count();
    if args.check {
        println!("\n# of {} other measurements {missed} miss them", others.len());
    }
    Ok(())
}

/// Whether the bands hold all that a device showed.
fn holds(bands: &[(Measure, Band)], shown: &DeviceProven) -> bool {
    bands.iter().all(|(measure, band)| amount(shown, *measure).is_none_or(|amount| band.holds(amount)))
}

/// Measures real devices, one test after the other, and says which.
fn of_program(args: &CalibrateArgs, program: &Program) -> anyhow::Result<(Vec<DeviceProven>, String)> {
    let devices = program.devices()?;
    let task = task(&devices, memory()?)?;
    let mut shown = Vec::new();
    for trial in 0..args.trials {
        let mut running = program.start()?;
        let exam = take_of(task.clone(), trial.into(), |challenge| running.answer(challenge))?;
        shown.push(measured(exam, args, trial)?);
    }
    let name = |device: &Device| format!("measured on {}, driver {}", device.model, device.driver);
    Ok((shown, devices.first().map(name).unwrap_or_default()))
}

/// Measures simulated devices, of several hosts at the same time, whose tests begin whenever one before them ends.
fn of_simulated(args: &CalibrateArgs) -> anyhow::Result<Vec<DeviceProven>> {
    let (next, shown) = (AtomicU32::new(0), Mutex::new(Vec::new()));
    let host = || loop {
        let trial = next.fetch_add(1, Ordering::Relaxed);
        if trial >= args.trials {
            return anyhow::Ok(());
        }
        let count = 1 + trial % u32::from(args.devices.max(1));
        let devices: Vec<Device> = (0..count).map(device).collect();
        let exam = take(task(&devices, Bytes(1 << 34))?, resources(&simulated()), trial.into())?;
        let measured = measured(exam, args, trial)?;
        shown.lock().unwrap_or_else(PoisonError::into_inner).push(measured);
    };
    thread::scope(|scope| {
        let hosts: Vec<_> = (0..args.at_once.max(1)).map(|_| scope.spawn(host)).collect();
        let ended = hosts.into_iter().map(|host| host.join().unwrap_or_else(|_| bail!("a test broke off")));
        ended.collect::<anyhow::Result<()>>()
    })?;
    Ok(shown.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn task(devices: &[Device], memory: Bytes) -> anyhow::Result<Task> {
    let catalogue = Catalogue::embedded().map_err(anyhow::Error::msg)?;
    let purpose = Purpose::Full { onboarding: false };
    size(catalogue, devices, memory, purpose).map_err(anyhow::Error::msg)
}

/// What a test measured: all devices of a host share its times, so they are one measurement.
fn measured(exam: Exam, args: &CalibrateArgs, trial: u32) -> anyhow::Result<DeviceProven> {
    let (steps, count) = (steps(&exam), exam.devices());
    eprintln!("{} of {} tests, {count} devices, {steps}", trial + 1, args.trials);
    let shown = judged(exam, args, trial)?.into_iter().next().context("a test without devices")?;
    if let Some(path) = &args.keep {
        let mut line = serde_json::to_string(&shown).context("write a measurement as JSON")?;
        line.push('\n');
        let file = OpenOptions::new().create(true).append(true).open(path);
        let kept = file.and_then(|mut file| file.write_all(line.as_bytes()));
        kept.with_context(|| format!("write {}", path.display()))?;
    }
    Ok(shown)
}

/// How long each step took.
fn steps(exam: &Exam) -> String {
    let steps = exam.spans.iter().map(|span| span.received.since(span.sent).to_string());
    format!("steps of {}", steps.collect::<Vec<_>>().join(", "))
}

/// What is free of this machine's memory.
fn memory() -> anyhow::Result<Bytes> {
    let text = fs::read_to_string("/proc/meminfo").context("read what memory there is")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<i64>().ok());
    kib.map(|kib| Bytes(kib << 10)).context("find what memory there is")
}

fn device(slot: u32) -> Device {
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
