//! The verifying role: a thin shell around what is decided.

mod judging;
mod transfers;
mod watching;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    num::NonZeroUsize,
    thread::available_parallelism,
    time::Duration,
};

use anyhow::Context as _;
use nave_crash_point::crash_point;
use nave_domain::{
    ChallengeId, HostId, Millis,
    host::Proven,
    verdict::{Cause, Kind},
};
use nave_proof::{Challenge, Nonce, Task};
use nave_store::{Changes, Drawing, DueHost, Look, OpenChallenge, OpenWindow, Store, StoreError};
use serde_json::Value;
use tokio::{
    sync::broadcast,
    time::{Instant, timeout},
};
use uuid::Uuid;

use self::judging::{Court, End, write_appeal_down};
use crate::{
    decide::{
        CANNOT_BE_JUDGED, Next, Ruling, Standing, Written, decide, decide_again, is_newer, waits_until,
    },
    draw::{self, Due, Rules, due},
    schedule::Means,
};

/// Longest time between two looks at what is open.
const TICK: Duration = Duration::from_secs(1);
/// Time between two rounds of removing evidence, unless there is more of it than goes in one.
const SWEEP: Duration = Duration::from_secs(60);
const SWEPT_MAX: i64 = 500;
/// How many challenges are loaded at once.
const PAGE: usize = 256;
/// How many appeals are heard in one look.
const APPEALS_MAX: i64 = 64;
/// How long what is to be judged is left to the verifier that has it, on the control clock.
const JUDGING: Millis = Millis(60_000);
const HOUR: i64 = 3_600_000;

/// How hosts are tested.
#[derive(Debug, Clone)]
pub struct Config {
    /// Kinds of tests without which no host takes jobs.
    pub enforced: BTreeSet<Kind>,
    /// Kinds that are tested and refuse nobody.
    pub shadow: BTreeSet<Kind>,
    /// How often hosts are tested that have proven their claims.
    pub means: Means,
    /// Time between two transfers to a host from another, on average and on the control clock.
    pub transfer: Millis,
    /// How long bans are, on the control clock: the first one, the next, and so on.
    pub bans: Vec<Millis>,
    /// How long a host may wait before it fetches a nonce of a window, on the control clock: who
    /// may wait longer can do one thing after another.
    pub together: Millis,
    /// How long a core of the reference rate works to prove computing power. Reports travel
    /// for a second or so, which counts as the host's time: much less than five seconds
    /// would test the network.
    pub effort: Millis,
    /// How long a host that is tested may be silent, on the control clock.
    pub silent: Millis,
    /// How many challenges are judged at the same time.
    pub judges: NonZeroUsize,
}

impl Default for Config {
    fn default() -> Self {
        let judges = available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self {
            enforced: BTreeSet::from([Kind::Cpu, Kind::Memory, Kind::Devices, Kind::Storage, Kind::Software]),
            shadow: BTreeSet::new(),
            means: Means { retest: Millis(6 * HOUR), probe: Millis(HOUR / 2), window: Millis(8 * HOUR) },
            transfer: Millis(2 * HOUR),
            bans: [1, 6, 24, 7 * 24, 30 * 24].map(|hours| Millis(hours * HOUR)).to_vec(),
            together: Millis(5_000),
            effort: Millis(5_000),
            silent: Millis(60_000),
            judges,
        }
    }
}

/// Verifies until `shutdown`.
///
/// # Errors
/// None so far: what fails is logged and tried again.
pub async fn run(config: Config, store: Store, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let mut changes = store.listen().subscribe();
    let mut verifier = Verifier::new(config, store);
    tokio::pin!(shutdown);
    loop {
        // One look answers every announcement before it.
        changes = changes.resubscribe();
        if let Err(error) = verifier.look().await {
            tracing::warn!(error = format!("{error:#}"), "could not verify; trying again");
        }
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            () = challenges_changed(&mut changes) => {}
        }
    }
}

async fn challenges_changed(changes: &mut broadcast::Receiver<Changes>) {
    let others = async {
        while let Ok(
            Changes::Supply | Changes::Job(_) | Changes::Host(_) | Changes::Quote(_) | Changes::Mesh,
        ) = changes.recv().await
        {}
    };
    drop(timeout(TICK, others).await);
}

