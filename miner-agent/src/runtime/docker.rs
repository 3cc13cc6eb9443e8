//! Runs jobs on a Docker Engine.
//!
//! Every container, network and working directory carries its lease in its name
//! and in labels, so an agent without any memory finds them again.

pub mod container;
pub mod firewall;
pub mod forwarding;
pub mod ghosts;
pub mod image;
pub mod network;
pub mod outages;
pub mod shares;
pub mod sigterm;
mod trial;
pub mod workdir;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bollard::{
    Docker as Client,
    container::LogOutput,
    errors::Error as ApiError,
    models::{ContainerCreateBody, ContainerSummary, ContainerSummaryStateEnum, SystemInfo},
    query_parameters::{
        CreateContainerOptionsBuilder, EventsOptionsBuilder, ListContainersOptionsBuilder,
        LogsOptionsBuilder, RemoveContainerOptionsBuilder, StopContainerOptionsBuilder,
    },
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use nave_crash_point::crash_point;
use nave_domain::{HostId, LeaseId, Millis, job::Egress};
use nave_sdk::wire::host::{Order, Stream};
use nix::unistd::{SysconfVar, sysconf};
use tokio::{net::UnixStream, sync::Notify, task::JoinHandle};

use self::{
    firewall::Firewall, ghosts::Ghosts, image::Pinned, network::Networks, outages::Outages, shares::Shares,
    workdir::WorkDirs,
};
use super::{Logs, StartError};
use crate::{
    archive::{self, Archive},
    clock,
    config::{DockerConfig, Prover},
    core::{Observed, Phase},
    inspect::Containers,
    routes::{Route, Routes},
    share::{Over, Terms, mps::Means},
    state::heard_of,
};

/// Label of everything an agent makes: its host.
pub const LABEL_HOST: &str = "nave.host";
/// Label: the lease.
pub const LABEL_LEASE: &str = "nave.lease";
/// Label: the job.
pub const LABEL_JOB: &str = "nave.job";
/// Label: the attempt.
pub const LABEL_ATTEMPT: &str = "nave.attempt";

/// Longest that the engine may take for one answer, in seconds.
const ANSWER_SECONDS_MAX: u64 = 120;

/// A Docker Engine and what the agent needs around it.
#[derive(Debug)]
pub struct Docker {
    client: Client,
    host: HostId,
    version: String,
    config: DockerConfig,
    work: WorkDirs,
    networks: Networks,
    firewall: Firewall,
    /// What leases of groups may reach; held while their lists of peers are written.
    routes: tokio::sync::Mutex<Routes>,
    /// How containers ended; they never start again, so this never changes.
    ended: Mutex<BTreeMap<LeaseId, Phase>>,
    changed: Arc<Notify>,
    outages: Arc<Outages>,
    ghosts: Ghosts,
    shares: Shares,
    events: JoinHandle<()>,
}

impl Drop for Docker {
    fn drop(&mut self) {
        self.events.abort();
    }
}

impl Docker {
    /// Connects to the engine and loads the firewall.
    ///
    /// # Errors
    /// When the agent is not root or the engine does not answer; the message names the fix.
    pub async fn open(config: &DockerConfig, host: HostId, data: &Path) -> anyhow::Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("working directories with a size limit need root: run as root, or use --runtime simulated");
        }
        let client = connect(&config.socket).await?;
        let version = client.version().await.context("ask the Docker Engine for its version")?;
        let info = client.info().await.context("ask the Docker Engine about itself")?;
        let firewall = Firewall::new(config.prefix.clone(), config.pools, config.mesh.clone());
        if let Err(error) = firewall.ensure().await {
            tracing::warn!(
                error = format!("{error:#}"),
                "no egress filter: this host offers egress \"none\" only"
            );
        }
        let user = container::JOB_UID + user_base(&info);
        let shares = Means { user, ..config.shares.clone() };
        let changed = Arc::new(Notify::new());
        let outages = Arc::new(Outages::default());
        if let Some((engine, agent)) = began(&config.socket).await.zip(heard_of(data)) {
            outages.missed(engine, agent, clock::now());
        }
        Ok(Self {
            events: tokio::spawn(watch(client.clone(), host, changed.clone(), outages.clone())),
            networks: Networks::new(client.clone(), host, config.prefix.clone(), config.pools),
            work: WorkDirs::new(data, user),
            version: version.version.unwrap_or_default(),
            config: config.clone(),
            ended: Mutex::default(),
            client,
            host,
            shares: Shares::open(data, shares, changed.clone()),
            firewall,
            routes: tokio::sync::Mutex::default(),
            changed,
            outages,
            ghosts: Ghosts::default(),
        })
    }

    /// Whether a host with this data directory has run jobs on an engine.
    #[must_use]
    pub fn was_used(data: &Path) -> bool {
        WorkDirs::new(data, 0).leases().is_ok_and(|leases| !leases.is_empty())
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    pub(super) async fn inspect(&self, prover: &Prover, devices: &[String]) -> Containers {
        let (engine, jobs) = tokio::join!(trial::engine(&self.client), trial::jobs(&self.client, self.host));
        let (container, gpus) = trial::run(&self.client, self.host, prover, devices).await;
        Containers { engine: Some(engine), container, gpus, jobs, daemons: self.shares.processes().await }
    }

    pub(super) async fn egress(&self) -> Vec<Egress> {
        match self.firewall.ensure().await {
            Ok(()) => vec![Egress::Public, Egress::None],
            Err(_) => vec![Egress::None],
        }
    }

    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// A container that is listed as running: it runs, or its end was missed.
    async fn running(&self, lease: LeaseId) -> Phase {
        if !self.ghosts.knows(lease) {
            let inspected = self.client.inspect_container(&container::name(lease), None).await;
            let pid = inspected.ok().and_then(|found| found.state).and_then(|state| state.pid);
            if let Some(pid) = pid.filter(|pid| *pid > 0) {
                self.ghosts.learn(lease, pid);
            }
        }
        if self.ghosts.is_ghost(lease) { Phase::CutOff } else { Phase::Running }
    }

    pub(super) async fn observe(&self) -> anyhow::Result<BTreeMap<LeaseId, Observed>> {
        let filters = HashMap::from([("label", vec![format!("{LABEL_HOST}={}", self.host)])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed = self.client.list_containers(Some(options)).await.context("list containers")?;
        let (mut observed, mut containers) = (BTreeMap::new(), BTreeMap::new());
        for summary in &listed {
            let Some((lease, mut seen)) = read_labels(summary) else { continue };
            containers.extend(summary.id.clone().map(|id| (id, lease)));
            seen.phase = match summary.state {
                Some(ContainerSummaryStateEnum::CREATED | ContainerSummaryStateEnum::REMOVING) => {
                    Phase::Created
                }
                Some(ContainerSummaryStateEnum::EXITED | ContainerSummaryStateEnum::DEAD) => {
                    let Some(phase) = self.ended(lease).await? else { continue };
                    phase
                }
                Some(
                    ContainerSummaryStateEnum::RUNNING
                    | ContainerSummaryStateEnum::PAUSED
                    | ContainerSummaryStateEnum::RESTARTING
                    | ContainerSummaryStateEnum::STOPPING
                    | ContainerSummaryStateEnum::EMPTY,
                )
                | None => self.running(lease).await,
            };
            observed.insert(lease, seen);
        }
        self.shares.learn(containers);
        Ok(observed)
    }

    /// How a container ended; `None` where it is gone meanwhile.
    async fn ended(&self, lease: LeaseId) -> anyhow::Result<Option<Phase>> {
        let known = self.ended.lock().unwrap_or_else(PoisonError::into_inner).get(&lease).copied();
        if known.is_some() {
            return Ok(known);
        }
        let name = container::name(lease);
        let state = match self.client.inspect_container(&name, None).await {
            Ok(inspected) => inspected.state.unwrap_or_default(),
            Err(ApiError::DockerResponseServerError { status_code: 404, .. }) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("inspect {name}")),
        };
        let code = state.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(-1);
        let oom = state.oom_killed.unwrap_or(false);
        let intact = state.finished_at.is_none_or(|at| !self.outages.cover(&at));
        let phase = if intact { Phase::Exited { code, oom } } else { Phase::CutOff };
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).insert(lease, phase);
        Ok(Some(phase))
    }

    pub(super) async fn start(&self, lease: LeaseId, order: &Order) -> Result<(), StartError> {
        let started = self.try_start(lease, order).await;
        if started.is_err()
            && let Err(error) = self.remove(lease).await
        {
            tracing::info!(lease.id = %lease, error = format!("{error:#}"), "a failed start leaves something behind");
        }
        started
    }

    async fn try_start(&self, lease: LeaseId, order: &Order) -> Result<(), StartError> {
        let began = Instant::now();
        let pinned = Pinned::parse(&order.image).map_err(StartError::Host)?;
        let terms = Terms::of(order).map_err(StartError::Host)?;
        // Independent of each other; together they cost what the slowest costs.
        let (volumes, (), network, share) = tokio::try_join!(
            async { image::ensure(&self.client, &pinned).await.map_err(said) },
            async { self.work.create(lease, order.disk).await.map_err(said) },
            async { self.network(lease, order).await.map_err(said) },
            async {
                match &terms {
                    Some(terms) => self.shares.join(lease, terms).await.map(Some).map_err(said),
                    None => self.shares.vacate(&order.devices).await.map(|()| None).map_err(said),
                }
            },
        )?;
        let prepared = began.elapsed();
        let peers = self.list_peers(lease, order).await.map_err(said)?;
        let plan = container::Plan {
            host: self.host,
            lease,
            order,
            network: &network,
            dns: &self.config.dns,
            work: &self.work.mount_point(lease),
            volumes: &volumes,
            peers: peers.as_deref(),
            share: share.as_ref(),
        };
        self.create(&plan).await.map_err(said)?;
        crash_point!("agent.start.after_create");
        let created = began.elapsed();
        let name = container::name(lease);
        if let Err(error) = self.client.start_container(&name, None).await {
            return Err(self.why_not(&name, error).await);
        }
        let ms = |at: Duration| u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            prepared_ms = ms(prepared),
            created_ms = ms(created),
            started_ms = ms(began.elapsed()),
            "started"
        );
        Ok(())
    }

    async fn network(&self, lease: LeaseId, order: &Order) -> anyhow::Result<String> {
        if order.egress == Egress::None && order.address.is_none() {
            return Ok("none".into());
        }
        let create = self.networks.create(lease, order.egress, order.address);
        let (filter, network) = tokio::join!(self.firewall.ensure(), create);
        filter.context("load the egress filter")?;
        network
    }

    /// Lets these leases reach their groups, and no others, and tells them who is there: what
    /// they read is open to them.
    pub(super) async fn route(&self, routes: &Routes) -> anyhow::Result<()> {
        let mut now = self.routes.lock().await;
        if now.0.is_empty() && routes.0.is_empty() {
            return Ok(());
        }
        self.firewall.route(routes.clone()).await.context("load the routes of groups")?;
        *now = routes.clone();
        for (lease, route) in &routes.0 {
            let dir = self.peers_dir(*lease);
            // Not there yet where it has not begun to start.
            if dir.exists() {
                write_peers(&dir, route)?;
            }
        }
        Ok(())
    }

    fn peers_dir(&self, lease: LeaseId) -> PathBuf {
        self.work.dir(lease).join("nave")
    }

    /// Writes the list of peers of a lease that is about to start, as it is now.
    async fn list_peers(&self, lease: LeaseId, order: &Order) -> anyhow::Result<Option<PathBuf>> {
        let Some(ordered) = Route::of(order) else { return Ok(None) };
        let routes = self.routes.lock().await;
        let dir = self.peers_dir(lease);
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        write_peers(&dir, routes.0.get(&lease).unwrap_or(&ordered))?;
        Ok(Some(dir))
    }

    /// Creates the container and reads back whether the engine took every limit.
    async fn create(&self, plan: &container::Plan<'_>) -> anyhow::Result<()> {
        let name = container::name(plan.lease);
        let body = container::body(plan);
        self.create_named(&name, body.clone()).await.context("create the container")?;
        let got = self.client.inspect_container(&name, None).await.context("inspect the container")?;
        match container::differences(&body, &got).as_slice() {
            [] => Ok(()),
            ignored => bail!("the container engine ignored {}", ignored.join(", ")),
        }
    }

    /// An earlier agent's request may come through only now and take the name;
    /// its container never ran and makes way.
    async fn create_named(&self, name: &str, body: ContainerCreateBody) -> Result<(), ApiError> {
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        let created = self.client.create_container(Some(options.clone()), body.clone()).await;
        if let Err(ApiError::DockerResponseServerError { status_code: 409, .. }) = created {
            self.client.remove_container(name, None).await?;
            return self.client.create_container(Some(options), body).await.map(drop);
        }
        created.map(drop)
    }

    /// Tells a command that cannot be executed from a host that cannot start it.
    async fn why_not(&self, name: &str, error: ApiError) -> StartError {
        let inspected = self.client.inspect_container(name, None).await.ok();
        let state = inspected.and_then(|container| container.state).unwrap_or_default();
        let text = error.to_string();
        match state.exit_code {
            Some(code @ (126 | 127)) if text.contains("exec") => {
                let said = state.error.filter(|said| !said.is_empty()).unwrap_or(text);
                StartError::Command { code: if code == 126 { 126 } else { 127 }, said }
            }
            _ => StartError::Host(text),
        }
    }

    pub(super) async fn stop(&self, lease: LeaseId, grace: Millis) -> anyhow::Result<()> {
        let name = container::name(lease);
        let seconds = match self.heeds_sigterm(&name).await {
            true => i32::try_from(grace.0.max(0).div_euclid(1_000)).unwrap_or(i32::MAX),
            false => 0,
        };
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        let stopped = self.client.stop_container(&name, Some(options)).await;
        settle(stopped, &[304, 404]).with_context(|| format!("stop {name}"))
    }

    async fn heeds_sigterm(&self, name: &str) -> bool {
        let pid = async { self.client.inspect_container(name, None).await.ok()?.state?.pid };
        pid.await.is_none_or(sigterm::is_caught_by)
    }

    pub(super) async fn remove(&self, lease: LeaseId) -> anyhow::Result<()> {
        // By force only what is gone: where a start that an earlier agent asked for
        // still goes through, the engine refuses, and the running job is adopted.
        let ghost = self.ghosts.is_ghost(lease);
        let options = RemoveContainerOptionsBuilder::default().v(true).force(ghost).build();
        let name = container::name(lease);
        let removed = self.client.remove_container(&name, Some(options)).await;
        settle(removed, &[404]).with_context(|| format!("remove {name}"))?;
        let (network, work, share) =
            tokio::join!(self.networks.remove(lease), self.work.remove(lease), self.shares.leave(lease));
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).remove(&lease);
        self.ghosts.forget(lease);
        network.and(work).and(share)
    }

    pub(super) async fn reap(&self, known: &BTreeSet<LeaseId>) -> anyhow::Result<()> {
        let mut left = self.networks.leases().await?;
        left.extend(self.work.leases()?);
        for lease in left.difference(known) {
            tracing::info!(lease.id = %lease, "clearing away what is left of a lease nobody knows");
            self.remove(*lease).await?;
        }
        self.shares.settle(known).await?;
        trial::clear(&self.client, self.host).await
    }

    /// The leases that were seen to hold more than their share of a device.
    pub(super) fn over(&self) -> BTreeMap<LeaseId, Over> {
        self.shares.over()
    }

    /// The leases whose daemon ended before they did.
    pub(super) fn lost(&self) -> BTreeSet<LeaseId> {
        self.shares.lost()
    }

    /// Whether this host can share its devices, and shall.
    pub(super) fn shares_devices(&self) -> bool {
        self.shares.are_offered()
    }

    pub(super) fn logs(&self, lease: LeaseId, follow: bool, streams: &[Stream]) -> Logs {
        let [out, err] = [Stream::Stdout, Stream::Stderr].map(|stream| streams.contains(&stream));
        let options = LogsOptionsBuilder::default().stdout(out).stderr(err).follow(follow).build();
        let lines = self.client.logs(&container::name(lease), Some(options));
        lines.map_err(|error| anyhow::Error::new(error).context("read the log")).try_filter_map(split).boxed()
    }

    pub(super) async fn collect(&self, lease: LeaseId) -> anyhow::Result<Option<Archive>> {
        self.work.mount(lease).await?;
        let (work, to) = (self.work.mount_point(lease), self.work.dir(lease).join("result.tar"));
        tokio::task::spawn_blocking(move || archive::pack(&work, "out", &to))
            .await
            .context("pack the result")?
    }
}

