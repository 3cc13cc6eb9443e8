//! How much of each class is leased: summed over an epoch, and shown once that has ended.

use nave_domain::class_use::ClassUse;

use crate::market::open;

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
