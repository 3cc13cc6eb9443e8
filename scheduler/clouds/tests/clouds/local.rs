//! The local cloud: its directory, and that nothing is leaked or doubled in it wherever who rents is killed.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicI64, Ordering},
    },
};

use futures_util::FutureExt as _;
use nave_clouds::{
    adapters::local::{Does, Estate, Local, Offered, Told},
    baseline::CloudQuote,
    error::{CloudError, Kind},
    keeper::Keeper,
    machine::{Demand, Row, Why},
    provider::{
        Answer, Availability, Cloud, CloudId, CloudOffer, Launch, Machine, MachineId, MachineState, Provider,
    },
    secret::Secret,
    testing::{Book, Fuse, Journal, Numbers},
};
use nave_domain::{Bytes, MicroUsd, MilliCpu, Millis, Timestamp};
use uuid::Uuid;

use crate::market::{BEGIN, owner};

const PRICE: MicroUsd = MicroUsd(500_000);
/// Random schedules of kills.
const SCHEDULES: u64 = 60;

/// The local cloud as one process rents from it: it may be killed before each call, and after.
struct Fused {
    cloud: Local,
    fuse: Arc<Fuse>,
}

impl Fused {
    fn around<'a, T: Send + 'a>(&'a self, call: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(async move {
            self.fuse.point("before a call").await;
            let answer = call.await;
            self.fuse.point("after a call").await;
            answer
        })
    }
}

impl Provider for Fused {
    fn cloud(&self) -> Cloud {
        self.cloud.cloud()
    }
    fn list_offers(&self, now: Timestamp) -> Answer<'_, Vec<CloudOffer>> {
        self.around(self.cloud.list_offers(now))
    }
    fn launch<'a>(&'a self, launch: &'a Launch, now: Timestamp) -> Answer<'a, CloudId> {
        self.around(self.cloud.launch(launch, now))
    }
    fn get<'a>(&'a self, id: &'a CloudId) -> Answer<'a, Option<Machine>> {
        self.around(self.cloud.get(id))
    }
    fn list_ours(&self) -> Answer<'_, Vec<Machine>> {
        self.around(self.cloud.list_ours())
    }
    fn delete<'a>(&'a self, id: &'a CloudId) -> Answer<'a, ()> {
        self.around(self.cloud.delete(id))
    }
}

/// A market that rents, and the owner of the machine.
struct World {
    dir: tempfile::TempDir,
    estate: Estate,
    journal: Arc<Mutex<Journal>>,
    now: AtomicI64,
    ids: Numbers,
    /// How often a machine was made, by its name.
    made: BTreeMap<String, usize>,
}

impl World {
    fn new(count: u32) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let estate = Estate::new(dir.path());
        estate.prepare().expect("made");
        estate.offer(&[offered(count)]).expect("written");
        let now = AtomicI64::new(BEGIN.0);
        Self { dir, estate, journal: Arc::default(), now, ids: Numbers::new(9), made: BTreeMap::new() }
    }

    fn cloud(&self) -> Local {
        Local::new(self.dir.path())
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().expect("nobody panicked")
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::Relaxed))
    }

    /// Time passes, and the owner makes and ends what is asked for.
    fn pass(&mut self, seconds: i64) {
        self.now.fetch_add(seconds * 1_000, Ordering::Relaxed);
        for rented in self.estate.machines().expect("read") {
            if rented.told.is_none() && owner().reads(&rented.name).is_some() {
                *self.made.entry(rented.name.clone()).or_default() += 1;
            }
            let does = match rented.told.as_ref().map(|told| told.does) {
                Some(_) | None if rented.is_returned => {
                    self.estate.forget(&rented.name).expect("removed");
                    continue;
                }
                None => Does::Boots,
                Some(Does::Boots | Does::Runs) => Does::Runs,
                Some(Does::Failed) => Does::Failed,
            };
            self.estate
                .tell(&rented.name, &Told { does, number: 33, address: Some("10.149.0.34".to_owned()) })
                .expect("told");
        }
        let running: Vec<MachineId> = self.living();
        for id in running {
            let row = self.journal().rows.get(&id).cloned();
            if let Some(row) = row.filter(|row| row.enrolled_at.is_none() && row.ending.is_none()) {
                assert!(self.journal().write(&Row { enrolled_at: Some(self.now()), ..row }));
            }
        }
    }

    /// Ours that are there.
    fn living(&self) -> Vec<MachineId> {
        let machines = self.estate.machines().expect("read");
        machines.iter().filter_map(|rented| owner().reads(&rented.name)).collect()
    }

    fn want(&mut self) -> MachineId {
        let id = MachineId(Uuid::from_u64_pair(self.ids.draw(), self.ids.draw()));
        let offer = ("part".to_owned(), "local".to_owned());
        let dead_man = self.now().after(Millis(86_400_000));
        let row = Row::intend(id, Cloud::Local, offer, PRICE, PRICE, self.now(), dead_man);
        assert!(self.journal().write(&row));
        id
    }

    fn row(&self, id: MachineId) -> Row {
        self.journal().rows[&id].clone()
    }

    fn demand(&self, id: MachineId, demand: Demand) {
        let row = self.row(id);
        assert!(self.journal().write(&Row { demand, ..row }));
    }

    /// A process that looks once at everything, and whether it was killed at its `left`-th point.
    fn killed_tick(&self, left: i64) -> bool {
        let fuse = Arc::new(Fuse::new(left));
        let (cloud, book) =
            (Fused { cloud: self.cloud(), fuse: fuse.clone() }, Book { journal: self.journal.clone(), fuse });
        let (now, boot) = (|| self.now(), |row: &Row| Secret::new(format!("#!/bin/sh\njoin {}", row.id)));
        let keeper = Keeper::new(&cloud, &book, owner(), &now, &boot);
        keeper.tick().now_or_never().map(|done| done.expect("the ledger works")).is_none()
    }

    fn tick(&self) {
        assert!(!self.killed_tick(i64::MAX));
    }

    fn settle(&mut self) {
        for _ in 0..25 {
            self.pass(30);
            self.tick();
        }
    }
}

