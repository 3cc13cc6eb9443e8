//! The host's end of the mesh: one interface, one peer, and what keeps it connected.
//!
//! A thread of its own does it, because everything about interfaces blocks and
//! neither reports nor jobs may wait for it.

pub mod keys;
pub mod turn;

use std::{
    collections::BTreeSet,
    net::{Ipv6Addr, SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use nave_crash_point::crash_point;
use nave_domain::{
    Millis,
    mesh::{MTU_MIN, MeshKey, Prefix},
};
use nave_mesh::{
    Backend, Interface, Name, Options, Peer, Program,
    guard::{self, Door, Pair},
};
use nave_sdk::wire::{enrol::MeshPlace, host::MeshSpec};
use serde::{Deserialize, Serialize};

use self::{
    keys::Keys,
    turn::{Side, Step, Turn, View},
};
use crate::{
    clock,
    files::{self, Keep},
    membership::{self, Membership},
    routes::Routes,
    transfer::Crossings,
};

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Time between two loads of the guard, which others may have flushed away.
const GUARD: Duration = Duration::from_secs(60);
/// Time between two probes of the path, and after one that found nothing.
const PROBE: Duration = Duration::from_secs(3_600);
const PROBE_AGAIN: Duration = Duration::from_secs(60);
/// Pause after an interface that did not come up.
const AGAIN: Duration = Duration::from_secs(3);

/// What a link needs to know.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the keys are.
    pub data: PathBuf,
    /// Name of the interface.
    pub interface: Name,
    /// Addresses of this market.
    pub prefix: Prefix,
    /// This host's place.
    pub place: MeshPlace,
    /// How long a key is used; zero for ever.
    pub rotate: Duration,
}

impl Plan {
    /// The plan of a member.
    #[must_use]
    pub fn of(member: &Membership, data: &Path, interface: Name, rotate: Duration) -> Self {
        let prefix = Prefix::of_market(&member.market_key.0);
        Self { data: data.to_owned(), interface, prefix, place: member.place.mesh.clone(), rotate }
    }
}

/// How the link is, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The public key in use.
    pub key: Option<MeshKey>,
    /// The key that will replace it.
    pub next: Option<MeshKey>,
    /// Where the hub is found.
    pub endpoint: Option<SocketAddr>,
    /// When the hub last proved its key, in seconds since 1970.
    pub handshake_s: Option<u64>,
    /// Bytes received and sent since the link was last made anew.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Largest packet.
    pub mtu: Option<u16>,
    /// Whether a process serves it, because the kernel cannot.
    pub userspace: bool,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// What the link and the rest of the agent tell each other.
#[derive(Debug, Default)]
struct Shared {
    stopping: bool,
    /// From the spec: which key is let in, and where the hub is.
    spec: Option<MeshSpec>,
    /// The key that was acknowledged, and when.
    told: Option<(MeshKey, Millis)>,
    /// What passes besides what is said to the hub itself.
    group: Group,
    health: Health,
}

/// What passes between leases here and those of their groups elsewhere, and between this host and
/// others that transfer something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Group {
    pairs: Vec<Pair>,
    doors: Vec<Door>,
    peers: BTreeSet<Ipv6Addr>,
}

