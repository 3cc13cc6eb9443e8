//! A reference model of the whole market, run through schedules drawn at random.
//!
//! Planner, watch, reports and agents decide with the production code; rows, network, engines and
//! clocks are acted out, so that years of faults pass in seconds. After everything that happens
//! the rules of `check.rs` hold.
//!
//! `NAVE_MODEL_CASES` is the number of schedules, `NAVE_MODEL_SEED` where they begin. A schedule
//! that breaks a rule is cut down to the least that still does, and told line by line.

mod check;
mod machine;
mod rows;
mod schedule;
mod world;

use std::{
    collections::BTreeSet,
    env,
    panic::{AssertUnwindSafe, catch_unwind},
};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::{
    schedule::{Step, Wish, schedule},
    world::World,
};

/// A rule that is broken on purpose, to see that it is missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutation {
    /// The control plane does not wait for the fence before it gives a job to another host.
    RequeueBeforeTheFence,
    /// A charge does not count what was charged before.
    ChargeTwice,
    /// An end that is reported again counts again.
    CountAnEndTwice,
    /// An agent begins without the notes of the one before.
    ForgetNotes,
    /// A host runs its jobs on without hearing anything.
    IgnoreTheFence,
}

const CASES: u32 = 256;
const STEPS_MAX: usize = 200;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Runs schedules drawn from `seed` until one breaks a rule; answers what they all reached.
fn explore(seed: u64, cases: u32, mutation: Option<Mutation>) -> Result<BTreeSet<&'static str>, String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let shrinks = if mutation.is_none() { 20_000 } else { 0 };
    let config = Config { cases, failure_persistence: None, max_shrink_iters: shrinks, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let marks = std::cell::RefCell::new(BTreeSet::new());
    let outcome = runner.run(&schedule(STEPS_MAX), |steps| {
        let mut world = World::new(mutation);
        let followed = follow(&mut world, &steps).map_err(TestCaseError::fail);
        marks.borrow_mut().append(&mut world.rows.marks);
        followed
    });
    match outcome {
        Ok(()) => Ok(marks.into_inner()),
        Err(TestError::Fail(reason, steps)) => Err(tell(&reason.to_string(), &steps, mutation)),
        Err(TestError::Abort(reason)) => Err(reason.to_string()),
    }
}

fn follow(world: &mut World, steps: &[Step]) -> Result<(), String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        steps.iter().try_for_each(|step| world.step(step))?;
        world.come_to_rest()
    }));
    outcome.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        Err(said.unwrap_or_else(|| "a state machine refused what the store does".into()))
    })
}

fn tell(reason: &str, steps: &[Step], mutation: Option<Mutation>) -> String {
    let mut world = World::new(mutation);
    world.trace = Some(Vec::new());
    let _ = follow(&mut world, steps);
    let lines = world.trace.unwrap_or_default();
    let tail = &lines[lines.len().saturating_sub(200)..];
    format!("{reason}\nthe least schedule that does it: {steps:#?}\nwhat happens:\n{}", tail.join("\n"))
}

#[test]
fn no_schedule_breaks_a_rule() {
    let cases = number("NAVE_MODEL_CASES").map_or(CASES, |cases| u32::try_from(cases).expect("32 bits"));
    let seed = number("NAVE_MODEL_SEED").unwrap_or(1);
    match explore(seed, cases, None) {
        Err(broken) => panic!("NAVE_MODEL_SEED={seed} NAVE_MODEL_CASES={cases}: {broken}"),
        Ok(marks) if cases >= CASES => {
            let expected = [
                "balance too low",
                "stale placement",
                "charged",
                "refunded",
                "queued again",
                "failed in the queue",
                "a host was suspect",
                "a lease was lost",
                "cancelled",
                "start_timeout",
                "run_timeout",
                "spend_cap",
            ];
            let missed: Vec<_> = expected.into_iter().filter(|mark| !marks.contains(mark)).collect();
            assert!(missed.is_empty(), "no schedule came by {missed:?}");
        }
        Ok(_) => {}
    }
}

/// Schedules that chance seldom finds.
#[test]
fn a_host_that_comes_back_while_a_scheduler_stands_still_keeps_its_lease() {
    let wish = Wish {
        run_ms: 100_000,
        run_limit_ms: 200_000,
        max_spend: 500_000,
        retries: 0,
        fails: 0,
        stubborn: false,
        start: "works",
        gpu: false,
        huge: false,
    };
    let (slow, link) = (|slow| Step::Slow { host: 1, slow }, |up| Step::Link { host: 1, up });
    let steps = [
        Step::Pass { ms: 2_000 },
        slow(true),
        Step::Submit { customer: 0, wish },
        Step::Pass { ms: 1_000 },
        link(false),
        Step::Hold { held: true },
        Step::Pass { ms: 85_000 },
        Step::Watch,
        link(true),
        slow(false),
        Step::Pass { ms: 5_000 },
        link(false),
        Step::Act,
        Step::Hold { held: false },
        Step::Pass { ms: 20_000 },
    ];
    let mut world = World::new(None);
    if let Err(broken) = follow(&mut world, &steps) {
        panic!("{}", tell(&broken, &steps, None));
    }
}

#[test]
fn a_rule_that_is_broken_is_missed() {
    for mutation in [
        Mutation::RequeueBeforeTheFence,
        Mutation::ChargeTwice,
        Mutation::CountAnEndTwice,
        Mutation::ForgetNotes,
        Mutation::IgnoreTheFence,
    ] {
        let found = explore(2, 2_000, Some(mutation)).expect_err(&format!("{mutation:?} goes unnoticed"));
        println!("{mutation:?}: {}", found.lines().next().unwrap_or_default());
    }
}
