//! What runs the jobs of a local host: a Docker Engine of its own, an existing one, or nothing.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{layout::Layout, network::HOSTS_MAX, program};
use crate::cli::RuntimeChoice;

/// What runs the jobs of local hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    /// A Docker Engine of each host's own.
    Private { dockerd: PathBuf },
    /// One that runs already.
    Existing { socket: PathBuf },
    /// None; the sentence says why.
    Simulated { why: String },
}

/// Longest path of a unix socket, which containerd's must fit in.
const SOCKET_PATH_MAX: usize = 107;

impl Engine {
    /// Chooses what this machine can do.
    ///
    /// # Errors
    /// When Docker is demanded and cannot be had; the message names the fix.
    pub fn choose(choice: RuntimeChoice, socket: Option<&Path>, layout: &Layout) -> anyhow::Result<Self> {
        let found = find(socket, layout);
        match (choice, found) {
            (RuntimeChoice::Simulated, _) => {
                Ok(Self::Simulated { why: "asked for with --runtime simulated".into() })
            }
            (_, Ok(engine)) => Ok(engine),
            // Who names a socket means that engine and no other.
            (RuntimeChoice::Auto, Err(why)) if socket.is_none() => Ok(Self::Simulated { why }),
            (RuntimeChoice::Auto | RuntimeChoice::Docker, Err(why)) => {
                anyhow::bail!("cannot run jobs in Docker: {why}")
            }
        }
    }

    /// The socket of a host's engine, where there is one.
    pub fn socket(&self, layout: &Layout, host: u8) -> Option<PathBuf> {
        match self {
            Self::Private { .. } => Some(layout.docker_socket(host)),
            Self::Existing { socket } => Some(socket.clone()),
            Self::Simulated { .. } => None,
        }
    }
}

fn find(socket: Option<&Path>, layout: &Layout) -> Result<Engine, String> {
    if let Some(socket) = socket {
        return match socket.exists() {
            true => Ok(Engine::Existing { socket: socket.to_owned() }),
            false => Err(format!("there is no socket {}", socket.display())),
        };
    }
    let dockerd = program::find("dockerd").ok_or("Docker Engine is not installed; run scripts/install")?;
    let longest = layout.docker(HOSTS_MAX).join("exec/containerd/containerd.sock.ttrpc");
    if longest.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(format!(
            "the path {} is too long for a socket; choose a shorter --data",
            longest.display()
        ));
    }
    Ok(Engine::Private { dockerd })
}

/// The command of a host's private engine. It touches no firewall, which is the agent's, and
/// its containers survive it.
pub fn dockerd(
    dockerd: &Path,
    layout: &Layout,
    host: u8,
    namespace: Option<&str>,
) -> anyhow::Result<Command> {
    let dir = layout.docker(host);
    // Left by an engine that was killed: its number may belong to another process by now.
    for stale in [dir.join("pid"), dir.join("exec/containerd/containerd.pid")] {
        if stale.exists() {
            fs::remove_file(&stale).with_context(|| format!("remove {}", stale.display()))?;
        }
    }
    let mut command = program::inside(namespace, dockerd.to_owned())?;
    command
        .arg("--data-root")
        .arg(dir.join("data"))
        .arg("--exec-root")
        .arg(dir.join("exec"))
        .arg("--pidfile")
        .arg(dir.join("pid"))
        .arg("--host")
        .arg(format!("unix://{}", layout.docker_socket(host).display()))
        .args([
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            "--bridge=none",
            "--live-restore",
        ])
        .args(["--log-level", "warn"]);
    Ok(command)
}

/// Waits a moment for a private engine to listen; the agent keeps trying after that.
pub async fn answers(layout: &Layout, host: u8) {
    for _ in 0..200 {
        if tokio::net::UnixStream::connect(layout.docker_socket(host)).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Unmounts what stopped private engines leave mounted under a directory, deepest first.
pub fn unmount_leftovers(dir: &Path) -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mut points: Vec<&Path> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1).map(Path::new))
        .filter(|point| point.starts_with(dir))
        .collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    for point in points {
        nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH)
            .with_context(|| format!("unmount {}", point.display()))?;
    }
    Ok(())
}

/// Ends the processes that stood between private engines below `dir` and their containers, and those that were to
/// become a container's. A containerd that is killed at a bad moment forgets those; the containers themselves
/// have been removed.
pub fn end_shims(dir: &Path) {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0).map(OsStr::from_bytes);
        let is_shim = words.next().is_some_and(|name| {
            Path::new(name).file_name().is_some_and(|name| name.as_bytes().starts_with(b"containerd-shim"))
        });
        if is_shim && words.any(|word| Path::new(word).starts_with(dir)) || is_made_below(dir, pid) {
            // It may end by itself just now.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Whether runc made a process for a container of an engine below `dir`, and it waits to be started.
fn is_made_below(dir: &Path, pid: i32) -> bool {
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mut variables = environ.split(|byte| *byte == 0);
    let state = variables.find_map(|variable| variable.strip_prefix(b"_LIBCONTAINER_STATEDIR="));
    state.is_some_and(|state| Path::new(OsStr::from_bytes(state)).starts_with(dir))
}
