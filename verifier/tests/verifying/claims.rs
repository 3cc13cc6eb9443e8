//! What becomes of hosts whose claims are tested.

use std::time::Duration;

use nave_domain::{
    MilliCpu, Millis,
    host::{HostState, Proven as Claims},
};
use nave_proof::{Proven, Task};
use nave_verifier::decide::Ruling;
use tokio::time::sleep;

use crate::market::{EFFORT, Host, look, open};

/// The task of the newest challenge.
async fn task(host: &Host) -> Task {
    let newest = host.challenges().await.pop().expect("a challenge");
    serde_json::from_value(newest.body["task"].clone()).expect("a task")
}

/// What a host says changes once a second at most.
async fn report_until(host: &mut Host, state: HostState) {
    for _ in 0..200 {
        host.report().await;
        if host.state().await == state {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("{:?} instead of {state:?}", host.state().await);
}

#[tokio::test]
async fn an_honest_host_takes_jobs_once_it_has_proven_its_cores_and_its_memory() {
    let market = open().await;
    let mut verifier = market.verifier();
    let mut host = market.host("alpha", 1_000).await;
    assert_eq!(host.state().await, HostState::Verifying);
    host.pass_cpu(&mut verifier).await;
    host.report().await;
    assert_eq!(host.state().await, HostState::Verifying, "cores alone are half of it");
    host.pass_memory(&mut verifier).await;
    assert_eq!(host.state().await, HostState::Ready);
    assert_eq!(host.row().await.proven, Some(Claims::of(&host.inventory)));
    look(&mut verifier).await;
    host.report().await;
    assert_eq!(host.fetch().await, None, "what is proven is not tested again");
    assert_eq!(host.state().await, HostState::Ready);
}

#[tokio::test]
async fn a_verdict_is_kept_with_all_it_was_made_of() {
    let market = open().await;
    let mut verifier = market.verifier();
    let mut host = market.host("alpha", 1_000).await;
    look(&mut verifier).await;
    let mut exchanges = Vec::new();
    for _ in 0..2 {
        exchanges.push(host.work_within(EFFORT).await);
        look(&mut verifier).await;
    }
    let Some(Ruling::Passed(Proven::Cpu { milli_cpu, elapsed_ms, .. })) = host.rulings().await[0] else {
        panic!("a pass: {:?}", host.rulings().await)
    };
    assert_eq!(elapsed_ms, EFFORT);
    assert!((900..=1_000).contains(&milli_cpu.0), "{milli_cpu:?}");
    let kept = host.challenges().await.remove(0);
    assert_eq!(kept.body["host"], serde_json::json!(host.id));
    assert_eq!(
        kept.answers,
        exchanges.iter().map(|sent| serde_json::json!(sent.message)).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_host_that_claims_eight_times_its_cores_is_refused_with_what_it_claimed_and_proved() {
    let market = open().await;
    let mut verifier = market.verifier();
    let mut host = market.host("alpha", 8_000).await;
    look(&mut verifier).await;
    host.work_within(Millis(8 * EFFORT.0)).await;
    look(&mut verifier).await;
    host.work().await;
    look(&mut verifier).await;
    assert_eq!(host.state().await, HostState::Refused);
    let (code, message) = host.reason().await;
    assert_eq!(code, "cpu_overclaimed");
    assert!(message.starts_with("claims 8 cores, proved "), "{message}");
    host.report().await;
    assert_eq!(host.state().await, HostState::Refused, "saying it again changes nothing");
}

#[tokio::test]
async fn a_host_without_the_memory_it_claims_is_refused() {
    let market = open().await;
    let mut verifier = market.verifier();
    let mut host = market.host("alpha", 1_000).await;
    host.pass_cpu(&mut verifier).await;
    look(&mut verifier).await;
    host.work().await;
    look(&mut verifier).await;
    let Task::Memory(size) = task(&host).await else { panic!("a test of memory") };
    host.work_within(Millis(size.reads_ms.0 + 1)).await;
    look(&mut verifier).await;
    host.work().await;
    look(&mut verifier).await;
    assert_eq!((host.state().await, host.last_code().await), (HostState::Refused, "memory_missing"));
}

#[tokio::test]
async fn claims_that_grow_are_tested_again_before_the_host_takes_another_job() {
    let market = open().await;
    let mut verifier = market.verifier();
    let mut host = market.host("alpha", 1_000).await;
    host.pass_cpu(&mut verifier).await;
    host.pass_memory(&mut verifier).await;
    host.inventory.milli_cpu = MilliCpu(2_000);
    report_until(&mut host, HostState::Verifying).await;
    for _ in 0..3 {
        host.report().await;
        assert_eq!(host.state().await, HostState::Verifying, "a claim that is repeated is no proof");
    }
    host.pass_cpu(&mut verifier).await;
    host.pass_memory(&mut verifier).await;
    assert_eq!(host.state().await, HostState::Ready);
    assert_eq!(host.row().await.proven.map(|proven| proven.milli_cpu), Some(MilliCpu(2_000)));
    host.inventory.milli_cpu = MilliCpu(500);
    host.report().await;
    assert_eq!(host.state().await, HostState::Ready, "less than what was proven needs no proof");
}

#[tokio::test]
async fn claims_that_change_while_they_are_tested_are_tested_from_the_start() {
    let market = open().await;
    let mut verifier = market.verifier();
    let mut host = market.host("alpha", 1_000).await;
    host.prove_cpu(&mut verifier).await;
    host.inventory.milli_cpu = MilliCpu(3_000);
    for _ in 0..200 {
        host.report().await;
        if host.row().await.inventory.as_ref() == Some(&host.inventory) {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    for _ in 0..2 {
        look(&mut verifier).await;
    }
    assert_eq!(host.codes().await, ["passed", "open"]);
    let Task::Cpu(size) = task(&host).await else { panic!("a test of computing power") };
    assert_eq!(size.milli_cpu, MilliCpu(3_000));
}

#[tokio::test]
async fn a_refused_host_is_tested_again_after_a_pause_that_grows_with_every_failure() {
    let market = open().await;
    let mut verifier = market.verifier();
    let mut host = market.host("alpha", 2_000).await;
    look(&mut verifier).await;
    for (failures, pause) in (1..).zip([10_000, 20_000, 40_000]) {
        let before = market.store.clock_up().await.expect("clock").0;
        host.work_within(Millis(8 * EFFORT.0)).await;
        look(&mut verifier).await;
        host.work().await;
        look(&mut verifier).await;
        let retry = market.store.host_retry_up(host.id).await.expect("a row").expect("a pause").0;
        assert!((before + pause..before + pause + 5_000).contains(&retry), "{failures}: {}", retry - before);
        look(&mut verifier).await;
        assert_eq!(host.challenges().await.len(), failures, "not before the pause is over");
        market.store.clock_advance(Millis(pause + 5_000)).await.expect("advance");
        look(&mut verifier).await;
        assert_eq!(host.challenges().await.len(), failures, "not while the host is not there");
        host.report().await;
        look(&mut verifier).await;
        assert_eq!(host.challenges().await.len(), failures + 1);
        assert_eq!(host.state().await, HostState::Verifying);
    }
    for _ in 0..2 {
        host.work_within(EFFORT).await;
        look(&mut verifier).await;
    }
    host.pass_memory(&mut verifier).await;
    let row = host.row().await;
    assert_eq!((row.state, row.reason), (HostState::Ready, None), "what was is forgotten");
}
