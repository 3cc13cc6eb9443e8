//! Epochs.

use std::collections::BTreeMap;

use nave_domain::{MicroUsd, epoch::EpochState};
use nave_sdk::wire::{
    host::{Exit, LeaseReport},
    rest::{Epoch, Page},
    settlement::{Collateral, Earnings, Holds, LeaseEarnings, Parameters},
};

use reqwest::Method;
use serde_json::json;

use crate::{
    setup::{Market, read, refused},
    signing::Owner,
};

#[tokio::test]
async fn an_epoch_shows_what_was_delivered_and_the_weights_once_these_are_revealed() {
    let market = Market::start().await;
    market.store.epoch_open("local").await.expect("an epoch");
    let mut host = market.host("h").await;
    let (_, lease) = market.placed(&host).await;
    host.report(&[(lease, LeaseReport::Running)]).await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    host.report(&[(lease, LeaseReport::Finished { exit: Exit::Code { code: 0 }, result: None })]).await;
    market.store.epoch_close(1, "local").await.expect("close");
    let weights = BTreeMap::from([("5Miner".to_owned(), u16::MAX)]);
    market.store.epoch_advance(1, EpochState::Closed, Some(&weights)).await.expect("settle");
    let early: Epoch = market.fetch("/v1/epochs/1").await;
    assert!(early.weights.is_empty() && early.delivered.is_empty(), "nobody copies them: {early:?}");
    refused(market.anonymous(Method::GET, "/v1/epochs/1/evidence"), 409, "not_revealed").await;
    refused(market.anonymous(Method::GET, "/v1/epochs/9/evidence"), 404, "epoch_not_found").await;
    market.store.epoch_advance(1, EpochState::Settled, None).await.expect("submit");
    market.store.epoch_advance(1, EpochState::Submitted, None).await.expect("confirm");
    let epochs: Vec<Epoch> = market.fetch("/v1/epochs").await;
    assert_eq!(epochs.iter().map(|epoch| epoch.epoch).collect::<Vec<_>>(), [2, 1]);
    let epoch: Epoch = market.fetch("/v1/epochs/1").await;
    assert_eq!(epoch, epochs[1]);
    assert_eq!((epoch.state, epoch.chain.as_str(), epoch.weights), (EpochState::Confirmed, "local", weights));
    assert!(epoch.delivered["5Miner"].used_ms.0 >= 50 && epoch.closed_at.is_some());
    let newest: Vec<Epoch> = market.fetch("/v1/epochs?limit=1").await;
    assert_eq!(newest, epochs[..1]);
}

#[tokio::test]
async fn everyone_sees_which_parameters_hold_and_which_are_announced() {
    let market = Market::start().await;
    market
        .store
        .params_first(&json!({ "notice_epochs": 2, "margin_ppm": 100_000 }))
        .await
        .expect("the first");
    market.store.epoch_open("local").await.expect("an epoch");
    market.store.params_announce(&json!({ "margin_ppm": 90_000 }), 3).await.expect("the next");
    let answer = market.anonymous(Method::GET, "/v1/params").send().await.expect("an answer");
    let params: Parameters = read(answer).await;
    let held = |at: usize| (params.versions[at].version, params.versions[at].holds);
    assert_eq!((params.epoch, held(0), held(1)), (1, (2, Holds::Announced), (1, Holds::Now)));
    assert_eq!(params.versions[0].document["margin_ppm"], 90_000);
}

#[tokio::test]
async fn a_miner_sees_what_it_earns_and_calls_its_collateral_back() {
    let (market, owner) = (Market::start().await, Owner::new());
    market.store.epoch_open("local").await.expect("an epoch");
    let hotkey = owner.secret.hotkey().to_string();
    assert!(market.store.collateral_post(&hotkey, None, MicroUsd(5_000_000), "first").await.expect("posted"));
    let ask = async |method: Method, path: &str, body: &[u8]| owner.call(&market, method, path, body).await;
    let epochs: Page<Earnings> =
        read(ask(Method::GET, "/v1/miner/earnings", b"").await.send().await.expect("it")).await;
    assert_eq!(epochs.items, []);
    let leases: Page<LeaseEarnings> =
        read(ask(Method::GET, "/v1/miner/earnings/1", b"").await.send().await.expect("it")).await;
    assert_eq!(leases.items, []);
    refused(ask(Method::GET, "/v1/miner/earnings/7", b"").await, 404, "epoch_not_found").await;
    let wish = |amount: i64| json!({ "amount": amount }).to_string().into_bytes();
    let path = "/v1/miner/collateral/call";
    refused(ask(Method::POST, path, &wish(5_000_001)).await, 409, "collateral_too_low").await;
    refused(ask(Method::POST, path, &wish(-1)).await, 409, "collateral_too_low").await;
    let called = ask(Method::POST, path, &wish(2_000_000)).await.send().await.expect("it");
    assert_eq!(called.status(), 201);
    let left: Collateral =
        read(ask(Method::GET, "/v1/miner/collateral", b"").await.send().await.expect("it")).await;
    assert_eq!((left.balance, left.called[0].amount), (MicroUsd(5_000_000), MicroUsd(2_000_000)));
    market.assert_books_balance().await;
}
