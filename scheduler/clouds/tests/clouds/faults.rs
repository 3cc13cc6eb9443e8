//! What becomes of a machine under each fault, and wherever its process is killed.

use std::sync::Arc;

use futures_util::FutureExt as _;
use nave_clouds::{
    adapters::open,
    error::Kind,
    keeper::{Boot, Keeper},
    ledger::{Attempt, Call, Kept},
    machine::{Demand, Row, Why},
    provider::{Cloud, CloudOffer, Launch, MachineId},
    secret::Secret,
    testing::{Book, Fault, Faults, Fuse, KEY},
};
use nave_domain::{MicroUsd, Millis};
use uuid::Uuid;

use crate::market::{BEGIN, Market, owner, settings};

fn market(cloud: Cloud) -> Market {
    Market::new(cloud, 1, Faults::default())
}

/// Looks until nothing changes any more, a minute apart.
fn settle(market: &Market) {
    for _ in 0..25 {
        market.pass(60);
        market.enrol();
        market.tick();
    }
}

fn why(market: &Market, id: MachineId) -> Option<Why> {
    market.row(id).ending.map(|ending| ending.why)
}

fn living(market: &Market) -> usize {
    market.double().site.living(&owner()).len()
}

fn offer_of(market: &Market) -> CloudOffer {
    let offers =
        market.provider().list_offers(market.now()).now_or_never().expect("at once").expect("offers");
    offers
        .into_iter()
        .find(|offer| (&offer.id, &offer.region) == (&market.offer.0, &market.offer.1))
        .expect("it")
}

fn launch_of(market: &Market) -> Launch {
    Launch {
        tag: owner().tag(MachineId(Uuid::from_u128(7))),
        offer: offer_of(market),
        boot: Secret::new("#!/bin/sh\njoin ticket-0123456789"),
        dead_man: market.now().after(Millis(3_600_000)),
        price_max: MicroUsd(3_000_000),
    }
}

#[test]
fn each_clouds_reasons_are_told_apart() {
    let cases = [
        (Fault::OutOfStock, &["out_of_stock"][..]),
        (Fault::Quota, &["quota"]),
        (Fault::NoBalance, &["no_balance"]),
        (Fault::RateLimited, &["rate_limited"]),
        (Fault::Failed, &["unavailable"]),
        (Fault::Silent, &["timed_out", "not_sent"]),
        (Fault::Garbled, &["malformed"]),
    ];
    for cloud in Cloud::ALL {
        for (fault, kinds) in cases {
            let market = market(cloud);
            let (provider, launch) = (market.provider(), launch_of(&market));
            market.double().site.script.push((fault, false));
            let answer = provider.launch(&launch, market.now()).now_or_never().expect("at once");
            let error = answer.expect_err("it failed");
            assert!(kinds.contains(&error.kind.name()), "{cloud} {fault:?}: {error}");
            for secret in [KEY, "ticket-0123456789"] {
                assert!(
                    !format!("{error} {error:?} {launch:?}").contains(secret),
                    "{cloud} {fault:?}: {error:?}"
                );
            }
        }
    }
}

#[test]
fn a_machine_is_launched_serves_and_is_returned_at_the_end_of_what_is_paid_for() {
    for cloud in Cloud::ALL {
        let mut market = market(cloud);
        let id = market.want();
        settle(&market);
        assert_eq!((living(&market), why(&market, id)), (1, None), "{cloud}");
        assert!(market.row(id).enrolled_at.is_some());
        market.demand(id, Demand::Idle { since: market.now() });
        settle(&market);
        assert_eq!((living(&market), why(&market, id)), (0, Some(Why::Idle)), "{cloud}");
        let row = market.row(id);
        assert!(row.is_closed());
        // What is accounted is what it cost, and the little time until we could know.
        let (billing, site) = (cloud.terms().billing, market.double().site.clone());
        let (accounted, truth) = (row.cost(billing, site.now), site.cost(&owner()));
        assert!(accounted >= truth && accounted.0 <= truth.0 + 700_000, "{cloud}: {accounted} of {truth}");
    }
}

