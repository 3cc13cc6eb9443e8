//! What owners decide about their hosts.

use nave_domain::{
    host::{HostState, Term},
    job::JobState,
};
use nave_store::{Departure, HostPatch, StoreError};

use crate::market::{EXITED, open, request};

#[tokio::test]
async fn a_change_makes_what_was_planned_before_stale() {
    open(async |market| {
        let (customer, host) = (market.customer("alice").await, market.host("a").await);
        let job = market.submit(customer, &request()).await;
        let placement = market.placement(job, host).await;
        let patch = HostPatch {
            paused: Some(true),
            term: Some(Term::Spot),
            region: "eu".parse().ok(),
            ..HostPatch::default()
        };
        market.store.host_patch("hotkey of a", host, patch).await.expect("patch");
        assert!(matches!(market.store.job_place(&placement).await, Err(StoreError::Stale(_))));
        assert!(market.store.snapshot().await.expect("snapshot").hosts.is_empty());
        let row = &market.store.hosts_of_miner("hotkey of a").await.expect("hosts")[0];
        assert_eq!((row.paused, row.term, row.state), (true, Term::Spot, HostState::Ready));
        let resumed = HostPatch { paused: Some(false), ..HostPatch::default() };
        market.store.host_patch("hotkey of a", host, resumed).await.expect("patch");
        market.place(job, host).await;
    })
    .await;
}

#[tokio::test]
async fn a_host_that_drains_finishes_what_it_has_and_leaves_with_it() {
    open(async |market| {
        let (customer, host) = (market.customer("alice").await, market.host("a").await);
        let (job, lease) = market.run(customer, host, &request()).await;
        let waiting = market.submit(customer, &request()).await;
        let placement = market.placement(waiting, host).await;
        let drain = async || market.store.host_depart(Some("hotkey of a"), host, Departure::Drain).await;
        assert_eq!(drain().await.expect("drain"), HostState::Draining);
        assert_eq!(drain().await.expect("again"), HostState::Draining);
        assert!(matches!(market.store.job_place(&placement).await, Err(StoreError::Stale(_))));
        market.finish(host, lease, EXITED).await;
        assert_eq!(market.job(customer, job).await.state, JobState::Succeeded);
        let row = &market.store.hosts_of_miner("hotkey of a").await.expect("hosts")[0];
        assert_eq!(
            (row.state, row.reason.as_ref().expect("why").code.as_str()),
            (HostState::Gone, "drained")
        );
        assert!(matches!(drain().await, Err(StoreError::Stale("host"))));
    })
    .await;
}

#[tokio::test]
async fn only_its_owner_and_the_operator_take_a_host_out() {
    open(async |market| {
        let host = market.host("a").await;
        let foreign = market.store.host_depart(Some("eve"), host, Departure::Leave).await;
        assert!(matches!(foreign, Err(StoreError::NotFound("host"))), "{foreign:?}");
        let banned = market.store.host_depart(None, host, Departure::Ban).await;
        assert_eq!(banned.expect("ban"), HostState::Banned);
        let patch = HostPatch { paused: Some(true), ..HostPatch::default() };
        let late = market.store.host_patch("hotkey of a", host, patch).await;
        assert!(matches!(late, Err(StoreError::Stale("host"))), "{late:?}");
    })
    .await;
}

/// The end of the last lease and the wish to drain may come at the same moment; whichever is
/// first, the host does not stay behind with nothing to finish.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_host_never_drains_for_ever() {
    open(async |market| {
        let customer = market.customer("alice").await;
        for n in 0..20 {
            let name = format!("h{n}");
            let host = market.host(&name).await;
            let (_, lease) = market.run(customer, host, &request()).await;
            let hotkey = format!("hotkey of {name}");
            let (finished, drained) = tokio::join!(
                market.store.lease_finished(host, lease, Some(EXITED), None),
                market.store.host_depart(Some(&hotkey), host, Departure::Drain)
            );
            finished.expect("finished");
            drained.expect("drained");
            let row = &market.store.hosts_of_miner(&hotkey).await.expect("hosts")[0];
            assert_eq!(row.state, HostState::Gone);
        }
    })
    .await;
}
