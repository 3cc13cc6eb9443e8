//! A thousand random schedules of faults and kills for each cloud: in the end no machine is leaked, none is
//! doubled, and every cost is accounted. All that can go wrong does so at each cloud, and each is left by a
//! process that was killed at every line at which something is asked or written.

use std::{collections::BTreeMap, sync::Arc, thread};

use futures_util::FutureExt as _;
use nave_clouds::{
    machine::Demand,
    provider::{Cloud, MachineId, MachineState},
    testing::{Faults, Fuse, Numbers, Site},
};
use nave_domain::{MicroUsd, Millis, Timestamp};

use crate::market::{Market, Process, owner};

/// Schedules of each cloud.
const SCHEDULES_EACH: u64 = 1_000;
/// Looks while things go wrong.
const WILD: usize = 45;
/// Looks until it must be quiet.
const QUIET_MAX: usize = 100;

/// Something that needs one machine, from a time until another.
struct Need {
    from: Timestamp,
    until: Timestamp,
    /// How long its machine may then still be there with nothing to do.
    patience: Millis,
    row: Option<MachineId>,
}

struct Schedule {
    seed: u64,
    market: Market,
    numbers: Numbers,
    needs: Vec<Need>,
    /// Processes that stand still, and may go on long after.
    stalled: Vec<(Arc<Fuse>, Process)>,
    /// How many points the last process that came to its end has passed, and the one that passed most.
    points: (u64, u64),
    /// How often a process was killed at each point.
    kills: BTreeMap<&'static str, u64>,
}

impl Schedule {
    fn new(cloud: Cloud, seed: u64) -> Self {
        let market = Market::new(cloud, seed, Faults::MANY);
        let mut numbers = Numbers::new(seed ^ 0xabcd);
        let need = |_| {
            let from = market.now().after(Millis(numbers.between(0, 600_000)));
            let until = from.after(Millis(numbers.between(60_000, 2_400_000)));
            Need { from, until, patience: Millis(numbers.between(0, 600_000)), row: None }
        };
        let needs = (0..2).map(need).collect();
        let (stalled, kills) = (Vec::new(), BTreeMap::new());
        Self { seed, market, numbers, needs, stalled, points: (0, 0), kills }
    }

    /// Whoever needs a machine and has none that is for it wants one; who is done lets go.
    fn need(&mut self, forever: bool) {
        let now = self.market.now();
        for need in &mut self.needs {
            let row = need.row.map(|id| self.market.row(id));
            let is_over = row.as_ref().is_none_or(|row| row.ending.is_some());
            let is_on = now >= need.from && (now < need.until || forever);
            if is_over && is_on {
                need.row = Some(self.market.want());
            } else if let Some(row) = row.filter(|row| row.ending.is_none() && !is_on) {
                let late = now.since(need.until) > need.patience;
                let idle = if late { Demand::Released } else { Demand::Idle { since: need.until } };
                self.market.demand(row.id, idle);
            } else if let Some(row) = need.row.filter(|_| is_on && !is_over) {
                self.market.demand(row, Demand::Wanted);
            }
        }
    }

    /// A look in which things go wrong: the process may be killed at any point, or stand still there.
    fn wild(&mut self) {
        self.market.pass(self.numbers.between(1, 60));
        self.market.enrol();
        self.need(false);
        let choice = self.numbers.below(100);
        let fuse = Arc::new(if choice < 52 { self.fuse() } else { Fuse::whole() });
        let mut process = self.market.process(&fuse);
        if let Some(done) = process.as_mut().now_or_never() {
            done.expect("the ledger works");
            self.points = (fuse.passed(), self.points.1.max(fuse.passed()));
        } else if choice < 45 {
            *self.kills.entry(fuse.held_at().expect("it is held")).or_default() += 1;
        } else {
            self.stalled.push((fuse, process));
        }
        if !self.stalled.is_empty() && self.numbers.permille(150) {
            self.wake();
        }
    }

    /// Holds a process at a point that one before it has passed: the last of them, or the one that came furthest.
    fn fuse(&mut self) -> Fuse {
        let points = if self.numbers.permille(500) { self.points.0 } else { self.points.1 };
        Fuse::new(i64::try_from(self.numbers.below(points)).expect("it is small"))
    }

