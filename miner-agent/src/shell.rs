//! The thin shell: asks the control plane, looks at the runtime, lets the core
//! decide and carries the decisions out.
//!
//! One loop owns everything that the core reads. Beside it run a task that
//! polls for the spec, a task that reports, one task for the logs of each lease
//! and one for each action under way. They tell the loop what came of it.

mod exchange;
mod forward;
mod inspect;
mod prove;
mod tasks;
mod upgrade;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nave_crash_point::crash_point;
use nave_domain::{ChallengeId, LeaseId, Millis, mesh::Prefix};
use nave_sdk::wire::{
    host::{HostSpec, LeaseReport},
    sign::SignedRelease,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tracing::Instrument as _;

use self::{
    exchange::{Bulletin, Exchange, Said},
    prove::{Answering, Word},
    tasks::{Outcome, Work},
    upgrade::Upgrade,
};
use crate::{
    clock,
    config::{Config, Prover, Reach, RuntimeChoice},
    core::{self, Action, Ending, Finished, Memory, Observed, Phase, Task},
    endpoint::ControlPlane,
    inventory,
    link::{Link, Plan},
    proof::Proofs,
    routes::Routes,
    runtime::{Runtime, docker::Docker, simulated::Simulated},
    share,
    state::StateDir,
    status::{self, Doing, Proving},
    transfer::{Crossings, serve::Serving},
};

/// Longest time between two looks at the runtime, for what its events missed.
const LOOK: Duration = Duration::from_secs(10);
/// The same while the runtime does not answer.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Time without an answer of the runtime after which nothing is said to run.
const BLIND: Duration = Duration::from_secs(4);
/// Time between two notes of what it is doing, for people.
const STATUS: Duration = Duration::from_secs(2);
/// Most transfers that are served at the same time.
const SERVED_MAX: usize = 4;
/// Time between two looks at what the machine can enforce.
const INVENTORY: Duration = Duration::from_secs(60);

/// What the tasks tell the loop.
enum Event {
    Spec(Box<HostSpec>),
    /// The control plane answered a report that was sent at this time.
    /// At that moment its newest spec had this generation.
    Heard(Millis, u64),
    /// The control plane does not know this host any more.
    Dismissed,
    Done(LeaseId, u64, Outcome),
    /// Said by whoever has this number and answers this challenge.
    Said(ChallengeId, u64, Word),
    /// The program of this release lies ready.
    Fetched(Box<SignedRelease>),
}

/// Why an agent ended.
#[derive(Debug)]
pub enum Ended {
    /// It was told to.
    Told,
    /// The program of this release shall take its place.
    Succeeded(Box<SignedRelease>),
    /// The program before it shall have its place back.
    FellBack(Box<SignedRelease>),
}

/// An action under way.
struct Underway {
    serial: u64,
    handle: JoinHandle<()>,
}

struct Agent {
    data: PathBuf,
    state: Arc<StateDir>,
    runtime: Arc<Runtime>,
    plane: Arc<ControlPlane>,
    link: Option<Arc<Link>>,
    spec: Option<HostSpec>,
    memory: Memory,
    observed: BTreeMap<LeaseId, Observed>,
    /// When `observed` was last asked for.
    looked: Instant,
    /// Since when the runtime does not answer.
    blind: Option<Instant>,
    prefix: Prefix,
    /// The routes of groups that are in force.
    routed: Option<(Routes, Crossings)>,
    /// What is sent to others that are tested.
    serving: BTreeMap<ChallengeId, Serving>,
    proofs: Proofs,
    /// Whoever answers each challenge.
    answering: BTreeMap<ChallengeId, Answering>,
    prover: Prover,
    upgrade: Upgrade,
    underway: BTreeMap<LeaseId, Underway>,
    /// Tasks that send the logs of running leases.
    followers: BTreeMap<LeaseId, JoinHandle<()>>,
    serial: u64,
    /// The spec has changed since it was last written down.
    unsaved: bool,
    events: mpsc::UnboundedSender<Event>,
    bulletin: watch::Sender<Bulletin>,
}

/// Opens the runtime that is wanted.
///
/// # Errors
/// When it cannot be used; the message names the fix.
pub async fn open_runtime(config: &Config) -> anyhow::Result<Runtime> {
    let docker = || Docker::open(&config.docker, config.host(), &config.data);
    let simulated = || Simulated::open(&config.data).map(Runtime::Simulated);
    match config.runtime {
        RuntimeChoice::Docker => docker().await.map(|docker| Runtime::Docker(Box::new(docker))),
        RuntimeChoice::Simulated => simulated(),
        RuntimeChoice::Auto => match docker().await {
            Ok(docker) => Ok(Runtime::Docker(Box::new(docker))),
            // Its engine is away for now, and jobs of this host may run on it.
            Err(error) if Docker::was_used(&config.data) => Err(error),
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "no Docker Engine can be used: jobs are simulated"
                );
                simulated()
            }
        },
    }
}

