//! Who asks, and where they may not go: beside whom, with which miner, and where they failed before.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Handle,
    request::{Gpus, Request},
    room::{ANY, Mask, Room, Share},
};

/// What it costs, in micro-USD an hour, to go where one failed before: more than any price, so that only
/// those go there who find nothing else, and rather where they failed less often.
const FAILURE: i64 = 1 << 44;

/// Orders that differ by less make no difference between guests, in bytes.
const ORDER_STEP: u32 = 1 << 16;

/// An owner of nothing anywhere.
const STRANGER: u32 = u32::MAX;

/// Somebody who asks, with rules of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guest {
    /// Whose placement it is; below `u32::MAX`. All shares of a device are one owner's, and of one size.
    pub owner: u32,
    /// Whether nobody else's may be on the same host.
    pub alone: bool,
    /// Among whom no two go to hosts of one miner.
    pub apart: Option<u32>,
    /// Miners who have one of those already.
    pub apart_from: BTreeSet<u32>,
    /// Bytes that its order takes of those that a host has for orders.
    pub order_bytes: u32,
    /// How often it failed on a host.
    pub failures: BTreeMap<Handle, u8>,
}

impl Guest {
    /// What decides where it may go.
    fn rules(&self) -> impl PartialEq {
        let Self { owner, alone, apart, apart_from, order_bytes, failures } = self;
        (owner, alone, apart, apart_from, order_bytes / ORDER_STEP, failures)
    }
}

/// Which devices of which hosts will do for somebody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// Of each host, in the order of handles. For those without devices any bit lets them have a host.
    pub masks: Vec<Mask>,
    /// What is taken of the devices; none for what the request says.
    pub gpus: Option<Gpus>,
    /// The wish instead where none of them is free; 0 for no other.
    pub otherwise: u32,
}

/// All guests and wishes of a fleet; their numbers begin at 1.
#[derive(Debug, Clone, Default)]
pub(super) struct Guests {
    guests: Vec<Guest>,
    wishes: Vec<Wish>,
    /// Numbers of wishes that are forgotten.
    vacant: BTreeSet<u32>,
    /// Placements of those who are kept apart, by whom they are kept apart from and their miner.
    given: BTreeMap<(u32, u32), u32>,
}

impl Guests {
    pub fn invite(&mut self, guest: Guest) -> u32 {
        self.guests.push(guest);
        u32::try_from(self.guests.len()).unwrap_or(0)
    }

    /// Forgets all guests, and who has gone where.
    pub fn clear_guests(&mut self) {
        self.guests.clear();
        self.given.clear();
    }

    pub fn wish(&mut self, wish: Wish) -> u32 {
        match self.vacant.pop_first() {
            Some(number) => {
                if let Some(place) = numbered_mut(&mut self.wishes, number) {
                    *place = wish;
                }
                number
            }
            None => {
                self.wishes.push(wish);
                u32::try_from(self.wishes.len()).unwrap_or(0)
            }
        }
    }

    pub fn wish_again(&mut self, wish: u32, at: usize, mask: Mask) {
        let Some(wish) = numbered_mut(&mut self.wishes, wish) else { return };
        if wish.masks.len() <= at {
            wish.masks.resize(at + 1, 0);
        }
        wish.masks[at] = mask;
    }

    pub fn wished(&self, wish: u32) -> &[Mask] {
        numbered(&self.wishes, wish).map_or(&[], |wish| &wish.masks)
    }

    pub fn forget_wishes(&mut self, wishes: &BTreeSet<u32>) {
        for number in wishes {
            if let Some(wish) = numbered_mut(&mut self.wishes, *number) {
                *wish = Wish::default();
                self.vacant.insert(*number);
            }
        }
    }

    /// The devices of a host that will do for a request, and for those without any whether the host does.
    pub fn mask(&self, request: &Request, at: usize) -> Mask {
        let Some(wish) = numbered(&self.wishes, request.wish) else { return ANY };
        wish.masks.get(at).copied().unwrap_or(0)
    }