fn offered(count: u32) -> Offered {
    Offered {
        id: "part".to_owned(),
        region: "local".to_owned(),
        count,
        price: PRICE,
        cpu: MilliCpu(1_000),
        memory: Bytes(Bytes::GIB),
        disk: Bytes(Bytes::GIB),
        devices: 1,
        model: "H100 SXM5 80GB".to_owned(),
        vram_each: Some(Bytes(80 * Bytes::GIB)),
    }
}

fn launch_of(world: &World, number: u128) -> Launch {
    let offers = world.cloud().list_offers(BEGIN).now_or_never().expect("at once").expect("offers");
    Launch {
        tag: owner().tag(MachineId(Uuid::from_u128(number))),
        offer: offers[0].clone(),
        boot: Secret::new("#!/bin/sh\njoin ticket-0123456789"),
        dead_man: BEGIN.after(Millis(7_200_000)),
        price_max: PRICE,
    }
}

fn launched(world: &World, launch: &Launch) -> Result<CloudId, CloudError> {
    world.cloud().launch(launch, BEGIN).now_or_never().expect("at once")
}

#[test]
fn a_machine_is_launched_runs_and_is_gone_once_its_owner_has_ended_it() {
    let mut world = World::new(2);
    let launch = launch_of(&world, 1);
    let id = launched(&world, &launch).expect("launched");
    let state = |world: &World| {
        let found = world.cloud().get(&id).now_or_never().expect("at once").expect("asked");
        found.map(|machine| machine.state)
    };
    assert_eq!(state(&world), Some(MachineState::Starting));
    let script = world.estate.boot(id.as_str());
    assert_eq!(fs::read_to_string(&script).expect("read"), "#!/bin/sh\njoin ticket-0123456789");
    let mode = fs::metadata(&script).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it has a ticket in it");
    world.pass(1);
    world.pass(1);
    assert_eq!(state(&world), Some(MachineState::Running));
    let listed = world.cloud().list_ours().now_or_never().expect("at once").expect("listed");
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].name.clone(), listed[0].price), (launch.tag.to_string(), Some(PRICE)));
    assert_eq!(listed[0].address.as_deref(), Some("10.149.0.34"));
    world.cloud().delete(&id).now_or_never().expect("at once").expect("given back");
    assert_eq!(state(&world), Some(MachineState::Deleting), "its owner has not ended it yet");
    world.pass(1);
    assert_eq!(state(&world), None);
    let again = world.cloud().delete(&id).now_or_never().expect("at once");
    assert_eq!(again.expect_err("gone").kind, Kind::NotFound);
}

#[test]
fn a_launch_that_is_asked_for_again_makes_no_other_machine() {
    let world = World::new(1);
    let launch = launch_of(&world, 1);
    let id = launched(&world, &launch).expect("launched");
    assert_eq!(launched(&world, &launch).expect("it is there"), id);
    assert_eq!(world.estate.machines().expect("read").len(), 1);
    let other = launched(&world, &launch_of(&world, 2)).expect_err("there is one part only");
    assert_eq!(other.kind, Kind::OutOfStock);
    let offers = world.cloud().list_offers(BEGIN).now_or_never().expect("at once").expect("offers");
    assert_eq!(offers[0].availability, Availability::SoldOut);
}

