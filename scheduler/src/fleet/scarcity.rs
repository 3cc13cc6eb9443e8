//! What it costs others that something scarce is taken.
//!
//! Supply is free device time of a class, in hosts that still have 1, 2, 4 or 8 untouched
//! devices together: the four *levels*. Demand for a level are requests for that many
//! devices or more; for the first level, requests that do not accept every class. Future
//! demand is expected to fill what is free now, in the proportions of the live
//! distribution. It is poured into the classes it accepts, the choosiest first and always
//! where the load is least; the load of a class is then how much of its supply is spoken
//! for. Whoever takes such supply without need pays a share of the class's price that
//! rises from nothing at [`CALM`] to all of it at a full load.

use super::request::Request;
use super::room::{CLASSES_MAX, Room};

/// Devices together; a request counts for every level it reaches.
const LEVELS: [u8; 4] = [1, 2, 4, 8];
/// How many levels there are.
pub(super) const LEVEL_COUNT: usize = LEVELS.len();

/// Loads are counted in thousandths.
const FULL: u64 = 1_000;
/// Load at which nothing is scarce yet.
const CALM: u64 = 300;
/// Into how many parts a demand is split when it is poured.
const POURS: u64 = 8;

/// A demand for one level.
#[derive(Debug, Clone)]
struct Demand {
    /// Classes that will do.
    classes: u64,
    /// Of all demand for device time, in millionths.
    ppm: u64,
}

/// Demand, supply and the prices that follow.
#[derive(Debug, Clone)]
pub(super) struct Scarcity {
    demands: [Vec<Demand>; LEVEL_COUNT],
    /// CPU that a request of the level's own size takes on average, at least 1.
    milli_cpu: [u32; LEVEL_COUNT],
    /// In thousandths of a device.
    supply: [[u64; CLASSES_MAX]; LEVEL_COUNT],
    /// In thousandths of the price of a class.
    prices: [[i64; CLASSES_MAX]; LEVEL_COUNT],
}

/// Devices of a host that are supply of each level above the first.
pub(super) type Together = [u8; LEVEL_COUNT];

impl Default for Scarcity {
    fn default() -> Self {
        Self {
            demands: Default::default(),
            milli_cpu: [1; LEVEL_COUNT],
            supply: [[0; CLASSES_MAX]; LEVEL_COUNT],
            prices: [[0; CLASSES_MAX]; LEVEL_COUNT],
        }
    }
}

impl Scarcity {
    /// Learns demand anew; `classes` are those that have devices. Supply is to be counted again.
    pub fn new<'a>(kinds: impl Iterator<Item = (&'a Request, u64)>, classes: u64) -> Self {
        let kinds: Vec<(&Request, u64)> = kinds.filter(|(kind, _)| kind.gpu_milli() > 0).collect();
        let time = |(kind, count): &(&Request, u64)| u128::from(kind.gpu_milli()) * u128::from(*count);
        let all: u128 = kinds.iter().map(time).sum();
        let mut learned = Self::default();
        for (level, together) in LEVELS.into_iter().enumerate() {
            let reaches = |kind: &Request| level == 0 || kind.whole() >= together;
            let reached: Vec<_> = kinds.iter().filter(|(kind, _)| reaches(kind)).collect();
            let mut sums = std::collections::BTreeMap::<u64, u128>::new();
            for kind in &reached {
                *sums.entry(kind.0.classes & classes).or_default() += time(kind);
            }
            let choosy = sums.into_iter().filter(|(mask, _)| *mask != 0 && (level > 0 || *mask != classes));
            let ppm = |sum: u128| u64::try_from(sum * 1_000_000 / all.max(1)).unwrap_or(0);
            learned.demands[level] = choosy.map(|(classes, sum)| Demand { classes, ppm: ppm(sum) }).collect();
            learned.demands[level].sort_by_key(|demand| demand.classes.count_ones());
            learned.milli_cpu[level] = average_cpu(&reached);
        }
        learned
    }

    /// Forgets all supply.
    pub fn clear(&mut self) {
        self.supply = [[0; CLASSES_MAX]; LEVEL_COUNT];
    }

    /// Devices that are together on a host with that many untouched and that much CPU.
    pub fn together(&self, whole: u8, milli_cpu: u32) -> Together {
        std::array::from_fn(|level| {
            let devices = LEVELS[level];
            if level == 0 || whole < devices || self.demands[level].is_empty() {
                return 0;
            }
            let by_cpu = u8::try_from(milli_cpu / self.milli_cpu[level]).unwrap_or(u8::MAX);
            (whole / devices).min(by_cpu) * devices
        })
    }

    /// Counts a room in.
    pub fn add(&mut self, room: &Room) {
        self.count(room, u64::saturating_add);
    }

    /// Counts out a room that is as it was when it was counted in.
    pub fn remove(&mut self, room: &Room) {
        self.count(room, u64::saturating_sub);
    }

    fn count(&mut self, room: &Room, change: fn(u64, u64) -> u64) {
        if !room.open || room.devices() == 0 {
            return;
        }
        let class = usize::from(room.host.class);
        let together = self.together(room.whole, room.milli_cpu);
        let milli = together.map(|devices| u64::from(devices) * 1_000);
        let milli = std::iter::once(room.usable_milli.into()).chain(milli.into_iter().skip(1));
        for (supply, milli) in self.supply.iter_mut().zip(milli) {
            supply[class] = change(supply[class], milli);
        }
    }

    /// Sets prices by the supply of now.
    pub fn price(&mut self) {
        let free: u64 = self.supply[0].iter().sum();
        for level in 0..LEVEL_COUNT {
            let load = pour(&self.demands[level], free, &self.supply[level]);
            for (price, load) in self.prices[level].iter_mut().zip(load) {
                let above = load.clamp(CALM, FULL) - CALM;
                *price = i64::try_from(above * 1_000 / (FULL - CALM)).unwrap_or(0);
            }
        }
    }

    /// Thousandths of its price that a class's devices cost above it.
    pub fn of_class(&self, class: usize) -> i64 {
        self.prices[0][class]
    }

    /// What it costs that fewer devices are together: in millionths of a device's price.
    pub fn of_parting(&self, class: usize, before: Together, after: Together) -> i64 {
        (1..LEVEL_COUNT)
            .map(|level| {
                let lost = i64::from(before[level].saturating_sub(after[level]));
                lost * 1_000 * self.prices[level][class]
            })
            .sum()
    }
}

/// Weighed by count, at least 1.
fn average_cpu(kinds: &[&(&Request, u64)]) -> u32 {
    let count: u128 = kinds.iter().map(|(_, count)| u128::from(*count)).sum();
    let sum: u128 = kinds.iter().map(|(kind, count)| u128::from(kind.milli_cpu) * u128::from(*count)).sum();
    u32::try_from(sum / count.max(1)).unwrap_or(u32::MAX).max(1)
}

/// The load of each class when demand as large as all that is free is poured.
fn pour(demands: &[Demand], free: u64, supply: &[u64; CLASSES_MAX]) -> [u64; CLASSES_MAX] {
    let mut poured = [0_u64; CLASSES_MAX];
    let mut load = [0_u64; CLASSES_MAX];
    for demand in demands {
        let part = free * demand.ppm / 1_000_000 / POURS;
        for _ in 0..POURS {
            if let Some(class) = bits(demand.classes).min_by_key(|class| load[*class]) {
                poured[class] += part;
                load[class] = poured[class] * FULL / (supply[class] + 1);
            }
        }
    }
    load
}

/// The bits that are set.
fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (bit < 64).then_some(bit as usize)
    })
}
