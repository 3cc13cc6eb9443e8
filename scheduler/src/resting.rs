//! Which offers of clouds are left alone for a while, and which clouds: after machines that came to nothing. Pure.
//!
//! A machine that is paid for and takes no job may be the cloud's fault, or ours; either way the next one costs as much.

use std::collections::BTreeMap;

use nave_clouds::Cloud;
use nave_domain::{MicroUsd, Millis, Timestamp};
use nave_store::MachineEnd;

use crate::demand::Refused;

/// How far back it is looked: longer than any rest.
pub const LATELY: Millis = Millis(24 * 3_600_000);
/// For how long an offer rests after one machine that came to nothing; each further one in a row doubles it.
const REST: Millis = Millis(600_000);
/// How often that doubles at the most.
const DOUBLINGS_MAX: u32 = 5;
/// So many machines in a row that were paid for in vain, whatever they were, stop their cloud.
pub const STOPS_AFTER: u32 = 5;
/// For how long, after the last one.
const STOPPED: Millis = Millis(6 * 3_600_000);

/// What is not rented, and until when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resting {
    /// Offers that came to nothing.
    pub offers: BTreeMap<Refused, Timestamp>,
    /// Clouds of which so many machines in a row were paid for in vain that none is rented there.
    pub clouds: BTreeMap<Cloud, Timestamp>,
}

/// What rests at `now`, by how machines ended, the latest first; what was before an operator's word does not count.
#[must_use]
pub fn resting(ends: &[MachineEnd], resumed: &BTreeMap<Cloud, Timestamp>, now: Timestamp) -> Resting {
    let counts = |end: &&MachineEnd, cloud| resumed.get(&cloud).is_none_or(|resumed| end.at > *resumed);
    let mut offers: BTreeMap<Refused, Row> = BTreeMap::new();
    let mut clouds: BTreeMap<Cloud, Row> = BTreeMap::new();
    for end in ends {
        let Some(cloud) = Cloud::named(&end.cloud).filter(|cloud| counts(&end, *cloud)) else { continue };
        offers.entry((cloud, end.offer.clone(), end.region.clone())).or_default().add(end);
        // What costs nothing stops nobody: a cloud that is sold out says so.
        if end.has_worked || end.cost > MicroUsd::ZERO {
            clouds.entry(cloud).or_default().add(end);
        }
    }
    let is_over = |until: &Timestamp| *until <= now;
    let rest = |row: Row| {
        let doublings = row.failures.checked_sub(1)?.min(DOUBLINGS_MAX);
        Some(row.last?.after(Millis(REST.0 << doublings))).filter(|until| !is_over(until))
    };
    let stop = |row: Row| {
        let last = row.last.filter(|_| row.failures >= STOPS_AFTER)?;
        Some(last.after(STOPPED)).filter(|until| !is_over(until))
    };
    Resting {
        offers: offers.into_iter().filter_map(|(offer, row)| Some((offer, rest(row)?))).collect(),
        clouds: clouds.into_iter().filter_map(|(cloud, row)| Some((cloud, stop(row)?))).collect(),
    }
}

/// Failures in a row, from the last end back to the last machine that worked.
#[derive(Default)]
struct Row {
    failures: u32,
    /// When the latest of them ended.
    last: Option<Timestamp>,
    is_over: bool,
}

impl Row {
    fn add(&mut self, end: &MachineEnd) {
        self.is_over |= end.has_worked;
        if !self.is_over {
            self.failures += 1;
            self.last.get_or_insert(end.at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;
    const NOW: Timestamp = Timestamp(1_795_000_000_000);

    fn end(ago: i64, offer: &str, cost: i64) -> MachineEnd {
        MachineEnd {
            cloud: "lambda".into(),
            offer: offer.into(),
            region: "us".into(),
            at: Timestamp(NOW.0 - ago * MINUTE),
            cost: MicroUsd(cost),
            has_worked: false,
        }
    }

    fn worked(ago: i64, offer: &str) -> MachineEnd {
        MachineEnd { has_worked: true, ..end(ago, offer, 100) }
    }

    /// For how many minutes more each offer rests.
    fn offers(ends: &[MachineEnd]) -> Vec<(String, i64)> {
        let resting = resting(ends, &BTreeMap::new(), NOW);
        resting.offers.into_iter().map(|((_, id, _), until)| (id, until.since(NOW).0 / MINUTE)).collect()
    }

    /// For how many minutes more the cloud is stopped.
    fn stopped(ends: &[MachineEnd]) -> Option<i64> {
        let resting = resting(ends, &BTreeMap::new(), NOW);
        resting.clouds.get(&Cloud::Lambda).map(|until| until.since(NOW).0 / MINUTE)
    }

    #[test]
    fn an_offer_rests_from_the_end_of_a_machine_however_long_that_took() {
        assert_eq!(offers(&[end(4, "a", 100), end(11, "b", 100)]), [("a".to_owned(), 6)]);
    }

    #[test]
    fn each_failure_in_a_row_doubles_the_rest_and_a_machine_that_worked_ends_the_row() {
        let mut ends: Vec<_> = (0..2).map(|n| end(n * 60, "a", 100)).collect();
        assert_eq!(offers(&ends), [("a".to_owned(), 20)]);
        ends.extend((2..9).map(|n| end(n * 60, "a", 0)));
        assert_eq!(offers(&ends), [("a".to_owned(), 320)], "and no further");
        ends.insert(1, worked(30, "a"));
        assert_eq!(offers(&ends), [("a".to_owned(), 10)]);
        ends.insert(0, worked(0, "a"));
        assert_eq!(offers(&ends), []);
    }

    #[test]
    fn a_cloud_is_stopped_for_a_time_after_machines_in_a_row_that_were_paid_for_in_vain() {
        let offer = |n: i64| format!("offer {n}");
        let mut ends: Vec<_> = (0..4).map(|n| end(60 + n, &offer(n), 100)).collect();
        ends.push(end(65, "free", 0));
        assert_eq!(stopped(&ends), None, "what is refused costs nothing");
        ends.push(end(66, "fifth", 100));
        assert_eq!(stopped(&ends), Some(300));
        ends.insert(2, worked(61, "works"));
        assert_eq!(stopped(&ends), None);
        let old: Vec<_> = (0..9).map(|n| end(360 + n, &offer(n), 100)).collect();
        assert_eq!(stopped(&old), None, "it goes on by itself");
    }

    #[test]
    fn an_operators_word_ends_all_rests_of_a_cloud() {
        let ends: Vec<_> = (0..9).map(|n| end(5 + n, "a", 100)).collect();
        assert!(stopped(&ends).is_some() && !offers(&ends).is_empty());
        let resumed = BTreeMap::from([(Cloud::Lambda, Timestamp(NOW.0 - 5 * MINUTE))]);
        assert_eq!(resting(&ends, &resumed, NOW), Resting::default());
        let since = [end(1, "a", 100)];
        assert_eq!(resting(&since, &resumed, NOW).offers.len(), 1, "what comes to nothing afterwards counts");
    }
}