#[test]
fn what_was_begun_and_killed_is_no_machine() {
    let world = World::new(1);
    let begun = world.dir.path().join("machines/.new-nave-test1-0");
    fs::create_dir(&begun).expect("made");
    fs::write(begun.join("boot"), "a ticket").expect("written");
    assert_eq!(world.estate.machines().expect("read"), []);
    world.estate.prepare().expect("prepared");
    assert!(!begun.exists());
}

#[test]
fn a_machine_that_cannot_be_read_is_still_there() {
    let world = World::new(1);
    let launch = launch_of(&world, 1);
    let id = launched(&world, &launch).expect("launched");
    fs::write(world.dir.path().join("machines").join(id.as_str()).join("wish.json"), "{").expect("written");
    let listed = world.cloud().list_ours().now_or_never().expect("at once").expect("listed");
    assert_eq!((listed.len(), listed[0].price), (1, None));
}

#[test]
fn nothing_is_launched_above_its_price_and_made_up_prices_are_no_quotes() {
    let world = World::new(1);
    let dear = Launch { price_max: MicroUsd(PRICE.0 - 1), ..launch_of(&world, 1) };
    assert_eq!(launched(&world, &dear).expect_err("too dear").kind, Kind::PriceRise);
    assert_eq!(CloudQuote::of(&dear.offer), None, "{:?}", dear.offer);
    assert!(!Cloud::ALL.contains(&Cloud::Local));
    assert_eq!(Cloud::named("local"), Some(Cloud::Local));
}

#[test]
fn a_cloud_without_an_owner_has_done_nothing() {
    let cloud = Local::new("/nonexistent/nave");
    let error = cloud.list_ours().now_or_never().expect("at once").expect_err("nobody there");
    assert_eq!(error.kind, Kind::NotSent);
}

#[test]
fn wherever_a_launch_or_a_return_is_killed_there_is_one_machine_and_then_none() {
    for left in 0.. {
        let mut world = World::new(3);
        let mut id = world.want();
        let is_killed = world.killed_tick(left);
        for _ in 0..20 {
            world.pass(30);
            world.tick();
            if world.row(id).ending.is_some() {
                id = world.want();
            }
        }
        assert_eq!(world.living(), [id], "killed at {left}");
        assert_eq!(world.made.values().sum::<usize>(), 1, "killed at {left}");
        world.demand(id, Demand::Released);
        world.killed_tick(left);
        world.settle();
        assert_eq!(world.living(), [], "killed at {left}");
        assert!(world.row(id).is_closed(), "killed at {left}");
        if !is_killed {
            assert!(left > 10, "a launch has more lines than {left}");
            break;
        }
    }
}

#[test]
fn over_random_schedules_of_kills_nothing_is_leaked_or_doubled_and_others_are_left_alone() {
    for seed in 0..SCHEDULES {
        let mut world = World::new(4);
        let mut numbers = Numbers::new(seed);
        fs::create_dir(world.dir.path().join("machines/someone-elses")).expect("made");
        let mut id = world.want();
        for _ in 0..40 {
            world.pass(numbers.between(1, 90));
            world.killed_tick(numbers.between(0, 24));
            if numbers.permille(150) {
                world.demand(id, Demand::Released);
            }
            if world.row(id).ending.is_some() {
                id = world.want();
            }
        }
        world.demand(id, Demand::Released);
        world.settle();
        assert_eq!(world.living(), [], "{seed}");
        assert!(world.journal().rows.values().all(Row::is_closed), "{seed}");
        assert!(!world.made.is_empty());
        for (name, times) in &world.made {
            let row = owner().reads(name).and_then(|id| world.journal().rows.get(&id).cloned());
            assert!(row.is_some() && *times == 1, "{seed}: {name} was made {times} times");
        }
        assert_eq!(world.estate.machines().expect("read").len(), 1, "{seed}: another's stays");
    }
}

#[test]
fn a_machine_that_its_owner_takes_away_is_lost() {
    let mut world = World::new(1);
    let id = world.want();
    world.settle();
    world.estate.forget(&owner().tag(id).to_string()).expect("taken away");
    world.settle();
    assert_eq!(world.row(id).ending.map(|ending| ending.why), Some(Why::Lost));
}
