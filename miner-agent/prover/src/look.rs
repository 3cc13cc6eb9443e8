//! Who holds memory of GPUs, and a process with the driver's library in it for the agent to look at.

use std::io::{Read as _, Write as _};

use nvml_wrapper::{
    Nvml, enums::device::UsedGpuMemory, error::NvmlError, struct_wrappers::device::ProcessInfo,
};
use serde::Serialize;

/// Most processes that are named of one device, and most of all of them where somebody only looks.
const HOLDERS_MAX: usize = 256;

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Seen { driver: String, holders: Vec<Holder> },
    Error(String),
}

/// A process that holds memory of a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Holder {
    device: String,
    pid: u32,
    bytes: u64,
}

/// Prints what there is to see and waits until nobody listens any more.
pub fn run() {
    // Kept, so that the library stays where it is while it is looked at.
    let nvml = Nvml::init();
    let seen = nvml.as_ref().map_err(|error| format!("NVML: {error}"));
    let seen = seen.and_then(|nvml| see(nvml).map_err(|error| format!("NVML: {error}")));
    let answer = seen.unwrap_or_else(Answer::Error);
    match serde_json::to_string(&answer) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("write the answer as JSON: {error}"),
    }
    let _ = std::io::stdout().flush();
    let _ = std::io::stdin().read(&mut [0]);
}

fn see(nvml: &Nvml) -> Result<Answer, NvmlError> {
    let mut holders = Vec::new();
    for index in 0..nvml.device_count()? {
        let device = nvml.device_by_index(index)?;
        holders.extend(holders_of(&device, &device.uuid()?));
    }
    holders.truncate(HOLDERS_MAX);
    Ok(Answer::Seen { driver: nvml.sys_driver_version()?, holders })
}

/// Who holds memory of these devices. Nobody computes on one that is not there any more, and the others are looked at
/// all the same.
///
/// # Errors
/// When none of them is there.
pub fn holders(nvml: &Nvml, uuids: &[String]) -> Result<Vec<Holder>, NvmlError> {
    let devices: Vec<_> = uuids.iter().map(|uuid| (nvml.device_by_uuid(uuid.as_str()), uuid)).collect();
    let mut holders = Vec::new();
    let mut missing = Vec::new();
    for (device, uuid) in devices {
        match device {
            Ok(device) => holders.extend(holders_of(&device, uuid)),
            Err(error) => missing.push(error),
        }
    }
    match missing.pop() {
        Some(error) if missing.len() + 1 == uuids.len() => Err(error),
        Some(_) | None => Ok(holders),
    }
}

/// Who holds memory of a device. A list that it does not tell is no reason not to look at the others.
fn holders_of(device: &nvml_wrapper::Device<'_>, uuid: &str) -> Vec<Holder> {
    let lists = [
        device.running_compute_processes(),
        device.running_graphics_processes(),
        device.mps_running_compute_processes(),
    ];
    most(lists.into_iter().flatten().flatten().map(|process| Holder::of(uuid, &process)).collect())
}

/// Those who hold most, each once.
fn most(mut holders: Vec<Holder>) -> Vec<Holder> {
    holders.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.cmp(b)));
    holders.dedup();
    holders.truncate(HOLDERS_MAX);
    holders
}

impl Holder {
    fn of(device: &str, process: &ProcessInfo) -> Self {
        let bytes = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => bytes,
            UsedGpuMemory::Unavailable => 0,
        };
        Self { device: device.to_owned(), pid: process.pid, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_most_is_named_however_many_hold_little() {
        let holder = |pid, bytes| Holder { device: "GPU-1".into(), pid, bytes };
        let small = (0..1_000).map(|pid| holder(pid, 1));
        let named = most(small.chain([holder(5_000, 9), holder(5_000, 9), holder(5_001, 7)]).collect());
        assert_eq!(named[..3], [holder(5_000, 9), holder(5_001, 7), holder(0, 1)]);
        assert_eq!(named.len(), HOLDERS_MAX);
    }
}
