//! Kills every kind of process of a market, and cuts its hosts off, at random moments and at
//! every crash point, while customers' jobs stream through; then checks that nothing was lost,
//! doubled or left behind.
//!
//! It takes minutes and the whole machine, so it runs only when `NAVE_KILLS_SCHEDULES` says how
//! many schedules; `scripts/kill-harness` says so. `NAVE_KILLS_SEED` chooses another plan.

#[path = "../support/mod.rs"]
// The journeys use the rest.
#[allow(dead_code)]
mod support;

mod blows;
mod chores;
mod leftovers;
mod mopping;
mod plan;
mod stream;
mod watch;

use std::{
    collections::BTreeMap,
    env,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nave_crash_point::POINTS;
use nave_domain::MicroUsd;
use nave_sdk::client::Client;
use nave_store::{Store, embedded::Postgres};
use tokio::task::JoinHandle;

use self::{
    chores::Releases,
    leftovers::Machine,
    plan::{Chore, Kind, Rng, STRIKES_MIN, Schedule, Strike, plan},
    stream::{Asked, Customer, Deed, Place, ask, check, patiently},
    support::{Host, Market, succeed},
    watch::Watch,
};

/// Schedules between two looks at everything.
const BATCH: usize = 250;
/// Longest time until the next job is final, and until everything is quiet, after a batch.
const QUIET_MAX: Duration = Duration::from_secs(180);

#[test]
fn nothing_is_lost_doubled_or_left_whatever_is_killed() {
    let Ok(schedules) = env::var("NAVE_KILLS_SCHEDULES") else {
        return eprintln!("left out: it takes minutes; run scripts/kill-harness");
    };
    let schedules = schedules.parse().expect("a number of schedules");
    let seed = env::var("NAVE_KILLS_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    eprintln!("kills: seed {seed}, {schedules} schedules");
    let before = Machine::now();
    let releases = Releases::new();
    let Some(market) = open(&releases) else { return };
    let marks = leftovers::marks(&market);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (market, tally) =
        runtime.block_on(async { Run::new(market, releases).await.go(&plan(seed, schedules, POINTS)).await });
    market.down();
    drop(market);
    tally.tell(&format!("seed {seed}, {schedules} schedules"));
    Machine::now().assert_as(&before, &marks);
    tally.assert_complete();
}

fn open(releases: &Releases) -> Option<Market> {
    Market::docker(&[
        "--hosts",
        "3",
        "--cpu",
        "1.9",
        "--memory",
        "4GiB",
        "--disk",
        "4GiB",
        "--proof-effort",
        "500ms",
        "--enforce",
        "cpu,memory",
        "--fence",
        "8s",
        "--report",
        "500ms",
        "--epoch",
        "3s",
        "--release-key",
        releases.key(),
        "--cloud",
        "local",
        "--cloud-boot",
        "1s",
        "--cloud-patience",
        "2s",
        "--cloud-idle",
        "4s",
    ])
}

/// What was done and seen.
#[derive(Default)]
struct Tally {
    struck: BTreeMap<Kind, usize>,
    /// Blows for which there was nothing to strike, and why.
    missed: BTreeMap<(Kind, &'static str), usize>,
    hit: BTreeMap<&'static str, usize>,
    ends: BTreeMap<&'static str, usize>,
    attempts: usize,
    looks: u64,
    took: Duration,
}

impl Tally {
    fn tell(&self, what: &str) {
        let total: usize = self.struck.values().sum();
        eprintln!("kills: {what} in {} s", self.took.as_secs());
        eprintln!("kills: {total} blows {:?}, nothing to strike {:?}", self.struck, self.missed);
        eprintln!("kills: {} of {} crash points hit {:?}", self.hit.len(), POINTS.len(), self.hit);
        eprintln!(
            "kills: jobs {:?}, attempts {}, looks at all processes {}",
            self.ends, self.attempts, self.looks
        );
    }

    fn count(&mut self, kind: Kind, struck: Result<(), &'static str>) {
        let count = match struck {
            Ok(()) => self.struck.entry(kind).or_default(),
            Err(why) => self.missed.entry((kind, why)).or_default(),
        };
        *count += 1;
    }

    fn rare(&self) -> Vec<Kind> {
        let often = |kind: &Kind| self.struck.get(kind).is_some_and(|count| *count >= STRIKES_MIN);
        Kind::ALL.into_iter().filter(|kind| !often(kind)).collect()
    }

    fn unreached(&self) -> Vec<&'static str> {
        POINTS.iter().copied().filter(|point| !self.hit.contains_key(point)).collect()
    }

    /// A run that did not strike everything has shown nothing.
    fn assert_complete(&self) {
        assert_eq!(self.rare(), [], "struck fewer than {STRIKES_MIN} times");
        assert_eq!(self.unreached(), Vec::<&str>::new(), "never reached");
    }
}

/// What was struck, or why it was not.
type Blow = (Kind, Result<(), &'static str>);

struct Run {
    market: Arc<Market>,
    hosts: Arc<Vec<Host>>,
    customers: Vec<Customer>,
    store: Store,
    releases: Arc<Mutex<Releases>>,
    /// Blows and chores that have begun.
    under_way: Vec<JoinHandle<Option<Blow>>>,
    armed: Vec<&'static str>,
    open: Vec<Asked>,
    tally: Tally,
}

impl Run {
    async fn new(market: Market, releases: Releases) -> Self {
        let postgres = Postgres::find(&market.data().join("postgres")).expect("its Postgres");
        let store = Store::connect(&postgres.url()).await.expect("its database");
        let mut customers = Vec::new();
        for name in ["ada", "bob", "eve"] {
            customers.push(customer(&market, &store, name).await);
        }
        Self {
            hosts: Arc::new(market.hosts()),
            market: Arc::new(market),
            customers,
            store,
            releases: Arc::new(Mutex::new(releases)),
            under_way: Vec::new(),
            armed: Vec::new(),
            open: Vec::new(),
            tally: Tally::default(),
        }
    }

    async fn go(mut self, plan: &[Schedule]) -> (Market, Tally) {
        let began = Instant::now();
        let watch = Watch::begin();
        let operator = Operator::begin(self.market.clone());
        for (at, schedule) in plan.iter().enumerate() {
            self.carry_out(schedule).await;
            if (at + 1) % BATCH == 0 {
                self.settle().await;
                self.tally.took = began.elapsed();
                self.tally.tell(&format!("so far {} of {} schedules", at + 1, plan.len()));
            }
        }
        eprintln!("kills: {} schedules in {} s", plan.len(), began.elapsed().as_secs());
        self.mop_up().await;
        operator.end().await;
        let (twice, looks) = watch.end();
        assert!(twice.is_empty(), "jobs ran twice at once: {twice:?}");
        self.tally.looks = looks;
        self.tally.took = began.elapsed();
        let Self { market, tally, .. } = self;
        (Arc::into_inner(market).expect("nobody else strikes"), tally)
    }

    async fn carry_out(&mut self, schedule: &Schedule) {
        let began = Instant::now();
        schedule.points.iter().for_each(|point| self.arm(point));
        schedule.strikes.iter().for_each(|blow| self.begin_blow(*blow));
        let mut rng = Rng::new(schedule.seed);
        self.begin_chore(schedule.chore, rng.next());
        for _ in 0..schedule.jobs {
            let (deed, place) = (Deed::draw(&mut rng), Place::draw(&mut rng));
            self.ask(&mut rng, deed, place).await;
        }
        self.cancel_some().await;
        let rest = Duration::from_millis(plan::SCHEDULE_MS).saturating_sub(began.elapsed());
        tokio::time::sleep(rest).await;
        self.take_hits();
    }

    async fn ask(&mut self, rng: &mut Rng, deed: Deed, place: Place) -> Asked {
        let asked = ask(&self.customers, rng, deed, place).await;
        self.open.push(asked.clone());
        asked
    }

    fn begin_chore(&mut self, chore: Chore, which: u64) {
        let (market, hosts, releases) = (self.market.clone(), self.hosts.clone(), self.releases.clone());
        self.under_way.push(tokio::task::spawn_blocking(move || {
            // One at a time: versions have an order.
            let mut releases = releases.lock().expect("no panic");
            chores::carry_out(&market, &hosts, &mut releases, chore, which);
            None
        }));
    }

    fn begin_blow(&mut self, blow: Strike) {
        let (market, hosts) = (self.market.clone(), self.hosts.clone());
        self.under_way.push(tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(blow.at_ms));
            Some((blow.kind, blows::strike(&market, &hosts, blow)))
        }));
    }

    fn arm(&mut self, point: &'static str) {
        if !self.armed.contains(&point) {
            self.market.arm(point);
            self.armed.push(point);
        }
    }

    /// Points whose files are gone have killed a process.
    fn take_hits(&mut self) {
        let (armed, hit): (Vec<_>, Vec<_>) =
            self.armed.drain(..).partition(|point| self.market.is_armed(point));
        self.armed = armed;
        for point in hit {
            *self.tally.hit.entry(point).or_default() += 1;
        }
    }

    /// Cancels the jobs that wait for it, except the newest.
    async fn cancel_some(&self) {
        let waiting: Vec<&Asked> = self.open.iter().filter(|asked| asked.deed == Deed::Wait).collect();
        for asked in waiting.iter().rev().skip(1) {
            // A repeated cancellation changes nothing.
            drop(self.customers[asked.customer].client.cancel(asked.job).await);
        }
    }

    /// Waits for the blows and chores that have begun.
    async fn count_blows(&mut self) {
        for begun in std::mem::take(&mut self.under_way) {
            if let Some((kind, struck)) = begun.await.expect("no panic") {
                self.tally.count(kind, struck);
            }
        }
    }

    /// Waits until every job is final and checks everything there is.
    async fn settle(&mut self) {
        self.count_blows().await;
        for asked in std::mem::take(&mut self.open) {
            let began = Instant::now();
            let client = &self.customers[asked.customer].client;
            let job = loop {
                if asked.deed == Deed::Wait {
                    // It may be final already, and a repeated cancellation changes nothing.
                    drop(client.cancel(asked.job).await);
                }
                let job = patiently(async || client.job(asked.job).await).await;
                if job.state.is_final() {
                    break job;
                }
                assert!(began.elapsed() < QUIET_MAX, "lost: {asked:?} is {:?}: {job:?}", job.state);
                tokio::time::sleep(Duration::from_millis(200)).await;
            };
            self.tally.attempts += job.attempts.len();
            *self.tally.ends.entry(check(&self.customers, &asked).await).or_default() += 1;
        }
        let wrong = patiently(async || self.store.ledger_audit().await).await;
        assert_eq!(wrong, Vec::<String>::new(), "the books");
        for customer in &self.customers {
            let balance = patiently(async || customer.client.balance().await).await;
            assert_eq!(balance.held, MicroUsd(0), "nothing is held for nothing");
        }
        leftovers::assert_no_job_left(&self.hosts, QUIET_MAX).await;
        self.take_hits();
    }
}

/// Starts the market again whenever its supervisor was killed, which is nobody's part.
struct Operator {
    stop: Arc<AtomicBool>,
    task: Option<JoinHandle<()>>,
}

/// Also when the run has failed.
impl Drop for Operator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Operator {
    fn begin(market: Arc<Market>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let task = tokio::task::spawn_blocking(move || {
            while !stopping.load(Ordering::Relaxed) {
                if !market.supervisor_now().is_some_and(blows::is_running) {
                    // It may be killed again, or a host be refused just now.
                    drop(market.up_command().output());
                }
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        Self { stop, task: Some(task) }
    }

    async fn end(mut self) {
        let task = self.task.take().expect("ends once");
        drop(self);
        task.await.expect("no panic");
    }
}

async fn customer(market: &Market, store: &Store, name: &str) -> Customer {
    succeed(market.naved().args(["admin", "credit", name, "1000", "--key", "kills"]));
    let token = succeed(market.naved().args(["admin", "key", name]));
    let id = store.customer_ensure(name).await.expect("the customer");
    let url = market.up_json()["api"].as_str().expect("the API").to_owned();
    Customer { id, client: Client::new(&url, Some(token.trim())).expect("a client") }
}
