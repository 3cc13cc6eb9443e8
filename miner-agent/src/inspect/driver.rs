//! What stands between a prover and the GPU driver: mounts, libraries, and who else is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::Context as _;
use nave_domain::Bytes;
use nave_sdk::wire::proof::findings::{Driver, FOUND_MAX, Holder, Mapped, Mount, clip};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::{
    Containers, kernel,
    proc::{self, Mapping, Mounted, mappings, mount_of},
    read, variables,
};
use crate::{command, config::Prover};

/// Longest that a prover may take to load the driver's library.
const LOAD: Duration = Duration::from_secs(20);
/// Longest line of a prover that looks, in bytes.
const LINE_MAX: u64 = 256 << 10;
/// Where libraries of a driver are, where none is loaded.
const LIBRARIES: [&str; 8] = [
    "/usr/lib64",
    "/usr/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64/nvidia",
    "/usr/local/lib",
    "/usr/local/nvidia/lib64",
    "/run/opengl-driver/lib",
];
/// Where a whole file system may be mounted without being over a driver in particular.
const USUAL: [&str; 14] = [
    "/",
    "/usr",
    "/usr/local",
    "/opt",
    "/var",
    "/run",
    "/srv",
    "/home",
    "/dev",
    "/proc",
    "/nix",
    "/nix/store",
    "/gnu/store",
    "/sysroot",
];
/// How far parents of a process are followed.
const PARENTS_MAX: usize = 64;

/// What was seen with a prover that had loaded the driver's library.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Version of the driver, as its library says.
    pub library: Option<String>,
    /// Who holds memory of GPUs.
    holders: Vec<Held>,
    /// Files that provers run code from.
    pub mapped: Vec<Mapped>,
    /// Variables of provers that change what the dynamic linker loads.
    pub environment: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    Seen { driver: String, holders: Vec<Held> },
    Error(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Held {
    device: String,
    pid: u32,
    bytes: u64,
}

/// Has a prover load the driver's library, and looks at it and at all others that run.
pub async fn look(prover: &Prover) -> Seen {
    let mut seen = Seen::default();
    let looking = match begin(prover).await {
        Ok((child, said)) => {
            match said {
                Said::Seen { driver, holders } => {
                    (seen.library, seen.holders) = (Some(clip(&driver)), holders)
                }
                Said::Error(why) => tracing::debug!(why, "no GPU driver to look at"),
            }
            Some(child)
        }
        Err(error) => {
            tracing::info!(error = format!("{error:#}"), "the prover does not look at the driver");
            None
        }
    };
    let program = kernel::canonical(&prover.program).unwrap_or_else(|_| prover.program.clone());
    let mut mapped = BTreeMap::new();
    for pid in provers(&program).into_iter().chain(looking.as_ref().and_then(Child::id)) {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        for mapping in mappings(&read(proc.join("maps"))).filter(|mapping| mapping.path != program) {
            let replaced = mapping.deleted || is_replaced(&proc, &mapping);
            *mapped.entry(mapping.path).or_insert(false) |= replaced;
        }
        seen.environment.extend(variables(&proc));
    }
    let text = |path: PathBuf| clip(&path.to_string_lossy());
    // What was replaced comes first where there is too much of it.
    let mut all: Vec<Mapped> =
        mapped.into_iter().map(|(path, replaced)| Mapped { path: text(path), replaced }).collect();
    all.sort_by_key(|mapped| !mapped.replaced);
    all.truncate(FOUND_MAX);
    seen.mapped = all;
    seen
}

/// Starts a prover that looks, and stays until it is dropped.
async fn begin(prover: &Prover) -> anyhow::Result<(Child, Said)> {
    let mut command = Command::new(&prover.program);
    command.arg("look").env_clear().env("PATH", command::PATH).env("LC_ALL", "C").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("run {}", prover.program.display()))?;
    let output = child.stdout.take().context("the prover has no output")?;
    let mut line = String::new();
    let mut bounded = BufReader::new(output).take(LINE_MAX);
    let heard = timeout(LOAD, bounded.read_line(&mut line)).await;
    heard.context("wait for a prover that looks")?.context("listen to a prover that looks")?;
    let said = serde_json::from_str(&line).context("read what a prover saw")?;
    Ok((child, said))
}

