//! When hosts were heard, and whether it was everyone who was not.

use std::collections::BTreeMap;

use super::{EventRules, Resumed};
use crate::units::{Millis, Timestamp};

/// A stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stretch {
    /// When it began.
    pub from: Timestamp,
    /// When it ended.
    pub until: Timestamp,
}

impl Stretch {
    /// How long it is; nothing where it ends before it begins.
    #[must_use]
    pub fn length(self) -> Millis {
        Millis(self.until.0.saturating_sub(self.from.0).max(0))
    }

    /// What they have in common; of no length where that is nothing.
    pub(super) fn and(self, other: Self) -> Self {
        Self { from: self.from.max(other.from), until: self.until.min(other.until) }
    }

    pub(super) fn shared(self, other: Self) -> Millis {
        self.and(other).length()
    }

    /// Whether they have time in common.
    #[must_use]
    pub fn touches(self, other: Self) -> bool {
        self.from < other.until && other.from < self.until
    }
}

/// A time for which a host was not heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// From when it was last heard until it was heard again, or until now.
    pub stretch: Stretch,
    /// What came of it; none while it lasts.
    pub resumed: Option<Resumed>,
}

impl Silence {
    pub(super) fn has_restarted(self) -> bool {
        self.resumed.is_some_and(|how| how != Resumed::Same)
    }
}

/// When a host was in contact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// Its miner.
    pub hotkey: String,
    /// Since when the host is known.
    pub joined: Timestamp,
    /// When it was last heard.
    pub heard: Timestamp,
    /// Whether it is one of the market's that was ready once; who leaves does not fall silent.
    pub is_member: bool,
    /// Its silences that are longer than a gap, with the one that lasts.
    pub silences: Vec<Silence>,
}

impl Contact {
    /// Whether it fell silent with others at `at`, give or take a gap; none where it was not in contact then.
    fn fell_silent(&self, at: Timestamp, gap: Millis) -> Option<bool> {
        let (first, last) = (at.0.saturating_sub(gap.0), at.0.saturating_add(gap.0));
        if !self.is_member || self.joined > at || self.heard.0 < first {
            return None;
        }
        let was_away =
            self.silences.iter().any(|one| one.stretch.from.0 < first && one.stretch.until.0 > last);
        let falls = self.silences.iter().any(|one| (first..=last).contains(&one.stretch.from.0));
        (falls || !was_away).then_some(falls)
    }
}

/// Miners that fell silent with one another when it was the platform: one alone may have chosen to.
const OUTAGE_MINERS: i64 = 2;

/// Some of several.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    some: i64,
    all: i64,
}

impl Part {
    fn add(&mut self, is_one: bool) {
        self.some += i64::from(is_one);
        self.all += 1;
    }

    fn reaches(self, ppm: i64) -> bool {
        self.some > 0 && self.some.saturating_mul(1_000_000) >= self.all.saturating_mul(ppm)
    }
}

/// Whether the hosts that fell silent at `at` are so many that it was not their fault, and so many miners' that none of those
/// has made it seem so.
#[must_use]
pub fn is_outage<'a>(
    contacts: impl IntoIterator<Item = &'a Contact>,
    at: Timestamp,
    rules: &EventRules,
) -> bool {
    let (mut hosts, mut hosts_of) = (Part::default(), BTreeMap::<&str, Part>::new());
    for contact in contacts {
        if let Some(falls) = contact.fell_silent(at, rules.gap) {
            hosts.add(falls);
            hosts_of.entry(&contact.hotkey).or_default().add(falls);
        }
    }
    let mut miners = Part::default();
    hosts_of.into_values().for_each(|hosts| miners.add(hosts.reaches(rules.outage_ppm)));
    hosts.some >= rules.outage_hosts
        && hosts.reaches(rules.outage_ppm)
        && miners.some >= OUTAGE_MINERS
        && miners.reaches(rules.outage_ppm)
}
