//! Prints what cheating pays.
//!
//! ```text
//! economy [--epochs N] [--seeds N] [--first-seed N] [--rules NAME] [--found PPM] [--set PARAMETER=NUMBER]…
//!         [--only PART-OF-A-NAME] [--json]
//! ```

use std::io::{Write as _, stdout};

use anyhow::{Context, Result, bail};
use nave_economy::{
    Regime, Rules, Strategy,
    report::{BAR_PPM, Row, Study},
};
use nave_settlement::params::Params;

fn main() -> Result<()> {
    let args = Args::parse(std::env::args().skip(1))?;
    let study = Study {
        regimes: Regime::ALL.to_vec(),
        strategies: Strategy::ALL.into_iter().filter(|strategy| args.shows(*strategy)).collect(),
        rules: args.rules,
        found_ppm: args.found_ppm,
        seeds: args.first_seed..args.first_seed + args.seeds,
        epochs: args.epochs,
        params: args.params.clone(),
    };
    let rows = study.rows().context("settle an epoch of the simulation")?;
    if args.json {
        writeln!(stdout(), "{}", serde_json::to_string_pretty(&rows)?)?;
    } else {
        print(&rows)?;
    }
    let paying = rows.iter().filter(|row| row.pays()).count();
    let dear = rows.iter().filter(|row| row.pay_ppm > 1_000_000).count();
    if paying + dear > 0 {
        bail!("{paying} strategies pay more than {}, {dear} pay more than the baseline", decimal(BAR_PPM));
    }
    Ok(())
}

fn print(rows: &[Row]) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(
        out,
        "{:<8} {:<18} {:>7} {:>7} {:>7} {:>8} {:>8} {:>6} {:>6} {:>6} {:>6}",
        "market",
        "strategy",
        "return",
        "honest",
        "itself",
        "/honest",
        "/itself",
        "pay",
        "burn",
        "moved",
        "in two"
    )?;
    for row in rows {
        writeln!(
            out,
            "{:<8} {:<18} {:>7} {:>7} {:>7} {:>8} {:>8} {:>6} {:>6} {:>6} {:>6}{}",
            row.regime.name(),
            row.strategy.name(),
            decimal(row.return_ppm),
            decimal(row.honest_ppm),
            decimal(row.control_ppm),
            decimal(row.against_honest_ppm()),
            decimal(row.against_control_ppm()),
            decimal(row.pay_ppm),
            decimal(row.burned_ppm),
            decimal(row.moved_ppm),
            decimal(row.moved_in_two_ppm),
            if row.pays() { "  PAYS" } else { "" },
        )?;
    }
    Ok(())
}

/// A part in ppm as a decimal of three digits.
fn decimal(ppm: i64) -> String {
    let sign = if ppm < 0 { "-" } else { "" };
    let rounded = (ppm.unsigned_abs() + 500) / 1_000;
    format!("{sign}{}.{:03}", rounded / 1_000, rounded % 1_000)
}

struct Args {
    epochs: i64,
    rules: Rules,
    found_ppm: i64,
    params: Params,
    only: Option<String>,
    seeds: u64,
    first_seed: u64,
    json: bool,
}

impl Args {
    fn shows(&self, strategy: Strategy) -> bool {
        self.only.as_ref().is_none_or(|only| strategy.name().contains(only))
    }

    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let mut found = Self {
            epochs: 200,
            rules: Rules::AsTheyAre,
            found_ppm: 500_000,
            params: Params::default(),
            only: None,
            seeds: 10,
            first_seed: 1,
            json: false,
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--epochs" => found.epochs = value()?.parse().context("read --epochs")?,
                "--seeds" => found.seeds = value()?.parse().context("read --seeds")?,
                "--first-seed" => found.first_seed = value()?.parse().context("read --first-seed")?,
                "--found" => found.found_ppm = value()?.parse().context("read --found")?,
                "--rules" => found.rules = rules(&value()?)?,
                "--only" => found.only = Some(value()?),
                "--set" => found.params = set(&found.params, &value()?)?,
                "--json" => found.json = true,
                other => bail!("unknown argument {other}"),
            }
        }
        Ok(found)
    }
}

/// Parameters with one that is another.
fn set(params: &Params, change: &str) -> Result<Params> {
    let (name, value) = change.split_once('=').context("--set needs NAME=NUMBER")?;
    let mut fields = serde_json::to_value(params)?;
    let field = fields.get_mut(name).with_context(|| format!("there is no parameter {name}"))?;
    *field = value.parse::<i64>().with_context(|| format!("read {change}"))?.into();
    let changed: Params = serde_json::from_value(fields)?;
    changed.check().with_context(|| format!("set {change}"))?;
    Ok(changed)
}

fn rules(name: &str) -> Result<Rules> {
    let found = Rules::ALL.into_iter().find(|rules| rules.name() == name);
    found.with_context(|| format!("there are no rules {name}"))
}
