//! A thousand random schedules of faults and kills: in the end no machine is leaked, none is doubled, and
//! every cost is accounted.

use std::{collections::BTreeMap, sync::Arc, thread};

use futures_util::FutureExt as _;
use nave_clouds::{
    machine::Demand,
    provider::{Cloud, MachineId},
    testing::{Faults, Fuse, Numbers},
};
use nave_domain::{MicroUsd, Millis, Timestamp};

use crate::market::{Market, Process, owner};

/// Schedules of each cloud: over a thousand of all.
const SCHEDULES_EACH: u64 = 150;
/// Looks while things go wrong.
const WILD: usize = 45;
/// Looks until it must be quiet.
const QUIET_MAX: usize = 100;

/// Something that needs one machine, from a time until another.
struct Need {
    from: Timestamp,
    until: Timestamp,
    row: Option<MachineId>,
}

struct Schedule {
    seed: u64,
    market: Market,
    numbers: Numbers,
    needs: Vec<Need>,
    /// Processes that stand still, and may go on long after.
    stalled: Vec<(Arc<Fuse>, Process)>,
    kills: u64,
}

impl Schedule {
    fn new(cloud: Cloud, seed: u64) -> Self {
        let market = Market::new(cloud, seed, Faults::MANY);
        let mut numbers = Numbers::new(seed ^ 0xabcd);
        let need = |_| {
            let from = market.now().after(Millis(numbers.between(0, 600_000)));
            Need { from, until: from.after(Millis(numbers.between(60_000, 2_400_000))), row: None }
        };
        let needs = (0..2).map(need).collect();
        Self { seed, market, numbers, needs, stalled: Vec::new(), kills: 0 }
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
                let late = now.since(need.until) > Millis(600_000);
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
        let left = self.numbers.between(0, 24);
        if choice < 45 {
            self.kills += u64::from(self.market.killed_tick(left));
        } else if choice < 52 {
            let fuse = Arc::new(Fuse::new(left));
            let mut process = self.market.process(&fuse);
            if process.as_mut().now_or_never().is_none() {
                self.stalled.push((fuse, process));
            }
        } else {
            self.market.tick();
        }
        if !self.stalled.is_empty() && self.numbers.permille(150) {
            self.wake();
        }
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
        self.market.double().site.faults = Faults::default();
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
        let mut sum = Sum { kills: self.kills, ..Sum::default() };
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
            held += row.held.len();
        }
        let unseen = made.values().sum::<usize>() - held;
        let truth = site.cost(&owner());
        let hour = MicroUsd(4_000_000);
        assert!(accounted.0 + hour.0 * unseen as i64 >= truth.0, "{what}: {accounted} of {truth}");
        assert!(accounted.0 <= truth.0 + hour.0 / 2 * held as i64, "{what}: {accounted} of {truth}");
    }
}

/// What came of some schedules, to see that what they are about happened.
#[derive(Default)]
struct Sum {
    kills: u64,
    /// Rows by why they ended.
    endings: BTreeMap<&'static str, u64>,
    /// Calls that failed, by why.
    errors: BTreeMap<&'static str, u64>,
    /// Launches of which two machines came.
    twice: u64,
    /// Machines that were given back more than once.
    again: u64,
}

impl Sum {
    fn add(&mut self, other: &Self) {
        self.kills += other.kills;
        self.twice += other.twice;
        self.again += other.again;
        for (why, count) in &other.endings {
            *self.endings.entry(why).or_default() += count;
        }
        for (why, count) in &other.errors {
            *self.errors.entry(why).or_default() += count;
        }
    }
}

fn schedules_of(cloud: Cloud) -> Sum {
    let mut sum = Sum::default();
    for seed in 0..SCHEDULES_EACH {
        sum.add(&Schedule::new(cloud, seed).run());
    }
    sum
}

#[test]
fn over_a_thousand_schedules_of_faults_and_kills_no_machine_is_leaked_and_none_is_doubled() {
    let mut sum = Sum::default();
    thread::scope(|scope| {
        let threads = Cloud::ALL.map(|cloud| scope.spawn(move || schedules_of(cloud)));
        for thread in threads {
            sum.add(&thread.join().expect("its schedules are fine"));
        }
    });
    let schedules = SCHEDULES_EACH * 7;
    assert!(
        sum.kills > schedules * 5 && sum.twice > 50 && sum.again > 50,
        "{} {} {}",
        sum.kills,
        sum.twice,
        sum.again
    );
    for why in [
        "released",
        "too_dear",
        "broke",
        "never_launched",
        "out_of_stock",
        "quota",
        "no_balance",
        "idle",
        "lost",
    ] {
        assert!(sum.endings.contains_key(why), "{why} of {:?}", sum.endings);
    }
    for why in ["rate_limited", "unavailable", "timed_out", "not_sent", "malformed", "refused", "not_found"] {
        assert!(sum.errors.contains_key(why), "{why} of {:?}", sum.errors);
    }
}
