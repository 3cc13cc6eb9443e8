//! The market as the fleet sees it: hosts, devices and jobs become numbers.
//!
//! What the fleet cannot count becomes wishes and guests: which devices of which hosts will do for a job, and
//! beside whom it may be. It only chooses among places that are allowed so.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use nave_domain::{
    Bytes, CustomerId, HostId, LeaseId, MilliCpu, MilliGpu,
    fraction::{Division, Fraction, shareable},
    host::Device,
    job::{Isolation, JobRequest},
    rate::Size,
};
use nave_store::{Baselines, ORDERS_BYTES_MAX, Occupied, Past, QueuedJob, SupplyHost, Yielding};
use uuid::Uuid;

use super::{
    hosts::{Changes, Hosts, Supplies},
    wishes::{Wished, Wishes},
};
use crate::{
    fit::{Names, Supply},
    fleet::{self, CLASSES_MAX, DEVICES_MAX, Demand, Fleet, Gpus, Guest, Handle, Request, SpotLease, Used},
};

/// As long as nothing is known of a miner, one lease is lost in so many hours.
const LOSS_HOURS: i64 = 250;
/// How long a start takes, in seconds.
const START_S: u32 = 30;
/// How often a device with its share of a host's CPU and memory counts as asked for, whatever else is: until
/// many requests have come, few say little.
const PRIOR: usize = 16;

/// The numbers of classes, which stay: what was learned is known by them.
type Classes = BTreeMap<String, u8>;
/// Customers beyond which it is forgotten who they all were.
const OWNERS_MAX: usize = 1 << 18;

/// A fleet that follows the hosts of a market, and what its numbers mean.
#[derive(Debug, Clone, Default)]
pub(super) struct Loaded {
    pub fleet: Fleet,
    /// Also of hosts that are gone, whose places are theirs when they come back.
    handles: BTreeMap<HostId, Handle>,
    /// In the order of handles, which is that of ids, so that ties are broken by these.
    slots: Vec<Slot>,
    classes: Classes,
    owners: BTreeMap<CustomerId, u32>,
    miners: BTreeMap<String, u32>,
    apart: BTreeMap<(CustomerId, Uuid), u32>,
    wishes: Wishes,
}

/// A place of the fleet.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    id: HostId,
    /// The host as it was when the look began; none where it is gone.
    pub supply: Option<Arc<Supply>>,
    pub class: u8,
    /// The hosts that it is alike; see [`Wishes::sort`].
    pub sort: Option<usize>,
    host: fleet::Host,
    used: Used,
}

impl Loaded {
    /// Takes over what has changed. What was decided in the last look is forgotten: it is in what has changed as far as it
    /// was carried out.
    pub fn follow(&mut self, hosts: &Hosts, changes: &Changes) {
        let altered = self.fleet.altered().filter(|_| self.is_in_order(hosts, changes));
        self.fleet.begin();
        self.apart.clear();
        self.wishes.begin(&mut self.fleet);
        if !changes.is_none() {
            let any_ends = hosts.now.values().any(|supply| supply.host.lasts.is_some());
            self.wishes.bound(hosts.dearest, any_ends);
        }
        match altered {
            Some(altered) => self.adjust(hosts, changes, altered),
            None => self.refill(hosts),
        }
        if !changes.is_none() {
            self.weigh(hosts);
        }
        self.fleet.settle();
    }

    /// Forgets the hosts, and keeps what their classes are called.
    pub fn forget(&mut self) {
        self.fleet.clear();
        self.handles.clear();
        self.slots.clear();
        self.owners.clear();
        self.miners.clear();
        self.wishes.clear();
    }

    /// How many classes of hosts there have been.
    pub fn classes(&self) -> usize {
        self.classes.len()
    }

    /// Whether all hosts have a place where their ids have them, and not too much is kept of what is gone.
    fn is_in_order(&self, hosts: &Hosts, changes: &Changes) -> bool {
        let last = self.slots.last().map(|slot| slot.id);
        let has_place = |id: &HostId| self.handles.contains_key(id) || last.is_none_or(|last| *id > last);
        let is_too_large = |id: &HostId| hosts.now.get(id).is_none_or(|supply| is_too_large(supply));
        self.slots.len() <= 2 * hosts.now.len() + 64
            && self.owners.len() <= OWNERS_MAX
            && changes.offered.iter().all(|id| has_place(id) || is_too_large(id))
    }

    fn refill(&mut self, hosts: &Hosts) {
        self.forget();
        for (id, supply) in &hosts.now {
            self.load(*id, supply, false);
        }
    }

