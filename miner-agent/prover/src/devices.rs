//! The devices of this machine, as NVML lists them, and simulated ones.

use std::path::Path;

use nave_domain::{
    Bytes, MilliGpu,
    fraction::{Division, SLICES_MAX, Slice, WHOLE},
    host::{DEVICES_MAX, Device},
};
use nave_proof::{DeviceTask, Failure, device};
use nvml_wrapper::{Nvml, error::NvmlError};
use serde::Serialize;

use crate::{cuda, simulated::Simulated, slice};

/// How many slices of computing most devices are cut into.
const COMPUTE_SLICES: i64 = 7;

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
    let (driver, division) = (driver.to_owned(), division(&device));
    Ok(Device { uuid, model, vram: Bytes(vram), driver, simulated: false, division })
}

/// How a device can be leased, as far as it goes by the driver. Not tried on a GPU yet.
fn division(device: &nvml_wrapper::Device<'_>) -> Division {
    // A device that knows no MIG is in no such mode.
    if device.mig_mode().is_ok_and(|mode| mode.current == 1) {
        return Division::Slices(slices(device));
    }
    // Before Volta no limit of a process holds.
    match device.cuda_compute_capability() {
        Ok(capability) if capability.major >= 7 => Division::Shares,
        Ok(_) | Err(_) => Division::Whole,
    }
}

fn slices(device: &nvml_wrapper::Device<'_>) -> Vec<Slice> {
    let places = device.mig_device_count().unwrap_or(0).min(u32::try_from(SLICES_MAX).unwrap_or(u32::MAX));
    // Indices without a slice are answered with an error.
    let found = (0..places).filter_map(|index| device.mig_device_by_index(index).ok());
    let read = |found| read_slice(&found).inspect_err(|error| eprintln!("a slice: {error}")).ok().flatten();
    found.filter_map(read).collect()
}

/// A slice; none where it has its memory in common with others, from which nothing separates it then.
fn read_slice(slice: &nvml_wrapper::Device<'_>) -> Result<Option<Slice>, NvmlError> {
    let attributes = slice.attributes()?;
    if attributes.compute_instance_slice_count != attributes.gpu_instance_slice_count {
        return Ok(None);
    }
    let (computing, memory) = (attributes.compute_instance_slice_count, attributes.memory_size_mb);
    let vram = i64::try_from(memory).unwrap_or(i64::MAX).saturating_mul(Bytes::MIB);
    Ok(Some(Slice {
        uuid: slice.uuid()?,
        profile: profile(computing, memory),
        // Devices have seven of them, a few kinds four: there this is less than they have.
        milli: MilliGpu((i64::from(computing) * WHOLE.0 / COMPUTE_SLICES).clamp(1, WHOLE.0)),
        vram: Bytes(vram),
    }))
}

/// The vendor's name of a size: slices of computing and memory, rounded up to GB.
fn profile(computing: u32, mib: u64) -> String {
    format!("{computing}g.{}gb", mib.div_ceil(1_024))
}

/// Opens the device of a task, simulated as `file` says or not: here, or in a process of its own where it is a slice.
///
/// # Errors
/// Why it cannot be used.
pub fn open(
    simulated: &Simulated,
    file: Option<&Path>,
    task: &DeviceTask,
) -> Result<Box<dyn device::Device>, Failure> {
    if task.uuid.starts_with(slice::PREFIX) || simulated.is_slice(&task.uuid) {
        return Ok(Box::new(slice::Slice::open(task, file)?));
    }
    open_one(simulated, &task.uuid)
}

/// Opens a device, or the one slice that this process sees.
///
/// # Errors
/// Why it cannot be used.
pub fn open_one(simulated: &Simulated, uuid: &str) -> Result<Box<dyn device::Device>, Failure> {
    if uuid.starts_with(Device::SIMULATED) {
        return simulated.open(uuid);
    }
    cuda::open(uuid)
}

#[cfg(test)]
mod tests {
    use super::profile;

    #[test]
    fn a_slice_is_called_as_its_vendor_calls_it() {
        assert_eq!((profile(1, 9_856), profile(3, 40_448)), ("1g.10gb".into(), "3g.40gb".into()));
    }
}
