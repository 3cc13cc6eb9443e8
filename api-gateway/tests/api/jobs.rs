//! Jobs: submitting, looking, waiting.

use std::time::{Duration, Instant};

use nave_domain::{MicroUsd, job::JobState};
use nave_sdk::wire::rest::{Balance, Job, Page};
use reqwest::StatusCode;
use serde_json::json;

use crate::setup::{IMAGE, Market, fresh, read, refused};

#[tokio::test]
async fn an_accepted_job_is_queued_with_its_image_pinned_and_its_money_held() {
    let market = Market::start().await;
    let body = json!({"argv": ["true"], "max_spend": 400_000});
    let answer = market.submission("first", &body).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::CREATED);
    let location = answer.headers()["location"].to_str().expect("text").to_owned();
    let job: Job = read(answer).await;
    assert_eq!(location, format!("/v1/jobs/{}", job.job));
    assert_eq!((job.state, job.request.image.as_deref()), (JobState::Queued, Some(IMAGE)));
    assert_eq!(job.actions, ["cancel", "logs", "receipt"]);
    assert_eq!(market.fetch::<Job>(&location).await, job);
    let balance: Balance = market.fetch("/v1/balance").await;
    assert_eq!((balance.available, balance.held), (MicroUsd(9_600_000), MicroUsd(400_000)));
}

#[tokio::test]
async fn a_replayed_key_gives_the_same_job_and_holds_no_more_money() {
    let market = Market::start().await;
    let body = json!({"argv": ["true"], "max_spend": 400_000});
    let calls = (0..5).map(|_| market.submission("again", &body).send());
    let answers = futures_util::future::join_all(calls).await;
    let mut statuses = Vec::new();
    let mut jobs = Vec::new();
    for answer in answers {
        let answer = answer.expect("an answer");
        statuses.push(answer.status().as_u16());
        jobs.push(read::<Job>(answer).await.job);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 200, 201]);
    jobs.dedup();
    assert_eq!(jobs.len(), 1);
    assert_eq!(market.fetch::<Balance>("/v1/balance").await.held, MicroUsd(400_000));
}

#[tokio::test]
async fn a_key_used_for_another_request_is_refused() {
    let market = Market::start().await;
    let first = market.submission("key", &json!({"argv": ["true"]})).send().await.expect("an answer");
    assert_eq!(first.status(), 201);
    let other = market.submission("key", &json!({"argv": ["false"]}));
    refused(other, 422, "idempotency_key_reused").await;
}

#[tokio::test]
async fn two_customers_may_choose_the_same_key() {
    let mut market = Market::start().await;
    let body = json!({"argv": ["true"]});
    let hers: Job = read(market.submission("key", &body).send().await.expect("an answer")).await;
    market.token = market.customer("bob").await.1;
    let his: Job = read(market.submission("key", &body).send().await.expect("an answer")).await;
    assert_ne!(hers.job, his.job);
    for path in ["", "/logs", "/receipt", "/result"] {
        refused(market.get(&format!("/v1/jobs/{}{path}", hers.job)), 404, "job_not_found").await;
    }
    refused(market.post(&format!("/v1/jobs/{}/cancel", hers.job)), 404, "job_not_found").await;
    assert_eq!(market.fetch::<Page<Job>>("/v1/jobs").await.items, [his]);
}

#[tokio::test]
async fn a_job_needs_exactly_one_key_of_visible_characters() {
    let market = Market::start().await;
    let call = || market.post("/v1/jobs").json(&json!({"argv": ["true"]}));
    refused(call(), 400, "idempotency_key_invalid").await;
    for key in ["", "two words", &"k".repeat(201), "clé"] {
        refused(call().header("Idempotency-Key", key), 400, "idempotency_key_invalid").await;
    }
    let twice = call().header("Idempotency-Key", "a").header("Idempotency-Key", "b");
    refused(twice, 400, "idempotency_key_invalid").await;
    let longest = call().header("Idempotency-Key", "k".repeat(200)).send().await.expect("an answer");
    assert_eq!(longest.status(), 201);
}

#[tokio::test]
async fn a_job_that_the_balance_does_not_cover_is_refused_and_leaves_no_trace() {
    let market = Market::start().await;
    let body = json!({"argv": ["true"], "max_spend": 10_000_001});
    refused(market.submission("key", &body), 402, "balance_too_low").await;
    assert_eq!(market.fetch::<Page<Job>>("/v1/jobs").await.items, []);
    market.assert_books_balance().await;
}

#[tokio::test]
async fn jobs_are_listed_in_pages_newest_first() {
    let market = Market::start().await;
    let mut jobs = Vec::new();
    for _ in 0..5 {
        jobs.push(market.submit().await.job);
    }
    jobs.reverse();
    let (mut listed, mut next) = (Vec::new(), Some(String::new()));
    while let Some(before) = next {
        let cursor = if before.is_empty() { before } else { format!("&before={before}") };
        let page: Page<Job> = market.fetch(&format!("/v1/jobs?limit=2{cursor}")).await;
        assert!(page.items.len() <= 2);
        listed.extend(page.items.into_iter().map(|job| job.job));
        next = page.next;
    }
    assert_eq!(listed, jobs);
    market.store.job_cancel(market.customer, jobs[1]).await.expect("cancel");
    let cancelled: Page<Job> = market.fetch("/v1/jobs?state=cancelled").await;
    assert_eq!(cancelled.items.iter().map(|job| job.job).collect::<Vec<_>>(), [jobs[1]]);
}

#[tokio::test]
async fn waiting_ends_when_the_job_does_and_no_later_than_asked() {
    let market = Market::start().await;
    let job = market.submit().await.job;
    let began = Instant::now();
    let waited: Job = market.fetch(&format!("/v1/jobs/{job}?wait_ms=300")).await;
    assert_eq!(waited.state, JobState::Queued);
    assert!(began.elapsed() >= Duration::from_millis(300));
    let path = format!("/v1/jobs/{job}?wait_ms=30000");
    let (waited, ()) = tokio::join!(market.fetch::<Job>(&path), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        market.store.job_cancel(market.customer, job).await.expect("cancel");
    });
    assert_eq!(waited.state, JobState::Cancelled);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for wait in ["-1", "60001", "soon"] {
        refused(market.get(&format!("/v1/jobs/{job}?wait_ms={wait}")), 400, "query_invalid").await;
    }
}

#[tokio::test]
async fn a_job_without_an_image_needs_a_default_one() {
    let market = Market::over(nave_store::testing::store().await, |_| {}).await;
    let (_, token) = market.customer("alice").await;
    let market = market.with_token(token);
    let submission = || market.submission(&fresh("key"), &json!({"argv": ["true"]}));
    refused(submission(), 422, "no_default_image").await;
}