    fn adjust(&mut self, hosts: &Hosts, changes: &Changes, altered: BTreeSet<Handle>) {
        for id in &changes.gone {
            self.vacate(*id);
        }
        let is_altered =
            |loaded: &Self, id| loaded.handle(id).is_some_and(|handle| altered.contains(&handle));
        for id in changes.offered.union(&changes.used) {
            if let Some(supply) = hosts.now.get(id) {
                let is_to_be_put = changes.offered.contains(id) || is_altered(self, *id);
                self.load(*id, supply, is_to_be_put);
            }
        }
        for handle in altered {
            let Some(slot) = self.slots.get(handle.index()) else { continue };
            let is_done = changes.offered.contains(&slot.id) || changes.used.contains(&slot.id);
            if slot.supply.is_some() && !is_done {
                self.fleet.put(handle, Some((slot.host.clone(), &slot.used)));
            }
        }
        let changed = changes.gone.iter().chain(&changes.offered);
        let changed: Vec<Handle> = changed.filter_map(|id| self.handles.get(id).copied()).collect();
        self.wishes.ask_again(&mut self.fleet, &self.slots, &changed);
    }

    fn vacate(&mut self, id: HostId) {
        let Some(handle) = self.handles.get(&id).copied() else { return };
        self.fleet.put(handle, None);
        if let Some(slot) = self.slots.get_mut(handle.index()) {
            (slot.supply, slot.sort) = (None, None);
        }
    }

    /// Puts a host into its place, where that is not as it was or `is_to_be_put` all the same. One that is larger than
    /// the fleet can say is not in it.
    fn load(&mut self, id: HostId, supply: &Arc<Supply>, is_to_be_put: bool) {
        if is_too_large(supply) {
            return self.vacate(id);
        }
        let class = number(&mut self.classes, class(supply));
        let (host, used) = (self.host(supply, class), self.used(supply));
        let sort = self.wishes.sort(supply);
        let slot = Slot { id, supply: Some(supply.clone()), class, sort, host, used };
        let known =
            self.handles.get(&id).and_then(|handle| Some((*handle, self.slots.get_mut(handle.index())?)));
        if let Some((handle, before)) = known {
            let is_same = before.supply.is_some() && (&before.host, &before.used) == (&slot.host, &slot.used);
            if is_to_be_put || !is_same {
                self.fleet.put(handle, Some((slot.host.clone(), &slot.used)));
            }
            *before = slot;
        } else if let Some(handle) = self.fleet.insert(slot.host.clone()) {
            self.fleet.occupy(handle, &slot.used);
            self.handles.insert(id, handle);
            self.slots.push(slot);
        }
    }

    fn host(&mut self, supply: &Supply, class: u8) -> fleet::Host {
        let host = &supply.host;
        let has = &host.inventory;
        let next = u32::try_from(self.miners.len()).unwrap_or(u32::MAX);
        let miner = *self.miners.entry(host.hotkey.clone()).or_insert(next);
        fleet::Host {
            milli_cpu: count(has.milli_cpu.0),
            memory_mib: count(has.memory.0 / Bytes::MIB),
            disk_mib: count(has.disk.0 / Bytes::MIB),
            vram_mib: supply.devices.iter().map(|offered| vram_mib(&offered.device)).collect(),
            class,
            zone: 0,
            miner,
            has: if supply.slices.is_empty() { 0 } else { fleet::SLICES },
            rate: fleet::Rate {
                gpu_hour: host.rate.gpu_hour.0,
                vcpu_hour: host.rate.vcpu_hour.0,
                gib_hour: host.rate.gib_hour.0,
            },
            order_bytes: count(ORDERS_BYTES_MAX),
            loss_ppm: loss_ppm(host.past, host.past_elsewhere),
            start_s: START_S,
        }
    }

    fn used(&mut self, supply: &Supply) -> Used {
        let host = &supply.host;
        let tenants = host.tenants.iter().map(|(tenant, alone)| (self.owner(*tenant), *alone)).collect();
        let place = |uuid: &String| {
            let place = supply.devices.iter().position(|offered| offered.device.uuid == *uuid)?;
            u8::try_from(place).ok()
        };
        let devices = host.devices_used.iter().filter_map(place).collect();
        let shared = host.shared.iter().filter_map(|(uuid, shared)| {
            let device = place(uuid)?;
            let vram = supply.devices.get(usize::from(device))?.device.vram;
            let (milli, vram_mib) = share(shared.fraction, Some(vram));
            let owner = self.owner(shared.tenant);
            Some(fleet::Shared { device, owner, milli, vram_mib, count: shared.count })
        });
        let shared = shared.collect();
        Used {
            milli_cpu: count(host.milli_cpu_used.0),
            memory_mib: used_mib(host.inventory.memory, host.memory_used),
            disk_mib: used_mib(host.inventory.disk, host.disk_used),
            order_bytes: count(host.order_bytes),
            devices,
            shared,
            tenants,
        }
    }

