//! Epochs: each unit of use counts once, and weights follow.

use std::collections::BTreeMap;

use nave_domain::{
    Bytes, LeaseId, MicroUsd, Millis,
    epoch::{EpochState, WEIGHT_TOTAL, weights},
    rate::Rate,
};
use nave_store::{DeliveredRow, StoreError};
use tokio::task::JoinSet;

use crate::market::{EXITED, Market, RATE, inventory, open, request};

async fn close(market: &Market) -> BTreeMap<String, DeliveredRow> {
    let open = market.store.epoch_open("local").await.expect("open");
    market.store.epoch_close(open.epoch, "local").await.expect("close");
    market.store.epoch_delivered(open.epoch).await.expect("delivered")
}

async fn used_of(market: &Market, lease: LeaseId) -> i64 {
    sqlx::query_scalar("select used_ms from leases where lease_id = $1")
        .bind(lease.0)
        .fetch_one(&market.sql)
        .await
        .expect("used")
}

#[tokio::test]
async fn every_unit_of_use_counts_in_exactly_one_epoch() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let odd = Rate { vcpu_hour: MicroUsd(1_000_003), gib_hour: MicroUsd(777), ..RATE };
        let host = market.host_with("alpha", odd, &inventory()).await;
        let (job, lease) = market.run(customer, host, &request()).await;
        let mut total = DeliveredRow::default();
        for span in [1_001, 2_003, 0, 3_007] {
            market.use_up(host, lease, span).await;
            for row in close(market).await.values() {
                total.used = total.used.plus(row.used).expect("in range");
                total.value = total.value.plus(row.value).expect("in range");
            }
        }
        market.finish(host, lease, EXITED).await;
        for row in close(market).await.values() {
            total.used = total.used.plus(row.used).expect("in range");
            total.value = total.value.plus(row.value).expect("in range");
        }
        let attempt = market.attempt(job).await;
        assert_eq!(total.used, attempt.used);
        assert_eq!(total.value, attempt.charged, "what was delivered is what was paid");
        assert!(close(market).await.is_empty(), "nothing is left to count");
    })
    .await;
}

#[tokio::test]
async fn an_attempt_that_is_not_charged_delivers_nothing() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (_, lease) = market.run(customer, host, &request()).await;
        market.use_up(host, lease, 5_000).await;
        market.store.lease_lost(host, lease).await.expect("lost");
        assert!(close(market).await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn use_counts_once_its_lease_is_closed_so_that_what_is_refunded_never_does() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        market.use_up(host, lease, 5_000).await;
        assert!(close(market).await.is_empty(), "it runs");
        market.store.lease_lost(host, lease).await.expect("lost");
        assert_eq!(used_of(market, lease).await, 0);
        assert_eq!(market.attempt(job).await.charged, MicroUsd::ZERO);
        assert!(close(market).await.is_empty(), "it was refunded");
    })
    .await;
}

#[tokio::test]
async fn miners_are_weighed_by_the_value_they_delivered() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let mut large = request();
        large.resources.milli_cpu.0 *= 3;
        for (name, mut wanted) in [("alpha", request()), ("beta", large)] {
            wanted.limits.run_ms = Millis(5_000);
            let host = market.host(name).await;
            let (_, lease) = market.run(customer, host, &wanted).await;
            market.use_up(host, lease, 9_000).await;
            market.finish(host, lease, EXITED).await;
        }
        let delivered = close(market).await;
        let values: BTreeMap<_, _> = delivered.iter().map(|(name, row)| (name.clone(), row.value)).collect();
        let vector = weights(&values, "sink");
        assert_eq!(vector.values().map(|weight| u32::from(*weight)).sum::<u32>(), u32::from(WEIGHT_TOTAL));
        let [alpha, beta] = [vector["hotkey of alpha"], vector["hotkey of beta"]];
        assert!(beta.abs_diff(alpha * 3) < 400, "{alpha} and {beta} are about one to three");
    })
    .await;
}

