//! Transfers between hosts: what both are told while one is open, and what is left of it.

use std::net::{IpAddr, Ipv6Addr};

use nave_domain::{
    ChallengeId, HostId, Millis,
    verdict::{Cause, Kind},
};
use nave_store::{Decision, Drawing, Measured, StoreError, Transfer, TransferRoute};
use serde_json::json;
use uuid::Uuid;

use crate::market::{Market, inventory, open};

const SOON: Millis = Millis(i64::MAX);

fn address(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, n)
}

/// Hosts that take jobs, have an address and were heard just now.
async fn hosts<const COUNT: usize>(market: &Market) -> [HostId; COUNT] {
    let mut hosts = [HostId(Uuid::nil()); COUNT];
    for (n, host) in (1..).zip(&mut hosts) {
        *host = market.host(&format!("host {n}")).await;
        market.store.host_move(*host, IpAddr::V6(address(n))).await.expect("an address");
    }
    hosts
}

async fn draw(market: &Market, host: HostId, source: HostId) -> Result<ChallengeId, StoreError> {
    let challenge = ChallengeId(Uuid::now_v7());
    let (body, claims) = (json!({ "task": "a transfer" }), inventory());
    let drawing = Drawing {
        host,
        challenge,
        kind: Kind::Transfer,
        cause: Cause::Random,
        body: &body,
        claims: &claims,
        shadow: true,
        window: None,
        lease: None,
    };
    market.store.transfer_draw(&drawing, source, "the key", SOON).await.map(|()| challenge)
}

async fn decide(market: &Market, challenge: ChallengeId) {
    market.store.challenge_decide(challenge, &json!({ "void": "" }), &Decision::Stays).await.expect("decide");
}

#[tokio::test]
async fn two_hosts_reach_one_another_for_as_long_as_their_transfer_is_open() {
    open(async |market| {
        let [host, source] = hosts(market).await;
        let generation = async |host| market.store.host_generation(host).await.expect("a row");
        let before = (generation(host).await, generation(source).await);
        let challenge = draw(market, host, source).await.expect("drawn");
        let during = (generation(host).await, generation(source).await);
        assert!(during.0 > before.0 && during.1 > before.1, "both learn of it");
        let served = market.store.transfers_served(source).await.expect("rows");
        assert_eq!((served.len(), served[0].challenge, served[0].peer), (1, challenge, address(1)));
        assert_eq!(served[0].key, market.store.transfer_key(challenge).await.expect("a key"));
        assert_eq!(market.store.transfers_served(host).await.expect("rows"), [], "only one has the key");
        let sent = market.store.challenge_send(host).await.expect("a spec");
        assert!(!sent[0].body.to_string().contains("the key"));
        let route = TransferRoute { source: address(2), host: address(1) };
        assert_eq!(market.store.transfer_routes().await.expect("routes"), [route]);
        decide(market, challenge).await;
        assert!(generation(source).await > during.1, "the source learns that it is over");
        assert_eq!(market.store.transfer_routes().await.expect("routes"), []);
        assert_eq!(market.store.transfers_served(source).await.expect("rows"), []);
    })
    .await;
}

#[tokio::test]
async fn a_host_has_a_part_in_one_transfer_at_a_time() {
    open(async |market| {
        let [one, two, three] = hosts(market).await;
        let challenge = draw(market, one, two).await.expect("drawn");
        for (host, source) in [(three, two), (three, one), (two, three), (one, three)] {
            assert!(matches!(draw(market, host, source).await, Err(StoreError::Stale(_))));
        }
        let linked = market.store.hosts_linked().await.expect("hosts");
        let free: Vec<HostId> = linked.iter().filter(|host| host.is_free).map(|host| host.host).collect();
        assert_eq!(free, [three]);
        let due: Vec<HostId> = linked.iter().filter(|host| host.is_due).map(|host| host.host).collect();
        assert_eq!(due, [two, three], "one fetches later");
        decide(market, challenge).await;
        draw(market, three, two).await.expect("drawn");
    })
    .await;
}

#[tokio::test]
async fn what_came_is_remembered_for_both_hosts_the_newest_first() {
    open(async |market| {
        let [one, two, three] = hosts(market).await;
        let came = Measured { bytes_per_s: Some(5), is_reached: Some(true) };
        let in_vain = Measured { bytes_per_s: Some(0), is_reached: Some(false) };
        for (host, source, measured) in
            [(one, two, came), (three, one, in_vain), (two, three, Measured::default())]
        {
            let challenge = draw(market, host, source).await.expect("drawn");
            market.store.transfer_measured(challenge, measured).await.expect("written down");
            decide(market, challenge).await;
        }
        let miner = |host| {
            let number = [one, two, three].iter().position(|one| *one == host).expect("one of them") + 1;
            format!("hotkey of host {number}")
        };
        let transfer = |source, host, measured| {
            let (source_hotkey, hotkey) = (miner(source), miner(host));
            Transfer { source, source_hotkey, host, hotkey, measured }
        };
        let of_one = market.store.transfers_of(&[one]).await.expect("rows");
        assert_eq!(of_one, [transfer(one, three, in_vain), transfer(two, one, came)]);
        let of_two = market.store.transfers_of(&[two]).await.expect("rows");
        assert_eq!(of_two[0], transfer(three, two, Measured::default()));
    })
    .await;
}

#[tokio::test]
async fn two_transfers_that_end_at_the_same_time_do_not_wait_for_one_another() {
    open(async |market| {
        let [one, two, three, four] = hosts(market).await;
        for _ in 0..8 {
            let first = draw(market, one, two).await.expect("drawn");
            let second = draw(market, four, three).await.expect("drawn");
            tokio::join!(decide(market, first), decide(market, second));
        }
    })
    .await;
}
