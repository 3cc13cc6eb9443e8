//! What is killed, and when: drawn from a seed before anything runs.

use std::collections::BTreeMap;

use nave_crash_point::POINTS;

/// A generator whose numbers follow from its seed (`SplitMix64`, Steele et al. 2014).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            let other = usize::try_from(self.below(at as u64 + 1)).expect("small");
            items.swap(at, other);
        }
    }
}

/// A kind of process, or the way between a host and the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Gateway,
    Hub,
    HubTunnel,
    Scheduler,
    Verifier,
    Validator,
    Treasury,
    Agent,
    AgentTunnel,
    Prover,
    Dockerd,
    Containerd,
    Container,
    Postgres,
    Link,
}

impl Kind {
    pub const ALL: [Self; 15] = [
        Self::Gateway,
        Self::Hub,
        Self::HubTunnel,
        Self::Scheduler,
        Self::Verifier,
        Self::Validator,
        Self::Treasury,
        Self::Agent,
        Self::AgentTunnel,
        Self::Prover,
        Self::Dockerd,
        Self::Containerd,
        Self::Container,
        Self::Postgres,
        Self::Link,
    ];
}

/// One blow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strike {
    /// When, after the schedule began.
    pub at_ms: u64,
    pub kind: Kind,
    /// Which of several: a host, a container.
    pub which: u64,
    /// For a link: how long it stays down.
    pub for_ms: u64,
}

/// What owners and the operator do meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chore {
    Join,
    Rotate,
    Upgrade,
    /// To a program that ends at once.
    BadUpgrade,
    /// To a program that gives its place back.
    SlowUpgrade,
}

/// In turn, one with each schedule.
const CHORES: [Chore; 14] = [
    Chore::Rotate,
    Chore::Join,
    Chore::Upgrade,
    Chore::Join,
    Chore::Rotate,
    Chore::BadUpgrade,
    Chore::Rotate,
    Chore::Join,
    Chore::Upgrade,
    Chore::Join,
    Chore::Rotate,
    Chore::SlowUpgrade,
    Chore::Join,
    Chore::Rotate,
];

/// What happens in one stretch of the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    pub jobs: u64,
    pub chore: Chore,
    pub strikes: Vec<Strike>,
    /// Crash points to arm when it begins.
    pub points: Vec<&'static str>,
    /// For everything else that is chosen while it runs.
    pub seed: u64,
}

/// How often each kind must have been struck when a run ends.
pub const STRIKES_MIN: usize = 20;
/// How long a schedule takes; what it has begun may go on during the next ones. With two blows
/// in half of it hosts hardly come to run anything.
pub const SCHEDULE_MS: u64 = 2_000;

/// The schedules of a run. Every kind stands in them at least [`STRIKES_MIN`] times, every
/// crash point at least once.
pub fn plan(seed: u64, schedules: usize, points: &[&'static str]) -> Vec<Schedule> {
    let mut rng = Rng::new(seed);
    // A kind that cannot be struck at its moment is struck later; some more make up for it.
    let wanted = (STRIKES_MIN + 5) * Kind::ALL.len();
    let each = wanted.div_ceil(schedules.max(1)).max(2);
    let armed_each = points.len().div_ceil(schedules.max(1));
    let mut kinds = Vec::new();
    let mut left = Vec::new();
    let mut plan = Vec::new();
    for at in 0..schedules {
        let mut strikes = Vec::new();
        for _ in 0..each {
            if kinds.is_empty() {
                kinds = Kind::ALL.to_vec();
                rng.shuffle(&mut kinds);
            }
            let kind = kinds.pop().expect("just filled");
            // Mostly short enough to be sat out, sometimes past the fence.
            let for_ms = if rng.below(4) == 0 { 10_000 + rng.below(4_000) } else { 200 + rng.below(2_000) };
            strikes.push(Strike { at_ms: rng.below(SCHEDULE_MS), kind, which: rng.next(), for_ms });
        }
        strikes.sort_by_key(|strike| strike.at_ms);
        if left.is_empty() {
            left = points.to_vec();
            rng.shuffle(&mut left);
        }
        let armed = left.split_off(left.len().saturating_sub(armed_each));
        let chore = CHORES[at % CHORES.len()];
        plan.push(Schedule { jobs: 1 + rng.below(2), chore, strikes, points: armed, seed: rng.next() });
    }
    plan
}

/// How often each kind stands in a plan.
pub fn counts(plan: &[Schedule]) -> BTreeMap<Kind, usize> {
    let mut counts = BTreeMap::new();
    for strike in plan.iter().flat_map(|schedule| &schedule.strikes) {
        *counts.entry(strike.kind).or_default() += 1;
    }
    counts
}

#[test]
fn the_same_seed_gives_the_same_plan_and_every_kind_and_point_stand_in_it() {
    let one = plan(7, 60, POINTS);
    assert_eq!(one, plan(7, 60, POINTS));
    assert_ne!(one, plan(8, 60, POINTS));
    let counts = counts(&one);
    assert!(Kind::ALL.iter().all(|kind| counts[kind] >= STRIKES_MIN), "{counts:?}");
    assert!(POINTS.iter().all(|point| one.iter().any(|schedule| schedule.points.contains(point))));
}
