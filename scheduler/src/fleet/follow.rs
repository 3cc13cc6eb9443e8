//! How a fleet follows hosts that others change, from one look to the next.

use std::collections::BTreeSet;

use super::{
    Fleet, Handle, Request,
    room::{CLASSES_MAX, DEVICES_MAX, Host, Mask, Room, Used},
};

impl Fleet {
    /// Forgets all guests and for whom hosts are kept, and prices scarcity again before the next decision: whatever was
    /// decided before this counts only as far as hosts are not as they were.
    pub fn begin(&mut self) {
        self.guests.clear_guests();
        if !std::mem::take(&mut self.keepers).is_empty() {
            self.rooms.iter_mut().flatten().for_each(|room| room.kept_for = None);
        }
        self.priced = None;
    }

    /// What a request is expected to cost on a host, whatever it takes from others.
    #[must_use]
    pub fn expected_on(&self, handle: Handle, request: &Request) -> Option<i64> {
        let room = self.room(handle)?;
        Some(self.expected(room, request)? + self.guests.admits(request, handle.index(), room)?)
    }

    /// Notes that all hosts are as they should be; see [`altered`](Self::altered).
    pub fn settle(&mut self) {
        self.settled = self.now();
    }

    /// The hosts that have changed since [`settle`](Self::settle); `None` where that is not known any more.
    #[must_use]
    pub fn altered(&self) -> Option<BTreeSet<Handle>> {
        let from = usize::try_from(self.settled.checked_sub(self.logged)?).ok()?;
        Some(self.log.get(from..)?.iter().map(|at| Handle(*at)).collect())
    }

    /// Changes which devices of a host will do for a wish; the host is to be [`put`](Self::put) afterwards.
    pub fn wish_again(&mut self, wish: u32, handle: Handle, mask: Mask) {
        self.guests.wish_again(wish, handle.index(), mask);
    }

    /// Which devices of each host will do for a wish.
    #[must_use]
    pub fn wished(&self, wish: u32) -> &[Mask] {
        self.guests.wished(wish)
    }

    /// Forgets wishes, whose numbers may then mean others.
    pub fn forget_wishes(&mut self, wishes: &BTreeSet<u32>) {
        self.guests.forget_wishes(wishes);
        self.kinds.forget(|request| wishes.contains(&request.wish));
    }

    /// Puts a host, with what is in use there, in the place of the one that a handle means, or takes that away; unlike
    /// after [`remove`](Self::remove) the handle is nobody else's then. Nothing is done where the host is larger than the
    /// fleet can say.
    pub fn put(&mut self, handle: Handle, host: Option<(Host, &Used)>) {
        let fits = |host: &Host| {
            usize::from(host.class) < CLASSES_MAX && host.zone < 64 && host.vram_mib.len() <= DEVICES_MAX
        };
        let Some(place) = self.rooms.get_mut(handle.index()) else { return };
        if host.as_ref().is_some_and(|(host, _)| !fits(host)) {
            return;
        }
        if let Some(room) = place.take() {
            self.scarcity.remove(&room);
            self.with_room.remove(handle.0, &room);
        }
        if let Some((host, used)) = host {
            let mut room = Room::new(host);
            room.occupy(used);
            self.scarcity.add(&room);
            self.with_room.add(handle.0, &room);
            self.sorts.set(handle.index(), &room, &self.scarcity);
            *place = Some(room);
        }
        self.changed(handle.0);
    }
}
