use proptest::prelude::*;

use super::*;

const RULES: EventRules = EventRules {
    start_promise: Millis(300_000),
    gap: Millis(15_000),
    confirm: Millis(3_600_000),
    outage_ppm: 300_000,
    outage_hosts: 5,
};
const NOW: i64 = 10_000_000_000;

fn stretch(from: i64, until: i64) -> Stretch {
    Stretch { from: Timestamp(from), until: Timestamp(until) }
}

fn silence(from: i64, until: i64, resumed: Option<Resumed>) -> Silence {
    Silence { stretch: stretch(from, until), resumed }
}

/// A host of a miner that is heard just now.
fn contact_of(hotkey: &str, silences: Vec<Silence>) -> Contact {
    let is_away = silences.iter().find(|one| one.resumed.is_none());
    let heard = is_away.map_or(Timestamp(NOW), |one| one.stretch.from);
    Contact { hotkey: hotkey.into(), joined: Timestamp(0), heard, is_member: true, silences }
}

/// The hosts of as many miners, one each.
fn each(silences: impl IntoIterator<Item = Vec<Silence>>) -> Vec<Contact> {
    silences.into_iter().enumerate().map(|(n, one)| contact_of(&n.to_string(), one)).collect()
}

/// What happened to a lease that was last heard of at `since`, over at `until`.
fn case<'a>(happened: Happened, since: i64, until: i64, silences: &'a [Silence]) -> Case<'a> {
    let lost = stretch(since + RULES.gap.0, until);
    Case { happened, since: Timestamp(since), lost, age: RULES.gap, silences, pauses: &[], is_outage: false }
}

fn ruled(case: &Case<'_>) -> Option<(Blame, Option<ConfirmedBy>)> {
    decide(case, &RULES).map(|ruling| (ruling.blame, ruling.confirmed_by))
}

const LOST: Happened = Happened::HostLost(Loss {
    is_told: false,
    is_share: false,
    is_spot: false,
    is_sent_away: false,
    has_left: false,
    failed: None,
    has_passed: false,
});
const USUAL: Happened = Happened::StartLate { is_usual: true };
const ON_RECORD: Option<(Blame, Option<ConfirmedBy>)> = Some((Blame::Host, None));
const PLATFORM: Option<(Blame, Option<ConfirmedBy>)> = Some((Blame::Platform, None));

fn hosts(by: ConfirmedBy) -> Option<(Blame, Option<ConfirmedBy>)> {
    Some((Blame::Host, Some(by)))
}

fn lost(change: impl FnOnce(&mut Loss)) -> Happened {
    let mut loss = Loss::default();
    change(&mut loss);
    Happened::HostLost(loss)
}

#[test]
fn a_host_that_did_not_come_back_is_confirmed_by_its_absence_and_not_before() {
    let away = [silence(0, NOW, None)];
    let young = case(LOST, 0, 60_000, &away);
    assert_eq!(ruled(&young), None);
    let old = Case { age: Millis(RULES.confirm.0 + 1), ..young };
    assert_eq!(ruled(&old), hosts(ConfirmedBy::Absence));
}

#[test]
fn a_host_that_comes_back_as_it_was_is_judged_by_its_test() {
    let back = [silence(0, 100_000, Some(Resumed::Same))];
    let of = |happened| ruled(&case(happened, 0, 60_000, &back));
    assert_eq!(of(LOST), None, "it is not tested yet");
    assert_eq!(of(lost(|loss| loss.has_passed = true)), ON_RECORD);
    let failed = |appealed, age| of(lost(|loss| loss.failed = Some(Failure { appealed, age: Millis(age) })));
    assert_eq!(failed(Appealed::No, RULES.confirm.0), None, "its owner may object");
    assert_eq!(failed(Appealed::No, RULES.confirm.0 + 1), hosts(ConfirmedBy::Retest));
    assert_eq!(failed(Appealed::Upheld, 0), hosts(ConfirmedBy::Retest));
    assert_eq!(failed(Appealed::Open, RULES.confirm.0 * 2), None);
    assert_eq!(of(lost(|loss| loss.is_told = true)), hosts(ConfirmedBy::Report));
    let untested = Case { age: Millis(RULES.confirm.0 * 2 + 1), ..case(LOST, 0, 60_000, &back) };
    assert_eq!(ruled(&untested), ON_RECORD);
}

#[test]
fn a_host_whose_machine_restarted_or_whose_owner_took_it_out_is_confirmed_at_once() {
    let back = [silence(0, 100_000, Some(Resumed::Machine))];
    assert_eq!(ruled(&case(LOST, 0, 60_000, &back)), hosts(ConfirmedBy::Report));
    let away = [silence(0, NOW, None)];
    assert_eq!(ruled(&case(lost(|loss| loss.has_left = true), 0, 60_000, &away)), hosts(ConfirmedBy::Report));
    assert_eq!(ruled(&case(lost(|loss| loss.is_sent_away = true), 0, 60_000, &away)), PLATFORM);
}

