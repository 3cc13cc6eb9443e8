//! Events: what went wrong with leases and hosts. Each is written in the transaction that writes what it tells of, and
//! decided once by the validator.
//!
//! Whoever writes one has locked the lease or the host that it is about, so no lease closes without its events.

use std::collections::BTreeMap;

use nave_domain::{
    ChallengeId, EventId, HostId, JobId, LeaseId, Millis, Timestamp,
    event::{
        Appealed, Blame, ConfirmedBy, EventKind, EventRules, EventRuling, Failure, Happened, Loss, Stretch,
        xid::{Fault, fault},
    },
    host::HostState,
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result, Store, StoreError,
    challenge::{Decision, host_lock},
    error,
    notify::{Changes, announce},
};

mod outages;

pub use outages::Outages;
pub(crate) use outages::{came_back, excused};

/// An error that the driver of a host's GPU reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XidRow {
    /// Its number.
    pub code: u32,
    /// The GPU.
    pub device: String,
    /// The GPU and its slices, as leases name them.
    pub parts: Vec<String>,
}

/// An event, as everyone sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Its id.
    pub event: EventId,
    /// When it was written down.
    pub at: Timestamp,
    /// What happened.
    pub kind: EventKind,
    /// The host.
    pub host: HostId,
    /// Its miner then.
    pub hotkey: String,
    /// The lease, if one suffered.
    pub lease: Option<LeaseId>,
    /// The time that was lost.
    pub lost: Stretch,
    /// What happened, for people.
    pub detail: String,
    /// What was decided about it, and when.
    pub decided: Option<(Decided, Timestamp)>,
}

/// What was decided about an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// Whose fault it was.
    pub blame: Blame,
    /// What shows that.
    pub confirmed_by: Option<ConfirmedBy>,
    /// The market key's.
    pub signature: Vec<u8>,
}

/// An event that is not decided, with what belongs to it alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingEvent {
    /// As everyone sees it.
    pub row: EventRow,
    /// What happened, with what is known of it by now.
    pub happened: Happened,
    /// From when things count that explain it.
    pub since: Timestamp,
    /// How long ago it was written down, on the control clock.
    pub age: Millis,
}