/// Runs the agent until `shutdown` is ready. Jobs go on; the next agent adopts them.
///
/// # Errors
/// When it cannot begin: no state directory, no runtime.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> anyhow::Result<Ended> {
    std::fs::create_dir_all(&config.data).with_context(|| format!("create {}", config.data.display()))?;
    let state = Arc::new(StateDir::open(&config.data, config.host())?);
    config.member.settle_keys(&config.data)?;
    let runtime = Arc::new(open_runtime(&config).await?);
    let (link, plane) = reach(&config)?;
    let (spec, memory) = state.load();
    if let (Some(link), Some(spec)) = (&link, &spec) {
        link.take(&spec.mesh);
    }
    let egress = runtime.egress().await;
    let mut inventory =
        inventory::take(config.offer, &config.data, &config.prover, runtime.kind(), egress).await;
    inventory.devices = share::offered(inventory.devices, runtime.shares_devices());
    let said = Said::new(state.boot());
    let _listening = said.xids.listen(&inventory.devices, &config.prover);
    let (events, inbox) = mpsc::unbounded_channel();
    let (bulletin, news) = watch::channel(Bulletin::new(inventory));
    let _exchange =
        Exchange::spawn(state.next_session()?, plane.clone(), link.clone(), news, said, events.clone());
    let agent = Agent {
        data: config.data.clone(),
        state,
        runtime,
        plane,
        link,
        spec,
        memory,
        observed: BTreeMap::new(),
        looked: Instant::now(),
        blind: None,
        prefix: Prefix::of_market(&config.member.market_key.0),
        routed: None,
        serving: BTreeMap::new(),
        proofs: Proofs::default(),
        answering: BTreeMap::new(),
        prover: config.prover,
        upgrade: Upgrade::new(&config.data, config.member.release_key, config.trial),
        underway: BTreeMap::new(),
        followers: BTreeMap::new(),
        serial: 0,
        unsaved: true,
        events,
        bulletin,
    };
    Ok(agent.serve(inbox, shutdown).await)
}

/// The way to the control plane, and what keeps it open.
fn reach(config: &Config) -> anyhow::Result<(Option<Arc<Link>>, Arc<ControlPlane>)> {
    match &config.reach {
        Reach::WithoutMesh(url) => Ok((None, Arc::new(ControlPlane::new(url, None)?))),
        Reach::Mesh { interface, rotate } => {
            let plan = Plan::of(&config.member, &config.data, interface.clone(), *rotate);
            let base = format!("http://[{}]:{}", plan.place.hub_address, plan.place.port);
            let through = Some((interface.clone(), plan.place.address));
            let plane = Arc::new(ControlPlane::new(&base, through)?);
            let theirs = plane.clone();
            let link = Link::start(plan, move || theirs.reconnect())?;
            Ok((Some(Arc::new(link)), plane))
        }
    }
}

impl Agent {
    async fn serve(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Event>,
        shutdown: impl Future<Output = ()>,
    ) -> Ended {
        let mut shutdown = pin!(shutdown);
        let mut inventory = tokio::time::interval(INVENTORY);
        inventory.reset();
        let mut status = tokio::time::interval(STATUS);
        let mut seen = self.look().await;
        self.reap().await;
        let ended = loop {
            self.route().await;
            if seen {
                self.act().await;
            }
            if let Some(ended) = self.succession(seen) {
                break ended;
            }
            // Before it has looked, it does not know what a restart of the machine cut off.
            if seen && std::mem::take(&mut self.unsaved) {
                self.save().await;
            }
            let runtime = self.runtime.clone();
            tokio::select! {
                () = &mut shutdown => break Ended::Told,
                // The loop holds a sender itself, so the channel never closes.
                Some(event) = inbox.recv() => {
                    // What an action changed must be seen before anything is decided.
                    let look = !seen || matches!(event, Event::Done(..));
                    self.take(event).await;
                    if look { seen = self.look().await; }
                }
                () = runtime.changed() => seen = self.look().await,
                () = tokio::time::sleep(self.rest()) => seen = self.look().await,
                _ = inventory.tick() => self.take_inventory().await,
                _ = status.tick() => self.say_what_it_does(),
            }
        };
        self.save().await;
        self.quit();
        ended
    }

