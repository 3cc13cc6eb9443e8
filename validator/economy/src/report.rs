//! Runs over many seeds, side by side.

use nave_settlement::params::Params;
use serde::Serialize;

use crate::{
    books::{Outcome, Purse, ratio_ppm},
    run,
    scenario::{Hardware, Regime, Rules, Scenario, Strategy},
};

/// No strategy may bring more than so much of what honesty brings.
pub const BAR_PPM: i64 = 1_050_000;

/// Which runs there are.
#[derive(Debug, Clone)]
pub struct Study {
    /// The markets.
    pub regimes: Vec<Regime>,
    /// The strategies.
    pub strategies: Vec<Strategy>,
    /// The rules.
    pub rules: Rules,
    /// The seeds.
    pub seeds: std::ops::Range<u64>,
    /// How often a day's test finds a fake or doubled host, in ppm.
    pub found_ppm: i64,
    /// How long each run is.
    pub epochs: i64,
    /// What is settled by.
    pub params: Params,
}

/// One strategy in one market, over all seeds.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The market.
    pub regime: Regime,
    /// The strategy.
    pub strategy: Strategy,
    /// Income for a dollar of cost, in ppm, on average.
    pub return_ppm: i64,
    /// The same of honest miners beside it who have the same kind of hosts.
    pub honest_ppm: i64,
    /// The same of whoever has its hosts and is honest in the same market.
    pub control_ppm: i64,
    /// Pay without bids for what was delivered, as a part of the baseline, in the class where it is the most.
    pub pay_ppm: i64,
    /// The part of the emission that nobody got.
    pub burned_ppm: i64,
    /// How much of the weights is elsewhere an epoch later.
    pub moved_ppm: i64,
    /// The same two epochs later.
    pub moved_in_two_ppm: i64,
}

impl Row {
    /// What it brings against honest miners beside it, in ppm.
    #[must_use]
    pub fn against_honest_ppm(&self) -> i64 {
        ratio_ppm(self.return_ppm, self.honest_ppm)
    }

    /// What it brings against honesty with the same hosts, in ppm.
    #[must_use]
    pub fn against_control_ppm(&self) -> i64 {
        ratio_ppm(self.return_ppm, self.control_ppm)
    }

    /// Whether it pays more than it may.
    #[must_use]
    pub fn pays(&self) -> bool {
        !self.strategy.is_honest() && self.against_honest_ppm().max(self.against_control_ppm()) > BAR_PPM
    }
}

impl Study {
    /// Runs everything.
    ///
    /// # Errors
    /// Where settlement refuses the evidence of a run.
    pub fn rows(&self) -> Result<Vec<Row>, nave_settlement::Error> {
        let mut rows = Vec::new();
        for regime in self.regimes.iter().copied() {
            for strategy in self.strategies.iter().copied() {
                rows.push(self.row(regime, strategy)?);
            }
        }
        Ok(rows)
    }

    fn row(&self, regime: Regime, strategy: Strategy) -> Result<Row, nave_settlement::Error> {
        let outcomes = self.outcomes(regime, strategy)?;
        let controls = match strategy.is_honest() {
            true => outcomes.clone(),
            false => self.outcomes(regime, strategy.control())?,
        };
        let beside = |outcome: &Outcome| match strategy.hardware() {
            Hardware::Reclaimed => outcome.reclaimed,
            Hardware::Sound | Hardware::Flaky | Hardware::Fake => outcome.sound,
        };
        let pay = |outcome: &Outcome| {
            let of_classes = outcome.classes.values().map(|class| ratio_ppm(class.paid, class.at_baseline));
            of_classes.max().unwrap_or(0)
        };
        let whole = |outcome: &Outcome| outcome.compared * 65_535;
        Ok(Row {
            regime,
            strategy,
            return_ppm: mean(&outcomes, |outcome| outcome.seat.return_ppm()),
            honest_ppm: mean(&outcomes, |outcome| Purse::return_ppm(beside(outcome))),
            control_ppm: mean(&controls, |outcome| outcome.seat.return_ppm()),
            pay_ppm: outcomes.iter().map(pay).max().unwrap_or(0),
            burned_ppm: mean(&outcomes, |outcome| ratio_ppm(outcome.burned, outcome.emission)),
            moved_ppm: mean(&outcomes, |outcome| ratio_ppm(outcome.moved, whole(outcome))),
            moved_in_two_ppm: mean(&outcomes, |outcome| ratio_ppm(outcome.moved_in_two, whole(outcome))),
        })
    }

    fn outcomes(&self, regime: Regime, strategy: Strategy) -> Result<Vec<Outcome>, nave_settlement::Error> {
        let scenario = |seed| Scenario {
            seed,
            regime,
            strategy,
            rules: self.rules,
            found_ppm: self.found_ppm,
            epochs: self.epochs,
            params: self.params.clone(),
        };
        self.seeds.clone().map(|seed| run(&scenario(seed))).collect()
    }
}

fn mean(outcomes: &[Outcome], of: impl Fn(&Outcome) -> i64) -> i64 {
    let sum: i128 = outcomes.iter().map(|outcome| i128::from(of(outcome))).sum();
    let count = i128::try_from(outcomes.len().max(1)).unwrap_or(1);
    i64::try_from(sum / count).unwrap_or(i64::MAX)
}