/// One of the verifiers of a market. What it knows is in rows; it only remembers what it
/// is judging, so that it does not judge that twice.
#[derive(Debug)]
pub struct Verifier {
    config: Config,
    store: Store,
    court: Court,
    /// Whether it has looked at everything once: what another one was about to do is its own from then on.
    looked: bool,
    swept: Instant,
}

impl Verifier {
    /// Starts with nothing to do.
    #[must_use]
    pub fn new(config: Config, store: Store) -> Self {
        let court = Court::new(config.clone(), store.clone());
        Self { config, store, court, looked: false, swept: Instant::now() }
    }

    /// Looks once at every open challenge that something can be done about, and every host that is to
    /// be tested. What is to be judged is judged on the side: however much that is, others get their nonces at once.
    ///
    /// # Errors
    /// When the database does not answer, or the system has no randomness.
    pub async fn look(&mut self) -> anyhow::Result<()> {
        self.go_on_with_all().await?;
        for appealed in self.store.challenges_appealed(APPEALS_MAX).await.context("load appeals")? {
            passable(self.hear_appeal(appealed).await)?;
        }
        self.court.sit();
        self.keep_watch().await?;
        self.plan_transfers().await?;
        for due in self.store.hosts_to_test().await.context("load hosts to test")?.chunks(PAGE) {
            passable(self.go_through(due).await)?;
        }
        self.sweep().await
    }

    async fn sweep(&mut self) -> anyhow::Result<()> {
        if self.swept.elapsed() > SWEEP {
            self.store.looks_mend().await.context("see what is to be looked at")?;
            self.store.disputes_expire().await.context("end disputes that wait for long")?;
            let swept = self.store.evidence_sweep(SWEPT_MAX).await.context("remove old evidence")?;
            if i64::try_from(swept.seen).unwrap_or(i64::MAX) < SWEPT_MAX {
                self.swept = Instant::now();
            }
        }
        Ok(())
    }

    /// Goes on with each challenge at which something has come, or whose time is over.
    async fn go_on_with_all(&mut self) -> anyhow::Result<()> {
        let now = self.store.clock_now().await.context("read the clocks")?.up;
        if !self.looked {
            self.store.looks_mend().await.context("see what is to be looked at")?;
        }
        let until = if self.looked { now } else { Millis(i64::MAX) };
        let due = self.store.looks_due(until).await.context("load what is to be looked at")?;
        let (called, due): (Vec<Look>, Vec<Look>) =
            due.into_iter().partition(|look| self.court.knows(look.challenge));
        let called: Vec<(Look, Millis)> = called.into_iter().map(|look| (look, judged_by(now))).collect();
        self.store.looks_defer(&called).await.context("leave what is judged")?;
        // Whoever waits for a nonce does not wait until all the others have their verdicts.
        let mut verdicts = Vec::new();
        for looks in due.chunks(PAGE) {
            verdicts.extend(self.go_on_with(looks, |next| matches!(next, Next::Rule(_))).await?);
        }
        for looks in verdicts.chunks(PAGE) {
            self.go_on_with(looks, |_| false).await?;
        }
        self.looked = true;
        Ok(())
    }

    /// Goes on with these, and says which of them it leaves.
    async fn go_on_with(&mut self, looks: &[Look], leaves: fn(&Next) -> bool) -> anyhow::Result<Vec<Look>> {
        let news: BTreeMap<ChallengeId, Look> = looks.iter().map(|look| (look.challenge, *look)).collect();
        let ids: Vec<ChallengeId> = news.keys().copied().collect();
        let (mut later, mut left) = (Vec::new(), Vec::new());
        for open in self.store.challenges_undecided(&ids).await.context("load open challenges")? {
            let look = news.get(&open.challenge).copied();
            let next = decide(&open, silent(&self.config, &open));
            if leaves(&next) {
                left.extend(look);
                continue;
            }
            let mut until = None;
            passable(self.go_on(&open, next).await.map(|up| until = up))?;
            later.extend(look.zip(until));
        }
        self.store.looks_defer(&later).await.context("put off what waits for hosts")?;
        Ok(left)
    }

    fn rules(&self) -> Rules {
        let Config { enforced, shadow, effort, .. } = &self.config;
        Rules { enforced: enforced.clone(), shadow: shadow.clone(), effort: *effort }
    }

    /// Waits until all is judged that was to be judged.
    pub async fn settle(&mut self) {
        self.court.settle().await;
    }

