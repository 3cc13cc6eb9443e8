//! What runs in the network namespace of a host.

use std::{fs, os::unix::fs::MetadataExt as _, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

/// How long a program may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(10);
/// What an engine consists of, as the kernel names it; it has containers to be removed first.
const ENGINE: [&str; 4] = ["dockerd", "containerd", "containerd-shim", "runc"];

/// What of it is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Whatever is no part of an engine.
    Agents,
    /// All of it.
    Everything,
}

/// Ends what runs in a namespace, with force where it takes too long. Containers have namespaces of their own.
///
/// # Errors
/// When something stays.
pub async fn end(namespace: Option<&str>, what: What) -> anyhow::Result<()> {
    let Some(namespace) = namespace else { return Ok(()) };
    let began = Instant::now();
    let mut signal = Signal::SIGTERM;
    loop {
        let left = running(namespace, what);
        if left.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(began.elapsed() < 2 * PATIENCE, "{left:?} in {namespace} cannot be ended");
        if began.elapsed() > PATIENCE {
            signal = Signal::SIGKILL;
        }
        for pid in left {
            // It may end by itself just now.
            let _ = kill(Pid::from_raw(pid), signal);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

fn running(namespace: &str, what: What) -> Vec<i32> {
    let Ok(network) = fs::metadata(format!("/run/netns/{namespace}")) else { return Vec::new() };
    let is_inside = |pid: &i32| {
        // What has ended and only waits to be reaped has no namespace any more.
        fs::metadata(format!("/proc/{pid}/ns/net"))
            .is_ok_and(|own| (own.dev(), own.ino()) == (network.dev(), network.ino()))
    };
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_inside).filter(|pid| what == What::Everything || !is_engine(*pid)).collect()
}

fn is_engine(pid: i32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    ENGINE.contains(&name.trim())
}
