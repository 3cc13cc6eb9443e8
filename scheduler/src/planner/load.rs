//! The market as the fleet sees it: hosts, devices and jobs become numbers.
//!
//! What the fleet cannot count becomes wishes and guests: which devices of which hosts will do for a job, and
//! beside whom it may be. It only chooses among places that are allowed so.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    Bytes, CustomerId, HostId, LeaseId, MicroUsd, MilliCpu, MilliGpu, Millis,
    fraction::{Division, Fraction, shareable},
    host::{Device, Trust},
    job::{Egress, Isolation, JobRequest, TermWish},
    rate::{Rate, Size},
    wish::Region,
};
use nave_store::{Baselines, ORDERS_BYTES_MAX, Occupied, Past, QueuedJob, SupplyHost, Yielding};
use uuid::Uuid;

use crate::{
    fit::{Meant, Names, Supply, fraction, lack_for_ever},
    fleet::{
        self, ANY, CLASSES_MAX, Demand, Fleet, Gpus, Guest, Handle, Mask, Request, SpotLease, Used, Wish,
    },
    planner::money::pays,
};

/// As long as nothing is known of a miner, one lease is lost in so many hours.
const LOSS_HOURS: i64 = 250;
/// How long a start takes, in seconds.
const START_S: u32 = 30;
/// How often a device with its share of a host's CPU and memory counts as asked for, whatever else is: until
/// many requests have come, few say little.
const PRIOR: usize = 16;

/// The numbers of classes, which stay: what was learned is known by them.
pub(super) type Classes = BTreeMap<String, u8>;

/// A fleet that is filled from a snapshot, and what its numbers mean.
pub(super) struct Loaded<'a> {
    pub fleet: &'a mut Fleet,
    names: &'a Names,
    handles: BTreeMap<HostId, Handle>,
    ids: BTreeMap<Handle, HostId>,
    /// In the order of handles.
    classes: Vec<u8>,
    dearest: Rate,
    /// Whether there are hosts that end.
    any_ends: bool,
    owners: BTreeMap<CustomerId, u32>,
    miners: BTreeMap<String, u32>,
    apart: BTreeMap<(CustomerId, Uuid), u32>,
    /// The wishes that are known, with the classes that they accept.
    wishes: BTreeMap<Wanted, (u32, u64)>,
}

/// All of a request that decides which devices of which hosts would do.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    egress: Egress,
    grouped: bool,
    region: Option<Region>,
    term: TermWish,
    trust: BTreeSet<Trust>,
    most: Option<MicroUsd>,
    /// What decides the price of an hour, where that matters.
    size: Option<(i64, i64, i64)>,
    gpu: Option<(Bytes, Option<Bytes>, Option<Meant>)>,
    /// What is taken of devices where a fraction suffices, and the fraction, to the byte.
    divisible: Option<(Gpus, Option<Fraction>)>,
    /// What is left of its spend cap and how long it may run, where some host is too dear for that.
    short: Option<(MicroUsd, Millis)>,
    /// How long it may take, where hosts end.
    longest: Option<Millis>,
    otherwise: u32,
}

/// A wish as the fleet knows it.
#[derive(Debug, Clone, Copy)]
struct Wished {
    /// Its number.
    number: u32,
    /// The classes that it accepts.
    classes: u64,
    /// What is taken of devices.
    gpus: Gpus,
}

impl<'a> Loaded<'a> {
    pub fn new(
        fleet: &'a mut Fleet,
        names: &'a Names,
        known: &mut Classes,
        hosts: &BTreeMap<HostId, Supply>,
        baselines: &Baselines,
    ) -> Self {
        fleet.clear();
        let mut loaded = Self {
            fleet,
            names,
            handles: BTreeMap::new(),
            ids: BTreeMap::new(),
            classes: Vec::new(),
            dearest: Rate::default(),
            any_ends: hosts.values().any(|supply| supply.host.lasts.is_some()),
            owners: BTreeMap::new(),
            miners: BTreeMap::new(),
            apart: BTreeMap::new(),
            wishes: BTreeMap::new(),
        };
        let worths = worths(hosts, baselines);
        for (id, supply) in hosts {
            let class = number(known, class(supply));
            loaded.dearest = dearest(loaded.dearest, supply.host.rate);
            loaded.fleet.set_worth(class, worth(supply, &worths));
            loaded.insert(*id, supply, class);
        }
        loaded
    }

