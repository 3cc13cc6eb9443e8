//! Hosts and what they offer.

use std::collections::BTreeMap;

use nave_domain::{
    Bytes, HostId, MicroUsd,
    host::{Device, HostState},
    rate::Rate,
};
use nave_sdk::wire::rest::{Host, Offer};
use nave_store::{HostPatch, testing::NewHost};
use uuid::Uuid;

use crate::setup::{Market, RATE, inventory};

#[tokio::test]
async fn hosts_are_listed_with_what_they_say_they_have() {
    let market = Market::start().await;
    let host = market.host("b").await;
    market.placed(&host).await;
    let silent = HostId(Uuid::now_v7());
    let new = NewHost { host: silent, name: "a", hotkey: "5Miner", rate: RATE };
    market.store.host_enrol(&new).await.expect("enrol");
    let hosts: Vec<Host> = market.fetch("/v1/hosts").await;
    assert_eq!(hosts.iter().map(|host| host.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((hosts[0].state, hosts[0].inventory.as_ref()), (HostState::Enrolled, None));
    assert_eq!((hosts[1].host, hosts[1].state, hosts[1].leases), (host.id, HostState::Ready, 1));
    assert_eq!(hosts[1].inventory, Some(inventory()));
}

#[tokio::test]
async fn offers_are_what_is_free_on_ready_hosts_cheapest_first() {
    let market = Market::start().await;
    let dear = market.host("dear").await;
    let cheap = market.host("cheap").await;
    let rate = Rate { gpu_hour: MicroUsd(1), ..RATE };
    let cheaper = HostPatch { rate: Some(rate), ..HostPatch::default() };
    market.store.host_patch("5Miner", cheap.id, cheaper).await.expect("another price");
    market.placed(&dear).await;
    let offers: Vec<Offer> = market.fetch("/v1/offers").await;
    assert_eq!(offers.iter().map(|offer| offer.host).collect::<Vec<_>>(), [cheap.id, dear.id]);
    assert_eq!(offers[0].free, offers[0].total);
    assert_eq!((offers[1].free.milli_cpu, offers[1].total.milli_cpu), (7_000, 8_000));
    assert_eq!(offers[1].free.memory, Bytes(8 * Bytes::GIB - 512 * Bytes::MIB));
    assert_eq!((offers[0].free.gpus["H200"], offers[0].runtime.as_str()), (1, "docker"));
}

#[tokio::test]
async fn simulated_devices_are_shown_as_such_and_not_offered_where_jobs_are_real() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let simulated = Device { uuid: "SIM-1".into(), simulated: true, ..inventory().devices.remove(0) };
    host.inventory.devices.push(simulated.clone());
    // A host's inventory settles for a second before it may change again.
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    host.report(&[]).await;
    let hosts: Vec<Host> = market.fetch("/v1/hosts").await;
    assert_eq!(hosts[0].inventory.as_ref().expect("an inventory").devices[1], simulated);
    let offers: Vec<Offer> = market.fetch("/v1/offers").await;
    assert_eq!(offers[0].total.gpus, BTreeMap::from([("H200".to_owned(), 1)]));
}

#[tokio::test]
async fn a_silent_or_a_full_host_offers_nothing() {
    let market = Market::start().await;
    let host = market.host("h").await;
    market.store.hosts_suspect(nave_domain::Millis(-1)).await.expect("suspect");
    assert_eq!(market.fetch::<Vec<Offer>>("/v1/offers").await, []);
    let mut host = host;
    host.report(&[]).await;
    let body = serde_json::json!({"argv": ["true"], "resources": {"milli_cpu": 8_000}});
    let answer = market.submission("full", &body).send().await.expect("an answer");
    let job: nave_sdk::wire::rest::Job = crate::setup::read(answer).await;
    market.place(job.job, host.id).await;
    assert_eq!(market.fetch::<Vec<Offer>>("/v1/offers").await, []);
}
