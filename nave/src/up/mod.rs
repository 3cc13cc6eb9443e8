//! `naved up`: a whole market on one machine.
//!
//! A supervisor prepares the directory, starts Postgres, and keeps every role, the local
//! host's agent and its engine running as processes of their own. Any of them can be
//! killed at any time; so can the supervisor, whose parts go on without it.

mod engine;
mod layout;
mod market;
mod part;
mod registry;
mod slot;
mod status;

use std::{
    env, fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nave_domain::host::HostState;
use nave_store::{Store, embedded::Postgres};
use nix::fcntl::{Flock, FlockArg};

pub use self::layout::Layout;
use self::{
    engine::Engine,
    market::Identity,
    part::{Kept, Make, Part, Process, end_leftovers},
    registry::Registry,
    slot::Slot,
    status::Status,
};
use crate::{
    cli::{DataArgs, UpArgs},
    roles::stop_signal,
};

/// Longest wait for a market to become ready.
const READY_MAX: Duration = Duration::from_secs(90);

pub async fn up(args: UpArgs) -> anyhow::Result<()> {
    let layout = Layout::new(args.data.data.clone());
    layout
        .make()
        .with_context(|| format!("prepare {}; choose another place with --data", layout.root().display()))?;
    if args.detach { detach(&args, &layout).await } else { supervise(args, &layout).await }
}

/// Stops a market: its supervisor first, or what a killed one left.
pub async fn down(args: &DataArgs) -> anyhow::Result<()> {
    let layout = Layout::new(args.data.clone());
    if !layout.run().exists() {
        eprintln!("there is no market in {}; --data or NAVE_DATA say where it is", layout.root().display());
        return Ok(());
    }
    let status = Status::read(&layout);
    if let Some(supervisor) = status.as_ref().and_then(|status| Process::recorded(&status.supervisor)) {
        supervisor.end("supervisor", Duration::from_secs(60)).await;
    }
    end_leftovers(&layout.pids()).await?;
    if Slot::is_held(layout.root()) {
        let docker = status.and_then(|status| status.docker_host);
        let socket = docker.map(|host| PathBuf::from(host.replacen("unix://", "", 1)));
        purge_stopped(&layout, &socket.unwrap_or_else(|| layout.docker_socket()))
            .await
            .context("remove what the local host has made on this machine")?;
    }
    engine::unmount_leftovers(&layout)?;
    Status::remove(&layout);
    eprintln!("stopped; the market's state is in {}", layout.root().display());
    Ok(())
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
        anyhow::ensure!(began.elapsed() < READY_MAX * 2, "not ready yet; see {}", layout.log().display());
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
    end_leftovers(&layout.pids()).await?;
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

/// A running market.
struct Market {
    args: UpArgs,
    layout: Layout,
    store: Store,
    identity: Identity,
    engine: Engine,
    /// How the agent reaches its engine and which share of the machine's network is its.
    engine_arguments: Vec<String>,
    status: Status,
    /// In the order they were started.
    parts: Vec<Kept>,
}

impl Market {
    async fn start(args: UpArgs, layout: &Layout) -> anyhow::Result<Self> {
        let (naved, agent) = (env::current_exe()?, agent_program()?);
        let engine = Engine::choose(args.runtime, args.docker.as_deref(), layout)?;
        let socket = engine.socket(layout);
        let engine_arguments =
            socket.map(|socket| engine_arguments(layout, &socket)).transpose()?.unwrap_or_default();
        let registry = (args.local_registry || Registry::is_kept(layout))
            .then(|| Registry::prepare(layout))
            .transpose()?;
        let status = first_status(&args, layout, &engine, registry.as_ref())?;
        status.write(layout)?;
        for limit in &status.limits {
            progress(&format!("note: {limit}"));
        }
        progress("starting Postgres");
        let postgres = Postgres::prepare(&layout.postgres())?;
        let url = postgres.url();
        let server = postgres.clone();
        let first = keep(layout, "postgres", 20, Box::new(move || Ok(server.command()?)));
        let (store, identity) = match found(&postgres, layout, &args).await {
            Ok(found) => found,
            Err(error) => {
                first.stop().await;
                return Err(error);
            }
        };
        let mut market = Self {
            args,
            layout: layout.clone(),
            store,
            identity,
            engine,
            engine_arguments,
            status,
            parts: vec![first],
        };
        market.start_parts(&url, naved, agent).await;
        Ok(market)
    }

    async fn start_parts(&mut self, url: &str, naved: PathBuf, agent: PathBuf) {
        progress("starting gateway, scheduler, validator, treasury and the local host");
        let roles = [
            ("gateway", self.gateway_arguments()),
            ("scheduler", self.protocol_arguments()),
            (
                "validator",
                vec![
                    "--epoch".into(),
                    millis(self.args.epoch),
                    "--local-chain".into(),
                    text(self.layout.chain()),
                ],
            ),
            ("treasury", vec![]),
        ];
        for (name, arguments) in roles {
            let (naved, url) = (naved.clone(), url.to_owned());
            self.keep(name, 10, Box::new(move || Ok(role_command(&naved, name, &url, &arguments))));
        }
        if let Engine::Private { dockerd } = self.engine.clone() {
            let layout = self.layout.clone();
            self.keep("dockerd", 20, Box::new(move || engine::dockerd(&dockerd, &layout)));
            engine::answers(&self.layout).await;
        }
        if self.status.registry.is_some() {
            let layout = self.layout.clone();
            self.keep("registry", 10, Box::new(move || Registry::command(&layout)));
        }
        let arguments = self.agent_arguments();
        self.keep(
            "agent",
            20,
            Box::new(move || {
                let mut command = Command::new(&agent);
                command.args(&arguments);
                Ok(command)
            }),
        );
    }

    fn keep(&mut self, name: &'static str, seconds: u64, make: Make) {
        self.parts.push(keep(&self.layout, name, seconds, make));
    }

    fn protocol_arguments(&self) -> Vec<String> {
        vec!["--fence".into(), millis(self.args.fence), "--report".into(), millis(self.args.report)]
    }

    fn gateway_arguments(&self) -> Vec<String> {
        let mut arguments = self.protocol_arguments();
        arguments.extend(["--api".into(), self.args.api.to_string()]);
        arguments.extend(["--host-socket".into(), text(self.layout.host_socket())]);
        if let Some(registry) = &self.status.registry {
            arguments.extend(["--insecure-registry".into(), registry.clone()]);
        }
        arguments
    }

    fn agent_arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> =
            vec!["run".into(), "--host-id".into(), self.identity.host.to_string()];
        arguments.extend(["--socket".into(), text(self.layout.host_socket())]);
        arguments.extend(["--data".into(), text(self.layout.agent())]);
        arguments.extend(["--runtime".into(), self.status.runtime.clone()]);
        arguments.extend(self.engine_arguments.iter().cloned());
        if let Some(cpu) = self.args.cpu {
            arguments.extend(["--cpu".into(), format!("{}.{:03}", cpu.0 / 1_000, cpu.0 % 1_000)]);
        }
        for (flag, bytes) in [("--memory", self.args.memory), ("--disk", self.args.disk)] {
            arguments.extend(bytes.into_iter().flat_map(|bytes| [flag.to_owned(), bytes.0.to_string()]));
        }
        arguments
    }

    /// Waits until a job could run, says so, and then only waits.
    async fn serve(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        while !self.is_ready().await {
            anyhow::ensure!(
                began.elapsed() < READY_MAX,
                "the local host or the API is not ready after {} s; see {} and `miner-agent doctor`",
                READY_MAX.as_secs(),
                self.layout.log().display()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if let Some(file) = market::configure_client(&self.args, &self.identity)? {
            progress(&format!("`nave` is configured in {}", file.display()));
        }
        if self.store.default_image().await?.is_none() {
            self.status.limits.push(
                "jobs have to name an image (--image) until `naved admin default-image` sets one".into(),
            );
        }
        self.status.ready = true;
        self.status.write(&self.layout)?;
        tell(&self.status, self.args.json)?;
        std::future::pending().await
    }

    async fn is_ready(&self) -> bool {
        let hosts = self.store.host_list().await.unwrap_or_default();
        // A host that was ready when the market last ran must be heard anew.
        let heard =
            self.store.now().await.ok().zip(hosts.iter().find(|host| host.host == self.identity.host));
        let ready = heard.is_some_and(|(now, host)| {
            host.state == HostState::Ready
                && host.heard_at.is_some_and(|at| now.since(at).0 <= self.args.report.0.saturating_mul(2))
        });
        ready && tokio::net::TcpStream::connect(self.args.api).await.is_ok()
    }

    /// Stops everything: the agent and its jobs first, the database last.
    async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(agent) = self.parts.pop() {
            agent.stop().await;
        }
        if !self.engine_arguments.is_empty()
            && let Err(error) = purge(&self.layout, &self.engine_arguments)
        {
            let error = format!("{error:#}");
            tracing::warn!(error, "could not remove all of the agent's containers; `naved down` tries again");
        }
        while let Some(part) = self.parts.pop() {
            part.stop().await;
        }
        if matches!(self.engine, Engine::Private { .. }) {
            engine::unmount_leftovers(&self.layout)?;
        }
        Status::remove(&self.layout);
        Ok(())
    }
}

/// Brings the database up to date and makes what a market starts with.
async fn found(postgres: &Postgres, layout: &Layout, args: &UpArgs) -> anyhow::Result<(Store, Identity)> {
    postgres.ready().await?;
    let store = Store::connect(&postgres.url()).await?;
    store.migrate().await.context("migrate the database")?;
    let identity = market::found(&store, layout, args).await?;
    if let Some(image) = &args.default_image {
        store.default_image_set(image).await?;
    }
    Ok((store, identity))
}

fn keep(layout: &Layout, name: &'static str, seconds: u64, make: Make) -> Kept {
    Part { name, make, patience: Duration::from_secs(seconds) }.keep(layout.log(), layout.pids())
}

fn role_command(naved: &PathBuf, role: &str, url: &str, arguments: &[String]) -> Command {
    let mut command = Command::new(naved);
    // Arguments are visible to every account on the machine; the environment is not.
    command.arg(role).args(arguments).env("NAVE_DATABASE", url);
    command
}

fn engine_arguments(layout: &Layout, socket: &Path) -> anyhow::Result<Vec<String>> {
    let slot = Slot::claim(layout.root())?;
    let arguments = [
        "--docker",
        &socket.to_string_lossy(),
        "--bridge-prefix",
        &slot.bridge_prefix(),
        "--pool",
        &slot.pool().to_string(),
    ]
    .map(str::to_owned);
    Ok(arguments.to_vec())
}

/// Removes every container, network, mount and firewall table that the agent made; then the
/// slot is free. No agent may run.
fn purge(layout: &Layout, engine_arguments: &[String]) -> anyhow::Result<()> {
    let output = Command::new(agent_program()?)
        .args(["remove-all", "--data"])
        .arg(layout.agent())
        .args(engine_arguments)
        .output()
        .context("run miner-agent remove-all")?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Slot::release(layout.root());
    Ok(())
}

/// [`purge`] where nothing of the market runs any more: containers outlive a private engine,
/// so it has to come back for a moment.
async fn purge_stopped(layout: &Layout, socket: &Path) -> anyhow::Result<()> {
    let arguments = engine_arguments(layout, socket)?;
    if socket != layout.docker_socket() {
        return purge(layout, &arguments);
    }
    let dockerd = engine::program("dockerd").context("Docker Engine is not installed any more")?;
    let of_engine = layout.clone();
    let engine = keep(layout, "dockerd", 20, Box::new(move || engine::dockerd(&dockerd, &of_engine)));
    engine::answers(layout).await;
    let purged = purge(layout, &arguments);
    engine.stop().await;
    purged
}

fn agent_program() -> anyhow::Result<PathBuf> {
    let beside = env::current_exe()?.with_file_name("miner-agent");
    if beside.exists() {
        Ok(beside)
    } else {
        engine::program("miner-agent").context("there is no miner-agent beside naved")
    }
}

fn first_status(
    args: &UpArgs,
    layout: &Layout,
    engine: &Engine,
    registry: Option<&Registry>,
) -> anyhow::Result<Status> {
    let mut limits = Vec::new();
    if let Engine::Simulated { why } = engine {
        limits.push(format!("jobs are acted out, not executed (runtime `simulated`): {why}"));
    }
    Ok(Status {
        supervisor: Process::of(std::process::id()).context("read /proc/self/stat")?.to_string(),
        data: layout.root().to_owned(),
        ready: false,
        api: format!("http://{}", args.api),
        runtime: if matches!(engine, Engine::Simulated { .. }) { "simulated" } else { "docker" }.into(),
        docker_host: engine.socket(layout).map(|socket| format!("unix://{}", socket.display())),
        registry: registry.map(|registry| registry.address.clone()),
        limits,
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

fn millis(span: nave_domain::Millis) -> String {
    format!("{}ms", span.0)
}

fn text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}
