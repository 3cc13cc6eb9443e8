//! Errors that the driver reports of its GPUs, as they come. Not tried on a GPU that fails.

use std::{
    io::{Read as _, Write as _},
    thread,
};

use nvml_wrapper::{
    Nvml,
    bitmasks::event::EventTypes,
    enums::event::XidError,
    error::{NvmlError, NvmlErrorWithSource},
};
use serde::Serialize;

/// Longest time that the driver is asked to wait for the next one, in milliseconds.
const WAIT_MS: u32 = 60_000;
/// The number of an error that the driver itself does not know.
const UNKNOWN: u32 = 999;

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Xid { code: u32, device: String },
    Error(String),
}

/// Prints them, line by line, until nobody listens or the driver does not say.
pub fn run() {
    thread::spawn(|| {
        // The input ends with the agent.
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    if let Err(error) = watch() {
        print(&Answer::Error(format!("NVML: {error}")));
    }
}

fn watch() -> Result<(), NvmlErrorWithSource> {
    let nvml = Nvml::init()?;
    let mut set = nvml.create_event_set()?;
    for index in 0..nvml.device_count()? {
        let device = nvml.device_by_index(index)?;
        if device.supported_event_types()?.contains(EventTypes::CRITICAL_XID_ERROR) {
            set = device.register_events(EventTypes::CRITICAL_XID_ERROR, set)?;
        }
    }
    loop {
        let said = match set.wait(WAIT_MS) {
            Ok(said) => said,
            Err(NvmlError::Timeout) => continue,
            Err(error) => return Err(error.into()),
        };
        let Some(xid) = said.event_data else { continue };
        if !print(&Answer::Xid { code: number(xid), device: said.device.uuid()? }) {
            return Ok(());
        }
    }
}

fn number(xid: XidError) -> u32 {
    match xid {
        XidError::Value(code) => u32::try_from(code).unwrap_or(UNKNOWN),
        XidError::Unknown => UNKNOWN,
    }
}

fn print(answer: &Answer) -> bool {
    let Ok(text) = serde_json::to_string(answer) else { return false };
    let mut out = std::io::stdout();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}
