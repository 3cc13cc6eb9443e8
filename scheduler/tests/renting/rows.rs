//! A market with its rows in Postgres that rents from one double, in processes that may be killed.

use std::{
    collections::BTreeSet,
    future::Future,
    net::Ipv6Addr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use nave_clouds::{
    Cloud, Keeper, Ledger, Owner, Row, Secret,
    adapters::{Settings, open},
    ledger::{Attempt, Broken, Kept},
    machine::Demand,
    provider::{Availability, CloudOffer, MachineId, Provider},
    testing::{Double, Faults, Fuse, KEY, Numbers, Site, Wire},
};
use nave_domain::{
    Bytes, HostId, JobId, MicroUsd, MilliCpu, Millis, Timestamp,
    host::{Inventory, Runtime, Term},
    job::{Egress, JobRequest},
    rate::Rate,
};
use nave_scheduler::cloud::ledger::{Rows, known, read};
use nave_store::{Joining, MachineDemand, NewMachine, Store, StoreError, Submission, testing};
use serde_json::json;
use tokio::time::sleep;
use uuid::Uuid;

pub const BEGIN: Timestamp = Timestamp(1_795_000_000_000);
const PLATFORM: &str = "platform";

/// A process that stands at a point.
pub type Process = Pin<Box<dyn Future<Output = Result<(), Broken>> + Send>>;

pub fn owner() -> Owner {
    Owner::new("test1").expect("fits")
}

/// A market in a database of its own, with money and a job that waits.
pub async fn store() -> (Store, JobId) {
    let (_, store, job) = opened().await;
    (store, job)
}

async fn opened() -> (String, Store, JobId) {
    let (url, _) = testing::database().await;
    let store = Store::connect(&url).await.expect("connect");
    store.migrate().await.expect("migrate");
    let customer = store.customer_ensure("customer").await.expect("a customer");
    store.credit(customer, "first", MicroUsd(10_000_000)).await.expect("credit");
    let request = JobRequest::of(vec!["true".into()]);
    let submission = Submission { customer, key: "job", hash: [0; 32], request: &request };
    let job = store.job_submit(&submission).await.expect("submitted").job;
    (url, store, job)
}

/// What a host says it has.
pub fn inventory() -> Inventory {
    Inventory {
        milli_cpu: MilliCpu(4_000),
        memory: Bytes(14 * Bytes::GIB),
        disk: Bytes(40 * Bytes::GIB),
        devices: Vec::new(),
        cpu_model: testing::CPU_MODEL.into(),
        os: "test".into(),
        kernel: "test".into(),
        runtime: Runtime::Simulated,
        egress: vec![Egress::Public, Egress::None],
        agent: "test".into(),
    }
}

/// Makes a host with a ticket of this id.
pub async fn join(store: &Store, machine: Uuid, hotkey: &str) -> Result<HostId, StoreError> {
    let [ticket, agent_key, mesh_key] =
        ["", "agent ", "mesh "].map(|what| format!("{what}{}", machine.simple()));
    let joining = Joining {
        ticket: &ticket,
        hotkey,
        agent_key: &agent_key,
        mesh_key: &mesh_key,
        host: HostId(Uuid::now_v7()),
        address: Ipv6Addr::from(machine.as_u128()),
        name: None,
        rate: Rate::default(),
        term: Term::OnDemand,
        region: None,
        replaces: None,
    };
    store.host_join(&joining).await.map(|joined| joined.host)
}

/// The rows as one process sees them: it may be killed before each call, and after it.
struct Fused {
    rows: Rows,
    fuse: Arc<Fuse>,
}

impl Fused {
    fn between<'a, T: Send + 'a>(&'a self, call: Kept<'a, T>) -> Kept<'a, T> {
        Box::pin(async move {
            self.fuse.point("before rows").await;
            let done = call.await;
            self.fuse.point("after rows").await;
            done
        })
    }
}

impl Ledger for Fused {
    fn open(&self, cloud: Cloud) -> Kept<'_, Vec<Row>> {
        self.between(self.rows.open(cloud))
    }

    fn find(&self, id: MachineId) -> Kept<'_, Option<Row>> {
        self.between(self.rows.find(id))
    }

    fn last_asked(&self, cloud: Cloud) -> Kept<'_, Option<Timestamp>> {
        self.between(self.rows.last_asked(cloud))
    }

    fn write<'a>(&'a self, row: &'a Row, attempt: Option<&'a Attempt>) -> Kept<'a, bool> {
        self.between(self.rows.write(row, attempt))
    }

    fn note<'a>(&'a self, attempt: &'a Attempt) -> Kept<'a, ()> {
        self.between(self.rows.note(attempt))
    }
}

pub struct Market {
    pub cloud: Cloud,
    pub double: Arc<Mutex<Double>>,
    pub store: Store,
    url: String,
    job: JobId,
    /// What is offered and chosen: id and region.
    offer: (String, String),
    ids: Numbers,
    wanted: Vec<Uuid>,
}

impl Market {
    pub async fn new(cloud: Cloud, seed: u64, faults: Faults) -> Self {
        let site = Site::new(cloud, seed, Faults::default(), BEGIN);
        let double = Arc::new(Mutex::new(Double::new(site, owner())));
        let (url, store, job) = opened().await;
        let (offer, ids, wanted) = (Default::default(), Numbers::new(seed ^ 0xfeed), Vec::new());
        let mut market = Self { cloud, double, store, url, job, offer, ids, wanted };
        let offers = market.offers().await;
        let can_be_had =
            offers.iter().find(|offer| offer.devices == 1 && offer.availability != Availability::SoldOut);
        let offer = can_be_had.expect("one that can be had");
        market.offer = (offer.id.clone(), offer.region.clone());
        market.double().site.faults = faults;
        market
    }