/// A command began, or never did: was that later than was promised?
pub(crate) async fn began(tx: &mut PgConnection, lease: LeaseId) -> Result<()> {
    sqlx::query!(
        "insert into events (kind, host_id, hotkey, lease_id, key, since_ms, from_ms, until_ms, detail)
         select 'start_late', l.host_id, h.hotkey, l.lease_id, 'start_late ' || l.lease_id, l.placed_at_ms, l.placed_at_ms + promise_ms,
            began_ms, format('%s after %s s', case when started_at_ms is null then 'it had not begun' else 'it began' end,
                (began_ms - l.placed_at_ms) / 1000)
         from leases l join hosts h using (host_id), event_rule('start_promise_ms', $2) as promise_ms,
            lateral (select coalesce(l.started_at_ms, l.stop_at_ms, now_ms()) as began_ms) t
         where l.lease_id = $1 and began_ms - l.placed_at_ms > promise_ms
           and not exists (select from machines m where m.host_id = l.host_id)
         on conflict (key) do nothing",
        lease.0,
        EventRules::default().start_promise.0
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// A lease is about to be closed because its host has lost it; `told`: as the host itself says, for a reason of its own.
/// Else the silence is why in which it ended, if there was one.
pub(crate) async fn lost(tx: &mut PgConnection, lease: LeaseId, told: bool) -> Result<()> {
    sqlx::query!(
        "insert into events (kind, host_id, hotkey, lease_id, key, since_ms, from_ms, until_ms, is_told, detail)
         select 'host_lost', l.host_id, h.hotkey, l.lease_id, 'host_lost ' || l.lease_id, since_ms, greatest(since_ms, l.placed_at_ms),
            greatest(since_ms, l.placed_at_ms, until_ms), $3,
            case when $3 then 'the host has lost the lease' when silent_ms is null then 'the lease did not come to its end'
                else format('the host was silent for %s s', silent_ms / 1000) end
         from leases l join hosts h using (host_id), event_rule('gap_ms', $2) as gap_ms,
            lateral (select coalesce(h.heard_at_ms > now_ms() - gap_ms, false) as is_heard,
                case when $3 then now_ms() else coalesce(l.ended_at_ms, now_ms()) end as end_ms) known,
            lateral (select max(s.from_ms) as from_ms, max(s.until_ms) as back_ms from silences s
                where s.host_id = l.host_id and is_heard and not $3 and s.until_ms > greatest(l.placed_at_ms, end_ms - gap_ms)) silence,
            lateral (select case when is_heard then coalesce(from_ms, l.metered_at_ms, l.placed_at_ms)
                    else coalesce(h.heard_at_ms, l.placed_at_ms) end as since_ms,
                case when is_heard then end_ms else now_ms() end as until_ms,
                case when is_heard then back_ms - from_ms else now_ms() - coalesce(h.heard_at_ms, l.placed_at_ms) end as silent_ms) time
         where l.lease_id = $1 and not exists (select from machines m where m.host_id = l.host_id)
           and not exists (select from events e where e.lease_id = l.lease_id and e.kind = 'early_reclaim')
         on conflict (key) do nothing",
        lease.0,
        EventRules::default().gap.0,
        told
    )
    .execute(&mut *tx)
    .await?;
    // It is back already, and nobody but itself was away: it gets nothing before it has shown what it is.
    let tested = sqlx::query!(
        "update hosts h set state = case when state = 'ready' then 'verifying' else state end, suite_cause = coalesce(suite_cause, 'random'),
            suite_at_ms = now_ms()
         from events e join silences s on s.host_id = e.host_id and s.from_ms = e.since_ms
         where e.lease_id = $1 and e.kind = 'host_lost' and not e.is_told and h.host_id = e.host_id and h.state in ('ready', 'suspect')
           and not exists (select from pauses p where p.until_ms > s.from_ms)",
        lease.0
    )
    .execute(&mut *tx)
    .await?;
    if tested.rows_affected() > 0 { announce(tx, Changes::Challenges).await } else { Ok(()) }
}

/// A challenge has its verdict; its host, which stood at `from`, is locked. Who was ready once and failed has let down
/// whoever is there now.
pub(crate) async fn judged(
    tx: &mut PgConnection,
    challenge: ChallengeId,
    from: HostState,
    decision: &Decision,
) -> Result<()> {
    match from {
        HostState::Ready | HostState::Verifying | HostState::Suspect | HostState::Draining => {}
        // It has failed before, or is nobody's any more.
        HostState::Refused | HostState::Enrolled | HostState::Gone | HostState::Banned => return Ok(()),
    }
    sqlx::query!(
        "insert into events (kind, host_id, hotkey, lease_id, challenge_id, key, since_ms, from_ms, until_ms, is_doubtful, detail)
         select t.kind, c.host_id, h.hotkey, l.lease_id, c.challenge_id, concat_ws(' ', t.kind, c.challenge_id, l.lease_id),
            least(c.drawn_at_ms, c.decided_at_ms), c.decided_at_ms, c.decided_at_ms, $2,
            format('verdict challenge_%s on %s: %s', replace(c.challenge_id::text, '-', ''), c.kind, c.code)
         from challenges c join hosts h using (host_id)
            cross join lateral (select case when c.code = 'port_unreachable' then 'unreachable'
                when c.lease_id is not null and c.code in ('device_mismatch', 'device_throttled', 'return_too_slow') then 'below_band'
                else 'failed_retest' end as kind) t
            left join leases l on l.host_id = c.host_id and l.state <> 'closed' and (t.kind <> 'below_band' or l.lease_id = c.lease_id)
         where c.challenge_id = $1 and c.code not in ('passed', 'void') and not c.shadow
           and c.cause not in ('enrolment', 'identity', 'appeal') and c.drawn_at_ms >= h.enrolled_at_ms
           and not exists (select from machines m where m.host_id = c.host_id)
         on conflict (key) do nothing",
        challenge.0,
        matches!(decision, Decision::Strained)
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The owner of a host, which is locked, takes it out at once.
pub(crate) async fn reclaimed(tx: &mut PgConnection, host: HostId) -> Result<()> {
    sqlx::query!(
        "insert into events (kind, host_id, hotkey, lease_id, key, since_ms, from_ms, until_ms, detail)
         select 'early_reclaim', l.host_id, h.hotkey, l.lease_id, 'early_reclaim ' || l.lease_id, now_ms, now_ms, now_ms,
            'its owner took the host out'
         from leases l join hosts h using (host_id), now_ms()
         where l.host_id = $1 and l.state <> 'closed' and l.term = 'on_demand'
           and not exists (select from machines m where m.host_id = l.host_id)
         on conflict (key) do nothing",
        host.0
    )
    .execute(tx)
    .await?;
    Ok(())
}

impl Store {
    /// A host says that the drivers of its GPUs reported errors. Of a lease each kind of them counts once; devices that it
    /// has not proven count for nothing.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn xids_take(&self, host: HostId, xids: &[XidRow]) -> Result<()> {
        let mut tx = self.begin().await?;
        // No lease of it closes meanwhile.
        host_lock(&mut tx, host).await?;
        for xid in xids {
            let whose = match fault(xid.code) {
                Fault::Application => "application",
                Fault::Hardware => "hardware",
                Fault::Harmless => "harmless",
            };
            sqlx::query!(
                "insert into events (kind, host_id, hotkey, lease_id, xid, key, since_ms, from_ms, until_ms, detail)
                 select 'xid', h.host_id, h.hotkey, l.lease_id, $2,
                    concat_ws(' ', 'xid', $3::text, coalesce(l.lease_id::text, concat_ws(' ', h.host_id, $4::text, now_ms / 86400000))),
                    now_ms, now_ms, now_ms, format('Xid %s on %s', $2::bigint, $4::text)
                 from now_ms(), hosts h left join leases l
                    on l.host_id = h.host_id and l.state <> 'closed' and l.started_at_ms is not null and l.devices && $5::text[]
                 where h.host_id = $1 and (l.lease_id is not null or $3 = 'hardware')
                   and h.state in ('ready', 'verifying', 'suspect', 'draining')
                   and exists (select from device_claims d where d.host_id = h.host_id and d.device = $4)
                   and not exists (select from machines m where m.host_id = h.host_id)
                 on conflict (key) do nothing",
                host.0,
                i64::from(xid.code),
                whose,
                xid.device,
                &xid.parts
            )
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// A host says itself that leases are gone which were given up when it was silent.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn leases_gone(&self, host: HostId, leases: &[LeaseId]) -> Result<()> {
        let ids: Vec<Uuid> = leases.iter().map(|lease| lease.0).collect();
        sqlx::query!(
            "update events set is_told = true
             where host_id = $1 and lease_id = any($2) and kind = 'host_lost' and decided_at_ms is null and not is_told",
            host.0,
            &ids
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Events that are not decided, the oldest first, `limit` at most of those after `after`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn events_pending(
        &self,
        after: Option<(Timestamp, EventId)>,
        limit: i64,
    ) -> Result<Vec<PendingEvent>> {
        let (at, event) = after.map_or((i64::MIN, Uuid::nil()), |(at, event)| (at.0, event.0));
        let rows = sqlx::query_as!(
            RawPending,
            r#"select e.event_id, e.at_ms, e.kind, e.host_id, e.hotkey, e.lease_id, e.xid, e.since_ms, e.from_ms, e.until_ms, e.is_told,
                    e.is_doubtful, e.detail, greatest(0, control_ms() - e.at_up_ms) as "age!",
                    coalesce(h.state = 'banned' and h.reason_at_ms <= e.at_ms, false) as "is_sent_away!", l.share_milli is not null as "is_share!",
                    coalesce(h.state = 'gone' and h.reason_code = 'left' and h.reason_at_ms <= e.at_ms, false) as "has_left!", coalesce(l.term = 'spot', false) as "is_spot!",
                    e.kind = 'start_late' and exists (select from leases o join jobs p using (job_id)
                        where o.lease_id <> e.lease_id and o.started_at_ms between e.at_ms - 86400000 and e.at_ms
                          and o.started_at_ms - o.placed_at_ms <= (select event_rule('start_promise_ms', $4)) and p.request ->> 'image' = j.request ->> 'image') as "is_usual!",
                    coalesce(c.code = 'too_late', false) as "is_late!", c.appealed_at_ms is not null as "is_appealed!",
                    c.appeal is not null as "is_again!", coalesce(not c.appeal ? 'failed', false) as "is_overturned!",
                    coalesce(h.state = 'ready' and exists (select from challenges t where t.host_id = e.host_id and t.drawn_at_ms >= s.until_ms and not t.shadow
                          and t.lease_id is null and t.kind <> 'transfer' and t.code = 'passed'), false) as "has_passed!",
                    f.age as "failed_age?", coalesce(f.is_appealed, false) as "failed_is_appealed!", coalesce(f.is_again, false) as "failed_is_again!"
               from events e join hosts h using (host_id)
                    left join leases l on l.lease_id = e.lease_id left join jobs j using (job_id)
                    left join challenges c using (challenge_id) left join silences s on e.kind = 'host_lost' and s.host_id = e.host_id and s.from_ms = e.since_ms
                    left join lateral (
                        select t.appealed_at_ms is not null as is_appealed, t.appeal is not null as is_again,
                            coalesce(control_ms() - v.at_up_ms, now_ms() - t.decided_at_ms) as age
                        from challenges t left join events v on v.host_id = t.host_id and v.challenge_id = t.challenge_id
                        where t.host_id = e.host_id and t.drawn_at_ms >= s.until_ms and not t.shadow and t.lease_id is null
                          and t.kind <> 'transfer' and t.code not in ('passed', 'void') and coalesce(t.appeal ? 'failed', true)
                        order by t.decided_at_ms limit 1) f on true
               where e.decided_at_ms is null and (e.at_ms, e.event_id) > ($1, $2)
               order by e.at_ms, e.event_id limit $3"#,
            at,
            event,
            limit,
            EventRules::default().start_promise.0
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(RawPending::read).filter_map(error::readable).collect())
    }

    /// Decides an event for good; what was decided stands.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when it is decided.
    pub async fn event_decide(
        &self,
        event: EventId,
        ruling: &EventRuling,
        detail: &str,
        signature: &[u8; 64],
    ) -> Result<()> {
        let done = sqlx::query!(
            "update events set blame = $2, confirmed_by = $3, from_ms = $4, until_ms = $5, detail = $6, signature = $7,
                since_ms = least(since_ms, $4), decided_at_ms = now_ms()
             where event_id = $1 and decided_at_ms is null",
            event.0,
            ruling.blame.as_str(),
            ruling.confirmed_by.map(ConfirmedBy::as_str),
            ruling.lost.from.0,
            ruling.lost.until.0,
            detail,
            signature
        )
        .execute(&self.pool)
        .await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Stale("event")) }
    }

    /// The events of a miner's host, the newest first: those before `before`, `limit` at most.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the miner has no such host.
    pub async fn events_of_host(
        &self,
        hotkey: &str,
        host: HostId,
        before: Option<EventId>,
        limit: i64,
    ) -> Result<Vec<EventRow>> {
        let owned = sqlx::query_scalar!(
            r#"select exists (select from hosts where host_id = $1 and hotkey = $2) as "owned!""#,
            host.0,
            hotkey
        );
        if !owned.fetch_one(&self.pool).await? {
            return Err(StoreError::NotFound("host"));
        }
        let rows = sqlx::query_as!(
            RawEvent,
            "select event_id, at_ms, kind, host_id, hotkey, lease_id, from_ms, until_ms, detail, blame, confirmed_by, decided_at_ms,
                signature
             from events where host_id = $1 and ($2::uuid is null or (at_ms, event_id) < (
                select at_ms, event_id from events where event_id = $2))
             order by at_ms desc, event_id desc limit $3",
            host.0,
            before.map(|before| before.0),
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(RawEvent::read).collect()
    }

    /// The events of the leases of jobs, the oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn events_of_jobs(&self, jobs: &[JobId]) -> Result<BTreeMap<LeaseId, Vec<EventRow>>> {
        let ids: Vec<Uuid> = jobs.iter().map(|job| job.0).collect();
        let rows = sqlx::query_as!(
            RawEvent,
            "select e.event_id, e.at_ms, e.kind, e.host_id, e.hotkey, e.lease_id, e.from_ms, e.until_ms, e.detail, e.blame,
                e.confirmed_by, e.decided_at_ms, e.signature
             from events e join leases l using (lease_id) where l.job_id = any($1) order by e.at_ms, e.event_id",
            &ids
        )
        .fetch_all(&self.pool)
        .await?;
        let mut events: BTreeMap<LeaseId, Vec<EventRow>> = BTreeMap::new();
        for row in rows {
            let row = row.read()?;
            if let Some(lease) = row.lease {
                events.entry(lease).or_default().push(row);
            }
        }
        Ok(events)
    }
}

fn appealed(is_appealed: bool, is_again: bool, is_overturned: bool) -> Appealed {
    match (is_appealed, is_again, is_overturned) {
        (_, true, true) => Appealed::Overturned,
        (_, true, false) => Appealed::Upheld,
        (true, false, _) => Appealed::Open,
        (false, false, _) => Appealed::No,
    }
}

struct RawPending {
    event_id: Uuid,
    at_ms: i64,
    kind: String,
    host_id: Uuid,
    hotkey: String,
    lease_id: Option<Uuid>,
    xid: Option<i64>,
    since_ms: i64,
    from_ms: i64,
    until_ms: i64,
    is_told: bool,
    is_doubtful: bool,
    detail: String,
    age: i64,
    is_sent_away: bool,
    is_share: bool,
    has_left: bool,
    is_spot: bool,
    is_usual: bool,
    is_late: bool,
    is_appealed: bool,
    is_again: bool,
    is_overturned: bool,
    has_passed: bool,
    failed_age: Option<i64>,
    failed_is_appealed: bool,
    failed_is_again: bool,
}

impl RawPending {
    fn happened(&self, kind: EventKind) -> Happened {
        match kind {
            EventKind::StartLate => Happened::StartLate { is_usual: self.is_usual },
            EventKind::HeartbeatGap => Happened::HeartbeatGap,
            EventKind::Xid => {
                Happened::Xid(self.xid.and_then(|xid| u32::try_from(xid).ok()).unwrap_or_default())
            }
            EventKind::FailedRetest | EventKind::BelowBand | EventKind::Unreachable => Happened::Failed {
                appealed: appealed(self.is_appealed, self.is_again, self.is_overturned),
                is_late: self.is_late,
                is_doubtful: self.is_doubtful,
            },
            EventKind::EarlyReclaim => Happened::EarlyReclaim,
            EventKind::HostLost => Happened::HostLost(Loss {
                is_told: self.is_told,
                is_share: self.is_share,
                is_spot: self.is_spot,
                is_sent_away: self.is_sent_away,
                has_left: self.has_left,
                failed: self.failed_age.map(|age| Failure {
                    appealed: appealed(self.failed_is_appealed, self.failed_is_again, false),
                    age: Millis(age),
                }),
                has_passed: self.has_passed,
            }),
        }
    }

    fn read(self) -> Result<PendingEvent> {
        let kind = error::read_name("a kind of event", self.kind.clone())?;
        Ok(PendingEvent {
            happened: self.happened(kind),
            row: EventRow {
                event: EventId(self.event_id),
                at: Timestamp(self.at_ms),
                kind,
                host: self.host_id.into(),
                hotkey: self.hotkey,
                lease: self.lease_id.map(LeaseId),
                lost: Stretch { from: Timestamp(self.from_ms), until: Timestamp(self.until_ms) },
                detail: self.detail,
                decided: None,
            },
            since: Timestamp(self.since_ms),
            age: Millis(self.age),
        })
    }
}

struct RawEvent {
    event_id: Uuid,
    at_ms: i64,
    kind: String,
    host_id: Uuid,
    hotkey: String,
    lease_id: Option<Uuid>,
    from_ms: i64,
    until_ms: i64,
    detail: String,
    blame: Option<String>,
    confirmed_by: Option<String>,
    decided_at_ms: Option<i64>,
    signature: Option<Vec<u8>>,
}

impl RawEvent {
    fn read(self) -> Result<EventRow> {
        let decided = match (self.blame, self.decided_at_ms, self.signature) {
            (Some(blame), Some(at), Some(signature)) => {
                let blame = error::read_name("whose fault an event was", blame)?;
                let confirmed_by =
                    self.confirmed_by.map(|name| error::read_name("what shows an event", name));
                Some((Decided { blame, confirmed_by: confirmed_by.transpose()?, signature }, Timestamp(at)))
            }
            (None, _, _) | (_, None, _) | (_, _, None) => None,
        };
        Ok(EventRow {
            event: EventId(self.event_id),
            at: Timestamp(self.at_ms),
            kind: error::read_name("a kind of event", self.kind)?,
            host: self.host_id.into(),
            hotkey: self.hotkey,
            lease: self.lease_id.map(LeaseId),
            lost: Stretch { from: Timestamp(self.from_ms), until: Timestamp(self.until_ms) },
            detail: self.detail,
            decided,
        })
    }
}
