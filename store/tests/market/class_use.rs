//! How much of each class is leased: summed over an epoch, and shown once that has ended.

use nave_domain::class_use::ClassUse;

use crate::{
    market::{EXITED, open, request},
    standby::gpus,
};

#[tokio::test]
async fn what_was_seen_of_a_class_is_summed_over_its_epoch() {
    open(async |market| {
        let seen = |leased_milli| [("h100".to_owned(), ClassUse { devices: 8, leased_milli })].into();
        let known = async || market.store.class_use().await.expect("seen").get("h100").copied();
        market.store.class_use_add(&seen(1_000)).await.expect("no epoch is open");
        assert_eq!(known().await, None);
        let first = market.store.epoch_open("test").await.expect("an epoch").epoch;
        for leased in [4_000, 8_000] {
            market.store.class_use_add(&seen(leased)).await.expect("added");
        }
        let summed = ClassUse { devices: 16, leased_milli: 12_000 };
        assert_eq!(known().await, Some(summed));
        market.store.epoch_close(first, "test").await.expect("closed");
        market.store.class_use_add(&seen(0)).await.expect("added");
        assert_eq!(known().await, Some(summed), "what has ended counts before what has begun");
    })
    .await;
}

#[tokio::test]
async fn what_is_leased_of_a_class_is_counted_and_what_quotes_hold_is_not() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = gpus(market, "alpha").await;
        gpus(market, "beta").await;
        let now = async || market.store.class_use_now().await.expect("seen");
        let seen = |devices, leased_milli| [("h100".to_owned(), ClassUse { devices, leased_milli })].into();
        crate::quote::held(market, customer, host).await;
        sqlx::query("update quotes set answer = jsonb_set(answer, '{answer,place,devices}', '[\"GPU-1\"]')")
            .execute(&market.sql)
            .await
            .expect("it holds a GPU");
        assert_eq!(now().await, seen(4, 0), "nobody pays for it");
        let (_, first) = market.run(customer, host, &request()).await;
        let (_, second) = market.run(customer, host, &request()).await;
        sqlx::query("update leases set devices = '{GPU-1}', share_milli = 300, share_vram = 1")
            .execute(&market.sql)
            .await
            .expect("shares");
        assert_eq!(now().await, seen(4, 600), "two shares");
        sqlx::query("update leases set devices = '{GPU-1,GPU-2}', share_milli = null, share_vram = null")
            .execute(&market.sql)
            .await
            .expect("whole devices");
        assert_eq!(now().await, seen(4, 2_000), "and no device more than once");
        for lease in [first, second] {
            market.finish(host, lease, EXITED).await;
        }
        assert_eq!(now().await, seen(4, 0));
        sqlx::query("update hosts set paused = true where host_id = $1")
            .bind(host.0)
            .execute(&market.sql)
            .await
            .expect("paused");
        assert_eq!(now().await, seen(2, 0), "of hosts that take jobs");
    })
    .await;
}
