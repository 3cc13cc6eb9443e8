//! Tests that jobs put off: what a host gets, and a GPU, whose test is overdue.

use std::collections::BTreeMap;

use nave_domain::{
    Bytes, CustomerId, HostId, JobId, LeaseId, MicroUsd, MilliGpu, Millis,
    fraction::Fraction,
    host::HostState,
    job::{JobRequest, Limits},
    lease::Outcome,
};
use nave_store::{Asking, Disputing, Placement, QuoteAnswer, StoreError};
use uuid::Uuid;

use crate::{
    challenge::state_of,
    market::{EXITED, Market, hash, open, request},
};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
/// For how long jobs may put a test off.
const GRACE: i64 = 24 * HOUR;

/// A job that takes so long at the most, its start included.
fn lasting(span: i64) -> JobRequest {
    let limits = Limits { start_ms: Millis(MINUTE), run_ms: Millis(span - MINUTE), ..Limits::default() };
    JobRequest { limits, max_spend: MicroUsd(1_000_000_000), ..request() }
}

async fn rich(market: &Market, name: &str) -> CustomerId {
    let customer = market.customer(name).await;
    market.store.credit(customer, "more", MicroUsd(1_000_000_000_000)).await.expect("credit");
    customer
}

async fn pass(market: &Market, span: i64) {
    market.store.clock_advance(Millis(span)).await.expect("time passes");
}

async fn now(market: &Market) -> i64 {
    market.store.clock_now().await.expect("a time").up.0
}

/// Lets the test of a host be due now.
async fn due(market: &Market, host: HostId) {
    let up = Millis(now(market).await);
    market.store.host_retest_at(host, up).await.expect("noted");
}

async fn lasts(market: &Market, host: HostId) -> Option<Millis> {
    market.store.snapshot().await.expect("snapshot").hosts.get(&host).expect("it takes jobs").lasts
}

fn is_stale<T: std::fmt::Debug>(done: Result<T, StoreError>) -> bool {
    matches!(done, Err(StoreError::Stale("host")))
}

/// Tenants who do all they can to never let a host be free, for so long; how long it was never tested at the most.
struct Weeks<'a> {
    market: &'a Market,
    host: HostId,
    tenants: [CustomerId; 2],
    /// Open leases, and when they end.
    open: BTreeMap<LeaseId, i64>,
    tested: Vec<i64>,
}

impl Weeks<'_> {
    /// As many jobs as the host takes, each as long as may be.
    async fn fill(&mut self, spans: &[i64]) {
        for (number, span) in spans.iter().enumerate() {
            if self.open.len() == 3 || lasts(self.market, self.host).await.is_some_and(|most| most.0 < *span)
            {
                continue;
            }
            let (_, lease) = self.market.run(self.tenants[number % 2], self.host, &lasting(*span)).await;
            self.open.insert(lease, now(self.market).await + span - MINUTE);
        }
    }

    async fn end(&mut self) {
        let now = now(self.market).await;
        let over: Vec<LeaseId> =
            self.open.iter().filter(|(_, ends)| **ends <= now).map(|(lease, _)| *lease).collect();
        for lease in over {
            self.open.remove(&lease);
            self.market.finish(self.host, lease, Outcome::RunTimeout).await;
        }
    }

    /// What the verifier does: it tests a host that it finds taken out, and draws when it is tested again.
    async fn verify(&mut self) {
        if state_of(self.market, self.host).await == HostState::Verifying {
            assert!(self.open.is_empty(), "it is tested when it is free");
            self.market.store.host_passed(self.host).await.expect("passed");
            self.tested.push(now(self.market).await);
        }
        let next = Millis(now(self.market).await + 6 * HOUR);
        self.market.store.host_retest_at(self.host, next).await.expect("noted");
    }
}

#[tokio::test]
async fn a_host_whose_leases_overlap_for_weeks_is_tested_again_and_again() {
    open(async |market| {
        let tenants = [rich(market, "ada").await, rich(market, "eve").await];
        let host = market.host("alpha").await;
        let (open, tested) = (BTreeMap::new(), vec![now(market).await]);
        let mut weeks = Weeks { market, host, tenants, open, tested };
        let (spans, longest, step) = ([5 * HOUR, HOUR, 30 * MINUTE], 5 * HOUR, 30 * MINUTE);
        for _ in 0..2 * 7 * 48 {
            weeks.verify().await;
            weeks.fill(&spans).await;
            pass(market, step).await;
            weeks.end().await;
        }
        let most = weeks.tested.windows(2).map(|pair| pair[1] - pair[0]).max().expect("it was tested");
        assert!(most <= 6 * HOUR + GRACE + longest + 2 * step, "{} minutes without a test", most / MINUTE);
        assert!(weeks.tested.len() > 8, "{} tests in two weeks", weeks.tested.len());
    })
    .await;
}

