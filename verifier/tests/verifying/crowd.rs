//! What a look costs while many challenges are open.

use std::time::{Duration, Instant};

use nave_domain::Millis;
use nave_store::Decision;
use nave_verifier::Verifier;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    devices::{NO_SOONER, with_devices},
    market::{EFFORT, Host, Market, open},
};

/// How many hosts are tested at the same time.
const HOSTS: usize = 10_000;
/// How many of them are at work at the same time here, to get them there.
const AT_ONCE: usize = 8;

/// Hosts that have joined and were heard.
async fn crowd(market: &Market, hosts: usize) -> Vec<Host> {
    let mut all = JoinSet::new();
    for part in 0..AT_ONCE {
        let market = Market { store: market.store.clone(), url: market.url.clone() };
        all.spawn(async move {
            let mut joined = Vec::new();
            for number in (part..hosts).step_by(AT_ONCE) {
                joined.push(market.host(&format!("host {number}"), 1_000).await);
            }
            joined
        });
    }
    all.join_all().await.into_iter().flatten().collect()
}

async fn timed(what: &str, verifier: &mut Verifier) -> Duration {
    let begin = Instant::now();
    verifier.look().await.expect("look");
    let took = begin.elapsed();
    println!("{what}: {} ms", took.as_millis());
    took
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of some minutes: cargo test --release -p nave-verifier --test verifying crowd -- --ignored --nocapture"]
async fn a_look_costs_what_has_changed_and_not_what_is_open() {
    let market = open().await;
    let mut hosts = crowd(&market, HOSTS).await;
    let mut verifier = market.verifier();
    timed("a look that draws all challenges", &mut verifier).await;
    for host in &hosts[..1_000] {
        host.fetch().await.expect("a challenge");
    }
    timed("a look at all that is open, as every look was once", &mut verifier).await;
    timed("a verifier's first look", &mut market.verifier()).await;
    for _ in 0..3 {
        timed("a look when nothing came", &mut verifier).await;
    }
    for host in &mut hosts[..100] {
        host.work_within(EFFORT).await;
    }
    timed("a look when a hundred answers came", &mut verifier).await;
    for host in &hosts[..100] {
        assert_eq!(host.fetch().await.expect("a challenge").step(), 1);
    }
    market.store.clock_advance(Millis(61_000)).await.expect("advance");
    timed("a look when the time of nine thousand is over", &mut verifier).await;
    assert_eq!(hosts[HOSTS - 1].last_code().await, "too_late");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of some minutes: cargo test --release -p nave-verifier --test verifying crowd -- --ignored --nocapture"]
async fn a_look_draws_tests_beside_ten_thousand_leases() {
    let market = open().await;
    let mut host = market.host_with_devices("alpha", &[("SIM-1", Vec::new())]).await;
    let mut verifier = Verifier::new(with_devices(NO_SOONER), market.store.clone());
    host.prove_all(&mut verifier).await;
    host.lease("SIM-1").await;
    market.store.host_copy(host.id, i32::try_from(HOSTS).expect("small"), false).await.expect("copy");
    timed("a look that draws a test beside each lease", &mut verifier).await;
    timed("a look when nothing came", &mut verifier).await;
}

// Each doubt came after all these challenges were drawn, so none of them counts, and each is looked at.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of some minutes: cargo test --release -p nave-verifier --test verifying crowd -- --ignored --nocapture"]
async fn a_look_does_not_go_through_all_doubts_of_a_miner_for_each_of_its_hosts() {
    let market = open().await;
    let host = market.host("alpha", 1_000).await;
    let mut verifier = market.verifier();
    market.store.host_copy(host.id, i32::try_from(HOSTS).expect("small"), true).await.expect("copy");
    timed("a look that draws the challenges of one miner", &mut verifier).await;
    timed("a verifier's first look", &mut market.verifier()).await;
    let failed = json!({ "failed": { "code": "vram_missing", "message": "half of it" } });
    let pause = Millis(3_600_000);
    let doubt = Decision::Mistrusted { code: "vram_missing".into(), message: "half of it".into(), pause };
    let challenge = host.fetch().await.expect("a challenge").challenge;
    market.store.challenge_decide(challenge, &failed, &doubt).await.expect("decide");
    market.store.host_copy(host.id, i32::try_from(HOSTS).expect("small"), true).await.expect("copy");
    timed("the same when as many others are in doubt", &mut market.verifier()).await;
}