#[test]
fn a_gap_is_confirmed_by_an_agent_that_was_restarted_or_that_was_there() {
    let gap = Happened::HeartbeatGap;
    let [same, agent] = [Resumed::Same, Resumed::Agent].map(|how| [silence(0, 60_000, Some(how))]);
    assert_eq!(ruled(&case(gap, 0, 60_000, &same)), ON_RECORD);
    assert_eq!(ruled(&case(gap, 0, 60_000, &agent)), hosts(ConfirmedBy::Report));
    assert_eq!(ruled(&case(gap, 0, 60_000, &[])), hosts(ConfirmedBy::Report));
    let ruling = decide(&case(gap, 0, 60_000, &[]), &RULES).expect("a ruling");
    assert_eq!(ruling.lost.length(), Millis(45_000), "what is beyond the gap is lost");
    let away = [silence(0, NOW, None)];
    assert_eq!(ruled(&case(gap, 0, 60_000, &away)), None, "it may still say why");
}

#[test]
fn time_in_which_nobody_could_reach_us_is_not_lost_by_the_host() {
    let pauses = [stretch(10_000, 50_000)];
    let gap = |until| Case { pauses: &pauses, ..case(Happened::HeartbeatGap, 0, until, &[]) };
    assert_eq!(ruled(&gap(60_000)), PLATFORM);
    let ruling = decide(&gap(100_000), &RULES).expect("a ruling");
    assert_eq!((ruling.blame, ruling.lost.length()), (Blame::Host, Millis(30_000)));
}

#[test]
fn a_late_start_counts_beyond_the_promise_while_the_host_was_there() {
    let late = |silences| Case { lost: stretch(300_000, 400_000), ..case(USUAL, 0, 400_000, silences) };
    let ruling = decide(&late(&[]), &RULES).expect("a ruling");
    assert_eq!((ruling.confirmed_by, ruling.lost), (Some(ConfirmedBy::Report), stretch(300_000, 400_000)));
    let silent = [silence(290_000, 330_000, Some(Resumed::Same))];
    assert_eq!(decide(&late(&silent), &RULES).map(|ruling| ruling.lost.length()), Some(Millis(60_000)));
    let silent = [silence(100_000, 390_000, Some(Resumed::Same))];
    assert_eq!(ruled(&late(&silent)), ON_RECORD);
    let restarted = [silence(100_000, 390_000, Some(Resumed::Machine))];
    let ruling = decide(&late(&restarted), &RULES).expect("a ruling");
    assert_eq!((ruling.confirmed_by, ruling.lost.length()), (Some(ConfirmedBy::Report), Millis(100_000)));
    // Nobody could be heard for the first half of its silence.
    let (silent, pauses) = ([silence(20_000, 60_000, Some(Resumed::Same))], [stretch(20_000, 40_000)]);
    let paused = Case { pauses: &pauses, ..late(&silent) };
    assert_eq!(decide(&paused, &RULES).map(|ruling| ruling.lost.length()), Some(Millis(45_000)));
    let unusual = Case { happened: Happened::StartLate { is_usual: false }, ..late(&[]) };
    assert_eq!(ruled(&unusual), ON_RECORD, "nobody has begun this image in time");
}

#[test]
fn an_owner_may_take_a_host_back_from_spot_leases() {
    let away = [silence(0, NOW, None)];
    let left = |is_spot| {
        ruled(&case(lost(|loss| (loss.has_left, loss.is_spot) = (true, is_spot)), 0, 60_000, &away))
    };
    assert_eq!([left(true), left(false)], [ON_RECORD, hosts(ConfirmedBy::Report)]);
}

#[test]
fn a_share_that_is_gone_is_the_hosts_only_when_something_of_the_host_was_restarted() {
    let share = lost(|loss| (loss.is_told, loss.is_share) = (true, true));
    assert_eq!(ruled(&case(share, 0, 60_000, &[])), ON_RECORD);
    let restarted = [silence(0, 50_000, Some(Resumed::Agent))];
    assert_eq!(ruled(&case(share, 0, 60_000, &restarted)), hosts(ConfirmedBy::Report));
}

#[test]
fn a_failed_test_counts_when_nobody_has_objected_in_time_or_the_verdict_stands() {
    let failed = |appealed, age| {
        let happened = Happened::Failed { appealed, is_late: false, is_doubtful: false };
        ruled(&Case { age: Millis(age), ..case(happened, 0, 60_000, &[]) })
    };
    let confirm = RULES.confirm.0;
    assert_eq!([failed(Appealed::No, confirm), failed(Appealed::Open, confirm * 2)], [None, None]);
    assert_eq!(failed(Appealed::No, confirm + 1), hosts(ConfirmedBy::Retest));
    assert_eq!(failed(Appealed::Upheld, 1), hosts(ConfirmedBy::Retest));
    assert_eq!(failed(Appealed::Open, confirm * 2 + 1), hosts(ConfirmedBy::Retest));
    assert_eq!(failed(Appealed::Overturned, 1), ON_RECORD);
    let doubtful = Happened::Failed { appealed: Appealed::No, is_late: false, is_doubtful: true };
    assert_eq!(ruled(&case(doubtful, 0, 60_000, &[])), ON_RECORD, "what the customer ran may be why");
}

