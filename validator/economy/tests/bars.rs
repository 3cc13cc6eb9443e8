//! What no strategy may reach, and rules under which one would.

use nave_economy::{
    Regime, Rules, Strategy,
    report::{BAR_PPM, Row, Study},
};
use nave_settlement::params::Params;

fn study(regimes: &[Regime], strategies: &[Strategy], rules: Rules) -> Study {
    Study {
        regimes: regimes.to_vec(),
        strategies: strategies.to_vec(),
        rules,
        seeds: 1..5,
        found_ppm: 500_000,
        epochs: 120,
        params: Params::default(),
    }
}

fn rows(regimes: &[Regime], strategies: &[Strategy], rules: Rules) -> Vec<Row> {
    study(regimes, strategies, rules).rows().expect("settled")
}

/// What a strategy brings against whoever has the same hosts and is honest.
fn gain(regime: Regime, strategy: Strategy, rules: Rules) -> i64 {
    rows(&[regime], &[strategy], rules)[0].against_control_ppm()
}

#[test]
fn nothing_dishonest_pays_in_any_market() {
    let dishonest: Vec<Strategy> = Strategy::ALL
        .into_iter()
        .filter(|strategy| !strategy.is_honest() && *strategy != Strategy::SpotAsOnDemand)
        .collect();
    for row in rows(&Regime::ALL, &dishonest, Rules::AsTheyAre) {
        assert!(!row.pays(), "{row:?}");
        assert!(row.pay_ppm <= 1_000_000, "an hour is paid above the baseline: {row:?}");
    }
}

#[test]
fn honesty_brings_as_much_from_the_seat_as_beside_it() {
    for row in rows(&[Regime::Normal, Regime::Crunch], &[Strategy::Honest], Rules::AsTheyAre) {
        assert!((950_000..=BAR_PPM).contains(&row.against_honest_ppm()), "{row:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_to_the_digit() {
    let once = || format!("{:?}", rows(&[Regime::Crunch], &[Strategy::Sybil], Rules::AsTheyAre));
    assert_eq!(once(), once());
}

#[test]
fn with_a_bounded_sink_renting_from_oneself_would_pay() {
    let gain_under = |rules| gain(Regime::Glut, Strategy::WashUndetected, rules);
    assert!(gain_under(Rules::BoundedSink) > BAR_PPM);
    assert!(gain_under(Rules::AsTheyAre) < 1_000_000);
}

#[test]
fn with_standby_for_anyone_fake_hosts_would_pay() {
    let gain_under = |rules| gain(Regime::Normal, Strategy::PaddingRefuses, rules);
    assert!(gain_under(Rules::StandbyForAnyone) > BAR_PPM);
    assert!(gain_under(Rules::AsTheyAre) < 1_000_000);
}

#[test]
fn with_credits_above_what_a_lease_paid_harvesting_them_would_pay() {
    let gain_under = |rules| gain(Regime::Glut, Strategy::CreditHarvesting, rules);
    assert!(gain_under(Rules::CreditAbovePayment) > BAR_PPM);
    assert!(gain_under(Rules::AsTheyAre) < 1_000_000);
}

#[test]
fn with_demotion_per_offer_selling_spot_as_on_demand_would_pay_more() {
    let gain_under = |rules| gain(Regime::Crunch, Strategy::SpotAsOnDemand, rules);
    assert!(gain_under(Rules::DemotionPerOffer) > gain_under(Rules::AsTheyAre) + 50_000);
}
