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

mod faults;

/// How many slices of computing most devices are cut into.
const COMPUTE_SLICES: i64 = 7;

#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    Listed(Listed),
    Nothing { error: String },
}

/// The GPUs of this machine.
#[derive(Default, Serialize)]
struct Listed {
    /// Those that can be proven.
    devices: Vec<Device>,
    /// Each that cannot, and why: nobody is told that they are there, and the others are.
    left_out: Vec<String>,
}

/// Prints the devices, or why there are none.
pub fn print(simulated: Option<&Path>) {
    let answer = match (listed(), simulated) {
        (Ok(listed), None) => Answer::Listed(listed),
        (Err(error), None) => Answer::Nothing { error: faults::told(&error) },
        (found, Some(file)) => match Simulated::read(file) {
            Ok(simulated) => {
                let mut listed = found.inspect_err(|error| eprintln!("NVML: {error}")).unwrap_or_default();
                listed.devices.extend(simulated.list());
                Answer::Listed(listed)
            }
            Err(error) => Answer::Nothing { error },
        },
    };
    match serde_json::to_string(&answer) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("write the answer as JSON: {error}"),
    }
}

fn listed() -> Result<Listed, NvmlError> {
    let nvml = Nvml::init()?;
    let driver = nvml.sys_driver_version()?;
    let count = nvml.device_count()?.min(u32::try_from(DEVICES_MAX).unwrap_or(u32::MAX));
    let mut listed = Listed::default();
    for index in 0..count {
        match device(&nvml, index, &driver) {
            Ok(device) => listed.devices.push(device),
            // One that is broken, or too old, does not hide the others.
            Err(why) => listed.left_out.push(format!("GPU {index}{why}")),
        }
    }
    Ok(listed)
}

/// A device, or what to say of it after its number.
fn device(nvml: &Nvml, index: u32, driver: &str) -> Result<Device, String> {
    let told = |error: NvmlError| format!(": {}", faults::told(&error));
    let device = nvml.device_by_index(index).map_err(told)?;
    let (uuid, model) = (device.uuid().map_err(told)?, device.name().map_err(told)?);
    let of = |why: &str| format!(" ({model}, {uuid}): {why}");
    let capability = device.cuda_compute_capability().map_err(|error| of(&faults::told(&error)))?;
    let capability = (capability.major.unsigned_abs(), capability.minor.unsigned_abs());
    if !cuda::has_kernel(capability) {
        return Err(of(&cuda::no_kernel(capability)));
    }
    let memory = device.memory_info().map_err(|error| of(&faults::told(&error)))?;
    let vram = Bytes(i64::try_from(memory.total).unwrap_or(i64::MAX));
    Ok(Device { vram, driver: driver.to_owned(), simulated: false, division: division(&device), uuid, model })
}

/// How a device can be leased, as far as it goes by the driver. Not tried on a GPU yet.
fn division(device: &nvml_wrapper::Device<'_>) -> Division {
    // A device that knows no MIG is in no such mode.
    if device.mig_mode().is_ok_and(|mode| mode.current == 1) {
        return Division::Slices(slices(device));
    }
    // All that there are kernels for hold processes to limits.
    Division::Shares
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
