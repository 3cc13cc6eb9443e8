//! Some dozens of the random schedules of faults and kills that the keeper is tested with, on Postgres:
//! in the end no machine is leaked, none is doubled, and every cost is accounted.

use std::{collections::BTreeMap, sync::Arc, thread};

use nave_clouds::{
    Cloud, Row,
    provider::MachineState,
    testing::{Faults, Fuse, Numbers, Site},
};
use nave_domain::{MicroUsd, Millis, Timestamp};
use nave_store::MachineDemand;
use tokio::runtime::Builder;
use uuid::Uuid;

use crate::rows::{Market, Process, owner};

/// Schedules of each of the clouds: a database makes each of them take seconds, and a thousand of each are in memory.
const SCHEDULES_EACH: u64 = 12;
/// Those whose shapes differ most.
const CLOUDS: [Cloud; 3] = [Cloud::Shadeform, Cloud::Lambda, Cloud::Verda];
/// Looks while things go wrong.
const WILD: usize = 45;
/// Looks until it must be quiet.
const QUIET_MAX: usize = 100;

/// Something that needs one machine, from a time until another.
struct Need {
    from: Timestamp,
    until: Timestamp,
    machine: Option<Uuid>,
}

struct Schedule {
    what: String,
    market: Market,
    numbers: Numbers,
    needs: Vec<Need>,
    /// Processes that stand still, and may go on long after.
    stalled: Vec<(Arc<Fuse>, Process)>,
    /// How many points the last process that came to its end has passed.
    points: u64,
}

impl Schedule {
    async fn new(cloud: Cloud, seed: u64) -> Self {
        let market = Market::new(cloud, seed, Faults::MANY).await;
        let mut numbers = Numbers::new(seed ^ 0xabcd);
        let need = |_| {
            let from = market.now().after(Millis(numbers.between(0, 600_000)));
            Need { from, until: from.after(Millis(numbers.between(60_000, 2_400_000))), machine: None }
        };
        let needs = (0..2).map(need).collect();
        Self { what: format!("{cloud} {seed}"), market, numbers, needs, stalled: Vec::new(), points: 0 }
    }

    /// Whoever needs a machine and has none that is for it wants one; who is done lets go.
    async fn need(&mut self, forever: bool) {
        let now = self.market.now();
        for need in &mut self.needs {
            let is_on = now >= need.from && (now < need.until || forever);
            let open = match need.machine {
                Some(id) if self.market.row(id).await.ending.is_none() => Some(id),
                Some(_) | None => None,
            };
            match open {
                None if is_on => need.machine = Some(self.market.want().await),
                None => {}
                Some(id) if is_on => self.market.demand(id, MachineDemand::Wanted).await,
                Some(id) => {
                    let late = now.since(need.until) > Millis(600_000);
                    let idle = if late { MachineDemand::Released } else { MachineDemand::Idle(need.until) };
                    self.market.demand(id, idle).await;
                }
            }
        }
    }

    /// A look in which things go wrong: the process may be killed at any point, or stand still there.
    async fn wild(&mut self) {
        self.market.pass(self.numbers.between(1, 60));
        self.market.enrol().await;
        self.need(false).await;
        let (choice, left) = (self.numbers.below(100), self.numbers.below(self.points));
        match choice {
            0..35 => drop(self.market.stall(left).await),
            35..45 => self.market.cut(self.numbers.below(6_000)).await,
            45..52 => self.stalled.extend(self.market.stall(left).await),
            _ => self.points = self.market.tick().await,
        }
        if !self.stalled.is_empty() && self.numbers.permille(150) {
            self.wake().await;
        }
    }

    /// A process that stood still goes on, and does not know that time has passed.
    async fn wake(&mut self) {
        let (fuse, process) = self.stalled.remove(0);
        fuse.mend();
        // What it held in Postgres may have been given up meanwhile: then it has failed.
        drop(process.await);
    }

    /// Nothing goes wrong any more, until all is as it should be for a while.
    async fn quiet(&mut self, forever: bool) {
        let mut held = 0;
        for _ in 0..QUIET_MAX {
            self.market.pass(60);
            self.market.enrol().await;
            self.need(forever).await;
            self.market.tick().await;
            let is_done = if forever { self.is_served() } else { self.is_empty().await };
            held = if is_done { held + 1 } else { 0 };
            if held > 6 {
                return;
            }
        }
        panic!("{}: not quiet\n{:#?}", self.what, self.market.double().site.living(&owner()));
    }

