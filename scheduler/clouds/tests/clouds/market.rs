//! A market that rents machines from one double, in processes that may be killed.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
};

use futures_util::FutureExt as _;
use nave_clouds::{
    adapters::{Settings, open},
    keeper::Keeper,
    ledger::Broken,
    machine::{Demand, Row},
    provider::{Cloud, MachineId, Owner, Provider},
    secret::Secret,
    testing::{Book, Double, Faults, Fuse, Journal, KEY, Numbers, Site, Wire},
};
use nave_domain::{MicroUsd, Millis, Timestamp};
use uuid::Uuid;

pub const BEGIN: Timestamp = Timestamp(1_795_000_000_000);

/// A process that stands at a point.
pub type Process = Pin<Box<dyn Future<Output = Result<(), Broken>> + Send>>;

pub fn owner() -> Owner {
    Owner::new("test1").expect("fits")
}

pub fn settings(base_url: &str) -> Settings {
    Settings {
        base_url: Some(base_url.to_owned()),
        key_id: "client".to_owned(),
        key: Secret::new(KEY),
        image: "184".to_owned(),
        ssh_key: "ops".to_owned(),
    }
}

pub struct Market {
    pub cloud: Cloud,
    pub double: Arc<Mutex<Double>>,
    pub journal: Arc<Mutex<Journal>>,
    /// What is offered and chosen: id and region.
    pub offer: (String, String),
    ids: Numbers,
}

impl Market {
    pub fn new(cloud: Cloud, seed: u64, faults: Faults) -> Self {
        let site = Site::new(cloud, seed, faults, BEGIN);
        let double = Arc::new(Mutex::new(Double::new(site, owner())));
        let mut market = Self {
            cloud,
            double,
            journal: Arc::default(),
            offer: Default::default(),
            ids: Numbers::new(seed ^ 0xfeed),
        };
        market.choose();
        market
    }

    /// Chooses the offer that can be had, as long as nothing goes wrong.
    fn choose(&mut self) {
        let faults = std::mem::take(&mut self.double().site.faults);
        let offers = self.provider().list_offers(BEGIN).now_or_never().expect("at once").expect("offers");
        let available = |offer: &&nave_clouds::CloudOffer| {
            offer.devices == 1 && offer.availability != nave_clouds::provider::Availability::SoldOut
        };
        let offer = offers.iter().find(available).expect("one that can be had");
        self.offer = (offer.id.clone(), offer.region.clone());
        self.double().site.faults = faults;
    }

    pub fn double(&self) -> MutexGuard<'_, Double> {
        self.double.lock().expect("nobody panicked")
    }

    pub fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().expect("nobody panicked")
    }

    pub fn now(&self) -> Timestamp {
        self.double().site.now
    }

    pub fn pass(&self, seconds: i64) {
        self.double().site.pass(Millis(seconds * 1_000));
    }

    pub fn wire(&self, fuse: &Arc<Fuse>) -> Wire {
        Wire { double: self.double.clone(), fuse: fuse.clone() }
    }

    pub fn provider(&self) -> Box<dyn Provider> {
        open(self.cloud, settings("http://double"), Arc::new(self.wire(&Arc::new(Fuse::whole()))))
    }

    /// Writes down that a machine is wanted.
    pub fn want(&mut self) -> MachineId {
        let id = MachineId(Uuid::from_u64_pair(self.ids.draw(), self.ids.draw()));
        let (now, price) = (self.now(), MicroUsd(2_000_000));
        let most = MicroUsd(price.0 * 3 / 2);
        let row =
            Row::intend(id, self.cloud, self.offer.clone(), price, most, now, now.after(Millis(86_400_000)));
        assert!(self.journal().write(&row));
        id
    }

    pub fn row(&self, id: MachineId) -> Row {
        self.journal().rows[&id].clone()
    }

    /// What others write into a row.
    pub fn change(&self, id: MachineId, change: impl FnOnce(&mut Row)) {
        let mut row = self.row(id);
        change(&mut row);
        assert!(self.journal().write(&row));
    }

    pub fn demand(&self, id: MachineId, demand: Demand) {
        if self.row(id).demand != demand {
            self.change(id, |row| row.demand = demand);
        }
    }

    /// Hosts whose machine runs enrol.
    pub fn enrol(&self) {
        let (now, mut running) = (self.now(), Vec::new());
        for real in self.double().site.living(&owner()) {
            running.extend(owner().reads(&real.name).filter(|_| real.ready_at <= now && !real.is_broken));
        }
        for id in running {
            let is_new = self
                .journal()
                .rows
                .get(&id)
                .is_some_and(|row| row.enrolled_at.is_none() && row.ending.is_none());
            if is_new {
                self.change(id, |row| row.enrolled_at = Some(now));
            }
        }
    }

    /// A process that looks once at everything.
    pub fn process(&self, fuse: &Arc<Fuse>) -> Process {
        let (wire, book) = (self.wire(fuse), Book { journal: self.journal.clone(), fuse: fuse.clone() });
        let cloud = self.cloud;
        Box::pin(async move {
            let provider = open(cloud, settings("http://double"), Arc::new(wire.clone()));
            let now = || wire.now();
            let boot = |row: &Row| Secret::new(format!("#!/bin/sh\njoin {}", row.id));
            Keeper::new(provider.as_ref(), &book, owner(), &now, &boot).tick().await
        })
    }

    /// A process that is not killed.
    pub fn tick(&self) {
        let done = self.process(&Arc::new(Fuse::whole())).now_or_never();
        done.expect("nothing waits").expect("the ledger works");
    }

    /// A process that is killed at its `left`-th point, if it gets that far.
    pub fn killed_tick(&self, left: i64) -> bool {
        self.process(&Arc::new(Fuse::new(left))).now_or_never().is_none()
    }
}