    /// A process that stood still goes on, and does not know that time has passed.
    fn wake(&mut self) {
        let (fuse, process) = self.stalled.remove(0);
        fuse.mend();
        process.now_or_never().expect("nothing waits").expect("the ledger works");
    }

    /// Nothing goes wrong any more, until `is_done` has held for a while.
    fn quiet(&mut self, forever: bool, is_done: impl Fn(&Self) -> bool) {
        let mut held = 0;
        for _ in 0..QUIET_MAX {
            self.market.pass(60);
            self.market.enrol();
            self.need(forever);
            self.market.tick();
            held = if is_done(self) { held + 1 } else { 0 };
            if held > 6 {
                return;
            }
        }
        let market = &self.market;
        panic!(
            "{} {}: not quiet\n{:#?}\n{:#?}",
            market.cloud,
            self.seed,
            market.double().site.living(&owner()),
            market.journal().rows.values().filter(|row| !row.is_closed()).collect::<Vec<_>>(),
        );
    }

    /// Each need has the one machine that its row keeps, and there is no other.
    fn is_served(&self) -> bool {
        let double = self.market.double();
        let mut living: Vec<_> =
            double.site.living(&owner()).iter().filter_map(|real| owner().reads(&real.name)).collect();
        let mut rows: Vec<_> = self.needs.iter().filter_map(|need| need.row).collect();
        living.sort_unstable();
        rows.sort_unstable();
        living == rows
    }

    fn is_empty(&self) -> bool {
        let is_closed = self.market.journal().rows.values().all(|row| row.is_closed());
        is_closed && self.market.double().site.living(&owner()).is_empty()
    }

    fn run(mut self) -> Sum {
        for _ in 0..WILD {
            self.wild();
        }
        while !self.stalled.is_empty() {
            self.wake();
        }
        {
            let site = &mut self.market.double().site;
            (site.faults, site.price) = (Faults::default(), Site::PRICE);
        }
        self.quiet(true, Self::is_served);
        let end = self.market.now();
        for need in &mut self.needs {
            need.until = end;
        }
        self.quiet(false, Self::is_empty);
        self.check();
        self.sum()
    }

    fn sum(&self) -> Sum {
        let given = self.market.double().site.given.clone();
        let mut sum = Sum { kills: self.kills.clone(), given, ..Sum::default() };
        let journal = self.market.journal();
        for row in journal.rows.values() {
            *sum.endings.entry(row.ending.map_or("", |ending| ending.why.name())).or_default() += 1;
            sum.twice += u64::from(row.held.len() > 1);
            sum.again +=
                row.held.values().filter(|held| held.returned.is_some_and(|(_, times)| times > 1)).count()
                    as u64;
        }
        for error in journal.attempts.iter().filter_map(|attempt| attempt.error.as_ref()) {
            *sum.errors.entry(error.kind.name()).or_default() += 1;
        }
        sum
    }

    fn check(&self) {
        let (double, journal) = (self.market.double(), self.market.journal());
        let (site, what) = (&double.site, format!("{} {}", self.market.cloud, self.seed));
        assert!(site.wrongs.is_empty(), "{what}: {:?}", site.wrongs);
        assert!(site.launches.values().all(|times| *times == 1), "{what}: {:?}", site.launches);
        let others = site.machines.values().filter(|real| owner().reads(&real.name).is_none());
        assert!(others.clone().count() == 2 && others.clone().all(|real| real.gone_at.is_none()), "{what}");
        let mut made: BTreeMap<MachineId, usize> = BTreeMap::new();
        for real in site.machines.values() {
            if let Some(id) = owner().reads(&real.name) {
                *made.entry(id).or_default() += 1;
            }
        }
        let (mut accounted, mut held, billing) = (MicroUsd::ZERO, 0, site.cloud.terms().billing);
        for (id, row) in &journal.rows {
            let made = made.get(id).copied().unwrap_or(0);
            // One that was gone before any list showed it is paid for, and nobody here can know.
            assert!(row.held.len() <= made, "{what}: {row:#?}");
            accounted.0 += row.cost(billing, site.now).0;
            // What no list has shown costs what it was quoted, as far as anybody here knows.
            held += row.held.values().filter(|held| held.state != MachineState::Unknown).count();
        }
        let unseen = made.values().sum::<usize>() - held;
        let truth = site.cost(&owner());
        let hour = Site::PRICE_MAX.0;
        assert!(accounted.0 + hour * unseen as i64 >= truth.0, "{what}: {accounted} of {truth}");
        assert!(accounted.0 <= truth.0 + hour / 2 * (held + unseen) as i64, "{what}: {accounted} of {truth}");
    }
}

