//! The scheduling role on a real Postgres, with the gateway's clock beside it.

use std::{sync::Arc, time::Duration};

use nave_domain::{
    CustomerId, HostId, JobId, MicroUsd, MilliCpu, Millis,
    host::{HostState, Inventory, Term},
    job::{JobRequest, JobState, TermWish},
    lease::{LeaseState, Outcome, StopReason},
    rate::Rate,
};
use nave_scheduler::{planner::plan, role::carry_out, watch::Patience};
use nave_store::{
    Asking, AttemptRow, HostPatch, QuoteAnswer, QuoteFault, Store, StoreError, Submission,
    testing::{self, NewHost},
};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};
use uuid::Uuid;

use crate::supply;

const PATIENCE: Patience =
    Patience { suspect: Millis(400), lost: Millis(900), finish: Millis(60_000), notice: Millis(300) };

/// Roles that run until the end of a test.
struct Market {
    store: Store,
    customer: CustomerId,
    stop: Arc<Notify>,
    tasks: Vec<JoinHandle<()>>,
}

impl Market {
    async fn open(schedulers: usize) -> Self {
        let store = testing::store().await;
        let customer = store.customer_ensure("ada").await.expect("a customer");
        store.credit(customer, "first", MicroUsd(100_000_000)).await.expect("credit");
        let mut market = Self { store, customer, stop: Arc::default(), tasks: Vec::new() };
        for _ in 0..schedulers {
            let (store, stop) = (market.store.clone(), market.stop.clone());
            market.tasks.push(tokio::spawn(async move {
                let shutdown = async { stop.notified().await };
                nave_scheduler::run(PATIENCE, store, shutdown).await.expect("schedule");
            }));
        }
        let store = market.store.clone();
        market.tasks.push(tokio::spawn(beat(store)));
        market
    }

    /// Another price for a host, and thereby another generation.
    async fn reprice(&self, host: HostId) {
        let rate = self.store.snapshot().await.expect("snapshot").hosts[&host].rate;
        let rate = Rate { vcpu_hour: MicroUsd(rate.vcpu_hour.0 + 1), ..rate };
        let patch = HostPatch { rate: Some(rate), ..HostPatch::default() };
        self.store.host_patch("miner", host, patch).await.expect("another price");
    }

    /// A host that reports as often as it should.
    async fn host(&mut self, name: &str) -> HostId {
        let host = self.silent_host(name).await;
        self.tasks.push(tokio::spawn(report(self.store.clone(), host)));
        host
    }

    /// A host that reported once.
    async fn silent_host(&self, name: &str) -> HostId {
        let host = HostId(Uuid::now_v7());
        let new = NewHost { host, name, hotkey: "miner", rate: supply::RATE };
        self.store.host_enrol(&new).await.expect("enrol");
        self.store.host_hear(host, 1, 1, 0, &inventory()).await.expect("hear");
        host
    }

    async fn submit(&self) -> JobId {
        let request: JobRequest = supply::job(0).request;
        let key = Uuid::now_v7().to_string();
        let submission = Submission { customer: self.customer, key: &key, hash: [0; 32], request: &request };
        self.store.job_submit(&submission).await.expect("submit").job
    }

    async fn attempts(&self, job: JobId) -> Vec<AttemptRow> {
        self.store.attempt_list(&[job]).await.expect("attempts")
    }

