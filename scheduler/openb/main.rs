//! Runs the planner over the public GPU trace openb, beside policies of the literature.
//!
//! ```text
//! openb --hosts HOSTS.csv --pods PODS.csv [--history BASE.csv] [--host-order RANKS.csv]
//!       [--policy NAME] [--seed N] --log OUT.csv
//! openb bench --hosts HOSTS.csv [--policies A,B] [--seeds N] [--first-seed N] BASE.csv…
//! openb speed [--fleet HOSTS] [--decisions N]
//! ```

mod baselines;
mod experiment;
mod fgd;
mod planner;
mod policy;
mod random;
mod referee;
mod speed;
mod trace;

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let mut args = Args::parse(std::env::args().skip(1))?;
    match args.files.first().map(String::as_str) {
        Some("bench") => {
            let policies = args.flags.remove("policies");
            let all = baselines::Policy::NAMES.join(",") + ",nave";
            experiment::run(&experiment::Plan {
                hosts: args.path("hosts")?,
                policies: policies.unwrap_or(all).split(',').map(str::to_owned).collect(),
                seeds: args.number("seeds", 10)?,
                first_seed: args.number("first-seed", 1)?,
                variants: args.files[1..].iter().map(PathBuf::from).collect(),
            })
        }
        Some("speed") => speed::run(args.number("fleet", 10_000)?, args.number("decisions", 200_000)?),
        Some(other) => bail!("unknown command {other}"),
        None => place(&args),
    }
}

/// Places the pods of a file in its order.
fn place(args: &Args) -> Result<()> {
    let mut models = trace::Models::default();
    let mut hosts = trace::hosts(&args.path("hosts")?, &mut models)?;
    if let Some(ranks) = args.flags.get("host-order") {
        trace::ranks(&PathBuf::from(ranks), &mut hosts)?;
    }
    let pods = trace::pods(&args.path("pods")?, &mut models)?;
    let history = match args.flags.get("history") {
        Some(history) => trace::pods(&PathBuf::from(history), &mut models)?,
        None => Vec::new(),
    };
    let policy = args.flags.get("policy").map_or("nave", String::as_str);
    let runner = policy::Runner::named(policy, &hosts, &history, args.number("seed", 1)?);
    let placed = experiment::place_all(&mut runner.with_context(|| format!("policy {policy}"))?, &pods);
    trace::write(&args.path("log")?, &hosts, &placed)
}

/// `--name value` and everything else.
struct Args {
    flags: BTreeMap<String, String>,
    files: Vec<String>,
}

impl Args {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let (mut flags, mut files) = (BTreeMap::new(), Vec::new());
        while let Some(arg) = args.next() {
            match arg.strip_prefix("--") {
                Some(name) => {
                    let value = args.next().with_context(|| format!("--{name} takes a value"))?;
                    flags.insert(name.to_owned(), value);
                }
                None => files.push(arg),
            }
        }
        Ok(Self { flags, files })
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        self.flags.get(name).map(PathBuf::from).with_context(|| format!("--{name} is missing"))
    }

    fn number(&self, name: &str, default: u64) -> Result<u64> {
        let given = self.flags.get(name).map(|text| text.parse().with_context(|| format!("read --{name}")));
        given.unwrap_or(Ok(default))
    }
}
