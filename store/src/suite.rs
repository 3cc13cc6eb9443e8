//! Suites: all that a host must show before it takes jobs, and when it must show it again.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    HostId, Millis,
    host::{self, Device, HostEvent, HostState, Inventory, Proven},
    verdict::{Cause, Kind},
};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result, Store, StoreError, ban,
    challenge::host_lock,
    dispute,
    error::{self, readable},
    host as hosts,
    notify::{Changes, announce},
    watch::{OPENED_MS, OpenWindow},
};

/// A host that claims more than it has proven, or is to prove it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueHost {
    /// Its id.
    pub host: HostId,
    /// Generation of its spec: what is decided on this view is refused when it has moved on.
    pub generation: u64,
    /// What it claims.
    pub claims: Inventory,
    /// What it had proven before.
    pub proven: Option<Proven>,
    /// Why it must prove it again, where it is not for what it claims.
    pub cause: Option<Cause>,
    /// The window that it is tested in, if that is why.
    pub window: Option<OpenWindow>,
    /// What is being tested.
    pub open: BTreeSet<Kind>,
    /// The last verdict of each kind in this suite.
    pub last: BTreeMap<Kind, Decided>,
}

/// A challenge with its verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// What the host was asked to do.
    pub body: Value,
    /// What it had to prove.
    pub claims: Inventory,
    /// What came of it.
    pub verdict: Value,
}

/// Longest time since a host was heard, on the control clock, for it to be tested by our own choice.
pub(crate) const HEARD_MS_MAX: i64 = 10_000;

/// How often in a row a host may fail to show its GPUs beside its jobs until it gets no further ones.
const STRAINED_MAX: i32 = 3;

