//! Epochs that were worked out by hand, and their bundles, which other implementations have to agree with.
//!
//! `UPDATE_GOLDEN=1` writes them anew.

use std::{env, fs, path::PathBuf};

use nave_domain::host::Term;
use nave_settlement::{
    Settlement, audit,
    bundle::NO_HEAD,
    evidence::{Blame, Class, Confirmation, Event, Idle, Kind, Lease, Miner},
    testing::{Epoch, after},
};

const HOUR: i64 = 3_600_000;
const H100: &str = "h100-80g";

pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Compares a bundle with the one that is checked in, and audits it; gives its settlement and its head.
fn golden(name: &str, epoch: &Epoch, head: &str) -> (Settlement, String) {
    let settled = epoch.settle().expect("settled");
    let (bytes, head) = epoch.bundle(head, &settled).expect("written");
    let path = folder().join(format!("{name}.jsonl"));
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &bytes).expect("a place for the bundle");
    }
    let expected = fs::read(&path).expect("a golden bundle; UPDATE_GOLDEN=1 writes it");
    assert!(bytes == expected, "{name} is not what it was; UPDATE_GOLDEN=1 writes it anew");
    let report = audit(bytes.as_slice(), None).expect("it follows");
    assert_eq!((report.pays, report.head), (settled.pays.clone(), head.clone()));
    (settled, head)
}

fn miner(hotkey: &str) -> Miner {
    Miner { hotkey: hotkey.into(), verified_hosts: 1, ..Miner::default() }
}

/// Two miners, Alice and Bob, and a baseline of $2.50.
fn market() -> Epoch {
    let mut epoch = Epoch::empty();
    epoch.header.emission = 10_000_000;
    epoch.miners = vec![miner("alice"), miner("bob")];
    epoch.classes = vec![Class {
        baseline: Some(2_500_000),
        baseline_at_ms: Some(epoch.header.opened_ms),
        baseline_source: Some("median of three".into()),
        class: H100.into(),
        devices: 600,
        leased_milli: 600 * 675,
    }];
    epoch
}

/// An hour of one GPU.
fn lease(epoch: &Epoch, hotkey: &str, gpu_hour: i64) -> Lease {
    Lease {
        baseline: Some(2_500_000),
        charged: gpu_hour,
        class: Some(H100.into()),
        closed_ms: epoch.header.closed_ms,
        customer: "carol".into(),
        gib_hour: 0,
        gpu_hour,
        host: format!("host-of-{hotkey}"),
        hotkey: hotkey.into(),
        job: format!("job-{hotkey}"),
        lease: format!("lease-{hotkey}"),
        memory: 0,
        milli_cpu: 0,
        milli_gpu: 1_000,
        outcome: "exited".into(),
        placed_ms: epoch.header.opened_ms,
        related: None,
        term: Term::OnDemand,
        used_ms: HOUR,
        vcpu_hour: 0,
    }
}

/// Half an hour of that lease that was lost with its host.
fn lost(lease: &Lease) -> Event {
    Event {
        at_ms: lease.closed_ms,
        blame: Blame::Host,
        confirmed_by: Some(Confirmation::Absence),
        detail: "the host did not come back".into(),
        event: format!("event-{}", lease.hotkey),
        from_ms: lease.closed_ms - HOUR / 2,
        host: lease.host.clone(),
        hotkey: lease.hotkey.clone(),
        kind: Kind::HostLost,
        lease: Some(lease.lease.clone()),
        signature: String::new(),
        until_ms: lease.closed_ms,
    }
}

fn idle(epoch: &Epoch, hotkey: &str, devices: i64, gpu_hour: i64) -> Idle {
    Idle {
        class: H100.into(),
        device_ms: devices * HOUR,
        gpu_hour,
        host: format!("host-of-{hotkey}"),
        hotkey: hotkey.into(),
        obliged_since_ms: epoch.header.closed_ms - epoch.params.obliged_ms,
    }
}

