//! The fleet: all hosts and what is free on them, and the cheapest place for a request.
//!
//! A decision minimises expected money, in micro-USD an hour: what the host charges, what
//! is done again should it be lost, what starting there takes, and what the placement takes
//! from others: device time that it strands ([`stranding`]) and supply that is spoken for
//! ([`scarcity`]), both at the price of the class. Everything is integers and a function of
//! the calls so far.
//!
//! The first four depend only on the host and the kind of request. They are remembered, and
//! computed again only for hosts that have changed since the kind was last asked for. Scarcity
//! moves with everything; it is never negative, so it is computed only for hosts that could
//! still be the best.

mod batch;
mod demand;
mod follow;
mod guests;
mod kinds;
mod queue;
mod request;
mod room;
mod scarcity;
mod search;
mod shared;
mod sorts;
mod stranding;

pub use batch::{Gang, Places};
pub use demand::Demand;
pub use guests::{Guest, Wish};
pub use queue::{Plan, SpotLease, Waiting};
pub use request::{DEVICE_MILLI, Gpus, Request};
pub use room::{ANY, CLASSES_MAX, DEVICES_MAX, Host, Mask, Rate, SLICES, Shared, Used};

use std::collections::BTreeSet;

use guests::Guests;
use kinds::{Kind, Kinds, UNFIT, packed};
use room::{Room, Share};
use scarcity::Scarcity;
use shared::WithRoom;
use sorts::{Sort, Sorts};
use stranding::{Largest, Stranding};

/// Changes of hosts after which scarcity is priced again.
const PRICED_EVERY: u64 = 32;
/// Kinds of requests that are remembered.
const KINDS_MAX: usize = 1_024;

/// A host of a fleet; only the fleet that gave it knows what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(u32);

impl Handle {
    /// Its place in the order of handles, and in the masks of a [`Wish`].
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// On which host.
    pub host: Handle,
    /// On which of its devices.
    pub devices: Vec<u8>,
    /// What is placed there: the request, as it was chosen among its wishes.
    pub request: Request,
    /// What the host charges, in micro-USD an hour.
    pub hourly: i64,
    /// What it costs all in all, stranding and scarcity included: what was minimised.
    pub cost: i64,
}

/// All hosts.
#[derive(Debug, Clone)]
pub struct Fleet {
    rooms: Vec<Option<Room>>,
    vacant: Vec<u32>,
    sorts: Sorts,
    /// What a device of each class is worth, in micro-USD an hour.
    gpu_hours: [i64; CLASSES_MAX],
    stranding: Vec<Option<Stranding>>,
    scarcity: Scarcity,
    kinds: Kinds,
    guests: Guests,
    /// Shares of guests that have room beside them.
    with_room: WithRoom,
    /// For whom hosts are kept free.
    keepers: BTreeSet<u64>,
    /// Hosts in the order in which they changed; the first of them is change number `logged`.
    log: Vec<u32>,
    logged: u64,
    /// The number of the last change of each host.
    changes: Vec<u64>,
    /// How many changes there were when all hosts were said to be as they are.
    settled: u64,
    /// After how many changes scarcity was priced last.
    priced: Option<u64>,
    /// How often it has learned.
    epoch: u64,
    /// Decisions for the gangs that are weighed against one another.
    decisions: usize,
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}

impl Fleet {
    /// Without hosts, and with no idea of what is asked for.
    #[must_use]
    pub fn new() -> Self {
        Self {
            rooms: Vec::new(),
            vacant: Vec::new(),
            sorts: Sorts::default(),
            gpu_hours: [0; CLASSES_MAX],
            stranding: vec![None; CLASSES_MAX],
            scarcity: Scarcity::default(),
            kinds: Kinds::new(KINDS_MAX),
            guests: Guests::default(),
            with_room: WithRoom::default(),
            keepers: BTreeSet::new(),
            log: Vec::new(),
            logged: 0,
            changes: Vec::new(),
            settled: 0,
            priced: None,
            epoch: 0,
            decisions: 0,
        }
    }