/// Provers of this agent that run.
fn provers(program: &Path) -> Vec<u32> {
    let children = kernel::entries("/proc/self/task").into_iter().map(|thread| read(thread.join("children")));
    let pids: BTreeSet<u32> = children
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    let is_prover = |pid: &u32| kernel::target(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
    pids.into_iter().filter(is_prover).collect()
}

/// Whether the file at a mapping's path is another by now.
fn is_replaced(proc: &Path, mapping: &Mapping) -> bool {
    let Ok(mapped) = kernel::identity(proc.join("map_files").join(&mapping.range)) else { return false };
    kernel::identity(&mapping.path) != Ok(mapped)
}

/// The driver, as far as there is one.
#[must_use]
pub fn version(seen: &Seen) -> Option<Driver> {
    let module = proc::module_version(&read("/proc/driver/nvidia/version"));
    let driver = Driver { module: module.map(|text| clip(&text)), library: seen.library.clone() };
    (driver != Driver { module: None, library: None }).then_some(driver)
}

/// Mounts over files of the driver.
#[must_use]
pub fn mounts_over(seen: &Seen) -> Vec<Mount> {
    let mounts = proc::mounts(&read("/proc/self/mountinfo"));
    let loaded = seen.mapped.iter().map(|mapped| PathBuf::from(&mapped.path));
    let files: BTreeSet<PathBuf> = loaded.filter(|path| is_of_driver(path)).chain(driver_files()).collect();
    covering(&mounts, files.iter())
}

/// Which mounts are over these files, rather than below everything.
fn covering<'a>(mounts: &[Mounted], files: impl Iterator<Item = &'a PathBuf>) -> Vec<Mount> {
    let mut over: BTreeMap<PathBuf, Mount> = BTreeMap::new();
    for file in files {
        let Some(mount) = mount_of(mounts, file) else { continue };
        if is_usual(mount) || over.len() >= FOUND_MAX {
            continue;
        }
        over.entry(mount.point.clone()).or_insert_with(|| {
            let text = |path: &Path| clip(&path.to_string_lossy());
            let (covers, point, root) = (text(file), text(&mount.point), text(&mount.root));
            Mount { covers, point, root, kind: clip(&mount.kind) }
        });
    }
    over.into_values().collect()
}

fn is_usual(mount: &Mounted) -> bool {
    let is_whole = USUAL.iter().any(|usual| mount.point == Path::new(usual));
    match mount.point.to_str() {
        Some("/proc") => mount.kind == "proc",
        Some("/dev") => ["devtmpfs", "tmpfs"].contains(&mount.kind.as_str()),
        Some(_) | None => is_whole,
    }
}

/// The driver's devices, what it says in `/proc`, and its libraries.
fn driver_files() -> Vec<PathBuf> {
    let entries = |dir: &str| {
        kernel::entries(dir).into_iter().filter(|path| is_of_driver(path)).take(1_024).collect::<Vec<_>>()
    };
    let libraries = LIBRARIES.into_iter().flat_map(entries);
    // Mounts are over files, not over the links that lead there.
    let libraries = libraries.flat_map(|path| [kernel::canonical(&path).ok(), Some(path)]).flatten();
    let said = ["/proc/driver/nvidia/version", "/proc/driver/nvidia/params"].map(PathBuf::from);
    entries("/dev")
        .into_iter()
        .chain(libraries)
        .chain(said.into_iter().filter(|path| kernel::identity(path).is_ok()))
        .collect()
}

fn is_of_driver(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_device = path.parent() == Some(Path::new("/dev")) && name.starts_with("nvidia");
    is_device || name.starts_with("libcuda.so") || name.starts_with("libnvidia-")
}

