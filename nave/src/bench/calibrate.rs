//! The bands of simulated devices: measured, with as many of them at once as a host may have.

use anyhow::{Context as _, bail};
use nave_domain::{Bytes, Millis, host::Device};
use nave_proof::{DeviceProven, Proven, Task, Verdict, software::SoftwareModel};
use nave_verifier::{
    calibrate::band,
    catalogue::{Catalogue, Measure},
    class::amount,
    size::{Purpose, size},
};

use super::{
    CalibrateArgs,
    exam::{resources, take},
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
    let devices: Vec<Device> = (0..args.devices).map(device).collect();
    let purpose = Purpose::Full { onboarding: false };
    let task = size(catalogue, &devices, Bytes(1 << 34), purpose).map_err(anyhow::Error::msg)?;
    let mut shown: Vec<DeviceProven> = Vec::new();
    for trial in 0..args.trials {
        // All devices of a host share its times: they are one measurement.
        shown.extend(tried(&task, args, trial)?.into_iter().next());
        eprintln!("{} of {} tests", trial + 1, args.trials);
    }
    println!("[class.bands]");
    for measure in Measure::ALL {
        let values: Vec<u64> = shown.iter().filter_map(|shown| amount(shown, measure)).collect();
        let band =
            band(measure, &values, "measured_simulated").with_context(|| format!("measure {measure}"))?;
        println!("{measure} = {}", band.as_toml());
    }
    Ok(())
}

fn device(slot: u16) -> Device {
    let SoftwareModel { model, vram, .. } = simulated();
    Device {
        uuid: format!("{}{slot}", Device::SIMULATED),
        model,
        vram,
        driver: String::new(),
        simulated: true,
    }
}

/// What all devices of a test showed, had each answer travelled as long as the next one of the list.
fn tried(task: &Task, args: &CalibrateArgs, trial: u32) -> anyhow::Result<Vec<DeviceProven>> {
    let mut exam = take(task.clone(), resources(&simulated()), trial.into())?;
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
