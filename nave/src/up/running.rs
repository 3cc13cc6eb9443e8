//! A running market: its parts in the order in which they need each other.

use std::{
    env,
    net::{Ipv4Addr, UdpSocket},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nave_domain::{
    HostId,
    host::{HostState, Inventory},
    verdict::Kind,
};
use nave_store::{HostRow, Store, embedded::Postgres};

use super::{
    agent_program,
    clean::{self, ENGINE_SECONDS},
    cloud::{Cloud, Keeping},
    engine::{self, Engine},
    host::{Joined, Joining, LocalHost, Share},
    keep,
    layout::{Layout, numbered},
    market::{self, Identity, Keys},
    network::Network,
    part::{Kept, Make, Process},
    progress, reached,
    registry::Registry,
    relay_command,
    slot::Slot,
    status::Status,
    tell,
};
use crate::cli::UpArgs;

/// Longest wait for a market to become ready in which nothing is being verified.
pub const READY_MAX: Duration = Duration::from_secs(90);

pub struct Market {
    args: UpArgs,
    layout: Layout,
    store: Store,
    identity: Identity,
    keys: Keys,
    engine: Engine,
    network: Network,
    hosts: Vec<LocalHost>,
    /// The members among them.
    members: Vec<HostId>,
    status: Status,
    /// Everything but the agents, in the order in which it was started.
    parts: Vec<Kept>,
    agents: Vec<Kept>,
    /// The local cloud, where there is one.
    cloud: Option<Keeping>,
}

impl Market {
    /// Starts everything but the agents, which first have to join.
    pub async fn start(args: UpArgs, layout: &Layout) -> anyhow::Result<Self> {
        let engine = Engine::choose(args.runtime, args.docker.as_deref(), layout)?;
        let parts = args.hosts + args.rented();
        anyhow::ensure!(
            args.docker.is_none() || parts == 1 && args.cloud.is_none(),
            "--docker names one engine, and with --hosts or --cloud every host has its own"
        );
        let share = Share::of_machine(&args, layout, parts.max(1))?;
        let keys = Keys::ensure(layout)?;
        let is_divided = args.hosts > 1 || args.cloud.is_some();
        let network = Network { slot: Slot::claim(layout)?, hosts: args.hosts, is_divided };
        let simulates = args.simulated_devices.is_some();
        let local = |number| {
            let host = LocalHost::new(network, number, layout, Some(share), engine.socket(layout, number));
            if simulates { host.simulating(&layout.simulated_devices(number)) } else { host }
        };
        let hosts: Vec<LocalHost> = (1..=args.hosts).map(local).collect();
        for host in &hosts {
            layout.make_host(host.number)?;
            if let Some(devices) = &args.simulated_devices {
                devices.ensure(&layout.simulated_devices(host.number))?;
            }
        }
        let registry = (args.local_registry || Registry::is_kept(layout))
            .then(|| Registry::prepare(layout))
            .transpose()?;
        let status = first_status(&args, layout, &engine, &hosts, registry.as_ref())?;
        status.write(layout)?;
        for limit in &status.limits {
            progress(&format!("note: {limit}"));
        }
        let cloud = args.cloud.map(|_| Cloud::open(&args, layout, network, &engine, share)).transpose()?;
        if let Some(cloud) = &cloud {
            cloud.write(&args, &keys.market.public())?;
        }
        let rented = cloud.as_ref().map(Cloud::numbers).transpose()?.unwrap_or_default();
        prepare_machine(layout, network, &status, &rented).await?;
        progress("starting Postgres");
        let postgres = Postgres::prepare(&layout.postgres())?;
        let url = postgres.url();
        let server = postgres.clone();
        let first = keep(layout, "postgres".into(), 20, Box::new(move || Ok(server.command()?)));
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
            keys,
            engine,
            network,
            hosts,
            members: Vec::new(),
            status,
            parts: vec![first],
            agents: Vec::new(),
            cloud: None,
        };
        market.start_parts(&url).await?;
        market.cloud = cloud.map(|cloud| cloud.keep(market.relayed()));
        Ok(market)
    }

    async fn start_parts(&mut self, url: &str) -> anyhow::Result<()> {
        progress("starting gateway, hub, scheduler, verifier, validator and treasury");
        let naved = env::current_exe()?;
        for (name, arguments) in self.roles() {
            let (naved, url) = (naved.clone(), url.to_owned());
            let make = move || Ok(role_command(&naved, name, &url, &arguments));
            self.keep(name.into(), 10, Box::new(make));
        }
        if let Some(address) = self.status.registry.clone() {
            let layout = self.layout.clone();
            self.keep("registry".into(), 10, Box::new(move || Registry::command(&layout)));
            self.keep_relay(naved, &address);
        }
        if let Engine::Private { dockerd } = self.engine.clone() {
            for host in self.hosts.clone() {
                let (layout, dockerd, number) = (self.layout.clone(), dockerd.clone(), host.number);
                let make = move || engine::dockerd(&dockerd, &layout, number, host.namespace.as_deref());
                self.keep(numbered("dockerd", number), ENGINE_SECONDS, Box::new(make));
            }
            for host in &self.hosts {
                engine::answers(&self.layout, host.number).await;
            }
        }
        Ok(())
    }

    /// Lets hosts in namespaces reach the registry where the machine itself does.
    fn keep_relay(&mut self, naved: PathBuf, address: &str) {
        let namespaces: Vec<String> = self.hosts.iter().filter_map(|host| host.namespace.clone()).collect();
        if !namespaces.is_empty() {
            let address = address.to_owned();
            let make = move || Ok(relay_command(&naved, &address, namespaces.clone()));
            self.keep("relay".into(), 5, Box::new(make));
        }
    }

    /// What rented machines reach of this machine's loopback: the API, and the registry.
    fn relayed(&self) -> Vec<String> {
        [reached(self.args.api).to_string()].into_iter().chain(self.status.registry.clone()).collect()
    }

    fn keep(&mut self, name: String, seconds: u64, make: Make) {
        self.parts.push(keep(&self.layout, name, seconds, make));
    }

    fn roles(&self) -> [(&'static str, Vec<String>); 6] {
        let validator = [
            "--epoch".into(),
            millis(self.args.epoch),
            "--local-chain".into(),
            text(self.layout.chain()),
            "--market-key".into(),
            text(self.layout.market_key()),
            "--local-params".into(),
        ];
        [
            ("gateway", self.gateway_arguments()),
            ("hub", self.hub_arguments()),
            ("scheduler", self.scheduler_arguments()),
            ("verifier", self.verifier_arguments()),
            ("validator", validator.to_vec()),
            ("treasury", vec![]),
        ]
    }

    fn protocol_arguments(&self) -> Vec<String> {
        vec!["--fence".into(), millis(self.args.fence), "--report".into(), millis(self.args.report)]
    }

    fn scheduler_arguments(&self) -> Vec<String> {
        let mut arguments = self.protocol_arguments();
        if self.args.cloud.is_some() {
            arguments.extend(["--clouds".into(), text(self.layout.clouds())]);
        }
        arguments
    }

    fn verifier_arguments(&self) -> Vec<String> {
        let tests = &self.args.tests;
        let kinds = |kinds: &[Kind]| kinds.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(",");
        let mut arguments = vec!["--enforce".into(), kinds(&tests.enforce)];
        if !tests.shadow.is_empty() {
            arguments.extend(["--shadow".into(), kinds(&tests.shadow)]);
        }
        let effort = self.args.proof_effort.map(|effort| ("--proof-effort", effort));
        let spans = [
            ("--retest-every", tests.retest_every),
            ("--probe-every", tests.probe_every),
            ("--window-every", tests.window_every),
            ("--transfer-every", tests.transfer_every),
        ];
        let spans = spans.into_iter().chain(effort);
        arguments.extend(spans.flat_map(|(name, span)| [name.to_owned(), millis(span)]));
        arguments
    }

    fn gateway_arguments(&self) -> Vec<String> {
        let mut arguments = self.protocol_arguments();
        arguments.extend(["--api".into(), self.args.api.to_string()]);
        arguments.extend(["--market-key".into(), text(self.layout.market_key())]);
        arguments.extend(["--host-namespace".into(), self.network.hub_namespace()]);
        if let Some(key) = self.args.release_key {
            arguments.extend(["--release-key".into(), key.to_string()]);
        }
        if let Some(registry) = &self.status.registry {
            arguments.extend(["--insecure-registry".into(), registry.clone()]);
        }
        arguments
    }

    fn hub_arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--key".into(), text(self.layout.hub_key())];
        arguments.extend(["--market-key".into(), text(self.layout.market_key())]);
        arguments.extend(["--interface".into(), self.network.hub_interface()]);
        arguments.extend(["--namespace".into(), self.network.hub_namespace()]);
        arguments.extend(["--listen".into(), self.network.slot.port().to_string()]);
        let port = self.network.slot.port();
        let elsewhere = self.args.reachable_at.iter().map(|host| format!("{host}:{port}"));
        let endpoints = self.network.endpoints().into_iter().chain(elsewhere);
        arguments.extend(endpoints.flat_map(|endpoint| ["--endpoint".into(), endpoint]));
        arguments
    }

    /// Waits until a job could run, says so, and then only waits.
    pub async fn serve(&mut self) -> anyhow::Result<()> {
        self.join_hosts().await?;
        self.start_agents()?;
        self.await_ready().await?;
        if let Some(file) = market::configure_client(&self.args, &self.identity)? {
            progress(&format!("`nave` is configured in {}", file.display()));
        }
        if self.store.default_image().await?.is_none() {
            self.status.limits.push(
                "jobs have to name an image (--image) until `naved admin default-image` sets one".into(),
            );
        }
        if !self.args.reachable_at.is_empty() {
            let port = self.network.slot.port();
            progress(&format!(
                "hosts elsewhere join through UDP port {port} of {}",
                self.args.reachable_at.join(", ")
            ));
        }
        self.status.ready = true;
        self.status.write(&self.layout)?;
        tell(&self.status, self.args.json)?;
        std::future::pending().await
    }

    async fn join_hosts(&mut self) -> anyhow::Result<()> {
        progress("the local hosts join");
        let market = Joining {
            store: &self.store,
            keys: &self.keys,
            args: &self.args,
            url: format!("http://{}", reached(self.args.api)),
            agent: agent_program()?,
        };
        let (mut statuses, mut members) = (Vec::new(), Vec::new());
        for host in &self.hosts {
            let joined = host
                .join(&market)
                .await
                .with_context(|| format!("see {}", self.layout.log().join("gateway.log").display()))?;
            match joined {
                Joined::Member(id) => {
                    members.push(id);
                    statuses.push(host.status(Some(id)));
                }
                Joined::Banned(id) => {
                    self.status.limits.push(format!("{} ({id}) was banned and takes no jobs", host.name));
                    statuses.push(host.status(Some(id)));
                }
            }
        }
        self.status.hosts = statuses;
        self.members = members;
        self.status.write(&self.layout)?;
        Ok(())
    }

    fn start_agents(&mut self) -> anyhow::Result<()> {
        let agent = agent_program()?;
        let joined = self.hosts.iter().zip(&self.status.hosts);
        let members = joined.filter(|(_, status)| status.id.is_some_and(|id| self.members.contains(&id)));
        let members: Vec<LocalHost> = members.map(|(host, _)| host.clone()).collect();
        for host in members {
            let agent = agent.clone();
            let name = numbered("agent", host.number);
            let make = move || host.command(agent.clone());
            self.agents.push(keep(&self.layout, name, 20, Box::new(make)));
        }
        Ok(())
    }

    /// Until every local host takes jobs, or there is a reason why it does not.
    async fn await_ready(&mut self) -> anyhow::Result<()> {
        let mut quiet = Instant::now();
        let mut said = Vec::new();
        loop {
            let hosts = self.local_rows().await;
            let verifying: Vec<&HostRow> =
                hosts.iter().filter(|host| host.state == HostState::Verifying).collect();
            for host in &verifying {
                if !said.contains(&host.host) {
                    said.push(host.host);
                    progress(&format!("{} proves what it offers: {}", host.name, offered(host)));
                }
            }
            if !verifying.is_empty() {
                quiet = Instant::now();
            }
            if self.are_settled(&hosts).await {
                let reasons = hosts.iter().filter(|host| host.state != HostState::Ready);
                self.status.limits.extend(reasons.map(why_not));
                return Ok(());
            }
            anyhow::ensure!(
                quiet.elapsed() < READY_MAX,
                "the local hosts or the API are not ready after {} s; see {} and `miner-agent doctor`",
                READY_MAX.as_secs(),
                self.layout.log().display()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn local_rows(&self) -> Vec<HostRow> {
        let hosts = self.store.host_list().await.unwrap_or_default();
        hosts.into_iter().filter(|host| self.members.contains(&host.host)).collect()
    }

    async fn are_settled(&self, hosts: &[HostRow]) -> bool {
        let Ok(now) = self.store.now().await else { return false };
        // A host that was ready when the market last ran must be heard anew.
        let since = self.args.report.0.saturating_mul(2);
        let settled = hosts.iter().all(|host| {
            host.heard_at.is_some_and(|at| now.since(at).0 <= since)
                && [HostState::Ready, HostState::Refused, HostState::Draining].contains(&host.state)
        });
        settled
            && hosts.len() == self.members.len()
            && tokio::net::TcpStream::connect(reached(self.args.api)).await.is_ok()
    }

    /// Stops everything: agents and their jobs first, the database last.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let returned = match self.cloud.take() {
            Some(cloud) => cloud.stop().await,
            None => Ok(()),
        };
        for agent in std::mem::take(&mut self.agents) {
            agent.stop().await;
        }
        let purged = clean::purge_running(&self.hosts).await.and(returned);
        while let Some(part) = self.parts.pop() {
            part.stop().await;
        }
        for host in &self.hosts {
            engine::unmount_leftovers(&self.layout.docker(host.number))?;
        }
        match purged {
            Ok(()) => clean::remove_network(&self.layout, self.network.slot).await?,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(
                    error,
                    "could not remove all of the agents' containers; `naved down` tries again"
                );
            }
        }
        Status::remove(&self.layout);
        Ok(())
    }
}