    /// Forgets all hosts, wishes and guests, and keeps what was learned: to be filled anew.
    pub fn clear(&mut self) {
        let mut scarcity = std::mem::take(&mut self.scarcity);
        scarcity.clear();
        let stranding = std::mem::take(&mut self.stranding);
        *self = Self { stranding, scarcity, gpu_hours: self.gpu_hours, epoch: self.epoch, ..Self::new() };
    }

    /// Notes which devices of each host will do for somebody; says what [`Request::wish`] is then.
    pub fn wish(&mut self, wish: Wish) -> u32 {
        self.guests.wish(wish)
    }

    /// Notes who asks; says what [`Request::guest`] is then.
    pub fn invite(&mut self, guest: Guest) -> u32 {
        self.guests.invite(guest)
    }

    /// Occupies what somebody else has placed on a host.
    pub fn occupy(&mut self, handle: Handle, used: &Used) {
        self.alter(handle, |room, _| room.occupy(used));
    }

    /// Adds a host that is empty; `None` where it is larger than the fleet can say.
    pub fn insert(&mut self, host: Host) -> Option<Handle> {
        if usize::from(host.class) >= CLASSES_MAX || host.zone >= 64 || host.vram_mib.len() > DEVICES_MAX {
            return None;
        }
        let room = Room::new(host);
        self.scarcity.add(&room);
        let at = match self.vacant.pop() {
            Some(at) => at,
            None => {
                self.rooms.push(None);
                u32::try_from(self.rooms.len() - 1).ok()?
            }
        };
        self.sorts.set(at as usize, &room, &self.scarcity);
        self.rooms[at as usize] = Some(room);
        self.changed(at);
        Some(Handle(at))
    }

    /// Takes a host away, with everything that is on it.
    pub fn remove(&mut self, handle: Handle) -> Option<Host> {
        let room = self.rooms.get_mut(handle.0 as usize)?.take()?;
        self.scarcity.remove(&room);
        self.with_room.remove(handle.0, &room);
        self.vacant.push(handle.0);
        self.changed(handle.0);
        Some(room.host)
    }

    /// What a host is when empty.
    #[must_use]
    pub fn host(&self, handle: Handle) -> Option<&Host> {
        self.room(handle).map(|room| &room.host)
    }

    /// Changes a host's rate, risk, start or zone; what is placed there stays.
    pub fn update(&mut self, handle: Handle, change: impl FnOnce(&mut Host)) {
        self.alter(handle, |room, _| {
            let mut host = room.host.clone();
            change(&mut host);
            room.host = Host {
                milli_cpu: room.host.milli_cpu,
                memory_mib: room.host.memory_mib,
                disk_mib: room.host.disk_mib,
                order_bytes: room.host.order_bytes,
                vram_mib: room.host.vram_mib.clone(),
                class: room.host.class,
                zone: host.zone.min(63),
                ..host
            };
        });
    }

    /// Lets a host take new placements, or drains it: then it takes none and keeps what it has.
    pub fn set_open(&mut self, handle: Handle, open: bool) {
        self.alter(handle, |room, _| room.open = open);
    }

    /// What a device of a class is worth, in micro-USD an hour: the market's price for it.
    pub fn set_worth(&mut self, class: u8, gpu_hour: i64) {
        if let Some(worth) = self.gpu_hours.get_mut(usize::from(class)).filter(|worth| **worth != gpu_hour) {
            *worth = gpu_hour;
            self.epoch += 1;
        }
    }

    /// Learns what is asked for. Costs some milliseconds, and the next decision of each kind
    /// looks at all hosts again: for between batches.
    pub fn learn(&mut self, demand: &Demand) {
        let mut largest = [Largest::default(); CLASSES_MAX];
        let mut milli = [0_u64; CLASSES_MAX];
        for room in self.rooms.iter().flatten().filter(|room| room.devices() > 0) {
            let class = usize::from(room.host.class);
            largest[class] = largest[class].with(room);
            milli[class] += room.devices() as u64 * u64::from(DEVICE_MILLI);
        }
        let classes =
            (0..CLASSES_MAX).filter(|class| milli[*class] > 0).fold(0, |mask, class| mask | 1 << class);
        for class in 0..CLASSES_MAX {
            let kinds = shares(demand, class, &milli);
            self.stranding[class] = (milli[class] > 0).then(|| Stranding::new(largest[class], &kinds));
        }
        self.scarcity = Scarcity::new(demand.kinds(), classes);
        self.sorts = Sorts::default();
        for (at, room) in self.rooms.iter().enumerate().filter_map(|(at, room)| Some((at, room.as_ref()?))) {
            self.scarcity.add(room);
            self.sorts.set(at, room, &self.scarcity);
        }
        self.scarcity.price();
        self.epoch += 1;
    }

