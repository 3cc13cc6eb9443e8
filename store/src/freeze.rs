//! What an epoch is settled from, made to stand still as it closes. Each is one statement, whatever there is.

use nave_domain::event::EventRules;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Result;

/// Leases that have closed, but those of which an event is undecided. The market pays clouds itself, and nobody for what they
/// deliver.
pub(crate) async fn leases(tx: &mut PgConnection, epoch: i64) -> Result<()> {
    sqlx::query!(
        "with taken as (
            delete from unsettled_leases u
            where not exists (select from events e where e.lease_id = u.lease_id and e.signature is null)
            returning lease_id)
         insert into epoch_leases (epoch, lease_id, hotkey, used_ms, charged, related)
         select $1, l.lease_id, h.hotkey, greatest(0, l.used_ms - coalesce(c.used_ms, 0)),
            greatest(0, l.charged - coalesce(c.charged, 0)), r.why
         from taken join leases l using (lease_id) join jobs j using (job_id) join hosts h using (host_id)
         left join counted_leases c using (lease_id)
         left join related r on r.customer_id = j.customer_id and r.hotkey = h.hotkey
         where not exists (select from machines m where m.host_id = l.host_id)",
        epoch
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Events that are decided: those of a lease with their lease, and never without it.
pub(crate) async fn events(tx: &mut PgConnection, epoch: i64) -> Result<()> {
    sqlx::query!(
        "update events e set epoch = $1
         where epoch is null and signature is not null
           and not exists (select from machines m where m.host_id = e.host_id)
           and (lease_id is null
                or exists (select from epoch_leases l where l.epoch = $1 and l.lease_id = e.lease_id))",
        epoch
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Verdicts that were reached; one that somebody appeals against this moment stands in the next epoch.
pub(crate) async fn verdicts(tx: &mut PgConnection, epoch: i64) -> Result<()> {
    sqlx::query!(
        "with reached as (
            select challenge_id from challenges
            where epoch is null and verdict is not null and not shadow and code <> 'void' for update skip locked)
         update challenges c set epoch = $1 from reached where c.challenge_id = reached.challenge_id",
        epoch
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Since when hosts with idle devices keep their obligations: what was confirmed against a host ended them, also where its lease
/// is still open, and a host that has been silent for so long that it counts as lost keeps none, but for those `excused`. Of an epoch
/// in which something is undecided that may do so, it keeps none either.
pub(crate) async fn idle(tx: &mut PgConnection, epoch: i64, excused: &[Uuid]) -> Result<()> {
    sqlx::query!(
        "with broke as (
            select host_id, max(at_ms) as at_ms from events
            where (epoch = $1 or epoch is null) and blame = 'host' and confirmed_by is not null
                and kind not in ('start_late', 'heartbeat_gap') group by host_id),
         held as (
            select h.host_id, at_ms from hosts h join broke using (host_id)
            where obliged_since_ms < at_ms order by h.host_id for update of h)
         update hosts h set obliged_since_ms = at_ms from held where h.host_id = held.host_id",
        epoch
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "with known as (select control_ms() - coalesce((parameters_of($1) ->> 'confirm_ms')::bigint, $2) as lost_up_ms)
         update idle_times i set
            obliged_since_ms = coalesce(case
                when coalesce(heard_up_ms, 0) < lost_up_ms and h.host_id not in (select unnest($3::uuid[])) then null
                when exists (select from events e where e.host_id = h.host_id and signature is null
                    and kind not in ('start_late', 'heartbeat_gap')) then null
                else h.obliged_since_ms end, now_ms())
         from hosts h cross join known where i.epoch = $1 and h.host_id = i.host_id",
        epoch,
        EventRules::default().confirm.0,
        excused
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Classes with what was seen of them, and the newest baseline of each: for anywhere, or else the lowest of those that are for
/// one part of the world.
pub(crate) async fn classes(tx: &mut PgConnection, epoch: i64) -> Result<()> {
    sqlx::query!(
        "with newest as (
            select distinct on (class, region) class, region, gpu_hour, source, fetched_at_ms from baselines
            where epoch <= $1 order by class, region, epoch desc),
         counts as (
            select distinct on (class) class, gpu_hour, source, fetched_at_ms from newest
            order by class, region <> '*', gpu_hour, region),
         named as (
            select class from counts union select class from class_use where epoch = $1
            union select class from idle_times where epoch = $1)
         insert into epoch_classes (epoch, class, baseline, source, fetched_at_ms, devices, leased_milli)
         select $1, class, gpu_hour, source, fetched_at_ms, coalesce(devices, 0), coalesce(leased_milli, 0)
         from named left join counts using (class) left join (select * from class_use where epoch = $1) seen using (class)",
        epoch
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Miners who have a host, or of whom anything is settled. Hosts that are `excused` count as if they were heard.
pub(crate) async fn miners(tx: &mut PgConnection, epoch: i64, excused: &[Uuid]) -> Result<()> {
    sqlx::query!(
        "with opened as (
            select opened_at_ms, now_ms() - opened_at_ms as span_ms,
                control_ms() - coalesce((parameters_of(epoch) ->> 'confirm_ms')::bigint, $2) as lost_up_ms
            from epochs where epoch = $1),
         owned as (select * from hosts h where not exists (select from machines m where m.host_id = h.host_id)),
         verified as (
            select hotkey, count(*) filter (where proven is not null
                and (coalesce(heard_up_ms, 0) >= lost_up_ms or host_id in (select unnest($3::uuid[])))) as hosts
            from owned cross join opened where state in ('ready', 'suspect', 'verifying') group by hotkey),
         leased as (
            select hotkey, sum(used_ms)::bigint as used_ms, sum(charged)::bigint as charged
            from epoch_leases where epoch = $1 group by hotkey),
         moved as (select hotkey, sum(amount)::bigint as amount from collateral_moves where epoch = $1 group by hotkey),
         -- The control clock stands still now and then: whose ban may have ended before the epoch counts as banned.
         banned as (
            select b.hotkey from bans b join owned using (host_id) cross join opened
            where lifted_at_ms is null and until_up_ms > control_ms() - span_ms
            union select hotkey from owned cross join opened where state = 'banned' and reason_at_ms >= opened_at_ms),
         named as (
            select hotkey from verified union select hotkey from leased union select hotkey from moved
            union select hotkey from banned
            union select h.hotkey from events e join owned h using (host_id) where e.epoch = $1
            union select h.hotkey from idle_times i join owned h using (host_id) where i.epoch = $1)
         insert into epoch_miners (epoch, hotkey, verified_hosts, banned, moved, used_ms, charged)
         select $1, hotkey, coalesce(v.hosts, 0), hotkey in (select hotkey from banned), coalesce(m.amount, 0),
            coalesce(l.used_ms, 0), coalesce(l.charged, 0)
         from named left join verified v using (hotkey) left join leased l using (hotkey) left join moved m using (hotkey)",
        epoch,
        EventRules::default().confirm.0,
        excused
    )
    .execute(tx)
    .await?;
    Ok(())
}
