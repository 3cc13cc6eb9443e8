//! Enrolment: tickets, nonces and hosts that begin anew.

use std::net::Ipv6Addr;

use nave_domain::{
    HostId,
    host::{HostState, Term},
};
use nave_store::{Departure, Joined, Joining, StoreError};
use uuid::Uuid;

use crate::market::{Market, RATE, inventory, open};

/// A wish that nobody has made before.
pub fn wish(n: u16) -> Joining<'static> {
    let text = |what: &str| -> &'static str { Box::leak(format!("{what} {n}").into_boxed_str()) };
    let host = HostId(Uuid::now_v7());
    Joining {
        ticket: text("ticket"),
        hotkey: "miner",
        agent_key: text("agent"),
        mesh_key: text("mesh"),
        host,
        address: Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, n),
        name: None,
        rate: RATE,
        term: Term::OnDemand,
        region: None,
        replaces: None,
    }
}

async fn join(market: &Market, joining: &Joining<'_>) -> Joined {
    market.store.host_join(joining).await.expect("join")
}

fn is_refused(result: &Result<Joined, StoreError>, constraint: &str) -> bool {
    matches!(result, Err(StoreError::Constraint(name)) if name == constraint)
}

#[tokio::test]
async fn the_same_wish_gets_the_same_answer_and_another_one_for_the_ticket_none() {
    open(async |market| {
        let first = wish(1);
        let joined = join(market, &first).await;
        assert_eq!((joined.host, joined.address), (first.host, first.address));
        assert!(joined.name.starts_with("host-"), "{}", joined.name);
        let again = Joining { host: HostId(Uuid::now_v7()), address: wish(9).address, ..first.clone() };
        assert_eq!(join(market, &again).await, joined);
        assert_eq!(market.store.host_joined(&again).await.expect("known"), Some(joined.clone()));
        for other in [
            Joining { agent_key: "thief", ..first.clone() },
            Joining { mesh_key: "another", ..first.clone() },
        ] {
            assert!(is_refused(&market.store.host_join(&other).await, "tickets_pkey"));
        }
        assert_eq!(market.store.host_joined(&wish(2)).await.expect("unknown"), None);
        assert_eq!(market.store.host_list().await.expect("hosts").len(), 1);
        let foreign = Joining { ticket: first.ticket, hotkey: "eve", ..wish(3) };
        join(market, &foreign).await;
        assert_eq!(join(market, &again).await, joined, "nobody uses up the tickets of others");
    })
    .await;
}

#[tokio::test]
async fn wishes_at_the_same_moment_make_one_host() {
    open(async |market| {
        let first = wish(1);
        let mut wishes = tokio::task::JoinSet::new();
        for _ in 0..12 {
            let (store, wish) =
                (market.store.clone(), Joining { host: HostId(Uuid::now_v7()), ..first.clone() });
            wishes.spawn(async move { store.host_join(&wish).await.expect("join").host });
        }
        let hosts = wishes.join_all().await;
        assert!(hosts.windows(2).all(|pair| pair[0] == pair[1]));
    })
    .await;
}

#[tokio::test]
async fn a_refused_wish_leaves_nothing_behind() {
    open(async |market| {
        let first = Joining { name: Some("a"), ..wish(1) };
        join(market, &first).await;
        let taken = Joining { mesh_key: first.mesh_key, ..wish(2) };
        assert!(is_refused(&market.store.host_join(&taken).await, "mesh_keys_pkey"));
        let named = Joining { name: Some("a"), ..wish(2) };
        assert!(is_refused(&market.store.host_join(&named).await, "hosts_name"));
        let foreign = Joining { replaces: Some(first.host), hotkey: "eve", ..wish(2) };
        assert!(matches!(market.store.host_join(&foreign).await, Err(StoreError::NotFound("host"))));
        assert_eq!(market.store.mesh_peers().await.expect("peers").len(), 1);
        join(market, &wish(2)).await;
    })
    .await;
}

#[tokio::test]
async fn a_host_that_joins_again_keeps_its_place_and_nothing_it_had_proven() {
    open(async |market| {
        let first = Joining { name: Some("a"), ..wish(1) };
        let before = join(market, &first).await;
        market.store.host_hear(before.host, 9, 9, 0, &inventory()).await.expect("hear");
        let second = Joining { replaces: Some(before.host), ..wish(2) };
        assert_eq!(join(market, &second).await, before);
        let row = &market.store.host_list().await.expect("hosts")[0];
        assert_eq!((row.state, &row.inventory, &row.proven), (HostState::Enrolled, &None, &None));
        let peers = market.store.mesh_peers().await.expect("peers");
        assert_eq!((peers.len(), peers[0].key.as_str()), (1, second.mesh_key));
        assert!(is_refused(&market.store.host_join(&first).await, "tickets_pkey"), "its old agent is out");
        // A process that has counted anew is heard.
        assert!(market.store.host_hear(before.host, 1, 1, 0, &inventory()).await.expect("hear").1);
        let third = Joining { replaces: Some(before.host), mesh_key: first.mesh_key, ..wish(3) };
        assert_eq!(join(market, &third).await, before, "a key of its own comes back with it");
    })
    .await;
}

#[tokio::test]
async fn a_host_that_has_left_neither_joins_again_nor_gives_its_key_away() {
    open(async |market| {
        for (n, departure) in [(1, Departure::Leave), (2, Departure::Ban), (3, Departure::Drain)] {
            let first = wish(n);
            join(market, &first).await;
            market.store.host_depart(None, first.host, departure).await.expect("depart");
            assert!(matches!(market.store.host_join(&first).await, Err(StoreError::Stale("host"))));
            let again = Joining { replaces: Some(first.host), ..wish(n + 10) };
            assert!(matches!(market.store.host_join(&again).await, Err(StoreError::Stale("host"))));
            let heir = Joining { mesh_key: first.mesh_key, ..wish(n + 20) };
            assert!(is_refused(&market.store.host_join(&heir).await, "mesh_keys_pkey"));
            let named = market.store.hosts_of_miner("miner").await.expect("hosts");
            let name = named.iter().find(|row| row.host == first.host).expect("it").name.clone();
            join(market, &Joining { name: Some(&name), ..wish(n + 30) }).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_nonce_is_used_once_by_each_signer_until_it_has_expired() {
    open(async |market| {
        let later = market.store.now().await.expect("now").0 + 60_000;
        let is_new = async |signer, nonce| market.store.nonce_use(signer, nonce, later).await.expect("nonce");
        assert!(is_new("a", "1").await && !is_new("a", "1").await);
        assert!(is_new("b", "1").await && is_new("a", "2").await);
        sqlx::query("update nonces set expires_at_ms = now_ms() - 120000")
            .execute(&market.sql)
            .await
            .expect("age");
        assert!(is_new("c", "3").await);
        let kept: i64 =
            sqlx::query_scalar("select count(*) from nonces").fetch_one(&market.sql).await.expect("count");
        assert_eq!(kept, 1, "what has expired is forgotten");
    })
    .await;
}