    /// The cheapest place for a request; `None` where it fits nowhere.
    pub fn decide(&mut self, request: &Request) -> Option<Choice> {
        self.decide_for(request, None)
    }

    /// As [`decide`](Self::decide), for somebody for whom hosts may be kept free.
    pub fn decide_for(&mut self, request: &Request, whose: Option<u64>) -> Option<Choice> {
        self.guests.choices(request).find_map(|request| self.decide_one(&request, whose))
    }

    fn decide_one(&mut self, request: &Request, whose: Option<u64>) -> Option<Choice> {
        let now = self.now();
        if self.priced.is_none_or(|priced| now >= priced + PRICED_EVERY) {
            self.scarcity.price();
            self.priced = Some(now);
        }
        let (place, mut kind) = self.kinds.take(request);
        self.refresh(request, &mut kind);
        let best = self.best(request, &kind, whose);
        self.kinds.put(place, kind);
        let found = best.and_then(|(cost, at)| self.found(request, at, cost));
        let beside = self.beside(request, whose);
        beside.into_iter().chain(found).min_by_key(|choice| (choice.cost, choice.host))
    }

    /// The place on a host that was found to cost so much.
    fn found(&self, request: &Request, at: usize, cost: i64) -> Option<Choice> {
        let room = self.rooms.get(at)?.as_ref()?;
        let mask = self.guests.mask(request, at);
        let devices = match Guests::first_share(request) {
            Some(share) => vec![u8::try_from(self.share(room, share, mask)?.0).ok()?],
            None => room.places(request, None, mask).pop()?,
        };
        let host = Handle(u32::try_from(at).ok()?);
        Some(Choice { host, devices, request: *request, hourly: room.host.hourly(request), cost })
    }

    /// The cheapest place for a share of a guest beside those that it has.
    fn beside(&self, request: &Request, whose: Option<u64>) -> Option<Choice> {
        let share = self.guests.share(request).filter(|share| share.owner.is_some())?;
        let places = self.with_room.hosts(share).flat_map(|at| {
            let mask = self.guests.mask(request, at as usize);
            let room = self.rooms.get(at as usize).and_then(Option::as_ref);
            let places = room.map(|room| room.places(request, Some(share), mask));
            places.unwrap_or_default().into_iter().map(move |devices| (Handle(at), devices))
        });
        let choices = places.filter_map(|(host, devices)| self.choice(host, request, &devices, whose));
        choices.min_by_key(|choice| (choice.cost, choice.host))
    }

    /// What a request costs at a place; `None` where that is not to be had.
    fn choice(&self, host: Handle, request: &Request, devices: &[u8], whose: Option<u64>) -> Option<Choice> {
        let room = self.room(host).filter(|room| room.kept_for.is_none_or(|id| whose == Some(id)))?;
        let mut after = room.clone();
        if !room.admits(request) || !after.take(request, self.guests.share(request), devices) {
            return None;
        }
        let money = self.expected(room, request)? + self.guests.admits(request, host.0 as usize, room)?;
        let untouched = request.whole() == 0 && after.whole < room.whole;
        let sort = self.sorts.of(host.0 as usize).1;
        let stranded = self.stranded_on(&after) - self.stranded_on(room);
        let cost = money
            + stranded
            + courtesy(room, request)
            + self.scarce(sort, request, untouched, after.milli_cpu);
        let hourly = room.host.hourly(request);
        Some(Choice { host, devices: devices.to_vec(), request: *request, hourly, cost })
    }

