//! What can happen, and schedules of it.

use proptest::prelude::*;

/// One thing that happens. Numbers choose among what is there.
#[derive(Debug, Clone)]
pub enum Step {
    /// A customer submits a job.
    Submit {
        customer: usize,
        wish: Wish,
    },
    Cancel {
        job: usize,
    },
    /// Time passes and everything that is up does its part.
    Pass {
        ms: i64,
    },
    /// The link of a host is cut or heals.
    Link {
        host: usize,
        up: bool,
    },
    /// Messages of a host arrive only when the schedule says so.
    Slow {
        host: usize,
        slow: bool,
    },
    /// An agent dies some lines further on.
    Crash {
        host: usize,
        lines: u8,
    },
    Reboot {
        host: usize,
        down_ms: i64,
    },
    /// Something kills a command.
    Kill {
        host: usize,
        nth: usize,
    },
    Gateway {
        up: bool,
    },
    /// The scheduler stands still, but for the steps below.
    Hold {
        held: bool,
    },
    Plan,
    Place,
    Watch,
    Act,
    Charge,
    Poll {
        host: usize,
    },
    Report {
        host: usize,
    },
    Work {
        host: usize,
        nth: usize,
    },
    Deliver {
        nth: usize,
    },
    Lose {
        nth: usize,
    },
    Repeat {
        nth: usize,
    },
    /// The gateway writes the next thing down that a report said.
    Handle {
        nth: usize,
    },
    /// Proofs, and what else happens to a host.
    Trial {
        host: usize,
        nth: usize,
    },
}

/// What a customer submits.
#[derive(Debug, Clone)]
pub struct Wish {
    pub run_ms: i64,
    pub run_limit_ms: i64,
    pub max_spend: i64,
    pub retries: u8,
    /// Attempts that exit with a code.
    pub fails: u32,
    pub stubborn: bool,
    pub start: &'static str,
    pub gpu: bool,
    /// More than any host has.
    pub huge: bool,
}

fn wish() -> impl Strategy<Value = Wish> {
    let times = (prop_oneof![Just(0_i64), 200..5_000_i64, 5_000..120_000_i64], 20_000..200_000_i64);
    let money = prop_oneof![5 => 50_000..500_000_i64, 1 => 500..10_000_i64];
    let tries = (0..3_u8, prop_oneof![4 => Just(0_u32), 1 => 1..4_u32]);
    let start = prop_oneof![12 => Just("works"), 1 => Just("fails"), 1 => Just("missing")];
    let odd = (prop::bool::weighted(0.3), prop::bool::weighted(0.2), prop::bool::weighted(0.05));
    (times, money, tries, start, odd).prop_map(|(times, max_spend, tries, start, odd)| Wish {
        run_ms: times.0,
        run_limit_ms: times.1,
        max_spend,
        retries: tries.0,
        fails: tries.1,
        stubborn: odd.0,
        start,
        gpu: odd.1,
        huge: odd.2,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let (host, nth) = (|| 0..3_usize, || 0..8_usize);
    let time = prop_oneof![
        6 => 100..3_000_i64, 4 => 3_000..20_000_i64, 2 => 20_000..60_000_i64, 1 => 60_000..110_000_i64
    ];
    prop_oneof![
        8 => (0..3_usize, wish()).prop_map(|(customer, wish)| Step::Submit { customer, wish }),
        2 => nth().prop_map(|job| Step::Cancel { job }),
        20 => time.prop_map(|ms| Step::Pass { ms }),
        4 => (host(), any::<bool>()).prop_map(|(host, up)| Step::Link { host, up }),
        4 => (host(), any::<bool>()).prop_map(|(host, slow)| Step::Slow { host, slow }),
        3 => (host(), 1..8_u8).prop_map(|(host, lines)| Step::Crash { host, lines }),
        2 => (host(), 1_000..120_000_i64).prop_map(|(host, down_ms)| Step::Reboot { host, down_ms }),
        1 => (host(), nth()).prop_map(|(host, nth)| Step::Kill { host, nth }),
        2 => any::<bool>().prop_map(|up| Step::Gateway { up }),
        2 => any::<bool>().prop_map(|held| Step::Hold { held }),
        2 => Just(Step::Plan),
        2 => Just(Step::Place),
        2 => Just(Step::Watch),
        2 => Just(Step::Act),
        1 => Just(Step::Charge),
        4 => host().prop_map(|host| Step::Poll { host }),
        6 => host().prop_map(|host| Step::Report { host }),
        6 => (host(), nth()).prop_map(|(host, nth)| Step::Work { host, nth }),
        10 => nth().prop_map(|nth| Step::Deliver { nth }),
        2 => nth().prop_map(|nth| Step::Lose { nth }),
        2 => nth().prop_map(|nth| Step::Repeat { nth }),
        8 => nth().prop_map(|nth| Step::Handle { nth }),
        1 => (host(), nth()).prop_map(|(host, nth)| Step::Trial { host, nth }),
    ]
}

/// A schedule of up to `steps_max` steps.
pub fn schedule(steps_max: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..=steps_max)
}
