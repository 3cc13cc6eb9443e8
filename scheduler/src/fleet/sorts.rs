//! Sorts of hosts: those that scarcity sees as the same, so that what it adds to a cost at
//! the least is found out once for all of them.

use std::collections::BTreeMap;

use super::{
    room::Room,
    scarcity::{Scarcity, Together},
};

/// What scarcity sees of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sort {
    pub class: u8,
    /// Untouched devices.
    pub whole: u8,
    /// How many of them count as together.
    pub together: Together,
}

/// The sort of every host.
#[derive(Debug, Clone, Default)]
pub(super) struct Sorts {
    known: BTreeMap<Sort, u32>,
    sorts: Vec<Sort>,
    of: Vec<u32>,
}

impl Sorts {
    /// Notes what a host is now.
    pub fn set(&mut self, host: usize, room: &Room, scarcity: &Scarcity) {
        let together = scarcity.together(room.whole, room.milli_cpu);
        let sort = Sort { class: room.host.class, whole: room.whole, together };
        let next = u32::try_from(self.sorts.len()).unwrap_or(u32::MAX);
        let number = *self.known.entry(sort).or_insert(next);
        if number == next {
            self.sorts.push(sort);
        }
        if self.of.len() <= host {
            self.of.resize(host + 1, 0);
        }
        self.of[host] = number;
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sorts.len()
    }

    /// The number of a host's sort, and the sort.
    pub fn of(&self, host: usize) -> (usize, Sort) {
        let number = self.of[host] as usize;
        (number, self.sorts[number])
    }
}
