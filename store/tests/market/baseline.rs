//! Baselines: the newest of a class and region counts.

use nave_domain::{HostId, MicroUsd, Timestamp, rate::GpuPrice, region::Area};
use nave_store::{BaselineRow, BaselineSource, HostPatch};

use crate::market::{Market, RATE, open};

fn row(area: Option<Area>, epoch: i64, gpu_hour: i64) -> BaselineRow {
    let source = match area {
        Some(area) => BaselineSource::Quotes(area.name().into()),
        None => BaselineSource::List("test".into()),
    };
    BaselineRow {
        class: "h100".into(),
        area,
        epoch,
        gpu_hour: MicroUsd(gpu_hour),
        source,
        fetched_at: Timestamp(epoch),
    }
}

const EUROPE: Option<Area> = Some(Area::Europe);

#[tokio::test]
async fn the_newest_baseline_of_an_area_counts_for_all_regions_in_it_and_elsewhere_the_one_for_anywhere() {
    open(async |market| {
        let rows = [row(None, 1, 300), row(None, 2, 290), row(EUROPE, 1, 310), row(EUROPE, 3, 280)];
        market.store.baselines_set(&rows).await.expect("set");
        let baselines = market.store.baselines().await.expect("baselines");
        let of = |region: &str| baselines.of("h100", Some(&region.parse().expect("a region")));
        for region in ["eu", "europe", "eu-west-1", "fin-01"] {
            assert_eq!(of(region), Some(MicroUsd(280)), "{region}");
        }
        for region in ["us", "us-east-1", "here"] {
            assert_eq!(of(region), Some(MicroUsd(290)), "{region}");
        }
        assert_eq!(baselines.of("h100", None), Some(MicroUsd(290)));
        assert_eq!(baselines.of("a100", None), None);
        assert_eq!(market.store.snapshot().await.expect("snapshot").baselines, baselines);

        market.store.baselines_set(&[row(EUROPE, 3, 270)]).await.expect("set again");
        let mut newest = market.store.baseline_list().await.expect("newest");
        newest.sort_by_key(|row| row.area);
        assert_eq!(newest, [row(None, 2, 290), row(EUROPE, 3, 270)]);
        let history = market.store.baseline_history("h100").await.expect("history");
        assert_eq!(history, [row(None, 1, 300), row(EUROPE, 1, 310), row(None, 2, 290), row(EUROPE, 3, 270)]);
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

        let there = HostPatch { region: "fin-01".parse().ok(), ..HostPatch::default() };
        market.store.host_patch("hotkey of alpha", alpha, there).await.expect("patch");
        market.store.baselines_set(&[row(EUROPE, 1, 3_100_000)]).await.expect("baselines");
        assert_eq!(market.store.prices_follow(None).await.expect("prices"), 1);
        assert_eq!(
            price(market, alpha).await,
            MicroUsd(2_790_000),
            "what clouds ask in its part of the world"
        );

        market.store.baselines_set(&[row(EUROPE, 2, 2_000_000)]).await.expect("baselines");
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
