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

/// What a strategy brings against whoever has the same hosts and is honest, where tests find little.
fn gain(regime: Regime, strategy: Strategy, rules: Rules) -> i64 {
    let study = Study { found_ppm: 100_000, ..study(&[regime], &[strategy], rules) };
    study.rows().expect("settled")[0].against_control_ppm()
}

#[test]
fn nothing_that_is_dishonest_pays_in_any_market() {
    let dishonest: Vec<Strategy> =
        Strategy::ALL.into_iter().filter(|strategy| !strategy.is_honest()).collect();
    for row in rows(&Regime::ALL, &dishonest, Rules::AsTheyAre) {
        // Of so few runs only those with the same seeds can be compared.
        assert!(row.against_control_ppm() <= BAR_PPM, "{row:?}");
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

/// What a rule that is broken makes of a strategy, and what it brings under the rules as they are.
fn broken(regime: Regime, strategy: Strategy, rules: Rules) -> [i64; 2] {
    [rules, Rules::AsTheyAre].map(|rules| gain(regime, strategy, rules))
}

/// What a strategy brings where a breach costs four hours and not sixteen, which alone would make up for other rules.
fn cheap(regime: Regime, strategy: Strategy, rules: Rules) -> Row {
    let params = Params { penalty_ms: 4 * 3_600_000, ..Params::default() };
    let study = Study { found_ppm: 100_000, params, ..study(&[regime], &[strategy], rules) };
    study.rows().expect("settled").remove(0)
}

#[test]
fn with_a_bounded_sink_renting_from_oneself_would_pay() {
    let [broken, as_it_is] = broken(Regime::Glut, Strategy::WashUndetected, Rules::BoundedSink);
    assert!(broken > BAR_PPM && as_it_is < 1_000_000, "{broken} {as_it_is}");
}

#[test]
fn with_standby_for_anyone_fake_hosts_would_pay() {
    let [broken, as_it_is] = broken(Regime::Boom, Strategy::PaddingRefuses, Rules::StandbyForAnyone);
    assert!(broken > BAR_PPM && as_it_is < 1_000_000, "{broken} {as_it_is}");
}

#[test]
fn with_credits_above_what_a_lease_paid_harvesting_them_would_pay() {
    let [broken, as_it_is] = [Rules::CreditAbovePayment, Rules::AsTheyAre]
        .map(|rules| cheap(Regime::Glut, Strategy::HarvestingOwn, rules).against_control_ppm());
    assert!(broken > BAR_PPM && as_it_is < 1_000_000, "{broken} {as_it_is}");
}

#[test]
fn with_demotion_per_offer_selling_spot_as_on_demand_would_pay_more() {
    let [forgotten, remembered] = [Rules::DemotionPerOffer, Rules::DevicesRemember]
        .map(|rules| cheap(Regime::Normal, Strategy::SpotAsOnDemand, rules).return_ppm);
    assert!(forgotten > remembered + remembered / 10, "{forgotten} {remembered}");
}

#[test]
fn with_a_breach_at_four_hours_selling_spot_as_on_demand_would_pay() {
    assert!(
        cheap(Regime::Crunch, Strategy::SpotAsOnDemand, Rules::AsTheyAre).against_control_ppm() > BAR_PPM
    );
}
