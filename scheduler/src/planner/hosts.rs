//! The hosts of a market from one look to the next: only what has changed is read again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use nave_domain::HostId;
use nave_store::{Baselines, Snapshot, SupplyHost};

use super::rivals::{Moved, Orders};
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
    pub baselines: Baselines,
    pub orders: Orders,
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
        let mut moved = Vec::new();
        for id in &changes.gone {
            if let Some(supply) = self.now.remove(id) {
                self.names.forget(&supply);
                moved.push(Moved { host: *id, before: Some(supply.host.rate), now: None });
            }
            self.empty.remove(id);
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
            match known.filter(|supply| is_offered_alike(&supply.host, host)) {
                Some(known) => {
                    let supply = known.used_as(host);
                    self.now.insert(*id, Arc::new(supply));
                    changes.used.insert(*id);
                }
                None => {
                    let before = self.now.get(id).map(|supply| supply.host.rate);
                    if before != Some(host.rate) {
                        moved.push(Moved { host: *id, before, now: Some(host.rate) });
                    }
                    self.read(*id, host);
                    changes.offered.insert(*id);
                }
            }
        }
        self.orders.follow(&moved);
        self.names.forget_choices();
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

/// Whether two states of a host differ in nothing that decides for whom it would do when it is empty.
fn is_offered_alike(before: &SupplyHost, now: &SupplyHost) -> bool {
    (before.rate, before.lasts) == (now.rate, now.lasts)
        && before.terms == now.terms
        && before.inventory == now.inventory
        && before.classes == now.classes
        && before.models == now.models
}
