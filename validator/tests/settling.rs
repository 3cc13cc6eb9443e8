//! Whole epochs on a real Postgres: what comes of them, what their bundles show, and what is measured.

use std::{
    collections::BTreeMap,
    io::{BufReader, Read as _},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::Command,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use flate2::read::GzDecoder;
use nave_domain::{
    CustomerId, HostId, JobId, LeaseId, MicroUsd, Millis,
    epoch::{EpochState, WEIGHT_TOTAL},
    event::{Blame, ConfirmedBy, EventRuling},
    lease::Outcome,
    ledger::PostingKind,
    rate::Rate,
};
use nave_settlement::{
    Report, audit,
    evidence::{Blame as Blamed, Event},
};
use nave_store::{
    Placement, Store, StoreError, Submission,
    testing::{self, NewHost},
};
use nave_validator::{
    chain::{Chain, LocalChain},
    key::MarketKey,
    params::{self, Params},
    role::{Config, step},
    settle::settle,
};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde::{Serialize, de::DeserializeOwned};
use tokio::task::{block_in_place, spawn_blocking};

/// A micro-USD for a millisecond of a virtual CPU, so that money reads like a span.
const RATE: Rate =
    Rate { gpu_hour: MicroUsd::ZERO, vcpu_hour: MicroUsd(3_600_000), gib_hour: MicroUsd::ZERO };

const INVENTORY: &str = r#"{
    "milli_cpu": 8000, "memory": 34359738368, "disk": 107374182400, "devices": [], "cpu_model": "test",
    "os": "test", "kernel": "test", "runtime": {"kind": "simulated"}, "egress": ["public"], "agent": "test"
}"#;

