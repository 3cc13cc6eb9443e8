//! When hosts could be heard, and when they were not: what explains events.

use std::collections::BTreeMap;

use nave_domain::{
    HostId, Millis, Timestamp,
    event::{Case, Contact, EventRules, Resumed, Silence, Stretch, is_outage},
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::PendingEvent;
use crate::{Result, Store, error};

/// For how long it is known when hosts were silent and the control clock stood still.
const KEPT_MS: i64 = 7 * DAY_MS;
const DAY_MS: i64 = 86_400_000;

/// What may explain events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outages {
    /// When hosts were in contact, by their ids.
    pub contacts: BTreeMap<HostId, Contact>,
    /// When the control clock stood still.
    pub pauses: Vec<Stretch>,
}

impl Outages {
    /// What is known of an event when it is to be decided.
    #[must_use]
    pub fn case(&self, event: &PendingEvent, rules: &EventRules) -> Case<'_> {
        let silences = self.contacts.get(&event.row.host).map_or(&[][..], |contact| &contact.silences);
        let whole = Stretch { from: event.since, until: event.row.lost.until };
        let is_everyones = |silence: &Silence| is_outage(self.contacts.values(), silence.stretch.from, rules);
        Case {
            happened: event.happened,
            since: event.since,
            lost: event.row.lost,
            age: event.age,
            silences,
            pauses: &self.pauses,
            is_outage: silences.iter().filter(|one| one.stretch.touches(whole)).any(is_everyones),
        }
    }
}

/// A host, which is locked, is heard again after a silence: says whether it lost leases in it. Where it was away for too long, it
/// keeps its obligations anew: in one silence or in several of a day, other than while nobody could be heard.
pub(crate) async fn came_back(tx: &mut PgConnection, host: HostId, resumed: Resumed) -> Result<bool> {
    let rules = EventRules::default();
    sqlx::query!(
        "insert into silences (host_id, from_ms, until_ms, resumed)
         select host_id, heard_at_ms, now_ms(), $2 from hosts where host_id = $1 and heard_at_ms < now_ms()
         on conflict do nothing",
        host.0,
        resumed.as_str()
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "with away as (
            select s.from_ms, s.until_ms - s.from_ms - (
                select coalesce(sum(least(p.until_ms, s.until_ms) - greatest(p.from_ms, s.from_ms)), 0)
                from pauses p where p.until_ms > s.from_ms and p.from_ms < s.until_ms) as span_ms
            from silences s join hosts h using (host_id)
            where host_id = $1 and s.until_ms > greatest(now_ms() - $2::bigint, obliged_since_ms))
         update hosts set obliged_since_ms = now_ms()
         where host_id = $1 and obliged_since_ms is not null
           and (select sum(span_ms) from away) > event_rule('confirm_ms', $3)
           -- That is looked at only where it matters.
           and (select sum(span_ms) from away where not was_outage(from_ms, event_rule('gap_ms', $4),
                event_rule('outage_ppm', $5), event_rule('outage_hosts', $6))) > event_rule('confirm_ms', $3)",
        host.0,
        DAY_MS,
        rules.confirm.0,
        rules.gap.0,
        rules.outage_ppm,
        rules.outage_hosts
    )
    .execute(&mut *tx)
    .await?;
    let has_lost = sqlx::query_scalar!(
        r#"select exists (select from events e join hosts h using (host_id)
            where host_id = $1 and e.kind = 'host_lost' and not e.is_told and e.at_ms >= heard_at_ms) as "has_lost!""#,
        host.0
    );
    Ok(has_lost.fetch_one(tx).await?)
}

