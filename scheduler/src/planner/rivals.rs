//! Hosts in the order of their prices, from one look to the next.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use nave_domain::{
    Bytes, HostId, MicroUsd, MilliCpu, MilliGpu,
    rate::{Rate, Size, hourly},
};

use super::hosts::Supplies;
use crate::fit::Supply;

/// Sizes for which orders are kept.
const ORDERS_MAX: usize = 64;
/// Changes of rates beyond which it is no more work to put all hosts in order again.
const MOVED_MAX: usize = 256;

/// All hosts by what a size costs there, cheapest first.
type Order = Arc<Vec<(MicroUsd, HostId)>>;

/// A host whose rate was, or is, another one; none where it was not, or is not, there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moved {
    pub host: HostId,
    pub before: Option<Rate>,
    pub now: Option<Rate>,
}

/// The orders that are known.
#[derive(Debug, Clone, Default)]
pub(super) struct Orders(RefCell<BTreeMap<(i64, i64, i64), Order>>);

impl Orders {
    /// Takes over changes of rates.
    pub fn follow(&mut self, moved: &[Moved]) {
        let orders = self.0.get_mut();
        if moved.len() > MOVED_MAX || orders.len() > ORDERS_MAX {
            return orders.clear();
        }
        for ((milli_gpu, milli_cpu, memory), order) in orders {
            let size = Size {
                milli_gpu: MilliGpu(*milli_gpu),
                milli_cpu: MilliCpu(*milli_cpu),
                memory: Bytes(*memory),
            };
            let entry = |host, rate| Some((hourly(size, rate?).ok()?, host));
            for Moved { host, before, now } in moved {
                let order = Arc::make_mut(order);
                if let Some(Ok(at)) = entry(*host, *before).map(|entry| order.binary_search(&entry)) {
                    order.remove(at);
                }
                if let Some(entry) = entry(*host, *now) {
                    order.insert(order.partition_point(|other| *other < entry), entry);
                }
            }
        }
    }

    fn of(&self, size: Size, hosts: &Supplies) -> Order {
        let key = (size.milli_gpu.0, size.milli_cpu.0, size.memory.0);
        let order = || {
            let price =
                |(id, supply): (&HostId, &Arc<Supply>)| Some((hourly(size, supply.host.rate).ok()?, *id));
            let mut order: Vec<_> = hosts.iter().filter_map(price).collect();
            order.sort_unstable();
            Arc::new(order)
        };
        self.0.borrow_mut().entry(key).or_insert_with(order).clone()
    }
}

/// Hosts that may yet do for jobs that are alike: hosts only fill up while they are given away, so that one that would not
/// do is not looked at again.
#[derive(Debug)]
pub(super) struct Rivals {
    order: Order,
    /// Those that would not do, by their place in the order.
    out: Vec<bool>,
    /// All before that would not do.
    from: usize,
}

impl Rivals {
    pub fn new(orders: &Orders, size: Size, hosts: &Supplies) -> Self {
        let order = orders.of(size, hosts);
        Self { out: vec![false; order.len()], order, from: 0 }
    }

    /// Looks at hosts from the cheapest, each with the least that is paid there, until `look` has seen enough; it says
    /// whether a host would do, and whether it has.
    pub fn look(&mut self, mut look: impl FnMut(MicroUsd, HostId) -> (bool, bool)) {
        for at in self.from..self.order.len() {
            if self.out[at] {
                continue;
            }
            let (least, id) = self.order[at];
            let (would_do, is_enough) = look(least, id);
            self.out[at] = !would_do;
            if !would_do && at == self.from {
                self.from += 1;
            }
            if is_enough {
                return;
            }
        }
    }
}