    /// Says what devices of each class are worth.
    fn weigh(&mut self, hosts: &Hosts) {
        let worths = worths(&hosts.now, &hosts.baselines);
        let mut of_class = BTreeMap::new();
        for slot in &self.slots {
            // Of hosts of one class with several kinds of devices the last one counts.
            if let Some(supply) = &slot.supply {
                of_class.insert(slot.class, worth(supply, &worths));
            }
        }
        of_class.into_iter().for_each(|(class, worth)| self.fleet.set_worth(class, worth));
    }

    pub fn handle(&self, host: HostId) -> Option<Handle> {
        self.handles.get(&host).copied()
    }

    pub fn id(&self, handle: Handle) -> Option<HostId> {
        self.slots.get(handle.index()).map(|slot| slot.id)
    }

    fn owner(&mut self, customer: CustomerId) -> u32 {
        let next = u32::try_from(self.owners.len()).unwrap_or(u32::MAX);
        *self.owners.entry(customer).or_insert(next)
    }

    /// A job as the fleet sees it.
    pub fn request(&mut self, job: &QueuedJob, names: &Names) -> Request {
        let Wished { number: wish, classes, gpus } = self.wishes.of(&mut self.fleet, &self.slots, names, job);
        let guest = self.guest(job);
        let guest = self.fleet.invite(guest);
        let minutes = job.request.expected().0 / 60_000;
        // Powers of two, so that estimates make few kinds of requests.
        let run_minutes = count(minutes).clamp(1, 1 << 16).next_power_of_two();
        let redo_minutes = run_minutes / 2;
        Request { gpus, classes, run_minutes, redo_minutes, wish, guest, ..plain(&job.request) }
    }

    /// What a job takes of devices where it gets no fraction.
    pub fn whole(&self, job: &QueuedJob) -> Gpus {
        plain(&job.request).gpus
    }

    /// What a job asks for, as it is remembered.
    pub fn asked(&self, request: &Request) -> Request {
        Request { wish: 0, guest: 0, run_minutes: 1, redo_minutes: 0, ..*request }
    }

    fn guest(&mut self, job: &QueuedJob) -> Guest {
        let mut failures = BTreeMap::<Handle, u8>::new();
        for handle in job.failed_on.iter().filter_map(|host| self.handle(*host)) {
            let known = failures.entry(handle).or_default();
            *known = known.saturating_add(1);
        }
        let next = u32::try_from(self.apart.len()).unwrap_or(u32::MAX);
        let apart = job.request.apart.map(|apart| *self.apart.entry((job.customer, apart)).or_insert(next));
        Guest {
            owner: self.owner(job.customer),
            alone: job.request.isolation == Isolation::Host,
            apart,
            apart_from: job.apart_from.iter().filter_map(|miner| self.miners.get(miner).copied()).collect(),
            order_bytes: count(job.order_bytes),
            failures,
        }
    }

    /// Occupies places of a host, also where they are not what the fleet would say.
    pub fn take(&mut self, host: HostId, request: &Request, devices: &[u8]) {
        let Some(handle) = self.handle(host) else { return };
        if !self.fleet.place(handle, request, devices) {
            let used = Used {
                milli_cpu: request.milli_cpu,
                memory_mib: request.memory_mib,
                disk_mib: request.disk_mib,
                devices: devices.to_vec(),
                ..Used::default()
            };
            self.fleet.occupy(handle, &used);
        }
    }

    /// What ends soon or yields: leases, and all those together that have shares of one device; with the leases of each.
    pub fn yielding<'s>(
        &self,
        hosts: impl Iterator<Item = (HostId, &'s Supply)>,
    ) -> (Vec<SpotLease>, Vec<(HostId, Vec<LeaseId>)>) {
        let (mut leases, mut ids) = (Vec::new(), Vec::new());
        for (host, supply) in hosts {
            let Some(handle) = self.handle(host) else { continue };
            for some in together(supply) {
                let (request, devices) = leased(supply, &some);
                let tenant = |of: &Occupied| Some((*self.owners.get(&of.customer)?, of.alone));
                let order_bytes = some.iter().map(|lease| lease.part.order_bytes).sum();
                leases.push(SpotLease {
                    id: ids.len() as u64,
                    host: handle,
                    request,
                    devices,
                    tenants: some.iter().filter_map(|lease| tenant(&lease.part)).collect(),
                    order_bytes: count(order_bytes),
                    noticed: some.iter().all(|lease| lease.is_ending),
                });
                ids.push((host, some.iter().map(|lease| lease.lease).collect()));
            }
        }
        (leases, ids)
    }
}

