//! What clouds ask, from their offers to the hosts and jobs that it is about.

use nave_clouds::{
    Cloud, CloudOffer,
    baseline::{CloudQuote, price_list},
    classes::class_of,
    provider::Availability,
};
use nave_domain::{
    Bytes, HostId, MicroUsd, MilliCpu, Timestamp,
    fraction::Division,
    host::{Device, Inventory, Proven, ProvenDevice},
    job::{GpuRequest, JobRequest},
    rate::GpuPrice,
    region::Area,
};
use nave_scheduler::{cloud::prices::set, planner::plan};
use nave_store::{BaselineSource, HostPatch, Store, Submission};
use uuid::Uuid;

use crate::rows::{inventory, join, store};

const CLASS: &str = "h100-sxm";
const NOW: Timestamp = Timestamp(1_795_000_000_000);

fn list_price() -> i64 {
    price_list().class.iter().find(|class| class.name == CLASS).expect("listed").price().0
}

/// What a cloud asks for one device at a place of its own.
fn quote(cloud: Cloud, region: &str, price: i64) -> CloudQuote {
    let model = "NVIDIA H100 80GB HBM3".to_owned();
    let offer = CloudOffer {
        cloud,
        id: "one".to_owned(),
        region: region.to_owned(),
        class: class_of(&model, None),
        model,
        devices: 1,
        vram_each: None,
        cpu: MilliCpu(0),
        memory: Bytes(0),
        disk: Bytes(0),
        price: MicroUsd(price),
        billing: cloud.terms().billing,
        availability: Availability::Available(None),
        fetched_at: NOW,
        raw: String::new(),
    };
    CloudQuote::of(&offer).expect("a quote")
}

/// A host with a GPU that is proven, in a region, whose price is a tenth below what clouds ask.
async fn host(store: &Store, number: u128, region: &str) -> HostId {
    let id = Uuid::from_u128(number);
    let host = join(store, id, "miner").await.expect("a host");
    let device = Device {
        uuid: format!("GPU-{number}"),
        model: "H100".into(),
        vram: Bytes(80 * Bytes::GIB),
        driver: "1".into(),
        simulated: false,
        division: Division::default(),
    };
    let shown = ProvenDevice::of(&device, Some(CLASS.into()));
    let has = Inventory { devices: vec![device.clone()], ..inventory() };
    store.host_hear(host, 1, 1, 0, &has).await.expect("heard");
    let proven = Proven { devices: Some([(device.uuid, shown)].into()), ..Proven::of(&has) };
    let seen = store.host_generation(host).await.expect("a row");
    store.host_prove(host, seen, &proven).await.expect("proven");
    let follows = GpuPrice::BelowBaseline { percent: 10, floor: MicroUsd(1) };
    let patch = HostPatch { region: region.parse().ok(), gpu_price: Some(follows), ..HostPatch::default() };
    store.host_patch("miner", host, patch).await.expect("a region and a price");
    host
}

/// What is asked for the class in the world, and whether that is the list's.
async fn asked(store: &Store) -> (MicroUsd, bool) {
    let rows = store.baseline_list().await.expect("rows");
    let row = rows.iter().find(|row| (row.class.as_str(), row.area) == (CLASS, None)).expect("a baseline");
    (row.gpu_hour, matches!(row.source, BaselineSource::List(_)))
}

#[tokio::test]
async fn what_clouds_ask_in_europe_is_what_hosts_and_jobs_there_are_measured_by() {
    let (store, _) = store().await;
    let [there, elsewhere] = [host(&store, 1, "fin-01").await, host(&store, 2, "us-east-1").await];
    let [dear, cheap] = [list_price() + 1_000, list_price() - 1_000];
    let quotes = [quote(Cloud::Verda, "FIN-01", dear), quote(Cloud::Lambda, "us-west-1", cheap)];
    set(&store, &quotes, NOW).await.expect("written");
    let hosts = store.snapshot().await.expect("a snapshot").hosts;
    assert_eq!(hosts[&there].rate.gpu_hour, MicroUsd(dear * 9 / 10), "its price follows what is asked there");
    assert_eq!(hosts[&elsewhere].rate.gpu_hour, MicroUsd(cheap * 9 / 10));

    let mut request = JobRequest::of(vec!["true".into()]);
    (request.region, request.resources.gpu) = ("eu".parse().ok(), Some(GpuRequest::default()));
    let customer = store.customer_ensure("customer").await.expect("a customer");
    let submission = Submission { customer, key: "there", hash: [1; 32], request: &request };
    let job = store.job_submit(&submission).await.expect("submitted").job;
    let placements = plan(&store.snapshot().await.expect("a snapshot")).placements;
    let placed = placements.iter().find(|placement| placement.job == job).expect("placed");
    assert_eq!((placed.host, placed.grounds.baseline), (there, Some(MicroUsd(dear))));
    let areas: Vec<Option<Area>> =
        store.baseline_history(CLASS).await.expect("rows").iter().map(|row| row.area).collect();
    assert_eq!(areas.len(), 3, "the world and two parts of it: {areas:?}");
}

#[tokio::test]
async fn a_role_that_begins_again_without_offers_keeps_what_was_quoted_and_quotes_move_it_once_an_epoch() {
    let (store, _) = store().await;
    let first = store.epoch_open("test").await.expect("an epoch").epoch;
    set(&store, &[], NOW).await.expect("written");
    assert_eq!(asked(&store).await, (MicroUsd(list_price()), true));
    let cheap = [quote(Cloud::Lambda, "us-west-1", 1)];
    let step = |from: i64| from - from * 50 / 10_000;
    for _ in 0..3 {
        set(&store, &cheap, NOW).await.expect("written");
        assert_eq!(asked(&store).await, (MicroUsd(step(list_price())), false));
    }
    set(&store, &[], NOW).await.expect("written");
    assert_eq!(asked(&store).await, (MicroUsd(step(list_price())), false), "the list replaces no quotes");

    store.epoch_close(first, "test").await.expect("closed");
    set(&store, &[], NOW).await.expect("written");
    assert_eq!(asked(&store).await, (MicroUsd(step(list_price())), false));
    for _ in 0..2 {
        set(&store, &cheap, NOW).await.expect("written");
        assert_eq!(asked(&store).await, (MicroUsd(step(step(list_price()))), false));
    }
}
