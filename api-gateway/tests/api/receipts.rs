//! Receipts.

use std::time::Duration;

use nave_domain::{
    MicroUsd, Millis,
    host::Runtime,
    job::{HOST_TRIES_MAX, JobState},
    lease::Outcome,
    ledger::PostingKind,
};
use nave_sdk::wire::{
    host::{Exit, LeaseReport},
    rest::{Job, Receipt},
};

use crate::setup::{IMAGE, Market, RATE};

#[tokio::test]
async fn an_open_job_holds_what_it_may_still_cost() {
    let market = Market::start().await;
    let job = market.submit().await;
    let receipt: Receipt = market.fetch(&format!("/v1/jobs/{}/receipt", job.job)).await;
    assert_eq!((receipt.total, receipt.held), (MicroUsd(0), MicroUsd(1_000_000)));
    assert_eq!((receipt.image.as_str(), receipt.customer), (IMAGE, market.customer));
    assert!(receipt.notice.contains("can forge") && !receipt.notice.contains("NOTHING"));
}

#[tokio::test]
async fn an_attempt_that_the_host_lost_costs_and_shows_nothing() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let (job, lease) = market.placed(&host).await;
    host.report(&[(lease, LeaseReport::Running)]).await;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    host.report(&[(lease, LeaseReport::Running)]).await;
    for due in market.store.charges_due().await.expect("charges") {
        market.store.lease_charge(due).await.expect("charge");
    }
    let charged: Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
    assert!(charged.charged > MicroUsd(0) && charged.attempts[0].used_ms > Millis(0));
    host.report(&[(lease, LeaseReport::Preparing)]).await;
    let receipt: Receipt = market.fetch(&format!("/v1/jobs/{}/receipt", job.job)).await;
    assert_eq!(
        (receipt.state, receipt.total, receipt.held),
        (JobState::Queued, MicroUsd(0), MicroUsd(1_000_000))
    );
    let lost = &receipt.attempts[0];
    assert_eq!((lost.attempt.outcome.clone(), lost.attempt.used_ms), (Some(Outcome::HostLost), Millis(0)));
    assert_eq!((lost.attempt.charged, lost.rate, lost.hotkey.as_str()), (MicroUsd(0), RATE, "5Miner"));
    let kinds: Vec<PostingKind> = receipt.lines.iter().map(|line| line.kind).collect();
    assert_eq!(kinds, [PostingKind::Hold, PostingKind::Charge, PostingKind::Refund]);
    market.assert_books_balance().await;
}

#[tokio::test]
async fn a_receipt_from_a_simulated_host_says_loudly_that_nothing_ran() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let mut report = host.next_report(&[]);
    report.inventory.runtime = Runtime::Simulated;
    // What a host has changes once a second at most.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    host.send(&report).await;
    let (job, _) = market.placed(&host).await;
    let receipt: Receipt = market.fetch(&format!("/v1/jobs/{}/receipt", job.job)).await;
    assert!(receipt.notice.starts_with("NOTHING WAS EXECUTED"), "{}", receipt.notice);
    assert_eq!(receipt.attempts[0].runtime, "simulated");
}

#[tokio::test]
async fn a_job_that_never_started_costs_nothing() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let (job, mut lease) = market.placed(&host).await;
    for attempt in 1..=HOST_TRIES_MAX {
        let exit = Exit::StartFailed { detail: format!("no such image\0 {}", "x".repeat(5_000)) };
        host.report(&[(lease, LeaseReport::Finished { exit, result: None })]).await;
        if attempt < HOST_TRIES_MAX {
            lease = market.place(job.job, host.id).await;
        }
    }
    let job: Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
    let attempts = u32::try_from(job.attempts.len()).expect("a few");
    assert_eq!((job.state, attempts, job.charged), (JobState::Failed, HOST_TRIES_MAX, MicroUsd(0)));
    let reason = job.reason.expect("a reason");
    assert!(reason.code == "start_failed" && reason.message.len() < 1_200, "{reason:?}");
    let receipt: Receipt = market.fetch(&format!("/v1/jobs/{}/receipt", job.job)).await;
    assert_eq!((receipt.total, receipt.held), (MicroUsd(0), MicroUsd(0)));
}