#[tokio::test]
async fn a_host_whose_test_is_overdue_gets_only_what_ends_before_what_it_has_and_says_so() {
    open(async |market| {
        let (ada, host) = (rich(market, "ada").await, market.host("alpha").await);
        market.run(ada, host, &lasting(30 * HOUR)).await;
        due(market, host).await;
        let reason = async || market.store.host_list().await.expect("hosts")[0].reason.clone();
        pass(market, GRACE - MINUTE).await;
        assert_eq!((lasts(market, host).await, reason().await), (None, None), "it is not overdue yet");
        let job = market.submit(ada, &lasting(8 * HOUR)).await;
        let planned = market.placement(job, host).await;
        pass(market, MINUTE).await;
        let left = lasts(market, host).await.expect("it is held");
        assert_eq!(left, Millis(6 * HOUR - 2 * MINUTE), "in whole minutes");
        assert_eq!(reason().await.expect("a reason").code, "held_for_test");

        // What was planned before is refused, too, however it is placed.
        assert!(is_stale(market.store.job_place(&planned).await));
        assert!(is_stale(market.store.batch_place(std::slice::from_ref(&planned)).await));
        assert!(is_stale(market.store.gang_place(&[Placement { gang: Some(job), ..planned }]).await));
        let (_, short) = market.run(ada, host, &lasting(5 * HOUR)).await;
        let again = market.submit(ada, &lasting(5 * HOUR)).await;
        let again = market.placement(again, host).await;
        let [again] = market.store.batch_place(&[again]).await.expect("placed")[..] else { panic!("one") };
        assert!(lasts(market, host).await.expect("still held") <= left, "what it got puts nothing off");
        for lease in [short, again] {
            market.finish(host, lease, EXITED).await;
        }
        assert_eq!(state_of(market, host).await, HostState::Ready, "it has a lease yet");
    })
    .await;
}

#[tokio::test]
async fn a_dispute_that_waits_for_a_day_holds_its_host_and_is_answered_once_that_is_free() {
    open(async |market| {
        let (ada, host) = (rich(market, "ada").await, market.host("alpha").await);
        let (job, first) = market.run(ada, host, &lasting(HOUR)).await;
        let (_, other) = market.run(ada, host, &lasting(9 * HOUR)).await;
        market.finish(host, first, EXITED).await;
        let disputing = Disputing { customer: ada, job, attempt: None, reason: "it is wrong" };
        market.store.dispute_open(&disputing).await.expect("taken");
        assert_eq!(lasts(market, host).await, None);
        for old in [
            "update disputes set opened_at_ms = opened_at_ms - $1",
            "update hosts set enrolled_at_ms = enrolled_at_ms - $1",
        ] {
            sqlx::query(old).bind(GRACE).execute(&market.sql).await.expect("a day passes");
        }
        assert!(lasts(market, host).await.expect("it is held").0 < 9 * HOUR);
        market.finish(host, other, EXITED).await;
        assert_eq!(state_of(market, host).await, HostState::Verifying);
    })
    .await;
}

#[tokio::test]
async fn a_quote_on_a_host_that_is_held_is_for_what_ends_in_time_even_if_it_is_used_last() {
    open(async |market| {
        let (ada, host) = (rich(market, "ada").await, market.host("alpha").await);
        market.run(ada, host, &lasting(30 * HOUR)).await;
        due(market, host).await;
        pass(market, GRACE).await;
        let hold = Some(Millis(5 * MINUTE));
        for (span, is_given) in [(6 * HOUR - 3 * MINUTE, false), (5 * HOUR, true)] {
            let (key, request) = (span.to_string(), lasting(span));
            let asking = Asking { customer: ada, key: &key, hash: hash(&key), request: &request, hold };
            let quote = market.store.quote_ask(&asking).await.expect("asked");
            let job = market.submit(ada, &request).await;
            let placement = Placement { job: JobId(quote.0), ..market.placement(job, host).await };
            let answer = QuoteAnswer::Place(Box::new(placement));
            let answered = market.store.quote_answer(quote, &answer, &[]).await;
            assert_eq!(!is_stale(answered), is_given, "{span}");
        }
    })
    .await;
}

const SHARE: Fraction = Fraction { milli: MilliGpu(250), vram: Bytes(8 * Bytes::GIB) };

