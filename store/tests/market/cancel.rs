//! Cancelling, from every state a job can be in.

use nave_domain::{
    MicroUsd,
    job::JobState,
    lease::{LeaseState, Outcome, StopReason},
};
use nave_store::StoreError;

use crate::market::{EXITED, assert_about, open, request};

#[tokio::test]
async fn a_queued_job_is_cancelled_at_once_and_its_hold_comes_back() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let job = market.submit(customer, &request()).await;
        market.store.job_cancel(customer, job).await.expect("cancel");
        let row = market.job(customer, job).await;
        assert_eq!(row.state, JobState::Cancelled);
        assert!(row.finished_at.is_some());
        assert_eq!(market.money(customer).await, (10_000_000, 0));
    })
    .await;
}

#[tokio::test]
async fn a_placed_job_is_cancelled_when_its_host_confirms_and_costs_nothing() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let job = market.submit(customer, &request()).await;
        let lease = market.place(job, host).await;
        market.store.job_cancel(customer, job).await.expect("cancel");
        assert_eq!(market.job(customer, job).await.state, JobState::Cancelling);
        let spec = market.store.host_spec(host).await.expect("spec");
        assert_eq!(spec.orders[&lease].stop, Some(StopReason::Cancelled));
        market.store.lease_finished(host, lease, None, None).await.expect("finished");
        let row = market.job(customer, job).await;
        assert_eq!((row.state, row.charged), (JobState::Cancelled, MicroUsd::ZERO));
        assert_eq!(market.attempt(job).await.outcome, Some(Outcome::Cancelled));
    })
    .await;
}

#[tokio::test]
async fn a_running_job_is_charged_up_to_its_cancellation() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        market.elapse(lease, 4_000).await;
        market.store.job_cancel(customer, job).await.expect("cancel");
        market.store.lease_finished(host, lease, None, None).await.expect("finished");
        let (row, attempt) = (market.job(customer, job).await, market.attempt(job).await);
        assert_eq!(row.state, JobState::Cancelled);
        assert_about(attempt.used, 4_000);
        assert_eq!(row.charged.0, attempt.used.0);
        assert_eq!(market.money(customer).await, (10_000_000 - row.charged.0, 0));
    })
    .await;
}

#[tokio::test]
async fn a_command_that_starts_while_it_is_cancelled_hides_nothing_of_why() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let job = market.submit(customer, &request()).await;
        let lease = market.place(job, host).await;
        market.store.job_cancel(customer, job).await.expect("cancel");
        let before = market.job(customer, job).await;
        market.store.lease_started(host, lease).await.expect("started");
        assert_eq!(market.job(customer, job).await, before);
        market.store.lease_finished(host, lease, None, None).await.expect("finished");
        assert_eq!(market.job(customer, job).await.charged, MicroUsd::ZERO, "it was to end before it ran");
    })
    .await;
}

#[tokio::test]
async fn cancelling_again_changes_nothing() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, _) = market.run(customer, host, &request()).await;
        let before = market.store.host_generation(host).await.expect("generation");
        market.store.job_cancel(customer, job).await.expect("cancel");
        let first = market.attempt(job).await;
        market.store.job_cancel(customer, job).await.expect("cancel again");
        let after = market.store.host_generation(host).await.expect("generation");
        assert_eq!(after, before + 1, "the host is told once");
        assert_eq!(market.job(customer, job).await.state, JobState::Cancelling);
        let second = market.attempt(job).await;
        assert!(second.used.0 - first.used.0 < 100, "the first decision bounds the charge");
        assert_eq!(second.state, LeaseState::Stopping);
    })
    .await;
}

#[tokio::test]
async fn a_command_that_ends_while_it_is_cancelled_leaves_a_cancelled_job() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        for outcome in [EXITED, Outcome::Exited { code: 9 }, Outcome::OutOfMemory, Outcome::Killed] {
            let (job, lease) = market.run(customer, host, &request()).await;
            market.store.job_cancel(customer, job).await.expect("cancel");
            market.store.lease_exited(host, lease).await.expect("exited");
            market.finish(host, lease, outcome.clone()).await;
            assert_eq!(market.job(customer, job).await.state, JobState::Cancelled, "{outcome:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_job_whose_results_are_on_their_way_can_be_cancelled_too() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        market.elapse(lease, 2_000).await;
        market.store.lease_exited(host, lease).await.expect("exited");
        let used = market.attempt(job).await.used;
        market.store.job_cancel(customer, job).await.expect("cancel");
        assert_eq!(market.attempt(job).await.state, LeaseState::Draining);
        market.finish(host, lease, EXITED).await;
        let row = market.job(customer, job).await;
        assert_eq!((row.state, row.charged.0), (JobState::Cancelled, used.0));
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_job_whose_host_is_lost_is_not_charged_and_not_run_again() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        market.use_up(host, lease, 4_000).await;
        market.store.job_cancel(customer, job).await.expect("cancel");
        market.store.lease_lost(host, lease).await.expect("lost");
        assert_eq!(market.job(customer, job).await.state, JobState::Cancelled);
        assert_eq!(market.money(customer).await, (10_000_000, 0));
    })
    .await;
}

#[tokio::test]
async fn a_final_job_stays_as_it_is() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (succeeded, lease) = market.run(customer, host, &request()).await;
        market.finish(host, lease, EXITED).await;
        let (failed, lease) = market.run(customer, host, &request()).await;
        market.finish(host, lease, Outcome::Exited { code: 1 }).await;
        let cancelled = market.submit(customer, &request()).await;
        market.store.job_cancel(customer, cancelled).await.expect("cancel");
        let before = market.state().await;
        for job in [succeeded, failed, cancelled] {
            market.store.job_cancel(customer, job).await.expect("no error");
        }
        assert_eq!(market.state().await, before);
    })
    .await;
}

#[tokio::test]
async fn nobody_cancels_another_customers_job() {
    open(async |market| {
        let [ada, eve] = [market.customer("ada").await, market.customer("eve").await];
        let job = market.submit(ada, &request()).await;
        let before = market.state().await;
        let refused = market.store.job_cancel(eve, job).await;
        assert!(matches!(refused, Err(StoreError::NotFound("job"))), "{refused:?}");
        assert_eq!(market.state().await, before);
    })
    .await;
}
