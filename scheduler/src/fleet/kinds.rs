//! What was found out about kinds of requests: the lasting part of each host's cost.

use std::collections::BTreeMap;

use super::request::Request;

/// Stands for a host that does not fit.
pub(super) const UNFIT: i64 = i64::MAX;
/// Hosts whose least cost is kept together.
const BLOCK: usize = 16;

/// Costs of one kind on all hosts, as of some moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Kind {
    /// By host.
    costs: Vec<i64>,
    /// The least of each block.
    least: Vec<i64>,
    /// How many changes of hosts they know of.
    pub seen: u64,
    /// What they were learned from.
    pub epoch: u64,
    used: u64,
}

impl Kind {
    pub fn is_empty(&self) -> bool {
        self.costs.is_empty()
    }

    /// Computes all costs.
    pub fn fill(&mut self, hosts: usize, cost: impl Fn(usize) -> i64) {
        self.costs.clear();
        self.costs.extend((0..hosts).map(cost));
        self.least.clear();
        self.least.extend(self.costs.chunks(BLOCK).map(least));
    }

    /// Makes room for hosts that were added.
    pub fn grow(&mut self, hosts: usize) {
        if self.costs.len() < hosts {
            self.costs.resize(hosts, UNFIT);
            self.least.resize(hosts.div_ceil(BLOCK), UNFIT);
        }
    }

    pub fn set(&mut self, host: usize, cost: i64) {
        let before = std::mem::replace(&mut self.costs[host], cost);
        let block = host / BLOCK;
        if cost <= self.least[block] {
            self.least[block] = cost;
        } else if before == self.least[block] {
            let end = self.costs.len().min((block + 1) * BLOCK);
            self.least[block] = least(&self.costs[block * BLOCK..end]);
        }
    }

    /// The host that costs least in all, and the first of these. `beyond` says what a host
    /// costs beyond its lasting cost, or that it is not to be had; `floor` is the least that it may say.
    pub fn cheapest(
        &self,
        mut floor: impl FnMut(usize, bool) -> i64,
        mut beyond: impl FnMut(usize, bool) -> Option<i64>,
    ) -> Option<(i64, usize)> {
        let mut best: Option<(i64, usize)> = None;
        let mut look = |block: usize, best: &mut Option<(i64, usize)>| {
            let from = block * BLOCK;
            for (at, cost) in self.costs[from..self.costs.len().min(from + BLOCK)].iter().enumerate() {
                let at = from + at;
                let loses = |best| (lasting(*cost), at) >= best;
                if *cost == UNFIT
                    || best.is_some_and(loses)
                    || best.is_some_and(|best| {
                        (lasting(*cost).saturating_add(floor(at, untouched(*cost))), at) >= best
                    })
                {
                    continue;
                }
                if let Some(beyond) = beyond(at, untouched(*cost)) {
                    let found = (lasting(*cost).saturating_add(beyond), at);
                    *best = Some(best.map_or(found, |best| best.min(found)));
                }
            }
        };
        // The block with the least cost first: it spares looking into most others.
        let first = self.least.iter().enumerate().min_by_key(|(_, least)| **least)?.0;
        look(first, &mut best);
        for (block, least) in self.least.iter().enumerate() {
            let may_win = best.is_none_or(|best| (lasting(*least), block * BLOCK) < best);
            if block != first && *least != UNFIT && may_win {
                look(block, &mut best);
            }
        }
        best
    }
}

impl Kind {
    /// The hosts where the lasting cost is least, not more than that many.
    pub fn cheap(&self, most: usize) -> Vec<usize> {
        let fit = self.costs.iter().enumerate().filter(|(_, cost)| **cost != UNFIT);
        let mut fit: Vec<(i64, usize)> = fit.map(|(at, cost)| (*cost, at)).collect();
        if fit.len() > most {
            fit.select_nth_unstable(most);
            fit.truncate(most);
        }
        fit.sort_unstable();
        fit.into_iter().map(|(_, at)| at).collect()
    }
}

/// The cost as it is remembered: with whether the request takes an untouched device for a share.
pub(super) fn packed(cost: i64, untouched: bool) -> i64 {
    cost.saturating_mul(2).saturating_add(untouched.into()).min(UNFIT - 1)
}

/// The cost that is remembered.
fn lasting(packed: i64) -> i64 {
    packed >> 1
}

/// Whether it takes an untouched device for a share.
fn untouched(packed: i64) -> bool {
    packed & 1 == 1
}

fn least(costs: &[i64]) -> i64 {
    costs.iter().copied().min().unwrap_or(UNFIT)
}

/// The kinds that were decided lately.
#[derive(Debug, Clone)]
pub(super) struct Kinds {
    index: BTreeMap<Request, usize>,
    kinds: Vec<Kind>,
    most: usize,
    clock: u64,
}

impl Kinds {
    /// Remembers that many kinds.
    pub fn new(most: usize) -> Self {
        Self { index: BTreeMap::new(), kinds: Vec::new(), most, clock: 0 }
    }

    /// Takes a kind out, to be put back at its place when it is brought up to date. Where
    /// there are too many, the one that was not used for longest makes room.
    pub fn take(&mut self, request: &Request) -> (usize, Kind) {
        self.clock += 1;
        // Which guest asks makes no other kind, whether one does may.
        let request = Request { guest: request.guest.min(1), ..*request };
        let place = match self.index.get(&request) {
            Some(place) => *place,
            None => self.make_room(request),
        };
        let mut kind = std::mem::take(&mut self.kinds[place]);
        kind.used = self.clock;
        (place, kind)
    }

    fn make_room(&mut self, request: Request) -> usize {
        let place = if self.kinds.len() < self.most {
            self.kinds.push(Kind::default());
            self.kinds.len() - 1
        } else {
            let places = 0..self.kinds.len();
            let place = places.min_by_key(|place| self.kinds[*place].used).unwrap_or(0);
            self.index.retain(|_, of| *of != place);
            self.kinds[place] = Kind::default();
            place
        };
        self.index.insert(request, place);
        place
    }

    /// Forgets kinds of requests.
    pub fn forget(&mut self, is_forgotten: impl Fn(&Request) -> bool) {
        let places: Vec<usize> =
            self.index.extract_if(.., |request, _| is_forgotten(request)).map(|(_, place)| place).collect();
        places.into_iter().for_each(|place| self.kinds[place] = Kind::default());
    }

    pub fn put(&mut self, place: usize, kind: Kind) {
        self.kinds[place] = kind;
    }

    /// Bytes that are held for costs.
    pub fn bytes(&self) -> usize {
        self.kinds.iter().map(|kind| (kind.costs.capacity() + kind.least.capacity()) * size_of::<i64>()).sum()
    }
}