/// Hosts that have been silent for longer than `confirm_ms` and fell silent with so many others that it was not their fault.
/// Together means within a gap's time, which is looked at only once.
pub(crate) async fn excused(tx: &mut PgConnection) -> Result<Vec<Uuid>> {
    let rules = EventRules::default();
    let hosts = sqlx::query_scalar!(
        r#"with silent as (
            select host_id, heard_at_ms / gap_ms * gap_ms + gap_ms / 2 as at_ms, gap_ms
            from hosts cross join (select greatest(1, event_rule('gap_ms', $2)) as gap_ms) rules
            where state in ('ready', 'suspect', 'verifying') and heard_at_ms > now_ms() - $5::bigint
              and heard_up_ms < control_ms() - event_rule('confirm_ms', $1)),
         outages as (
            select at_ms from (select distinct at_ms, gap_ms from silent) fell
            where was_outage(at_ms, gap_ms, event_rule('outage_ppm', $3), event_rule('outage_hosts', $4)))
         select host_id from silent join outages using (at_ms)"#,
        rules.confirm.0,
        rules.gap.0,
        rules.outage_ppm,
        rules.outage_hosts,
        KEPT_MS
    );
    Ok(hosts.fetch_all(tx).await?)
}

impl Store {
    /// When hosts were in contact, and the control clock stood still, from `since` on; `gap` is silence that is none yet.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn outages(&self, since: Timestamp, gap: Millis) -> Result<Outages> {
        let hosts = sqlx::query!(
            r#"select host_id, hotkey, enrolled_at_ms, heard_at_ms as "heard_at_ms!", now_ms() as "now_ms!",
                    proven is not null and state in ('ready', 'verifying', 'suspect', 'draining') as "is_member!"
               from hosts where heard_at_ms >= $1"#,
            since.0 - gap.0
        )
        .fetch_all(&self.pool)
        .await?;
        let silences = sqlx::query!(
            "select host_id, from_ms, until_ms, resumed from silences where until_ms >= $1 order by host_id, from_ms",
            since.0 - gap.0
        )
        .fetch_all(&self.pool)
        .await?;
        let pauses = sqlx::query!(
            "select from_ms, until_ms from pauses where until_ms >= $1 order by from_ms",
            since.0
        )
        .fetch_all(&self.pool)
        .await?;
        let mut contacts: BTreeMap<HostId, Contact> = BTreeMap::new();
        let mut lasting = Vec::new();
        for row in hosts {
            let (host, heard) = (row.host_id.into(), Timestamp(row.heard_at_ms));
            let (joined, is_member) = (Timestamp(row.enrolled_at_ms), row.is_member);
            let hotkey = row.hotkey;
            contacts.insert(host, Contact { hotkey, joined, heard, is_member, silences: Vec::new() });
            if row.now_ms - row.heard_at_ms > gap.0 {
                let stretch = Stretch { from: heard, until: Timestamp(row.now_ms) };
                lasting.push((host, Silence { stretch, resumed: None }));
            }
        }
        let over = silences.into_iter().map(|row| {
            let stretch = stretch(row.from_ms, row.until_ms);
            let resumed = Some(error::read_name("what came of a silence", row.resumed)?);
            Ok((HostId(row.host_id), Silence { stretch, resumed }))
        });
        let over: Vec<(HostId, Silence)> = over.collect::<Result<_>>()?;
        for (host, silence) in over.into_iter().chain(lasting) {
            if let Some(contact) = contacts.get_mut(&host) {
                // Both were read one after the other.
                if contact.silences.iter().all(|known| known.stretch.from != silence.stretch.from) {
                    contact.silences.push(silence);
                }
            }
        }
        let pauses = pauses.into_iter().map(|row| stretch(row.from_ms, row.until_ms)).collect();
        Ok(Outages { contacts, pauses })
    }

    /// Forgets what explains events, once it is so old that none is undecided that needs it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn outages_forget(&self) -> Result<()> {
        sqlx::query!("delete from silences where until_ms < now_ms() - $1::bigint", KEPT_MS)
            .execute(&self.pool)
            .await?;
        sqlx::query!("delete from pauses where until_ms < now_ms() - $1::bigint", KEPT_MS)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

fn stretch(from_ms: i64, until_ms: i64) -> Stretch {
    Stretch { from: Timestamp(from_ms), until: Timestamp(until_ms) }
}