/// Alice below the baseline, Bob above it.
fn two_leases() -> Epoch {
    let mut epoch = market();
    epoch.leases = vec![lease(&epoch, "alice", 2_000_000), lease(&epoch, "bob", 3_000_000)];
    epoch
}

#[test]
fn in_an_empty_epoch_the_sink_has_all() {
    let (settled, _) = golden("empty", &Epoch::empty(), NO_HEAD);
    assert_eq!(settled.result.weights, [("sink".to_owned(), 65_535)]);
}

#[test]
fn use_is_paid_in_weights_and_bids_above_the_baseline_in_cash() {
    let (settled, _) = golden("normal", &two_leases(), NO_HEAD);
    let [alice, bob] = ["alice", "bob"].map(|hotkey| settled.pays[hotkey].clone());
    assert_eq!((alice.used, alice.cash, bob.used, bob.cash), (1_800_000, 0, 2_250_000, 450_000));
    assert_eq!((settled.result.smoothed, settled.result.sink), (10_000_000, 5_950_000));
    // 0.18 × 65535 = 11796.3, 0.225 × 65535 = 14745.375, and 0.595 × 65535 = 38993.325: the rest is Bob's.
    assert_eq!((alice.weight, bob.weight, settled.result.weights[2].1), (11_796, 14_746, 38_993));
    assert_eq!((alice.carry, bob.carry), (1_800_000, 2_250_000));
}

#[test]
fn a_miner_takes_what_is_left_into_the_next_epoch() {
    let first = two_leases();
    let (settled, head) = golden("normal", &first, NO_HEAD);
    let mut second = market();
    second.header.epoch = 2;
    second.header.opened_ms = first.header.closed_ms;
    second.header.closed_ms = first.header.closed_ms + HOUR;
    second.header.emissions = vec![10_000_000];
    second.header.emission = 12_000_000;
    second.miners = settled.pays.values().map(|pay| Miner { verified_hosts: 1, ..after(pay) }).collect();
    let (settled, _) = golden("normal-2", &second, &head);
    let alice = &settled.pays["alice"];
    // The emission was worth more than was thought: 11796 / 65535 of $12.
    assert_eq!((alice.realised, alice.carry), (2_159_945, 1_800_000 - 2_159_945));
    assert_eq!(settled.result.smoothed, 11_000_000);
    assert_eq!(settled.result.weights, [("sink".to_owned(), 65_535)]);
}

#[test]
fn what_the_emission_does_not_cover_is_paid_in_cash() {
    let mut epoch = two_leases();
    epoch.header.emission = 1_000_000;
    let (settled, _) = golden("crunch", &epoch, NO_HEAD);
    let [alice, bob] = ["alice", "bob"].map(|hotkey| settled.pays[hotkey].clone());
    // 1.80 / 4.05 of a dollar, and 2.25 / 4.05, each rounded down.
    assert_eq!((alice.cash, alice.carry), (1_800_000 - 444_444, 444_444));
    assert_eq!((bob.cash, bob.carry), (450_000 + 2_250_000 - 555_555, 555_555));
    assert_eq!(settled.result.sink, 1);
}

#[test]
fn a_breach_credits_the_customer_and_costs_balance_then_collateral_then_standby() {
    let mut epoch = two_leases();
    epoch.events = vec![lost(&epoch.leases[0])];
    let closed = epoch.header.closed_ms;
    let vesting = [closed - 72 * HOUR, closed, 1_000_000, 0];
    epoch.miners[0] = Miner { collateral: 5_000_000, vesting: vec![vesting], ..miner("alice") };
    let (settled, _) = golden("debts", &epoch, NO_HEAD);
    let alice = &settled.pays["alice"];
    // 2/3 less 10 %: 0.566666 of two dollars.
    assert_eq!(settled.result.credits, 2_000_000 - 1_133_332);
    assert_eq!((alice.used, alice.penalty), (1_019_998, 32_000_000));
    assert_eq!((alice.penalty_held, alice.penalty_collateral, alice.collateral), (1_019_998, 5_000_000, 0));
    assert_eq!((alice.vested, alice.granted), (0, 0), "it went into the debt");
    assert_eq!((alice.carry, alice.weight), (1_019_998 - 27_000_000 + 1_000_000, 0));
    assert_eq!((alice.breaches, alice.demoted_until_ms), (1, 0));
}