    pub fn double(&self) -> MutexGuard<'_, Double> {
        self.double.lock().expect("nobody panicked")
    }

    pub fn now(&self) -> Timestamp {
        self.double().site.now
    }

    pub fn pass(&self, seconds: i64) {
        self.double().site.pass(Millis(seconds * 1_000));
    }

    /// All that is offered.
    pub async fn offers(&self) -> Vec<CloudOffer> {
        self.provider(&Arc::new(Fuse::whole())).list_offers(self.now()).await.expect("offers")
    }

    fn provider(&self, fuse: &Arc<Fuse>) -> Box<dyn Provider> {
        let settings = Settings {
            base_url: Some("http://double".to_owned()),
            key_id: "client".to_owned(),
            key: Secret::new(KEY),
            image: "184".to_owned(),
            ssh_key: "ops".to_owned(),
        };
        open(self.cloud, settings, Arc::new(Wire { double: self.double.clone(), fuse: fuse.clone() }))
    }

    /// Writes down that a machine is wanted.
    pub async fn want(&mut self) -> Uuid {
        let id = Uuid::from_u64_pair(self.ids.draw(), self.ids.draw());
        let (now, price) = (self.now(), MicroUsd(2_000_000));
        let (most, dead_man) = (MicroUsd(price.0 * 3 / 2), now.after(Millis(86_400_000)));
        let row = Row::intend(MachineId(id), self.cloud, self.offer.clone(), price, most, now, dead_man);
        let new = NewMachine {
            machine: id,
            cloud: self.cloud.name(),
            known: known(&row).expect("written"),
            shape: json!({}),
            hotkey: PLATFORM,
            job: self.job,
        };
        // A machine that turned up may be written down between the look and the wish.
        loop {
            let seen = self.store.rent_snapshot(Millis(0)).await.expect("a snapshot").seen;
            match self.store.machines_want(seen, std::slice::from_ref(&new)).await {
                Err(StoreError::Stale(_)) => {}
                done => break done.expect("wanted"),
            }
        }
        self.wanted.push(id);
        id
    }

    pub async fn row(&self, id: Uuid) -> Row {
        let row = self.store.machine_find(id).await.expect("the database").expect("a row");
        read(&row).expect("it is understood")
    }

    /// All rows, those of machines that turned up too.
    pub async fn rows(&self) -> Vec<Row> {
        let rows = self.store.machine_list(10_000).await.expect("the database");
        rows.iter().map(|row| read(row).expect("it is understood")).collect()
    }

    /// What others write into a row; processes that stand still may have written it since.
    pub async fn demand(&self, id: Uuid, demand: MachineDemand) {
        let same = match demand {
            MachineDemand::Wanted => Demand::Wanted,
            MachineDemand::Idle(since) => Demand::Idle { since },
            MachineDemand::Released => Demand::Released,
        };
        let row = self.row(id).await;
        if row.demand != same {
            self.store.machine_demand(id, row.version, demand).await.expect("the database");
        }
    }

    /// Hosts whose machine runs enrol, unless the machine is going back.
    pub async fn enrol(&self) {
        let now = self.now();
        let running: BTreeSet<Uuid> = {
            let double = self.double();
            let runs = double
                .site
                .living(&owner())
                .into_iter()
                .filter(|real| real.ready_at <= now && !real.is_broken);
            runs.filter_map(|real| owner().reads(&real.name)).map(|id| id.0).collect()
        };
        for id in self.wanted.iter().filter(|id| running.contains(id)) {
            match join(&self.store, *id, PLATFORM).await {
                Ok(_) | Err(StoreError::Stale(_) | StoreError::Constraint(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// A process that looks once at everything.
    pub fn process(&self, fuse: &Arc<Fuse>) -> Process {
        self.process_at(self.store.clone(), fuse)
    }

    fn process_at(&self, store: Store, fuse: &Arc<Fuse>) -> Process {
        let provider = self.provider(fuse);
        let wire = Wire { double: self.double.clone(), fuse: fuse.clone() };
        let now = Arc::new(move || wire.now());
        let rows =
            Fused { rows: Rows { store, hotkey: String::new(), now: now.clone() }, fuse: fuse.clone() };
        Box::pin(async move {
            let now = || now();
            let boot = |row: &Row| Secret::new(format!("#!/bin/sh\njoin {}", row.id));
            Keeper::new(provider.as_ref(), &rows, owner(), &now, &boot).tick().await
        })
    }

    /// A process that is not killed; says how many points it has passed.
    pub async fn tick(&self) -> u64 {
        let fuse = Arc::new(Fuse::whole());
        self.process(&fuse).await.expect("the ledger works");
        fuse.passed()
    }

    /// A process until it is over or stands still; none when it is over.
    pub async fn stall(&self, left: u64) -> Option<(Arc<Fuse>, Process)> {
        let fuse = Arc::new(Fuse::new(i64::try_from(left).expect("it is small")));
        let mut process = self.process(&fuse);
        tokio::select! {
            done = &mut process => {
                done.expect("the ledger works");
                None
            }
            () = blown(&fuse) => Some((fuse, process)),
        }
    }

    /// A process that is killed after a while, wherever it is then: in the middle of a write, too.
    pub async fn cut(&self, micros: u64) {
        // Its connections end with it.
        let store = Store::connect(&self.url).await.expect("connect");
        let process = self.process_at(store, &Arc::new(Fuse::whole()));
        tokio::select! {
            done = process => done.expect("the ledger works"),
            () = sleep(Duration::from_micros(micros)) => {}
        }
    }
}

async fn blown(fuse: &Fuse) {
    while !fuse.has_blown() {
        sleep(Duration::from_millis(1)).await;
    }
}