#[tokio::test]
async fn an_epoch_walks_its_states_one_by_one_and_only_once() {
    open(async |market| {
        let open = market.store.epoch_open("local").await.expect("open");
        assert_eq!((open.epoch, open.state), (1, EpochState::Open));
        assert_eq!(market.store.epoch_open("local").await.expect("the same").epoch, 1);
        market.store.epoch_close(1, "local").await.expect("close");
        let again = market.store.epoch_close(1, "local").await;
        assert!(matches!(again, Err(StoreError::Stale("epoch"))), "{again:?}");
        let vector = BTreeMap::from([("sink".to_owned(), WEIGHT_TOTAL)]);
        for (from, weights) in
            [(EpochState::Closed, Some(&vector)), (EpochState::Settled, None), (EpochState::Submitted, None)]
        {
            market.store.epoch_advance(1, from, weights).await.expect("advance");
            let again = market.store.epoch_advance(1, from, weights).await;
            assert!(matches!(again, Err(StoreError::Stale("epoch"))), "{again:?}");
        }
        let confirmed = market.store.epoch_get(1).await.expect("get");
        assert_eq!((confirmed.state, confirmed.weights), (EpochState::Confirmed, Some(vector)));
        let past = market.store.epoch_advance(1, EpochState::Confirmed, None).await;
        assert!(matches!(past, Err(StoreError::Stale("epoch"))), "{past:?}");
        let newest: Vec<_> = market
            .store
            .epoch_list(10)
            .await
            .expect("list")
            .iter()
            .map(|row| (row.epoch, row.state))
            .collect();
        assert_eq!(newest, [(2, EpochState::Open), (1, EpochState::Confirmed)]);
        let missing = market.store.epoch_get(9).await;
        assert!(matches!(missing, Err(StoreError::NotFound("epoch"))), "{missing:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_many_close_at_once_is_closed_once_and_nothing_counts_twice() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (_, lease) = market.run(customer, host, &request()).await;
        for _ in 0..4 {
            market.use_up(host, lease, 1_000).await;
            let epoch = market.store.epoch_open("local").await.expect("open").epoch;
            let mut tasks = JoinSet::new();
            for _ in 0..6 {
                let store = market.store.clone();
                tasks.spawn(async move { store.epoch_close(epoch, "local").await });
                let store = market.store.clone();
                tasks.spawn(async move { store.leases_heard(host, &[lease]).await });
            }
            let answers = tasks.join_all().await;
            let refused = answers.iter().filter(|answer| matches!(answer, Err(StoreError::Stale(_)))).count();
            assert_eq!(refused, 5, "{answers:?}");
            assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 7, "{answers:?}");
        }
        market.finish(host, lease, EXITED).await;
        close(market).await;
        let counted: i64 = sqlx::query_scalar("select sum(used_ms)::bigint from epoch_leases")
            .fetch_one(&market.sql)
            .await
            .expect("sum");
        assert_eq!(counted, used_of(market, lease).await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_is_opened_once_whoever_comes_first() {
    open(async |market| {
        let mut tasks = JoinSet::new();
        for _ in 0..12 {
            let store = market.store.clone();
            tasks.spawn(async move { store.epoch_open("local").await.expect("open").epoch });
        }
        assert!(tasks.join_all().await.into_iter().all(|epoch| epoch == 1));
    })
    .await;
}

#[tokio::test]
async fn memory_and_gpus_count_at_their_rates() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let rate = Rate { gib_hour: MicroUsd(3_600_000), vcpu_hour: MicroUsd::ZERO, ..RATE };
        let host = market.host_with("alpha", rate, &inventory()).await;
        let mut wanted = request();
        wanted.resources.memory = Bytes(2 * Bytes::GIB);
        wanted.limits.run_ms = Millis(4_000);
        let (_, lease) = market.run(customer, host, &wanted).await;
        market.use_up(host, lease, 9_000).await;
        market.finish(host, lease, EXITED).await;
        let expected = DeliveredRow { used: Millis(4_000), value: MicroUsd(8_000) };
        assert_eq!(close(market).await, BTreeMap::from([("hotkey of alpha".to_owned(), expected)]));
    })
    .await;
}