    /// A host that is larger than the fleet can say is not in it.
    fn insert(&mut self, id: HostId, supply: &Supply, class: u8) {
        let host = &supply.host;
        let has = &host.inventory;
        let next = u32::try_from(self.miners.len()).unwrap_or(u32::MAX);
        let miner = *self.miners.entry(host.hotkey.clone()).or_insert(next);
        let inserted = self.fleet.insert(fleet::Host {
            milli_cpu: count(has.milli_cpu.0),
            memory_mib: count(has.memory.0 / Bytes::MIB),
            disk_mib: count(has.disk.0 / Bytes::MIB),
            vram_mib: supply.devices.iter().map(|offered| vram_mib(&offered.device)).collect(),
            class,
            zone: 0,
            miner,
            has: 0,
            rate: fleet::Rate {
                gpu_hour: host.rate.gpu_hour.0,
                vcpu_hour: host.rate.vcpu_hour.0,
                gib_hour: host.rate.gib_hour.0,
            },
            order_bytes: count(ORDERS_BYTES_MAX),
            loss_ppm: loss_ppm(host.past, host.past_elsewhere),
            start_s: START_S,
        });
        let Some(handle) = inserted else { return };
        self.handles.insert(id, handle);
        self.ids.insert(handle, id);
        self.classes.push(class);
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
        let used = Used {
            milli_cpu: count(host.milli_cpu_used.0),
            memory_mib: mib(host.memory_used),
            disk_mib: mib(host.disk_used),
            order_bytes: count(host.order_bytes),
            devices,
            shared,
            tenants,
        };
        self.fleet.occupy(handle, &used);
    }

    pub fn handle(&self, host: HostId) -> Option<Handle> {
        self.handles.get(&host).copied()
    }

    pub fn id(&self, handle: Handle) -> Option<HostId> {
        self.ids.get(&handle).copied()
    }

    fn owner(&mut self, customer: CustomerId) -> u32 {
        let next = u32::try_from(self.owners.len()).unwrap_or(u32::MAX);
        *self.owners.entry(customer).or_insert(next)
    }

