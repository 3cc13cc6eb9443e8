//! Everything at once on few customers and hosts: nothing deadlocks, and the books balance.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nave_domain::{
    CustomerId, HostId, JobId, LeaseId, MicroUsd, Millis,
    job::JobRequest,
    lease::{Outcome, StopReason},
};
use nave_store::{OpenLease, Placement, Store, StoreError, Submission};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::market::{EXITED, inventory, open, request};

const LENGTH: Duration = Duration::from_secs(2);

/// One of many who act at random, repeatably.
struct Actor {
    store: Store,
    customers: Arc<[CustomerId]>,
    seed: u64,
    done: Arc<AtomicU64>,
}

/// What concurrency explains; anything else, a deadlock above all, is a fault.
fn harmless<T>(what: &str, result: Result<T, StoreError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(StoreError::Stale(_) | StoreError::BalanceTooLow | StoreError::NotFound("lease")) => None,
        Err(error) => panic!("{what}: {error}: {error:?}"),
    }
}

impl Actor {
    fn draw(&mut self, below: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.seed >> 33).expect("31 bits") % below
    }

    fn customer(&mut self) -> CustomerId {
        let drawn = self.draw(self.customers.len());
        self.customers[drawn]
    }

    async fn act_until(mut self, end: Instant) {
        while Instant::now() < end {
            match self.draw(8) {
                0 | 1 => self.submit().await,
                2 | 3 => self.schedule().await,
                4 | 5 => self.report().await,
                6 => self.cancel().await,
                _ => self.keep_books().await,
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn submit(&mut self) {
        let customer = self.customer();
        let request = JobRequest {
            max_spend: MicroUsd(200_000),
            retries: u8::try_from(self.draw(3)).expect("small"),
            group: [None, Some("one"), Some("two")][self.draw(3)].map(str::to_owned),
            ..request()
        };
        let key = Uuid::now_v7().to_string();
        let submission = Submission { customer, key: &key, hash: [0; 32], request: &request };
        harmless("submit", self.store.job_submit(&submission).await);
    }

    async fn schedule(&mut self) {
        let snapshot = harmless("snapshot", self.store.snapshot().await).expect("a snapshot");
        let hosts: Vec<HostId> = snapshot.hosts.keys().copied().collect();
        let Some(job) = snapshot.jobs.get(self.draw(snapshot.jobs.len().max(1))) else { return };
        let host = hosts[self.draw(hosts.len())];
        let placement = Placement {
            job: job.job,
            host,
            generation: snapshot.hosts[&host].generation,
            size: job.request.resources.size(),
            disk: job.request.resources.disk,
            devices: Vec::new(),
            share: None,
            rate: snapshot.hosts[&host].rate,
            run_max: Millis(60_000),
            capped_by_spend: false,
            grounds: nave_store::Grounds::default(),
            gang: None,
        };
        harmless("place", self.store.job_place(&placement).await);
    }

    async fn report(&mut self) {
        let open = harmless("open leases", self.store.leases_open().await).expect("a list");
        let Some(OpenLease { host, .. }) = open.get(self.draw(open.len().max(1))) else { return };
        let host = *host;
        let sequence = self.seed >> 1;
        harmless("hear", self.store.host_hear(host, self.seed, sequence, 0, &inventory()).await);
        let mut leases: Vec<LeaseId> =
            open.iter().filter(|lease| lease.host == host).map(|lease| lease.lease).collect();
        if self.draw(2) == 0 {
            leases.reverse();
        }
        harmless("heard", self.store.leases_heard(host, &leases).await);
        for lease in leases {
            self.report_one(host, lease).await;
        }
    }

    async fn report_one(&mut self, host: HostId, lease: LeaseId) {
        let store = self.store.clone();
        match self.draw(10) {
            0..=3 => drop(harmless("started", store.lease_started(host, lease).await)),
            4 => drop(harmless("exited", store.lease_exited(host, lease).await)),
            5 => drop(harmless("finished", store.lease_finished(host, lease, Some(EXITED), None).await)),
            6 => {
                let failed = Some(Outcome::Exited { code: 1 });
                harmless("failed", store.lease_finished(host, lease, failed, None).await);
            }
            7 => drop(harmless("lost", store.lease_lost(host, lease).await)),
            8 => drop(harmless("stop", store.lease_stop(host, lease, StopReason::RunTimeout).await)),
            _ => drop(harmless("log", store.log_append(host, lease, "stdout", 0, b"text", 100).await)),
        }
    }

    async fn cancel(&mut self) {
        let customer = self.customer();
        let jobs = harmless("list", self.store.job_list(customer, None, None, 20).await).expect("a list");
        if let Some(job) = jobs.get(self.draw(20)) {
            harmless("cancel", self.store.job_cancel(customer, job.job).await);
        }
    }

    async fn keep_books(&mut self) {
        for due in harmless("due", self.store.charges_due().await).expect("a list") {
            harmless("charge", self.store.lease_charge(due).await);
        }
        if let Some(open) = harmless("epoch", self.store.epoch_open("local").await) {
            harmless("close", self.store.epoch_close(open.epoch, "local").await);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn everything_at_once_neither_deadlocks_nor_loses_money() {
    open(async |market| {
        let customers: Arc<[CustomerId]> =
            [market.customer("ada").await, market.customer("bob").await].into();
        for name in ["alpha", "beta", "gamma"] {
            market.host(name).await;
        }
        let (done, end) = (Arc::new(AtomicU64::new(0)), Instant::now() + LENGTH);
        let mut actors = JoinSet::new();
        for seed in 1..=14 {
            let (store, customers, done) = (market.store.clone(), customers.clone(), done.clone());
            actors.spawn(Actor { store, customers, seed, done }.act_until(end));
        }
        while let Some(ended) = actors.join_next().await {
            ended.expect("an actor met what concurrency does not explain");
        }
        assert!(done.load(Ordering::Relaxed) > 100, "hardly anything happened");
        market.audit().await;
        settle(&market.store, &customers).await;
        for customer in customers.iter() {
            assert_eq!(market.money(*customer).await.1, 0, "every hold was released");
        }
    })
    .await;
}

/// Cancels what is open and has every host confirm.
async fn settle(store: &Store, customers: &[CustomerId]) {
    for customer in customers {
        let mut before: Option<JobId> = None;
        loop {
            let jobs = store.job_list(*customer, None, before, 100).await.expect("list");
            let Some(last) = jobs.last() else { break };
            before = Some(last.job);
            for job in jobs.iter().filter(|job| !job.state.is_final()) {
                store.job_cancel(*customer, job.job).await.expect("cancel");
            }
        }
    }
    for lease in store.leases_open().await.expect("open") {
        store.lease_finished(lease.host, lease.lease, None, None).await.expect("finished");
    }
    assert_eq!(store.leases_open().await.expect("open"), []);
}

/// Leases of one host change places in the table as they are written, so that only an
/// explicit order keeps those who lock several of them from waiting for each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn reports_and_the_close_of_an_epoch_do_not_wait_for_each_other_in_a_circle() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let mut leases = Vec::new();
        for _ in 0..16 {
            leases.push(market.run(customer, host, &request()).await.1);
        }
        let end = Instant::now() + LENGTH;
        let mut actors = JoinSet::new();
        for actor in 0..8 {
            let (store, mut leases) = (market.store.clone(), leases.clone());
            leases.rotate_left(actor);
            actors.spawn(async move {
                while Instant::now() < end {
                    if actor == 0 {
                        let open = store.epoch_open("local").await.expect("open");
                        store.epoch_close(open.epoch, "local").await.expect("close");
                    } else if actor % 2 == 0 {
                        store.leases_heard(host, &leases).await.expect("heard");
                    } else {
                        let due = store.charges_due().await.expect("due");
                        let Some(due) = due.get(actor) else { continue };
                        store.lease_charge(*due).await.expect("charge");
                    }
                }
            });
        }
        while let Some(ended) = actors.join_next().await {
            ended.expect("nobody waits in a circle");
        }
    })
    .await;
}