/// What came of some schedules, to see that what they are about happened.
#[derive(Debug, Default)]
struct Sum {
    /// Kills by the point at which they were.
    kills: BTreeMap<&'static str, u64>,
    /// What went wrong at the cloud.
    given: BTreeMap<&'static str, u64>,
    /// Rows by why they ended.
    endings: BTreeMap<&'static str, u64>,
    /// Calls that failed, by why.
    errors: BTreeMap<&'static str, u64>,
    /// Rows that held two machines.
    twice: u64,
    /// Machines that were given back more than once.
    again: u64,
}

impl Sum {
    fn add(&mut self, other: &Self) {
        self.twice += other.twice;
        self.again += other.again;
        let sums = [&mut self.kills, &mut self.given, &mut self.endings, &mut self.errors];
        let others = [&other.kills, &other.given, &other.endings, &other.errors];
        for (sum, other) in sums.into_iter().zip(others) {
            for (what, count) in other {
                *sum.entry(what).or_default() += count;
            }
        }
    }

    /// All of it happened at this cloud, and often.
    fn check(&self, cloud: Cloud) {
        let of_verda = |all: &[&'static str]| if cloud == Cloud::Verda { all.to_vec() } else { Vec::new() };
        let expected = [
            (&self.kills, [KILLS.to_vec(), of_verda(&KILLS_VERDA)].concat(), 2),
            (&self.given, [GIVEN.to_vec(), of_verda(&["unauthorised"])].concat(), 20),
            (&self.endings, ENDINGS.to_vec(), 20),
            (&self.errors, ERRORS.to_vec(), 40),
        ];
        for (seen, expected, least) in expected {
            for what in expected {
                assert!(seen.get(what).is_some_and(|count| *count >= least), "{cloud}: {what} of {seen:?}");
            }
        }
        assert!(self.twice > 50 && self.again > 50, "{cloud}: {} {}", self.twice, self.again);
    }
}

/// The points between which something is asked of every cloud, or written.
const KILLS: [&str; 24] = [
    "before a list",
    "after a list",
    "before open rows",
    "after open rows",
    "before a row is found",
    "after a row is found",
    "before the pace",
    "after the pace",
    "before offers",
    "after offers",
    "before an intended row",
    "after an intended row",
    "before an asked row",
    "after an asked row",
    "before a launch",
    "after a launch",
    "before a held row",
    "after a held row",
    "before a missed row",
    "after a missed row",
    "before a look",
    "after a look",
    "before a return",
    "after a return",
];
/// And of Verda alone.
const KILLS_VERDA: [&str; 4] = ["before a session", "after a session", "before a script", "after a script"];
/// What goes wrong at each cloud.
const GIVEN: [&str; 19] = [
    "failed",
    "silent",
    "slow",
    "moved",
    "rate_limited",
    "garbled",
    "out_of_stock",
    "quota",
    "no_balance",
    "dearer",
    "twice",
    "made_unanswered",
    "provisioning",
    "forgotten",
    "late",
    "overdue",
    "broken",
    "taken",
    "lied_about",
];
/// Why rows end at each cloud.
const ENDINGS: [&str; 10] = [
    "released",
    "idle",
    "too_dear",
    "broke",
    "lost",
    "never_launched",
    "out_of_stock",
    "quota",
    "no_balance",
    "price_rise",
];
/// How calls fail at each cloud.
const ERRORS: [&str; 8] = [
    "rate_limited",
    "unavailable",
    "timed_out",
    "not_sent",
    "malformed",
    "refused",
    "price_rise",
    "out_of_stock",
];

fn schedules_of(cloud: Cloud) -> Sum {
    let mut sum = Sum::default();
    for seed in 0..SCHEDULES_EACH {
        sum.add(&Schedule::new(cloud, seed).run());
    }
    sum
}

#[test]
fn over_a_thousand_schedules_of_faults_and_kills_at_each_cloud_no_machine_is_leaked_and_none_is_doubled() {
    thread::scope(|scope| {
        for cloud in Cloud::ALL {
            scope.spawn(move || {
                let sum = schedules_of(cloud);
                println!("{cloud}: {sum:?}");
                sum.check(cloud);
            });
        }
    });
}
