//! Collateral that is called back: what backs a lease stays until that has closed.

use nave_domain::MicroUsd;
use serde_json::json;

use crate::{
    market::{EXITED, open, request},
    settle::begin,
};

#[tokio::test]
async fn collateral_is_not_paid_back_while_it_backs_a_lease_on_demand() {
    open(async |market| {
        let hour = 3_600_000;
        begin(market, json!({"collateral_ms": hour})).await;
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let hotkey = "hotkey of alpha";
        market.store.collateral_post(hotkey, None, MicroUsd(8 * hour), "one").await.expect("posted");
        // A virtual CPU of eight, at a micro-USD a millisecond.
        let (_, lease) = market.run(customer, host, &request()).await;
        for amount in [7 * hour, hour] {
            market.store.collateral_call(hotkey, MicroUsd(amount)).await.expect("called");
        }
        assert_eq!(market.store.collateral_pay().await.expect("pay"), 1, "what is beyond an hour's price");
        let left = market.store.collateral(hotkey).await.expect("collateral");
        assert_eq!((left.balance.0, left.called.len()), (hour, 1));
        assert_eq!(market.store.collateral_pay().await.expect("pay"), 0);
        market.finish(host, lease, EXITED).await;
        assert_eq!(market.store.collateral_pay().await.expect("pay"), 1);
        let left = market.store.collateral(hotkey).await.expect("collateral");
        assert_eq!((left.balance.0, left.called.len()), (0, 0));
    })
    .await;
}

#[tokio::test]
async fn whoever_pays_collateral_back_and_whoever_leaves_some_do_not_wait_for_each_other_in_a_circle() {
    open(async |market| {
        begin(market, json!({})).await;
        let hotkey = "hotkey of alpha";
        market.store.collateral_post(hotkey, None, MicroUsd(100), "one").await.expect("posted");
        market.store.collateral_call(hotkey, MicroUsd(90)).await.expect("called");
        // A posting takes where the money comes from first.
        let mut post = market.sql.begin().await.expect("begin");
        let lock = async |post: &mut sqlx::PgConnection, account: &str| {
            let lock = sqlx::query("select from ledger_accounts where account = $1 for no key update");
            lock.bind(account.to_owned()).execute(post).await.map(drop)
        };
        lock(&mut post, "funding").await.expect("funding");
        let store = market.store.clone();
        let paying = tokio::spawn(async move { store.collateral_pay().await });
        market.blocked().await;
        lock(&mut post, "collateral:hotkey of alpha")
            .await
            .expect("who waits for the first has not the second");
        post.commit().await.expect("commit");
        assert_eq!(paying.await.expect("it ends").expect("paid"), 1);
    })
    .await;
}
