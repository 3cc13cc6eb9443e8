//! What the verifier looks at to decide whom to test when: hosts that take jobs, leases of
//! GPUs, and windows in which everyone is tested at once.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    HostId, LeaseId, Millis,
    host::{HostState, Inventory, Proven},
    lease::LeaseState,
    verdict::Kind,
};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    Moment, Result, Store, StoreError,
    error::{self, readable},
    suite::HEARD_MS_MAX,
};

/// How long ago a lease may have ended for its GPUs to be tested because of it.
const ENDED_MS: i64 = 300_000;
/// For how long after its last share a GPU counts as shared: its host ends the daemon that it was shared by. That is
/// shorter than windows are, so that nobody is out of one for it.
const SHARED_MS: i64 = 20_000;
/// For how long after a window has opened hosts are drawn into it: one whose GPUs were just being
/// tested is as soon as they are not.
pub(crate) const OPENED_MS: i64 = 30_000;

/// A window that has opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenWindow {
    /// Its id.
    pub window: Uuid,
    /// What everyone is given, hexadecimal.
    pub beacon: String,
}

/// A host that takes jobs or has some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedHost {
    /// Its id.
    pub host: HostId,
    /// Generation of its spec.
    pub generation: u64,
    /// Where it stands.
    pub state: HostState,
    /// What it claims.
    pub claims: Inventory,
    /// What of that it has proven.
    pub proven: Option<Proven>,
    /// The control clock when it is tested again in any case.
    pub retest_up: Option<Millis>,
    /// The control clock since when it has not shown its GPUs beside jobs.
    pub strained_up: Option<Millis>,
    /// Whether it was heard just now.
    pub is_heard: bool,
    /// What is being tested.
    pub open: BTreeSet<Kind>,
    /// Whether it is to be tested because a customer says that a result of it is wrong.
    pub is_disputed: bool,
    /// Whether it was tested in the window that has opened.
    pub in_window: bool,
    /// Its open leases, and those of GPUs that have just ended.
    pub leases: Vec<WatchedLease>,
}

/// A lease, as far as tests beside it go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedLease {
    /// Its id.
    pub lease: LeaseId,
    /// Where it stands.
    pub state: LeaseState,
    /// Whether it ever ran.
    pub was_started: bool,
    /// The GPUs that are leased.
    pub devices: Vec<String>,
    /// Whether it has a share of them, or had until just now: nothing but its customer's jobs computes there then.
    pub is_share: bool,
    /// The control clock when they are tested beside the job.
    pub probe_up: Option<Millis>,
    /// Whether they were tested because it began.
    pub start_probed: bool,
    /// Whether they were tested because it ended.
    pub end_probed: bool,
}

/// All of that at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// Now, on both clocks.
    pub now: Moment,
    /// Hosts about which there may be something to decide, by id.
    pub hosts: Vec<WatchedHost>,
    /// The window that comes next, and the control clock when it opens.
    pub ahead: Option<(Uuid, Millis)>,
    /// The window that has just opened.
    pub opened: Option<OpenWindow>,
    /// The last window, where it is over and no verifier was there to draw everyone into it.
    pub missed: Option<Uuid>,
}

/// Where what a host has proven of a kind stands, if it need not have proven it.
fn part(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Storage => Some("disk"),
        Kind::Devices => Some("devices"),
        Kind::Software => Some("kernel"),
        Kind::Cpu | Kind::Memory | Kind::Transfer => None,
    }
}

