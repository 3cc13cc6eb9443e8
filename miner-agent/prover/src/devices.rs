//! The devices of this machine, as NVML lists them, and simulated ones.

use std::path::Path;

use nave_domain::{
    Bytes,
    fraction::Division,
    host::{DEVICES_MAX, Device},
};
use nave_proof::{DeviceTask, Failure, device};
use nvml_wrapper::{Nvml, error::NvmlError};
use serde::Serialize;

use crate::{cuda, simulated::Simulated};

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Devices(Vec<Device>),
    Error(String),
}

/// Prints the devices, or why there are none.
pub fn print(simulated: Option<&Path>) {
    let answer = match (devices(), simulated) {
        (Ok(devices), None) => Answer::Devices(devices),
        (Err(error), None) => Answer::Error(format!("NVML: {error}")),
        (found, Some(file)) => match Simulated::read(file) {
            Ok(simulated) => {
                let found = found.inspect_err(|error| eprintln!("NVML: {error}")).unwrap_or_default();
                Answer::Devices(found.into_iter().chain(simulated.list()).collect())
            }
            Err(error) => Answer::Error(error),
        },
    };
    match serde_json::to_string(&answer) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("write the answer as JSON: {error}"),
    }
}

fn devices() -> Result<Vec<Device>, NvmlError> {
    let nvml = Nvml::init()?;
    let driver = nvml.sys_driver_version()?;
    let count = nvml.device_count()?.min(u32::try_from(DEVICES_MAX).unwrap_or(u32::MAX));
    let mut devices = Vec::new();
    for index in 0..count {
        match device(&nvml, index, &driver) {
            Ok(device) => devices.push(device),
            // One broken GPU does not hide the others.
            Err(error) => eprintln!("GPU {index}: {error}"),
        }
    }
    Ok(devices)
}

fn device(nvml: &Nvml, index: u32, driver: &str) -> Result<Device, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let vram = i64::try_from(device.memory_info()?.total).unwrap_or(i64::MAX);
    let (uuid, model) = (device.uuid()?, device.name()?);
    let driver = driver.to_owned();
    Ok(Device { uuid, model, vram: Bytes(vram), driver, simulated: false, division: Division::default() })
}

/// Opens the device of a task, simulated or not.
///
/// # Errors
/// Why it cannot be used.
pub fn open(simulated: &Simulated, task: &DeviceTask) -> Result<Box<dyn device::Device>, Failure> {
    if task.uuid.starts_with(Device::SIMULATED) {
        return simulated.open(task);
    }
    cuda::open(task)
}
