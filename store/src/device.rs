//! Whose a GPU is: no two hosts prove the same one.

use nave_domain::{ChallengeId, HostId, Timestamp};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::{Result, Store, StoreError};

/// After how long a silence on the control clock a host's GPUs are free for others.
const SILENT_MS: i64 = 3_600_000;
/// The same for hosts of the same miner: one who installs a machine anew is not kept waiting.
const SILENT_AT_HOME_MS: i64 = 30_000;

/// A GPU that belongs to another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its identifier.
    pub device: String,
    /// Whose it is.
    pub host: HostId,
    /// Since when.
    pub since: Timestamp,
}

impl Store {
    /// Which of these GPUs belong to another host: one that has proven them, still claims
    /// them, and has neither left nor been silent for long.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn device_holders(&self, host: HostId, devices: &[String]) -> Result<Vec<Holder>> {
        held_elsewhere(&mut *self.pool.acquire().await?, host, devices).await
    }
}

/// Gives GPUs to the host that has proven them.
pub(crate) async fn hold(tx: &mut PgConnection, host: HostId, devices: &[String]) -> Result<()> {
    // In one order everywhere, and after whoever is at it: only then is seen who was first.
    for device in devices {
        sqlx::query!("select pg_advisory_xact_lock(hashtextextended('device ' || $1, 0))", device)
            .execute(&mut *tx)
            .await?;
    }
    if !held_elsewhere(tx, host, devices).await?.is_empty() {
        return Err(StoreError::Stale("device"));
    }
    sqlx::query!(
        "insert into device_claims (device, host_id) select unnest($1::text[]), $2
         on conflict (device) do update set host_id = excluded.host_id, shown_up_ms = excluded.shown_up_ms,
            since_ms = case when device_claims.host_id = excluded.host_id then device_claims.since_ms else now_ms() end",
        devices,
        host.0
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Notes that a host has shown the GPUs beside its jobs that a challenge was about.
pub(crate) async fn shown(tx: &mut PgConnection, challenge: ChallengeId) -> Result<()> {
    sqlx::query!(
        "update device_claims d set shown_up_ms = control_ms() from challenges c
         where c.challenge_id = $1 and d.host_id = c.host_id and exists (
            select from jsonb_array_elements(c.challenge #> '{task,devices,devices}') tested where tested ->> 'uuid' = d.device)",
        challenge.0
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Those of these GPUs that a host has proven and nobody else since.
pub(crate) async fn held(tx: &mut PgConnection, host: HostId, devices: &[String]) -> Result<Vec<String>> {
    let held = sqlx::query_scalar!(
        "select device from device_claims where host_id = $1 and device = any($2) order by device",
        host.0,
        devices
    );
    Ok(held.fetch_all(tx).await?)
}

async fn held_elsewhere(tx: &mut PgConnection, host: HostId, devices: &[String]) -> Result<Vec<Holder>> {
    let rows = sqlx::query!(
        "select d.device, d.host_id, d.since_ms from device_claims d join hosts h using (host_id)
         where d.device = any($2) and d.host_id <> $1 and h.state not in ('gone', 'banned')
           and control_ms() - coalesce(h.heard_up_ms, 0)
               < case when h.hotkey = (select hotkey from hosts where host_id = $1) then $4::bigint else $3::bigint end
           and h.inventory @> jsonb_build_object('devices', jsonb_build_array(jsonb_build_object('uuid', d.device)))
         order by d.device",
        host.0,
        devices,
        SILENT_MS,
        SILENT_AT_HOME_MS
    )
    .fetch_all(tx)
    .await?;
    let rows = rows.into_iter().map(|row| Holder {
        device: row.device,
        host: row.host_id.into(),
        since: Timestamp(row.since_ms),
    });
    Ok(rows.collect())
}