#[test]
fn wherever_a_launch_is_killed_there_is_one_machine_in_the_end() {
    for cloud in Cloud::ALL {
        for left in 0.. {
            let mut market = market(cloud);
            let mut id = market.want();
            let is_killed = market.killed_tick(left);
            for _ in 0..30 {
                market.pass(30);
                market.enrol();
                market.tick();
                if market.row(id).ending.is_some() {
                    id = market.want();
                }
            }
            let double = market.double();
            let living = double.site.living(&owner());
            let names: Vec<_> = living.iter().filter_map(|real| owner().reads(&real.name)).collect();
            assert_eq!(names, [id], "{cloud}, killed at {left}");
            assert!(double.site.launches.values().all(|times| *times == 1), "{cloud}, killed at {left}");
            if !is_killed {
                assert!(left > 10, "{cloud}: a launch has more lines than {left}");
                break;
            }
        }
    }
}

#[test]
fn wherever_a_return_is_killed_there_is_no_machine_in_the_end() {
    for cloud in Cloud::ALL {
        for left in 0.. {
            let mut market = market(cloud);
            let id = market.want();
            settle(&market);
            market.demand(id, Demand::Released);
            let is_killed = market.killed_tick(left);
            settle(&market);
            assert_eq!(living(&market), 0, "{cloud}, killed at {left}");
            assert!(market.row(id).is_closed(), "{cloud}, killed at {left}");
            if !is_killed {
                assert!(left > 5, "{cloud}: a return has more lines than {left}");
                break;
            }
        }
    }
}

#[test]
fn what_a_cloud_quoted_is_written_down_with_the_launch_that_rests_on_it() {
    for cloud in Cloud::ALL {
        let mut market = market(cloud);
        let id = market.want();
        market.tick();
        let journal = market.journal();
        let launches: Vec<_> =
            journal.attempts.iter().filter(|attempt| attempt.call == Call::Launch).collect();
        let [Attempt { row: Some(row), quoted: Some(quoted), error: None, .. }] = launches[..] else {
            panic!("{cloud}: {launches:?}")
        };
        assert_eq!((*row, &quoted.id, &quoted.region), (id, &market.offer.0, &market.offer.1), "{cloud}");
        assert!(quoted.fetched_at > BEGIN && (3..=8_192).contains(&quoted.raw.len()), "{cloud}: {quoted:?}");
        assert!(journal.attempts.iter().all(|other| other.call == Call::Launch || other.quoted.is_none()));
    }
}

#[test]
fn nothing_is_launched_at_a_price_that_has_risen() {
    for cloud in Cloud::ALL {
        let mut market = market(cloud);
        let id = market.want();
        market.double().site.price.0 *= 2;
        market.tick();
        assert_eq!(why(&market, id), Some(Why::Refused(Kind::PriceRise)), "{cloud}");
        assert!(market.double().site.launches.is_empty(), "{cloud}");
    }
}

#[test]
fn a_machine_that_costs_more_than_it_was_quoted_goes_back() {
    for cloud in Cloud::ALL {
        let mut market = market(cloud);
        let id = market.want();
        market.double().site.script.push((Fault::Dearer, true));
        settle(&market);
        assert_eq!((living(&market), why(&market, id)), (0, Some(Why::TooDear)), "{cloud}");
        assert!(
            market.row(id).cost(cloud.terms().billing, market.now()) >= market.double().site.cost(&owner())
        );
    }
}

#[test]
fn a_launch_that_worked_and_was_not_answered_is_found_and_not_repeated() {
    for cloud in Cloud::ALL {
        for fault in [Fault::Silent, Fault::Failed, Fault::Garbled] {
            let mut market = market(cloud);
            let id = market.want();
            market.double().site.script.push((fault, true));
            settle(&market);
            let (double, row) = (market.double(), market.row(id));
            let launches: Vec<_> = double.site.launches.iter().collect();
            assert_eq!(launches, [(&owner().tag(id).to_string(), &1)], "{cloud} {fault:?}");
            assert!(row.ending.is_none() && row.kept.is_some(), "{cloud} {fault:?}: {row:?}");
            assert_eq!(double.site.living(&owner()).len(), 1, "{cloud} {fault:?}");
        }
    }
}

