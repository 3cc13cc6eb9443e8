//! Bans: hosts that were found to cheat are not tested for a while, whatever name they come back under.

use nave_domain::{ChallengeId, HostId, Millis, Timestamp, host::Inventory, verdict::Kind};
use sqlx::PgConnection;

use crate::{Result, Store, device, error};

/// For how long a ban makes the next one longer, on the control clock.
pub(crate) const REMEMBERED_MS: i64 = 90 * 86_400_000;
/// For how long a host may have been silent when a ban of its miner spares it.
const SILENT_MS_MAX: i64 = 600_000;

/// A ban that counts or counted against a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BanRow {
    /// The verdict that it came from.
    pub challenge: ChallengeId,
    /// The host that was found to cheat.
    pub host: HostId,
    /// Why, for programs.
    pub code: String,
    /// Why, for people.
    pub message: String,
    /// Since when.
    pub since: Timestamp,
    /// What is left of it on the control clock; none where it is over.
    pub left: Option<Millis>,
}

impl Store {
    /// Bans that count against a host and were not lifted, those that are over too; the newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn bans_of_host(&self, host: HostId) -> Result<Vec<BanRow>> {
        let rows = sqlx::query!(
            r#"select challenge_id as "challenge_id!", host_id as "host_id!", code as "code!", message as "message!",
                    since_ms as "since_ms!", until_up_ms - control_ms() as "left_ms!"
               from bans_of($1) order by since_ms desc"#,
            host.0
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| BanRow {
            challenge: row.challenge_id.into(),
            host: row.host_id.into(),
            code: row.code,
            message: row.message,
            since: Timestamp(row.since_ms),
            left: (row.left_ms > 0).then_some(Millis(row.left_ms)),
        });
        Ok(rows.collect())
    }
}

/// Begins a ban of the host of a challenge, which is locked; says how long it is.
pub(crate) async fn begin(
    tx: &mut PgConnection,
    challenge: ChallengeId,
    (code, message): (&str, &str),
    spans: &[Millis],
) -> Result<Millis> {
    let row = sqlx::query!(
        r#"select h.host_id, h.hotkey, c.claims, c.kind,
                (select count(*) from bans_of(h.host_id) b where b.since_up_ms > control_ms() - $2) as "earlier!"
           from challenges c join hosts h using (host_id) where c.challenge_id = $1"#,
        challenge.0,
        REMEMBERED_MS
    )
    .fetch_one(&mut *tx)
    .await?;
    let earlier = usize::try_from(row.earlier).unwrap_or(usize::MAX);
    let span = spans.get(earlier).or(spans.last()).copied().unwrap_or(Millis::ZERO);
    let claims: Inventory = error::read_json("an inventory", row.claims)?;
    let claimed: Vec<String> = claims.devices.into_iter().map(|device| device.uuid).collect();
    // What a host says that it has may be another's: only what it has proven is banned with it.
    let devices = match error::read_name("a kind of test", row.kind)? {
        Kind::Devices => device::held(tx, row.host_id.into(), &claimed).await?,
        Kind::Cpu | Kind::Memory | Kind::Storage | Kind::Software | Kind::Transfer => Vec::new(),
    };
    sqlx::query!(
        "insert into bans (challenge_id, host_id, hotkey, devices, cpu_model, code, message, until_up_ms, spared)
         select $1, $2, $3, $4, $5, $6, $7, control_ms() + $8, array(
            select h.host_id from hosts h
            where h.hotkey = $3 and h.host_id <> $2 and h.heard_up_ms > control_ms() - $9
              and h.enrolled_at_ms < (select drawn_at_ms from challenges where challenge_id = $1)
              and (h.proven is not null or exists (
                select from challenges c where c.host_id = h.host_id and c.verdict is null)))",
        challenge.0,
        row.host_id,
        row.hotkey,
        &devices,
        claims.cpu_model,
        code,
        message,
        span.0,
        SILENT_MS_MAX
    )
    .execute(tx)
    .await?;
    Ok(span)
}

/// Refuses hosts that are to be tested while a ban counts against them, until it is over.
pub(crate) async fn enforce(store: &Store) -> Result<()> {
    sqlx::query!(
        "with counting as materialized (
            select hotkey, devices from bans
            where lifted_at_ms is null and until_up_ms > (select control_ms())),
         -- Most hosts have nothing in common with any of them.
         banned as (
            select h.host_id, b.challenge_id, b.code, b.message, b.until_up_ms from hosts h cross join lateral (
                select * from bans_of(h.host_id) where until_up_ms > control_ms() order by until_up_ms desc limit 1) b
            where h.state = 'verifying' and (h.hotkey in (select hotkey from counting) or exists (
                select from jsonb_array_elements(h.inventory -> 'devices') device
                where device ->> 'uuid' in (select unnest(devices) from counting)))
            order by h.host_id for update of h)
         update hosts h set state = 'refused', proven = null, generation = generation + 1, retry_up_ms = b.until_up_ms, refused_by = b.challenge_id,
            reason_code = b.code, reason_message = 'a ban counts against it: ' || b.message, reason_at_ms = now_ms()
         from banned b where h.host_id = b.host_id"
    )
    .execute(&store.pool)
    .await?;
    Ok(())
}

/// Takes all bans back that count against a host: the operator's word.
pub(crate) async fn lift(tx: &mut PgConnection, host: HostId) -> Result<()> {
    sqlx::query!(
        "update bans set lifted_at_ms = now_ms(), lifted_by = 'operator'
         where lifted_at_ms is null and until_up_ms > control_ms()
           and challenge_id in (select challenge_id from bans_of($1))",
        host.0
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Takes back the ban that came from a verdict, for all it was held against.
pub(crate) async fn lift_of(tx: &mut PgConnection, challenge: ChallengeId) -> Result<()> {
    let lifted = sqlx::query!(
        "update bans set lifted_at_ms = now_ms(), lifted_by = 'appeal'
         where challenge_id = $1 and lifted_at_ms is null returning until_up_ms",
        challenge.0
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(lifted) = lifted else { return Ok(()) };
    // Those that were refused only because the ban counted against them, too.
    sqlx::query!(
        "with held as (
            select host_id from hosts where state = 'refused' and retry_up_ms = $1 order by host_id for update)
         update hosts h set retry_up_ms = control_ms() from held where h.host_id = held.host_id",
        lifted.until_up_ms
    )
    .execute(tx)
    .await?;
    Ok(())
}
