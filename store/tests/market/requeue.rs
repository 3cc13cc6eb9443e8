//! Attempts that end through a host or a failing command, and what follows.

use nave_domain::{
    MicroUsd,
    job::{HOST_TRIES_MAX, JobState},
    lease::Outcome,
    ledger::PostingKind,
};

use crate::market::{EXITED, open, request};

#[tokio::test]
async fn a_lost_host_requeues_its_job_without_charging_it() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let [alpha, beta] = [market.host("alpha").await, market.host("beta").await];
        let (job, lease) = market.run(customer, alpha, &request()).await;
        market.use_up(alpha, lease, 5_000).await;
        for due in market.store.charges_due().await.expect("due") {
            market.store.lease_charge(due).await.expect("charge");
        }
        assert!(market.job(customer, job).await.charged >= MicroUsd(5_000));
        market.store.lease_lost(alpha, lease).await.expect("lost");

        let row = market.job(customer, job).await;
        assert_eq!((row.state, row.charged), (JobState::Queued, MicroUsd::ZERO));
        assert_eq!(row.reason.map(|(code, _)| code), Some("host_lost".into()));
        assert_eq!(market.money(customer).await, (9_500_000, 500_000), "the hold stays whole");
        let snapshot = market.store.snapshot().await.expect("snapshot");
        assert_eq!(snapshot.jobs[0].failed_on, [alpha]);
        assert_eq!(snapshot.jobs[0].left, request().max_spend);

        let lease = market.place(job, beta).await;
        market.store.lease_started(beta, lease).await.expect("started");
        market.use_up(beta, lease, 2_000).await;
        market.finish(beta, lease, EXITED).await;
        let attempts = market.attempts(job).await;
        assert_eq!(attempts.iter().map(|attempt| attempt.attempt).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(attempts[0].outcome, Some(Outcome::HostLost));
        assert_eq!(attempts[0].charged, MicroUsd::ZERO);
        assert_eq!(market.job(customer, job).await.charged, attempts[1].charged);
        let lines = market.store.ledger_of_job(job).await.expect("lines");
        let refunded: Vec<_> = lines.iter().filter(|line| line.kind == PostingKind::Refund).collect();
        assert_eq!(refunded.len(), 1, "the charge and its refund both stay in the books");
    })
    .await;
}

#[tokio::test]
async fn a_host_that_ends_a_lease_without_being_told_has_lost_it() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        market.store.lease_finished(host, lease, None, None).await.expect("fenced");
        assert_eq!(market.attempt(job).await.outcome, Some(Outcome::HostLost));
        assert_eq!(market.job(customer, job).await.state, JobState::Queued);
    })
    .await;
}

#[tokio::test]
async fn a_job_that_four_hosts_lost_fails_without_a_charge() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, mut lease) = market.run(customer, host, &request()).await;
        for lost in 1..=HOST_TRIES_MAX {
            market.use_up(host, lease, 1_000).await;
            market.store.lease_lost(host, lease).await.expect("lost");
            if lost < HOST_TRIES_MAX {
                assert_eq!(market.job(customer, job).await.state, JobState::Queued, "after {lost}");
                lease = market.place(job, host).await;
                market.store.lease_started(host, lease).await.expect("started");
            }
        }
        let row = market.job(customer, job).await;
        assert_eq!((row.state, row.charged), (JobState::Failed, MicroUsd::ZERO));
        assert_eq!(market.money(customer).await, (10_000_000, 0));
    })
    .await;
}

#[tokio::test]
async fn a_failing_command_is_retried_as_often_as_asked_and_every_run_is_charged() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let mut stubborn = request();
        stubborn.retries = 2;
        let job = market.submit(customer, &stubborn).await;
        for outcome in [Outcome::Exited { code: 3 }, Outcome::OutOfMemory, Outcome::Exited { code: 4 }] {
            assert_eq!(market.job(customer, job).await.state, JobState::Queued);
            assert_eq!(market.job(customer, job).await.exit_code, None);
            let lease = market.place(job, host).await;
            market.store.lease_started(host, lease).await.expect("started");
            market.use_up(host, lease, 1_000).await;
            market.finish(host, lease, outcome).await;
        }
        let row = market.job(customer, job).await;
        assert_eq!((row.state, row.exit_code), (JobState::Failed, Some(4)));
        assert_eq!(row.reason, Some(("exited".into(), "the command exited with code 4".into())));
        let attempts = market.attempts(job).await;
        assert_eq!(attempts.len(), 3);
        assert!(attempts.iter().all(|attempt| attempt.charged >= MicroUsd(1_000)), "{attempts:?}");
        assert_eq!(row.charged.0, attempts.iter().map(|attempt| attempt.charged.0).sum::<i64>());
    })
    .await;
}

#[tokio::test]
async fn a_retry_has_only_what_earlier_attempts_left_of_the_spend_cap() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let mut stubborn = request();
        stubborn.retries = 1;
        stubborn.max_spend = MicroUsd(8_000);
        let (job, lease) = market.run(customer, host, &stubborn).await;
        market.use_up(host, lease, 4_000).await;
        market.finish(host, lease, Outcome::Exited { code: 1 }).await;
        let spent = market.job(customer, job).await.charged;
        let placement = market.placement(job, host).await;
        assert_eq!(placement.run_max.0, 8_000 - spent.0);
        let lease = market.store.job_place(&placement).await.expect("place");
        market.store.lease_started(host, lease).await.expect("started");
        market.use_up(host, lease, 9_000).await;
        market.finish(host, lease, Outcome::Exited { code: 1 }).await;
        assert_eq!(market.job(customer, job).await.charged, MicroUsd(8_000));
    })
    .await;
}

#[tokio::test]
async fn a_container_that_did_not_start_is_tried_elsewhere_for_free() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let job = market.submit(customer, &request()).await;
        let lease = market.place(job, host).await;
        market.finish(host, lease, Outcome::StartFailed { detail: "no such image".into() }).await;
        let row = market.job(customer, job).await;
        assert_eq!((row.state, row.charged), (JobState::Queued, MicroUsd::ZERO));
        let (code, message) = row.reason.expect("a reason");
        assert_eq!(code, "start_failed");
        assert!(message.contains("no such image"), "{message}");
        let snapshot = market.store.snapshot().await.expect("snapshot");
        assert_eq!(snapshot.jobs[0].failed_on, [host]);
    })
    .await;
}

#[tokio::test]
async fn the_wait_counts_over_all_attempts() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let job = market.submit(customer, &request()).await;
        sqlx::query("update jobs set queued_at_ms = queued_at_ms - 60000")
            .execute(&market.sql)
            .await
            .expect("wait");
        let lease = market.place(job, host).await;
        market.store.lease_lost(host, lease).await.expect("lost");
        let snapshot = market.store.snapshot().await.expect("snapshot");
        let queued = &snapshot.jobs[0];
        assert!((60_000..63_000).contains(&queued.queued.0), "{:?}", queued.queued);
        assert!(snapshot.now.since(queued.queued_at).0 < 3_000);
    })
    .await;
}