#[test]
fn standby_has_a_target_and_a_cap_and_vests() {
    let mut epoch = two_leases();
    (epoch.leases[1].gpu_hour, epoch.leases[1].charged) = (1_000_000, 1_000_000);
    epoch.params.standby_targets = vec![(H100.into(), 5)];
    epoch.miners.push(miner("dora"));
    epoch.idle = vec![
        idle(&epoch, "alice", 6, 1_250_000),
        idle(&epoch, "bob", 4, 2_375_000),
        idle(&epoch, "dora", 9, 0),
    ];
    epoch.idle[2].obliged_since_ms += 1;
    let closed = epoch.header.closed_ms;
    epoch.miners[1].vesting = vec![[closed - 36 * HOUR, closed + 36 * HOUR, 1_000_000, 400_000]];
    let (settled, _) = golden("standby", &epoch, NO_HEAD);
    let [alice, bob, dora] = ["alice", "bob", "dora"].map(|hotkey| settled.pays[hotkey].clone());
    // 67.5 % leased is half of the way to 20 % of $2.50. Five of ten devices count, and Bob is only 5 % below.
    assert_eq!((alice.standby, bob.standby, dora.standby), (3 * 250_000, 2 * 125_000, 0));
    assert_eq!(alice.vesting, [[closed, closed + 72 * HOUR, 750_000, 0]]);
    assert_eq!((bob.vested, bob.granted, bob.carry), (100_000, 100_000, 1_000_000));
    // What was delivered leaves no room for more standby: 2 × 2.50 − 2.00 − 2.50 = 0.50.
    (epoch.leases[1].gpu_hour, epoch.leases[1].charged) = (2_500_000, 2_500_000);
    epoch.params.margin_ppm = 0;
    let (settled, _) = golden("standby-cap", &epoch, NO_HEAD);
    assert_eq!((settled.pays["alice"].standby, settled.pays["bob"].standby), (375_000, 125_000));
}

#[test]
fn a_miner_whose_hosts_break_too_often_is_demoted() {
    let mut epoch = two_leases();
    epoch.events = vec![lost(&epoch.leases[0])];
    let today = epoch.header.closed_ms / (24 * HOUR);
    let days = vec![[today - 30, HOUR, 50], [today - 29, 10 * HOUR, 2], [today, HOUR, 3]];
    epoch.miners[0].days = days;
    let (settled, _) = golden("demotion", &epoch, NO_HEAD);
    let alice = &settled.pays["alice"];
    assert_eq!(alice.days, [[today - 29, 10 * HOUR, 2], [today, 2 * HOUR, 4]]);
    // 7 + 0.5687 − √(7 × 2.706025) = 3.216416 in 262 hours.
    assert_eq!(alice.bound_ppm, 12_276);
    assert_eq!(alice.demoted_until_ms, epoch.header.closed_ms + 7 * 24 * HOUR);
}

#[test]
fn a_miner_who_rents_from_itself_earns_nothing() {
    let mut epoch = two_leases();
    epoch.leases[0].related = Some("both are of one key".into());
    epoch.events = vec![lost(&epoch.leases[0])];
    let (settled, _) = golden("related", &epoch, NO_HEAD);
    let alice = &settled.pays["alice"];
    assert_eq!((alice.used, alice.cash, alice.penalty, settled.result.credits), (0, 0, 32_000_000, 0));
    assert_eq!(alice.days, [[epoch.header.closed_ms / (24 * HOUR), 0, 1]]);
}