    /// Whether another program shall have this one's place now. A command that runs is not
    /// disturbed by that; what is being started, ended or delivered would be, and a proof.
    fn succession(&mut self, seen: bool) -> Option<Ended> {
        if let Some(release) = self.upgrade.fallen() {
            return Some(Ended::FellBack(Box::new(release)));
        }
        let idle = seen && self.underway.is_empty() && self.answering.is_empty();
        self.upgrade.ready().filter(|_| idle).map(|release| Ended::Succeeded(Box::new(release)))
    }

    /// Ends the tasks and leaves the jobs.
    fn quit(&mut self) {
        tracing::info!(jobs = self.observed.len(), "stopping; jobs go on and the next agent adopts them");
        let handles = self.underway.values().map(|underway| &underway.handle).chain(self.followers.values());
        handles.for_each(JoinHandle::abort);
    }

    /// How long to sleep when nothing happens: until the next look is due, and
    /// never past the fence.
    fn rest(&self) -> Duration {
        let pause = if self.blind.is_some() { LOOK_AGAIN } else { LOOK };
        let look = pause.saturating_sub(self.looked.elapsed());
        let fence = core::fence_at(self.spec.as_ref(), &self.memory).0 - clock::now().0 + 1;
        match u64::try_from(fence) {
            Ok(fence) if fence > 0 => look.min(Duration::from_millis(fence)),
            Ok(_) | Err(_) => look,
        }
        .min(self.upgrade.rest())
    }

