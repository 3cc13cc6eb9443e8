//! What holds whatever happened in an epoch.

use std::collections::{BTreeMap, BTreeSet};

use nave_settlement::{
    Settlement,
    evidence::{Idle, Lease, Miner, Pay},
    lease::{Faults, settle},
    testing::{Draw, Epoch, after},
};
use proptest::prelude::*;

/// A random epoch, or the third of a chain.
fn epoch() -> impl Strategy<Value = Epoch> {
    (any::<u64>(), any::<bool>()).prop_map(|(seed, goes_on)| {
        let first = Epoch::random(seed, None);
        if !goes_on {
            return first;
        }
        let settled = first.settle().expect("settled");
        let second = Epoch::random(seed ^ 1, Some((&first, &settled)));
        let settled = second.settle().expect("settled");
        Epoch::random(seed ^ 2, Some((&second, &settled)))
    })
}

/// What a miner had before emission and cash of this epoch.
fn balance(pay: &Pay) -> i64 {
    pay.carry - pay.granted + pay.cash - pay.bids
}

/// What of the emission each miner gets.
fn values(epoch: &Epoch, settled: &Settlement) -> BTreeMap<String, i64> {
    let verified =
        |hotkey: &str| epoch.miners.iter().any(|miner| miner.hotkey == hotkey && miner.verified_hosts > 0);
    let owed = |pay: &Pay| if verified(&pay.hotkey) { i128::from(balance(pay).max(0)) } else { 0 };
    let all: i128 = settled.pays.values().map(owed).sum();
    let smoothed = i128::from(settled.result.smoothed);
    let part = |pay: &Pay| if all <= smoothed { owed(pay) } else { owed(pay) * smoothed / all };
    let value = |pay: &Pay| i64::try_from(part(pay)).expect("small") + pay.granted;
    settled.pays.values().map(|pay| (pay.hotkey.clone(), value(pay))).collect()
}

fn shuffle<T>(all: &mut [T], draw: &mut Draw) {
    for end in (1..all.len()).rev() {
        let other = draw.below(i64::try_from(end).expect("small") + 1);
        all.swap(end, usize::try_from(other).expect("small"));
    }
}

/// A number that may be as large as one can be.
fn wild(value: &mut i64, draw: &mut Draw) {
    match draw.below(12) {
        0 => *value = i64::MAX,
        1 => *value = i64::MAX - draw.below(1_000),
        2 => *value = 1 << draw.below(63),
        3 => *value = 0,
        _ => {}
    }
}

/// Miners without a past, each with a verified host.
fn without_a_past(epoch: &mut Epoch) {
    for miner in &mut epoch.miners {
        let hotkey = miner.hotkey.clone();
        *miner = Miner { hotkey, verified_hosts: 2, ..Miner::default() };
    }
}