    /// The cheapest places for a request, with each device that a share may have there.
    fn options(&mut self, request: &Request, whose: u64, most: usize) -> Vec<Choice> {
        let choices = self.guests.choices(request);
        let mut options = choices.map(|request| self.options_of_one(&request, whose, most));
        options.find(|options| !options.is_empty()).unwrap_or_default()
    }

    fn options_of_one(&mut self, request: &Request, whose: u64, most: usize) -> Vec<Choice> {
        let (place, mut kind) = self.kinds.take(request);
        self.refresh(request, &mut kind);
        let mut hosts = kind.cheap(most);
        self.kinds.put(place, kind);
        let share = self.guests.share(request);
        let beside = share.into_iter().flat_map(|share| self.with_room.hosts(share));
        hosts.extend(beside.map(|at| at as usize));
        hosts.sort_unstable();
        hosts.dedup();
        let places = hosts.into_iter().filter_map(|at| {
            let room = self.rooms[at].as_ref()?;
            let host = Handle(u32::try_from(at).ok()?);
            let places = room.places(request, share, self.guests.mask(request, at));
            Some(places.into_iter().map(move |devices| (host, devices)))
        });
        let priced =
            places.flatten().filter_map(|(host, devices)| self.choice(host, request, &devices, Some(whose)));
        let mut priced: Vec<Choice> = priced.collect();
        priced.sort_by_key(|choice| (choice.cost, choice.host));
        priced.truncate(most);
        priced
    }

    /// Occupies what a choice found, for the request that it names; `false` and nothing changed where it is not free any more.
    pub fn place(&mut self, handle: Handle, request: &Request, devices: &[u8]) -> bool {
        let mut taken = false;
        self.alter(handle, |room, guests| {
            taken = room.take(request, guests.share(request), devices);
            if taken {
                guests.enter(request, room);
            }
        });
        taken
    }

    /// Gives back what a placement occupied.
    pub fn release(&mut self, handle: Handle, request: &Request, devices: &[u8]) {
        self.alter(handle, |room, guests| {
            room.give(request, devices);
            guests.leave(request, room);
        });
    }

    /// What the device time is worth that is expected to stay unused, in micro-USD an hour.
    #[must_use]
    pub fn stranded(&self) -> i64 {
        self.rooms.iter().flatten().map(|room| self.stranded_on(room)).sum()
    }

    fn stranded_on(&self, room: &Room) -> i64 {
        let class = usize::from(room.host.class);
        self.stranding[class].as_ref().map_or(0, |stranding| {
            let devices: i64 = room.usable().iter().map(|usable| stranding.of_device(*usable)).sum();
            let host = stranding.of_host(room.usable_milli, room.milli_cpu, room.memory_mib);
            let rest = Stranding::of_rest(room.rest_milli);
            Stranding::worth(devices + host + rest, self.gpu_hours[class])
        })
    }