/// A link under way; dropped, an interface that a process serves is gone.
#[derive(Debug)]
pub struct Link {
    address: Ipv6Addr,
    shared: Arc<Mutex<Shared>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Link {
    /// Begins to bring the link up and keeps it so. `anew` is called when the interface
    /// was made again, and what was connected through it is not any more.
    ///
    /// # Errors
    /// When the keys cannot be read.
    pub fn start(plan: Plan, anew: impl Fn() + Send + 'static) -> anyhow::Result<Self> {
        let keys = Keys::load(&plan.data).context("read the mesh keys")?;
        // What clears up later must find the interface.
        files::write_json(&name_path(&plan.data), &plan.interface.as_str(), Keep::Power)?;
        let shared = Arc::new(Mutex::new(Shared::default()));
        publish_keys(&mut lock(&shared), &keys, Side::Current);
        let (theirs, address) = (shared.clone(), plan.place.address);
        let run = move || keep(&plan, keys, &theirs, &anew);
        let thread = thread::Builder::new().name("mesh".into()).spawn(run).context("start a thread")?;
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// This host's address in the mesh.
    #[must_use]
    pub fn address(&self) -> Ipv6Addr {
        self.address
    }

    /// What reports announce: the key that will replace the present one.
    #[must_use]
    pub fn next_key(&self) -> Option<MeshKey> {
        lock(&self.shared).health.next
    }

    /// The market has acknowledged a report that announced this key.
    pub fn told(&self, key: MeshKey) {
        lock(&self.shared).told = Some((key, clock::now()));
    }

    /// Takes in what the newest spec says.
    pub fn take(&self, spec: &MeshSpec) {
        lock(&self.shared).spec = Some(spec.clone());
    }

    /// Lets leases here and those of their groups elsewhere reach one another, hosts cross as
    /// transfers need it, and nobody else.
    pub fn route(&self, routes: &Routes, crossings: &Crossings) {
        let peers = routes.remote().union(&crossings.peers).copied().collect();
        let doors = crossings.doors.iter().copied().collect();
        lock(&self.shared).group = Group { pairs: routes.pairs(), doors, peers };
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// How it is.
    #[must_use]
    pub fn health(&self) -> Health {
        lock(&self.shared).health.clone()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        lock(&self.shared).stopping = true;
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name_path(data: &Path) -> PathBuf {
    membership::dir(data).join("mesh-interface.json")
}

/// The interface that an agent of `data` has used, where there is one.
#[must_use]
pub fn interface_of(data: &Path) -> Option<Name> {
    let name: Option<String> = files::read_json(&name_path(data)).ok().flatten();
    name.and_then(|name| name.parse().ok())
}

fn publish_keys(shared: &mut Shared, keys: &Keys, side: Side) {
    shared.health.key = Some(keys.get(side).public());
    shared.health.next = keys.next();
}

/// The life of the thread.
fn keep(plan: &Plan, mut keys: Keys, shared: &Mutex<Shared>, anew: &dyn Fn()) {
    let mut said = false;
    while !lock(shared).stopping {
        let begun = Upheld::begin(plan, &mut keys, shared);
        if begun.is_ok() {
            said = false;
            anew();
        }
        match begun.and_then(|mut upheld| upheld.run(anew)) {
            Ok(()) => return,
            Err(error) => {
                let problem = format!("{error:#}");
                if !std::mem::replace(&mut said, true) {
                    tracing::error!(error = problem, "the mesh interface does not come up; trying again");
                }
                lock(shared).health.problem = Some(problem);
                thread::park_timeout(AGAIN);
            }
        }
    }
}

/// An interface that is up, and what is known about it.
struct Upheld<'a> {
    plan: &'a Plan,
    keys: &'a mut Keys,
    shared: &'a Mutex<Shared>,
    interface: Interface,
    turn: Turn,
    /// The hub's key and endpoints, as they were applied.
    known: (MeshKey, Vec<String>),
    candidates: Vec<SocketAddr>,
    /// What passes now.
    group: Group,
    rx: u64,
    heard: Option<Millis>,
    guarded: Instant,
    probe: Option<Instant>,
    probed: Option<SocketAddr>,
}

impl<'a> Upheld<'a> {
    /// The guard is loaded before there is anybody to guard against.
    fn begin(plan: &'a Plan, keys: &'a mut Keys, shared: &'a Mutex<Shared>) -> anyhow::Result<Self> {
        guard::host(&plan.interface, None, &[], &[]).context("load the guard of the mesh interface")?;
        let interface = Interface::up(Options {
            name: plan.interface.clone(),
            namespace: None,
            address: plan.place.address,
            prefix: plan.prefix,
            mtu: MTU_MIN,
            port: 0,
            private_key: keys.get(Side::Current).clone(),
            backend: Backend::Any,
            program: Program::this(),
        })?;
        let turn = Turn { since: clock::now(), ..Turn::default() };
        let mut upheld = Self {
            plan,
            keys,
            shared,
            interface,
            turn,
            known: (plan.place.hub_key, Vec::new()),
            candidates: Vec::new(),
            group: Group::default(),
            rx: 0,
            heard: None,
            guarded: Instant::now(),
            probe: None,
            probed: None,
        };
        upheld.apply(false)?;
        let health = &mut lock(shared).health;
        (health.problem, health.mtu) = (None, Some(MTU_MIN));
        health.userspace = upheld.interface.is_userspace();
        Ok(upheld)
    }

    fn run(&mut self, anew: &dyn Fn()) -> anyhow::Result<()> {
        let mut starts = self.interface.starts();
        while !lock(self.shared).stopping {
            self.look();
            if std::mem::replace(&mut starts, self.interface.starts()) != starts {
                anew();
            }
            if self.known != (self.hub_key(), self.endpoints()) {
                self.follow_hub()?;
            }
            let view = self.view();
            match self.turn.step(view) {
                Step::Stay => {}
                Step::Make => {
                    self.keys.make_next().context("make the next mesh key")?;
                    tracing::info!("the mesh key is about to be changed");
                }
                Step::Try(turn) => self.change(turn)?,
                Step::Settle => self.settle()?,
            }
            publish_keys(&mut lock(self.shared), self.keys, self.turn.side);
            self.regroup();
            self.upkeep();
            thread::park_timeout(LOOK);
        }
        Ok(())
    }

    /// Takes in what the interface says; while its process is being replaced, that is nothing.
    fn look(&mut self) {
        let hub = self.hub_key();
        let Ok(peers) = self.interface.peers() else { return };
        let Some(peer) = peers.into_iter().find(|peer| peer.key == hub) else { return };
        if peer.rx_bytes > self.rx {
            self.heard = Some(clock::now());
        }
        self.rx = peer.rx_bytes;
        let since =
            |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs());
        let health = &mut lock(self.shared).health;
        health.endpoint = peer.endpoint;
        health.handshake_s = peer.handshake.and_then(since);
        (health.rx_bytes, health.tx_bytes) = (peer.rx_bytes, peer.tx_bytes);
    }

    fn view(&self) -> View {
        let shared = lock(self.shared);
        let next = self.keys.next();
        let told = shared.told.filter(|(key, _)| Some(*key) == next).map(|(_, at)| at);
        View {
            now: clock::now(),
            heard: self.heard,
            endpoints: self.candidates.len(),
            has_next: next.is_some(),
            told,
            confirmed: next.is_some() && shared.spec.as_ref().map(|spec| spec.key) == next,
            due: self.keys.is_due(self.plan.rotate),
        }
    }

    /// Speaks with another key or to another endpoint.
    fn change(&mut self, turn: Turn) -> anyhow::Result<()> {
        let keyed = turn.side != self.turn.side;
        tracing::info!(key = ?turn.side, endpoint = turn.endpoint, "trying another way to the hub");
        self.turn = turn;
        if keyed {
            crash_point!("agent.rotate.before_switch");
            self.interface.set_private_key(self.keys.get(turn.side))?;
        }
        self.apply(!keyed)
    }

    /// A spec has named the next key: it is the only one from now on.
    fn settle(&mut self) -> anyhow::Result<()> {
        let switch = self.turn.side == Side::Current;
        self.keys.settle().context("forget the old mesh key")?;
        tracing::info!("the mesh key is changed");
        if switch {
            self.interface.set_private_key(self.keys.get(Side::Current))?;
        }
        self.turn = Turn { side: Side::Current, failures: 0, since: clock::now(), ..self.turn };
        Ok(())
    }

    /// The hub has another key or other endpoints than before; where it is now is kept.
    fn follow_hub(&mut self) -> anyhow::Result<()> {
        let at = self.candidates.get(self.turn.endpoint).copied();
        let now = resolve(&self.endpoints());
        self.turn.endpoint = now.iter().position(|found| Some(*found) == at).unwrap_or(0);
        self.apply(false)
    }

    /// Makes the hub at the present endpoint the only peer.
    fn apply(&mut self, renew: bool) -> anyhow::Result<()> {
        self.known = (self.hub_key(), self.endpoints());
        self.candidates = resolve(&self.known.1);
        self.rx = 0;
        self.interface.set_peers(&[self.hub(&self.group)])?;
        if renew {
            self.interface.renew()?;
        }
        Ok(())
    }

    /// The hub, through which leases elsewhere are reached.
    fn hub(&self, group: &Group) -> Peer {
        Peer {
            key: self.hub_key(),
            addresses: group.peers.iter().copied().chain([self.plan.place.hub_address]).collect(),
            endpoint: self.candidates.get(self.turn.endpoint % self.candidates.len().max(1)).copied(),
            keepalive_s: Some(self.plan.place.keepalive_s),
        }
    }

    /// Brings what passes in line with what leases reach. The guard first: it is what closes.
    fn regroup(&mut self) {
        let group = lock(self.shared).group.clone();
        if group == self.group {
            return;
        }
        let done = guard::host(&self.plan.interface, None, &group.pairs, &group.doors)
            .and_then(|()| self.interface.set_peers(&[self.hub(&group)]));
        match done {
            Ok(()) => self.group = group,
            Err(error) => tracing::warn!(%error, "groups stay as they are in the mesh for now"),
        }
    }

    fn hub_key(&self) -> MeshKey {
        lock(self.shared).spec.as_ref().map_or(self.plan.place.hub_key, |spec| spec.hub_key)
    }

    /// Where the hub may be: as the newest spec says, then as the enrolment said.
    fn endpoints(&self) -> Vec<String> {
        let mut all =
            lock(self.shared).spec.as_ref().map(|spec| spec.hub_endpoints.clone()).unwrap_or_default();
        for endpoint in &self.plan.place.hub_endpoints {
            if !all.contains(endpoint) {
                all.push(endpoint.clone());
            }
        }
        all
    }

    /// What is due from time to time. Nothing of it is worth giving the link up for.
    fn upkeep(&mut self) {
        if self.guarded.elapsed() >= GUARD {
            self.guarded = Instant::now();
            let Group { pairs, doors, peers: _ } = &self.group;
            if let Err(error) = guard::host(&self.plan.interface, None, pairs, doors) {
                tracing::warn!(%error, "the guard of the mesh interface cannot be loaded");
            }
        }
        let alive = self.heard.is_some_and(|heard| clock::now().0 - heard.0 < turn::SILENCE.0);
        let endpoint = lock(self.shared).health.endpoint;
        let due = self.probe.is_none_or(|at| Instant::now() >= at) || endpoint != self.probed;
        if alive && due {
            self.probe_path();
            self.probed = endpoint;
        }
    }

    fn probe_path(&mut self) {
        let found = self.interface.find_mtu(self.plan.place.hub_address);
        let pause = match found {
            Ok(Some(mtu)) => {
                tracing::debug!(mtu, "the path to the hub was probed");
                lock(self.shared).health.mtu = Some(mtu);
                PROBE
            }
            Ok(None) => PROBE_AGAIN,
            Err(error) => {
                tracing::info!(%error, "the path to the hub cannot be probed");
                PROBE_AGAIN
            }
        };
        self.probe = Some(Instant::now() + pause);
    }
}

/// Every address behind these endpoints; a name that cannot be resolved now has none.
fn resolve(endpoints: &[String]) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for endpoint in endpoints {
        match endpoint.to_socket_addrs() {
            Ok(addresses) => found.extend(addresses),
            Err(error) => tracing::info!(endpoint, %error, "the hub's endpoint cannot be resolved"),
        }
    }
    let mut seen = BTreeSet::new();
    found.retain(|address| seen.insert(*address));
    found
}
