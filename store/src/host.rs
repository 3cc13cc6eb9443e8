//! Hosts: enrolment, reports and specs.

use std::{collections::BTreeMap, net::IpAddr};

use nave_domain::{
    Bytes, HostId, JobId, LeaseId, MicroUsd, MilliCpu, Millis, Timestamp,
    event::{EventRules, Resumed},
    fraction::{Share, Tenant},
    host::{self, HostEvent, HostState, Inventory, Proven, Term, Trust},
    job::JobRequest,
    lease::StopReason,
    rate::{GpuPrice, Rate},
    wish::Region,
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result, Store, StoreError, baseline, cloud, error, event, group, held, look,
    notify::{Changes, announce, announce_each},
    schedule::{self, Occupied},
    suite,
};

/// A host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRow {
    /// Its id.
    pub host: HostId,
    /// Its name.
    pub name: String,
    /// Who owns it.
    pub hotkey: String,
    /// Where it stands.
    pub state: HostState,
    /// What is known of it.
    pub trust: Trust,
    /// What it says it has.
    pub inventory: Option<Inventory>,
    /// What of that it has proven.
    pub proven: Option<Proven>,
    /// Why it takes no jobs.
    pub reason: Option<HostReason>,
    /// Whether its owner wants no new jobs on it for now.
    pub paused: bool,
    /// For how long its capacity is offered.
    pub term: Term,
    /// Where its owner says it is.
    pub region: Option<Region>,
    /// Its price.
    pub rate: Rate,
    /// How the price of its GPUs is set.
    pub gpu_price: GpuPrice,
    /// Its address in the mesh.
    pub mesh_address: Option<IpAddr>,
    /// When it became known.
    pub enrolled_at: Timestamp,
    /// When it was last heard.
    pub heard_at: Option<Timestamp>,
    /// Number of open leases.
    pub leases: u32,
}

/// Why a host takes no jobs, or fewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostReason {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// Since when.
    pub since: Timestamp,
}

/// What a host should do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecRow {
    /// Grows with every change.
    pub generation: u64,
    /// Where the host stands.
    pub state: HostState,
    /// Why it takes no jobs.
    pub reason: Option<HostReason>,
    /// Its open leases.
    pub orders: BTreeMap<LeaseId, OrderRow>,
}

/// One lease to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderRow {
    /// The job.
    pub job: JobId,
    /// Which attempt.
    pub attempt: u32,
    /// Why it must end, if it must.
    pub stop: Option<StopReason>,
    /// What the customer asked for.
    pub request: JobRequest,
    /// CPU limit.
    pub milli_cpu: MilliCpu,
    /// Memory limit.
    pub memory: Bytes,
    /// Working directory.
    pub disk: Bytes,
    /// GPUs, or a slice of one.
    pub devices: Vec<String>,
    /// What it gets of its one GPU, where that is a share.
    pub share: Option<Share>,
    /// The other open leases of its group, by job.
    pub peers: BTreeMap<JobId, LeaseId>,
}

/// Which report it is that a host was heard by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard<'a> {
    /// Larger with every agent process of the host.
    pub session: u64,
    /// Larger with every report of one.
    pub sequence: u64,
    /// The newest generation of its spec that the host has acted on.
    pub seen_generation: u64,
    /// What it calls the time since its machine has started, if it does; at most 64 bytes.
    pub boot: Option<&'a str>,
}

/// Shortest time between two changes of what a host has. A change makes placements planned
/// before it stale; a host that said something else all the time would hold up every job
/// that is planned for it. What comes too soon is believed when it is repeated.
const INVENTORY_MS_MIN: i64 = 1_000;
/// Pause before a refused host that claims less is tested again.
const CORRECTED_MS: i64 = 5_000;
/// Which part of what was tested last it must claim less to be tested so soon: who changes
/// a text or a byte has corrected nothing, and would have as many tries as they like.
const CORRECTED_PART: i64 = 8;

/// Announces that a host's spec has changed; the last row lock before money.
pub(crate) async fn bump(tx: &mut PgConnection, host: HostId) -> Result<()> {
    sqlx::query!("update hosts set generation = generation + 1 where host_id = $1", host.0)
        .execute(&mut *tx)
        .await?;
    announce(tx, Changes::Host(host)).await
}

/// As [`bump`], for several hosts that are locked.
pub(crate) async fn bump_each(tx: &mut PgConnection, hosts: &[HostId]) -> Result<()> {
    let ids: Vec<Uuid> = hosts.iter().map(|host| host.0).collect();
    sqlx::query!("update hosts set generation = generation + 1 where host_id = any($1)", &ids)
        .execute(&mut *tx)
        .await?;
    announce_each(tx, hosts).await
}

