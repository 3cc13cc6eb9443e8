//! `naved up`: a whole market on one machine.
//!
//! A supervisor prepares the directory, starts Postgres, and keeps every role, the agents
//! of the local hosts and their engines running as processes of their own. Any of them can
//! be killed at any time; so can the supervisor, whose parts go on without it.

mod clean;
mod cloud;
mod devices;
mod engine;
mod host;
mod inside;
mod layout;
mod market;
mod network;
mod part;
mod program;
mod registry;
pub mod relay;
mod running;
mod slot;
mod status;

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    fcntl::{Flock, FlockArg},
    unistd::Uid,
};

pub use self::{
    devices::SimulatedDevices,
    layout::{Layout, write_whole},
    network::{HOSTS_MAX, RENTED_MAX},
};
use self::{
    part::{Kept, Make, Part, Process},
    running::Market,
    status::Status,
};
use crate::{
    cli::{DownArgs, UpArgs},
    roles::stop_signal,
};

/// Longest wait for a market that starts in the background: hosts may have much to prove.
const DETACH_MAX: Duration = Duration::from_secs(900);

/// What `naved up` does on a machine takes its owner's rights.
fn check_root() -> anyhow::Result<()> {
    anyhow::ensure!(
        Uid::effective().is_root(),
        "naved up makes network interfaces, namespaces and containers, which needs root: run it as root or with sudo"
    );
    Ok(())
}

pub async fn up(args: UpArgs) -> anyhow::Result<()> {
    check_root()?;
    let layout = Layout::new(args.data.data.clone());
    layout
        .make()
        .with_context(|| format!("prepare {}; choose another place with --data", layout.root().display()))?;
    if args.detach { detach(&args, &layout).await } else { supervise(args, &layout).await }
}

/// Stops a market: its supervisor first, or what a killed one left.
pub async fn down(args: &DownArgs) -> anyhow::Result<()> {
    let layout = Layout::new(args.data.data.clone());
    if !layout.run().exists() {
        eprintln!("there is no market in {}; --data or NAVE_DATA say where it is", layout.root().display());
        tell_down(args, &layout, false);
        return Ok(());
    }
    let status = Status::read(&layout);
    if let Some(supervisor) = status.as_ref().and_then(|status| Process::recorded(&status.supervisor)) {
        supervisor.end("supervisor", Duration::from_secs(60)).await;
    }
    clean::end_parts(&layout).await?;
    clean::remove_traces(&layout).await.context("remove what the local hosts have made on this machine")?;
    Status::remove(&layout);
    eprintln!("stopped; the market's state is in {}", layout.root().display());
    tell_down(args, &layout, true);
    Ok(())
}

fn tell_down(args: &DownArgs, layout: &Layout, stopped: bool) {
    if args.json {
        println!("{}", serde_json::json!({ "data": layout.root(), "stopped": stopped }));
    }
}

/// Runs the same command again in the background and returns when that is ready.
async fn detach(args: &UpArgs, layout: &Layout) -> anyhow::Result<()> {
    let running = Status::read(layout).filter(|status| Process::recorded(&status.supervisor).is_some());
    if let Some(status) = running.filter(|status| status.ready) {
        eprintln!("already running; other options take effect after `nave down`");
        return tell(&status, args.json);
    }
    Status::remove(layout);
    let path = layout.log().join("naved.log");
    let log = fs::OpenOptions::new().create(true).append(true).open(&path)?;
    let logged = log.metadata()?.len();
    let arguments = env::args_os().skip(1).filter(|argument| argument != "--detach");
    let mut command = Command::new(env::current_exe()?);
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().context("start the supervisor")?;
    let began = Instant::now();
    loop {
        if let Some(status) = Status::read(layout).filter(|status| status.ready) {
            return tell(&status, args.json);
        }
        if let Some(ended) = child.try_wait()? {
            let why = last_words(&path, logged).unwrap_or_else(|| ended.to_string());
            anyhow::bail!("{why} (the log is {})", path.display());
        }
        anyhow::ensure!(began.elapsed() < DETACH_MAX, "not ready yet; see {}", layout.log().display());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Why a supervisor gave up: what [`crate::main`] wrote to the log last, beyond `from` bytes.
fn last_words(log: &Path, from: u64) -> Option<String> {
    let text = fs::read(log).ok()?;
    let fresh = String::from_utf8_lossy(text.get(usize::try_from(from).ok()?..)?).into_owned();
    fresh.lines().last()?.strip_prefix("naved: ").map(str::to_owned)
}

async fn supervise(args: UpArgs, layout: &Layout) -> anyhow::Result<()> {
    let stop = stop_signal()?;
    let _lock = lock(layout)?;
    clean::end_parts(layout).await?;
    check_free(args.api)?;
    let mut market = Market::start(args, layout).await?;
    let stopped = tokio::select! {
        () = stop => Ok(()),
        result = market.serve() => result,
    };
    progress("stopping");
    market.stop().await?;
    stopped
}

/// Fails at once where the gateway would try in vain.
fn check_free(api: SocketAddr) -> anyhow::Result<()> {
    drop(
        TcpListener::bind(api)
            .with_context(|| format!("serve the API on {api}; choose another address with --api"))?,
    );
    Ok(())
}

fn lock(layout: &Layout) -> anyhow::Result<Flock<fs::File>> {
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(layout.lock())?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow::anyhow!(
            "another `naved up` runs in {} ({error}); stop it with `nave down`",
            layout.root().display()
        )
    })
}

fn tell(status: &Status, json: bool) -> anyhow::Result<()> {
    eprintln!("the market is up at {}, jobs run in: {}", status.api, status.runtime);
    for limit in &status.limits {
        eprintln!("note: {limit}");
    }
    eprintln!(
        "try: nave run -- python3 -c 'print(6*7)'    see: nave hosts, nave offers, nave balance    stop: nave down"
    );
    if json {
        println!("{}", serde_json::to_string(status)?);
    }
    Ok(())
}

fn progress(message: &str) {
    eprintln!("naved: {message}");
}

fn keep(layout: &Layout, name: String, seconds: u64, make: Make) -> Kept {
    Part { name, make, patience: Duration::from_secs(seconds) }.keep(layout.log(), layout.pids())
}

/// An address that is listened on, as this machine reaches it.
fn reached(listening: SocketAddr) -> SocketAddr {
    let any = listening.ip().is_unspecified();
    if any { SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), listening.port()) } else { listening }
}

/// Lets hosts in namespaces reach a port of this machine's loopback.
fn relay_command(naved: &Path, address: &str, namespaces: impl IntoIterator<Item = String>) -> Command {
    let mut command = Command::new(naved);
    command.arg("relay").arg(address).args(namespaces);
    command
}

fn agent_program() -> anyhow::Result<PathBuf> {
    let beside = env::current_exe()?.with_file_name("miner-agent");
    if beside.exists() {
        Ok(beside)
    } else {
        program::find("miner-agent").context("there is no miner-agent beside naved")
    }
}
