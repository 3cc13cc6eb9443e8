//! Disputes: what may be disputed, how often, and what a host's next suite makes of it.

use std::collections::BTreeSet;

use nave_domain::{
    ChallengeId, CustomerId, HostId, JobId, LeaseId,
    dispute::{DISPUTES_PER_DAY, DisputeState},
    host::{HostState, Proven},
    lease::Outcome,
    verdict::{Cause, Kind},
};
use nave_store::{Decision, DisputeRow, Disputed, Disputing, Drawing, StoreError};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    challenge::state_of,
    market::{EXITED, Market, inventory, open, request},
};

const HOUR: i64 = 3_600_000;

/// A job that a host has run to its end.
async fn done(market: &Market, customer: CustomerId, host: HostId) -> (JobId, LeaseId) {
    let (job, lease) = market.run(customer, host, &request()).await;
    market.finish(host, lease, EXITED).await;
    (job, lease)
}

async fn dispute(market: &Market, customer: CustomerId, job: JobId) -> Disputed {
    let disputing = Disputing { customer, job, attempt: None, reason: "it is wrong" };
    market.store.dispute_open(&disputing).await.expect("an answer")
}

/// The only dispute of a job.
async fn seen(market: &Market, job: JobId) -> DisputeRow {
    let mut all = market.store.disputes_of_jobs(&[job]).await.expect("rows");
    all.remove(&job).expect("a dispute").rows.pop().expect("a dispute")
}

async fn disputed(market: &Market) -> Vec<HostId> {
    let watch = market.store.hosts_watched(&BTreeSet::new()).await.expect("hosts");
    watch.hosts.into_iter().filter(|host| host.is_disputed).map(|host| host.host).collect()
}

/// Begins the suite that a dispute asks for.
async fn suite(market: &Market, host: HostId) {
    let generation = market.store.host_generation(host).await.expect("a row");
    market.store.suite_begin(host, generation, Cause::Dispute).await.expect("a suite");
}

async fn judged(market: &Market, host: HostId, kind: Kind, verdict: Value) -> ChallengeId {
    let challenge = ChallengeId(Uuid::now_v7());
    let (body, claims) = (json!({}), inventory());
    let drawing = Drawing {
        host,
        challenge,
        kind,
        cause: Cause::Dispute,
        body: &body,
        claims: &claims,
        shadow: false,
        window: None,
        lease: None,
    };
    market.store.challenge_draw(&drawing).await.expect("drawn");
    market.store.challenge_decide(challenge, &verdict, &Decision::Stays).await.expect("decided");
    challenge
}

async fn prove(market: &Market, host: HostId) {
    let generation = market.store.host_generation(host).await.expect("a row");
    market.store.host_prove(host, generation, &Proven::of(&inventory())).await.expect("proven");
}

/// Moves all that disputes have seen into the past.
async fn pass(market: &Market, span: i64) {
    sqlx::query(
        "update disputes set opened_at_ms = opened_at_ms - $1, suite_at_ms = suite_at_ms - $1,
            decided_at_ms = decided_at_ms - $1",
    )
    .bind(span)
    .execute(&market.sql)
    .await
    .expect("time passes");
    sqlx::query("update hosts set enrolled_at_ms = enrolled_at_ms - $1")
        .bind(span)
        .execute(&market.sql)
        .await
        .expect("time passes");
}

fn failed() -> Value {
    json!({ "failed": { "code": "evidence_wrong", "message": "made up" } })
}

#[tokio::test]
async fn a_disputed_result_has_its_host_tested_and_the_customer_sees_that_it_passed() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let [host, other] = [market.host("alpha").await, market.host("beta").await];
        let (job, _) = done(market, customer, host).await;
        let before = market.money(customer).await;
        assert_eq!(dispute(market, customer, job).await, Disputed::Taken(1));
        assert_eq!(disputed(market).await, [host], "and not {other:?}");
        let row = seen(market, job).await;
        assert_eq!(
            (row.state, row.host, row.attempt, row.reason.as_str()),
            (DisputeState::Open, host, 1, "it is wrong")
        );
        suite(market, host).await;
        assert_eq!(disputed(market).await, []);
        assert_eq!(seen(market, job).await.state, DisputeState::Testing);
        judged(market, host, Kind::Cpu, json!({ "passed": {} })).await;
        let last = judged(market, host, Kind::Memory, json!({ "passed": {} })).await;
        judged(market, host, Kind::Storage, json!({ "void": "" })).await;
        assert_eq!(seen(market, job).await.state, DisputeState::Testing, "not all is proven yet");
        prove(market, host).await;
        let row = seen(market, job).await;
        assert_eq!((row.state, row.verdict), (DisputeState::Passed, Some(last)));
        assert!(row.decided_at.is_some());
        assert_eq!(market.money(customer).await, before, "no money moves");
    })
    .await;
}