/// Makes every spec newer. Hosts are locked in the order of their ids, as elsewhere.
pub(crate) async fn bump_all(tx: &mut PgConnection) -> Result<()> {
    sqlx::query!(
        "with members as (
            select host_id from hosts where state not in ('gone', 'banned') order by host_id for update)
         update hosts h set generation = generation + 1 from members m where h.host_id = m.host_id"
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// What counts of a host's past, in milliseconds of leases: beyond that, all of it counts half.
const PAST_MS_MAX: i64 = 2_000 * 3_600_000;

/// Notes for how long a lease that was closed ran on a host, which is locked, and whether the host lost it. A customer can
/// have shares of theirs lost, so those of one count once.
pub(crate) async fn served(tx: &mut PgConnection, host: HostId, lease: LeaseId, used: Millis) -> Result<()> {
    sqlx::query!(
        "with lost as (
            select count(*) as count from leases l join jobs j using (job_id)
            where l.lease_id = $2 and l.outcome ->> 'kind' = 'host_lost' and (l.share_milli is null or not exists (
                select from leases o join jobs p using (job_id)
                where o.host_id = $1 and o.lease_id <> $2 and o.share_milli is not null and p.customer_id = j.customer_id
                  and o.outcome ->> 'kind' = 'host_lost'))),
         past as (
            select host_id, served_ms + $3 as served, losses + lost.count as lost,
                case when served_ms + $3 > $4 then 2 else 1 end as part
            from hosts cross join lost where host_id = $1)
         update hosts h set served_ms = served / part, losses = lost / part from past p where h.host_id = p.host_id",
        host.0,
        lease.0,
        used.0,
        PAST_MS_MAX
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Announces that a lease of a host was closed; a host that drains leaves with its last one.
pub(crate) async fn released(tx: &mut PgConnection, host: HostId) -> Result<()> {
    bump(tx, host).await?;
    let left = sqlx::query!(
        "update hosts set state = 'gone' where host_id = $1 and state = 'draining'
             and not exists (select from leases where host_id = $1 and state <> 'closed')",
        host.0
    )
    .execute(&mut *tx)
    .await?;
    if left.rows_affected() == 0 {
        return suite::emptied(tx, host).await;
    }
    look::host_changed(tx, host).await?;
    announce(tx, Changes::Mesh).await
}

/// What a host is that is heard again: by what it calls its boot, then and now, and whether its agent is another process.
fn resumed(boots: Option<(&str, &str)>, is_another: bool) -> Resumed {
    match boots {
        Some((known, now)) if known != now => Resumed::Machine,
        Some(_) | None if is_another => Resumed::Agent,
        Some(_) | None => Resumed::Same,
    }
}

/// Tells whoever waits for it that a host which was heard is not what it was, or is to be tested.
async fn announce_heard(
    tx: &mut PgConnection,
    host: HostId,
    has_changed: bool,
    is_to_be_tested: bool,
) -> Result<()> {
    if has_changed {
        announce(tx, Changes::Host(host)).await?;
        announce(tx, Changes::Supply).await?;
    }
    if is_to_be_tested { announce(tx, Changes::Challenges).await } else { Ok(()) }
}

/// Whether a host claims clearly less than it was last tested for, and nothing more.
async fn is_corrected(tx: &mut PgConnection, host: HostId, inventory: &Inventory) -> Result<bool> {
    let tested = sqlx::query_scalar!(
        "select claims from challenges where host_id = $1 order by challenge_id desc limit 1",
        host.0
    )
    .fetch_optional(tx)
    .await?;
    let Some(tested) = tested else { return Ok(false) };
    let tested = Proven::of(&error::read_json("an inventory", tested)?);
    let pairs = [(tested.milli_cpu.0, inventory.milli_cpu.0), (tested.memory.0, inventory.memory.0)];
    let is_less = pairs.iter().any(|(tested, now)| *now <= tested - tested / CORRECTED_PART && now < tested);
    Ok(is_less && pairs.iter().all(|(tested, now)| now <= tested))
}

fn read_reason(code: Option<String>, message: Option<String>, at_ms: Option<i64>) -> Option<HostReason> {
    let ((code, message), at_ms) = code.zip(message).zip(at_ms)?;
    Some(HostReason { code, message, since: Timestamp(at_ms) })
}

impl Store {
    /// Takes note of a report: the host was heard, and what it has, which changes once a
    /// second at most; claims that are not proven take it out until they are. Returns the generation
    /// of its spec and whether the report is news: a late one, from the same process or
    /// an earlier one, is not.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such host, [`StoreError::Stale`] when it is gone.
    pub async fn host_report(
        &self,
        id: HostId,
        Heard { session, sequence, seen_generation, boot }: Heard<'_>,
        inventory: &Inventory,
    ) -> Result<(u64, bool)> {
        let mut tx = self.begin().await?;
        let row = sqlx::query!(
            r#"select state, session, sequence, generation, inventory, proven, suite_cause, boot,
                    coalesce(now_ms() - inventory_at_ms between 0 and $2::bigint - 1, false) as "settling!",
                    coalesce(now_ms() - heard_at_ms > event_rule('gap_ms', $3), false) as "was_silent!"
               from hosts where host_id = $1 for update"#,
            id.0,
            INVENTORY_MS_MIN,
            EventRules::default().gap.0
        )
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(StoreError::NotFound("host"))?;
        let generation = row.generation.cast_unsigned();
        let last = row.session.map(|known| (known.cast_unsigned(), row.sequence.cast_unsigned()));
        if last.is_some_and(|last| (session, sequence) <= last) {
            return Ok((generation, false));
        }
        let is_another = last.is_some_and(|(known, _)| known != session);
        let resumed = resumed(row.boot.as_deref().zip(boot), is_another);
        let has_lost = row.was_silent && event::came_back(&mut tx, id, resumed).await?;
        let from: HostState = error::read_name("a host's state", row.state)?;
        let fresh = error::write_json(inventory)?;
        let another = row.inventory.as_ref() != Some(&fresh) && !row.settling;
        let proven: Option<Proven> =
            row.proven.map(|value| error::read_json("what a host has proven", value)).transpose()?;
        // What counts is what it is known to claim: repeating a claim does not prove it.
        let claims = match row.inventory {
            Some(kept) if !another => error::read_json("an inventory", kept)?,
            Some(_) | None => inventory.clone(),
        };
        // Who has lost leases is what it was only once it has shown that.
        let is_due = has_lost || row.suite_cause.is_some();
        let covers = proven.as_ref().is_some_and(|proven| proven.covers(&claims));
        let event = if covers && !is_due { HostEvent::Heard } else { HostEvent::Claimed };
        // One that fell silent while it was tested goes on where it was.
        let was_tested = from == HostState::Suspect && (row.suite_cause.is_some() || proven.is_none());
        let to = host::next(from, event).ok_or(StoreError::Stale("host"))?;
        let changed = from != to || another;
        let begins = to == HostState::Verifying && from != to && !was_tested;
        let corrected = another && from == HostState::Refused && is_corrected(&mut tx, id, inventory).await?;
        // A placement planned on what the host no longer is becomes stale.
        let generation = generation + u64::from(changed);
        sqlx::query!(
            "update hosts set state = $2, session = $3, sequence = $4, seen_generation = $5,
                inventory = case when $8 then $6 else inventory end,
                inventory_at_ms = case when $8 then now_ms() else inventory_at_ms end,
                -- Who corrects its claims need not wait as long as one who repeats them.
                retry_up_ms = case when $10 then least(retry_up_ms, control_ms() + $9) else retry_up_ms end,
                suite_at_ms = case when $11 then now_ms() else suite_at_ms end, boot = coalesce($12, boot),
                suite_cause = case when $13 then coalesce(suite_cause, 'random') else suite_cause end,
                generation = $7, heard_at_ms = now_ms(), heard_up_ms = (select up_ms from control_clock)
             where host_id = $1",
            id.0,
            to.as_str(),
            session.cast_signed(),
            sequence.cast_signed(),
            seen_generation.cast_signed(),
            fresh,
            generation.cast_signed(),
            another,
            CORRECTED_MS,
            corrected,
            begins,
            boot,
            has_lost && to == HostState::Verifying
        )
        .execute(&mut *tx)
        .await?;
        announce_heard(&mut tx, id, changed, from != to && to == HostState::Verifying).await?;
        tx.commit().await?;
        Ok((generation, true))
    }

    /// What a host should do. The generation is read first, so it is never newer than the orders.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such host.
    pub async fn host_spec(&self, host: HostId) -> Result<SpecRow> {
        let row = sqlx::query!(
            "select generation, state, reason_code, reason_message, reason_at_ms from hosts where host_id = $1",
            host.0
        )
        .fetch_optional(&self.pool)
        .await?
        .ok_or(StoreError::NotFound("host"))?;
        let orders = sqlx::query!(
            "select l.lease_id, l.job_id, l.attempt, l.stop_reason, l.milli_cpu, l.memory, l.disk, l.devices, l.share_milli,
                    l.share_vram, j.customer_id, j.request
             from leases l join jobs j using (job_id) where l.host_id = $1 and l.state <> 'closed'",
            host.0
        )
        .fetch_all(&self.pool)
        .await?;
        let mut peers = group::peers_of_host(self, host).await?;
        let orders = orders.into_iter().map(|row| {
            let order = OrderRow {
                job: row.job_id.into(),
                attempt: row.attempt.unsigned_abs(),
                stop: row.stop_reason.map(|name| error::read_name("a stop reason", name)).transpose()?,
                request: error::read_json("a job's request", row.request)?,
                milli_cpu: MilliCpu(row.milli_cpu),
                memory: Bytes(row.memory),
                disk: Bytes(row.disk),
                devices: row.devices,
                share: schedule::share(row.share_milli, row.share_vram)
                    .map(|fraction| Share { fraction, tenant: Tenant::of(host, row.customer_id.into()) }),
                peers: peers.remove(&row.lease_id.into()).unwrap_or_default(),
            };
            Ok((row.lease_id.into(), order))
        });
        Ok(SpecRow {
            generation: row.generation.cast_unsigned(),
            state: error::read_name("a host's state", row.state)?,
            reason: read_reason(row.reason_code, row.reason_message, row.reason_at_ms),
            orders: orders.collect::<Result<_>>()?,
        })
    }

    /// The generation of a host's spec.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such host.
    pub async fn host_generation(&self, host: HostId) -> Result<u64> {
        sqlx::query_scalar!("select generation from hosts where host_id = $1", host.0)
            .fetch_optional(&self.pool)
            .await?
            .map(i64::cast_unsigned)
            .ok_or(StoreError::NotFound("host"))
    }

    /// Every host that has not left, by name.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn host_list(&self) -> Result<Vec<HostRow>> {
        self.host_select(None).await
    }

    /// Every host of a miner, those that left too, by name.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn hosts_of_miner(&self, hotkey: &str) -> Result<Vec<HostRow>> {
        self.host_select(Some(hotkey)).await
    }

    async fn host_select(&self, hotkey: Option<&str>) -> Result<Vec<HostRow>> {
        let rows = sqlx::query!(
            r#"select h.host_id, h.name, h.hotkey, h.state, h.inventory, h.gpu_hour, h.vcpu_hour, h.gib_hour,
                    h.below_percent, h.price_floor, h.heard_at_ms, h.proven, h.reason_code, h.reason_message, h.reason_at_ms, h.paused, h.term, h.region,
                    host(h.mesh_address) as mesh_address, h.enrolled_at_ms,
                    exists (select from machines m where m.host_id = h.host_id) as "is_rented!",
                    (select count(*) from leases l where l.host_id = h.host_id and l.state <> 'closed') as "leases!"
               from hosts h
               where h.hotkey = $1 or ($1::text is null and h.state not in ('gone', 'banned'))
               order by h.name, h.host_id"#,
            hotkey
        )
        .fetch_all(&self.pool)
        .await?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.host_id).collect();
        let held = held::hosts(&mut *self.pool.acquire().await?, &ids).await?;
        let rows = rows.into_iter().map(|row| {
            let held = held.get(&row.host_id.into()).map(|held| held.reason());
            let inventory: Option<Inventory> =
                row.inventory.map(|value| error::read_json("an inventory", value)).transpose()?;
            let proven: Option<Proven> =
                row.proven.map(|value| error::read_json("what a host has proven", value)).transpose()?;
            Ok(HostRow {
                host: row.host_id.into(),
                name: row.name,
                hotkey: row.hotkey,
                state: error::read_name("a host's state", row.state)?,
                trust: cloud::trust(row.is_rented, inventory.as_ref(), proven.as_ref()),
                inventory,
                proven,
                reason: held.or_else(|| read_reason(row.reason_code, row.reason_message, row.reason_at_ms)),
                paused: row.paused,
                term: error::read_name("a term", row.term)?,
                region: row.region.map(|name| error::read_name("a region", name)).transpose()?,
                rate: Rate {
                    gpu_hour: MicroUsd(row.gpu_hour),
                    vcpu_hour: MicroUsd(row.vcpu_hour),
                    gib_hour: MicroUsd(row.gib_hour),
                },
                gpu_price: baseline::gpu_price(row.below_percent, row.price_floor),
                mesh_address: row.mesh_address.and_then(|address| address.parse().ok()),
                enrolled_at: Timestamp(row.enrolled_at_ms),
                heard_at: row.heard_at_ms.map(Timestamp),
                leases: u32::try_from(row.leases).unwrap_or(u32::MAX),
            })
        });
        rows.collect()
    }

    /// What open leases and quotes occupy, by host; hosts without any are left out.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn hosts_occupied(&self) -> Result<BTreeMap<HostId, Vec<Occupied>>> {
        schedule::occupied(&mut *self.pool.acquire().await?).await
    }

    /// Marks hosts suspect that have been silent for longer than `silent` on the control
    /// clock; returns how many are so newly.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn hosts_suspect(&self, silent: nave_domain::Millis) -> Result<u64> {
        let done = sqlx::query!(
            "with quiet as (
                select host_id from hosts
                where state in ('ready', 'verifying') and (select up_ms from control_clock) - coalesce(heard_up_ms, 0) > $1
                order by host_id for update)
             update hosts h set state = 'suspect' from quiet where h.host_id = quiet.host_id",
            silent.0
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }
}