#[test]
fn who_is_banned_or_gone_forfeits_what_has_not_vested() {
    let mut epoch = two_leases();
    epoch.params.standby_targets = vec![(H100.into(), 100)];
    epoch.idle = vec![idle(&epoch, "alice", 2, 0), idle(&epoch, "bob", 2, 0)];
    let closed = epoch.header.closed_ms;
    let vesting = vec![[closed - 36 * HOUR, closed + 36 * HOUR, 1_000_000, 400_000]];
    epoch.miners[0] = Miner { banned: true, vesting: vesting.clone(), ..miner("alice") };
    epoch.miners[1] = Miner { vesting, ..Miner { hotkey: "bob".into(), ..Miner::default() } };
    let (settled, _) = golden("banned", &epoch, NO_HEAD);
    for hotkey in ["alice", "bob"] {
        let pay = &settled.pays[hotkey];
        assert_eq!((pay.forfeited, pay.vested, pay.standby, pay.vesting.len()), (600_000, 0, 0, 0));
    }
    assert!(settled.pays["alice"].weight > 0, "what was used is paid");
    assert_eq!(
        (settled.pays["bob"].weight, settled.pays["bob"].carry),
        (0, 2_250_000),
        "it waits for a host"
    );
}

#[test]
fn many_small_leases_at_no_price_do_not_hide_breaches() {
    let mut epoch = market();
    let small =
        Lease { milli_gpu: 0, milli_cpu: 250, class: None, baseline: None, ..lease(&epoch, "alice", 0) };
    epoch.leases =
        (0..64).map(|number| Lease { lease: format!("lease-{number}"), ..small.clone() }).collect();
    let settled = epoch.settle().expect("settled");
    assert_eq!(settled.pays["alice"].days[0][1], HOUR, "16 vCPUs for an hour");
}

/// An epoch in which Alice's host crashes under leases of so much, `(milli_gpu, milli_cpu)`.
fn crash(sizes: &[(i64, i64)]) -> Epoch {
    let mut epoch = market();
    for (number, &(milli_gpu, milli_cpu)) in sizes.iter().enumerate() {
        let whole = lease(&epoch, "alice", 2_000_000);
        let lease =
            Lease { lease: format!("lease-{number:03}"), milli_gpu, milli_cpu, vcpu_hour: 40_000, ..whole };
        epoch.events.push(Event { event: format!("event-{number:03}"), ..lost(&lease) });
        epoch.leases.push(lease);
    }
    epoch
}

#[test]
fn one_crash_under_five_hundred_thin_leases_is_one_breach() {
    let alice = crash(&[(0, 10); 500]).settle().expect("settled").pays["alice"].clone();
    assert_eq!((alice.breaches, alice.demoted_until_ms), (1, 0));
    assert_eq!(alice.penalty, 500 * 6_400, "each customer was let down");
}

#[test]
fn breaches_of_a_host_are_as_many_as_the_devices_that_failed() {
    // 1/1600 + 1/2 + 1/2 of a device, and one promise, however large.
    let mut epoch = crash(&[(0, 10), (0, 8_000), (500, 4_000), (8_000, 64_000)]);
    let (settled, _) = golden("thin", &epoch, NO_HEAD);
    assert_eq!(settled.pays["alice"].breaches, 3);
    epoch.events[3].lease = None;
    let breaches = |epoch: &Epoch| epoch.settle().expect("settled").pays["alice"].breaches;
    assert_eq!(breaches(&epoch), 3, "without a lease it counts whole");
    for (at, host) in ["second", "third"].into_iter().enumerate() {
        epoch.leases[at].host = host.into();
        epoch.events[at].host = host.into();
    }
    assert_eq!(breaches(&epoch), 4, "two of the first host, and one of each other");
}

#[test]
fn hosts_that_fail_their_thin_leases_again_and_again_are_demoted() {
    let mut epoch = market();
    let mut epochs = 0;
    while epoch.miners[0].demoted_until_ms == 0 {
        let thin = Lease { milli_gpu: 0, milli_cpu: 10, ..lease(&epoch, "alice", 0) };
        epoch.events = vec![lost(&thin)];
        epoch.leases = vec![thin];
        let settled = epoch.settle().expect("settled");
        epoch.miners[0] = Miner { verified_hosts: 1, ..after(&settled.pays["alice"]) };
        epochs += 1;
    }
    assert_eq!(epochs, 5);
}
