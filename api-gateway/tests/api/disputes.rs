//! Disputed results, as customers open and see them.

use nave_domain::{LeaseId, dispute::DisputeState, verdict::Cause};
use nave_sdk::wire::{
    host::{Exit, LeaseReport},
    rest::{Dispute, Job},
};
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::setup::{Host, Market, read, refused};

/// A job that a host says it has run.
async fn done(market: &Market, host: &mut Host<'_>) -> (Job, LeaseId) {
    let (job, lease) = market.placed(host).await;
    host.report(&[(lease, LeaseReport::Running)]).await;
    let exit = Exit::Code { code: 0 };
    host.report(&[(lease, LeaseReport::Finished { exit, result: None })]).await;
    (market.fetch(&format!("/v1/jobs/{}", job.job)).await, lease)
}

fn dispute(market: &Market, job: &Job, body: &Value) -> RequestBuilder {
    market.post(&format!("/v1/jobs/{}/dispute", job.job)).json(body)
}

#[tokio::test]
async fn a_forged_result_is_disputed_once_and_its_customer_sees_where_that_stands() {
    let market = Market::start().await;
    let mut host = market.host("forger").await;
    let (job, _) = done(&market, &mut host).await;
    assert!(job.actions.contains(&"dispute".to_owned()) && job.disputes.is_empty(), "{job:?}");
    let reason = json!({ "reason": "the sum is wrong" });
    let answer = dispute(&market, &job, &reason).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::CREATED);
    let opened: Dispute = read(answer).await;
    assert_eq!((opened.state, opened.host, opened.attempt), (DisputeState::Open, host.id, 1));
    let again = dispute(&market, &job, &reason).send().await.expect("an answer");
    assert_eq!(again.status(), StatusCode::OK);
    assert_eq!(read::<Dispute>(again).await, opened);
    refused(dispute(&market, &job, &json!({ "reason": "another one" })), 409, "already_disputed").await;
    let seen: Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
    assert_eq!((seen.disputes, seen.actions.contains(&"dispute".to_owned())), (vec![opened], false));

    let generation = market.store.host_generation(host.id).await.expect("a row");
    market.store.suite_begin(host.id, generation, Cause::Dispute).await.expect("a suite");
    let seen: Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
    assert_eq!(seen.disputes[0].state, DisputeState::Testing);
    market.assert_books_balance().await;
}

#[tokio::test]
async fn nobody_disputes_what_is_not_theirs_has_no_result_or_says_nothing() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let reason = json!({ "reason": "x" });
    let queued = market.submit().await;
    refused(dispute(&market, &queued, &reason), 409, "nothing_to_dispute").await;
    let (job, _) = done(&market, &mut host).await;
    refused(dispute(&market, &job, &json!({ "reason": "x", "attempt": 2 })), 409, "nothing_to_dispute").await;
    for bad in [json!({ "reason": " " }), json!({ "reason": "x".repeat(501) }), json!({ "reason": "\u{0}" })]
    {
        let problem = refused(dispute(&market, &job, &bad), 422, "request_invalid").await;
        assert!(problem.detail.starts_with("reason: "), "{problem:?}");
    }
    let (_, token) = market.customer("bob").await;
    let market = market.with_token(token);
    refused(dispute(&market, &job, &reason), 404, "job_not_found").await;
}

#[tokio::test]
async fn a_key_that_only_reads_disputes_nothing_and_too_many_are_told_when_to_come_back() {
    let market = Market::start().await;
    let reader = market.key(market.customer, &["jobs:read"]).await;
    let reason = json!({ "reason": "x" });
    let mut jobs = Vec::new();
    {
        let mut host = market.host("h").await;
        for _ in 0..=nave_domain::dispute::DISPUTES_PER_DAY {
            jobs.push(done(&market, &mut host).await.0);
        }
    }
    let last = jobs.pop().expect("a job");
    for job in &jobs {
        let answer = dispute(&market, job, &reason).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::CREATED);
    }
    let problem = refused(dispute(&market, &last, &reason), 429, "too_many_disputes").await;
    assert!(problem.retryable, "{problem:?}");
    let market = market.with_token(reader);
    refused(dispute(&market, &last, &reason), 403, "scope_missing").await;
}

#[tokio::test]
async fn a_host_that_is_disputed_is_not_told_who_says_what() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let (job, _) = done(&market, &mut host).await;
    let answer =
        dispute(&market, &job, &json!({ "reason": "a very private reason" })).send().await.expect("sent");
    assert!(answer.status().is_success());
    let generation = market.store.host_generation(host.id).await.expect("a row");
    market.store.suite_begin(host.id, generation, Cause::Dispute).await.expect("a suite");
    let spec = host.spec(0, 0).await.expect("a spec");
    assert!(!format!("{spec:?}").contains("private"));
}
