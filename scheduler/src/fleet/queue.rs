//! Who waits, and what is done so that nobody waits for ever: hosts are kept for those that
//! waited too long, and spot leases yield to those on demand.

use std::collections::BTreeMap;

use super::{
    Choice, Fleet, Handle,
    batch::{Gang, Places},
    request::{Gpus, Request},
    room::{ANY, Host, Room},
};

/// A gang that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// What it asks for.
    pub gang: Gang,
    /// Since when, in milliseconds of one clock.
    pub since_ms: i64,
    /// Whether spot leases yield to it; spot gangs wait for others to end.
    pub on_demand: bool,
}

/// A lease that yields to those that are on demand, or several that yield together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpotLease {
    /// Known to the caller.
    pub id: u64,
    /// Where it runs.
    pub host: Handle,
    /// What it occupies there.
    pub request: Request,
    /// On which devices.
    pub devices: Vec<u8>,
    /// Whose each is, and whether that one has the host alone, where anybody is told apart.
    pub tenants: Vec<(u32, bool)>,
    /// Bytes that their orders take.
    pub order_bytes: u32,
    /// Whether it was given notice already: it ends anyway.
    pub noticed: bool,
}

impl SpotLease {
    fn leave(&self, room: &mut Room) {
        room.give(&self.request, &self.devices);
        self.tenants.iter().for_each(|(owner, alone)| room.leave(*owner, *alone));
        room.forget_order(self.order_bytes);
    }
}

/// What is to be done now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Gangs that are placed; the fleet has them already.
    pub placed: Vec<(u64, Places)>,
    /// Spot leases to give notice to, and to whom each yields.
    pub notices: Vec<(u64, u64)>,
    /// Gangs that wait on.
    pub waiting: Vec<u64>,
}

/// What it takes to make room on a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Yield {
    /// What the leases that end have done in vain, in micro-USD.
    cost: i64,
    host: Handle,
    leases: Vec<u64>,
}

impl Fleet {
    /// Plans for everybody who waits. Those that waited longer than `patience_ms` come first,
    /// oldest first, and others only after them. For whoever is on demand and fits nowhere,
    /// spot leases get notice; for the oldest that was patient for too long, hosts are
    /// kept free, so that what ends there is not taken by others. As leases end, the oldest
    /// is placed, then the next one: nobody starves.
    pub fn plan(&mut self, waiting: &[Waiting], spot: &[SpotLease], now_ms: i64, patience_ms: i64) -> Plan {
        let mut plan = Plan::default();
        let mut oldest: Vec<&Waiting> = waiting.iter().collect();
        oldest.sort_by_key(|waiting| (waiting.since_ms, waiting.gang.id));
        self.free_kept(waiting);
        let tired = |waiting: &&Waiting| now_ms.saturating_sub(waiting.since_ms) > patience_ms;
        let (tired, patient): (Vec<_>, Vec<_>) = oldest.into_iter().partition(tired);
        let mut without: Vec<&Waiting> = Vec::new();
        for waiting in &tired {
            match self.place_gang(&waiting.gang) {
                Some(places) => self.placed(waiting, places, &mut plan),
                None => without.push(waiting),
            }
        }
        // One that would fit nowhere even then keeps nothing from the next.
        for waiting in &without {
            if self.keep_for(waiting) {
                break;
            }
        }
        let gangs: Vec<Gang> = patient.iter().map(|waiting| waiting.gang.clone()).collect();
        let places = self.place_batch(&gangs);
        for (waiting, places) in patient.iter().zip(places) {
            match places {
                Some(places) => self.placed(waiting, places, &mut plan),
                None => without.push(waiting),
            }
        }
        let mut spot: Vec<SpotLease> = spot.to_vec();
        for waiting in without {
            if waiting.on_demand {
                self.give_notice(&waiting.gang, &mut spot, &mut plan);
            }
            plan.waiting.push(waiting.gang.id);
        }
        plan
    }

    fn placed(&mut self, waiting: &Waiting, places: Vec<Choice>, plan: &mut Plan) {
        self.let_go(waiting.gang.id);
        plan.placed.push((waiting.gang.id, places));
    }

    /// Frees hosts that are kept for others than these.
    fn free_kept(&mut self, waiting: &[Waiting]) {
        let gone = self.keepers.iter().filter(|id| !waiting.iter().any(|waiting| waiting.gang.id == **id));
        for id in gone.copied().collect::<Vec<u64>>() {
            self.let_go(id);
        }
    }

    fn let_go(&mut self, whose: u64) {
        if self.keepers.remove(&whose) {
            for room in self.rooms.iter_mut().flatten() {
                room.kept_for = room.kept_for.filter(|id| *id != whose);
            }
        }
    }

