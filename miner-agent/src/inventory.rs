//! What a machine has and what of it is offered.

use std::{fs, path::Path, thread};

use anyhow::Context as _;
use nave_domain::{
    Bytes, MilliCpu,
    host::{DEVICES_MAX, Device, Inventory, Runtime, TEXT_MAX, parts},
    job::Egress,
};
use nix::sys::statvfs::statvfs;
use serde::Deserialize;

use crate::{
    command,
    config::{Offer, Prover},
};

/// Memory that is kept for the host itself.
const MEMORY_RESERVE: i64 = Bytes::GIB;

/// What the prover prints.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Proved {
    Listed(Listed),
    Nothing { error: String },
}

/// The GPUs of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Listed {
    /// Those that can be proven.
    pub devices: Vec<Device>,
    /// Each that cannot, and why; it is not offered, and the others are.
    #[serde(default)]
    pub left_out: Vec<String>,
}

/// Looks at the machine. What cannot be read counts as nothing.
pub async fn take(
    offer: Offer,
    data: &Path,
    prover: &Prover,
    runtime: Runtime,
    egress: Vec<Egress>,
) -> Inventory {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let memory = offerable_memory(mem_total(&read("/proc/meminfo")));
    let Listed { devices, left_out } = devices(prover).await.unwrap_or_else(|why| {
        tracing::info!(reason = format!("{why:#}"), "no GPUs are offered");
        Listed::default()
    });
    for reason in left_out {
        tracing::warn!(reason, "a GPU is left out");
    }
    Inventory {
        milli_cpu: offer.cpu.unwrap_or_else(cores),
        memory: offer.memory.unwrap_or(memory),
        disk: offer.disk.unwrap_or_else(|| half_of_free(data)),
        devices,
        cpu_model: clip(&cpu_model(&read("/proc/cpuinfo"))),
        os: clip(&os_name(&read("/etc/os-release"))),
        kernel: clip(read("/proc/sys/kernel/osrelease").trim()),
        runtime,
        egress,
        agent: crate::version().into(),
    }
}

/// Cores this process may use: its affinity and its cgroup's quota count.
fn cores() -> MilliCpu {
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    MilliCpu(i64::try_from(cores).unwrap_or(i64::MAX).saturating_mul(1_000))
}

/// All but the reserve, and at least half.
fn offerable_memory(total: Option<Bytes>) -> Bytes {
    let total = total.map_or(0, |total| total.0);
    Bytes((total - MEMORY_RESERVE).max(total / 2))
}

fn half_of_free(data: &Path) -> Bytes {
    let free = statvfs(data).map_or(0, |stat| stat.blocks_available().saturating_mul(stat.fragment_size()));
    Bytes(i64::try_from(free / 2).unwrap_or(i64::MAX))
}

/// Total memory in the text of /proc/meminfo.
fn mem_total(meminfo: &str) -> Option<Bytes> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: i64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(Bytes::KIB).map(Bytes)
}

/// The processor's name in the text of /proc/cpuinfo, which each architecture writes in its own way.
fn cpu_model(cpuinfo: &str) -> String {
    let field = |name: &str| {
        let lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let mut values = lines.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim());
        values.find(|value| !value.is_empty())
    };
    ["model name", "Model", "Hardware", "cpu model", "cpu"]
        .into_iter()
        .find_map(field)
        .unwrap_or("unknown")
        .to_owned()
}

/// The system's name in the text of /etc/os-release.
fn os_name(release: &str) -> String {
    let field = |name: &str| {
        let values = release.lines().filter_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
        values.map(|value| value.trim_matches(['"', '\''])).find(|value| !value.is_empty())
    };
    field("PRETTY_NAME").or_else(|| field("NAME")).unwrap_or("unknown").to_owned()
}

/// At most [`TEXT_MAX`] bytes without control characters.
fn clip(text: &str) -> String {
    let mut clipped: String = text.chars().filter(|c| !c.is_control()).collect();
    while clipped.len() > TEXT_MAX {
        clipped.pop();
    }
    clipped
}

/// Asks the prover for GPUs. It is a process of its own with a cleared
/// environment: a crash in the driver's library ends only it.
///
/// # Errors
/// Why there are none.
pub async fn devices(prover: &Prover) -> anyhow::Result<Listed> {
    let program = prover.program.to_str().context("the prover's path is not UTF-8")?;
    let printed = command::run(program, &prover.arguments()).await?;
    read_devices(&printed)
}