    /// Memory that the fleet occupies, about, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let rooms = self.rooms.capacity() * size_of::<Option<Room>>();
        let devices: usize = self.rooms.iter().flatten().map(|room| room.devices() * size_of::<u32>()).sum();
        rooms + devices + self.log.capacity() * size_of::<u32>() + self.kinds.bytes()
    }

    fn room(&self, handle: Handle) -> Option<&Room> {
        self.rooms.get(handle.0 as usize)?.as_ref()
    }

    fn alter(&mut self, handle: Handle, change: impl FnOnce(&mut Room, &mut Guests)) {
        let Some(Some(room)) = self.rooms.get_mut(handle.0 as usize) else { return };
        self.scarcity.remove(room);
        self.with_room.remove(handle.0, room);
        change(room, &mut self.guests);
        self.with_room.add(handle.0, room);
        self.scarcity.add(room);
        self.sorts.set(handle.0 as usize, room, &self.scarcity);
        self.changed(handle.0);
    }

    /// How many changes there were so far.
    fn now(&self) -> u64 {
        self.logged + self.log.len() as u64
    }

    fn changed(&mut self, at: u32) {
        if self.changes.len() < self.rooms.len() {
            self.changes.resize(self.rooms.len(), 0);
        }
        self.changes[at as usize] = self.now();
        self.log.push(at);
        // A kind that missed more than this looks at all hosts again, which is no more work.
        let most = 4 * self.rooms.len().max(1_024);
        if self.log.len() >= 2 * most {
            self.log.drain(..most);
            self.logged += most as u64;
        }
    }

    /// Brings a kind's costs up to date.
    fn refresh(&self, request: &Request, kind: &mut Kind) {
        let now = self.now();
        let cost = |at: usize| self.cost(at, request);
        if kind.epoch != self.epoch || kind.seen < self.logged || kind.is_empty() {
            kind.fill(self.rooms.len(), cost);
        } else {
            kind.grow(self.rooms.len());
            let from = usize::try_from(kind.seen - self.logged).unwrap_or(0);
            for (number, at) in (kind.seen..).zip(&self.log[from..]) {
                // What changed again is looked at then.
                if self.changes[*at as usize] == number {
                    kind.set(*at as usize, cost(*at as usize));
                }
            }
        }
        (kind.seen, kind.epoch) = (now, self.epoch);
    }

    /// The lasting part of the cost on a host, as [`Kind::costs`] keeps it.
    fn cost(&self, at: usize, request: &Request) -> i64 {
        let mask = self.guests.mask(request, at);
        let room = self.rooms[at].as_ref().filter(|room| mask != 0 && room.admits(request));
        let Some(room) = room else { return UNFIT };
        if room.devices() == 0 {
            return match request.gpus {
                Gpus::None => self
                    .expected(room, request)
                    .map_or(UNFIT, |money| packed(money + courtesy(room, request), false)),
                Gpus::Share { .. } | Gpus::Whole { .. } => UNFIT,
            };
        }
        let stranding = self.stranding[usize::from(room.host.class)].as_ref();
        let (usable, device, takes_untouched) = match request.gpus {
            Gpus::None => (room.usable_milli, 0, false),
            Gpus::Share { .. } => {
                let share = Guests::first_share(request);
                let found = share.and_then(|share| Some((share, self.share(room, share, mask)?)));
                let Some((share, (device, stranded))) = found else { return UNFIT };
                let before = room.usable()[device];
                let after = if share.owner.is_some() { 0 } else { room.left_after(device, share) };
                (room.usable_milli + u32::from(after) - u32::from(before), stranded, before == DEVICE_MILLI)
            }
            Gpus::Whole { count, vram_mib } => {
                if !room.has_whole(count, vram_mib, mask) {
                    return UNFIT;
                }
                let full = stranding.map_or(0, |stranding| stranding.of_device(DEVICE_MILLI));
                let milli = u32::from(count) * u32::from(DEVICE_MILLI);
                (room.usable_milli - milli, -full * i64::from(count), false)
            }
        };
        let host = stranding.map_or(0, |stranding| {
            let after = (room.milli_cpu - request.milli_cpu, room.memory_mib - request.memory_mib);
            stranding.of_host(usable, after.0, after.1)
                - stranding.of_host(room.usable_milli, room.milli_cpu, room.memory_mib)
        });
        let Some(money) = self.expected(room, request) else { return UNFIT };
        let worth = Stranding::worth(device + host, self.gpu_hours[usize::from(room.host.class)]);
        packed(money.saturating_add(worth).saturating_add(courtesy(room, request)), takes_untouched)
    }

    /// What the host is expected to cost, where the request can pay it.
    fn expected(&self, room: &Room, request: &Request) -> Option<i64> {
        (room.host.hourly(request) <= request.hourly_max).then(|| room.host.expected(request))
    }

    /// The device where a share strands the least, the tightest of those, and how much more it strands.
    fn share(&self, room: &Room, share: Share, mask: Mask) -> Option<(usize, i64)> {
        let stranding = self.stranding[usize::from(room.host.class)].as_ref();
        let of = |usable: u16| stranding.map_or(0, |stranding| stranding.of_device(usable));
        let mut best: Option<(i64, u16, usize)> = None;
        for (device, usable) in room.usable().iter().enumerate() {
            let seen = device > 0 && mask == ANY && room.alike(device, device - 1);
            if seen || mask >> device & 1 == 0 || !room.has_share(device, share) {
                continue;
            }
            let left = room.left_after(device, share);
            let after = if share.owner.is_some() { Stranding::of_rest(left.into()) } else { of(left) };
            let more = after - of(*usable);
            let found = (more, *usable, device);
            best = Some(best.map_or(found, |best| best.min(found)));
        }
        best.map(|(more, _, device)| (device, more))
    }

    /// Cost and index of the cheapest host.
    fn best(&self, request: &Request, kind: &Kind, whose: Option<u64>) -> Option<(i64, usize)> {
        const UNKNOWN: i64 = -1;
        let mut floors = vec![UNKNOWN; 2 * self.sorts.len()];
        let floor = |at: usize, untouched: bool| {
            let (number, sort) = self.sorts.of(at);
            let floor = &mut floors[2 * number + usize::from(untouched)];
            if *floor == UNKNOWN {
                *floor = self.scarce(sort, request, untouched, u32::MAX);
            }
            *floor
        };
        let beyond = |at: usize, untouched: bool| {
            let room = self.rooms[at].as_ref()?;
            if room.kept_for.is_some_and(|id| whose != Some(id)) {
                return None;
            }
            let personal = self.guests.admits(request, at, room)?;
            let left = room.milli_cpu - request.milli_cpu;
            Some(personal.saturating_add(self.scarce(self.sorts.of(at).1, request, untouched, left)))
        };
        kind.cheapest(floor, beyond)
    }

    /// What it costs others that this is taken from a host of some sort, so that so much of
    /// its CPU is left; never negative, and the less the more is left.
    fn scarce(&self, sort: Sort, request: &Request, untouched: bool, milli_cpu: u32) -> i64 {
        let class = usize::from(sort.class);
        let taken = request.whole() + u8::from(untouched);
        let after = self.scarcity.together(sort.whole.saturating_sub(taken), milli_cpu);
        // A device that a guest shares is nobody else's supply, however little of it is taken.
        let milli = match request.gpus {
            Gpus::Share { .. } if request.guest > 0 => u32::from(untouched) * u32::from(DEVICE_MILLI),
            Gpus::None | Gpus::Share { .. } | Gpus::Whole { .. } => request.gpu_milli(),
        };
        let parts = self.scarcity.of_class(class) * i64::from(milli);
        self.worth(class, parts + self.scarcity.of_parting(class, sort.together, after))
    }

    /// Micro-USD an hour for millionths of a device.
    fn worth(&self, class: usize, millionths: i64) -> i64 {
        millionths.saturating_mul(self.gpu_hours[class]) / 1_000_000
    }
}

