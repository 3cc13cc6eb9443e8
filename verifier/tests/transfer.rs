//! Who fetches from whom, and when a host is slow: rows and numbers in, decisions out.

use std::net::Ipv6Addr;

use nave_domain::{
    Bytes, HostId, MilliCpu, Millis,
    host::{Inventory, Runtime},
};
use nave_proof::{Failure, Proven, Reason};
use nave_rules::floors::Floors;
use nave_store::{LinkedHost, Measured, Transfer};
use nave_verifier::{
    decide::Ruling,
    transfer::{Fetch, measured, plan, port, settle},
};
use uuid::Uuid;

const LEAST: u64 = 1_000;

fn id(n: u128) -> HostId {
    HostId(Uuid::from_u128(n))
}

fn host(n: u128, hotkey: &str) -> LinkedHost {
    let claims = Inventory {
        milli_cpu: MilliCpu(1_000),
        memory: Bytes(1 << 30),
        disk: Bytes(1 << 30),
        devices: Vec::new(),
        cpu_model: "a processor".into(),
        os: "test".into(),
        kernel: "test".into(),
        runtime: Runtime::Simulated,
        egress: Vec::new(),
        agent: "test".into(),
    };
    let (host, address) = (id(n), Ipv6Addr::LOCALHOST);
    LinkedHost { host, hotkey: hotkey.into(), address, claims, is_due: true, is_free: true }
}

fn hosts(count: u128) -> Vec<LinkedHost> {
    (1..=count).map(|n| host(n, &format!("miner {n}"))).collect()
}

fn past(source: u128, host: u128, bytes_per_s: u64) -> Transfer {
    of(source, host, Measured { bytes_per_s: Some(bytes_per_s), is_reached: Some(true) })
}

/// A transfer between hosts of different miners.
fn of(source: u128, host: u128, measured: Measured) -> Transfer {
    let (source_hotkey, hotkey) = (format!("miner {source}"), format!("miner {host}"));
    Transfer { source: id(source), source_hotkey, host: id(host), hotkey, measured }
}

/// One in which the host that was to fetch could not connect.
fn in_vain(source: u128, host: u128) -> Transfer {
    of(source, host, Measured { bytes_per_s: Some(0), is_reached: Some(false) })
}

fn fetches(hosts: &[LinkedHost], recent: &[Transfer]) -> Vec<Fetch> {
    plan(hosts, recent, &mut || 7)
}

fn passed(bytes_per_s: u64) -> Ruling {
    Ruling::Passed(Proven::Transfer { bytes: 1 << 24, elapsed_ms: Millis(1), bytes_per_s })
}

fn failed() -> Ruling {
    Ruling::Failed(Failure { code: Reason::Aborted, message: "nobody answered".into() })
}

fn reason(ruling: Ruling) -> Option<Reason> {
    match ruling {
        Ruling::Failed(failure) => Some(failure.code),
        Ruling::Passed(_) | Ruling::Void(_) => None,
    }
}

#[test]
fn a_host_alone_fetches_from_nobody_and_each_has_a_part_in_one_transfer_at_a_time() {
    assert_eq!(fetches(&hosts(1), &[]), []);
    let drawn = fetches(&hosts(4), &[]);
    assert_eq!(drawn.len(), 2);
    let mut all: Vec<HostId> = drawn.iter().flat_map(|fetch| [fetch.host, fetch.source]).collect();
    all.sort_unstable();
    assert_eq!(all, [1, 2, 3, 4].map(id));
}

#[test]
fn a_host_that_is_busy_or_not_due_does_not_fetch_and_one_that_is_busy_does_not_send() {
    let mut busy = hosts(2);
    busy[1].is_free = false;
    assert_eq!(fetches(&busy, &[]), []);
    let mut rested = hosts(2);
    rested[0].is_due = false;
    assert_eq!(fetches(&rested, &[]), [Fetch { host: id(2), source: id(1) }]);
}

#[test]
fn hosts_of_other_owners_come_first_and_of_those_the_one_of_longest_ago() {
    let own = [host(1, "one"), host(2, "one")];
    assert_eq!(fetches(&own, &[])[0], Fetch { host: id(1), source: id(2) });
    let mixed = [host(1, "one"), host(2, "one"), host(3, "two")];
    assert_eq!(fetches(&mixed, &[])[0], Fetch { host: id(1), source: id(3) });
    let recent = [past(4, 1, 5), past(2, 1, 5), past(3, 1, 5)];
    assert_eq!(fetches(&hosts(4), &recent)[0].source, id(3));
    assert_eq!(fetches(&hosts(5), &recent)[0].source, id(5), "one that was never asked comes before all");
}

#[test]
fn a_host_waits_for_others_rather_than_to_fetch_from_the_same_again() {
    let mut busy = hosts(3);
    busy[2].is_free = false;
    busy[1].is_due = false;
    assert_eq!(fetches(&busy, &[past(2, 1, 5)]), []);
    assert_eq!(fetches(&busy, &[past(3, 1, 5)]), [Fetch { host: id(1), source: id(2) }]);
}

#[test]
fn one_slow_transfer_is_recorded_and_one_that_failed_says_nothing() {
    let recent = [past(2, 1, 10)];
    assert_eq!(settle(passed(10), id(1), &hosts(4), &recent, LEAST), passed(10));
    let void = settle(failed(), id(1), &hosts(4), &[past(2, 1, 0)], LEAST);
    let Ruling::Void(why) = void else { panic!("{void:?}") };
    assert!(why.contains("nobody answered"), "{why}");
}