    /// A request as it is, then as it is otherwise wished.
    pub fn choices(&self, request: &Request) -> impl Iterator<Item = Request> + use<> {
        let mut choices = Vec::new();
        let mut next = request.wish;
        while choices.is_empty() || next > 0 {
            let wish = numbered(&self.wishes, next);
            let gpus = wish.and_then(|wish| wish.gpus).unwrap_or(request.gpus);
            choices.push(Request { wish: next, gpus, ..*request });
            next = wish.map_or(0, |wish| wish.otherwise);
        }
        choices.into_iter()
    }

    /// The share that a request asks for, if for one.
    pub fn share(&self, request: &Request) -> Option<Share> {
        let owner = numbered(&self.guests, request.guest).map(|guest| guest.owner);
        share(request, owner)
    }

    /// The same for a guest who shares no device yet: what of a host does not depend on which guest it is.
    pub fn first_share(request: &Request) -> Option<Share> {
        share(request, (request.guest > 0).then_some(STRANGER))
    }

    /// What it costs a guest beside everything else to go to a host; `None` where they may not.
    pub fn admits(&self, request: &Request, at: usize, room: &Room) -> Option<i64> {
        let Some(guest) = numbered(&self.guests, request.guest) else { return Some(0) };
        let is_crowded =
            room.tenants.iter().any(|other| other.owner != guest.owner && (guest.alone || other.alone > 0));
        let miner = room.host.miner;
        let is_given = guest.apart.is_some_and(|apart| self.given.contains_key(&(apart, miner)));
        let host = Handle(u32::try_from(at).ok()?);
        let is_full = guest.order_bytes > room.order_bytes;
        if is_crowded || is_full || is_given || guest.apart_from.contains(&miner) {
            return None;
        }
        Some(guest.failures.get(&host).map_or(0, |failures| FAILURE * i64::from(*failures)))
    }

    /// Whether two ask for the same under the same rules: where one finds no place, the other finds none.
    pub fn are_alike(&self, one: &Request, other: &Request) -> bool {
        let rules = |request: &Request| numbered(&self.guests, request.guest).map(Guest::rules);
        Request { guest: other.guest, ..*one } == *other && rules(one) == rules(other)
    }

    /// Notes in a room that a guest has a place there.
    pub fn settle(&self, request: &Request, room: &mut Room) {
        let Some(guest) = numbered(&self.guests, request.guest) else { return };
        room.enter(guest.owner, guest.alone);
        room.order_bytes = room.order_bytes.saturating_sub(guest.order_bytes);
    }

    /// Notes that a guest goes to a host.
    pub fn enter(&mut self, request: &Request, room: &mut Room) {
        self.settle(request, room);
        let Some(guest) = numbered(&self.guests, request.guest) else { return };
        if let Some(apart) = guest.apart {
            *self.given.entry((apart, room.host.miner)).or_default() += 1;
        }
    }

    /// Notes that a guest leaves a host.
    pub fn leave(&mut self, request: &Request, room: &mut Room) {
        let Some(guest) = numbered(&self.guests, request.guest) else { return };
        room.leave(guest.owner, guest.alone);
        room.forget_order(guest.order_bytes);
        let Some(apart) = guest.apart else { return };
        if let Some(given) = self.given.get_mut(&(apart, room.host.miner)) {
            *given -= 1;
        }
        self.given.retain(|_, given| *given > 0);
    }
}

fn share(request: &Request, owner: Option<u32>) -> Option<Share> {
    match request.gpus {
        Gpus::Share { milli, vram_mib } => Some(Share { owner, milli, vram_mib }),
        Gpus::None | Gpus::Whole { .. } => None,
    }
}

fn numbered_mut<T>(all: &mut [T], number: u32) -> Option<&mut T> {
    all.get_mut((number as usize).checked_sub(1)?)
}

fn numbered<T>(all: &[T], number: u32) -> Option<&T> {
    all.get((number as usize).checked_sub(1)?)
}