/// What a request without devices pays for good manners, in micro-USD an hour: it keeps off hosts with devices
/// where all else is equal, and fills one host after the other.
fn courtesy(room: &Room, request: &Request) -> i64 {
    const DEVICES: i64 = 2_000;
    match request.gpus {
        Gpus::None if room.devices() > 0 || room.host.has & SLICES != 0 => DEVICES,
        Gpus::None => i64::from((room.milli_cpu - request.milli_cpu) / 1_000).min(DEVICES - 1),
        Gpus::Share { .. } | Gpus::Whole { .. } => 0,
    }
}

/// What is asked of a class: what accepts it, spread evenly over all that it accepts.
fn shares(demand: &Demand, class: usize, milli: &[u64; CLASSES_MAX]) -> Vec<(Request, u64)> {
    let accepts = demand.kinds().filter(|(kind, _)| kind.gpu_milli() > 0 && kind.classes >> class & 1 == 1);
    let share = |(kind, count): (&Request, u64)| {
        let accepted: u64 =
            (0..CLASSES_MAX).filter(|of| kind.classes >> of & 1 == 1).map(|of| milli[of]).sum();
        let share = u128::from(count) * u128::from(milli[class]) / u128::from(accepted.max(1));
        (*kind, u64::try_from(share).unwrap_or(u64::MAX))
    };
    accepts.map(share).collect()
}
