//! Devices that guests share, and where one more share fits beside those of its owner.

use std::collections::BTreeSet;

use super::room::{Room, Share};

/// Shares of which one more fits beside them, with the numbers of their hosts.
#[derive(Debug, Clone, Default)]
pub(super) struct WithRoom(BTreeSet<(Share, u32)>);

impl WithRoom {
    /// Counts a room in.
    pub fn add(&mut self, at: u32, room: &Room) {
        self.0.extend(room.with_room().map(|share| (share, at)));
    }

    /// Counts out a room that is as it was when it was counted in.
    pub fn remove(&mut self, at: u32, room: &Room) {
        for share in room.with_room() {
            self.0.remove(&(share, at));
        }
    }

    /// The hosts where such a share fits beside others.
    pub fn hosts(&self, share: Share) -> impl Iterator<Item = u32> {
        self.0.range((share, 0)..=(share, u32::MAX)).map(|(_, at)| *at)
    }
}