    /// Waits until the job has so many attempts and shows the last one.
    async fn attempt(&self, job: JobId, number: usize) -> AttemptRow {
        let found = async {
            loop {
                match self.attempts(job).await {
                    attempts if attempts.len() >= number => return attempts[number - 1].clone(),
                    _ => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        timeout(Duration::from_secs(20), found).await.expect("placed in time")
    }

    async fn close(self) {
        assert_eq!(self.store.ledger_audit().await.expect("audit"), Vec::<String>::new());
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn inventory() -> Inventory {
    supply::host().inventory
}

/// What a gateway does for the control clock.
async fn beat(store: Store) {
    loop {
        store.clock_beat().await.expect("beat");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn report(store: Store, host: HostId) {
    for sequence in 2.. {
        store.host_hear(host, 1, sequence, 0, &inventory()).await.expect("hear");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submitted_job_is_placed() {
    let mut market = Market::open(1).await;
    let host = market.host("alpha").await;
    let job = market.submit().await;
    let attempt = market.attempt(job, 1).await;
    assert_eq!((attempt.host, attempt.state), (host, LeaseState::Placed));
    let row = market.store.job_get(market.customer, job).await.expect("the job");
    assert_eq!(row.state, JobState::Placed);
    market.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_without_a_host_says_what_it_waits_for_and_goes_when_one_comes() {
    let mut market = Market::open(1).await;
    let job = market.submit().await;
    let told = async {
        loop {
            let row = market.store.job_get(market.customer, job).await.expect("the job");
            match row.reason {
                Some((code, _)) => return code,
                None => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    assert_eq!(timeout(Duration::from_secs(20), told).await.expect("told in time"), "no_hosts");
    let host = market.host("alpha").await;
    assert_eq!(market.attempt(job, 1).await.host, host);
    market.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_schedulers_at_once_place_every_job_once() {
    let mut market = Market::open(2).await;
    market.host("alpha").await;
    market.host("beta").await;
    let mut jobs = Vec::new();
    for _ in 0..12 {
        jobs.push(market.submit().await);
    }
    for job in &jobs {
        market.attempt(*job, 1).await;
    }
    sleep(Duration::from_millis(600)).await;
    for job in &jobs {
        assert_eq!(market.attempts(*job).await.len(), 1);
    }
    let snapshot = market.store.snapshot().await.expect("snapshot");
    assert!(snapshot.hosts.values().all(|host| host.milli_cpu_used <= host.inventory.milli_cpu));
    market.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_falls_silent_is_suspect_then_lost_and_its_job_runs_elsewhere_for_free() {
    let mut market = Market::open(1).await;
    let silent = market.silent_host("silent").await;
    let job = market.submit().await;
    let first = market.attempt(job, 1).await;
    assert_eq!(first.host, silent);
    market.store.lease_started(silent, first.lease).await.expect("started");
    market.store.leases_heard(silent, &[first.lease]).await.expect("heard");
    let other = market.host("other").await;

    let second = market.attempt(job, 2).await;
    assert_eq!(second.host, other);
    let attempts = market.attempts(job).await;
    assert_eq!(attempts[0].outcome, Some(Outcome::HostLost));
    assert_eq!(attempts[0].charged, MicroUsd::ZERO);
    let state = market.store.host_spec(silent).await.expect("spec").state;
    assert_eq!(state, HostState::Suspect);
    market.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_no_gateway_listens_no_host_is_lost() {
    let mut market = Market::open(1).await;
    let host = market.host("alpha").await;
    let job = market.submit().await;
    let lease = market.attempt(job, 1).await.lease;
    market.store.lease_started(host, lease).await.expect("started");
    for what in ["the host's reports", "the clock"] {
        let task = market.tasks.pop().expect(what);
        task.abort();
        drop(task.await);
    }
    let up = market.store.clock_up().await.expect("up");
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(market.store.clock_up().await.expect("up"), up);
    let attempts = market.attempts(job).await;
    assert_eq!((attempts.len(), attempts[0].state), (1, LeaseState::Running));
    market.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_plan_for_a_host_that_moved_on_is_dropped() {
    let mut market = Market::open(0).await;
    let host = market.host("alpha").await;
    for _ in 0..4 {
        market.submit().await;
    }
    let mut plan = plan(&market.store.snapshot().await.expect("snapshot"));
    assert_eq!(plan.placements.len(), 4);
    market.store.job_place(&plan.placements.remove(0)).await.expect("place");
    market.reprice(host).await;
    carry_out(&market.store, &plan).await.expect("carry out");
    for placement in &plan.placements {
        assert_eq!(market.attempts(placement.job).await.len(), 0, "placed at a price that has changed");
    }
    market.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quotes_of_a_host_that_moved_on_are_answered_at_the_next_look() {
    let mut market = Market::open(0).await;
    let host = market.host("alpha").await;
    for has_job in [true, false] {
        let request = supply::job(0).request;
        let mut quotes = Vec::new();
        for number in 0..2 {
            let key = &format!("{has_job} {number}");
            let asking = Asking {
                customer: market.customer,
                key,
                hash: [0; 32],
                request: &request,
                hold: Some(Millis(60_000)),
            };
            quotes.push(market.store.quote_ask(&asking).await.expect("asked"));
        }
        if has_job {
            market.submit().await;
        }
        let stale = plan(&market.store.snapshot().await.expect("snapshot"));
        assert_eq!((stale.placements.len(), stale.quotes.len()), (usize::from(has_job), 2));
        // The generation that what comes second counts on.
        market.reprice(host).await;
        carry_out(&market.store, &stale).await.expect("carry out");
        let is_answered = async |quote| {
            let row = market.store.quote_get(market.customer, quote).await.expect("the quote");
            row.answer.is_some()
        };
        for quote in &quotes {
            assert!(!is_answered(*quote).await, "held as the host was before");
        }
        let fresh = plan(&market.store.snapshot().await.expect("snapshot"));
        carry_out(&market.store, &fresh).await.expect("carry out");
        for quote in &quotes {
            assert!(is_answered(*quote).await);
        }
    }
    market.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_a_quote_is_answered_and_a_job_takes_its_place() {
    let mut market = Market::open(2).await;
    let host = market.host("alpha").await;
    let request = supply::job(0).request;
    let (customer, hold) = (market.customer, Some(Millis(60_000)));
    let asking = Asking { customer, key: "quote", hash: [0; 32], request: &request, hold };
    let quote = market.store.quote_ask(&asking).await.expect("asked");
    let answered = async {
        loop {
            let row = market.store.quote_get(customer, quote).await.expect("the quote");
            match row.answer {
                Some(answer) => return answer,
                None => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let answer = timeout(Duration::from_secs(20), answered).await.expect("answered in time");
    let QuoteAnswer::Place(place) = answer else { panic!("a place: {answer:?}") };
    assert_eq!((place.host, place.rate), (host, supply::RATE));
    let on_quote = JobRequest { quote: Some(quote), ..request };
    let submission = Submission { customer, key: "job", hash: [0; 32], request: &on_quote };
    let submitted = async {
        loop {
            match market.store.job_submit(&submission).await {
                // A busy machine lets the host seem silent for a moment; the quote is still there then.
                Err(StoreError::Quote(QuoteFault::Void)) => {
                    let state = market.store.host_spec(host).await.expect("spec").state;
                    assert!([HostState::Suspect, HostState::Ready].contains(&state), "{state:?}");
                    sleep(Duration::from_millis(20)).await;
                }
                submitted => return submitted.expect("submit").job,
            }
        }
    };
    let job = timeout(Duration::from_secs(20), submitted).await.expect("in time");
    assert_eq!(market.attempts(job).await.len(), 1, "it need not wait for anybody");
    market.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gang_begins_once_all_of_it_is_queued() {
    let mut market = Market::open(1).await;
    market.host("alpha").await;
    let member = JobRequest { group: Some("g".into()), gang: Some(2), ..supply::job(0).request };
    let submit = async |key: &str| {
        let submission = Submission { customer: market.customer, key, hash: [0; 32], request: &member };
        market.store.job_submit(&submission).await.expect("submit").job
    };
    let first = submit("first").await;
    let told = async {
        loop {
            let row = market.store.job_get(market.customer, first).await.expect("the job");
            match row.reason {
                Some((code, _)) if code == "gang_incomplete" => return,
                Some(_) | None => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(Duration::from_secs(20), told).await.expect("told in time");
    let second = submit("second").await;
    for job in [first, second] {
        market.attempt(job, 1).await;
    }
    market.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spot_job_yields_once_its_notice_is_over_and_waits_for_another_place() {
    let mut market = Market::open(1).await;
    let host = market.host("alpha").await;
    let patch = HostPatch { term: Some(Term::Spot), ..HostPatch::default() };
    market.store.host_patch("miner", host, patch).await.expect("spot");
    let mut wide = supply::job(0).request;
    wide.resources.milli_cpu = MilliCpu(7_000);
    let submit = async |key: &str, request: &JobRequest| {
        let submission = Submission { customer: market.customer, key, hash: [0; 32], request };
        market.store.job_submit(&submission).await.expect("submit").job
    };
    let spot = submit("spot", &JobRequest { term: TermWish::Spot, ..wide.clone() }).await;
    let lease = market.attempt(spot, 1).await.lease;
    market.store.lease_started(host, lease).await.expect("started");
    let other = submit("other", &wide).await;
    let told = async {
        loop {
            match market
                .store
                .host_spec(host)
                .await
                .expect("spec")
                .orders
                .get(&lease)
                .and_then(|order| order.stop)
            {
                Some(reason) => return reason,
                None => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let reason = timeout(Duration::from_secs(20), told).await.expect("told in time");
    assert_eq!(reason, StopReason::Preempted);
    market.store.lease_finished(host, lease, None, None).await.expect("finished");
    assert_eq!(market.attempt(other, 1).await.host, host);
    assert_eq!(market.attempts(spot).await[0].outcome, Some(Outcome::Preempted));
    let row = market.store.job_get(market.customer, spot).await.expect("the job");
    assert_eq!(row.state, JobState::Queued);
    market.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_ends_when_it_is_told_to() {
    let market = Market::open(1).await;
    sleep(Duration::from_millis(200)).await;
    market.stop.notify_waiters();
    let mut tasks = market.tasks;
    timeout(Duration::from_secs(5), tasks.remove(0)).await.expect("in time").expect("cleanly");
    for task in tasks {
        task.abort();
    }
}