#[tokio::test]
async fn a_disputed_host_is_tested_before_it_gets_another_job_once_its_last_one_has_ended() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, _) = done(market, customer, host).await;
        let (_, lease) = market.run(customer, host, &request()).await;
        let (_, other) = market.run(customer, host, &request()).await;
        assert_eq!(dispute(market, customer, job).await, Disputed::Taken(1));
        market.finish(host, lease, EXITED).await;
        assert_eq!(state_of(market, host).await, HostState::Ready, "it has another one");
        market.finish(host, other, EXITED).await;
        assert_eq!(state_of(market, host).await, HostState::Verifying);
        assert_eq!(seen(market, job).await.state, DisputeState::Testing);
        prove(market, host).await;
        // One suite in six hours, and no more.
        let (job, _) = done(market, customer, host).await;
        let (_, lease) = market.run(customer, host, &request()).await;
        assert_eq!(dispute(market, customer, job).await, Disputed::Taken(1));
        market.finish(host, lease, EXITED).await;
        assert_eq!(state_of(market, host).await, HostState::Ready);
    })
    .await;
}

#[tokio::test]
async fn a_dispute_whose_host_is_never_free_ends_after_three_days_and_the_host_is_tested_once_it_is() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, _) = done(market, customer, host).await;
        let (_, lease) = market.run(customer, host, &request()).await;
        assert_eq!(dispute(market, customer, job).await, Disputed::Taken(1));
        pass(market, 71 * HOUR).await;
        market.store.disputes_expire().await.expect("time passes");
        assert_eq!(seen(market, job).await.state, DisputeState::Open);
        pass(market, HOUR).await;
        market.store.disputes_expire().await.expect("time passes");
        let row = seen(market, job).await;
        assert!(row.state == DisputeState::Untested && row.decided_at.is_some(), "{row:?}");
        assert_eq!(disputed(market).await, []);
        market.finish(host, lease, EXITED).await;
        assert_eq!(state_of(market, host).await, HostState::Verifying, "it is free");
        prove(market, host).await;
        assert_eq!(seen(market, job).await.state, DisputeState::Untested, "nobody waits for that any more");
    })
    .await;
}

#[tokio::test]
async fn a_host_that_fails_the_suite_of_a_dispute_has_failed_until_that_verdict_is_taken_back() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, _) = done(market, customer, host).await;
        dispute(market, customer, job).await;
        judged(market, host, Kind::Cpu, failed()).await;
        assert_eq!(seen(market, job).await.state, DisputeState::Open, "what was before its suite is not it");
        suite(market, host).await;
        judged(market, host, Kind::Transfer, failed()).await;
        assert_eq!(seen(market, job).await.state, DisputeState::Testing, "a line says nothing about results");
        let challenge = judged(market, host, Kind::Memory, failed()).await;
        let row = seen(market, job).await;
        assert_eq!((row.state, row.verdict), (DisputeState::Failed, Some(challenge)));
        prove(market, host).await;
        assert_eq!(seen(market, job).await.state, DisputeState::Failed, "whatever it proves later");
        let appeal = market.store.verdict_appeal("hotkey of alpha", challenge).await.expect("an appeal");
        assert_eq!(appeal, nave_store::Appeal::Taken);
        market.store.appeal_decide(challenge, &json!({ "passed": {} }), true).await.expect("judged again");
        assert_eq!(seen(market, job).await.state, DisputeState::Testing);
    })
    .await;
}

#[tokio::test]
async fn many_disputes_are_one_suite_in_six_hours() {
    open(async |market| {
        let (ada, bob) = (market.customer("ada").await, market.customer("bob").await);
        let host = market.host("alpha").await;
        let [(first, _), (second, _), (third, _)] =
            [done(market, ada, host).await, done(market, bob, host).await, done(market, bob, host).await];
        dispute(market, ada, first).await;
        dispute(market, bob, second).await;
        suite(market, host).await;
        prove(market, host).await;
        for job in [first, second] {
            assert_eq!(seen(market, job).await.state, DisputeState::Passed, "one suite answers both");
        }
        dispute(market, bob, third).await;
        assert_eq!(disputed(market).await, [], "it was tested for one just now");
        assert_eq!(seen(market, third).await.state, DisputeState::Open);
        pass(market, 6 * HOUR).await;
        assert_eq!(disputed(market).await, [host]);
    })
    .await;
}

