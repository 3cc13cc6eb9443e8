//! The rules that hold after everything that happens.

use std::collections::BTreeMap;

use nave_domain::{
    JobId, LeaseId, Millis,
    job::JobState,
    lease::{LeaseState, Outcome},
    ledger::Account,
    rate::charge,
};

use crate::{
    machine::Machine,
    rows::{Job, Rows},
    world::FENCE,
};

/// How late after its fence a host may be with ending a command: the grace of a stop that was
/// under way, an agent that had to be started again, an engine that is slow. The control plane
/// gives the job away 20 s after the fence.
const LATE_MS_MAX: i64 = 18_000;

macro_rules! ensure {
    ($holds:expr, $($said:tt)*) => {
        if !$holds {
            return Err(format!($($said)*));
        }
    };
}

/// Remembers what was final.
#[derive(Default)]
pub struct Checker {
    /// How much had changed when the rows were last checked.
    changes: u64,
    jobs: BTreeMap<JobId, (JobState, i64)>,
    leases: BTreeMap<LeaseId, (Outcome, i64)>,
}

impl Checker {
    pub fn check(&mut self, rows: &Rows, machines: &[Machine]) -> Result<(), String> {
        if self.changes != rows.changes {
            self.changes = rows.changes;
            attempts(rows, machines)?;
            self.ends(rows)?;
            money(rows)?;
            truth(rows, machines)?;
        }
        commands(rows.now, machines)
    }

    /// A final state accepts nothing, and each end counts once.
    fn ends(&mut self, rows: &Rows) -> Result<(), String> {
        for (id, job) in &rows.jobs {
            ensure!(job.ends <= 1, "{id} ended {} times", job.ends);
            if job.state.is_final() {
                let now = (job.state, job.charged);
                let then = self.jobs.entry(*id).or_insert(now);
                ensure!(*then == now, "{id} was {then:?} and is {now:?}");
            }
            ensure!(job.state.is_final() || job.ends == 0, "{id} came back");
        }
        for (id, lease) in &rows.leases {
            ensure!(lease.ends <= 1, "{id} closed {} times", lease.ends);
            if let Some(outcome) = &lease.outcome {
                let now = (outcome.clone(), lease.charged);
                let then = self.leases.entry(*id).or_insert_with(|| now.clone());
                ensure!(*then == now, "{id} was {then:?} and is {now:?}");
            }
        }
        Ok(())
    }
}

/// A job has one open lease while it is on a host, and none otherwise; hosts are not overbooked.
fn attempts(rows: &Rows, machines: &[Machine]) -> Result<(), String> {
    for (id, job) in &rows.jobs {
        let open = rows.leases.values().filter(|l| l.job == *id && l.state != LeaseState::Closed).count();
        let expected = match job.state {
            JobState::Placed | JobState::Running | JobState::Cancelling => 1,
            JobState::Queued | JobState::Succeeded | JobState::Failed | JobState::Cancelled => 0,
        };
        ensure!(open == expected, "{id} is {:?} with {open} open leases", job.state);
    }
    for machine in machines {
        let open = rows.leases.values().filter(|l| l.host == machine.id && l.state != LeaseState::Closed);
        let used: i64 = open.map(|lease| lease.size.milli_cpu.0).sum();
        ensure!(used <= machine.inventory.milli_cpu.0, "{} is overbooked", machine.id);
    }
    Ok(())
}

/// The books balance, nobody owes, and every job pays what it used and no more.
fn money(rows: &Rows) -> Result<(), String> {
    let sum: i64 = rows.accounts.values().sum();
    ensure!(sum == 0, "the ledger sums to {sum}");
    for (account, balance) in &rows.accounts {
        ensure!(account.customer().is_none() || *balance >= 0, "{account} is {balance}");
    }
    let mut held: BTreeMap<JobId, i64> = BTreeMap::new();
    let mut paid: BTreeMap<JobId, i64> = BTreeMap::new();
    for posting in rows.postings.values() {
        let Some(job) = posting.job else { continue };
        for (account, amount) in posting.entries().map_err(|error| error.to_string())? {
            match account {
                Account::Held(_) => *held.entry(job).or_default() += amount.0,
                Account::Treasury => *paid.entry(job).or_default() += amount.0,
                Account::Funding
                | Account::Clouds
                | Account::Available(_)
                | Account::Payable(_)
                | Account::Collateral(_) => {}
            }
        }
    }
    let of = |sums: &BTreeMap<JobId, i64>, id| sums.get(id).copied().unwrap_or(0);
    for (id, job) in &rows.jobs {
        money_of(id, job, of(&held, id), of(&paid, id))?;
    }
    for (id, lease) in &rows.leases {
        let worth = charge(lease.size, Millis(lease.used), lease.rate).map_err(|error| error.to_string())?;
        ensure!((0..=worth.0).contains(&lease.charged), "{id} pays {} for {worth}", lease.charged);
        ensure!((0..=lease.run_max).contains(&lease.used), "{id} ran {} ms", lease.used);
        let is_free = lease.outcome.as_ref().is_some_and(|outcome| !outcome.is_charged());
        ensure!(!is_free || lease.charged == 0, "{id} pays for {:?}", lease.outcome);
    }
    Ok(())
}

fn money_of(id: &JobId, job: &Job, held: i64, paid: i64) -> Result<(), String> {
    let cap = job.request.max_spend.0;
    ensure!(paid == job.charged, "{id} was charged {} and the books say {paid}", job.charged);
    ensure!((0..=cap).contains(&paid), "{id} pays {paid} of at most {cap}");
    let rest = if job.state.is_final() { 0 } else { cap - paid };
    ensure!(held == rest, "{id} is {:?}, pays {paid} of {cap}, and {held} is held", job.state);
    Ok(())
}

/// What is recorded of an end is what happened.
fn truth(rows: &Rows, machines: &[Machine]) -> Result<(), String> {
    for (id, lease) in &rows.leases {
        let Some(Outcome::Exited { code }) = &lease.outcome else { continue };
        let ended = machines.iter().find_map(|machine| machine.ends.get(id)).copied();
        let never_ran = rows.jobs[&lease.job].request.env["START"] == "missing" && *code == 127;
        ensure!(
            ended == Some(*code) || never_ran,
            "{id} counts as exited with {code}; it ended as {ended:?}"
        );
    }
    for (id, job) in rows.jobs.iter().filter(|(_, job)| job.state == JobState::Succeeded) {
        let successes = rows.leases.values().filter(|l| l.job == *id).filter_map(|l| l.outcome.as_ref());
        let successes = successes.filter(|outcome| **outcome == Outcome::Exited { code: 0 }).count();
        ensure!(successes == 1, "{id} succeeded {successes} times in {} attempts", job.attempts);
    }
    Ok(())
}

/// No attempt runs twice or beyond its fence, and no job runs in two places.
fn commands(now: i64, machines: &[Machine]) -> Result<(), String> {
    let mut runs: BTreeMap<JobId, (LeaseId, u32)> = BTreeMap::new();
    for machine in machines {
        for (lease, container) in machine.running() {
            let before = runs.insert(container.job, (*lease, container.attempt));
            ensure!(before.is_none(), "{} runs as {lease} and as {before:?}", container.job);
            let unheard = now - machine.acked_at;
            ensure!(
                unheard <= FENCE.0 + LATE_MS_MAX,
                "{lease} runs on {}, which was not heard for {unheard} ms",
                machine.id
            );
        }
        let again = machine.starts.iter().find(|(_, count)| **count > 1);
        ensure!(again.is_none(), "a command was started again: {again:?}");
    }
    Ok(())
}
