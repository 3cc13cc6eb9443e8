//! Epochs.

use std::collections::BTreeMap;

use nave_domain::epoch::EpochState;
use nave_sdk::wire::{
    host::{Exit, LeaseReport},
    rest::Epoch,
};

use crate::setup::Market;

#[tokio::test]
async fn a_settled_epoch_shows_what_was_delivered_and_the_weights() {
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
    let epochs: Vec<Epoch> = market.fetch("/v1/epochs").await;
    assert_eq!(epochs.iter().map(|epoch| epoch.epoch).collect::<Vec<_>>(), [2, 1]);
    let epoch: Epoch = market.fetch("/v1/epochs/1").await;
    assert_eq!(epoch, epochs[1]);
    assert_eq!((epoch.state, epoch.chain.as_str(), epoch.weights), (EpochState::Settled, "local", weights));
    assert!(epoch.delivered["5Miner"].used_ms.0 >= 50 && epoch.closed_at.is_some());
    let newest: Vec<Epoch> = market.fetch("/v1/epochs?limit=1").await;
    assert_eq!(newest, epochs[..1]);
}
