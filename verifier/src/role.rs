//! The verifying role: a thin shell around what is decided.

use std::{
    collections::BTreeMap, future::Future, num::NonZeroUsize, sync::Arc, thread::available_parallelism,
    time::Duration,
};

use anyhow::Context as _;
use nave_crash_point::crash_point;
use nave_domain::{ChallengeId, Millis};
use nave_proof::{Challenge, Failure, Nonce, OPENING_MAX, Opening, Reason, VERSION};
use nave_store::{Changes, DueHost, OpenChallenge, Store, StoreError};
use tokio::{
    sync::{Semaphore, broadcast},
    task::{AbortHandle, JoinSet, spawn_blocking},
    time::timeout,
};
use uuid::Uuid;

use crate::decide::{Case, Next, Ruling, decide, draw};

/// Longest time between two looks at what is open.
const TICK: Duration = Duration::from_secs(1);

/// How hosts are tested.
#[derive(Debug, Clone, Copy)]
pub struct Config {
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
        Self { effort: Millis(5_000), silent: Millis(60_000), judges }
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
        while let Ok(Changes::Supply | Changes::Job(_) | Changes::Host(_) | Changes::Mesh) =
            changes.recv().await
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
    /// Whoever judges holds one: that takes a core, and up to an opening's bytes.
    seats: Arc<Semaphore>,
    judging: BTreeMap<ChallengeId, AbortHandle>,
    /// Ends with the verifier.
    judgements: JoinSet<()>,
}

impl Verifier {
    /// Starts with nothing to do.
    #[must_use]
    pub fn new(config: Config, store: Store) -> Self {
        let seats = Arc::new(Semaphore::new(config.judges.get()));
        Self { config, store, seats, judging: BTreeMap::new(), judgements: JoinSet::new() }
    }

    /// Looks once at every open challenge and every host that is to be tested. What is to be
    /// judged is judged on the side: however much that is, others get their nonces at once.
    ///
    /// # Errors
    /// When the database does not answer, or the system has no randomness.
    pub async fn look(&mut self) -> anyhow::Result<()> {
        while self.judgements.try_join_next().is_some() {}
        self.judging.retain(|_, judging| !judging.is_finished());
        for open in self.store.challenges_open().await.context("load open challenges")? {
            passable(self.go_on(open).await)?;
        }
        for due in self.store.hosts_to_test().await.context("load hosts to test")? {
            passable(self.begin(&due).await)?;
        }
        Ok(())
    }

    /// Waits until all is judged that was to be judged.
    pub async fn settle(&mut self) {
        while self.judgements.join_next().await.is_some() {}
    }

    async fn begin(&self, due: &DueHost) -> anyhow::Result<()> {
        let challenge = Challenge {
            version: VERSION,
            challenge: ChallengeId(Uuid::now_v7()),
            host: due.host,
            task: draw(due, self.config.effort),
            nonce: nonce()?,
            beacon: None,
            reveals: Vec::new(),
        };
        let body = serde_json::to_value(&challenge).context("write a challenge as JSON")?;
        crash_point!("verifier.draw.before_store");
        let drawn = self.store.challenge_draw(due.host, challenge.challenge, &body, &due.claims).await;
        if is_news(drawn).with_context(|| format!("draw a challenge for {}", due.host))? {
            tracing::info!(host.id = %due.host, challenge.id = %challenge.challenge, "testing a host");
        }
        Ok(())
    }

    async fn go_on(&mut self, open: OpenChallenge) -> anyhow::Result<()> {
        let id = open.challenge;
        if self.judging.contains_key(&id) {
            return Ok(());
        }
        match decide(&open, self.config.silent) {
            Next::Wait => Ok(()),
            Next::Reveal(step) => {
                let nonce = nonce()?;
                crash_point!("verifier.reveal.before_store");
                let revealed = self.store.challenge_reveal(id, step, &nonce.to_string()).await;
                is_news(revealed).map(drop).with_context(|| format!("reveal step {step} of {id}"))
            }
            Next::Rule(ruling) => write_down(&self.store, &open, &ruling).await,
            Next::Judge(case) => {
                let (store, seats) = (self.store.clone(), self.seats.clone());
                let judgement = self.judgements.spawn(async move {
                    if let Err(error) = try_case(&store, &seats, &open, case).await {
                        let error = format!("{error:#}");
                        tracing::warn!(challenge.id = %id, error, "could not judge a challenge; trying again");
                    }
                });
                self.judging.insert(id, judgement);
                Ok(())
            }
        }
    }
}

async fn try_case(
    store: &Store,
    seats: &Semaphore,
    open: &OpenChallenge,
    case: Box<Case>,
) -> anyhow::Result<()> {
    let ruling = {
        let _seat = seats.acquire().await.context("take a judge's seat")?;
        let opening = fetch(store, &case.opening).await?;
        let judged = spawn_blocking(move || case.rule(opening)).await;
        // What breaks the judge would break it again: it is our fault, and not the host's.
        judged.unwrap_or_else(|error| {
            tracing::error!(challenge.id = %open.challenge, %error, "a judge broke off");
            Ruling::Void("the judge broke off".into())
        })
    };
    crash_point!("verifier.judge.before_store");
    write_down(store, open, &ruling).await
}

/// The bytes of an opening, or why there are none that could be right.
async fn fetch(store: &Store, opening: &Opening) -> anyhow::Result<Result<Vec<u8>, Failure>> {
    let malformed = |message: String| Failure { code: Reason::EvidenceMalformed, message };
    match opening {
        Opening::Inline(bytes) => Ok(Ok(bytes.clone())),
        Opening::Blob { size, .. } if *size > OPENING_MAX as u64 => {
            Ok(Err(malformed(format!("an opening has {size} bytes, at most {OPENING_MAX}"))))
        }
        Opening::Blob { sha256, .. } => {
            let bytes = store.blob_get(&sha256.0).await.context("load an opening")?;
            Ok(bytes.ok_or_else(|| malformed(format!("the opening {sha256} was never stored"))))
        }
    }
}

async fn write_down(store: &Store, open: &OpenChallenge, ruling: &Ruling) -> anyhow::Result<()> {
    let (id, host) = (open.challenge, open.host);
    let verdict = serde_json::to_value(ruling).context("write a verdict as JSON")?;
    let written = store.challenge_decide(id, &verdict, &ruling.decision(open.refusals)).await;
    if !is_news(written).with_context(|| format!("write the verdict of {id} down"))? {
        return Ok(());
    }
    let (code, duration_ms) = (ruling.code(), store.now().await?.since(open.drawn_at).0);
    let (host, id) = (tracing::field::display(host), tracing::field::display(id));
    match ruling {
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
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).context("draw a nonce")?;
    Ok(Nonce(bytes))
}
