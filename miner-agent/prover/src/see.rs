//! What a container sees of GPUs: this process goes into it, as its user and within its control groups, and tries what
//! a program of a job would.
//!
//! It was loaded outside, so that nothing needs to be in the container for it; the driver's libraries are those that
//! a program inside would find.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt as _, chroot},
    path::Path,
    process::ExitCode,
};

use cudarc::driver::sys;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use nvml_wrapper::{Nvml, error::NvmlError};
use serde::Serialize;

/// Where the toolkit puts the driver's libraries. The linker may find them elsewhere, too.
const LIBRARIES: [&str; 6] = [
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/lib",
];

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Seen(Seen),
    Error(String),
}

/// What there is of GPUs.
#[derive(Serialize)]
struct Seen {
    /// The driver's device files.
    files: Vec<String>,
    /// Those that cannot be opened, and why.
    refused: Vec<String>,
    /// Libraries of the driver that are not there.
    missing: Vec<&'static str>,
    /// The GPUs that NVML lists, or why it does not.
    gpus: Result<Vec<String>, String>,
}

/// Prints what the container with this process sees, as this user.
pub fn run(pid: u32, user: u32) -> ExitCode {
    let answer = match enter(pid, user) {
        Ok(()) => Answer::Seen(look()),
        Err(error) => Answer::Error(format!("enter a container: {error}")),
    };
    match serde_json::to_string(&answer) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("write the answer as JSON: {error}"),
    }
    ExitCode::SUCCESS
}

fn enter(pid: u32, user: u32) -> io::Result<()> {
    join(&fs::read_to_string(format!("/proc/{pid}/cgroup"))?);
    chroot(format!("/proc/{pid}/root"))?;
    std::env::set_current_dir("/")?;
    setgroups(&[])?;
    setgid(Gid::from_raw(user))?;
    Ok(setuid(Uid::from_raw(user))?)
}

/// Goes into the control group that says which devices may be opened. Where that cannot be, less is tried, and nothing
/// is refused that a program inside could do.
fn join(cgroups: &str) {
    for directory in cgroups.lines().filter_map(directory) {
        if let Err(error) = fs::write(format!("{directory}/cgroup.procs"), "0") {
            eprintln!("{directory}: {error}");
        }
    }
}

/// Where a line of `/proc/PID/cgroup` leads to, if it is about devices.
fn directory(line: &str) -> Option<String> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    if controllers.split(',').any(|controller| controller == "devices") {
        return Some(format!("/sys/fs/cgroup/{controllers}{path}"));
    }
    let is_unified = controllers.is_empty() && Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    is_unified.then(|| format!("/sys/fs/cgroup{path}"))
}

fn look() -> Seen {
    let entries = fs::read_dir("/dev").into_iter().flatten().flatten();
    let devices = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_char_device()));
    let names = devices.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut files: Vec<String> = names.filter(|name| name.starts_with("nvidia")).collect();
    files.sort();
    let open = |name: &String| OpenOptions::new().read(true).write(true).open(format!("/dev/{name}"));
    let refused = files.iter().filter_map(|name| open(name).err().map(|why| format!("/dev/{name}: {why}")));
    let refused = refused.collect();
    let nvml = Nvml::init();
    let lacks_nvml = matches!(nvml, Err(NvmlError::LibloadingError(_)));
    // SAFETY: it only looks whether the library can be loaded.
    #[expect(unsafe_code, reason = "a foreign library runs code when it is loaded")]
    let lacks_cuda = !unsafe { sys::is_culib_present() };
    let missing = [("libnvidia-ml.so.1", lacks_nvml), ("libcuda.so.1", lacks_cuda)].into_iter();
    let missing =
        missing.filter(|(name, lacks)| *lacks && !is_somewhere(name)).map(|(name, _)| name).collect();
    let gpus = nvml.and_then(|nvml| {
        let count = nvml.device_count()?;
        (0..count).map(|index| nvml.device_by_index(index)?.uuid()).collect()
    });
    Seen { files, refused, missing, gpus: gpus.map_err(|error| error.to_string()) }
}

fn is_somewhere(library: &str) -> bool {
    LIBRARIES.iter().any(|directory| Path::new(directory).join(library).exists())
}

#[cfg(test)]
mod tests {
    use super::directory;

    #[test]
    fn the_control_group_of_devices_is_found() {
        assert_eq!(directory("5:devices:/docker/a"), Some("/sys/fs/cgroup/devices/docker/a".into()));
        assert_eq!(directory("4:memory:/docker/a"), None);
        assert_eq!(directory("no line"), None);
    }
}