#[test]
fn a_host_is_slow_that_was_with_three_others_or_with_all_where_there_are_fewer() {
    let three = [past(2, 1, 10), past(3, 1, 0), past(4, 1, 10)];
    assert_eq!(reason(settle(passed(10), id(1), &hosts(9), &three, LEAST)), Some(Reason::TransferTooSlow));
    assert_eq!(reason(settle(failed(), id(1), &hosts(9), &three, LEAST)), Some(Reason::TransferTooSlow));
    assert_eq!(settle(passed(10), id(1), &hosts(9), &three[..2], LEAST), passed(10));
    assert!(reason(settle(passed(10), id(1), &hosts(3), &three[..2], LEAST)).is_some(), "these are all");
    assert_eq!(settle(passed(10), id(1), &hosts(2), &three[..1], LEAST), passed(10), "it may be the other");
}

#[test]
fn one_fast_transfer_among_the_last_ones_or_the_same_partner_thrice_clears_a_host() {
    let fast = [past(2, 1, 10), past(3, 1, 9_000), past(4, 1, 10), past(5, 1, 10)];
    assert_eq!(settle(passed(10), id(1), &hosts(9), &fast, LEAST), passed(10));
    let same = [past(2, 1, 10), past(2, 1, 10), past(2, 1, 10)];
    assert_eq!(settle(passed(10), id(1), &hosts(9), &same, LEAST), passed(10));
    let open = of(5, 1, Measured::default());
    let void = [open, past(2, 1, 10), past(3, 1, 10)];
    assert_eq!(settle(passed(10), id(1), &hosts(9), &void, LEAST), passed(10));
}

#[test]
fn a_host_that_receives_fast_and_sends_slowly_is_slow() {
    let recent = [past(2, 1, 9_000), past(1, 2, 10), past(1, 3, 10), past(1, 4, 10)];
    let Ruling::Failed(failure) = settle(passed(9_000), id(1), &hosts(9), &recent, LEAST) else {
        panic!("it passed")
    };
    assert!(failure.message.contains("from it with 3 other hosts"), "{}", failure.message);
    let mixed = [past(2, 1, 10), past(1, 3, 10), past(4, 1, 10)];
    assert_eq!(settle(passed(10), id(1), &hosts(9), &mixed, LEAST), passed(10), "each way counts alone");
}

#[test]
fn a_host_that_hosts_of_two_miners_could_not_connect_to_cannot_be_reached() {
    let two = [past(2, 1, 9_000), in_vain(1, 3), in_vain(1, 2)];
    assert_eq!(reason(settle(passed(9_000), id(1), &hosts(9), &two, LEAST)), Some(Reason::PortUnreachable));
    assert_eq!(reason(settle(failed(), id(1), &hosts(9), &two, LEAST)), Some(Reason::PortUnreachable));
    assert_eq!(settle(passed(9_000), id(3), &hosts(9), &two, LEAST), passed(9_000), "not who tried");
}

#[test]
fn one_vantage_point_condemns_nobody_however_often_it_tries() {
    let settled = |recent: &[Transfer]| settle(passed(9_000), id(1), &hosts(9), recent, LEAST);
    let again = [in_vain(1, 2), in_vain(1, 2), in_vain(1, 2)];
    assert_eq!(settled(&again), passed(9_000));
    let one_miner = [in_vain(1, 2), Transfer { hotkey: "miner 2".into(), ..in_vain(1, 3) }];
    assert_eq!(settled(&one_miner), passed(9_000));
    let own = [in_vain(1, 2), Transfer { hotkey: "miner 1".into(), ..in_vain(1, 3) }];
    assert_eq!(settled(&own), passed(9_000), "its own miner's hosts say nothing");
}

#[test]
fn whoever_reached_a_host_last_clears_it_unless_that_is_its_own_miners() {
    let settled = |recent: &[Transfer]| settle(passed(9_000), id(1), &hosts(9), recent, LEAST);
    assert_eq!(settled(&[past(1, 4, 9_000), in_vain(1, 3), in_vain(1, 2)]), passed(9_000));
    assert_eq!(settled(&[in_vain(1, 3), past(1, 4, 9_000), in_vain(1, 2)]), passed(9_000));
    let accomplice = Transfer { hotkey: "miner 1".into(), ..past(1, 4, 9_000) };
    let ruling = settled(&[accomplice, in_vain(1, 3), in_vain(1, 2)]);
    assert_eq!(reason(ruling), Some(Reason::PortUnreachable));
}

#[test]
fn what_was_our_fault_is_not_measured() {
    let void = Ruling::Void("the host leaves the market".into());
    let unreached = Ruling::Failed(Failure { code: Reason::PortUnreachable, message: "no way".into() });
    let came = [&void, &failed(), &unreached, &passed(5)].map(|ruling| {
        let Measured { bytes_per_s, is_reached } = measured(ruling);
        (bytes_per_s, is_reached)
    });
    assert_eq!(came, [(None, None), (Some(0), None), (Some(0), Some(false)), (Some(5), Some(true))]);
    let three = [past(2, 1, 10), past(3, 1, 0), past(4, 1, 10)];
    assert_eq!(settle(void.clone(), id(1), &hosts(9), &three, LEAST), void);
}

#[test]
fn there_is_a_floor_and_ports_are_where_they_should_be() {
    assert!(Floors::embedded().expect("floors").transfer_bytes_per_s() > 0);
    assert!([0, 1, 9_999, 10_000, u64::MAX].map(port).iter().all(|port| (20_000..30_000).contains(port)));
}