fn key() -> MarketKey {
    let pair = Arc::new(Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a key"));
    let public = hex::encode(pair.public_key().as_ref());
    MarketKey::new(public, move |bytes| pair.sign(bytes).as_ref().try_into().expect("64 bytes"))
}

/// The same name in another enum.
fn renamed<T: DeserializeOwned>(name: &impl Serialize) -> T {
    serde_json::from_value(serde_json::to_value(name).expect("a name")).expect("the same name")
}

/// Every step closes an epoch.
fn config(dir: &Path, first_params: Params) -> Config {
    Config {
        epoch: Millis::ZERO,
        sink: "sink".into(),
        chain: Chain::Local(LocalChain::new(&dir.join("chain"))),
        key: key(),
        first_params,
        evidence: Some(dir.join("evidence")),
    }
}

fn first_params() -> Params {
    Params { vcpu_hour: RATE.vcpu_hour.0, local_emission: 1_000_000, ..params::local() }
}

struct Market {
    url: String,
    store: Store,
    customer: CustomerId,
    dir: tempfile::TempDir,
    config: Config,
}

impl Market {
    async fn open() -> Self {
        Self::with(first_params()).await
    }

    async fn with(first_params: Params) -> Self {
        let (url, _) = testing::database().await;
        let store = Store::connect(&url).await.expect("connect");
        store.migrate().await.expect("migrate");
        Self::of(url, store, first_params).await
    }

    async fn of(url: String, store: Store, first_params: Params) -> Self {
        let customer = store.customer_ensure("ada").await.expect("a customer");
        store.credit(customer, "first", MicroUsd(10_000_000)).await.expect("credit");
        let dir = tempfile::tempdir().expect("a directory");
        let config = config(dir.path(), first_params);
        store.epoch_open("local").await.expect("an epoch");
        Self { url, store, customer, dir, config }
    }

    /// Closes the open epoch and brings it to its end; returns which it was.
    async fn epoch(&self) -> i64 {
        let epoch = self.store.epoch_open("local").await.expect("an epoch").epoch;
        step(&self.config, &self.store).await.expect("step");
        epoch
    }

    async fn host(&self, hotkey: &str) -> HostId {
        let number = hotkey.bytes().fold(0_u128, |sum, byte| sum * 256 + u128::from(byte));
        let host: HostId = format!("host_{number:032x}").parse().expect("an id");
        self.store.host_enrol(&NewHost { host, name: hotkey, hotkey, rate: RATE }).await.expect("enrol");
        self.store
            .host_hear(host, 1, 1, 0, &serde_json::from_str(INVENTORY).expect("an inventory"))
            .await
            .expect("hear");
        host
    }

    /// A lease that runs for a moment.
    async fn running(&self, host: HostId, key: &str) -> (JobId, LeaseId) {
        let request = serde_json::from_str(r#"{"argv":["true"]}"#).expect("a request");
        let submission = Submission { customer: self.customer, key, hash: [0; 32], request: &request };
        let job = self.store.job_submit(&submission).await.expect("submit").job;
        let placement = Placement {
            job,
            host,
            generation: self.store.host_generation(host).await.expect("generation"),
            size: request.resources.size(),
            disk: request.resources.disk,
            devices: Vec::new(),
            share: None,
            rate: RATE,
            run_max: Millis(60_000),
            capped_by_spend: false,
            grounds: nave_store::Grounds::default(),
            gang: None,
        };
        let lease = self.store.job_place(&placement).await.expect("place");
        self.store.lease_started(host, lease).await.expect("started");
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.store.leases_heard(host, &[lease]).await.expect("heard");
        (job, lease)
    }

    async fn leased(&self, host: HostId, key: &str) -> JobId {
        let (job, lease) = self.running(host, key).await;
        let done = Some(Outcome::Exited { code: 0 });
        self.store.lease_finished(host, lease, done, None).await.expect("finished");
        job
    }

    /// Decides what is undecided, and signs it.
    async fn decide(&self, confirmed_by: ConfirmedBy) {
        for event in self.store.events_pending(None, 100).await.expect("pending") {
            let row = &event.row;
            let mut body = Event {
                at_ms: row.at.0,
                blame: Blamed::Host,
                confirmed_by: Some(renamed(&confirmed_by)),
                detail: "because".into(),
                event: row.event.to_string(),
                from_ms: row.lost.from.0,
                host: row.host.to_string(),
                hotkey: row.hotkey.clone(),
                kind: renamed(&row.kind),
                lease: row.lease.map(|lease| lease.to_string()),
                signature: String::new(),
                until_ms: row.lost.until.0,
            };
            body.sign(|bytes| self.config.key.sign(bytes));
            let signature = hex::decode(&body.signature).expect("hex").try_into().expect("64 bytes");
            let ruling = EventRuling {
                blame: Blame::Host,
                confirmed_by: Some(confirmed_by),
                lost: row.lost,
                why: "because",
            };
            self.store.event_decide(row.event, &ruling, "because", &signature).await.expect("decide");
        }
    }

    async fn bundle(&self, epoch: i64) -> Vec<u8> {
        let row = self.store.bundle_open(epoch).await.expect("revealed");
        let mut packed = Vec::new();
        for piece in 0..row.pieces {
            packed.extend(self.store.bundle_piece(epoch, piece).await.expect("a piece").expect("a piece"));
        }
        assert_eq!(packed.len(), usize::try_from(row.bytes).expect("a size"));
        let file = self.dir.path().join(format!("evidence/epoch-{epoch}.jsonl.gz"));
        assert_eq!(std::fs::read(file).expect("its file"), packed);
        let mut lines = Vec::new();
        GzDecoder::new(packed.as_slice()).read_to_end(&mut lines).expect("unpack");
        lines
    }

    /// Computes an epoch again from its bundle.
    async fn audit(&self, epoch: i64, before: Option<&Report>) -> Report {
        let report =
            audit(BufReader::new(self.bundle(epoch).await.as_slice()), before).expect("nothing differs");
        let row = self.store.epoch_get(epoch).await.expect("the epoch");
        let settled = row.settled.expect("settled");
        assert_eq!((&report.head, report.lines), (&settled.head, settled.lines));
        let weights: BTreeMap<String, u16> = report.result.weights.iter().cloned().collect();
        assert_eq!(Some(&weights), row.weights.as_ref());
        assert_eq!(weights.values().map(|weight| u32::from(*weight)).sum::<u32>(), u32::from(WEIGHT_TOTAL));
        report
    }

    async fn audit_books(&self) {
        assert_eq!(self.store.ledger_audit().await.expect("audit"), Vec::<String>::new());
    }
}

#[tokio::test]
async fn epochs_follow_one_another_and_anyone_computes_them_again() {
    let market = Market::open().await;
    let host = market.host("alpha").await;
    market.leased(host, "one").await;
    let first = market.epoch().await;
    market.leased(host, "two").await;
    let second = market.epoch().await;
    let third = market.epoch().await;
    let report = market.audit(first, None).await;
    let used = report.pays["alpha"].used;
    assert!(used > 0 && report.pays["alpha"].weight > 0, "{report:?}");
    let next = market.audit(second, Some(&report)).await;
    assert!(next.pays["alpha"].realised > 0, "{next:?}");
    let last = market.audit(third, Some(&next)).await;
    assert_eq!(last.pays["alpha"].used, 0, "nothing is settled twice");
    market.audit_books().await;
}

#[tokio::test]
async fn a_host_that_was_lost_costs_its_miner_and_not_the_customer() {
    let market = Market::open().await;
    let hosts = [market.host("alpha").await, market.host("beta").await];
    for (host, key) in hosts.into_iter().zip(["one", "two"]) {
        market.leased(host, key).await;
    }
    let (_, lost) = market.running(hosts[0], "three").await;
    market.store.lease_lost(hosts[0], lost).await.expect("lost");
    let waiting = market.epoch().await;
    let before = market.audit(waiting, None).await;
    assert_eq!(before.pays["alpha"].penalty, 0, "nothing is decided");
    market.decide(ConfirmedBy::Absence).await;
    let decided = market.epoch().await;
    let report = market.audit(decided, Some(&before)).await;
    let (alpha, beta) = (&report.pays["alpha"], &report.pays["beta"]);
    assert!(alpha.penalty > 0 && alpha.breaches == 1, "{alpha:?}");
    assert_eq!((alpha.used, beta.penalty), (0, 0), "a lease that was refunded is worth nothing");
    assert!(alpha.carry < beta.carry, "{alpha:?} {beta:?}");
    market.audit_books().await;
}

#[tokio::test]
async fn a_breach_gives_back_what_was_not_kept_and_never_more_than_was_paid() {
    let market = Market::open().await;
    let host = market.host("alpha").await;
    let (job, lease) = market.running(host, "one").await;
    market.store.host_depart(Some("alpha"), host, nave_store::Departure::Leave).await.expect("left");
    let done = Some(Outcome::Exited { code: 0 });
    market.store.lease_finished(host, lease, done, None).await.expect("finished");
    let pending = market.store.events_pending(None, 10).await.expect("pending");
    assert!(!pending.is_empty(), "an owner who takes a host out early breaks a promise");
    market.decide(ConfirmedBy::Report).await;
    let epoch = market.epoch().await;
    let report = market.audit(epoch, None).await;
    let charged = market.store.job_get(market.customer, job).await.expect("the job").charged;
    let lines = market.store.ledger_of_job(job).await.expect("lines");
    let credits = lines.iter().filter(|line| line.kind == PostingKind::CreditForBreach);
    let credits: Vec<_> = credits.map(|line| line.amount).collect();
    assert_eq!(credits, [MicroUsd(report.result.credits)]);
    assert!(credits[0] > MicroUsd::ZERO && credits[0] < charged, "{credits:?} of {charged}");
    let weights = market.store.epoch_get(epoch).await.expect("the epoch").weights.expect("weights");
    assert_eq!(weights, BTreeMap::from([("sink".to_owned(), WEIGHT_TOTAL)]), "no verified host, no weight");
    market.audit_books().await;
}

#[tokio::test]
async fn a_bundle_is_not_shown_before_its_weights_are() {
    let mut market = Market::open().await;
    market.config.chain = Chain::Local(LocalChain::new(std::path::Path::new("/proc/none")));
    let stuck = step(&market.config, &market.store).await;
    assert!(stuck.is_err(), "there is no such directory");
    assert_eq!(market.store.epoch_get(1).await.expect("the epoch").state, EpochState::Settled);
    let early = market.store.bundle_open(1).await;
    assert!(matches!(early, Err(StoreError::NotFound("revealed bundle"))), "{early:?}");
}

#[tokio::test]
async fn whoever_is_killed_while_settling_leaves_nothing_and_the_next_one_reaches_the_same() {
    let market = Market::open().await;
    let host = market.host("alpha").await;
    market.leased(host, "one").await;
    let first = serde_json::to_value(&market.config.first_params).expect("json");
    market.store.params_first(&first).await.expect("first");
    market.store.epoch_close(1, "local").await.expect("close");
    // What is sealed is signed with the hash of all that stands before it.
    let sealed: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let (seen, right) = (sealed.clone(), market.config.key.clone());
    let key = MarketKey::new(right.public().to_owned(), move |bytes| {
        let mut seen = seen.lock().expect("nobody panics here");
        seen.push(bytes.to_owned());
        let count = seen.len();
        drop(seen);
        assert!(count > 1, "killed");
        right.sign(bytes)
    });
    let (store, killed) = (market.store.clone(), key.clone());
    let ended = tokio::spawn(async move { settle(&store, 1, "sink", &killed).await }).await;
    assert!(ended.is_err(), "it was killed");
    market.leased(host, "two").await;
    settle(&market.store, 1, "sink", &key).await.expect("settled");
    let sealed = sealed.lock().expect("nobody panics here").clone();
    assert_eq!(sealed.len(), 2);
    assert_eq!(sealed[0], sealed[1]);
    assert!(settle(&market.store, 1, "sink", &key).await.is_err(), "it is settled");
    market.audit_books().await;
}

#[tokio::test]
async fn an_epoch_that_had_closed_before_epochs_were_settled_is_settled_and_the_next_one_follows_it() {
    let market = Market::of(String::new(), testing::market_upgraded().await, first_params()).await;
    assert_eq!(market.epoch().await, 3);
    let before = market.audit(2, None).await;
    assert!(before.pays["alpha"].used > 0 && before.pays["alpha"].weight > 0, "{before:?}");
    let report = market.audit(3, Some(&before)).await;
    assert!(report.pays["alpha"].used > before.pays["alpha"].used, "three leases and not one: {report:?}");
    assert_eq!(market.store.epoch_get(1).await.expect("the epoch").settled, None, "it was done");
}

#[tokio::test(flavor = "multi_thread")]
async fn chores_are_done_while_an_epoch_is_settled() {
    let market = Market::open().await;
    let first = market.epoch().await;
    let ((began, begins), (release, released)) = (mpsc::channel(), mpsc::channel::<()>());
    let (right, released) = (market.config.key.clone(), Mutex::new(released));
    let key = MarketKey::new(right.public().to_owned(), move |bytes| {
        began.send(()).ok();
        block_in_place(|| released.lock().expect("nobody panics here").recv()).ok();
        right.sign(bytes)
    });
    let config = Config { key, ..market.config.clone() };
    let role = tokio::spawn(nave_validator::run(config, market.store.clone(), std::future::pending()));
    spawn_blocking(move || begins.recv()).await.expect("it ends").expect("an epoch is about to be sealed");
    market.store.evidence_days_set(0).await.expect("nothing is kept");
    let gone =
        async || matches!(market.store.bundle_open(first).await, Err(StoreError::NotFound("kept bundle")));
    for _ in 0..600 {
        if gone().await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let was_swept = gone().await;
    drop(release);
    role.abort();
    assert!(was_swept, "old bundles are forgotten all the same");
}

/// Every line of an epoch's way at which a validator may be killed.
const STEPS: [&str; 8] = [
    "store.epoch_close.before_commit",
    "store.epoch_close.after_commit",
    "validator.settle.before_leases",
    "validator.settle.before_advance",
    "store.epoch_settle.before_commit",
    "store.epoch_settle.after_commit",
    "validator.submit.before_advance",
    "validator.confirm.before_advance",
];
const URL: &str = "NAVE_TEST_DATABASE";
const DIR: &str = "NAVE_TEST_DIR";

/// What the process does that [`a_validator_that_is_killed_at_any_step_of_an_epoch_leaves_one_settlement`] kills.
#[tokio::test]
async fn a_step_of_a_validator_in_a_process_of_its_own() {
    let (Ok(url), Ok(dir)) = (std::env::var(URL), std::env::var(DIR)) else { return };
    let store = Store::connect(&url).await.expect("connect");
    step(&config(Path::new(&dir), first_params()), &store).await.expect("step");
}

#[tokio::test]
async fn a_validator_that_is_killed_at_any_step_of_an_epoch_leaves_one_settlement() {
    let market = Market::open().await;
    let host = market.host("alpha").await;
    let armed = tempfile::tempdir().expect("a directory");
    let validate = || {
        let mut process = Command::new(std::env::current_exe().expect("this program"));
        process.args(["--exact", "a_step_of_a_validator_in_a_process_of_its_own"]);
        process
            .env(URL, &market.url)
            .env(DIR, market.dir.path())
            .env(nave_crash_point::VARIABLE, armed.path());
        process.output().expect("run").status
    };
    for point in STEPS {
        market.leased(host, point).await;
        std::fs::write(armed.path().join(point), "").expect("arm");
        assert_eq!(validate().signal(), Some(9), "{point}");
        assert!(validate().success(), "after {point}");
    }
    let (mut before, mut leases) = (None, 0);
    let open = market.store.epoch_open("local").await.expect("an epoch").epoch;
    for epoch in 1..open {
        assert_eq!(market.store.epoch_get(epoch).await.expect("the epoch").state, EpochState::Confirmed);
        before = Some(market.audit(epoch, before.as_ref()).await);
        leases += market.store.earnings_of_leases("alpha", epoch, None, 100).await.expect("lines").len();
    }
    assert_eq!(leases, STEPS.len(), "each is settled once");
    market.audit_books().await;
}

/// How long an epoch takes in Postgres: `cargo test --release -p nave-validator --test settling -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "takes minutes"]
async fn an_epoch_of_a_million_leases_is_measured() {
    let leases = std::env::var("NAVE_LEASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let market = Market::with(Params { local_emission: 100_000_000_000, ..Params::default() }).await;
    let began = std::time::Instant::now();
    market.store.market_fill(256, 10_000, leases).await.expect("fill");
    eprintln!("filled with {leases} leases in {:?}", began.elapsed());
    let first = serde_json::to_value(&market.config.first_params).expect("json");
    market.store.params_first(&first).await.expect("first");
    let began = std::time::Instant::now();
    market.store.epoch_close(1, "local").await.expect("close");
    eprintln!("closed in {:?}", began.elapsed());
    let began = std::time::Instant::now();
    settle(&market.store, 1, "sink", &market.config.key).await.expect("settled");
    eprintln!("settled in {:?}", began.elapsed());
    let settled = market.store.epoch_get(1).await.expect("the epoch").settled.expect("settled");
    eprintln!("{} lines, {} bytes packed", settled.lines, settled.bundle_bytes);
}
