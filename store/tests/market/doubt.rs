//! Doubt: against whom it counts, and what ends it.

use std::sync::atomic::{AtomicU64, Ordering};

use nave_domain::{
    ChallengeId, HostId,
    host::{Device, Inventory, Proven, ProvenDevice},
    verdict::Kind,
};
use nave_store::{Decision, Departure};
use serde_json::json;
use uuid::Uuid;

use crate::{
    challenge::advance,
    market::{Market, open},
    verdict::{failed, holds, host_of, is_in_doubt, mistrusted, with_devices},
};

const DAY: i64 = 86_400_000;

async fn draw(market: &Market, host: HostId, kind: Kind, devices: &[&str]) -> ChallengeId {
    let id = ChallengeId(Uuid::now_v7());
    let claims = with_devices(devices);
    market.store.challenge_give(host, id, kind, &json!({}), &claims).await.expect("draw");
    id
}

async fn decide(market: &Market, challenge: ChallengeId) {
    market.store.challenge_decide(challenge, &failed(), &mistrusted()).await.expect("decide");
}

/// Has a host give up a test of its GPUs.
async fn doubt(market: &Market, host: HostId, devices: &[&str]) {
    let challenge = draw(market, host, Kind::Devices, devices).await;
    decide(market, challenge).await;
}

/// Has a host prove these GPUs, and the rest of what hosts have here.
async fn prove(market: &Market, host: HostId, devices: &[&str]) {
    let claims = with_devices(devices);
    market.settle(host).await;
    prove_claims(market, host, &claims).await;
}

async fn prove_claims(market: &Market, host: HostId, claims: &Inventory) {
    static SESSION: AtomicU64 = AtomicU64::new(2);
    let session = SESSION.fetch_add(1, Ordering::Relaxed);
    market.store.host_hear(host, session, 1, 0, claims).await.expect("hear");
    let query = "update hosts set state = 'verifying' where host_id = $1";
    sqlx::query(query).bind(host.0).execute(&market.sql).await.expect("its pause is over");
    let shown = |device: &Device| (device.uuid.clone(), ProvenDevice::of(device, None));
    let devices = Some(claims.devices.iter().map(shown).collect());
    let proven = Proven { devices, ..Proven::of(claims) };
    let seen = market.store.host_generation(host).await.expect("generation");
    market.store.host_prove(host, seen, &proven).await.expect("prove");
}

#[tokio::test]
async fn each_of_many_challenges_has_the_doubts_that_count_against_it_and_no_others() {
    open(async |market| {
        let holder = host_of(market, 1, "seller", &["GPU-1"]).await;
        holds(market, holder, &["GPU-1"]).await.expect("held");
        let early = host_of(market, 2, "miner", &[]).await;
        let failing = host_of(market, 3, "miner", &[]).await;
        let before = draw(market, early, Kind::Cpu, &[]).await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        doubt(market, failing, &[]).await;
        doubt(market, holder, &["GPU-1"]).await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        let late = host_of(market, 4, "miner", &[]).await;
        let buyer = host_of(market, 5, "buyer", &["GPU-1"]).await;
        let stranger = host_of(market, 6, "stranger", &["GPU-2"]).await;
        let mut drawn = vec![(before, false)];
        for (host, counts) in [(late, true), (buyer, true), (stranger, false), (failing, true)] {
            drawn.push((draw(market, host, Kind::Cpu, &[]).await, counts));
        }
        let ids: Vec<ChallengeId> = drawn.iter().map(|(challenge, _)| *challenge).collect();
        let open = market.store.challenges_undecided(&ids).await.expect("open");
        let seen: Vec<(ChallengeId, bool)> =
            open.iter().map(|open| (open.challenge, open.was_in_doubt)).collect();
        assert_eq!(seen, drawn);
    })
    .await;
}

