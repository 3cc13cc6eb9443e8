//! The hosts of a market from one look to the next: only what has changed is read again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use nave_domain::{HostId, rate::Rate};
use nave_store::{Baselines, Snapshot, SupplyHost};

use super::{
    answers::Answers,
    rivals::{Moved, Orders},
};
use crate::fit::{Names, Supply};

/// Hosts that are in use, each as it was when it was looked at.
pub(super) type Supplies = BTreeMap<HostId, Arc<Supply>>;

/// The hosts of the last look.
#[derive(Debug, Clone, Default)]
pub(super) struct Hosts {
    pub names: Names,
    pub now: Supplies,
    /// The same without anybody on them.
    pub empty: Supplies,
    /// Those that somebody yields on.
    pub yielding: BTreeSet<HostId>,
    pub baselines: Baselines,
    pub orders: Orders,
    /// What jobs are told that no host takes.
    pub answers: Answers,
    /// Rates that no host exceeds.
    pub dearest: Rate,
}

/// What a look at the hosts has shown to be otherwise than before.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Hosts that are there no more.
    pub gone: BTreeSet<HostId>,
    /// Hosts that are new, or offered otherwise: what would do for whom may have changed.
    pub offered: BTreeSet<HostId>,
    /// Hosts of which something else has changed, mostly who is on them.
    pub used: BTreeSet<HostId>,
}

impl Hosts {
    /// Takes over what a snapshot says.
    pub fn follow(&mut self, snapshot: &Snapshot) -> Changes {
        let gone = self.now.keys().filter(|id| !snapshot.hosts.contains_key(id)).copied().collect();
        let mut changes = Changes { gone, ..Changes::default() };
        let (mut moved, mut before) = (Vec::new(), Vec::new());
        for id in &changes.gone {
            if let Some(supply) = self.now.remove(id) {
                self.names.forget(&supply);
                moved.push(Moved { host: *id, before: Some(supply.host.rate), now: None });
            }
            before.extend(self.empty.remove(id).map(|supply| (*id, supply)));
            self.yielding.remove(id);
        }
        let has_moved = self.baselines != snapshot.baselines;
        if has_moved {
            self.baselines = snapshot.baselines.clone();
        }
        for (id, host) in &snapshot.hosts {
            let known = self.now.get(id).filter(|_| !has_moved);
            if known.is_some_and(|supply| supply.host == *host) {
                continue;
            }
            if host.yielding.is_empty() {
                self.yielding.remove(id)
            } else {
                self.yielding.insert(*id)
            };
            match known.filter(|supply| is_offered_alike(&supply.host, host)) {
                Some(known) => {
                    let supply = known.used_as(host);
                    self.now.insert(*id, Arc::new(supply));
                    changes.used.insert(*id);
                }
                None => {
                    let rate = self.now.get(id).map(|supply| supply.host.rate);
                    if rate != Some(host.rate) {
                        moved.push(Moved { host: *id, before: rate, now: Some(host.rate) });
                    }
                    before.extend(self.empty.get(id).map(|supply| (*id, supply.clone())));
                    self.read(*id, host);
                    changes.offered.insert(*id);
                }
            }
        }
        if !changes.is_none() {
            let rates = self.now.values().map(|supply| supply.host.rate);
            self.dearest = rates.fold(Rate::default(), dearest);
        }
        self.orders.follow(&moved);
        self.names.forget_choices();
        self.answers.follow(&changes, &before, &self.names, &self.empty, self.dearest);
        changes
    }

    fn read(&mut self, id: HostId, host: &SupplyHost) {
        let supply = Supply::new(host, &mut self.names, &self.baselines);
        self.empty.insert(id, Arc::new(supply.emptied()));
        let before = self.now.insert(id, Arc::new(supply));
        // What the devices are known by keeps its number where they are the same.
        before.iter().for_each(|before| self.names.forget(before));
    }
}

impl Changes {
    /// Whether everything is offered as before.
    pub fn is_none(&self) -> bool {
        self.gone.is_empty() && self.offered.is_empty()
    }
}

fn dearest(a: Rate, b: Rate) -> Rate {
    Rate {
        gpu_hour: a.gpu_hour.max(b.gpu_hour),
        vcpu_hour: a.vcpu_hour.max(b.vcpu_hour),
        gib_hour: a.gib_hour.max(b.gib_hour),
    }
}

/// Whether two states of a host differ in nothing that decides for whom it would do when it is empty.
fn is_offered_alike(before: &SupplyHost, now: &SupplyHost) -> bool {
    (before.rate, before.lasts) == (now.rate, now.lasts)
        && before.terms == now.terms
        && before.inventory == now.inventory
        && before.classes == now.classes
        && before.models == now.models
}