/// What has to be on the machine before any part starts. Namespaces of a supervisor that was
/// killed stay, since jobs run in them, where the hosts are the same; otherwise nothing of
/// ours should be there.
async fn prepare_machine(
    layout: &Layout,
    network: Network,
    status: &Status,
    rented: &[u8],
) -> anyhow::Result<()> {
    let fresh = match clean::traces(layout) {
        Some(hosts) if hosts == status.hosts => false,
        Some(_) => {
            clean::remove_traces(layout).await.context("clean up after the local hosts there were")?;
            true
        }
        None => true,
    };
    clean::note_traces(layout, &status.hosts)?;
    clean::remove_rented_but(layout, network.slot, rented).await.context("clean up after rented machines")?;
    tokio::task::spawn_blocking(move || {
        if fresh {
            Network::remove(network.slot).context("remove what an earlier market left on the machine")?;
        }
        check_port(network.slot)?;
        network.ensure().context("make the network of the local hosts")
    })
    .await?
}

/// Fails at once where the hub would try in vain.
fn check_port(slot: Slot) -> anyhow::Result<()> {
    let address = (Ipv4Addr::UNSPECIFIED, slot.port());
    drop(UdpSocket::bind(address).with_context(|| {
        format!(
            "listen on UDP port {}, by which hosts know this market; another program uses it",
            slot.port()
        )
    })?);
    Ok(())
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

fn role_command(naved: &PathBuf, role: &str, url: &str, arguments: &[String]) -> Command {
    let mut command = Command::new(naved);
    // Arguments are visible to every account on the machine; the environment is not.
    command.arg(role).args(arguments).env("NAVE_DATABASE", url);
    command
}

fn first_status(
    args: &UpArgs,
    layout: &Layout,
    engine: &Engine,
    hosts: &[LocalHost],
    registry: Option<&Registry>,
) -> anyhow::Result<Status> {
    let mut limits = Vec::new();
    if let Engine::Simulated { why } = engine {
        limits.push(format!("jobs are acted out, not executed (runtime `simulated`): {why}"));
    }
    if args.simulated_devices.is_some() {
        let only = if matches!(engine, Engine::Simulated { .. }) { "" } else { ", and jobs do not get them" };
        limits.push(format!("the local hosts have simulated GPUs, on which nothing can be computed{only}"));
    }
    if args.cloud.is_some() {
        limits.push(
            "the cloud `local` is acted out: its machines are parts of this one, and its prices are made up"
                .into(),
        );
    }
    let hosts: Vec<_> = hosts.iter().map(|host| host.status(None)).collect();
    Ok(Status {
        supervisor: Process::of(std::process::id()).context("read /proc/self/stat")?.to_string(),
        data: layout.root().to_owned(),
        ready: false,
        api: format!("http://{}", args.api),
        runtime: if matches!(engine, Engine::Simulated { .. }) { "simulated" } else { "docker" }.into(),
        docker_host: hosts.first().and_then(|host| host.docker_host.clone()),
        hosts,
        registry: registry.map(|registry| registry.address.clone()),
        limits,
    })
}

fn offered(host: &HostRow) -> String {
    let amounts = |inventory: &Inventory| {
        let (whole, rest) = (inventory.milli_cpu.0 / 1_000, inventory.milli_cpu.0 % 1_000);
        format!("{whole}.{rest:03} cores, {} of memory", inventory.memory)
    };
    host.inventory.as_ref().map_or_else(|| "its inventory".into(), amounts)
}

fn why_not(host: &HostRow) -> String {
    match &host.reason {
        Some(reason) => {
            format!("{} is {}: {} ({})", host.name, host.state.as_str(), reason.message, reason.code)
        }
        None => format!("{} is {}", host.name, host.state.as_str()),
    }
}

fn millis(span: nave_domain::Millis) -> String {
    format!("{}ms", span.0)
}

fn text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}