    /// For whom a host is kept free.
    #[must_use]
    pub fn kept_for(&self, handle: Handle) -> Option<u64> {
        self.room(handle)?.kept_for
    }

    /// The hosts that are kept free, and for whom each.
    #[must_use]
    pub fn kept(&self) -> Vec<(Handle, u64)> {
        if self.keepers.is_empty() {
            return Vec::new();
        }
        let rooms = (0..).zip(&self.rooms);
        rooms.filter_map(|(at, room)| Some((Handle(at), room.as_ref()?.kept_for?))).collect()
    }

    /// Keeps a host free for somebody, as it was in the look before.
    pub fn keep_host(&mut self, handle: Handle, whose: u64) {
        self.keep(handle.0 as usize, whose);
    }

    fn keep(&mut self, at: usize, whose: u64) {
        if let Some(Some(room)) = self.rooms.get_mut(at) {
            room.kept_for = Some(whose);
            self.keepers.insert(whose);
        }
    }

    /// Keeps hosts free for a gang: its own already, then those where the least must end until
    /// its members fit, then those that are kept for somebody younger. What yielded to others is
    /// kept for them, so a spot gang takes none of the last. `false` and none where the gang would
    /// not fit even so.
    fn keep_for(&mut self, waiting: &Waiting) -> bool {
        let gang = &waiting.gang;
        if !gang.members.iter().all(|member| self.may_ever_fit(member)) {
            return false;
        }
        let may_have =
            |room: &&Room| room.open && (waiting.on_demand || room.kept_for.is_none_or(|id| id == gang.id));
        let open = |(at, room)| Some((at, Option::as_ref(room).filter(may_have)?));
        let mut empty: Vec<((u8, u32), usize, Room)> = self
            .rooms
            .iter()
            .enumerate()
            .filter_map(open)
            .map(|(at, room)| {
                let turn = match room.kept_for {
                    Some(id) if id == gang.id => 0,
                    None => 1,
                    Some(_) => 2,
                };
                ((turn, room.occupied()), at, Room::new(room.host.clone()))
            })
            .collect();
        empty.sort_by_key(|(turn, at, _)| (*turn, *at));
        let mut found_at = Vec::new();
        for member in &gang.members {
            let found =
                empty.iter_mut().find_map(|(_, at, room)| self.fill(*at, room, member).then_some(*at));
            match found {
                Some(at) => found_at.push(at),
                None => return false,
            }
        }
        self.let_go(gang.id);
        found_at.into_iter().for_each(|at| self.keep(at, gang.id));
        true
    }

    /// Whether all members of a gang would fit if nobody were on any host.
    #[must_use]
    pub fn fits_when_empty(&self, gang: &Gang) -> bool {
        let mut rooms: BTreeMap<usize, Room> = BTreeMap::new();
        gang.members.iter().all(|member| {
            self.when_empty(member).any(|(at, host)| {
                let mut room = rooms.get(&at).cloned().unwrap_or_else(|| Room::new(host.clone()));
                let fits = self.fill(at, &mut room, member);
                if fits {
                    rooms.insert(at, room);
                }
                fits
            })
        })
    }

    fn may_ever_fit(&self, request: &Request) -> bool {
        self.when_empty(request).next().is_some()
    }

    /// The hosts that have enough for a request when they are empty, as far as one sees without looking at devices.
    fn when_empty(&self, request: &Request) -> impl Iterator<Item = (usize, &Host)> {
        let choices: Vec<Request> = self.guests.choices(request).collect();
        let request = *request;
        let rooms = self.rooms.iter().enumerate().filter_map(|(at, room)| Some((at, &room.as_ref()?.host)));
        rooms.filter(move |(at, host)| {
            let devices =
                ANY.checked_shl(u32::try_from(host.vram_mib.len()).unwrap_or(u32::MAX)).unwrap_or(0);
            let will_do = |choice: &Request| {
                let mask = self.guests.mask(choice, *at);
                match choice.gpus {
                    Gpus::None => mask != 0,
                    Gpus::Share { .. } => mask & !devices != 0,
                    Gpus::Whole { count, .. } => (mask & !devices).count_ones() >= u32::from(count),
                }
            };
            host.milli_cpu >= request.milli_cpu
                && host.memory_mib >= request.memory_mib
                && host.disk_mib >= request.disk_mib
                && choices.iter().any(will_do)
        })
    }