/// A place for a new job on a share of the only GPU of a host.
async fn on_share(market: &Market, customer: CustomerId, host: HostId) -> Placement {
    let job = market.submit(customer, &request()).await;
    let placement = market.placement(job, host).await;
    Placement { devices: vec!["GPU-1".into()], share: Some(SHARE), ..placement }
}

async fn devices_used(market: &Market, host: HostId) -> Vec<String> {
    market.store.snapshot().await.expect("snapshot").hosts.remove(&host).expect("it takes jobs").devices_used
}

#[tokio::test]
async fn a_gpu_that_was_shared_for_long_is_given_to_nobody_more_until_it_was_shown() {
    open(async |market| {
        let (ada, host) = (rich(market, "ada").await, market.host("alpha").await);
        let shown = "insert into device_claims (device, host_id) values ('GPU-1', $1)";
        sqlx::query(shown).bind(host.0).execute(&market.sql).await.expect("it was shown");
        let first = on_share(market, ada, host).await;
        let first = market.store.job_place(&first).await.expect("placed");
        let planned = on_share(market, ada, host).await;
        pass(market, GRACE - MINUTE).await;
        assert!(devices_used(market, host).await.is_empty());
        pass(market, MINUTE).await;
        assert_eq!(devices_used(market, host).await, ["GPU-1"]);
        assert!(is_stale(market.store.job_place(&planned).await));
        assert_eq!(lasts(market, host).await, None, "the rest of its host is as it was");
        market.run(ada, host, &request()).await;
        market.finish(host, first, EXITED).await;
        assert_eq!(devices_used(market, host).await, ["GPU-1"], "it is tested before anybody gets it");
        let shown = "update device_claims set shown_up_ms = control_ms()";
        sqlx::query(shown).execute(&market.sql).await.expect("it was shown");
        let next = on_share(market, ada, host).await;
        market.store.job_place(&next).await.expect("placed");
    })
    .await;
}

#[tokio::test]
async fn shares_that_one_customer_loses_count_once_against_a_host() {
    open(async |market| {
        let (ada, eve) = (rich(market, "ada").await, rich(market, "eve").await);
        let host = market.host("alpha").await;
        let lose = async |customer| {
            let placement = on_share(market, customer, host).await;
            let lease = market.store.job_place(&placement).await.expect("placed");
            market.store.lease_started(host, lease).await.expect("started");
            market.store.lease_lost(host, lease).await.expect("lost");
            market.store.snapshot().await.expect("snapshot").hosts[&host].past.losses
        };
        assert_eq!([lose(ada).await, lose(ada).await, lose(eve).await, lose(ada).await], [1, 1, 2, 2]);
        let (_, whole) = market.run(ada, host, &request()).await;
        market.store.lease_lost(host, whole).await.expect("lost");
        let past = market.store.snapshot().await.expect("snapshot").hosts[&host].past;
        assert_eq!(past.losses, 3, "what no customer can bring about always counts");
    })
    .await;
}

#[tokio::test]
async fn a_test_beside_jobs_shows_just_the_gpus_that_it_was_of() {
    open(async |market| {
        let host = market.host("alpha").await;
        let claimed = "insert into device_claims (device, host_id, shown_up_ms)
                       values ('GPU-1', $1, -1), ('GPU-2', $1, -1)";
        sqlx::query(claimed).bind(host.0).execute(&market.sql).await.expect("claims");
        let (ada, id) = (rich(market, "ada").await, Uuid::now_v7());
        let (_, lease) = market.run(ada, host, &request()).await;
        let (body, claims) = (
            serde_json::json!({ "task": { "devices": { "devices": [{ "uuid": "GPU-2" }] } } }),
            crate::market::inventory(),
        );
        let drawing = nave_store::Drawing {
            host,
            challenge: id.into(),
            kind: nave_domain::verdict::Kind::Devices,
            cause: nave_domain::verdict::Cause::Lease,
            body: &body,
            claims: &claims,
            shadow: false,
            window: None,
            lease: Some(lease),
        };
        market.store.challenge_draw(&drawing).await.expect("drawn");
        let passed = serde_json::json!({ "passed": {} });
        market
            .store
            .challenge_decide(id.into(), &passed, &nave_store::Decision::Shown)
            .await
            .expect("decided");
        let unshown =
            sqlx::query_scalar::<_, String>("select device from device_claims where shown_up_ms < 0");
        assert_eq!(unshown.fetch_all(&market.sql).await.expect("rows"), ["GPU-1"]);
    })
    .await;
}
