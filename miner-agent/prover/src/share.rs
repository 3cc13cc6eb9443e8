//! What sharing a device takes of its driver: who holds how much of it, and that nobody computes there but through
//! the daemon that shares it out. Not tried on a GPU yet.

use std::{
    io::{Read as _, Write as _},
    process::ExitCode,
    thread,
    time::Duration,
};

use nvml_wrapper::{Nvml, enum_wrappers::device::ComputeMode, error::NvmlError};
use serde::Serialize;

use crate::look::{Holder, holders};

/// Time between two looks.
const PERIOD: Duration = Duration::from_millis(500);

/// How many processes may compute on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One: the daemon that shares it out.
    Exclusive,
    /// Any number.
    Default,
}

impl Mode {
    /// By its name in arguments.
    pub fn read(text: &str) -> Option<Self> {
        match text {
            "exclusive" => Some(Self::Exclusive),
            "default" => Some(Self::Default),
            _ => None,
        }
    }

    fn of_driver(self) -> ComputeMode {
        match self {
            Self::Exclusive => ComputeMode::ExclusiveProcess,
            Self::Default => ComputeMode::Default,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Holders(Vec<Holder>),
    Error(String),
}

/// Prints who holds memory of these devices, line by line, until nobody listens or the driver does not say.
pub fn watch(devices: &[String]) {
    thread::spawn(|| {
        // The input ends with the agent.
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(error) => {
            print(&Answer::Error(format!("NVML: {error}")));
            return;
        }
    };
    loop {
        let seen = holders(&nvml, devices)
            .map_or_else(|error| Answer::Error(format!("NVML: {error}")), Answer::Holders);
        if !print(&seen) || matches!(seen, Answer::Error(_)) {
            return;
        }
        thread::sleep(PERIOD);
    }
}

fn print(answer: &Answer) -> bool {
    let Ok(text) = serde_json::to_string(answer) else { return false };
    let mut out = std::io::stdout();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}

/// Sets the compute mode of a device, where it is another.
pub fn set_mode(uuid: &str, mode: Mode) -> ExitCode {
    let set = || -> Result<(), NvmlError> {
        let nvml = Nvml::init()?;
        let mut device = nvml.device_by_uuid(uuid)?;
        if device.compute_mode()? != mode.of_driver() {
            device.set_compute_mode(mode.of_driver())?;
        }
        Ok(())
    };
    match set() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{uuid}: NVML: {error}");
            ExitCode::FAILURE
        }
    }
}