    /// Looks at the runtime; without an answer nothing may be decided.
    async fn look(&mut self) -> bool {
        let begun = Instant::now();
        self.looked = begun;
        let observed = tokio::time::timeout(BLIND, self.runtime.observe()).await;
        match observed.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in {} s", BLIND.as_secs()))) {
            Ok(observed) => {
                if self.blind.take().is_some() {
                    tracing::info!("the runtime answers again");
                }
                self.observed = observed;
                self.memory.over = self.runtime.over();
                // After the look: what was seen to end because of it is taken for that.
                self.memory.lost = self.runtime.lost();
                if self.memory.learn(&self.observed) {
                    self.save().await;
                }
                true
            }
            Err(error) => {
                if self.blind.is_none() {
                    tracing::warn!(error = format!("{error:#}"), "the runtime does not answer; looking on");
                }
                if self.blind.get_or_insert(begun).elapsed() >= BLIND {
                    self.publish_unseen();
                }
                false
            }
        }
    }

    /// Lets leases reach their groups as the spec says, before anything else is done about it.
    async fn route(&mut self) {
        let Some(spec) = &self.spec else { return };
        let routes = Routes::of(spec, self.prefix);
        let own = self.link.as_ref().map(|link| link.address());
        let crossings = own.map(|own| Crossings::of(spec, self.prefix, own)).unwrap_or_default();
        let wanted = (routes, crossings);
        if self.routed.as_ref() == Some(&wanted) {
            return;
        }
        if let Some(link) = &self.link {
            link.route(&wanted.0, &wanted.1);
        }
        match self.runtime.route(&wanted.0).await {
            Ok(()) => self.routed = Some(wanted),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "groups stay as they are for now"),
        }
    }

    /// Serves others what the spec says, and nobody anything else.
    fn serve_others(&mut self) {
        let Some((own, spec)) = self.link.as_ref().map(|link| link.address()).zip(self.spec.as_ref()) else {
            return;
        };
        self.serving.retain(|challenge, _| spec.serve.contains_key(challenge));
        for (challenge, wish) in spec.serve.iter().take(SERVED_MAX) {
            self.serving.entry(*challenge).or_insert_with(|| Serving::begin(own, wish.clone()));
        }
    }

    /// Clears away what an agent that was cut off left of leases nobody knows.
    async fn reap(&self) {
        let listed = self.spec.iter().flat_map(|spec| spec.leases.keys());
        let known: BTreeSet<LeaseId> =
            listed.chain(self.observed.keys()).chain(self.memory.notes.keys()).copied().collect();
        if let Err(error) = self.runtime.reap(&known).await {
            tracing::warn!(error = format!("{error:#}"), "something is left of earlier leases");
        }
    }

    async fn take_inventory(&mut self) {
        let egress = self.runtime.egress().await;
        self.bulletin.send_if_modified(|bulletin| {
            let changed = bulletin.inventory.egress != egress;
            bulletin.inventory.egress = egress;
            changed
        });
    }

    async fn act(&mut self) {
        let decision = core::decide(self.spec.as_ref(), &self.observed, &self.memory, clock::now());
        self.publish(decision.leases);
        self.note_endings(&decision.actions).await;
        for (lease, action) in decision.actions {
            self.begin(lease, action);
        }
        self.follow_logs();
    }

    /// Writes down why commands are about to be ended, before they are.
    async fn note_endings(&mut self, actions: &BTreeMap<LeaseId, Action>) {
        let mut news = false;
        for (lease, action) in actions {
            if let Action::Stop(why) = action {
                let ending = &mut self.memory.notes.entry(*lease).or_default().ending;
                news |= ending.is_none();
                ending.get_or_insert(*why);
            }
        }
        if news {
            self.save().await;
        }
    }

    fn publish(&self, leases: BTreeMap<LeaseId, LeaseReport>) {
        let (generation, report) =
            self.spec.as_ref().map_or((0, None), |spec| (spec.generation, Some(spec.report_ms)));
        self.bulletin.send_if_modified(|bulletin| {
            let changed = bulletin.leases != leases || bulletin.generation != generation;
            bulletin.leases = leases;
            bulletin.generation = generation;
            bulletin.report = report.unwrap_or(bulletin.report);
            changed
        });
    }

    fn say_what_it_does(&self) {
        let reports = self.proofs.reports();
        let proving = |(challenge, kind, step)| Proving {
            challenge,
            kind,
            step,
            answered: reports.contains_key(&challenge),
        };
        let bulletin = self.bulletin.borrow();
        let doing = Doing {
            pid: std::process::id(),
            version: crate::version().to_owned(),
            boot: self.state.boot().to_owned(),
            said: clock::now(),
            heard: self.memory.in_touch.then_some(self.memory.heard),
            state: self.spec.as_ref().map(|spec| spec.state),
            reason: self.spec.as_ref().and_then(|spec| spec.reason.clone()),
            dismissed: self.memory.dismissed,
            runtime: self.runtime.kind(),
            runtime_answers: self.blind.is_none(),
            divided: status::divided(&bulletin.inventory.devices),
            leases: bulletin.leases.clone(),
            proofs: self.proofs.steps().map(proving).collect(),
            mesh: self.link.as_ref().map(|link| link.health()),
            upgrade: self.upgrade.known(),
        };
        drop(bulletin);
        if let Err(error) = doing.write(&self.data) {
            tracing::debug!(error = format!("{error:#}"), "the status cannot be written");
        }
    }

    fn publish_unseen(&self) {
        self.bulletin.send_if_modified(|bulletin| {
            let leases = core::unseen(bulletin.leases.clone());
            let changed = bulletin.leases != leases;
            bulletin.leases = leases;
            changed
        });
    }

    /// Begins an action; one that is under way for the same lease is ended first.
    fn begin(&mut self, lease: LeaseId, action: Action) {
        let task = action.task();
        self.serial += 1;
        let serial = self.serial;
        let mut before: Vec<JoinHandle<()>> =
            self.underway.remove(&lease).map(|underway| underway.handle).into_iter().collect();
        if matches!(task, Task::Drain | Task::Remove) {
            before.extend(self.followers.remove(&lease));
        }
        before.iter().for_each(JoinHandle::abort);
        let work = Work { lease, runtime: self.runtime.clone(), plane: self.plane.clone() };
        let events = self.events.clone();
        let span = tracing::info_span!("lease", lease.id = %lease);
        let run = async move {
            for cut in before {
                let _ = cut.await;
            }
            let outcome = work.run(action).await;
            let _ = events.send(Event::Done(lease, serial, outcome));
        };
        let handle = tokio::spawn(run.instrument(span));
        self.memory.busy.insert(lease, task);
        self.underway.insert(lease, Underway { serial, handle });
    }

    /// Sends the logs of every running lease while it runs.
    fn follow_logs(&mut self) {
        for (lease, _) in self.observed.iter().filter(|(_, seen)| seen.phase == Phase::Running) {
            let draining = self.memory.busy.get(lease) == Some(&Task::Drain);
            if draining || self.followers.contains_key(lease) {
                continue;
            }
            let follow = forward::follow(self.plane.clone(), self.runtime.clone(), *lease);
            let span = tracing::info_span!("lease", lease.id = %lease);
            self.followers.insert(*lease, tokio::spawn(follow.instrument(span)));
        }
    }

    async fn take(&mut self, event: Event) {
        match event {
            Event::Spec(spec) => {
                // Written down after the loop has acted: a customer waits for the
                // start, and after a crash the control plane sends the spec again.
                self.unsaved |= self.spec.as_ref() != Some(&spec);
                if let Some(link) = &self.link {
                    link.take(&spec.mesh);
                }
                self.upgrade.want(spec.release.as_ref(), &self.plane, &self.events);
                self.spec = Some(*spec);
                self.memory.dismissed = false;
                self.catch_up();
                self.serve_others();
                self.prove();
            }
            Event::Dismissed => self.dismiss(),
            Event::Fetched(release) => self.upgrade.fetched(*release),
            Event::Said(challenge, serial, word) => self.take_word(challenge, serial, word),
            Event::Heard(at, generation) => {
                self.memory.dismissed = false;
                self.upgrade.heard();
                self.memory.answered(at, generation);
                self.catch_up();
            }
            Event::Done(lease, serial, outcome) => self.take_outcome(lease, serial, outcome).await,
        }
    }

    fn catch_up(&mut self) {
        let generation = self.spec.as_ref().map_or(0, |spec| spec.generation);
        if self.memory.catch_up(generation)
            && let Err(error) = self.state.save_heard(self.memory.heard)
        {
            tracing::warn!(error = format!("{error:#}"), "the state cannot be written");
        }
    }

    fn dismiss(&mut self) {
        if !std::mem::replace(&mut self.memory.dismissed, true) {
            tracing::error!(
                "the market does not know this host any more: it has left or was sent away. No new jobs are \
                 begun, and what runs ends with the fence; to join again, enrol with a new ticket"
            );
        }
    }

    async fn take_outcome(&mut self, lease: LeaseId, serial: u64, outcome: Outcome) {
        if self.underway.get(&lease).map(|underway| underway.serial) != Some(serial) {
            return;
        }
        self.underway.remove(&lease);
        self.memory.busy.remove(&lease);
        let listed = self.spec.as_ref().is_some_and(|spec| spec.leases.contains_key(&lease));
        match outcome {
            Outcome::Started => self.note(lease).started = true,
            Outcome::Finished(finished) => return self.finish(lease, finished).await,
            Outcome::Removed if !listed => {
                crash_point!("agent.remove.before_forget");
                self.memory.notes.remove(&lease);
            }
            Outcome::Removed | Outcome::Stopped | Outcome::Failed => return,
        }
        self.save().await;
    }

    async fn finish(&mut self, lease: LeaseId, finished: Finished) {
        tracing::info!(lease.id = %lease, exit = ?finished.exit, "finished");
        self.note(lease).finished = Some(finished);
        self.save().await;
        crash_point!("agent.finish.before_report");
    }

    fn note(&mut self, lease: LeaseId) -> &mut core::Note {
        self.memory.notes.entry(lease).or_default()
    }

    async fn save(&self) {
        let (state, spec, notes) = (self.state.clone(), self.spec.clone(), self.memory.notes.clone());
        let saved = tokio::task::spawn_blocking(move || state.save(spec.as_ref(), &notes)).await;
        if let Err(error) = saved.context("write the state").and_then(|saved| saved) {
            tracing::warn!(error = format!("{error:#}"), "the state cannot be written");
        }
    }
}

impl Ending {
    fn word(self) -> &'static str {
        match self {
            Self::Stopped => "the spec says so",
            Self::Fenced => "the control plane has not been heard in time",
            Self::Cut => "the machine restarted",
            Self::Over(_) => "it held more memory than its share of a device has",
            Self::Lost => "the daemon that gave it its share of a device has ended",
        }
    }
}
