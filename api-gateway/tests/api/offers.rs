//! Offers: what is listed is what a job that asks for the same could have.

use std::collections::BTreeMap;

use nave_domain::{
    Bytes, HostId, JobId, MicroUsd, MilliGpu, Timestamp,
    fraction::{Division, Fraction, Slice},
    host::{Device, Inventory, Proven, ProvenDevice, Trust},
};
use nave_sdk::wire::rest::{Job, Offer, OfferedFraction};
use nave_store::{BaselineRow, BaselineSource, HostPatch};
use serde_json::json;

use crate::setup::{Market, fresh, inventory, read, refused};

const GIB: i64 = Bytes::GIB;

/// What clouds ask for an H200.
async fn baseline(market: &Market, gpu_hour: i64) {
    let row = BaselineRow {
        class: "h200".into(),
        area: None,
        epoch: 1,
        gpu_hour: MicroUsd(gpu_hour),
        source: BaselineSource::Quotes("test".into()),
        fetched_at: Timestamp(1),
    };
    market.store.baselines_set(&[row]).await.expect("baselines");
}

async fn found(market: &Market, query: &str) -> Vec<Offer> {
    market.fetch(&format!("/v1/offers?{query}")).await
}

/// The fractions that are listed, and nothing else.
async fn parts(market: &Market, query: &str) -> Vec<OfferedFraction> {
    let offers = found(market, query).await;
    offers.into_iter().map(|offer| offer.fraction.expect("a fraction")).collect()
}

/// GPUs of 160 GiB that are leased like this.
fn gpus(divisions: &[Division]) -> Inventory {
    let device = |(number, division): (usize, &Division)| Device {
        uuid: format!("GPU-{number}"),
        vram: Bytes(160 * GIB),
        division: division.clone(),
        ..inventory().devices.remove(0)
    };
    Inventory { devices: divisions.iter().enumerate().map(device).collect(), ..inventory() }
}

fn cut(sizes: &[(i64, i64)]) -> Division {
    let slice = |(number, (milli, gib)): (usize, &(i64, i64))| Slice {
        uuid: format!("MIG-{number}"),
        profile: format!("{gib}gb"),
        milli: MilliGpu(*milli),
        vram: Bytes(gib * GIB),
    };
    Division::Slices(sizes.iter().enumerate().map(slice).collect())
}

/// The GPUs of a host are of the class that H200s are of.
async fn prove(market: &Market, host: HostId, inventory: &Inventory) {
    let generation = market.store.host_generation(host).await.expect("a row");
    let shown = |device: &Device| ProvenDevice {
        models: vec!["NVIDIA H200 NVL".into()],
        ..ProvenDevice::of(device, Some("h200".into()))
    };
    let devices: BTreeMap<_, _> =
        inventory.devices.iter().map(|device| (device.uuid.clone(), shown(device))).collect();
    let proven = Proven { devices: Some(devices), ..Proven::of(inventory) };
    market.store.host_prove(host, generation, &proven).await.expect("proven");
}

/// A job of whoever calls, on a share of a GPU of a host, or on all of it.
async fn share(market: &Market, host: HostId, uuid: &str, share: Option<Fraction>) -> JobId {
    let body = json!({ "argv": ["true"], "resources": { "milli_cpu": 100, "memory": 64 << 20, "gpu": {} }, "max_spend": 1000 });
    let job: Job = read(market.submission(&fresh("key"), &body).send().await.expect("an answer")).await;
    market.place_on(job.job, host, &[uuid], share).await;
    job.job
}

#[tokio::test]
async fn offers_are_chosen_as_jobs_choose_hosts() {
    let market = Market::start().await;
    let host = market.host("alpha").await;
    baseline(&market, 3_000_000).await;
    let patch = HostPatch { region: "eu".parse().ok(), ..HostPatch::default() };
    market.store.host_patch("5Miner", host.id, patch).await.expect("a region");
    for met in [
        "",
        "gpus=1",
        "models=A100,h200",
        "region=eu",
        "term=on_demand",
        "trust=unrated",
        "isolation=host",
        "vram=100000000000&vram_max=200000000000",
        "gpus=1&milli_cpu=1000&max_price=38000000",
        "milli_cpu=8000",
        "trust=unrated&gpus=1",
    ] {
        assert_eq!(found(&market, met).await.len(), 1, "{met}");
    }
    for unmet in [
        "gpus=2",
        "models=A100",
        "region=us",
        "term=spot",
        "vram_max=1000000000",
        "gpus=1&milli_cpu=1000&max_price=37999999",
        "milli_cpu=8001",
        "trust=verified&gpus=1",
        "max_price=1",
    ] {
        assert_eq!(found(&market, unmet).await.len(), 0, "{unmet}");
    }
    for odd in ["gpus=0", "term=soon", "trust=anyone", "region=EU", "color=red"] {
        refused(market.get(&format!("/v1/offers?{odd}")), 400, "query_invalid").await;
    }
    let offers = found(&market, "").await;
    let devices = offers[0].devices.as_ref().expect("GPUs");
    assert_eq!((devices.model.as_str(), devices.free, devices.total), ("H200", 1, 1));
    assert_eq!((offers[0].trust, offers[0].baseline), (Trust::Unrated, None), "nobody knows what its GPU is");
}

