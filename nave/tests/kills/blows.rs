//! How each kind is struck.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal::SIGKILL;

use crate::{
    plan::{Kind, Strike},
    stream::TAG,
    support::{Host, Market},
};

/// Strikes, or says why there was nothing to strike; a link is up again when this returns.
pub fn strike(market: &Market, hosts: &[Host], blow: Strike) -> Result<(), &'static str> {
    let host = &hosts[usize::try_from(blow.which % hosts.len() as u64).expect("small")];
    match blow.kind {
        Kind::Gateway => kill_part(market, "gateway"),
        Kind::Hub => kill_part(market, "hub"),
        Kind::Scheduler => kill_part(market, "scheduler"),
        Kind::Verifier => kill_part(market, "verifier"),
        Kind::Validator => kill_part(market, "validator"),
        Kind::Treasury => kill_part(market, "treasury"),
        Kind::Postgres => kill_part(market, "postgres"),
        Kind::Agent => kill_part(market, &host.part("agent")),
        Kind::Dockerd => kill_part(market, &host.part("dockerd")),
        Kind::Containerd => kill_one(&named(inside(host), "containerd"), blow.which, "it does not run"),
        Kind::HubTunnel => kill_tunnel(market, "hub"),
        Kind::AgentTunnel => kill_tunnel(market, &host.part("agent")),
        Kind::Prover => examine(market, host, blow),
        Kind::Container => {
            let pids: Vec<i32> = tagged().into_iter().map(|(pid, ..)| pid).collect();
            kill_one(&pids, blow.which, "no job runs")
        }
        Kind::Link => {
            host.set_link("down");
            thread::sleep(Duration::from_millis(blow.for_ms));
            host.set_link("up");
            Ok(())
        }
    }
}

fn kill_tunnel(market: &Market, part: &str) -> Result<(), &'static str> {
    let parent = market.pid_now(part).ok_or("what starts it does not run")?;
    kill_one(&named(descendants(parent), "nave-tunnel"), 0, "it does not run")
}

fn kill_part(market: &Market, part: &str) -> Result<(), &'static str> {
    kill(market.pid_now(part).ok_or("it does not run")?)
}

fn kill_one(pids: &[i32], which: u64, none: &'static str) -> Result<(), &'static str> {
    let at = usize::try_from(which % pids.len().max(1) as u64).expect("small");
    kill(*pids.get(at).ok_or(none)?)
}

fn kill(pid: i32) -> Result<(), &'static str> {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), SIGKILL).map_err(|_| "it had just ended")
}

/// Has a host tested again and kills its prover in the middle.
fn examine(market: &Market, host: &Host, blow: Strike) -> Result<(), &'static str> {
    // Refused while the host is being tested already; that serves as well.
    drop(market.naved().args(["admin", "test", host.id()]).output());
    let began = Instant::now();
    let mut missed = "no prover came";
    while began.elapsed() < Duration::from_secs(8) {
        if !named(inside(host), "nave-prover").is_empty() {
            thread::sleep(Duration::from_millis(blow.which % 400));
            // A test has two parts: where the first has ended, the second follows.
            let struck = kill_one(&named(inside(host), "nave-prover"), blow.which, "the provers had ended");
            match struck {
                Ok(()) => return Ok(()),
                Err(why) => missed = why,
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(missed)
}

/// Whether a process is there and not only waits to be reaped.
pub fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn all_processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("processes").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Processes in the network of a host.
fn inside(host: &Host) -> Vec<i32> {
    let inode = |path: PathBuf| fs::metadata(path).ok().map(|file| file.ino());
    let network = inode(Path::new("/run/netns").join(host.namespace()));
    let is_inside = |pid: &i32| inode(format!("/proc/{pid}/ns/net").into()) == network;
    all_processes().into_iter().filter(is_inside).collect()
}

/// A process and all that it has started.
fn descendants(parent: i32) -> Vec<i32> {
    let mut all = vec![parent];
    let mut at = 0;
    while let Some(pid) = all.get(at).copied() {
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        at += 1;
    }
    all
}

/// Those that run a program.
fn named(pids: Vec<i32>, program: &str) -> Vec<i32> {
    let runs = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let first = line.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        Path::new(&String::from_utf8_lossy(&first).into_owned())
            .file_name()
            .is_some_and(|name| name == program)
    };
    pids.into_iter().filter(runs).collect()
}

/// Processes of jobs of this run, with the job's key and the container each is in.
pub fn tagged() -> Vec<(i32, String, String)> {
    let entries = fs::read_dir("/proc").expect("processes").flatten();
    let read = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let environ = fs::read(entry.path().join("environ")).ok()?;
        let prefix = format!("{TAG}=");
        let key = environ.split(|byte| *byte == 0).find_map(|pair| pair.strip_prefix(prefix.as_bytes()))?;
        let group = fs::read_to_string(entry.path().join("cgroup")).ok()?;
        let container = group.lines().find_map(|line| {
            let last = line.rsplit('/').next()?;
            let id = last.trim_start_matches("docker-").trim_end_matches(".scope");
            (id.len() == 64).then(|| id.to_owned())
        })?;
        Some((pid, String::from_utf8_lossy(key).into_owned(), container))
    };
    entries.filter_map(read).collect()
}
