//! For how long a job can pay.

use nave_domain::{
    Millis,
    rate::{Rate, affordable},
};
use nave_store::QueuedJob;

/// Shortest run worth starting.
const RUN_MIN: Millis = Millis(1_000);

/// The longest run that the limit allows and the rest of the spend cap pays for at a rate; `None` when that
/// is too short to start.
pub(super) fn run_max(job: &QueuedJob, rate: Rate) -> Option<Millis> {
    let limit = job.request.limits.run_ms;
    let paid = affordable(job.request.resources.size(), job.left, rate);
    let run_max = paid.map_or(limit, |paid| paid.min(limit));
    (run_max >= RUN_MIN.min(limit)).then_some(run_max)
}

/// Whether that is long enough.
pub(super) fn pays(job: &QueuedJob, rate: Rate) -> bool {
    run_max(job, rate).is_some()
}
