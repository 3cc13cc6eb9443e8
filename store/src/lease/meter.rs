//! What leases are used, and gaps in what is heard of them.

use nave_domain::{HostId, LeaseId, Millis, event::EventRules};
use sqlx::PgConnection;
use uuid::Uuid;

use super::LockedLease;
use crate::Result;

/// Longest gap between two reports that is charged; what is longer was an outage.
const METERED_GAP_MS_MAX: i64 = 10_000;
/// Most gaps of a lease that are written down in an hour: one that comes and goes writes no rows without end. What was not
/// heard is not charged for in any case.
const GAPS_PER_HOUR_MAX: i64 = 10;

/// Adds up use since the last reading: never more than a tolerated gap, never after the
/// control plane decided to stop it, never beyond the longest run. Where `counts`, a long gap is written down.
pub(super) async fn meter(tx: &mut PgConnection, lease: &mut LockedLease, counts: bool) -> Result<()> {
    if let Some((_, used)) = meter_all(tx, lease.host, &[lease.lease.0], counts).await?.pop() {
        lease.used = used;
    }
    Ok(())
}

/// Meters those leases of a host that run, in the order of their ids, and says how long each was used. Where `counts`, long
/// gaps are written down as events.
pub(super) async fn meter_all(
    connection: &mut PgConnection,
    host: HostId,
    leases: &[Uuid],
    counts: bool,
) -> Result<Vec<(LeaseId, Millis)>> {
    let metered = sqlx::query!(
        "with heard as (
            select lease_id, host_id, metered_at_ms, least(now_ms(), coalesce(stop_at_ms, now_ms())) as until_ms from leases
            where host_id = $1 and lease_id = any($2) and metered_at_ms is not null and ended_at_ms is null
            order by lease_id for update),
         gaps as (
            insert into events (kind, host_id, hotkey, lease_id, key, since_ms, from_ms, until_ms, detail)
            select 'heartbeat_gap', g.host_id, h.hotkey, g.lease_id, concat_ws(' ', 'heartbeat_gap', g.lease_id, g.metered_at_ms),
                g.metered_at_ms, g.metered_at_ms + gap_ms, g.until_ms, format('not heard of for %s s', (g.until_ms - g.metered_at_ms) / 1000)
            from heard g join hosts h using (host_id), event_rule('gap_ms', $5) as gap_ms
            where $4 and g.until_ms - g.metered_at_ms > gap_ms and not exists (select from machines m where m.host_id = g.host_id)
              and (select count(*) from events e where e.lease_id = g.lease_id and e.kind = 'heartbeat_gap'
                and e.at_ms > now_ms() - 3600000) < $6
            on conflict (key) do nothing)
         update leases l set
            used_ms = metered_ms(used_ms, run_ms_max, l.metered_at_ms, stop_at_ms, $3),
            metered_at_ms = now_ms()
         from heard where l.lease_id = heard.lease_id
         returning l.lease_id, l.used_ms",
        host.0,
        leases,
        METERED_GAP_MS_MAX,
        counts,
        EventRules::default().gap.0,
        GAPS_PER_HOUR_MAX
    )
    .fetch_all(connection)
    .await?;
    Ok(metered.into_iter().map(|row| (row.lease_id.into(), Millis(row.used_ms))).collect())
}