/// Who holds memory of GPUs and is neither the agent's nor a job's.
#[must_use]
pub fn foreign(seen: &Seen, containers: &Containers) -> Vec<Holder> {
    let is_ours = |pid| containers.daemons.contains(&pid) || is_ours(pid, &containers.jobs);
    let foreign = seen.holders.iter().filter(|held| !is_ours(held.pid));
    let holder = |held: &Held| Holder {
        device: clip(&held.device),
        pid: held.pid,
        memory: Bytes(i64::try_from(held.bytes).unwrap_or(i64::MAX)),
    };
    foreign.map(holder).take(FOUND_MAX).collect()
}

/// Whether a process is of the agent, or in a container with one of its jobs, or gone.
fn is_ours(pid: u32, jobs: &BTreeSet<String>) -> bool {
    let Ok(cgroups) = kernel::bytes(format!("/proc/{pid}/cgroup"), usize::MAX) else { return true };
    let cgroups = String::from_utf8_lossy(&cgroups);
    jobs.iter().any(|job| cgroups.contains(job.as_str())) || descends(pid, std::process::id())
}

fn descends(mut pid: u32, from: u32) -> bool {
    for _ in 0..PARENTS_MAX {
        if pid == from {
            return true;
        }
        match proc::parent(&read(format!("/proc/{pid}/stat"))) {
            Some(parent) if parent > 1 => pid = parent,
            Some(_) | None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:2 / /proc rw - proc proc rw
3 1 0:3 / /dev rw - devtmpfs dev rw
";

    fn over(more: &str, file: &str) -> Vec<String> {
        let mounts = proc::mounts(&format!("{MACHINE}{more}"));
        covering(&mounts, [PathBuf::from(file)].iter()).into_iter().map(|mount| mount.point).collect()
    }

    #[test]
    fn a_machine_as_it_is_installed_has_nothing_over_its_driver() {
        for file in ["/dev/nvidia0", "/proc/driver/nvidia/version", "/usr/lib64/libcuda.so.1"] {
            assert!(over("", file).is_empty(), "{file}");
            assert!(over("4 1 8:2 / /usr ro - btrfs /dev/sda2 ro\n", file).is_empty(), "{file}");
        }
    }

    #[test]
    fn a_file_or_a_directory_that_is_mounted_over_the_driver_is_seen() {
        let library = "/usr/lib64/libcuda.so.570.195.03";
        let hook = format!("4 1 8:1 /tmp/hook.so {library} rw - ext4 /dev/sda1 rw\n");
        assert_eq!(over(&hook, library), [library]);
        assert_eq!(over("4 1 0:9 / /usr/lib64 rw - overlay none rw\n", library), ["/usr/lib64"]);
        assert_eq!(over("4 3 0:9 /x /dev/nvidia0 rw - tmpfs none rw\n", "/dev/nvidia0"), ["/dev/nvidia0"]);
        let said = "/proc/driver/nvidia/version";
        assert_eq!(over("4 2 0:9 / /proc/driver/nvidia ro - tmpfs none ro\n", said), ["/proc/driver/nvidia"]);
        assert_eq!(over("4 1 0:9 / /proc rw - fuse hook rw\n", said), ["/proc"]);
    }

    #[test]
    fn what_is_of_a_driver_is_known_by_its_name() {
        let all = ["/dev/nvidia0", "/dev/nvidia-uvm", "/lib/libcuda.so.1", "/x/libnvidia-ml.so.1"];
        assert!(all.iter().all(|path| is_of_driver(Path::new(path))));
        let none = ["/dev/null", "/lib/libcudart.so", "/lib/nvidia0", "/"];
        assert!(!none.iter().any(|path| is_of_driver(Path::new(path))));
    }

    #[test]
    fn a_process_of_the_agent_is_its_own_and_one_that_is_gone_is_nobodys() {
        assert!(is_ours(std::process::id(), &BTreeSet::new()));
        assert!(is_ours(u32::MAX, &BTreeSet::new()));
        assert!(!is_ours(1, &BTreeSet::new()));
    }
}
