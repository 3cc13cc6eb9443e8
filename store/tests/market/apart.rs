//! Jobs that are kept apart: no two with one miner, whatever a plan says.

use std::collections::BTreeSet;

use nave_domain::{
    CustomerId, HostId, JobId,
    job::{APART_JOBS_MAX, JobRequest},
    lease::Outcome,
};
use nave_store::{Joining, StoreError};
use uuid::Uuid;

use crate::{
    enrol::wish,
    market::{EXITED, Market, inventory, open, request},
};

fn replica(apart: u128) -> JobRequest {
    JobRequest { apart: Some(Uuid::from_u128(apart)), ..request() }
}

async fn apart_from(market: &Market, job: JobId) -> BTreeSet<String> {
    let snapshot = market.store.snapshot().await.expect("a snapshot");
    snapshot.jobs.into_iter().find(|queued| queued.job == job).expect("it waits").apart_from
}

/// A host of the miner `hotkey` that takes jobs.
async fn host_of(market: &Market, n: u16, hotkey: &str) -> HostId {
    let joining = Joining { hotkey, ..wish(n) };
    let host = joining.host;
    market.store.host_join(&joining).await.expect("join");
    market.store.host_hear(host, 1, 1, 0, &inventory()).await.expect("hear");
    let generation = market.store.host_generation(host).await.expect("a row");
    let proven = nave_domain::host::Proven::of(&inventory());
    market.store.host_prove(host, generation, &proven).await.expect("proven");
    host
}

async fn submit(market: &Market, customer: CustomerId, apart: u128) -> JobId {
    market.submit(customer, &replica(apart)).await
}

#[tokio::test]
async fn of_jobs_that_are_kept_apart_no_two_are_placed_with_one_miner() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let [one, two, other] =
            [host_of(market, 1, "a").await, host_of(market, 2, "a").await, host_of(market, 3, "b").await];
        let [first, second] = [submit(market, customer, 7).await, submit(market, customer, 7).await];
        let planned = market.placement(second, two).await;
        let lease = market.place(first, one).await;
        let refused = market.store.job_place(&planned).await;
        assert!(matches!(refused, Err(StoreError::Stale("job"))), "two schedulers: {refused:?}");
        assert_eq!(apart_from(market, second).await, ["a".to_owned()].into());
        market.store.lease_started(one, lease).await.expect("started");
        market.finish(one, lease, EXITED).await;
        assert_eq!(apart_from(market, second).await, ["a".to_owned()].into(), "it has its result there");
        market.place(second, other).await;
    })
    .await;
}

#[tokio::test]
async fn what_was_lost_keeps_nobody_apart_and_neither_do_other_jobs_or_customers() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = host_of(market, 1, "a").await;
        let [first, second] = [submit(market, customer, 7).await, submit(market, customer, 7).await];
        let lease = market.place(first, host).await;
        market.finish(host, lease, Outcome::StartFailed { detail: String::new() }).await;
        assert_eq!(apart_from(market, second).await, BTreeSet::new());
        market.place(first, host).await;
        let another = market.customer("bob").await;
        let [theirs, plain, later] = [
            submit(market, another, 7).await,
            market.submit(customer, &request()).await,
            submit(market, customer, 8).await,
        ];
        for job in [theirs, plain, later] {
            assert_eq!(apart_from(market, job).await, BTreeSet::new());
            market.place(job, host).await;
        }
        assert_eq!(apart_from(market, second).await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_bounded_number_of_jobs_is_kept_apart() {
    open(async |market| {
        let customer = market.customer("ada").await;
        for _ in 0..APART_JOBS_MAX {
            submit(market, customer, 7).await;
        }
        let refused = market.try_submit(customer, "one more", &replica(7)).await;
        assert!(matches!(refused, Err(StoreError::TooMany(_))), "{refused:?}");
        submit(market, customer, 8).await;
    })
    .await;
}
