//! Errors that the driver reports of its GPUs, as they come. Not tried on a GPU that fails.
//!
//! Each GPU is listened to by itself: the wait for a GPU that is lost fails, and those for others go on.

use std::{
    convert::Infallible,
    io::{Read as _, Write as _},
    thread,
    time::Duration,
};

use nvml_wrapper::{
    Nvml,
    bitmasks::event::EventTypes,
    enums::event::XidError,
    error::{NvmlError, NvmlErrorWithSource},
};
use serde::Serialize;

/// Longest time that the driver is asked to wait for the next one, in milliseconds.
const WAIT_MS: u32 = 5_000;
/// Time between two waits that say nothing new.
const REST: Duration = Duration::from_millis(100);
/// Time until a GPU is asked again that is not answered for, the first time and at most.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The number of an error that the driver itself does not know.
const UNKNOWN: u32 = 999;

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer<'a> {
    Xid { code: u32, device: &'a str },
    Error(String),
}

/// Prints them, line by line, until nobody listens or there is no driver.
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

fn watch() -> Result<(), NvmlError> {
    let nvml = &Nvml::init()?;
    let count = nvml.device_count()?;
    thread::scope(|scope| {
        for index in 0..count {
            scope.spawn(move || listen(nvml, index));
        }
    });
    Ok(())
}

/// Listens to one GPU, again and again.
fn listen(nvml: &Nvml, index: u32) {
    let mut pause = PAUSE_MIN;
    loop {
        let Err(error) = follow(nvml, index, &mut pause);
        eprintln!("GPU {index}: NVML: {error}; trying again in {} s", pause.as_secs());
        thread::sleep(pause);
        pause = PAUSE_MAX.min(pause * 2);
    }
}

/// Says what is reported of a GPU until the driver does not answer for it; the next pause is the first one again once it has.
fn follow(nvml: &Nvml, index: u32, pause: &mut Duration) -> Result<Infallible, NvmlErrorWithSource> {
    let gpu = nvml.device_by_index(index)?;
    // Once it is lost nobody knows its name any more.
    let uuid = gpu.uuid()?;
    let set = gpu.register_events(EventTypes::CRITICAL_XID_ERROR, nvml.create_event_set()?)?;
    let mut last = None;
    loop {
        let said = match set.wait(WAIT_MS) {
            Ok(said) => said.event_data.map(number),
            Err(NvmlError::Timeout) => None,
            Err(error) => return Err(error.into()),
        };
        *pause = PAUSE_MIN;
        if let Some(code) = said {
            print(&Answer::Xid { code, device: &uuid });
        }
        if said.is_none() || said == last {
            thread::sleep(REST);
        }
        last = said;
    }
}

fn number(xid: XidError) -> u32 {
    match xid {
        XidError::Value(code) => u32::try_from(code).unwrap_or(UNKNOWN),
        XidError::Unknown => UNKNOWN,
    }
}

/// Prints a line; where nobody reads it, this process has nothing left to do.
fn print(answer: &Answer<'_>) {
    let Ok(text) = serde_json::to_string(answer) else { return };
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}