    /// Gives notice to the spot leases whose end costs the least, so that a gang fits, and
    /// keeps their hosts for it.
    fn give_notice(&mut self, gang: &Gang, spot: &mut [SpotLease], plan: &mut Plan) {
        if spot.is_empty() {
            return;
        }
        let mut rooms: BTreeMap<Handle, Room> = BTreeMap::new();
        let mut ends: Vec<u64> = Vec::new();
        let is_alone = gang.members.len() == 1;
        for member in &gang.members {
            let Some(found) = self.yields(gang.id, member, &rooms, spot, &ends, is_alone) else { return };
            let room = rooms.remove(&found.host).or_else(|| self.room(found.host).cloned());
            let Some(mut room) = room else { return };
            for lease in spot.iter().filter(|lease| found.leases.contains(&lease.id)) {
                lease.leave(&mut room);
            }
            self.fill(found.host.0 as usize, &mut room, member);
            rooms.insert(found.host, room);
            ends.extend(found.leases);
        }
        rooms.keys().for_each(|host| self.keep(host.0 as usize, gang.id));
        for lease in spot.iter_mut().filter(|lease| ends.contains(&lease.id) && !lease.noticed) {
            lease.noticed = true;
            plan.notices.push((lease.id, gang.id));
        }
    }

    /// The cheapest leases to end so that a request fits, where `rooms` are as they are to be
    /// when the leases in `ends` have ended.
    fn yields(
        &self,
        whose: u64,
        request: &Request,
        rooms: &BTreeMap<Handle, Room>,
        spot: &[SpotLease],
        ends: &[u64],
        is_alone: bool,
    ) -> Option<Yield> {
        let mut by_host: BTreeMap<Handle, Vec<&SpotLease>> = BTreeMap::new();
        for lease in spot.iter().filter(|lease| !ends.contains(&lease.id)) {
            by_host.entry(lease.host).or_default().push(lease);
        }
        // Alone it fits nowhere as it is; beside the others of a gang it may.
        let hosts: Vec<Handle> = if is_alone {
            by_host.keys().copied().collect()
        } else {
            (0..self.rooms.len()).filter_map(|at| Some(Handle(u32::try_from(at).ok()?))).collect()
        };
        let options = hosts.into_iter().filter_map(|host| {
            let room = rooms.get(&host).or_else(|| self.room(host))?;
            let leases = by_host.remove(&host).unwrap_or_default();
            let free = room.open && room.kept_for.is_none_or(|id| id == whose);
            if free { self.fewest(host, room, request, leases) } else { None }
        });
        options.min()
    }

    /// The leases that must end on a host, none of them in vain.
    fn fewest(
        &self,
        host: Handle,
        room: &Room,
        request: &Request,
        mut leases: Vec<&SpotLease>,
    ) -> Option<Yield> {
        let lost = |lease: &SpotLease| match lease.noticed {
            true => 0,
            false => {
                room.host.hourly(&lease.request).saturating_mul(lease.request.redo_minutes.into()) / 60 + 1
            }
        };
        let fits = |ending: &[&SpotLease]| {
            let mut room = room.clone();
            ending.iter().for_each(|lease| lease.leave(&mut room));
            self.fill(host.0 as usize, &mut room, request)
        };
        leases.sort_by_key(|lease| (lost(lease), lease.id));
        let enough = (0..=leases.len()).find(|count| fits(&leases[..*count]))?;
        leases.truncate(enough);
        // The dearest first: spare whoever need not end.
        for at in (0..leases.len()).rev() {
            let spared = leases.remove(at);
            if !fits(&leases) {
                leases.insert(at, spared);
            }
        }
        let cost = leases.iter().map(|lease| lost(lease)).sum();
        Some(Yield { cost, host, leases: leases.iter().map(|lease| lease.id).collect() })
    }

    /// Occupies a room, of the host of that number, anywhere; `false` where the request does not fit or cannot pay.
    fn fill(&self, at: usize, room: &mut Room, request: &Request) -> bool {
        if !room.admits(request)
            || room.host.hourly(request) > request.hourly_max
            || self.guests.admits(request, at, room).is_none()
        {
            return false;
        }
        let tightness =
            |devices: &Vec<u8>| devices.iter().map(|device| room.usable()[usize::from(*device)]).min();
        let found = self.guests.choices(request).find_map(|choice| {
            let mask = Some(self.guests.mask(&choice, at)).filter(|mask| *mask != 0)?;
            let share = self.guests.share(&choice);
            let devices = room.places(&choice, share, mask).into_iter().min_by_key(tightness)?;
            Some((choice, share, devices))
        });
        let is_taken = found.is_some_and(|(choice, share, devices)| room.take(&choice, share, &devices));
        if is_taken {
            self.guests.settle(request, room);
        }
        is_taken
    }
}
