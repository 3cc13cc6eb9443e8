//! What the rows of machines become, step by step.

use uuid::Uuid;

use super::*;

const T: Timestamp = Timestamp(1_795_000_000_000);
const RULES: Rules = Rules::USUAL;

fn terms() -> Terms {
    Cloud::Lambda.terms()
}

fn at(seconds: i64) -> Timestamp {
    T.after(Millis(seconds * 1_000))
}

fn row() -> Row {
    let offer = ("gpu_1x".to_owned(), "us-west-1".to_owned());
    let (price, most) = (MicroUsd(2_000_000), MicroUsd(2_500_000));
    Row::intend(MachineId(Uuid::from_u128(1)), Cloud::Lambda, offer, price, most, T, at(86_400))
}

fn id(text: &str) -> CloudId {
    CloudId::new(text).expect("an id")
}

fn machine(name: &str, state: MachineState) -> Machine {
    Machine { id: id(name), name: String::new(), state, address: None, created_at: None, price: None }
}

fn error(kind: Kind) -> Result<CloudId, CloudError> {
    Err(CloudError::new(kind, "x", "x"))
}

/// A row whose launch was asked for at `T`, and whose machine runs.
fn running() -> Row {
    let mut row = row();
    row.launching(row.price, T);
    row.launched(&Ok(id("m1")), at(1), &RULES);
    row.listed(&[&machine("m1", MachineState::Running)], at(30), &terms());
    row.enrolled_at = Some(at(60));
    row
}

#[test]
fn a_launch_of_unknown_outcome_is_never_repeated() {
    for kind in [Kind::TimedOut, Kind::Unavailable, Kind::Malformed] {
        let mut row = row();
        assert_eq!(row.steps(T, &RULES), [Step::Launch]);
        row.launching(row.price, T);
        row.launched(&error(kind), at(60), &RULES);
        for seconds in [61, 200, 299, 301, 10_000] {
            row.decide(at(seconds), &terms(), &RULES);
            assert_eq!(row.steps(at(seconds), &RULES), [], "{kind:?}");
        }
    }
}

#[test]
fn a_launch_that_no_list_shows_came_to_nothing_only_once_it_must_show() {
    let mut row = row();
    row.launching(row.price, T);
    row.listed(&[], at(299), &terms());
    assert_eq!(row.stage, Stage::Asked);
    assert!(!row.is_closed());
    row.listed(&[], at(300), &terms());
    assert_eq!((row.stage, row.ending.map(|ending| ending.why)), (Stage::Missed, Some(Why::NeverLaunched)));
    assert!(row.is_closed());
}

#[test]
fn a_machine_that_a_list_shows_is_the_launch_that_timed_out() {
    let mut row = row();
    row.launching(row.price, T);
    row.launched(&error(Kind::TimedOut), at(60), &RULES);
    row.listed(&[&machine("m1", MachineState::Starting)], at(90), &terms());
    assert_eq!((row.stage, row.kept.clone()), (Stage::Held, Some(id("m1"))));
    assert_eq!(row.held[&id("m1")].since, T, "it may have been paid for since it was asked for");
}

#[test]
fn of_two_machines_for_one_launch_the_second_is_given_back() {
    let mut row = running();
    let two = [machine("m1", MachineState::Running), machine("m0", MachineState::Running)];
    row.listed(&[&two[0], &two[1]], at(90), &terms());
    assert_eq!(row.steps(at(90), &RULES), [Step::Return(id("m0"))]);
    assert_eq!(row.ending, None);
}

#[test]
fn a_machine_of_a_closed_row_is_given_back() {
    let mut row = row();
    row.launching(row.price, T);
    row.launched(&error(Kind::OutOfStock), at(1), &RULES);
    assert!(row.is_closed());
    row.listed(&[&machine("m1", MachineState::Running)], at(400), &terms());
    assert!(!row.is_closed());
    assert_eq!(row.steps(at(400), &RULES), [Step::Return(id("m1"))]);
}