#[tokio::test]
async fn a_result_is_disputed_once_by_whoever_paid_for_it_and_within_three_days() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let stranger = market.customer("bob").await;
        let host = market.host("alpha").await;
        let (job, lease) = done(market, customer, host).await;
        let theirs = market
            .store
            .dispute_open(&Disputing { customer: stranger, job, attempt: None, reason: "x" })
            .await;
        assert!(matches!(theirs, Err(StoreError::NotFound("job"))), "{theirs:?}");
        assert_eq!(dispute(market, customer, job).await, Disputed::Taken(1));
        assert_eq!(dispute(market, customer, job).await, Disputed::Again(1));
        let other = Disputing { customer, job, attempt: Some(1), reason: "something else" };
        assert_eq!(market.store.dispute_open(&other).await.expect("an answer"), Disputed::Otherwise);
        let possible = async |job| {
            let all = market.store.disputes_of_jobs(&[job]).await.expect("rows");
            all.get(&job).is_some_and(|disputes| disputes.possible)
        };
        assert!(!possible(job).await);
        let (old, lease_of_old) = done(market, customer, host).await;
        assert!(possible(old).await);
        sqlx::query("update leases set closed_at_ms = closed_at_ms - $2 where lease_id = $1")
            .bind(lease_of_old.0)
            .bind(72 * HOUR + 1)
            .execute(&market.sql)
            .await
            .expect("time passes");
        assert_eq!(dispute(market, customer, old).await, Disputed::TooLate);
        assert!(!possible(old).await);
        assert_ne!(lease, lease_of_old);
    })
    .await;
}

#[tokio::test]
async fn what_has_no_result_is_not_disputed_and_an_earlier_attempt_is_by_its_number() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let queued = market.submit(customer, &request()).await;
        assert_eq!(dispute(market, customer, queued).await, Disputed::NoResult);
        let mut again = request();
        again.retries = 1;
        let (job, lease) = market.run(customer, host, &again).await;
        assert_eq!(dispute(market, customer, job).await, Disputed::NoResult, "it runs");
        market.finish(host, lease, Outcome::Exited { code: 1 }).await;
        let lease = market.place(job, host).await;
        market.store.lease_started(host, lease).await.expect("started");
        market.store.lease_lost(host, lease).await.expect("lost");
        assert_eq!(dispute(market, customer, job).await, Disputed::Taken(1), "the last one has no result");
        let lost = Disputing { customer, job, attempt: Some(2), reason: "x" };
        assert_eq!(market.store.dispute_open(&lost).await.expect("an answer"), Disputed::NoResult);
    })
    .await;
}

#[tokio::test]
async fn a_customer_opens_a_bounded_number_of_disputes_in_a_day() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let mut jobs = Vec::new();
        for _ in 0..=DISPUTES_PER_DAY {
            jobs.push(done(market, customer, host).await.0);
        }
        let job = jobs.pop().expect("one more");
        let another = market.customer("bob").await;
        let (theirs, _) = done(market, another, host).await;
        for job in jobs {
            assert_eq!(dispute(market, customer, job).await, Disputed::Taken(1));
        }
        let Disputed::TooMany(wait) = dispute(market, customer, job).await else { panic!("one more") };
        assert!((23 * HOUR..=24 * HOUR).contains(&wait.0), "{wait:?}");
        assert_eq!(dispute(market, another, theirs).await, Disputed::Taken(1));
        pass(market, 24 * HOUR).await;
        assert_eq!(dispute(market, customer, job).await, Disputed::Taken(1));
    })
    .await;
}

#[tokio::test]
async fn who_leaves_before_it_has_shown_anything_is_told_apart() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, _) = done(market, customer, host).await;
        dispute(market, customer, job).await;
        suite(market, host).await;
        sqlx::query("update hosts set enrolled_at_ms = now_ms() + 1 where host_id = $1")
            .bind(host.0)
            .execute(&market.sql)
            .await
            .expect("it joins again");
        assert_eq!(seen(market, job).await.state, DisputeState::Left);
        prove(market, host).await;
        assert_eq!(state_of(market, host).await, HostState::Ready);
        assert_eq!(seen(market, job).await.state, DisputeState::Left, "it may be another machine");
    })
    .await;
}