#[test]
fn a_launch_that_was_not_answered_and_came_to_nothing_ends_without_a_machine_or_is_asked_for_again() {
    for cloud in Cloud::ALL {
        for fault in [Fault::Silent, Fault::Failed, Fault::Garbled] {
            let mut market = market(cloud);
            let id = market.want();
            market.double().site.script.push((fault, false));
            settle(&market);
            let (double, row) = (market.double(), market.row(id));
            let (made, living) = (double.site.launches.len(), double.site.living(&owner()).len());
            // Only what was never sent is asked for again.
            let ends = row.is_closed() && row.ending.is_some_and(|ending| ending.why == Why::NeverLaunched);
            assert_eq!((made, living), if ends { (0, 0) } else { (1, 1) }, "{cloud} {fault:?}: {row:?}");
            assert!(ends || fault == Fault::Silent && row.ending.is_none(), "{cloud} {fault:?}: {row:?}");
        }
    }
}

#[test]
fn what_bears_our_name_and_is_in_no_row_is_given_back_and_what_does_not_is_left_alone() {
    for cloud in Cloud::ALL {
        let market = market(cloud);
        let tag = owner().tag(MachineId(Uuid::from_u128(99))).to_string();
        market.double().site.launch(&tag, None);
        settle(&market);
        assert_eq!(living(&market), 0, "{cloud}");
        assert_eq!(why(&market, MachineId(Uuid::from_u128(99))), Some(Why::Stray));
        let double = market.double();
        let others = double.site.machines.values().filter(|real| real.gone_at.is_none()).count();
        assert_eq!((others, double.site.wrongs.len()), (2, 0), "{cloud}");
    }
}

#[test]
fn a_machine_that_turns_up_long_after_its_row_was_closed_is_given_back() {
    let mut market = market(Cloud::Lambda);
    let id = market.want();
    market.double().site.script.push((Fault::OutOfStock, false));
    market.tick();
    assert!(market.row(id).is_closed());
    let tag = owner().tag(id).to_string();
    market.pass(100_000);
    market.double().site.launch(&tag, None);
    settle(&market);
    assert_eq!(living(&market), 0);
    assert!(market.row(id).is_closed());
}

#[test]
fn lambda_is_asked_for_one_launch_in_twelve_seconds() {
    let mut market = market(Cloud::Lambda);
    market.want();
    market.want();
    let launches = |market: &Market| market.double().site.launches.len();
    market.tick();
    assert_eq!(launches(&market), 1);
    market.tick();
    assert_eq!(launches(&market), 1);
    market.pass(12);
    market.tick();
    assert_eq!(launches(&market), 2);
}

#[test]
fn a_cloud_that_wants_to_be_left_alone_is() {
    let market = market(Cloud::Runpod);
    let fuse = Arc::new(Fuse::whole());
    let (wire, book) = (market.wire(&fuse), Book { journal: market.journal.clone(), fuse });
    let provider = open(Cloud::Runpod, settings("http://double"), Arc::new(wire.clone()));
    let (now, boot) = (|| wire.now(), |_: &Row| Secret::new("join"));
    let keeper = Keeper::new(provider.as_ref(), &book, owner(), &now, &boot);
    let tick = || keeper.tick().now_or_never().expect("nothing waits").expect("the ledger works");
    market.double().site.faults.rate_limited = 1_000;
    tick();
    let asked = market.double().seen.len();
    tick();
    assert_eq!(market.double().seen.len(), asked, "it has just asked us not to");
    market.pass(50);
    tick();
    assert_eq!(market.double().seen.len(), asked + 1);
}

