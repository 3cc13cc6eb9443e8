//! What is asked for, as a distribution: how often each kind of request came, lately.

use std::collections::BTreeMap;

use super::request::Request;

/// What one request counts for, so that a count can decay many times before it is gone.
const ONE: u64 = 1 << 20;
/// Kinds that are told apart; beyond them the rarest are forgotten.
const KINDS_MAX: usize = 512;

/// Decaying counts of kinds of requests.
#[derive(Debug, Clone, Default)]
pub struct Demand {
    counts: BTreeMap<Request, u64>,
}

impl Demand {
    /// Counts a request.
    pub fn observe(&mut self, request: &Request) {
        *self.counts.entry(*request).or_default() += ONE;
        if self.counts.len() > 2 * KINDS_MAX {
            self.forget_the_rarest();
        }
    }

    /// Lets all counts lose an eighth: called at even intervals, a request counts half after five.
    pub fn decay(&mut self) {
        self.counts.retain(|_, count| {
            *count -= *count / 8;
            *count > ONE / 64
        });
    }

    /// The most frequent kinds and their counts, in the order of kinds.
    pub fn kinds(&self) -> impl Iterator<Item = (&Request, u64)> {
        let floor = self.floor();
        self.counts.iter().map(|(request, count)| (request, *count)).filter(move |(_, count)| *count >= floor)
    }

    fn forget_the_rarest(&mut self) {
        let floor = self.floor();
        self.counts.retain(|_, count| *count >= floor);
        if self.counts.len() > KINDS_MAX {
            // So many equal counts say nothing about which kinds matter.
            let kept: BTreeMap<Request, u64> =
                std::mem::take(&mut self.counts).into_iter().step_by(2).collect();
            self.counts = kept;
        }
    }

    /// The least count among the most frequent kinds.
    fn floor(&self) -> u64 {
        let mut counts: Vec<u64> = self.counts.values().copied().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts.get(KINDS_MAX - 1).copied().unwrap_or(0)
    }
}