/// A request that asks for less than a job whose memory or disk is no whole number of MiB; none for any other.
pub(super) fn loosened(job: &QueuedJob, request: &Request) -> Option<Request> {
    let wanted = &job.request.resources;
    let is_odd = |bytes: Bytes| bytes.0 % Bytes::MIB != 0;
    let less = |mib: u32| mib.saturating_sub(2);
    (is_odd(wanted.memory) || is_odd(wanted.disk)).then(|| Request {
        memory_mib: less(request.memory_mib),
        disk_mib: less(request.disk_mib),
        ..*request
    })
}

/// What a request takes of a host.
pub(super) fn plain(request: &JobRequest) -> Request {
    let size = request.resources.size();
    Request { disk_mib: mib(request.resources.disk), ..sized(size) }
}

fn sized(size: Size) -> Request {
    let devices = u8::try_from(size.milli_gpu.0 / 1_000).unwrap_or(u8::MAX);
    // How much memory the devices have is part of the wish, to the byte.
    let gpus = if devices == 0 { Gpus::None } else { Gpus::Whole { count: devices, vram_mib: 0 } };
    Request::new(count(size.milli_cpu.0), mib(size.memory), gpus)
}

/// The leases of a host that yield; those with shares of a device together where that sets the device free.
fn together(supply: &Supply) -> Vec<Vec<&Yielding>> {
    let device = |lease: &Yielding| lease.part.share.and(lease.part.devices.first().cloned());
    let mut sharing: BTreeMap<String, Vec<&Yielding>> = BTreeMap::new();
    let mut all = Vec::new();
    for lease in &supply.host.yielding {
        match device(lease) {
            Some(device) => sharing.entry(device).or_default().push(lease),
            None => all.push(vec![lease]),
        }
    }
    for (device, leases) in sharing {
        let shares = supply.host.shared.get(&device).map_or(0, |shared| shared.count as usize);
        if leases.len() == shares {
            all.push(leases);
        } else {
            all.extend(leases.into_iter().map(|lease| vec![lease]));
        }
    }
    all
}

/// What leases take that end together, and the devices that are free then: neither a slice nor one that others share.
fn leased(supply: &Supply, leases: &[&Yielding]) -> (Request, Vec<u8>) {
    let sum = |of: fn(&Occupied) -> i64| leases.iter().map(|lease| of(&lease.part)).sum::<i64>();
    let is_free = |uuid: &String| {
        supply.host.shared.get(uuid).is_none_or(|shared| shared.count as usize == leases.len())
    };
    let place = |uuid: &String| supply.devices.iter().position(|offered| offered.device.uuid == *uuid);
    let uuids: BTreeSet<&String> = leases.iter().flat_map(|lease| &lease.part.devices).collect();
    let places = uuids.into_iter().filter(|uuid| is_free(uuid)).filter_map(place);
    let devices: Vec<u8> = places.filter_map(|place| u8::try_from(place).ok()).collect();
    let size = Size {
        milli_gpu: MilliGpu(1_000 * i64::try_from(devices.len()).unwrap_or(0)),
        milli_cpu: MilliCpu(sum(|part| part.size.milli_cpu.0)),
        memory: Bytes(sum(|part| part.size.memory.0)),
    };
    let used = leases.iter().map(|lease| lease.used.0).max().unwrap_or(0);
    let disk_mib = mib(Bytes(sum(|part| part.disk.0)));
    (Request { disk_mib, redo_minutes: count(used / 60_000), ..sized(size) }, devices)
}

/// The chance that a lease of a host is lost, in millionths an hour: what it did, beside so many hours of what its
/// owner's other hosts did, and those beside so many of nobody's.
fn loss_ppm(own: Past, others: Past) -> u32 {
    const HOUR: i128 = 3_600_000;
    let prior = i128::from(LOSS_HOURS) * HOUR;
    let rate = |past: Past, before: i128| {
        let lost = i128::from(past.losses) * 1_000_000 * HOUR;
        (lost + before * prior) / (i128::from(past.served.0) + prior)
    };
    let expected = rate(own, rate(others, 1_000_000 / i128::from(LOSS_HOURS)));
    u32::try_from(expected.clamp(0, 1_000_000)).unwrap_or(0)
}