    /// A job as the fleet sees it.
    pub fn request(&mut self, job: &QueuedJob, hosts: &BTreeMap<HostId, Supply>) -> Request {
        let Wished { number: wish, classes, gpus } = self.wish(job, hosts);
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

    /// What a job wishes first: a share where one suffices and there are any, of its models in their order, and only then
    /// whole devices.
    fn wish(&mut self, job: &QueuedJob, hosts: &BTreeMap<HostId, Supply>) -> Wished {
        let choices = self.names.choices(&job.request);
        let whole = choices.iter().rev().map(|model| (model.as_ref(), None));
        let part = fraction(&job.request).map(|(_, part)| part);
        let shares = choices.iter().rev().filter_map(|model| Some((model.as_ref(), Some(part?))));
        let none = Wished { number: 0, classes: 0, gpus: Gpus::None };
        whole
            .chain(shares)
            .fold(none, |otherwise, (model, part)| self.wish_of(job, model, part, otherwise, hosts))
    }

    fn wish_of(
        &mut self,
        job: &QueuedJob,
        model: Option<&Meant>,
        part: Option<Fraction>,
        otherwise: Wished,
        hosts: &BTreeMap<HostId, Supply>,
    ) -> Wished {
        let gpus = part.map_or(plain(&job.request).gpus, |part| {
            let (milli, vram_mib) = share(part, None);
            Gpus::Share { milli, vram_mib }
        });
        let wanted = self.wanted(job, model, part, gpus, otherwise.number);
        if let Some((number, classes)) = self.wishes.get(&wanted).copied() {
            return if number == otherwise.number { otherwise } else { Wished { number, classes, gpus } };
        }
        let is_short = wanted.short.is_some();
        let of = |id: &HostId| hosts.get(id).map_or(0, |supply| mask(supply, job, model, part, is_short));
        let masks: Vec<Mask> = self.ids.values().map(of).collect();
        if part.is_some() && masks.iter().all(|mask| *mask == 0) {
            self.wishes.insert(wanted, (otherwise.number, otherwise.classes));
            return otherwise;
        }
        let accepted = masks.iter().zip(&self.classes).filter(|(mask, _)| **mask != 0);
        let classes = accepted.fold(otherwise.classes, |classes, (_, class)| classes | 1 << class);
        let taken = wanted.divisible.map(|(gpus, _)| gpus);
        let number = self.fleet.wish(Wish { masks, gpus: taken, otherwise: otherwise.number });
        self.wishes.insert(wanted, (number, classes));
        Wished { number, classes, gpus }
    }

    fn wanted(
        &self,
        job: &QueuedJob,
        model: Option<&Meant>,
        part: Option<Fraction>,
        gpus: Gpus,
        otherwise: u32,
    ) -> Wanted {
        let request = &job.request;
        let size = request.resources.size();
        let gpu = request.resources.gpu.as_ref();
        let short = (!pays(job, self.dearest)).then_some((job.left, request.limits.run_ms));
        let is_priced = request.max_price.is_some() || gpu.is_some() || short.is_some();
        Wanted {
            egress: request.egress,
            grouped: request.group.is_some(),
            region: request.region.clone(),
            term: request.term,
            trust: request.trust.clone(),
            most: request.max_price,
            size: is_priced.then_some((size.milli_gpu.0, size.milli_cpu.0, size.memory.0)),
            gpu: gpu.map(|gpu| (gpu.vram, gpu.vram_max, model.cloned())),
            divisible: fraction(request).map(|_| (gpus, part)),
            short,
            longest: self.any_ends.then(|| request.limits.longest()),
            otherwise,
        }
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
    pub fn yielding(
        &self,
        hosts: &BTreeMap<HostId, Supply>,
    ) -> (Vec<SpotLease>, Vec<(HostId, Vec<LeaseId>)>) {
        let (mut leases, mut ids) = (Vec::new(), Vec::new());
        for (host, supply) in hosts {
            let Some(handle) = self.handle(*host) else { continue };
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
                ids.push((*host, some.iter().map(|lease| lease.lease).collect()));
            }
        }
        (leases, ids)
    }
}

/// What a request takes of a host.
fn plain(request: &JobRequest) -> Request {
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

/// Which devices of a host will do for a job, or for a share of one; `is_short` says that it may be too dear.
fn mask(
    supply: &Supply,
    job: &QueuedJob,
    model: Option<&Meant>,
    part: Option<Fraction>,
    is_short: bool,
) -> Mask {
    let host = &supply.host;
    let will_do =
        |rate: Rate| lack_for_ever(host, &job.request, rate).is_none() && (!is_short || pays(job, rate));
    let bit = |place: usize| 1_u32.checked_shl(place as u32).unwrap_or(0);
    match (&job.request.resources.gpu, part) {
        (Some(_), Some(part)) => {
            let rate = |device: &Device, part: Fraction| host.rate.for_part(part.priced(device.vram));
            let places =
                supply.sharing(&job.request, part, model).filter(|(_, of, part)| will_do(rate(of, *part)));
            places.fold(0, |mask, (place, ..)| mask | bit(place))
        }
        _ if !will_do(host.rate) => 0,
        (None, _) => ANY,
        (Some(_), None) => supply.fitting(&job.request, model).fold(0, |mask, (place, _)| mask | bit(place)),
    }
}

/// Time and memory of a share as the fleet counts them. Who asks for no memory gets as much of it as of the time, of which
/// there is always enough; `of` is the memory of the device where it is known what was got.
fn share(part: Fraction, of: Option<Bytes>) -> (u16, u32) {
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
fn worths<'h>(hosts: &'h BTreeMap<HostId, Supply>, baselines: &Baselines) -> BTreeMap<&'h str, i64> {
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
pub(super) fn with_prior(demand: &Demand, hosts: &BTreeMap<HostId, Supply>) -> Demand {
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

fn dearest(a: Rate, b: Rate) -> Rate {
    Rate {
        gpu_hour: a.gpu_hour.max(b.gpu_hour),
        vcpu_hour: a.vcpu_hour.max(b.vcpu_hour),
        gib_hour: a.gib_hour.max(b.gib_hour),
    }
}

fn count(value: i64) -> u32 {
    u32::try_from(value.max(0)).unwrap_or(u32::MAX)
}

/// MiB that hold so many bytes.
fn mib(bytes: Bytes) -> u32 {
    count(bytes.0.saturating_add(Bytes::MIB - 1) / Bytes::MIB)
}