    /// Takes hosts one step further through their suites.
    async fn go_through(&self, hosts: &[DueHost]) -> anyhow::Result<()> {
        let mut drawn = Vec::new();
        for host in hosts {
            match due(host, &self.rules()) {
                Due::Wait => {}
                Due::Draw(kinds) => passable(self.draw(host, &kinds).map(|tests| drawn.extend(tests)))?,
                Due::Done(proven) => passable(self.let_in(host, &proven).await)?,
            }
        }
        self.begin(&drawn).await
    }

    async fn let_in(&self, host: &DueHost, proven: &Proven) -> anyhow::Result<()> {
        let written = self.store.host_prove(host.host, host.generation, proven).await;
        if is_news(written).with_context(|| format!("let {} take jobs", host.host))? {
            tracing::info!(host.id = %host.host, "a host has proven its claims");
        }
        Ok(())
    }

    /// The next tests of a host, which are open at the same time.
    fn draw<'a>(&self, host: &'a DueHost, kinds: &[Kind]) -> anyhow::Result<Vec<Test<'a>>> {
        let rules = self.rules();
        let test = |kind: &Kind| {
            let task = draw::task(*kind, host, &rules).map_err(anyhow::Error::msg)?;
            let window = host.window.as_ref().filter(|_| *kind == Kind::Devices);
            let challenge = challenge(host.host, task, window)?;
            let body = serde_json::to_value(&challenge).context("write a challenge as JSON")?;
            Ok(Test { host, kind: *kind, challenge: challenge.challenge, body })
        };
        kinds.iter().map(test).collect()
    }

    /// Draws challenges, of many hosts at once: those of a window are to begin at the same moment.
    async fn begin(&self, tests: &[Test<'_>]) -> anyhow::Result<()> {
        let rules = self.rules();
        let drawings: Vec<Drawing<'_>> = tests.iter().map(|test| test.drawing(&rules)).collect();
        let hosts: BTreeMap<HostId, u64> =
            tests.iter().map(|test| (test.host.host, test.host.generation)).collect();
        let hosts: Vec<(HostId, u64)> = hosts.into_iter().collect();
        if hosts.is_empty() {
            return Ok(());
        }
        crash_point!("verifier.draw.before_store");
        let drawn = self.store.challenges_draw(&hosts, &drawings).await.context("draw challenges")?;
        for test in tests.iter().filter(|test| drawn.contains(&test.host.host)) {
            tracing::info!(host.id = %test.host.host, challenge.id = %test.challenge, kind = test.kind.as_str(), "testing a host");
        }
        Ok(())
    }

    /// Does what is next for a challenge; says until when on the control clock nothing can be done about it unless
    /// something comes, if that is so.
    async fn go_on(&mut self, open: &OpenChallenge, next: Next) -> anyhow::Result<Option<Millis>> {
        let (id, silent) = (open.challenge, silent(&self.config, open));
        match next {
            Next::Wait => Ok(waits_until(open, silent)),
            Next::Reveal(step) => {
                let nonce = transfers::reveal(&self.store, open, step).await?;
                crash_point!("verifier.reveal.before_store");
                let revealed = self.store.challenge_reveal(id, step, &nonce.to_string()).await;
                is_news(revealed).with_context(|| format!("reveal step {step} of {id}"))?;
                Ok(waits_until(open, silent))
            }
            Next::Rule(ruling) => {
                let ruling = transfers::settle(&self.store, open, ruling).await?;
                write_down(&self.store, open, ruling, &self.config.bans).await?;
                Ok(None)
            }
            Next::Judge(_) => {
                self.court.call(open, End::Verdict);
                Ok(Some(judged_by(open.now.up)))
            }
        }
    }

    /// Reaches a verdict again.
    async fn hear_appeal(&mut self, open: OpenChallenge) -> anyhow::Result<()> {
        if self.court.knows(open.challenge) {
            return Ok(());
        }
        match decide_again(&open, silent(&self.config, &open)) {
            // A newer verifier will know what to do.
            Next::Wait if is_newer(&open) => Ok(()),
            Next::Wait => {
                let ruling = Ruling::Void(CANNOT_BE_JUDGED.into());
                write_appeal_down(&self.store, &open, ruling).await
            }
            Next::Reveal(_) => {
                let ruling = Ruling::Void("nothing that is kept says that it failed".into());
                write_appeal_down(&self.store, &open, ruling).await
            }
            Next::Rule(ruling) => {
                let ruling = transfers::settle(&self.store, &open, ruling).await?;
                write_appeal_down(&self.store, &open, ruling).await
            }
            Next::Judge(_) => {
                self.court.call(&open, End::Appeal);
                Ok(())
            }
        }
    }
}

