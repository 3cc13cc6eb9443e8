//! Late and foreign reports: what a host says counts only for its own open leases.

use nave_domain::{
    HostId, LeaseId,
    job::JobState,
    lease::{Outcome, StopReason},
};
use nave_store::StoreError;

use crate::market::{EXITED, Market, open, request};

/// Everything a host can say about a lease.
async fn say_everything(market: &Market, host: HostId, lease: LeaseId) {
    let store = &market.store;
    store.leases_heard(host, &[lease]).await.expect("heard");
    store.lease_started(host, lease).await.expect("started");
    store.lease_exited(host, lease).await.expect("exited");
    for outcome in [Some(EXITED), Some(Outcome::OutOfMemory), None] {
        store.lease_finished(host, lease, outcome, None).await.expect("finished");
    }
    store.lease_lost(host, lease).await.expect("lost");
    store.lease_stop(host, lease, StopReason::RunTimeout).await.expect("stop");
    let log = store.log_append(host, lease, "stdout", 0, b"forged", 100).await;
    assert!(matches!(log, Err(StoreError::NotFound("lease"))), "{log:?}");
}

#[tokio::test]
async fn reports_after_the_close_change_nothing() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        for outcome in [EXITED, Outcome::Exited { code: 2 }] {
            let (_, lease) = market.run(customer, host, &request()).await;
            market.use_up(host, lease, 1_000).await;
            market.finish(host, lease, outcome).await;
            market.elapse(lease, 5_000).await;
            let before = market.state().await;
            say_everything(market, host, lease).await;
            assert_eq!(market.state().await, before);
        }
    })
    .await;
}

#[tokio::test]
async fn another_hosts_reports_change_nothing() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let [owner, foreign] = [market.host("owner").await, market.host("foreign").await];
        let placed = {
            let job = market.submit(customer, &request()).await;
            market.place(job, owner).await
        };
        let (_, running) = market.run(customer, owner, &request()).await;
        let before = market.state().await;
        for lease in [placed, running] {
            say_everything(market, foreign, lease).await;
        }
        assert_eq!(market.state().await, before);
    })
    .await;
}

#[tokio::test]
async fn an_earlier_attempt_says_nothing_about_a_later_one() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, first) = market.run(customer, host, &request()).await;
        market.store.lease_lost(host, first).await.expect("lost");
        let second = market.place(job, host).await;
        let before = market.state().await;
        say_everything(market, host, first).await;
        assert_eq!(market.state().await, before);
        assert_eq!(market.job(customer, job).await.state, JobState::Placed);
        market.finish(host, second, EXITED).await;
        assert_eq!(market.job(customer, job).await.state, JobState::Succeeded);
    })
    .await;
}