#[test]
fn a_machine_without_a_row_is_given_back() {
    let mut row = Row::stray(MachineId(Uuid::from_u128(9)), Cloud::Lambda, T);
    row.listed(&[&machine("m1", MachineState::Running)], T, &terms());
    assert_eq!(row.steps(T, &RULES), [Step::Return(id("m1"))]);
}

#[test]
fn it_is_gone_when_it_is_missing_for_a_while_and_not_there_when_asked_for() {
    let mut row = running();
    row.demand = Demand::Released;
    row.decide(at(100), &terms(), &RULES);
    assert_eq!(row.steps(at(100), &RULES), [Step::Return(id("m1"))]);
    row.returning(&id("m1"), at(100));
    // A word of the cloud alone is not enough, nor is a list.
    row.looked(&id("m1"), None, at(110), &terms(), &RULES);
    row.listed(&[&machine("m1", MachineState::Deleting)], at(120), &terms());
    assert!(!row.is_closed());
    row.listed(&[], at(130), &terms());
    assert_eq!(row.steps(at(130), &RULES), [Step::Return(id("m1")), Step::Look(id("m1"))]);
    row.looked(&id("m1"), None, at(131), &terms(), &RULES);
    assert!(!row.is_closed());
    row.looked(&id("m1"), None, at(190), &terms(), &RULES);
    assert!(row.is_closed());
}

#[test]
fn one_that_was_not_given_back_must_be_missing_for_as_long_as_lists_need() {
    let mut row = running();
    row.listed(&[], at(100), &terms());
    row.looked(&id("m1"), None, at(200), &terms(), &RULES);
    assert_eq!(row.held[&id("m1")].gone_at, None);
    row.looked(&id("m1"), None, at(400), &terms(), &RULES);
    row.decide(at(400), &terms(), &RULES);
    assert_eq!(row.ending.map(|ending| ending.why), Some(Why::Lost));
}

#[test]
fn one_that_turns_up_again_was_never_gone() {
    let mut row = running();
    row.demand = Demand::Released;
    row.decide(at(100), &terms(), &RULES);
    row.returning(&id("m1"), at(100));
    row.listed(&[], at(110), &terms());
    row.looked(&id("m1"), None, at(200), &terms(), &RULES);
    assert!(row.is_closed());
    row.listed(&[&machine("m1", MachineState::Running)], at(300), &terms());
    assert!(!row.is_closed());
    assert_eq!(row.steps(at(300), &RULES), [Step::Return(id("m1"))]);
}

#[test]
fn a_list_that_was_asked_for_before_says_nothing_of_what_came_later() {
    let mut row = row();
    row.launching(row.price, T);
    row.launched(&Ok(id("m1")), at(10), &RULES);
    row.listed(&[], at(9), &terms());
    assert_eq!(row.held[&id("m1")].absent_since, None);
}

#[test]
fn a_refused_return_is_asked_for_again_and_soon_once_a_minute() {
    let mut row = running();
    row.demand = Demand::Released;
    row.decide(at(100), &terms(), &RULES);
    let mut asked = Vec::new();
    for seconds in 100..400 {
        if !row.steps(at(seconds), &RULES).is_empty() {
            asked.push(seconds);
            row.returning(&id("m1"), at(seconds));
        }
    }
    assert_eq!(asked, [100, 130, 190, 250, 310, 370]);
}

#[test]
fn an_idle_machine_goes_back_when_what_is_paid_for_is_used_up() {
    let hourly = Terms { billing: Billing { unit: Millis(3_600_000), least: Millis(3_600_000) }, ..terms() };
    let mut row = running();
    row.demand = Demand::Idle { since: at(600) };
    for (seconds, ends) in [(1_200, false), (3_500, false), (3_540, true)] {
        let mut row = row.clone();
        row.decide(at(seconds), &hourly, &RULES);
        assert_eq!(row.ending.is_some(), ends, "{seconds}");
    }
    // Where every minute is paid for, there is nothing to wait for.
    row.decide(at(730), &terms(), &RULES);
    assert_eq!(row.ending.map(|ending| ending.why), Some(Why::Idle));
}

