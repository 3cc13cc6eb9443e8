//! Hosts that are honest at one time and not at another, or in one place and not in another.

use std::collections::BTreeSet;

use nave_domain::{
    Bytes, Millis,
    host::HostState,
    lease::Outcome,
    verdict::{Cause, Kind},
};
use nave_proof::{
    Proven,
    software::{Dishonesty, Turns},
};
use nave_verifier::{Config, Means, Verifier, decide::Ruling};

use crate::{
    market::{Market, config, look, open},
    paced::{Paced, prove, step},
};

const NEVER: Millis = Millis(1 << 40);
const HOUR: i64 = 3_600_000;
/// Whole tests come when their time has come, and nothing else does.
const MEANS: Means = Means { retest: Millis(HOUR), probe: NEVER, window: NEVER };

fn verifier(market: &Market) -> Verifier {
    let enforced = BTreeSet::from([Kind::Cpu, Kind::Memory, Kind::Devices]);
    Verifier::new(Config { enforced, means: MEANS, ..config() }, market.store.clone())
}

fn half_lent() -> Vec<Dishonesty> {
    vec![Dishonesty::Lent { per_mille: 500, vram: Bytes(0) }]
}

/// A host with one honest GPU that takes jobs.
async fn ready(market: &Market, name: &str, device: &str) -> Paced {
    let mut host = Paced::alone(market, name, device, Vec::new()).await;
    prove(&mut verifier(market), &mut [&mut host]).await;
    assert_eq!(host.fate().await, "ready", "{:?}", host.host.rulings().await);
    host
}

/// Lets the time come of the next whole test of hosts that take jobs, whatever was drawn.
async fn test_again(market: &Market, hosts: &mut [&mut Paced]) {
    let mut verifier = verifier(market);
    look(&mut verifier).await;
    market.store.clock_advance(Millis(50 * HOUR)).await.expect("advance");
    for host in hosts.iter_mut() {
        host.host.report().await;
    }
    for _ in 0..2 {
        look(&mut verifier).await;
    }
    prove(&mut verifier, hosts).await;
}

async fn last_cause(host: &Paced) -> Cause {
    host.host.challenges().await.pop().expect("a challenge").cause
}

#[tokio::test]
async fn one_gpu_of_two_miners_passes_under_each_name_and_not_in_a_window() {
    let market = open().await;
    let (turns, mut verifier) = (Turns::default(), verifier(&market));
    let one = || vec![Dishonesty::Shared { with: "one".into() }];
    let mut left = Paced::join(&market, "left", &[("SIM-left", one())], &turns).await;
    prove(&mut verifier, &mut [&mut left]).await;
    let mut right = Paced::join(&market, "right", &[("SIM-right", one())], &turns).await;
    right.begin_after(&left);
    prove(&mut verifier, &mut [&mut right]).await;
    let mut honest = ready(&market, "honest", "SIM-honest").await;
    assert_eq!((left.fate().await, right.fate().await), ("ready".into(), "ready".into()), "one by one");

    market.store.window_come().await.expect("its time comes");
    for _ in 0..3 {
        look(&mut verifier).await;
    }
    prove(&mut verifier, &mut [&mut left, &mut right, &mut honest]).await;
    for host in [&left, &right, &honest] {
        assert_eq!(last_cause(host).await, Cause::Window);
    }
    let fates = [left.fate().await, right.fate().await];
    let refused = fates.iter().filter(|fate| *fate == "device_mismatch").count();
    assert!(
        refused >= 1 && fates.iter().all(|fate| fate == "ready" || fate == "device_mismatch"),
        "{fates:?}"
    );
    assert_eq!(honest.fate().await, "ready", "{:?}", honest.host.rulings().await);
}

#[tokio::test]
async fn a_gpu_that_works_for_others_between_tests_is_found_by_one_that_nobody_foresees() {
    let market = open().await;
    let (mut busy, mut honest) =
        (ready(&market, "busy", "SIM-1").await, ready(&market, "honest", "SIM-2").await);
    busy.exchange(&half_lent());
    test_again(&market, &mut [&mut busy, &mut honest]).await;
    for host in [&busy, &honest] {
        assert_eq!(last_cause(host).await, Cause::Random);
    }
    assert_eq!((busy.fate().await, honest.fate().await), ("device_mismatch".into(), "ready".into()));
}

#[tokio::test]
async fn a_gpu_whose_memory_or_time_is_rented_elsewhere_is_refused_with_its_reason() {
    let market = open().await;
    let held = vec![Dishonesty::Lent { per_mille: 0, vram: Bytes(64 * Bytes::MIB - (256 << 10)) }];
    let mut held = Paced::alone(&market, "held", "SIM-1", held).await;
    let mut lent = Paced::alone(&market, "lent", "SIM-2", half_lent()).await;
    let mut honest = Paced::alone(&market, "honest", "SIM-3", Vec::new()).await;
    prove(&mut verifier(&market), &mut [&mut held, &mut lent, &mut honest]).await;
    let (code, message) = held.host.reason().await;
    assert_eq!(code, "device_busy");
    assert!(message.contains("others hold 66846720 of 67108864"), "{message}");
    assert_eq!((lent.fate().await, honest.fate().await), ("device_mismatch".into(), "ready".into()));
}