impl Store {
    /// Hosts to be tested: they claim more than they have proven or are to prove it again, run nothing, and
    /// have no tests open but transfers. Who joins again waits as long as before. Refused hosts whose pause has passed are among them again once they are
    /// heard; hosts that a ban counts against are refused instead.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn hosts_to_test(&self) -> Result<Vec<DueHost>> {
        // Tests of a host that is not there would only make its pause longer.
        sqlx::query!(
            "with due as (
                select host_id from hosts
                where state = 'refused' and retry_up_ms <= (select control_ms()) and heard_up_ms > (select control_ms()) - $1
                  and not exists (select from bans_of(host_id) b where b.until_up_ms > control_ms())
                order by host_id for update)
             update hosts h set state = 'verifying', generation = generation + 1, suite_at_ms = now_ms()
             from due where h.host_id = due.host_id",
            HEARD_MS_MAX
        )
        .execute(&self.pool)
        .await?;
        ban::enforce(self).await?;
        self.windows_end().await?;
        let rows = sqlx::query!(
            r#"select h.host_id, h.generation, h.inventory as "inventory!", h.proven, h.suite_cause,
                    array(select kind from challenges c where c.host_id = h.host_id and c.verdict is null) as "open!",
                    w.window_id as "window_id?", w.beacon as "beacon?"
               from hosts h left join lateral (
                    select window_id, beacon from windows
                    where h.suite_cause = 'window' and opened_at_ms > now_ms() - $1::bigint
                    order by window_id desc limit 1) w on true
               where state = 'verifying' and inventory is not null and coalesce(h.retry_up_ms, 0) <= (select control_ms())
                 and not exists (select from leases l where l.host_id = h.host_id and l.state <> 'closed')
                 and not exists (select from challenges c
                    where c.host_id = h.host_id and c.verdict is null and c.kind <> 'transfer')
               order by h.host_id"#,
            OPENED_MS
        )
        .fetch_all(&self.pool)
        .await?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.host_id).collect();
        let mut last = self.suites(&ids).await?;
        let rows = rows.into_iter().map(|row| {
            let open = row.open.into_iter().map(|kind| error::read_name("a kind of test", kind));
            let window = row.window_id.zip(row.beacon);
            Ok(DueHost {
                host: row.host_id.into(),
                generation: row.generation.cast_unsigned(),
                claims: error::read_json("an inventory", row.inventory)?,
                proven: row
                    .proven
                    .map(|value| error::read_json("what a host has proven", value))
                    .transpose()?,
                cause: row
                    .suite_cause
                    .map(|name| error::read_name("the cause of a test", name))
                    .transpose()?,
                window: window.map(|(window, beacon)| OpenWindow { window, beacon }),
                open: open.collect::<Result<_>>()?,
                last: last.remove(&row.host_id).unwrap_or_default(),
            })
        });
        Ok(rows.filter_map(readable).collect())
    }

    /// Has hosts tested on their own that were not while their window was open: what it gave them is old by now.
    async fn windows_end(&self) -> Result<()> {
        sqlx::query!(
            "with late as (
                select h.host_id from hosts h
                where h.state = 'verifying' and h.suite_cause = 'window'
                  and not exists (select from windows where opened_at_ms > now_ms() - $1::bigint)
                  and not exists (select from challenges c
                    where c.host_id = h.host_id and c.window_id is not null and c.drawn_at_ms >= h.suite_at_ms
                      and (c.verdict is null or c.code = 'passed'))
                order by h.host_id for update)
             update hosts h set suite_cause = 'random' from late where h.host_id = late.host_id",
            OPENED_MS
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The last verdict of each kind in the present suites of hosts.
    async fn suites(&self, hosts: &[Uuid]) -> Result<BTreeMap<Uuid, BTreeMap<Kind, Decided>>> {
        let rows = sqlx::query!(
            r#"select distinct on (c.host_id, c.kind) c.host_id, c.kind, c.challenge, c.claims, c.verdict as "verdict!"
               from challenges c join hosts h using (host_id)
               where c.host_id = any($1) and c.verdict is not null and c.lease_id is null
                 and c.drawn_at_ms >= greatest(h.enrolled_at_ms, h.suite_at_ms)
               order by c.host_id, c.kind, c.challenge_id desc"#,
            hosts
        )
        .fetch_all(&self.pool)
        .await?;
        let mut suites: BTreeMap<Uuid, BTreeMap<Kind, Decided>> = BTreeMap::new();
        let rows = rows.into_iter().map(|row| {
            let claims = error::read_json("an inventory", row.claims)?;
            let decided = Decided { body: row.challenge, claims, verdict: row.verdict };
            Ok((row.host_id, error::read_name("a kind of test", row.kind)?, decided))
        });
        for (host, kind, decided) in rows.filter_map(readable) {
            suites.entry(host).or_default().insert(kind, decided);
        }
        Ok(suites)
    }

    /// A host has proven what it claimed at generation `seen`, and takes jobs.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when it is not what it was.
    pub async fn host_prove(&self, host: HostId, seen: u64, proven: &Proven) -> Result<()> {
        let mut tx = self.begin().await?;
        let row = sqlx::query!(
            r#"select state, generation, inventory as "inventory!" from hosts
               where host_id = $1 and inventory is not null for update"#,
            host.0
        )
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(StoreError::NotFound("host"))?;
        let from: HostState = error::read_name("a host's state", row.state)?;
        let covers = proven.covers(&error::read_json("an inventory", row.inventory)?);
        let to = host::next(from, HostEvent::Proved).filter(|to| *to == HostState::Ready);
        let to = to.filter(|_| row.generation.cast_unsigned() == seen && covers);
        let to = to.ok_or(StoreError::Stale("host"))?;
        redeem(&mut tx, host, proven).await?;
        sqlx::query!(
            "update hosts set state = $2, proven = $3, refusals = 0, retry_up_ms = null, suite_cause = null,
                retest_up_ms = null, reason_code = null, reason_message = null, reason_at_ms = null,
                strained = 0, strained_up_ms = null
             where host_id = $1",
            host.0,
            to.as_str(),
            error::write_json(proven)?
        )
        .execute(&mut *tx)
        .await?;
        dispute::passed(&mut tx, host).await?;
        hosts::bump(&mut tx, host).await?;
        announce(&mut tx, Changes::Supply).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Has hosts that run nothing prove again what they claim; they take no jobs meanwhile. Says which; not those
    /// that are not what they were at the generation that stands beside them.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn suites_begin(&self, hosts: &[(HostId, u64)], cause: Cause) -> Result<Vec<HostId>> {
        let (ids, seen): (Vec<Uuid>, Vec<i64>) =
            hosts.iter().map(|(host, seen)| (host.0, seen.cast_signed())).unzip();
        let mut tx = self.begin().await?;
        let begun = sqlx::query_scalar!(
            "with free as (
                select h.host_id from hosts h join unnest($1::uuid[], $2::bigint[]) as wanted (host_id, seen) using (host_id)
                where h.state = 'ready' and h.generation = wanted.seen order by h.host_id for update of h)
             update hosts h set state = 'verifying', suite_cause = $3, suite_at_ms = now_ms(), retest_up_ms = null
             from free where h.host_id = free.host_id
               and not exists (select from leases l where l.host_id = h.host_id and l.state <> 'closed')
             returning h.host_id",
            &ids,
            &seen,
            cause.as_str()
        )
        .fetch_all(&mut *tx)
        .await?;
        let begun: Vec<HostId> = begun.into_iter().map(HostId).collect();
        if begun.is_empty() {
            return Ok(begun);
        }
        if cause == Cause::Dispute {
            for host in &begun {
                dispute::begun(&mut tx, *host).await?;
            }
        }
        hosts::bump_each(&mut tx, &begun).await?;
        announce(&mut tx, Changes::Supply).await?;
        announce(&mut tx, Changes::Challenges).await?;
        tx.commit().await?;
        Ok(begun)
    }

    /// Gives a host no further jobs before it has proven again what it claims, once those it has have ended.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when it is not what it was at generation `seen`.
    pub async fn suite_demand(&self, host: HostId, seen: u64) -> Result<()> {
        let mut tx = self.begin().await?;
        let from = host_lock(&mut tx, host).await?;
        let now = sqlx::query_scalar!("select generation from hosts where host_id = $1", host.0);
        if from != HostState::Ready || now.fetch_one(&mut *tx).await?.cast_unsigned() != seen {
            return Err(StoreError::Stale("host"));
        }
        doubt(&mut tx, host, from).await?;
        hosts::bump(&mut tx, host).await?;
        announce(&mut tx, Changes::Supply).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Sets when hosts are tested again in any case, where that is not set.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn hosts_retest_at(&self, hosts: &[(HostId, Millis)]) -> Result<()> {
        let (ids, ups): (Vec<Uuid>, Vec<i64>) = hosts.iter().map(|(host, up)| (host.0, up.0)).unzip();
        sqlx::query!(
            "with unset as (
                select h.host_id, at.up_ms from hosts h join unnest($1::uuid[], $2::bigint[]) as at (host_id, up_ms) using (host_id)
                where h.retest_up_ms is null order by h.host_id for update of h)
             update hosts h set retest_up_ms = unset.up_ms from unset where h.host_id = unset.host_id",
            &ids,
            &ups
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Has a host prove again what it claims, without further pause and whatever bans count
    /// against it; it takes no jobs until it has.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such host, [`StoreError::Stale`] when it is leaving.
    pub async fn host_retest(&self, host: HostId) -> Result<()> {
        let mut tx = self.begin().await?;
        let from = host_lock(&mut tx, host).await?;
        let event = if from == HostState::Refused { HostEvent::Retry } else { HostEvent::Claimed };
        let to = host::next(from, event).filter(|to| *to == HostState::Verifying);
        let to = to.ok_or(StoreError::Stale("host"))?;
        sqlx::query!(
            "update hosts set state = $2, proven = null, refusals = 0, retry_up_ms = null, doubt = null, doubted_by = null,
                suite_cause = 'operator', suite_at_ms = now_ms()
             where host_id = $1",
            host.0,
            to.as_str()
        )
        .execute(&mut *tx)
        .await?;
        ban::lift(&mut tx, host).await?;
        hosts::bump(&mut tx, host).await?;
        announce(&mut tx, Changes::Challenges).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// What a host proves ends its own doubt, and that of one host of its miner that has left, where it covers what
/// had to be shown then; but who evades windows passes between them, too.
async fn redeem(tx: &mut PgConnection, host: HostId, proven: &Proven) -> Result<()> {
    // Whoever has a part in another test just now holds up nobody.
    let doubts = sqlx::query!(
        r#"select g.host_id, c.kind as "kind?", c.claims as "claims?"
           from hosts h join hosts g on g.hotkey = h.hotkey and (g.host_id = h.host_id or g.state = 'gone')
                left join challenges c on c.challenge_id = g.doubted_by
           where h.host_id = $1 and g.doubt is not null and (g.doubt = 'test' or h.suite_cause = 'window')
           order by g.host_id for update of g skip locked"#,
        host.0
    )
    .fetch_all(&mut *tx)
    .await?;
    let is_ended = |kind: Option<String>, claims: Option<Value>| match kind.zip(claims) {
        Some((kind, claims)) => {
            let tested: Result<Inventory> = error::read_json("an inventory", claims);
            let kind = error::read_name("a kind of test", kind);
            kind.is_ok_and(|kind| tested.is_ok_and(|tested| makes_up(proven, kind, &tested)))
        }
        None => true,
    };
    let ended =
        doubts.into_iter().filter_map(|doubt| is_ended(doubt.kind, doubt.claims).then_some(doubt.host_id));
    let (own, mut left): (Vec<Uuid>, Vec<Uuid>) = ended.partition(|id| *id == host.0);
    left.truncate(1);
    sqlx::query!(
        "update hosts set doubt = null, doubted_by = null where host_id = any($1)",
        &[own, left].concat()
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Whether what had to be shown in a test has been proven since. Of whatever kind it was, its GPUs are part of it: who
/// leaves out one that is in doubt makes up for nothing.
fn makes_up(proven: &Proven, kind: Kind, tested: &Inventory) -> bool {
    let amount = match kind {
        Kind::Cpu => tested.milli_cpu <= proven.milli_cpu,
        Kind::Memory => tested.memory <= proven.memory,
        // What is free of a disk changes; these two are tested together.
        Kind::Storage | Kind::Software => proven.disk.is_none_or(|disk| tested.disk.0 / 2 <= disk.0),
        Kind::Devices | Kind::Transfer => true,
    };
    let has = |claimed: &Device| {
        let shown = proven.device(&claimed.uuid);
        shown.is_some_and(|shown| claimed.model == shown.model && claimed.vram <= shown.vram)
    };
    amount && (proven.devices.is_none() || host::parts(&tested.devices).iter().all(has))
}

/// A host could not show its GPUs beside its jobs: it is tested as soon as it is free, and given no further jobs
/// before where this is one time too many.
pub(crate) async fn strain(tx: &mut PgConnection, host: HostId, from: HostState) -> Result<()> {
    let strained = sqlx::query_scalar!(
        "update hosts set strained = strained + 1, strained_up_ms = coalesce(strained_up_ms, control_ms()),
            retest_up_ms = least(retest_up_ms, control_ms())
         where host_id = $1 returning strained",
        host.0
    )
    .fetch_one(&mut *tx)
    .await?;
    if strained >= STRAINED_MAX { doubt(tx, host, from).await } else { Ok(()) }
}

/// A host has shown its GPUs beside its jobs.
pub(crate) async fn relieve(tx: &mut PgConnection, host: HostId) -> Result<()> {
    sqlx::query!("update hosts set strained = 0, strained_up_ms = null where host_id = $1", host.0)
        .execute(tx)
        .await?;
    Ok(())
}

/// The last lease of a host has ended, which is locked. If its time has come, or a dispute waits for it, it is tested before
/// anybody can place another job: who always had one would never be.
pub(crate) async fn emptied(tx: &mut PgConnection, host: HostId) -> Result<()> {
    let is_disputed = dispute::waits(tx, host).await?;
    let begun = sqlx::query!(
        "update hosts h set state = 'verifying', suite_cause = $2, suite_at_ms = now_ms(), retest_up_ms = null
         where host_id = $1 and state = 'ready' and ($3 or retest_up_ms <= control_ms())
           and not exists (select from leases l where l.host_id = h.host_id and l.state <> 'closed')",
        host.0,
        if is_disputed { Cause::Dispute } else { Cause::Random }.as_str(),
        is_disputed
    )
    .execute(&mut *tx)
    .await?;
    if begun.rows_affected() == 0 {
        return Ok(());
    }
    if is_disputed {
        dispute::begun(tx, host).await?;
    }
    announce(tx, Changes::Challenges).await
}

/// Takes a host out until it has proven everything again, once its leases have ended.
pub(crate) async fn doubt(tx: &mut PgConnection, host: HostId, from: HostState) -> Result<()> {
    let to = host::next(from, HostEvent::Claimed).filter(|to| *to == HostState::Verifying);
    let Some(to) = to else { return Ok(()) };
    sqlx::query!(
        "update hosts set state = $2, suite_cause = coalesce(suite_cause, 'lease'), suite_at_ms = now_ms()
         where host_id = $1",
        host.0,
        to.as_str()
    )
    .execute(tx)
    .await?;
    Ok(())
}
