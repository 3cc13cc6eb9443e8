//! What must not be left on the machine.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    blows::tagged,
    support::{Host, Market, succeed},
};

/// Everything on the machine that a market makes and must take away.
#[derive(Debug, PartialEq, Eq)]
pub struct Machine {
    links: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    routes: BTreeSet<String>,
    tables: BTreeSet<String>,
    loops: BTreeSet<String>,
    mounts: BTreeSet<String>,
    tunnels: BTreeSet<String>,
    programs: BTreeSet<String>,
}

impl Machine {
    pub fn now() -> Self {
        let lines = |program: &str, arguments: &[&str]| -> BTreeSet<String> {
            succeed(Command::new(program).args(arguments)).lines().map(str::to_owned).collect()
        };
        let first = |lines: BTreeSet<String>, at: usize| -> BTreeSet<String> {
            lines.iter().filter_map(|line| line.split_whitespace().nth(at).map(str::to_owned)).collect()
        };
        let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
        let tunnels = fs::read_dir("/var/run/wireguard").into_iter().flatten().flatten();
        Self {
            links: first(lines("ip", &["-o", "link"]), 1),
            namespaces: first(lines("ip", &["netns", "list"]), 0),
            routes: lines("ip", &["-6", "route"])
                .union(&lines("ip", &["route"]))
                .map(|line| steady(line))
                .collect(),
            tables: lines("nft", &["list", "tables"]),
            loops: lines("losetup", &["--all"]),
            mounts: mounts.lines().filter_map(|line| line.split(' ').nth(1).map(str::to_owned)).collect(),
            tunnels: tunnels.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect(),
            programs: programs(),
        }
    }

    /// Fails when something with one of `marks` in its name is here now that was not there before.
    pub fn assert_as(&self, before: &Self, marks: &[String]) {
        let more = |now: &BTreeSet<String>, then: &BTreeSet<String>| -> Vec<String> {
            let fresh = now.difference(then);
            fresh.filter(|name| marks.iter().any(|mark| name.contains(mark))).cloned().collect()
        };
        let left = [
            ("links", more(&self.links, &before.links)),
            ("namespaces", more(&self.namespaces, &before.namespaces)),
            ("routes", more(&self.routes, &before.routes)),
            ("nft tables", more(&self.tables, &before.tables)),
            ("loop devices", more(&self.loops, &before.loops)),
            ("mounts", more(&self.mounts, &before.mounts)),
            ("tunnels", more(&self.tunnels, &before.tunnels)),
            ("programs", more(&self.programs, &before.programs)),
        ];
        let left: Vec<_> = left.into_iter().filter(|(_, list)| !list.is_empty()).collect();
        assert!(left.is_empty(), "left on the machine: {left:?}");
    }
}

/// What stands in the names of everything that a market makes: its directory, and the letters of
/// its share of the machine's network.
pub fn marks(market: &Market) -> Vec<String> {
    let interface = market.up_json()["hosts"][0]["interface"].as_str().expect("an interface").to_owned();
    let letters = interface.trim_start_matches("nw").split('_').next().expect("letters").to_owned();
    let data = market.data().to_string_lossy().into_owned();
    vec![data, format!("nw{letters}"), format!("nv{letters}")]
}

/// A route without what changes by itself.
fn steady(line: &str) -> String {
    line.split(" expires ").next().unwrap_or_default().trim().to_owned()
}

/// Our programs that run, with their arguments.
fn programs() -> BTreeSet<String> {
    let ours = ["naved", "miner-agent", "nave-prover", "dockerd", "containerd", "containerd-shim"];
    let entries = fs::read_dir("/proc").expect("processes").flatten();
    let lines = entries.filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let program = line.split(' ').next()?.rsplit('/').next()?.to_owned();
        ours.iter()
            .any(|name| program.starts_with(name))
            .then(|| format!("{} {line}", entry.file_name().display()))
    });
    lines.collect()
}

/// Waits until no host has a container, a network or a working directory of a job any more.
pub async fn assert_no_job_left(hosts: &[Host], longest: Duration) {
    let began = Instant::now();
    loop {
        let left: Vec<String> = hosts.iter().flat_map(left_of_jobs).chain(left_running()).collect();
        if left.is_empty() {
            return;
        }
        assert!(began.elapsed() < longest, "left of jobs that are final: {left:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn left_running() -> Vec<String> {
    tagged().into_iter().map(|(pid, key, _)| format!("process {pid} of {key}")).collect()
}

fn left_of_jobs(host: &Host) -> Vec<String> {
    let engine = host.engine();
    let docker = |arguments: &[&str]| -> Vec<String> {
        let output = Command::new("/usr/bin/docker").args(["-H", engine]).args(arguments).output();
        match output {
            Ok(output) if output.status.success() => {
                String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
            }
            // An engine that was just killed is not quiet yet.
            Ok(_) | Err(_) => vec![format!("no answer of {engine}")],
        }
    };
    let containers = docker(&["ps", "--all", "--quiet"]);
    let networks = docker(&["network", "ls", "--quiet", "--filter", "type=custom"]);
    let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
    let data = host.data();
    let mounts = mounts.lines().filter_map(|line| {
        let point = line.split(' ').nth(1)?;
        Path::new(point).starts_with(&data).then(|| format!("mount {point}"))
    });
    let named =
        |what: &'static str, list: Vec<String>| list.into_iter().map(move |id| format!("{what} {id}"));
    named("container", containers).chain(named("network", networks)).chain(mounts).collect()
}
