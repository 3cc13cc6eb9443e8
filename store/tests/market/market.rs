//! A small market to test in: customers with money, hosts that report, leases whose time
//! can be moved.

use std::{
    ops::AsyncFnOnce,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use nave_domain::{
    Bytes, CustomerId, HostId, JobId, LeaseId, MicroUsd, MilliCpu, Millis,
    host::{Device, Inventory, Runtime},
    job::{Egress, JobRequest},
    lease::Outcome,
    rate::{Rate, affordable, charge},
};
use nave_store::{
    AttemptRow, JobRow, Placement, Store, StoreError, Submission, Submitted,
    testing::{self, NewHost},
};
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use uuid::Uuid;

/// One virtual CPU costs one micro-USD a millisecond, so that a charge reads like a span.
pub const RATE: Rate =
    Rate { gpu_hour: MicroUsd::ZERO, vcpu_hour: MicroUsd(3_600_000), gib_hour: MicroUsd::ZERO };

/// A market in a database of its own.
pub struct Market {
    pub store: Store,
    /// For what only time or a fault would do to the rows.
    pub sql: PgPool,
    sequence: AtomicU64,
}

/// Runs a test in a fresh market and audits the books afterwards.
pub async fn open(test: impl AsyncFnOnce(&Market)) {
    let (url, _) = testing::database().await;
    let store = Store::connect(&url).await.expect("connect");
    store.migrate().await.expect("migrate");
    let sql = PgPool::connect(&url).await.expect("connect");
    let market = Market::new(store, sql);
    test(&market).await;
    market.audit().await;
}

/// The smallest request: one virtual CPU, no memory that costs.
pub fn request() -> JobRequest {
    serde_json::from_str(r#"{"argv":["true"]}"#).expect("the smallest request")
}

/// What a host without GPUs says it has.
pub fn inventory() -> Inventory {
    Inventory {
        milli_cpu: MilliCpu(8_000),
        memory: Bytes(32 * Bytes::GIB),
        disk: Bytes(100 * Bytes::GIB),
        devices: Vec::new(),
        cpu_model: "test".into(),
        os: "test".into(),
        kernel: "test".into(),
        runtime: Runtime::Simulated,
        egress: vec![Egress::Public, Egress::None],
        agent: "test".into(),
    }
}

/// A GPU.
pub fn device(uuid: &str) -> Device {
    let (model, driver, vram) = ("test".into(), "test".into(), Bytes(80 * Bytes::GIB));
    let division = nave_domain::fraction::Division::default();
    Device { uuid: uuid.into(), model, vram, driver, simulated: false, division }
}

pub fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

pub const EXITED: Outcome = Outcome::Exited { code: 0 };

impl Market {
    pub fn new(store: Store, sql: PgPool) -> Self {
        Self { store, sql, sequence: AtomicU64::new(1) }
    }

    /// A customer with ten dollars.
    pub async fn customer(&self, name: &str) -> CustomerId {
        let customer = self.store.customer_ensure(name).await.expect("a customer");
        self.store.credit(customer, "first", MicroUsd(10_000_000)).await.expect("credit");
        customer
    }

    /// A host that takes jobs.
    pub async fn host(&self, name: &str) -> HostId {
        self.host_with(name, RATE, &inventory()).await
    }

    pub async fn host_with(&self, name: &str, rate: Rate, inventory: &Inventory) -> HostId {
        let host = HostId(Uuid::now_v7());
        let new = NewHost { host, name, hotkey: &format!("hotkey of {name}"), rate };
        self.store.host_enrol(&new).await.expect("enrol");
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        self.store.host_hear(host, 1, sequence, 0, inventory).await.expect("hear");
        host
    }

    /// Another valid report of a host.
    pub async fn hear(&self, host: HostId) {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        self.store.host_hear(host, 1, sequence, 0, &inventory()).await.expect("hear");
    }

    /// Lets the time pass in which a host's inventory stays as it is.
    pub async fn settle(&self, host: HostId) {
        sqlx::query("update hosts set inventory_at_ms = inventory_at_ms - 1000 where host_id = $1")
            .bind(host.0)
            .execute(&self.sql)
            .await
            .expect("settle");
    }

    pub async fn try_submit(
        &self,
        customer: CustomerId,
        key: &str,
        request: &JobRequest,
    ) -> Result<Submitted, StoreError> {
        let hash = hash(&serde_json::to_string(request).expect("serialise"));
        self.store.job_submit(&Submission { customer, key, hash, request }).await
    }

    pub async fn submit(&self, customer: CustomerId, request: &JobRequest) -> JobId {
        let key = Uuid::now_v7().to_string();
        self.try_submit(customer, &key, request).await.expect("submit").job
    }

    /// What a planner would decide: this job on this host, as of now.
    pub async fn placement(&self, job: JobId, host: HostId) -> Placement {
        let snapshot = self.store.snapshot().await.expect("snapshot");
        let queued = snapshot.jobs.iter().find(|queued| queued.job == job).expect("the job waits");
        let supply = snapshot.hosts.get(&host).expect("the host takes jobs");
        let size = queued.request.resources.size();
        let limit = queued.request.limits.run_ms;
        let run_max = affordable(size, queued.left, supply.rate).map_or(limit, |paid| paid.min(limit));
        Placement {
            job,
            host,
            generation: supply.generation,
            size,
            disk: queued.request.resources.disk,
            devices: Vec::new(),
            share: None,
            rate: supply.rate,
            run_max,
            capped_by_spend: run_max < limit,
            grounds: nave_store::Grounds::default(),
            gang: None,
        }
    }

    pub async fn place(&self, job: JobId, host: HostId) -> LeaseId {
        let placement = self.placement(job, host).await;
        self.store.job_place(&placement).await.expect("place")
    }

    /// Submits a job, places it and has its host say that it runs.
    pub async fn run(&self, customer: CustomerId, host: HostId, request: &JobRequest) -> (JobId, LeaseId) {
        let job = self.submit(customer, request).await;
        let lease = self.place(job, host).await;
        self.store.lease_started(host, lease).await.expect("started");
        (job, lease)
    }

    /// Has a running lease run for `span` and its host say so.
    pub async fn use_up(&self, host: HostId, lease: LeaseId, span: i64) {
        self.elapse(lease, span).await;
        self.store.leases_heard(host, &[lease]).await.expect("heard");
    }

    /// Moves a lease's past back by `span` milliseconds, as if they had passed in silence.
    pub async fn elapse(&self, lease: LeaseId, span: i64) {
        sqlx::query(
            "update leases set placed_at_ms = placed_at_ms - $2, started_at_ms = started_at_ms - $2,
                metered_at_ms = metered_at_ms - $2, stop_at_ms = stop_at_ms - $2
             where lease_id = $1",
        )
        .bind(lease.0)
        .bind(span)
        .execute(&self.sql)
        .await
        .expect("elapse");
    }

    pub async fn finish(&self, host: HostId, lease: LeaseId, outcome: Outcome) {
        self.store.lease_finished(host, lease, Some(outcome), None).await.expect("finished");
    }

    pub async fn job(&self, customer: CustomerId, job: JobId) -> JobRow {
        self.store.job_get(customer, job).await.expect("the job")
    }

    /// The attempts of a job, oldest first.
    pub async fn attempts(&self, job: JobId) -> Vec<AttemptRow> {
        self.store.attempt_list(&[job]).await.expect("attempts")
    }

    /// The last attempt of a job.
    pub async fn attempt(&self, job: JobId) -> AttemptRow {
        self.attempts(job).await.pop().expect("an attempt")
    }

    /// Available and held money.
    pub async fn money(&self, customer: CustomerId) -> (i64, i64) {
        let balance = self.store.balance(customer).await.expect("balance");
        (balance.available.0, balance.held.0)
    }

    /// Waits until somebody in this market waits for a lock.
    pub async fn blocked(&self) {
        let waits = "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')";
        for _ in 0..500 {
            if sqlx::query_scalar(waits).fetch_one(&self.sql).await.expect("activity") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("nobody waits for a lock");
    }

    /// Everything that reports could change, in a comparable form.
    pub async fn state(&self) -> Vec<String> {
        let tables = [
            "select j::text from jobs j order by job_id",
            "select l::text from leases l order by lease_id",
            "select p::text from ledger_postings p order by posting_id",
            "select a::text from ledger_accounts a order by account",
            "select c::text from log_chunks c order by chunk_id",
        ];
        let mut rows = Vec::new();
        for table in tables {
            rows.extend(sqlx::query_scalar::<_, String>(table).fetch_all(&self.sql).await.expect("rows"));
        }
        rows
    }

    /// Whether the books balance, and what no sequence of calls may ever lead to.
    pub async fn audit(&self) {
        assert_eq!(self.store.ledger_audit().await.expect("audit"), Vec::<String>::new());
        let broken = [
            (
                "money held is what open jobs may still spend",
                "select count(*) from customers c where
                    coalesce((select balance from ledger_accounts a where a.customer_id = c.customer_id
                              and a.account like 'held:%'), 0)
                 <> coalesce((select sum(max_spend - charged) from jobs j where j.customer_id = c.customer_id
                              and state not in ('succeeded', 'failed', 'cancelled')), 0)",
            ),
            (
                "a job was charged what its leases were",
                "select count(*) from jobs j where j.charged <>
                    coalesce((select sum(l.charged) from leases l where l.job_id = j.job_id), 0)",
            ),
            (
                "a job has an open lease exactly while a host has it",
                "select count(*) from jobs j where (state in ('placed', 'running', 'cancelling'))
                 <> exists (select from leases l where l.job_id = j.job_id and l.state <> 'closed')",
            ),
            ("amounts of zero leave no trace", "select count(*) from ledger_entries where amount = 0"),
            (
                "a device is leased once, or in shares of one size to one customer that are no more than it",
                "select count(*) from (
                     select device from leases l join jobs using (job_id), unnest(l.devices) device
                     where l.state <> 'closed' group by l.host_id, device
                     having count(*) > 1 and (
                         bool_or(share_milli is null) or sum(share_milli) > 1000 or count(distinct customer_id) > 1
                         or count(distinct (share_milli, share_vram)) > 1)) twice",
            ),
        ];
        for (rule, query) in broken {
            let count: i64 = sqlx::query_scalar(query).fetch_one(&self.sql).await.expect("audit");
            assert_eq!(count, 0, "broken: {rule}");
        }
        self.audit_charges().await;
    }

    /// Closed leases are charged exactly for their use, at their rate, within the spend cap.
    async fn audit_charges(&self) {
        let jobs: Vec<Uuid> =
            sqlx::query_scalar("select job_id from jobs").fetch_all(&self.sql).await.expect("jobs");
        let jobs: Vec<JobId> = jobs.into_iter().map(JobId).collect();
        for attempt in self.store.attempt_list(&jobs).await.expect("attempts") {
            let Some(outcome) = &attempt.outcome else { continue };
            let worth = charge(attempt.size, attempt.used, attempt.rate).expect("in range");
            if !outcome.is_charged() {
                assert_eq!(attempt.charged, MicroUsd::ZERO, "{attempt:?} is not charged");
            } else if attempt.charged != worth {
                assert!(attempt.charged < worth, "{attempt:?} was charged more than {worth}");
                assert!(self.is_spent(attempt.job).await, "{attempt:?} was charged less than {worth}");
            }
        }
    }

    async fn is_spent(&self, job: JobId) -> bool {
        sqlx::query_scalar("select charged = max_spend from jobs where job_id = $1")
            .bind(job.0)
            .fetch_one(&self.sql)
            .await
            .expect("the job")
    }
}

/// Asserts that `span` is `expected` give or take what the test itself may have taken.
pub fn assert_about(span: Millis, expected: i64) {
    let slack = 3_000;
    assert!((expected..expected + slack).contains(&span.0), "{span:?} is not about {expected} ms");
}