#[tokio::test]
async fn a_gpu_that_is_exchanged_for_a_weaker_one_is_found_whatever_it_is_called() {
    let market = open().await;
    let mut silent = ready(&market, "silent", "SIM-1").await;
    let mut telling = ready(&market, "telling", "SIM-2").await;
    let mut honest = ready(&market, "honest", "SIM-3").await;
    // A weaker one under the old name: the next test finds it, whenever that is.
    silent.exchange(&half_lent());
    // A weaker one that has its own name, and an equal one: another machine, which shows everything again.
    for (host, name, how) in [(&mut telling, "SIM-4", half_lent()), (&mut honest, "SIM-5", Vec::new())] {
        host.models = [(name.to_owned(), crate::paced::model(how))].into();
        host.says(|inventory| inventory.devices[0].uuid = name.into()).await;
        assert_eq!(host.host.state().await, HostState::Verifying, "it takes no jobs from then on");
    }
    prove(&mut verifier(&market), &mut [&mut telling, &mut honest]).await;
    for host in [&telling, &honest] {
        let challenges = host.host.challenges().await;
        let again: Vec<Kind> = challenges.iter().skip(3).map(|drawn| drawn.kind).collect();
        assert_eq!(again, [Kind::Cpu, Kind::Memory, Kind::Devices]);
        assert_eq!(last_cause(host).await, Cause::Identity);
    }
    assert_eq!((telling.fate().await, honest.fate().await), ("device_mismatch".into(), "ready".into()));
    assert_eq!(silent.fate().await, "ready", "it was not tested since");
    test_again(&market, &mut [&mut silent, &mut honest]).await;
    assert_eq!((silent.fate().await, honest.fate().await), ("device_mismatch".into(), "ready".into()));
}

/// The rate that the last test found.
async fn ops_per_s(host: &Paced) -> Option<u64> {
    match host.host.rulings().await.pop().flatten() {
        Some(Ruling::Passed(Proven::Devices(shown))) => shown[0].ops_per_s,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_gpu_that_is_throttled_beside_a_job_proves_itself_as_soon_as_that_has_ended() {
    let market = open().await;
    let mut verifier = verifier(&market);
    let throttled = |per_mille| [Dishonesty::Lent { per_mille, vram: Bytes(0) }];
    let mut honest = ready(&market, "honest", "SIM-1").await;
    let mut half = ready(&market, "half", "SIM-2").await;
    let mut capped = ready(&market, "capped", "SIM-3").await;
    let mut starved = ready(&market, "starved", "SIM-4").await;
    half.exchange(&throttled(500));
    capped.exchange(&throttled(940));
    starved.exchange(&throttled(990));
    let mut leases = Vec::new();
    let hosts = [&mut honest, &mut half, &mut capped, &mut starved];
    for (host, device) in hosts.into_iter().zip(["SIM-1", "SIM-2", "SIM-3", "SIM-4"]) {
        leases.push(host.lease(device).await);
        host.host.report().await;
    }
    for _ in 0..4 {
        look(&mut verifier).await;
        step(&mut [&mut honest, &mut half, &mut capped, &mut starved]).await;
    }
    for host in [&honest, &half, &capped, &starved] {
        assert_eq!(last_cause(host).await, Cause::LeaseStart);
    }
    assert_eq!((ops_per_s(&honest).await, ops_per_s(&half).await), (Some(1 << 26), Some(1 << 25)));
    assert_eq!((honest.fate().await, half.fate().await), ("ready".into(), "ready".into()));
    let codes = (capped.host.last_code().await, starved.host.last_code().await);
    assert_eq!(codes, ("device_throttled", "too_late"));
    for host in [&capped, &starved] {
        assert_eq!(host.fate().await, "ready", "that may be its customer's doing");
    }
    for (host, lease) in [&honest, &half, &capped, &starved].into_iter().zip(&leases) {
        let spec = market.store.host_spec(host.host.id).await.expect("a spec");
        assert!(spec.orders[lease].stop.is_none(), "its job goes on");
        let outcome = Some(Outcome::Exited { code: 0 });
        market.store.lease_finished(host.host.id, *lease, outcome, None).await.expect("finished");
    }
    for host in [&capped, &starved] {
        assert_eq!(host.fate().await, "verifying", "it gets no further jobs");
    }
    prove(&mut verifier, &mut [&mut honest, &mut half, &mut capped, &mut starved]).await;
    assert_eq!((capped.fate().await, starved.fate().await), ("too_late".into(), "too_late".into()));
    test_again(&market, &mut [&mut honest, &mut half]).await;
    assert_eq!((honest.fate().await, half.fate().await), ("ready".into(), "device_mismatch".into()));
}

#[tokio::test]
async fn a_gpu_of_a_name_that_nobody_knows_is_held_to_what_it_did_when_it_was_free() {
    let market = open().await;
    let mut verifier = verifier(&market);
    let mut hosts = Vec::new();
    for (name, device) in [("honest", "SIM-1"), ("half", "SIM-2"), ("capped", "SIM-3")] {
        let mut host = Paced::alone(&market, name, device, Vec::new()).await;
        host.says(|inventory| inventory.devices[0].model = "a card that nobody knows".into()).await;
        prove(&mut verifier, &mut [&mut host]).await;
        assert_eq!(host.fate().await, "ready", "{:?}", host.host.rulings().await);
        host.lease(device).await;
        host.host.report().await;
        hosts.push(host);
    }
    let [honest, half, capped] = &mut hosts[..] else { panic!("three") };
    half.exchange(&half_lent());
    capped.exchange(&[Dishonesty::Lent { per_mille: 900, vram: Bytes(0) }]);
    for _ in 0..4 {
        look(&mut verifier).await;
        step(&mut [honest, half, capped]).await;
    }
    for host in [&*honest, half, capped] {
        assert_eq!(last_cause(host).await, Cause::LeaseStart);
    }
    let codes = [honest.host.last_code().await, half.host.last_code().await, capped.host.last_code().await];
    assert_eq!(codes, ["passed", "passed", "too_late"]);
}