/// A lease without events, and how many parts it is cut into.
fn lease_in_parts() -> impl Strategy<Value = (Lease, Vec<Lease>)> {
    (any::<u64>(), 1..6_i64).prop_map(|(seed, parts)| {
        let lease = Draw(seed).lease(&Epoch::random(seed, None));
        let cut = |amount: i64, part: i64| amount * (part + 1) / parts - amount * part / parts;
        let part = |part| Lease {
            charged: cut(lease.charged, part),
            used_ms: cut(lease.used_ms, part),
            ..lease.clone()
        };
        (lease.clone(), (0..parts).map(part).collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn weights_add_up_to_65535_and_are_never_all_zero(epoch in epoch()) {
        let weights = epoch.settle().expect("settled").result.weights;
        prop_assert_eq!(weights.iter().map(|(_, weight)| u32::from(*weight)).sum::<u32>(), 65_535);
        prop_assert!(weights.iter().all(|(_, weight)| *weight > 0));
        prop_assert!(weights.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn the_emission_is_shared_out_to_the_last_bit(epoch in epoch()) {
        let settled = epoch.settle().expect("settled");
        let shared: i64 = values(&epoch, &settled).values().sum();
        prop_assert_eq!(shared + settled.result.sink, settled.result.smoothed);
        for miner in &epoch.miners {
            let pay = &settled.pays[&miner.hotkey];
            let from_standby = balance(pay) - (miner.carry - pay.realised + pay.used)
                + (pay.penalty - pay.penalty_collateral);
            prop_assert!(from_standby >= 0, "a debt takes standby, and nothing else comes to a balance");
            prop_assert!(from_standby == 0 || balance(pay) <= 0);
            prop_assert_eq!(pay.collateral, miner.collateral - pay.penalty_collateral);
        }
    }

    #[test]
    fn what_has_vested_is_due_once(epoch in epoch()) {
        let settled = epoch.settle().expect("settled");
        for miner in &epoch.miners {
            let pay = &settled.pays[&miner.hotkey];
            let open = |vesting: &[[i64; 4]]| vesting.iter().map(|entry| entry[2] - entry[3]).sum::<i64>();
            let debt = balance(pay) - (miner.carry - pay.realised + pay.used) + (pay.penalty - pay.penalty_collateral);
            let left = open(&pay.vesting) + pay.vested + debt + pay.forfeited;
            prop_assert_eq!(open(&miner.vesting) + pay.standby, left);
            prop_assert!(pay.granted <= pay.vested);
        }
    }

    #[test]
    fn nobody_is_paid_more_than_is_owed(epoch in epoch()) {
        let settled = epoch.settle().expect("settled");
        for (hotkey, value) in values(&epoch, &settled) {
            let pay = &settled.pays[&hotkey];
            prop_assert!(value + pay.cash - pay.bids <= balance(pay).max(0) + pay.granted);
            prop_assert!(pay.cash - pay.bids <= pay.used);
        }
        prop_assert!(settled.result.sink >= 0);
    }

    #[test]
    fn penalties_never_exceed_what_they_say(epoch in epoch()) {
        for (hotkey, pay) in epoch.settle().expect("settled").pays {
            prop_assert!(pay.penalty_held + pay.penalty_collateral <= pay.penalty);
            prop_assert!(pay.collateral >= 0);
            let collateral = epoch.miners.iter().find(|miner| miner.hotkey == hotkey).map(|miner| miner.collateral);
            prop_assert!(Some(pay.penalty_collateral) <= collateral);
        }
    }

    #[test]
    fn a_dollar_that_is_paid_returns_less_the_margin(epoch in epoch(), lost_ms in 0..50_000_000_i64, breaches in 0..4_i64) {
        let faults = Faults { lost_ms, breaches, why: Vec::new() };
        let margin = epoch.params.margin_ppm;
        for lease in &epoch.leases {
            let pay = settle(lease, &faults, &epoch.params).expect("settled");
            prop_assert!((0..=1_000_000).contains(&pay.adherence_ppm));
            prop_assert!((0..=lease.charged).contains(&pay.credit));
            let kept = i128::from(lease.charged - pay.credit);
            let returned = i128::from(pay.used + pay.bid);
            prop_assert!(returned * 1_000_000 <= kept * i128::from(1_000_000 - margin));
        }
    }

    #[test]
    fn the_order_of_lines_of_one_kind_changes_nothing(epoch in epoch(), seed in any::<u64>()) {
        let (mut other, mut draw) = (epoch.clone(), Draw(seed));
        shuffle(&mut other.classes, &mut draw);
        shuffle(&mut other.miners, &mut draw);
        shuffle(&mut other.events, &mut draw);
        shuffle(&mut other.leases, &mut draw);
        shuffle(&mut other.idle, &mut draw);
        prop_assert_eq!(epoch.settle(), other.settle());
    }

    #[test]
    fn names_of_miners_change_nothing_but_ties(epoch in epoch()) {
        let renamed = |hotkey: &str| -> String {
            if hotkey == epoch.header.sink { return hotkey.to_owned(); }
            let turned = hotkey.bytes().map(|byte| char::from(b'z' - (byte - b'0') / 2));
            format!("{}{hotkey}", turned.collect::<String>())
        };
        let mut other = epoch.clone();
        other.miners.iter_mut().for_each(|miner| miner.hotkey = renamed(&miner.hotkey));
        other.events.iter_mut().for_each(|event| event.hotkey = renamed(&event.hotkey));
        other.leases.iter_mut().for_each(|lease| lease.hotkey = renamed(&lease.hotkey));
        other.idle.iter_mut().for_each(|idle| idle.hotkey = renamed(&idle.hotkey));
        let (first, second) = (epoch.settle().expect("settled"), other.settle().expect("settled"));
        for (hotkey, pay) in first.pays {
            let there = &second.pays[&renamed(&hotkey)];
            prop_assert!(pay.weight.abs_diff(there.weight) <= 1);
            let as_here = Pay { hotkey, weight: pay.weight, ..there.clone() };
            prop_assert_eq!(pay, as_here);
        }
    }

    #[test]
    fn more_value_never_means_less_pay_or_weight(epoch in epoch(), more in 1..10_000_000_i64) {
        prop_assume!(!epoch.leases.is_empty());
        let mut better = epoch.clone();
        let lease = &mut better.leases[0];
        lease.charged += more;
        lease.used_ms += more;
        let hotkey = lease.hotkey.clone();
        let (first, second) = (epoch.settle().expect("settled"), better.settle().expect("settled"));
        // What was a bid may become pay for use, which settles what collateral and standby had to settle.
        let kept = |settled: &Settlement| {
            let pay = &settled.pays[&hotkey];
            balance(pay) + pay.bids + pay.vested + pay.collateral
        };
        prop_assert!(kept(&first) <= kept(&second) + 2, "but for what is rounded away");
        if hotkey != epoch.header.sink {
            prop_assert!(values(&epoch, &first)[&hotkey] <= values(&better, &second)[&hotkey]);
            let weight = |settled: &Settlement| i64::from(settled.pays[&hotkey].weight);
            prop_assert!(weight(&first) <= weight(&second) + 1, "but for who gets the largest remainders");
        }
    }

    #[test]
    fn several_hotkeys_earn_no_more_than_one(mut epoch in epoch()) {
        without_a_past(&mut epoch);
        epoch.idle.clear();
        let hotkey = epoch.miners[0].hotkey.clone();
        prop_assume!(hotkey != epoch.header.sink);
        let mut split = epoch.clone();
        let second = format!("{hotkey}-too");
        split.miners.push(Miner { hotkey: second.clone(), ..split.miners[0].clone() });
        let own = epoch.leases.iter().filter(|lease| lease.hotkey == hotkey);
        let hosts: BTreeSet<&String> = own.map(|lease| &lease.host).collect();
        for host in hosts.into_iter().step_by(2) {
            let leases = split.leases.iter_mut().filter(|lease| lease.host == *host);
            leases.for_each(|lease| lease.hotkey.clone_from(&second));
            let events = split.events.iter_mut().filter(|event| event.host == *host);
            events.for_each(|event| event.hotkey.clone_from(&second));
        }
        let (one, two) = (epoch.settle().expect("settled"), split.settle().expect("settled"));
        let kept = |settled: &Settlement, hotkey: &str| balance(&settled.pays[hotkey]) + settled.pays[hotkey].bids;
        prop_assert_eq!(kept(&one, &hotkey), kept(&two, &hotkey) + kept(&two, &second), "a debt stays a debt");
        if one.pays[&hotkey].penalty == 0 {
            let paid = |epoch: &Epoch, settled: &Settlement, hotkey: &str| {
                values(epoch, settled)[hotkey] + settled.pays[hotkey].cash
            };
            let both = paid(&split, &two, &hotkey) + paid(&split, &two, &second);
            prop_assert!(both <= paid(&epoch, &one, &hotkey));
        }
    }

    #[test]
    fn a_lease_in_parts_earns_what_it_earns_whole((lease, parts) in lease_in_parts()) {
        let params = Epoch::empty().params;
        let paid = |lease: &Lease| {
            let pay = settle(lease, &Faults::default(), &params).expect("settled");
            pay.used + pay.bid
        };
        let (whole, sum) = (paid(&lease), parts.iter().map(paid).sum::<i64>());
        let rounded = 2 * i64::try_from(parts.len()).expect("small");
        prop_assert!(sum <= whole + 1 && whole <= sum + rounded, "{} and {}", whole, sum);
    }

    #[test]
    fn hosts_that_took_no_jobs_gain_nothing(epoch in epoch(), count in 1..20_i64) {
        let mut padded = epoch.clone();
        let closed_ms = epoch.header.closed_ms;
        padded.idle.extend((0..count).map(|number| Idle {
            class: "h100-80g".into(),
            device_ms: 3_600_000,
            gpu_hour: 0,
            host: format!("padding-{number}"),
            hotkey: epoch.miners[0].hotkey.clone(),
            obliged_since_ms: closed_ms - epoch.params.obliged_ms + 1,
        }));
        let (first, second) = (epoch.settle().expect("settled"), padded.settle().expect("settled"));
        let rest = |pay: &Pay| Pay { days: vec![], bound_ppm: 0, demoted_until_ms: 0, ..pay.clone() };
        for (hotkey, pay) in &first.pays {
            prop_assert_eq!(rest(pay), rest(&second.pays[hotkey]));
        }
    }

    #[test]
    fn more_idle_devices_share_what_there_is_for_the_target(mut epoch in epoch(), times in 2..5_usize) {
        // The target is already exceeded.
        epoch.params.standby_targets = vec![("h100-80g".into(), 1)];
        let span = epoch.header.closed_ms - epoch.header.opened_ms;
        epoch.idle.retain(|idle| idle.class == "h100-80g");
        epoch.idle.iter_mut().for_each(|idle| (idle.gpu_hour, idle.device_ms) = (0, idle.device_ms.max(span)));
        let standby = |epoch: &Epoch| epoch.settle().expect("settled").pays.values().map(|pay| pay.standby).sum::<i64>();
        let mut padded = epoch.clone();
        for number in 1..times {
            padded.idle.extend(epoch.idle.iter().cloned().map(|idle| Idle { host: format!("{}-{number}", idle.host), ..idle }));
        }
        prop_assert!(standby(&padded) <= standby(&epoch) + i64::try_from(padded.idle.len()).expect("small"));
        let class = epoch.classes.iter().find(|class| class.class == "h100-80g").expect("there");
        let most = i128::from(class.baseline.unwrap_or(0)) * i128::from(span) / 3_600_000;
        prop_assert!(i128::from(standby(&epoch)) * 1_000_000 <= most * i128::from(epoch.params.standby_top_ppm) + 1_000_000);
    }

    #[test]
    fn numbers_that_do_not_fit_are_an_error_and_never_a_panic(mut epoch in epoch(), seed in any::<u64>()) {
        let mut draw = Draw(seed);
        for lease in &mut epoch.leases {
            for value in [&mut lease.charged, &mut lease.used_ms, &mut lease.gpu_hour, &mut lease.vcpu_hour,
                &mut lease.gib_hour, &mut lease.memory, &mut lease.milli_cpu, &mut lease.milli_gpu] {
                wild(value, &mut draw);
            }
            lease.baseline.iter_mut().for_each(|value| wild(value, &mut draw));
        }
        for idle in &mut epoch.idle {
            wild(&mut idle.device_ms, &mut draw);
            wild(&mut idle.obliged_since_ms, &mut draw);
        }
        for class in &mut epoch.classes {
            wild(&mut class.devices, &mut draw);
            wild(&mut class.leased_milli, &mut draw);
            class.baseline.iter_mut().for_each(|value| wild(value, &mut draw));
        }
        for miner in &mut epoch.miners {
            wild(&mut miner.carry, &mut draw);
            wild(&mut miner.collateral, &mut draw);
            miner.days.iter_mut().for_each(|day| { wild(&mut day[1], &mut draw); wild(&mut day[2], &mut draw); });
            miner.vesting.iter_mut().for_each(|entry| wild(&mut entry[2], &mut draw));
        }
        for value in [&mut epoch.params.penalty_ms, &mut epoch.params.vest_ms, &mut epoch.params.demotion_ms,
            &mut epoch.params.vcpu_hour, &mut epoch.params.window_days, &mut epoch.header.emission] {
            wild(value, &mut draw);
        }
        if let Ok(settled) = epoch.settle() {
            let sum: u32 = settled.result.weights.iter().map(|(_, weight)| u32::from(*weight)).sum();
            prop_assert_eq!(sum, 65_535);
        }
    }

    #[test]
    fn an_epoch_goes_on_from_what_the_one_before_left(seed in any::<u64>()) {
        let first = Epoch::random(seed, None);
        let settled = first.settle().expect("settled");
        let second = Epoch::random(seed ^ 5, Some((&first, &settled)));
        for miner in second.miners.iter().filter(|miner| miner.hotkey != first.header.sink) {
            let left = after(&settled.pays[&miner.hotkey]);
            prop_assert_eq!(&Miner { verified_hosts: miner.verified_hosts, banned: miner.banned, ..left }, miner);
        }
    }
}
