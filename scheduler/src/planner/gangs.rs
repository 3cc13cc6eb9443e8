//! Who is placed together with whom.

use std::collections::BTreeMap;

use nave_domain::JobId;
use nave_store::QueuedJob;

/// Jobs that are placed all together or not at all; mostly one.
pub(super) enum Unit<'a> {
    /// All of them are there.
    Whole(Vec<&'a QueuedJob>),
    /// Some of a gang are missing.
    Incomplete { queued: Vec<&'a QueuedJob>, of: usize },
}

/// The units among jobs, in the order of their first jobs. A job that ran before is by itself: the others
/// of its gang have begun without waiting.
pub(super) fn units(jobs: &[QueuedJob]) -> Vec<Unit<'_>> {
    let mut members: BTreeMap<JobId, Vec<&QueuedJob>> = BTreeMap::new();
    for job in jobs {
        members.entry(gang(job).unwrap_or(job.job)).or_default().push(job);
    }
    let mut units: Vec<Vec<&QueuedJob>> = members.into_values().collect();
    units.sort_by_key(|members| members.iter().map(|job| job.job).min());
    units.into_iter().map(unit).collect()
}

fn gang(job: &QueuedJob) -> Option<JobId> {
    job.gang.filter(|_| job.attempts == 0)
}

fn unit(members: Vec<&QueuedJob>) -> Unit<'_> {
    let size = members.iter().find_map(|job| gang(job).and(job.request.gang));
    let of = size.map_or(1, |size| usize::from(size).max(1));
    if members.len() < of { Unit::Incomplete { queued: members, of } } else { Unit::Whole(members) }
}