/// Connects to the engine behind a Unix socket and agrees on an API version.
///
/// # Errors
/// When nothing answers there; the message names the fix.
pub async fn connect(socket: &Path) -> anyhow::Result<Client> {
    let path = socket.to_str().context("the path of the Docker socket is not UTF-8")?;
    let fix = || {
        format!(
            "no Docker Engine answers on {path}: start one, name its socket with --docker, or use --runtime simulated"
        )
    };
    let client = Client::connect_with_unix(path, ANSWER_SECONDS_MAX, bollard::API_DEFAULT_VERSION)
        .with_context(fix)?;
    client.negotiate_version().await.with_context(fix)
}

/// When the engine's process began, on the boot clock. Where another process opened the
/// socket for it, such as systemd, that one's beginning.
async fn began(socket: &Path) -> Option<Millis> {
    let peer = UnixStream::connect(socket).await.ok()?.peer_cred().ok()?.pid()?;
    let stat = std::fs::read_to_string(format!("/proc/{peer}/stat")).ok()?;
    // The name in parentheses may contain anything, so fields count from its end.
    let ticks: i64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let per_second = sysconf(SysconfVar::CLK_TCK).ok()??;
    ticks.checked_mul(1_000)?.checked_div(per_second).map(Millis)
}

/// With user-namespace remapping, the host's user id for user 0 of a container.
/// The engine shows it only as the last part of its directory: `…/100000.100000`.
fn user_base(info: &SystemInfo) -> u32 {
    let options = info.security_options.iter().flatten();
    if !options.into_iter().any(|option| option.contains("name=userns")) {
        return 0;
    }
    let last = info.docker_root_dir.as_deref().and_then(|dir| dir.rsplit('/').next());
    last.and_then(|name| name.split('.').next()).and_then(|uid| uid.parse().ok()).unwrap_or(0)
}