#[tokio::test]
async fn a_doubt_ends_with_a_proof_of_the_gpus_that_were_in_doubt_and_with_no_other() {
    open(async |market| {
        let host = host_of(market, 1, "miner", &["GPU-1", "GPU-2"]).await;
        doubt(market, host, &["GPU-1", "GPU-2"]).await;
        for others in [&["GPU-2"][..], &["GPU-3", "GPU-4"], &[]] {
            prove(market, host, others).await;
            assert!(is_in_doubt(market, host).await, "{others:?} are not all that was to be shown");
        }
        let mut smaller = with_devices(&["GPU-1", "GPU-2"]);
        smaller.devices[1].vram.0 /= 2;
        market.settle(host).await;
        prove_claims(market, host, &smaller).await;
        assert!(is_in_doubt(market, host).await, "half of its memory was not shown");
        prove(market, host, &["GPU-1", "GPU-2", "GPU-3"]).await;
        assert!(!is_in_doubt(market, host).await);
    })
    .await;
}

#[tokio::test]
async fn a_doubt_about_cores_ends_with_a_proof_of_as_many() {
    open(async |market| {
        let host = host_of(market, 1, "miner", &[]).await;
        let challenge = draw(market, host, Kind::Cpu, &[]).await;
        decide(market, challenge).await;
        let mut fewer = with_devices(&[]);
        fewer.milli_cpu.0 /= 2;
        market.settle(host).await;
        prove_claims(market, host, &fewer).await;
        assert!(is_in_doubt(market, host).await);
        prove(market, host, &[]).await;
        assert!(!is_in_doubt(market, host).await);
    })
    .await;
}

#[tokio::test]
async fn a_host_makes_up_for_one_that_left_with_the_same_gpus_only() {
    open(async |market| {
        let left = host_of(market, 1, "miner", &["GPU-1"]).await;
        doubt(market, left, &["GPU-1"]).await;
        market.store.host_depart(None, left, Departure::Leave).await.expect("leave");
        let host = host_of(market, 2, "miner", &["GPU-2"]).await;
        prove(market, host, &["GPU-2"]).await;
        assert!(is_in_doubt(market, host).await);
        prove(market, host, &["GPU-1", "GPU-2"]).await;
        assert!(!is_in_doubt(market, host).await);
    })
    .await;
}

#[tokio::test]
async fn what_one_outage_ends_is_one_doubt_and_what_was_drawn_after_it_is_another() {
    open(async |market| {
        let host = host_of(market, 1, "miner", &[]).await;
        let first = draw(market, host, Kind::Cpu, &[]).await;
        let second = draw(market, host, Kind::Memory, &[]).await;
        let in_doubt =
            async |challenge| market.store.challenge_get(challenge).await.expect("a challenge").was_in_doubt;
        decide(market, first).await;
        assert!(!in_doubt(second).await, "it was open by then");
        decide(market, second).await;
        let third = draw(market, host, Kind::Cpu, &[]).await;
        assert!(in_doubt(third).await);
        market.store.challenge_decide(third, &json!({ "void": "" }), &Decision::Stays).await.expect("decide");
        advance(market, 31 * DAY).await;
        let fourth = draw(market, host, Kind::Cpu, &[]).await;
        assert!(!in_doubt(fourth).await, "it was a month ago");
    })
    .await;
}

#[tokio::test]
async fn names_that_were_made_beforehand_are_no_way_around_a_doubt() {
    open(async |market| {
        let spare = host_of(market, 1, "miner", &[]).await;
        let proven = host_of(market, 2, "miner", &["GPU-9"]).await;
        prove(market, proven, &["GPU-9"]).await;
        let host = host_of(market, 3, "miner", &["GPU-1"]).await;
        holds(market, host, &["GPU-1"]).await.expect("its own");
        doubt(market, host, &["GPU-1"]).await;
        let accomplice = host_of(market, 4, "another", &["GPU-1"]).await;
        let stranger = host_of(market, 5, "another", &["GPU-2"]).await;
        for (host, expected) in [(spare, true), (proven, true), (accomplice, true), (stranger, false)] {
            assert_eq!(is_in_doubt(market, host).await, expected);
        }
        // What somebody only claims is nothing to whose it is.
        let liar = host_of(market, 6, "liar", &["GPU-2"]).await;
        doubt(market, liar, &["GPU-2"]).await;
        assert!(!is_in_doubt(market, stranger).await);
    })
    .await;
}