#[test]
fn a_machine_goes_back_for_whatever_makes_it_useless() {
    type Change<'a> = &'a dyn Fn(&mut Row);
    let cases: [(Why, i64, Change); 5] = [
        (Why::NotEnrolled, 1_200, &|row| row.enrolled_at = None),
        (Why::TooDear, 100, &|row| row.price_max = MicroUsd(1_999_999)),
        (Why::Broke, 100, &|row| row.listed(&[&machine("m1", MachineState::Stopped)], at(90), &terms())),
        (Why::DeadMan, 86_100, &|_| {}),
        (Why::Released, 100, &|row| row.demand = Demand::Released),
    ];
    for (why, seconds, change) in cases {
        let mut row = running();
        row.decide(at(99), &terms(), &RULES);
        assert_eq!(row.ending, None, "{why:?}");
        change(&mut row);
        row.decide(at(seconds), &terms(), &RULES);
        assert_eq!(row.ending.map(|ending| ending.why), Some(why));
        assert_eq!(row.steps(at(seconds), &RULES), [Step::Return(id("m1"))]);
    }
}

#[test]
fn a_cloud_that_asks_for_a_pause_gets_it_and_the_launch_waits() {
    let mut row = row();
    row.launching(row.price, T);
    row.launched(&error(Kind::RateLimited { after: Millis(45_000) }), at(1), &RULES);
    assert_eq!((row.stage, row.steps(at(45), &RULES)), (Stage::Intended, vec![]));
    assert_eq!(row.steps(at(46), &RULES), [Step::Launch]);
    row.decide(at(600), &terms(), &RULES);
    assert_eq!(row.ending.map(|ending| ending.why), Some(Why::NeverLaunched));
    assert!(row.is_closed());
}

#[test]
fn each_reason_for_which_a_cloud_refuses_is_kept_apart() {
    for kind in [Kind::OutOfStock, Kind::Quota, Kind::NoBalance, Kind::PriceRise, Kind::Unauthorised] {
        let mut row = row();
        row.launching(row.price, T);
        row.launched(&error(kind), at(1), &RULES);
        assert_eq!(row.ending.map(|ending| ending.why), Some(Why::Refused(kind)));
        assert!(row.is_closed());
    }
}

#[test]
fn what_was_let_go_before_it_was_launched_never_is() {
    let mut row = row();
    row.demand = Demand::Released;
    row.decide(T, &terms(), &RULES);
    assert_eq!(row.steps(T, &RULES), []);
    assert!(row.is_closed());
}

#[test]
fn a_row_that_is_let_go_while_nobody_knows_whether_it_was_launched_stays_open() {
    let mut row = row();
    row.launching(row.price, T);
    row.demand = Demand::Released;
    row.decide(at(1), &terms(), &RULES);
    assert!(row.ending.is_some() && !row.is_closed());
    row.listed(&[&machine("m1", MachineState::Starting)], at(100), &terms());
    assert_eq!(row.steps(at(100), &RULES), [Step::Return(id("m1"))]);
}

#[test]
fn paid_time_is_rounded_up_to_units_and_to_a_micro_usd() {
    let minute = Billing { unit: Millis(60_000), least: Millis(60_000) };
    assert_eq!(cost(MicroUsd(3_600_000), Millis(1), minute), MicroUsd(60_000));
    assert_eq!(cost(MicroUsd(3_600_000), Millis(60_001), minute), MicroUsd(120_000));
    assert_eq!(cost(MicroUsd(1), Millis(1), minute), MicroUsd(1));
    let ten = Billing { unit: Millis(60_000), least: Millis(600_000) };
    assert_eq!(cost(MicroUsd(3_600_000), Millis(1), ten), MicroUsd(600_000));
    assert!(!is_at_boundary(T, at(480), ten, Millis(60_000)));
    assert!(is_at_boundary(T, at(540), ten, Millis(60_000)));
}