fn read_labels(summary: &ContainerSummary) -> Option<(LeaseId, Observed)> {
    let labels = summary.labels.as_ref()?;
    let lease = labels.get(LABEL_LEASE)?.parse().ok()?;
    let job = labels.get(LABEL_JOB)?.parse().ok()?;
    let attempt = labels.get(LABEL_ATTEMPT)?.parse().ok()?;
    Some((lease, Observed { job, attempt, phase: Phase::Created }))
}

/// Puts a new list in place of the old one at once, readable for the job's user.
fn write_peers(dir: &Path, route: &Route) -> anyhow::Result<()> {
    let (path, next) = (dir.join(container::PEERS), dir.join("next"));
    let written = std::fs::write(&next, route.list()).and_then(|()| {
        for (path, mode) in [(dir, 0o755), (&next, 0o644)] {
            std::fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        std::fs::rename(&next, &path)
    });
    written.with_context(|| format!("write {}", path.display()))
}

async fn split(output: LogOutput) -> anyhow::Result<Option<(Stream, bytes::Bytes)>> {
    Ok(match output {
        LogOutput::StdOut { message } | LogOutput::Console { message } => Some((Stream::Stdout, message)),
        LogOutput::StdErr { message } => Some((Stream::Stderr, message)),
        LogOutput::StdIn { .. } => None,
    })
}

/// Takes the answers in `fine` for success: what should be gone is gone.
fn settle(answer: Result<(), ApiError>, fine: &[u16]) -> Result<(), ApiError> {
    match answer {
        Err(ApiError::DockerResponseServerError { status_code, .. }) if fine.contains(&status_code) => Ok(()),
        other => other,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
fn said(error: anyhow::Error) -> StartError {
    StartError::Host(format!("{error:#}"))
}

/// Wakes the agent for every event of its containers, and after every gap in
/// the events, when anything may have happened.
async fn watch(client: Client, host: HostId, changed: Arc<Notify>, outages: Arc<Outages>) {
    let filters = HashMap::from([
        ("label", vec![format!("{LABEL_HOST}={host}")]),
        ("type", vec!["container".to_owned()]),
        ("event", ["start", "die", "destroy"].map(str::to_owned).to_vec()),
    ]);
    loop {
        let options = EventsOptionsBuilder::default().filters(&filters).build();
        let mut events = std::pin::pin!(client.events(Some(options)));
        while let Some(Ok(event)) = events.next().await {
            // The engine announces an end while it still lists the container as running.
            // It holds the container's lock until the list is right; looking at the
            // container waits for that lock.
            if let Some(id) = event.actor.and_then(|actor| actor.id) {
                drop(client.inspect_container(&id, None).await);
            }
            changed.notify_one();
        }
        outages.begin();
        while client.ping().await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        outages.end();
        changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remapped_user_is_read_from_the_engines_directory() {
        let info = |options: &[&str], dir: &str| SystemInfo {
            security_options: Some(options.iter().map(ToString::to_string).collect()),
            docker_root_dir: Some(dir.into()),
            ..SystemInfo::default()
        };
        assert_eq!(user_base(&info(&["name=seccomp,profile=default"], "/var/lib/docker")), 0);
        assert_eq!(user_base(&info(&["name=userns"], "/var/lib/docker/100000.100000")), 100_000);
    }
}