fn read_devices(printed: &[u8]) -> anyhow::Result<Listed> {
    match serde_json::from_slice(printed).context("read what the prover printed")? {
        Proved::Listed(Listed { mut devices, left_out }) => {
            while devices.len().max(parts(&devices).len()) > DEVICES_MAX {
                // As many are tested at once.
                let left_out = devices.pop().map(|device| device.uuid);
                tracing::warn!(
                    device = left_out,
                    "a GPU is left out: a host has {DEVICES_MAX} GPUs and slices at most"
                );
            }
            Ok(Listed { devices, left_out: left_out.iter().map(|why| clip(why)).collect() })
        }
        Proved::Nothing { error } => Err(anyhow::anyhow!(clip(&error))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn memory_is_read_or_counts_as_nothing() {
        assert_eq!(mem_total("MemTotal:       24000000 kB\nMemFree: 1 kB"), Some(Bytes(24_000_000 * 1_024)));
        for text in ["", "MemTotal:", "MemTotal: many kB", "MemTotal: 9223372036854775807 kB"] {
            assert_eq!(mem_total(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_host_keeps_a_gibibyte_and_a_small_one_half() {
        assert_eq!(offerable_memory(Some(Bytes(8 << 30))), Bytes(7 << 30));
        assert_eq!(offerable_memory(Some(Bytes(1 << 30))), Bytes(1 << 29));
        assert_eq!(offerable_memory(None), Bytes(0));
    }

    #[test]
    fn a_processor_is_named_on_every_architecture() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Xeon: the 2nd\n"), "Xeon: the 2nd");
        assert_eq!(cpu_model("processor : 0\nCPU part : 0xd0c\nModel : Raspberry Pi 5\n"), "Raspberry Pi 5");
        assert_eq!(cpu_model("model name :\n"), "unknown");
    }

    #[test]
    fn a_system_is_named_with_and_without_quotes() {
        assert_eq!(os_name("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), "Debian GNU/Linux 12");
        assert_eq!(os_name("NAME='Alpine Linux'\nPRETTY_NAME=\"\""), "Alpine Linux");
        assert_eq!(os_name("PRETTY_NAME"), "unknown");
    }

    #[test]
    fn hostile_texts_are_clipped_between_characters() {
        let clipped = clip(&format!("a\0\n{}", "é".repeat(TEXT_MAX)));
        assert!(clipped.len() <= TEXT_MAX && clipped.starts_with("aé"));
    }

    #[test]
    fn the_prover_names_devices_or_a_reason() {
        let one = br#"{"devices":[{"uuid":"GPU-1","model":"H","vram":1,"driver":"5"}]}"#;
        let listed = read_devices(one).expect("a device");
        assert_eq!((listed.devices.len(), listed.left_out), (1, vec![]));
        let old = br#"{"devices":[],"left_out":["GPU 0 (Tesla T4): it has no kernel"]}"#;
        assert_eq!(read_devices(old).expect("none").left_out, ["GPU 0 (Tesla T4): it has no kernel"]);
        let none = read_devices(br#"{"error":"no driver"}"#).expect_err("a reason");
        assert_eq!(none.to_string(), "no driver");
        assert!(read_devices(b"").is_err() && read_devices(b"{}").is_err());
    }

    #[test]
    fn a_host_offers_no_more_slices_than_are_tested_at_once() {
        let slice = |number: usize| json!({ "uuid": format!("MIG-{number}"), "profile": "1g", "milli": 142, "vram": 1 });
        let device = |number: usize| {
            let slices: Vec<_> = (0..7).map(|part| slice(7 * number + part)).collect();
            let uuid = format!("GPU-{number}");
            json!({ "uuid": uuid, "model": "H", "vram": 7, "driver": "5", "division": { "slices": slices } })
        };
        let printed = json!({ "devices": (0..16).map(device).collect::<Vec<_>>() }).to_string();
        assert_eq!(read_devices(printed.as_bytes()).expect("devices").devices.len(), 9);
    }

    #[tokio::test]
    async fn a_prover_that_is_not_there_or_crashes_means_no_devices() {
        let devices = async |path: &str| devices(&Prover { program: path.into(), simulated: None }).await;
        assert!(devices("/does/not/exist").await.is_err());
        assert!(devices("/bin/false").await.is_err());
    }
}