impl Store {
    /// What there is to decide whom to test when; `wanted` is what hosts must have proven to take jobs.
    ///
    /// Most hosts of a large market just take jobs until their time comes: those are not loaded.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn hosts_watched(&self, wanted: &BTreeSet<Kind>) -> Result<Watch> {
        let now = self.clock_now().await?;
        let ahead =
            sqlx::query!("select window_id, opens_up_ms from windows where opened_at_ms is null limit 1")
                .fetch_optional(&self.pool)
                .await?;
        let opened = sqlx::query!(
            r#"select window_id, beacon as "beacon!" from windows where opened_at_ms > now_ms() - $1::bigint
               order by window_id desc limit 1"#,
            OPENED_MS
        )
        .fetch_optional(&self.pool)
        .await?;
        let missed = sqlx::query_scalar!(
            "select window_id from windows where done_at_ms is null and opened_at_ms <= now_ms() - $1::bigint
             order by window_id desc limit 1",
            OPENED_MS
        )
        .fetch_optional(&self.pool)
        .await?;
        let opened = opened.map(|row| OpenWindow { window: row.window_id, beacon: row.beacon });
        Ok(Watch {
            now,
            hosts: self.watched(opened.as_ref().map(|opened| opened.window), wanted).await?,
            ahead: ahead.map(|row| (row.window_id, Millis(row.opens_up_ms))),
            opened,
            missed,
        })
    }

    async fn watched(&self, window: Option<Uuid>, wanted: &BTreeSet<Kind>) -> Result<Vec<WatchedHost>> {
        let mut leases = self.leases_watched().await?;
        let disputed = self.hosts_disputed().await?;
        let busy: Vec<Uuid> = leases.keys().copied().chain(disputed.iter().map(|host| host.0)).collect();
        let parts: Vec<String> = wanted.iter().filter_map(|kind| part(*kind)).map(str::to_owned).collect();
        let rows = sqlx::query!(
            r#"select h.host_id, h.generation, h.state, h.inventory as "inventory!", h.proven, h.retest_up_ms, h.strained_up_ms,
                    coalesce(h.heard_up_ms > (select control_ms()) - $2, false) as "is_heard!",
                    array(select kind from challenges c where c.host_id = h.host_id and c.verdict is null) as "open!",
                    exists (select from challenges c where c.host_id = h.host_id and c.window_id = $1) as "in_window!"
               from hosts h
               where h.state in ('ready', 'verifying', 'suspect', 'refused', 'draining') and h.inventory is not null
                 and (h.host_id = any($3) or (h.state = 'ready' and (
                    h.retest_up_ms is null or h.retest_up_ms <= (select control_ms()) or not h.proven ?& $4
                    or ($1::uuid is not null and jsonb_array_length(h.inventory -> 'devices') > 0))))
                 and (h.state = 'ready' or exists (
                    select from leases l where l.host_id = h.host_id and l.state <> 'closed'))
               order by h.host_id"#,
            window,
            HEARD_MS_MAX,
            &busy,
            &parts
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| {
            let open = row.open.into_iter().map(|kind| error::read_name("a kind of test", kind));
            Ok(WatchedHost {
                host: row.host_id.into(),
                generation: row.generation.cast_unsigned(),
                state: error::read_name("a host's state", row.state)?,
                claims: error::read_json("an inventory", row.inventory)?,
                proven: row
                    .proven
                    .map(|value| error::read_json("what a host has proven", value))
                    .transpose()?,
                retest_up: row.retest_up_ms.map(Millis),
                strained_up: row.strained_up_ms.map(Millis),
                is_heard: row.is_heard,
                open: open.collect::<Result<_>>()?,
                is_disputed: disputed.contains(&row.host_id.into()),
                in_window: row.in_window,
                leases: leases.remove(&row.host_id).unwrap_or_default(),
            })
        });
        Ok(rows.filter_map(readable).collect())
    }

    async fn leases_watched(&self) -> Result<BTreeMap<Uuid, Vec<WatchedLease>>> {
        let rows = sqlx::query!(
            r#"select l.host_id, l.lease_id, l.state, l.started_at_ms, l.devices,
                    l.share_milli is not null and coalesce(l.closed_at_ms > now_ms() - $2::bigint, true) as "is_share!",
                    l.probe_up_ms,
                    exists (select from challenges c where c.lease_id = l.lease_id and c.cause = 'lease_start') as "start_probed!",
                    exists (select from challenges c where c.lease_id = l.lease_id and c.cause = 'lease_end') as "end_probed!"
               from leases l
               where l.state <> 'closed'
                  or (cardinality(l.devices) > 0 and l.closed_at_ms > now_ms() - $1::bigint)
               order by l.lease_id"#,
            ENDED_MS,
            SHARED_MS
        )
        .fetch_all(&self.pool)
        .await?;
        let mut leases: BTreeMap<Uuid, Vec<WatchedLease>> = BTreeMap::new();
        let rows = rows.into_iter().map(|row| {
            let lease = WatchedLease {
                lease: row.lease_id.into(),
                state: error::read_name("a lease's state", row.state)?,
                was_started: row.started_at_ms.is_some(),
                devices: row.devices,
                is_share: row.is_share,
                probe_up: row.probe_up_ms.map(Millis),
                start_probed: row.start_probed,
                end_probed: row.end_probed,
            };
            Ok((row.host_id, lease))
        });
        for (host, lease) in rows.filter_map(readable) {
            leases.entry(host).or_default().push(lease);
        }
        Ok(leases)
    }

    /// The last verdicts on the GPUs of hosts that were passed when they were free.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn devices_passed(&self, hosts: &[HostId]) -> Result<BTreeMap<HostId, Value>> {
        let ids: Vec<Uuid> = hosts.iter().map(|host| host.0).collect();
        let passed = sqlx::query!(
            r#"select h.host_id, passed.verdict as "verdict!" from hosts h cross join lateral (
                select c.verdict from challenges c
                where c.host_id = h.host_id and c.kind = 'devices' and c.code = 'passed' and c.lease_id is null
                  and c.drawn_at_ms >= h.enrolled_at_ms
                order by c.challenge_id desc limit 1) passed
               where h.host_id = any($1)"#,
            &ids
        );
        let passed = passed.fetch_all(&self.pool).await?;
        Ok(passed.into_iter().map(|row| (row.host_id.into(), row.verdict)).collect())
    }

    /// Sets when the GPUs of leases are tested beside their jobs, where that is not set.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn leases_probe_at(&self, leases: &[(LeaseId, Millis)]) -> Result<()> {
        let (ids, ups): (Vec<Uuid>, Vec<i64>) = leases.iter().map(|(lease, up)| (lease.0, up.0)).unzip();
        sqlx::query!(
            "with unset as (
                select l.lease_id, at.up_ms from leases l join unnest($1::uuid[], $2::bigint[]) as at (lease_id, up_ms) using (lease_id)
                where l.probe_up_ms is null and l.state <> 'closed' order by l.lease_id for update of l)
             update leases l set probe_up_ms = unset.up_ms from unset where l.lease_id = unset.lease_id",
            &ids,
            &ups
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Remembers that hosts can show none of their GPUs beside their jobs from now on, where that is not known.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn hosts_hidden(&self, hosts: &[HostId]) -> Result<()> {
        let ids: Vec<Uuid> = hosts.iter().map(|host| host.0).collect();
        sqlx::query!(
            "with shown as (
                select host_id from hosts where host_id = any($1) and strained_up_ms is null order by host_id for update)
             update hosts h set strained_up_ms = control_ms() from shown where h.host_id = shown.host_id",
            &ids
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Sets when the next window opens, where there is none ahead.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn window_plan(&self, window: Uuid, opens_up: Millis) -> Result<()> {
        sqlx::query!(
            "insert into windows (window_id, opens_up_ms) values ($1, $2) on conflict do nothing",
            window,
            opens_up.0
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Has a window opened by `opens_up` at the latest, in place of one that was missed, and all before it.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when another verifier has done so.
    pub async fn window_replace(&self, missed: Uuid, window: Uuid, opens_up: Millis) -> Result<()> {
        let mut tx = self.begin().await?;
        let done = sqlx::query!(
            "update windows set done_at_ms = now_ms()
             where opened_at_ms is not null and done_at_ms is null and window_id <= $1",
            missed
        )
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::Stale("window"));
        }
        sqlx::query!(
            "insert into windows (window_id, opens_up_ms) values ($1, $2)
             on conflict ((true)) where opened_at_ms is null
             do update set opens_up_ms = least(windows.opens_up_ms, excluded.opens_up_ms)",
            window,
            opens_up.0
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Everyone was drawn into a window who was free for it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn window_done(&self, window: Uuid) -> Result<()> {
        sqlx::query!(
            "update windows set done_at_ms = now_ms() where window_id = $1 and done_at_ms is null",
            window
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Opens a window, once: what everyone is given in it is known from now on.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when it is open.
    pub async fn window_open(&self, window: Uuid, beacon: &str) -> Result<()> {
        let done = sqlx::query!(
            "update windows set beacon = $2, opened_at_ms = now_ms() where window_id = $1 and opened_at_ms is null",
            window,
            beacon
        )
        .execute(&self.pool)
        .await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Stale("window")) }
    }
}