/// Time and memory of a share as the fleet counts them. Who asks for no memory gets as much of it as of the time, of which
/// there is always enough; `of` is the memory of the device where it is known what was got.
pub(super) fn share(part: Fraction, of: Option<Bytes>) -> (u16, u32) {
    let follows = of.is_some_and(|of| Fraction { vram: Bytes::ZERO, ..part }.on(of) == part);
    (u16::try_from(part.milli.0).unwrap_or(u16::MAX), if follows { 0 } else { mib(part.vram) })
}

/// Memory of a device in MiB, as much of it as shares may have where it is shared.
fn vram_mib(device: &Device) -> u32 {
    let vram = match device.division {
        Division::Shares => shareable(device.vram),
        Division::Whole | Division::Slices(_) => device.vram,
    };
    count(vram.0 / Bytes::MIB)
}

/// The classes of a host's devices as one: devices beside others are of a class of their own.
fn class(supply: &Supply) -> String {
    let classes: BTreeSet<&str> =
        supply.devices.iter().map(|offered| class_of(&supply.host, &offered.device.uuid)).collect();
    classes.into_iter().collect::<Vec<_>>().join("+")
}

fn class_of<'h>(host: &'h SupplyHost, uuid: &str) -> &'h str {
    host.classes.get(uuid).map_or("unrated", String::as_str)
}

fn number(known: &mut Classes, class: String) -> u8 {
    // The last number is for all that come after it.
    let next = known.len().min(CLASSES_MAX - 1);
    *known.entry(class).or_insert(u8::try_from(next).unwrap_or(0))
}

/// What a device of each class is worth: its baseline, or else the median of what hosts ask for it.
fn worths<'h>(hosts: &'h Supplies, baselines: &Baselines) -> BTreeMap<&'h str, i64> {
    let mut rates: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for supply in hosts.values() {
        for offered in supply.devices.iter() {
            let class = class_of(&supply.host, &offered.device.uuid);
            rates.entry(class).or_default().push(supply.host.rate.gpu_hour.0);
        }
    }
    let worth = |(class, mut rates): (_, Vec<i64>)| {
        rates.sort_unstable();
        let median = rates.get(rates.len() / 2).copied().unwrap_or(0);
        (class, baselines.of(class, None).map_or(median, |price| price.0))
    };
    rates.into_iter().map(worth).collect()
}

/// What a device of a host is worth on average.
fn worth(supply: &Supply, worths: &BTreeMap<&str, i64>) -> i64 {
    let of = |uuid| worths.get(class_of(&supply.host, uuid)).copied().unwrap_or(0);
    let sum = supply.devices.iter().fold(0_i64, |sum, offered| sum.saturating_add(of(&offered.device.uuid)));
    sum / i64::try_from(supply.devices.len().max(1)).unwrap_or(1)
}

/// What is asked for as long as nobody has asked: a device with half of its share of a host, by class.
pub(super) fn with_prior(demand: &Demand, hosts: &Supplies) -> Demand {
    let mut demand = demand.clone();
    let mut shares: BTreeMap<String, (i64, i64, i64)> = BTreeMap::new();
    for supply in hosts.values().filter(|supply| !supply.devices.is_empty()) {
        let sums = shares.entry(class(supply)).or_default();
        sums.0 += i64::try_from(supply.devices.len()).unwrap_or(0);
        sums.1 = sums.1.saturating_add(supply.host.inventory.milli_cpu.0);
        sums.2 = sums.2.saturating_add(supply.host.inventory.memory.0 / Bytes::MIB);
    }
    for (devices, milli_cpu, memory_mib) in shares.into_values() {
        let half = |sum: i64| count(sum / devices / 2);
        let gpus = Gpus::Whole { count: 1, vram_mib: 0 };
        let request = Request { run_minutes: 1, ..Request::new(half(milli_cpu), half(memory_mib), gpus) };
        (0..PRIOR).for_each(|_| demand.observe(&request));
    }
    demand
}

/// Whether a host has more devices than the fleet can say.
fn is_too_large(supply: &Supply) -> bool {
    supply.devices.len() > DEVICES_MAX
}

fn count(value: i64) -> u32 {
    u32::try_from(value.max(0)).unwrap_or(u32::MAX)
}

/// MiB that are used of so many bytes: all but the whole ones that are free.
fn used_mib(all: Bytes, used: Bytes) -> u32 {
    count(all.0 / Bytes::MIB).saturating_sub(count(all.0.saturating_sub(used.0) / Bytes::MIB))
}

/// MiB that hold so many bytes.
fn mib(bytes: Bytes) -> u32 {
    count(bytes.0.saturating_add(Bytes::MIB - 1) / Bytes::MIB)
}