#[tokio::test]
async fn a_gpu_is_found_by_the_models_of_its_class_and_not_by_what_it_calls_itself() {
    let market = Market::start().await;
    let host = market.host("alpha").await;
    prove(&market, host.id, &inventory()).await;
    for (model, count) in [("H200%20NVL", 1), ("NVIDIA%20H200", 1), ("A100,nvl", 1), ("H200%20SXM", 0)] {
        assert_eq!(found(&market, &format!("models={model}")).await.len(), count, "{model}");
    }
}

#[tokio::test]
async fn shares_are_listed_for_who_asks_for_their_size_with_their_price_and_what_clouds_ask_for_as_much() {
    let market = Market::start().await;
    baseline(&market, 3_000_000).await;
    let claims = gpus(&[Division::Shares, Division::Shares, Division::Whole]);
    let host = market.host_with("alpha", claims.clone()).await;
    prove(&market, host.id, &claims).await;
    let query = format!("share=250&vram={}", 60 * GIB);
    let listed = OfferedFraction {
        profile: None,
        share: MilliGpu(250),
        vram: Bytes(60 * GIB),
        paid: MilliGpu(375),
        free: 4,
        total: 4,
        gpu_hour: MicroUsd(750_000),
        baseline: Some(MicroUsd(1_125_000)),
        // Three eighths of what a GPU saves, with its third of the cores, which are dear.
        saving: Some(MicroUsd(-94_976_000 * 375 / 1_000)),
    };
    assert_eq!(parts(&market, &query).await, [listed], "its memory is more of it than its computing");
    let [whole] = found(&market, "").await.try_into().expect("what a job that accepts no share could have");
    assert_eq!(whole.saving, Some(MicroUsd(3_000_000 - 2_000_000 - 36_000 * 2_666)));
    assert_eq!((whole.fraction, whole.devices.expect("GPUs").free), (None, 2 + 1));

    // The planner asks no more of a share than this.
    let an_hour = 750_000 + 36_000_000 / 10;
    let within = |most: i64| format!("{query}&milli_cpu=100&max_price={most}");
    assert_eq!(parts(&market, &within(an_hour)).await.len(), 1);
    assert_eq!(found(&market, &within(an_hour - 1)).await, []);
    assert_eq!(
        parts(&market, "share=100").await[0].vram,
        Bytes(155 * GIB / 10),
        "as much as of the computing"
    );
    assert_eq!(found(&market, &format!("share=100&vram_max={GIB}")).await, [], "and that is too much");
}

#[tokio::test]
async fn a_share_is_free_for_who_has_one_of_its_size_on_the_device_and_for_nobody_else() {
    let market = Market::start().await;
    let host = market.host_with("alpha", gpus(&[Division::Shares])).await;
    let fraction = Fraction { milli: MilliGpu(250), vram: Bytes(8 * GIB) };
    share(&market, host.id, "GPU-0", Some(fraction)).await;
    let own = format!("share=250&vram={}", 8 * GIB);
    let left: Vec<_> = parts(&market, &own).await.iter().map(|part| (part.free, part.total)).collect();
    assert_eq!(left, [(3, 4)]);
    assert_eq!(found(&market, "share=300").await, [], "shares of a device are of one size");
    assert_eq!(found(&market, "gpus=1").await, [], "and nobody gets it whole");
    let (_, stranger) = market.customer("eve").await;
    let market = market.with_token(stranger);
    assert_eq!(found(&market, &own).await, []);
}

#[tokio::test]
async fn where_no_share_is_free_whole_gpus_are_listed_as_a_job_would_get_them() {
    let market = Market::start().await;
    let host = market.host_with("alpha", gpus(&[Division::Shares, Division::Whole])).await;
    assert_eq!(parts(&market, "share=250").await.len(), 1, "only the share while there is one");
    share(&market, host.id, "GPU-0", None).await;
    let [whole] = found(&market, "share=250").await.try_into().expect("one offer");
    assert_eq!((whole.fraction, whole.devices.expect("GPUs").free), (None, 1));
    for alone in ["share=250&isolation=device", "share=250&gpus=1&isolation=device", "share=1000"] {
        assert!(found(&market, alone).await.iter().all(|offer| offer.fraction.is_none()), "{alone}");
    }
    for odd in ["share=0", "share=1001", "share=250&vram=1"] {
        refused(market.get(&format!("/v1/offers?{odd}")), 400, "query_invalid").await;
    }
}

#[tokio::test]
async fn slices_are_listed_by_their_size_whoever_has_the_others() {
    let market = Market::start().await;
    let host = market.host_with("alpha", gpus(&[cut(&[(428, 80), (142, 20), (142, 20)])])).await;
    let (stranger, _) = market.customer("eve").await;
    assert_ne!(stranger, market.customer);
    share(&market, host.id, "MIG-1", None).await;
    let sizes = |parts: Vec<OfferedFraction>| -> Vec<_> {
        parts
            .into_iter()
            .map(|part| (part.profile.expect("a slice"), part.paid.0, part.free, part.total))
            .collect()
    };
    let (small, large) = (("20gb".to_owned(), 142, 1, 2), ("80gb".to_owned(), 500, 1, 1));
    assert_eq!(sizes(parts(&market, "").await), [small.clone(), large.clone()], "cheapest first");
    assert_eq!(sizes(parts(&market, "share=100").await), [small.clone(), large.clone()], "each suffices");
    assert_eq!(sizes(parts(&market, "share=200").await), [large], "only what suffices");
    assert_eq!(sizes(parts(&market, &format!("share=100&vram_max={}", 20 * GIB)).await), [small]);
    assert_eq!(found(&market, "gpus=1").await, [], "nobody gets a device whole that is cut");
}