    /// Each need has the one machine that its row keeps, and there is no other.
    fn is_served(&self) -> bool {
        let double = self.market.double();
        let living = double.site.living(&owner());
        let mut living: Vec<Uuid> =
            living.iter().filter_map(|real| owner().reads(&real.name)).map(|id| id.0).collect();
        let mut wanted: Vec<Uuid> = self.needs.iter().filter_map(|need| need.machine).collect();
        living.sort_unstable();
        wanted.sort_unstable();
        living == wanted
    }

    async fn is_empty(&self) -> bool {
        let is_closed = self.market.rows().await.iter().all(Row::is_closed);
        is_closed && self.market.double().site.living(&owner()).is_empty()
    }

    async fn run(mut self) {
        for _ in 0..WILD {
            self.wild().await;
        }
        while !self.stalled.is_empty() {
            self.wake().await;
        }
        {
            let site = &mut self.market.double().site;
            (site.faults, site.price) = (Faults::default(), Site::PRICE);
        }
        self.quiet(true).await;
        let end = self.market.now();
        for need in &mut self.needs {
            need.until = end;
        }
        self.quiet(false).await;
        self.check().await;
        self.balance().await;
    }

    /// The ledger says of all machines what their rows say, whoever was killed while he wrote them.
    async fn balance(&self) {
        let problems = self.market.store.ledger_audit().await.expect("an audit");
        assert_eq!(problems, Vec::<String>::new(), "{}", self.what);
        let (rows, billing) = (self.market.rows().await, self.market.cloud.terms().billing);
        let cost = rows.iter().map(|row| row.cost(billing, self.market.now()).0).sum();
        let paid = self.market.store.clouds_paid().await.expect("an account");
        assert_eq!(paid, MicroUsd(cost), "{}", self.what);
    }

    async fn check(&self) {
        let rows = self.market.rows().await;
        let (double, what) = (self.market.double(), &self.what);
        let site = &double.site;
        assert!(site.wrongs.is_empty(), "{what}: {:?}", site.wrongs);
        assert!(site.launches.values().all(|times| *times == 1), "{what}: {:?}", site.launches);
        let mut others = site.machines.values().filter(|real| owner().reads(&real.name).is_none());
        assert!(others.all(|real| real.gone_at.is_none()), "{what}");
        let mut made: BTreeMap<Uuid, usize> = BTreeMap::new();
        for id in site.machines.values().filter_map(|real| owner().reads(&real.name)) {
            *made.entry(id.0).or_default() += 1;
        }
        let (mut accounted, mut held) = (MicroUsd::ZERO, 0);
        for row in &rows {
            // One that was gone before any list showed it is paid for, and nobody here can know.
            assert!(row.held.len() <= made.get(&row.id.0).copied().unwrap_or(0), "{what}: {row:#?}");
            accounted.0 += row.cost(site.cloud.terms().billing, site.now).0;
            // What no list has shown costs what it was quoted, as far as anybody here knows.
            held += row.held.values().filter(|held| held.state != MachineState::Unknown).count();
        }
        let unseen = made.values().sum::<usize>() - held;
        let (truth, hour) = (site.cost(&owner()), Site::PRICE_MAX.0);
        assert!(accounted.0 + hour * unseen as i64 >= truth.0, "{what}: {accounted} of {truth}");
        assert!(accounted.0 <= truth.0 + hour / 2 * (held + unseen) as i64, "{what}: {accounted} of {truth}");
    }
}

#[test]
fn over_some_dozens_of_schedules_on_postgres_no_machine_is_leaked_and_none_is_doubled() {
    let schedules_of = |cloud| {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        for seed in 0..SCHEDULES_EACH {
            runtime.block_on(async { Schedule::new(cloud, seed).await.run().await });
        }
    };
    thread::scope(|scope| {
        CLOUDS.into_iter().for_each(|cloud| drop(scope.spawn(move || schedules_of(cloud))))
    });
}
