//! Who is in the mesh, and with which key.

use std::net::{IpAddr, Ipv6Addr};

use nave_domain::host::HostState;
use nave_store::{Changes, Departure, HubRow, Joining, StoreError};

use crate::{
    enrol::wish,
    market::{Market, open},
};

async fn keys(market: &Market) -> Vec<(String, Option<String>)> {
    let peers = market.store.mesh_peers().await.expect("peers");
    peers.into_iter().map(|peer| (peer.key, peer.next)).collect()
}

fn hub(endpoint: &str) -> HubRow {
    HubRow { key: "hub".into(), endpoints: vec![endpoint.into()], address: Ipv6Addr::LOCALHOST, port: 7461 }
}

#[tokio::test]
async fn a_host_is_found_by_its_address_and_by_nothing_else() {
    open(async |market| {
        let joining = wish(1);
        market.store.host_join(&joining).await.expect("join");
        let at = async |address: IpAddr| market.store.host_at(address).await;
        let found = at(joining.address.into()).await.expect("a host");
        assert_eq!(found, (joining.host, HostState::Enrolled));
        let unknown = at(wish(2).address.into()).await;
        assert!(matches!(unknown, Err(StoreError::NotFound("host"))), "{unknown:?}");
        market.store.host_depart(None, joining.host, Departure::Ban).await.expect("ban");
        assert_eq!(at(joining.address.into()).await.expect("a host").1, HostState::Banned);
        assert_eq!(market.store.mesh_peers().await.expect("peers"), []);
    })
    .await;
}

#[tokio::test]
async fn a_host_changes_its_key_in_two_steps() {
    open(async |market| {
        let joining = wish(1);
        market.store.host_join(&joining).await.expect("join");
        let mut changes = market.store.listen().subscribe();
        while changes.recv().await.expect("an announcement") != Changes::Unknown {}
        for _ in 0..2 {
            market.store.mesh_key_announce(joining.host, "next").await.expect("announce");
            assert_eq!(keys(market).await, [(joining.mesh_key.to_owned(), Some("next".to_owned()))]);
        }
        while changes.recv().await.expect("an announcement") != Changes::Mesh {}
        market.store.mesh_key_announce(joining.host, joining.mesh_key).await.expect("its present key");
        market.store.mesh_key_adopt(joining.host, "another").await.expect("nothing");
        assert_eq!(keys(market).await[0].1.as_deref(), Some("next"));
        let before = market.store.host_generation(joining.host).await.expect("generation");
        for _ in 0..2 {
            market.store.mesh_key_adopt(joining.host, "next").await.expect("adopt");
            assert_eq!(keys(market).await, [("next".to_owned(), None)]);
            assert_eq!(market.store.mesh_key(joining.host).await.expect("a key").as_deref(), Some("next"));
        }
        assert_eq!(market.store.host_generation(joining.host).await.expect("generation"), before + 1);
    })
    .await;
}

#[tokio::test]
async fn a_key_that_ever_was_one_hosts_is_never_anothers() {
    open(async |market| {
        let (a, b) = (wish(1), wish(2));
        for joining in [&a, &b] {
            market.store.host_join(joining).await.expect("join");
        }
        market.store.mesh_key_announce(a.host, "next").await.expect("announce");
        market.store.mesh_key_adopt(a.host, "next").await.expect("adopt");
        for key in [a.mesh_key, "next"] {
            let stolen = market.store.mesh_key_announce(b.host, key).await;
            assert!(
                matches!(&stolen, Err(StoreError::Constraint(name)) if name == "mesh_keys_pkey"),
                "{stolen:?}"
            );
        }
        assert_eq!(keys(market).await[1], (b.mesh_key.to_owned(), None), "a refusal changes nothing");
        market.store.mesh_key_announce(a.host, a.mesh_key).await.expect("its own old key");
        let joined = market.store.host_join(&Joining { mesh_key: "next", ..wish(3) }).await;
        assert!(matches!(joined, Err(StoreError::Constraint(_))));
    })
    .await;
}

#[tokio::test]
async fn a_host_that_announces_keys_all_the_time_is_not_heard() {
    open(async |market| {
        let joining = wish(1);
        market.store.host_join(&joining).await.expect("join");
        for n in 0..80 {
            market.store.mesh_key_announce(joining.host, &format!("key {n}")).await.expect("announce");
        }
        let kept: i64 =
            sqlx::query_scalar("select count(*) from mesh_keys").fetch_one(&market.sql).await.expect("count");
        assert_eq!(kept, 50);
        assert_eq!(keys(market).await[0].0, joining.mesh_key);
    })
    .await;
}

#[tokio::test]
async fn every_host_hears_of_a_hub_that_has_moved_and_of_one_that_has_not_nothing() {
    open(async |market| {
        assert_eq!(market.store.hub().await.expect("none"), None);
        let host = market.host("a").await;
        let generation = async || market.store.host_generation(host).await.expect("generation");
        let before = generation().await;
        for _ in 0..2 {
            market.store.hub_set(&hub("one:1")).await.expect("hub");
        }
        let set = generation().await;
        market.store.hub_set(&hub("two:2")).await.expect("hub");
        assert_eq!(market.store.hub().await.expect("a hub"), Some(hub("two:2")));
        assert_eq!((set, generation().await), (before + 1, before + 2));
    })
    .await;
}

#[tokio::test]
async fn a_row_that_cannot_be_read_keeps_nobody_else_out() {
    open(async |market| {
        let (a, b) = (wish(1), wish(2));
        for joining in [&a, &b] {
            market.store.host_join(joining).await.expect("join");
        }
        market.store.host_move(a.host, IpAddr::from([127, 0, 0, 1])).await.expect("move");
        let peers = market.store.mesh_peers().await.expect("peers");
        assert_eq!(peers.iter().map(|peer| peer.host).collect::<Vec<_>>(), [b.host]);
    })
    .await;
}
