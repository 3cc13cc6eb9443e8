//! Baselines: the newest of a class and region counts.

use nave_domain::{HostId, MicroUsd, Timestamp, rate::GpuPrice};
use nave_store::{BaselineRow, HostPatch};

use crate::market::{Market, RATE, open};

fn row(region: Option<&str>, epoch: i64, gpu_hour: i64) -> BaselineRow {
    BaselineRow {
        class: "h100".into(),
        region: region.and_then(|region| region.parse().ok()),
        epoch,
        gpu_hour: MicroUsd(gpu_hour),
        source: "test".into(),
        fetched_at: Timestamp(epoch),
    }
}

#[tokio::test]
async fn the_newest_baseline_of_a_region_counts_and_elsewhere_the_one_for_anywhere() {
    open(async |market| {
        let rows = [row(None, 1, 300), row(None, 2, 290), row(Some("eu"), 1, 310), row(Some("eu"), 3, 280)];
        market.store.baselines_set(&rows).await.expect("set");
        let baselines = market.store.baselines().await.expect("baselines");
        let [eu, us] = ["eu", "us"].map(|region| region.parse().expect("a region"));
        assert_eq!(baselines.of("h100", Some(&eu)), Some(MicroUsd(280)));
        assert_eq!(baselines.of("h100", Some(&us)), Some(MicroUsd(290)));
        assert_eq!(baselines.of("h100", None), Some(MicroUsd(290)));
        assert_eq!(baselines.of("a100", None), None);
        assert_eq!(market.store.snapshot().await.expect("snapshot").baselines, baselines);

        market.store.baselines_set(&[row(Some("eu"), 3, 270)]).await.expect("set again");
        assert_eq!(
            market.store.baselines().await.expect("baselines").of("h100", Some(&eu)),
            Some(MicroUsd(270))
        );
        let history = market.store.baseline_history("h100").await.expect("history");
        assert_eq!(
            history,
            [row(None, 1, 300), row(Some("eu"), 1, 310), row(None, 2, 290), row(Some("eu"), 3, 270)]
        );
    })
    .await;
}

/// What a GPU of a host costs.
async fn price(market: &Market, host: HostId) -> MicroUsd {
    let rows = market.store.host_list().await.expect("hosts");
    rows.into_iter().find(|row| row.host == host).expect("the host").rate.gpu_hour
}

/// Has a host prove a device of a class.
async fn prove(market: &Market, host: HostId, class: &str) {
    sqlx::query("update hosts set proven = jsonb_set(proven, '{devices}', $2) where host_id = $1")
        .bind(host.0)
        .bind(serde_json::json!({ class: { "class": class, "model": "X", "vram": 1, "driver": "1" } }))
        .execute(&market.sql)
        .await
        .expect("proven");
}

#[tokio::test]
async fn a_price_that_follows_clouds_moves_with_them_until_its_owner_sets_it() {
    open(async |market| {
        let [alpha, beta] = [market.host("alpha").await, market.host("beta").await];
        prove(market, alpha, "h100").await;
        market.store.baselines_set(&[row(None, 1, 3_000_000)]).await.expect("baselines");
        let how = GpuPrice::BelowBaseline { percent: 10, floor: MicroUsd(2_500_000) };
        for (host, hotkey) in [(alpha, "hotkey of alpha"), (beta, "hotkey of beta")] {
            let patch = HostPatch { gpu_price: Some(how), ..HostPatch::default() };
            market.store.host_patch(hotkey, host, patch).await.expect("patch");
        }
        assert_eq!(market.store.hosts_of_miner("hotkey of alpha").await.expect("hosts")[0].gpu_price, how);
        assert_eq!(market.store.prices_follow(None).await.expect("prices"), 1);
        assert_eq!(price(market, alpha).await, MicroUsd(2_700_000));
        assert_eq!(price(market, beta).await, RATE.gpu_hour, "nobody knows what its devices are");
        assert_eq!(market.store.prices_follow(None).await.expect("prices"), 0, "nothing has changed");

        market.store.baselines_set(&[row(None, 2, 2_000_000)]).await.expect("baselines");
        assert_eq!(market.store.prices_follow(Some(beta)).await.expect("prices"), 0);
        assert_eq!(market.store.prices_follow(Some(alpha)).await.expect("prices"), 1);
        assert_eq!(price(market, alpha).await, MicroUsd(2_500_000), "not below its floor");

        let fixed = HostPatch { gpu_price: Some(GpuPrice::Fixed), rate: Some(RATE), ..HostPatch::default() };
        market.store.host_patch("hotkey of alpha", alpha, fixed).await.expect("patch");
        assert_eq!(market.store.prices_follow(None).await.expect("prices"), 0);
        assert_eq!(price(market, alpha).await, RATE.gpu_hour);
    })
    .await;
}
