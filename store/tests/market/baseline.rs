//! Baselines: the newest of a class and region counts.

use nave_domain::{MicroUsd, Timestamp};
use nave_store::BaselineRow;

use crate::market::open;

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