fn happened() -> impl Strategy<Value = Happened> {
    let age = RULES.confirm.0 * 2 + 1;
    let loss = any::<[bool; 3]>().prop_map(move |[is_told, has_failed, has_passed]| {
        let failed = has_failed.then_some(Failure { appealed: Appealed::Open, age: Millis(age) });
        Happened::HostLost(Loss { is_told, failed, has_passed, ..Loss::default() })
    });
    let late = any::<bool>().prop_map(|is_usual| Happened::StartLate { is_usual });
    prop_oneof![late, Just(Happened::HeartbeatGap), loss]
}

fn resumed() -> impl Strategy<Value = Option<Resumed>> {
    prop_oneof![
        Just(None),
        Just(Some(Resumed::Same)),
        Just(Some(Resumed::Agent)),
        Just(Some(Resumed::Machine))
    ]
}

proptest! {
    #[test]
    fn what_the_platform_did_never_counts_against_a_host(
        happened in happened(), took in 15_000_i64..10_000_000, how in resumed(), age in 0_i64..10_000_000,
        is_outage in any::<bool>(), left in 0_i64..15_000,
    ) {
        let silences = [silence(0, took, how)];
        // Nobody could reach us but for less than a gap.
        let pauses = if is_outage { vec![] } else { vec![stretch(left.min(took - 1), took)] };
        let case = Case { is_outage, pauses: &pauses, age: Millis(age), ..case(happened, 0, took, &silences) };
        prop_assert!(matches!(ruled(&case), None | PLATFORM));
    }

    #[test]
    fn a_lone_host_is_never_the_platform(
        others in 0_usize..50, from in 1_000_000_i64..2_000_000, took in 15_001_i64..1_000_000, how in resumed(),
    ) {
        let all = each((0..others).map(|_| vec![]).chain([vec![silence(from, from + took, how)]]));
        prop_assert!(!is_outage(&all, Timestamp(from), &RULES));
    }

    #[test]
    fn a_lone_miner_is_never_the_platform(own in 1_usize..50, others in 0_usize..50, by_chance in any::<bool>()) {
        let away = || vec![silence(1_000_000, 1_060_000, Some(Resumed::Same))];
        let mut all = each((0..others).map(|_| vec![]));
        all.extend((0..own).map(|_| contact_of("own", away())));
        if by_chance {
            // One of the many that another one has.
            all.extend([away(), vec![], vec![], vec![]].map(|silences| contact_of("another", silences)));
        }
        prop_assert!(!is_outage(&all, Timestamp(1_000_000), &RULES));
    }

    #[test]
    fn hosts_that_fall_silent_at_once_are_the_platforms_and_one_after_the_other_are_not(
        spread in proptest::collection::vec(-5_000_i64..5_000, 5..40), others in 0_usize..10,
    ) {
        let at = 1_000_000;
        let away = |from: i64| vec![silence(from, from + 60_000, Some(Resumed::Same))];
        let rest = (0..others).map(|_| vec![]);
        let all = each(spread.iter().map(|by| away(at + by)).chain(rest.clone()));
        prop_assert!(is_outage(&all, Timestamp(at), &RULES));
        let apart = (0..spread.len()).map(|n| away(at + 100_000 * i64::try_from(n).expect("few")));
        prop_assert!(!is_outage(&each(apart.chain(rest)), Timestamp(at), &RULES));
    }

    #[test]
    fn every_event_is_decided_in_the_end(
        happened in happened(), took in 0_i64..10_000_000, how in resumed(), silent in any::<bool>(),
    ) {
        let silences = if silent { vec![silence(0, took, how)] } else { vec![] };
        let age = Millis(RULES.confirm.0 * 2 + 1);
        let case = Case { age, ..case(happened, 0, took, &silences) };
        prop_assert!(decide(&case, &RULES).is_some());
    }

    #[test]
    fn nobody_loses_more_than_the_time_it_took(
        happened in happened(), took in 15_000_i64..10_000_000, how in resumed(), paused in 0_i64..10_000_000,
    ) {
        let silences = [silence(0, took, how)];
        let pauses = [stretch(0, paused)];
        let age = Millis(RULES.confirm.0 * 2 + 1);
        let case = Case { age, pauses: &pauses, ..case(happened, 0, took, &silences) };
        let ruling = decide(&case, &RULES).expect("old enough");
        prop_assert!(ruling.lost.length().0 <= took);
        if ruling.confirmed_by.is_none() { return Ok(()); }
        prop_assert_eq!(ruling.blame, Blame::Host);
    }
}