/// How long a host may be silent before that is its answer.
fn silent(config: &Config, open: &OpenChallenge) -> Millis {
    if open.cause == Cause::Window { config.together } else { config.silent }
}

/// Until when others leave what is to be judged to the verifier that has it.
fn judged_by(now: Millis) -> Millis {
    Millis(now.0.saturating_add(JUDGING.0))
}

/// A challenge that is to be drawn for a host in its suite.
struct Test<'a> {
    host: &'a DueHost,
    kind: Kind,
    challenge: ChallengeId,
    body: Value,
}

impl Test<'_> {
    fn drawing(&self, rules: &Rules) -> Drawing<'_> {
        let window = self.host.window.as_ref().filter(|_| self.kind == Kind::Devices);
        Drawing {
            host: self.host.host,
            challenge: self.challenge,
            kind: self.kind,
            cause: cause(self.host),
            body: &self.body,
            claims: &self.host.claims,
            shadow: rules.is_shadow(self.kind),
            window: window.map(|window| window.window),
            lease: None,
        }
    }
}

/// Why a host in its suite is tested.
fn cause(host: &DueHost) -> Cause {
    let claimed = if host.proven.is_some() { Cause::Identity } else { Cause::Enrolment };
    host.cause.unwrap_or(claimed)
}

fn challenge(host: HostId, task: Task, window: Option<&OpenWindow>) -> anyhow::Result<Challenge> {
    let beacon = window.map(|window| window.beacon.parse()).transpose();
    let challenge = Challenge::new(ChallengeId(Uuid::now_v7()), host, task, nonce()?);
    Ok(Challenge { beacon: beacon.context("read a beacon")?, ..challenge })
}

/// What is written down of a ruling, for which it may matter whose GPUs those are that were shown.
async fn written(store: &Store, open: &OpenChallenge, ruling: Ruling) -> anyhow::Result<Written> {
    let holders = match ruling.devices(&open.claims.devices) {
        devices if devices.is_empty() => Vec::new(),
        devices => store.device_holders(open.host, &devices).await.context("see whose GPUs these are")?,
    };
    Ok(ruling.written(holders))
}

async fn write_down(
    store: &Store,
    open: &OpenChallenge,
    ruling: Ruling,
    bans: &[Millis],
) -> anyhow::Result<()> {
    let (id, host) = (open.challenge, open.host);
    let written = written(store, open, ruling).await?;
    let verdict = serde_json::to_value(&written).context("write a verdict as JSON")?;
    let (ruling, standing) = (written.ruling, Standing::of(open, bans));
    let stored = store.challenge_decide(id, &verdict, &ruling.decision(&standing)).await;
    if !is_news(stored).with_context(|| format!("write the verdict of {id} down"))? {
        return Ok(());
    }
    let (code, duration_ms) = (ruling.code(), store.now().await?.since(open.drawn_at).0);
    let (host, id) = (tracing::field::display(host), tracing::field::display(id));
    match &ruling {
        Ruling::Passed(_) => {
            tracing::info!(host.id = host, challenge.id = id, code, duration_ms, "a host passed a test");
        }
        Ruling::Failed(failure) => {
            let why = failure.message.as_str();
            tracing::info!(host.id = host, challenge.id = id, code, duration_ms, why, "a host failed a test");
        }
        Ruling::Void(why) => {
            tracing::info!(
                host.id = host,
                challenge.id = id,
                code,
                duration_ms,
                why,
                "a test does not count"
            );
        }
    }
    Ok(())
}

/// What goes wrong with one host does not hold up the others, unless it would with them, too.
fn passable(done: anyhow::Result<()>) -> anyhow::Result<()> {
    match done {
        Err(error) if matches!(error.downcast_ref(), Some(StoreError::Database(_))) => Err(error),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "a test cannot go on");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Whether a write happened; not, where another verifier was first or the host has moved on.
fn is_news(written: Result<(), StoreError>) -> Result<bool, StoreError> {
    match written {
        Ok(()) => Ok(true),
        Err(StoreError::Stale(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn nonce() -> anyhow::Result<Nonce> {
    Ok(Nonce(random()?))
}

fn random<const BYTES: usize>() -> anyhow::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).context("draw a nonce")?;
    Ok(bytes)
}