#[test]
fn a_cloud_that_wants_an_hour_launches_nothing_in_it_and_takes_back_what_is_rented() {
    for cloud in Cloud::ALL {
        let mut market = market(cloud);
        let fuse = Arc::new(Fuse::whole());
        let (wire, book) = (market.wire(&fuse), Book { journal: market.journal.clone(), fuse });
        let provider = open(cloud, settings("http://double"), Arc::new(wire.clone()));
        let (now, boot) = (|| wire.now(), |row: &Row| Secret::new(format!("join {}", row.id)));
        let keeper = Keeper::new(provider.as_ref(), &book, owner(), &now, &boot);
        let tick = || keeper.tick().now_or_never().expect("nothing waits").expect("the ledger works");
        let first = market.want();
        tick();
        assert_eq!(living(&market), 1, "{cloud}");
        market.pass(15);
        market.double().site.pause = (3_600, 3_600);
        market.double().site.script.push((Fault::RateLimited, false));
        market.want();
        tick();
        market.demand(first, Demand::Released);
        market.pass(60);
        tick();
        let is_return = |attempt: &Attempt| attempt.row == Some(first) && attempt.call == Call::Return;
        assert!(market.journal().attempts.iter().any(is_return), "{cloud}: it was not given back");
        for _ in 0..50 {
            market.pass(60);
            market.want();
            tick();
        }
        assert_eq!(market.double().site.launches.len(), 1, "{cloud}");
        market.pass(3_600);
        market.want();
        tick();
        assert_eq!(market.double().site.launches.len(), 2, "{cloud}");
    }
}

/// Has no script for one machine.
struct Missing(MachineId);

impl Boot for Missing {
    fn script<'a>(&'a self, row: &'a Row) -> Kept<'a, Secret> {
        let script = if row.id == self.0 { Err("no script".into()) } else { Ok(Secret::new("join")) };
        Box::pin(async move { script })
    }
}

#[test]
fn a_machine_that_there_is_no_script_for_keeps_no_other_one_from_being_launched_or_given_back() {
    let mut market = market(Cloud::Hyperstack);
    let mut ids = [market.want(), market.want()];
    ids.sort_unstable();
    let [first, second] = ids;
    let fuse = Arc::new(Fuse::whole());
    let (wire, book) = (market.wire(&fuse), Book { journal: market.journal.clone(), fuse });
    let provider = open(Cloud::Hyperstack, settings("http://double"), Arc::new(wire.clone()));
    let (now, boot) = (|| wire.now(), Missing(first));
    let keeper = Keeper::new(provider.as_ref(), &book, owner(), &now, &boot);
    let error = keeper.tick().now_or_never().expect("nothing waits").expect_err("it is said");
    assert_eq!(error.to_string(), "no script");
    let launched: Vec<_> = market.double().site.launches.keys().cloned().collect();
    assert_eq!(launched, [owner().tag(second).to_string()]);
}

#[test]
fn shadeform_deletes_what_nobody_gives_back() {
    let mut market = market(Cloud::Shadeform);
    let id = market.want();
    market.tick();
    assert_eq!(living(&market), 1);
    // The control plane is gone for good.
    let left = market.row(id).dead_man.since(BEGIN).0 / 1_000;
    market.pass(left + 60);
    assert_eq!(living(&market), 0);
}

#[test]
fn no_machine_is_kept_until_its_dead_man_switch() {
    for cloud in Cloud::ALL {
        let mut market = market(cloud);
        let id = market.want();
        settle(&market);
        let left = market.row(id).dead_man.since(market.now()).0 / 1_000;
        market.pass(left - 290);
        market.tick();
        assert_eq!(why(&market, id), Some(Why::DeadMan), "{cloud}");
    }
}

#[test]
fn a_machine_whose_agent_never_enrols_goes_back() {
    let mut market = market(Cloud::Hyperstack);
    let id = market.want();
    for _ in 0..30 {
        market.pass(60);
        market.tick();
    }
    assert_eq!((living(&market), why(&market, id)), (0, Some(Why::NotEnrolled)));
}

#[test]
fn what_is_written_down_holds_no_secret() {
    for cloud in Cloud::ALL {
        let mut market = Market::new(cloud, 5, Faults::MANY);
        for _ in 0..40 {
            market.pass(30);
            market.tick();
            if market.journal().rows.len() < 5 {
                market.want();
            }
        }
        let written = format!("{:?}", market.journal());
        for secret in [KEY, "session-1", "123456", "join machine"] {
            assert!(!written.contains(secret), "{cloud}: {secret}");
        }
    }
}
