//! The control clock: hosts are measured only by time in which they could be heard.

use nave_domain::Millis;

use crate::market::open;

async fn beat_after(market: &crate::market::Market, span: i64) -> i64 {
    let before = market.store.clock_up().await.expect("up");
    sqlx::query("update control_clock set beat_at_ms = now_ms() - $1")
        .bind(span)
        .execute(&market.sql)
        .await
        .expect("wait");
    market.store.clock_beat().await.expect("beat");
    market.store.clock_up().await.expect("up").0 - before.0
}

#[tokio::test]
async fn a_beat_adds_the_time_since_the_last_one() {
    open(async |market| {
        let added = beat_after(market, 500).await;
        assert!((500..900).contains(&added), "{added}");
    })
    .await;
}

#[tokio::test]
async fn downtime_does_not_count() {
    open(async |market| assert_eq!(beat_after(market, 3_600_000).await, 1_000)).await;
}

#[tokio::test]
async fn a_clock_set_back_adds_nothing() {
    open(async |market| {
        assert_eq!(beat_after(market, -60_000).await, 0);
    })
    .await;
}

#[tokio::test]
async fn after_a_clock_set_back_silence_counts_on_at_once() {
    open(async |market| {
        assert_eq!(beat_after(market, -7_200_000).await, 0);
        let before = market.store.clock_up().await.expect("up");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        market.store.clock_beat().await.expect("beat");
        let added = market.store.clock_up().await.expect("up").0 - before.0;
        assert!(added >= 40, "{added} of at least 50 ms: silent hosts would not be noticed for two hours");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_gateways_together_add_real_time_once() {
    open(async |market| {
        let began = market.store.now().await.expect("now");
        market.store.clock_beat().await.expect("beat");
        let up = market.store.clock_up().await.expect("up");
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let store = market.store.clone();
            tasks.spawn(async move {
                for _ in 0..20 {
                    store.clock_beat().await.expect("beat");
                }
            });
        }
        tasks.join_all().await;
        let passed = market.store.now().await.expect("now").since(began);
        let added = Millis(market.store.clock_up().await.expect("up").0 - up.0);
        assert!(added <= passed, "{added:?} of {passed:?}");
    })
    .await;
}

#[tokio::test]
async fn the_clock_stands_still_while_the_hub_is_away() {
    open(async |market| {
        let up = async || market.store.clock_up().await.expect("uptime").0;
        let age = async |span: i64| {
            sqlx::query("update control_clock set beat_at_ms = beat_at_ms - $1, hub_at_ms = hub_at_ms - $1")
                .bind(span)
                .execute(&market.sql)
                .await
                .expect("age");
        };
        market.store.hub_beat().await.expect("the hub");
        age(400).await;
        let before = up().await;
        market.store.clock_beat().await.expect("a beat");
        assert!(up().await >= before + 400, "the hub was there a moment ago");
        age(5_000).await;
        let before = up().await;
        market.store.clock_beat().await.expect("a beat");
        assert_eq!(up().await, before, "hosts could not reach anything");
        market.store.hub_beat().await.expect("the hub is back");
        market.store.clock_beat().await.expect("a beat");
        assert_eq!(up().await, before + 1_000, "one beat's worth at most");
    })
    .await;
}
