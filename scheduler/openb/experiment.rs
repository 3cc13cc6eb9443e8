//! The experiment of the trace: pods arrive at an empty cluster and stay.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    policy::Runner,
    random::Random,
    referee::judge,
    speed::on_cpu,
    trace::{self, GPU_MILLI, Host, Models, Placed, Pod},
};

/// Requested GPU at which arrivals end, in percent of all GPUs.
const ARRIVED_PERCENT: u64 = 130;

/// The arrivals of a seed: the base in random order, then pods drawn from it with
/// replacement until the requested GPU passes 130 % of all.
pub fn arrivals(base: &[Pod], hosts: &[Host], seed: u64) -> Vec<Pod> {
    let mut random = Random::new(seed);
    let mut pods = base.to_vec();
    random.shuffle(&mut pods);
    let all: u64 = hosts.iter().map(|host| u64::from(host.gpus) * u64::from(GPU_MILLI)).sum();
    let end = all * ARRIVED_PERCENT / 100;
    let mut requested = 0;
    let mut taken = 0;
    while requested <= end {
        if taken == pods.len() {
            pods.push(base[random.below(base.len())]);
        }
        requested += pods[taken].gpu_total();
        taken += 1;
    }
    pods.truncate(taken);
    pods
}

/// Gives the hosts of a seed their ranks, in random order.
pub fn shuffle_ranks(hosts: &mut [Host], seed: u64) {
    let mut ranks: Vec<u32> = (0..).take(hosts.len()).collect();
    Random::new(seed ^ 0x5EED_0F0A_17C0_FFEE).shuffle(&mut ranks);
    for (host, rank) in hosts.iter_mut().zip(ranks) {
        host.rank = rank;
    }
}

/// What to run.
pub struct Plan {
    pub hosts: PathBuf,
    pub variants: Vec<PathBuf>,
    pub policies: Vec<String>,
    pub seeds: u64,
    pub first_seed: u64,
}

/// Runs the plan and prints a table of medians: allocation in percent at 100 / 130 % arrived.
pub fn run(plan: &Plan) -> Result<()> {
    print!("| trace |");
    plan.policies.iter().for_each(|policy| print!(" {policy} |"));
    println!("\n|---|{}", "---|".repeat(plan.policies.len()));
    for variant in &plan.variants {
        let name = variant.file_stem().context("a file")?.to_string_lossy();
        print!("| {} |", name.trim_start_matches("openb_pod_list_"));
        for policy in &plan.policies {
            let result = medians(plan, variant, policy)?;
            print!(" {}/{} |", percent(result.at_100), percent(result.at_130));
            std::io::Write::flush(&mut std::io::stdout())?;
            let ms = result.elapsed.as_millis().max(1);
            eprintln!("{name} {policy}: {} decisions/s", result.decisions as u128 * 1_000 / ms);
        }
        println!();
    }
    Ok(())
}

/// What came of a policy on a variant.
struct Medians {
    at_100: u64,
    at_130: u64,
    decisions: usize,
    /// Time on a core for all decisions, learning from the history not included.
    elapsed: Duration,
}

fn medians(plan: &Plan, variant: &Path, policy: &str) -> Result<Medians> {
    let mut models = Models::default();
    let mut hosts = trace::hosts(&plan.hosts, &mut models)?;
    let base = trace::pods(variant, &mut models)?;
    let (mut at_100, mut at_130, mut decisions) = (Vec::new(), Vec::new(), 0);
    let mut elapsed = Duration::ZERO;
    for seed in plan.first_seed..plan.first_seed + plan.seeds {
        shuffle_ranks(&mut hosts, seed);
        let pods = arrivals(&base, &hosts, seed);
        decisions += pods.len();
        let mut runner =
            Runner::named(policy, &hosts, &base, seed).with_context(|| format!("policy {policy}"))?;
        let (started, busy) = (Instant::now(), on_cpu());
        let placed = place_all(&mut runner, &pods);
        let busy = on_cpu().zip(busy).map(|(now, before)| Duration::from_nanos(now - before));
        elapsed += busy.unwrap_or(started.elapsed());
        let verdict = judge(&hosts, &pods, &placed);
        if let Some(what) = verdict.infeasible.first() {
            bail!("{policy}, seed {seed}: {what}");
        }
        if let Some(pod) = verdict.refused.first() {
            bail!("{policy}, seed {seed}: pod {pod} was refused though it fits");
        }
        at_100.push(verdict.allocation_at(100, &hosts));
        at_130.push(verdict.allocation_at(ARRIVED_PERCENT, &hosts));
    }
    Ok(Medians { at_100: median(&mut at_100), at_130: median(&mut at_130), decisions, elapsed })
}

/// Decides on each pod in turn.
pub fn place_all(runner: &mut Runner, pods: &[Pod]) -> Vec<Placed> {
    pods.iter().enumerate().filter_map(|(at, pod)| runner.place(at, pod)).collect()
}

fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    match values.len() {
        0 => 0,
        n if n % 2 == 1 => values[n / 2],
        n => u64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// Parts of 100 000 as percent with two places, rounded down.
fn percent(parts: u64) -> String {
    format!("{}.{:02}", parts / 1_000, parts % 1_000 / 10)
}
