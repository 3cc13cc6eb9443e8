//! Hosts and GPUs that are held for a test which is overdue: they get nothing that would put it off any further.
//!
//! A host is tested whole when it is free, and jobs that overlap keep it from that. Once its test is overdue it gets only
//! jobs that must end before those it has, so the moment at which it is free comes no later for them.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{HostId, Millis, Timestamp};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, StoreError, host::HostReason, place::Placement};

/// For how long jobs may put a test off, on the control clock.
const GRACE_MS: i64 = 86_400_000;
/// For how long after its last share a GPU is kept for a test beside the other jobs of its host.
const KEPT_MS: i64 = 300_000;

/// A host that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    /// How much longer what it has may take: what it gets must end before.
    pub lasts: Millis,
    /// Since when.
    since: Timestamp,
}

/// Those of these hosts that are held.
pub(crate) async fn hosts(tx: &mut PgConnection, among: &[Uuid]) -> Result<BTreeMap<HostId, Held>> {
    let rows = sqlx::query!(
        r#"with disputed as (
                select d.host_id, min(d.opened_at_ms) as opened_at_ms from disputes d join hosts h using (host_id)
                where d.host_id = any($1) and d.suite_at_ms is null and d.outcome is null and h.enrolled_at_ms <= d.opened_at_ms
                group by d.host_id),
             overdue as (
                select host_id, least(h.retest_up_ms, opened_at_ms - now_ms() + c.up_ms) + $2::bigint as since_up_ms, c.up_ms
                from hosts h left join disputed using (host_id) cross join (select control_ms() as up_ms) c
                where host_id = any($1) and h.state = 'ready'
                  and least(h.retest_up_ms, opened_at_ms - now_ms() + c.up_ms) + $2::bigint <= c.up_ms)
           select o.host_id, now_ms() - o.up_ms + o.since_up_ms as "since!",
                greatest(0, max(case l.state
                    when 'placed' then l.state_up_ms + l.run_ms_max + (j.request #>> '{limits,start_ms}')::bigint
                    when 'running' then l.state_up_ms + l.run_ms_max
                end - o.up_ms)) as "lasts!"
           from overdue o join leases l on l.host_id = o.host_id and l.state <> 'closed' join jobs j using (job_id)
           group by o.host_id, o.up_ms, o.since_up_ms"#,
        among,
        GRACE_MS
    )
    .fetch_all(tx)
    .await?;
    let rows = rows.into_iter().map(|row| {
        let held = Held { lasts: Millis(row.lasts), since: Timestamp(row.since) };
        (row.host_id.into(), held)
    });
    Ok(rows.collect())
}

/// GPUs of these hosts that are held: they are shared, or were until just now, and were not shown for long.
pub(crate) async fn devices(
    tx: &mut PgConnection,
    among: &[Uuid],
) -> Result<BTreeMap<HostId, BTreeSet<String>>> {
    let rows = sqlx::query!(
        "select d.host_id, d.device from device_claims d
         where d.host_id = any($1) and d.shown_up_ms <= (select control_ms()) - $2::bigint
           and exists (select from leases l
                where l.host_id = d.host_id and d.device = any(l.devices) and l.share_milli is not null
                  and (l.closed_at_ms is null or l.closed_at_ms > now_ms() - $3::bigint))",
        among,
        GRACE_MS,
        KEPT_MS
    )
    .fetch_all(tx)
    .await?;
    let mut held = BTreeMap::<HostId, BTreeSet<String>>::new();
    for row in rows {
        held.entry(row.host_id.into()).or_default().insert(row.device);
    }
    Ok(held)
}

/// Lets placements pass that put off no test which is overdue, each with how long it may take. Their hosts are locked.
///
/// # Errors
/// [`StoreError::Stale`] when one does.
pub(crate) async fn admit(tx: &mut PgConnection, placements: &[(&Placement, Millis)]) -> Result<()> {
    let ids: BTreeSet<Uuid> = placements.iter().map(|(placement, _)| placement.host.0).collect();
    let ids: Vec<Uuid> = ids.into_iter().collect();
    let (hosts, devices) = (hosts(tx, &ids).await?, devices(tx, &ids).await?);
    let is_late = |(placement, longest): &(&Placement, Millis)| {
        let host_is = hosts.get(&placement.host).is_some_and(|held| *longest > held.lasts);
        let devices = devices.get(&placement.host);
        host_is || devices.is_some_and(|held| placement.devices.iter().any(|device| held.contains(device)))
    };
    if placements.iter().any(is_late) { Err(StoreError::Stale("host")) } else { Ok(()) }
}

impl Held {
    /// Why the host gets fewer jobs, for its owner and the operator.
    pub(crate) fn reason(self) -> HostReason {
        let message = "held for its test, which is overdue since it always has jobs: it gets only jobs that end before those \
                       it has, and is tested then";
        HostReason { code: "held_for_test".into(), message: message.into(), since: self.since }
    }
}
