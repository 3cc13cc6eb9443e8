//! Enrolment: a ticket makes a host, once.

use std::net::Ipv6Addr;

use nave_crash_point::crash_point;
use nave_domain::{
    HostId,
    host::{self, HostEvent, HostState, Term},
    rate::Rate,
    wish::Region,
};
use sqlx::PgConnection;

use crate::{
    Result, Store, StoreError, cloud, error, look,
    notify::{Changes, announce},
};

/// An enrolment whose signatures have been checked.
#[derive(Debug, Clone)]
pub struct Joining<'a> {
    /// The ticket's random id.
    pub ticket: &'a str,
    /// Who signed the ticket.
    pub hotkey: &'a str,
    /// The key of the agent that uses it.
    pub agent_key: &'a str,
    /// WireGuard public key of the host.
    pub mesh_key: &'a str,
    /// Id of the host, should it be a new one.
    pub host: HostId,
    /// Its address in the mesh, should it be a new one.
    pub address: Ipv6Addr,
    /// Its name; without one a known host keeps its own, and a new one is named after its id.
    pub name: Option<&'a str>,
    /// Its price.
    pub rate: Rate,
    /// For how long its capacity is offered.
    pub term: Term,
    /// Where its owner says it is.
    pub region: Option<&'a Region>,
    /// The host that enrols again, on other hardware or without its keys.
    pub replaces: Option<HostId>,
}

/// A host that has joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Its id.
    pub host: HostId,
    /// Its name.
    pub name: String,
    /// Its address in the mesh.
    pub address: Ipv6Addr,
}

impl Store {
    /// Uses a ticket: makes the host, or lets a known one begin anew with other keys. The
    /// agent that used a ticket gets the same answer again.
    ///
    /// # Errors
    /// [`StoreError::Constraint`] with `tickets_pkey` when another agent has used the ticket, or
    /// the same one with another mesh key, or its host has enrolled again since;
    /// `mesh_keys_pkey` when another host has had the mesh key, `hosts_name` when another host
    /// of the miner has the name; [`StoreError::NotFound`] when the miner has no host to be
    /// replaced, [`StoreError::Stale`] when the host, or the machine that it is, is leaving or has left.
    pub async fn host_join(&self, joining: &Joining<'_>) -> Result<Joined> {
        let mut tx = self.begin().await?;
        // One at a time: an agent that repeats itself must find what its first wish did.
        sqlx::query!(
            "select pg_advisory_xact_lock(hashtextextended($1 || ' ' || $2, 0))",
            joining.hotkey,
            joining.ticket
        )
        .execute(&mut *tx)
        .await?;
        if let Some(joined) = joined_before(&mut tx, joining).await? {
            return Ok(joined);
        }
        let joined = match joining.replaces {
            Some(host) => rejoin(&mut tx, joining, host).await?,
            None => join(&mut tx, joining).await?,
        };
        if joining.replaces.is_none() {
            cloud::joined(&mut tx, joining.ticket, joining.hotkey, joined.host).await?;
        }
        mesh_key_claim(&mut tx, joined.host, joining.mesh_key).await?;
        sqlx::query!(
            "insert into tickets (ticket, hotkey, agent_key, host_id) values ($1, $2, $3, $4)",
            joining.ticket,
            joining.hotkey,
            joining.agent_key,
            joined.host.0
        )
        .execute(&mut *tx)
        .await?;
        announce(&mut tx, Changes::Mesh).await?;
        announce(&mut tx, Changes::Host(joined.host)).await?;
        crash_point!("store.host_join.before_commit");
        tx.commit().await?;
        Ok(joined)
    }

    /// What a ticket has made of the agent that asks again.
    ///
    /// # Errors
    /// As [`Store::host_join`].
    pub async fn host_joined(&self, joining: &Joining<'_>) -> Result<Option<Joined>> {
        joined_before(&mut *self.pool.acquire().await?, joining).await
    }

    /// Takes note of the nonce of a signed request; false when it was used before. Nonces of
    /// requests that have expired meanwhile are forgotten.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn nonce_use(&self, signer: &str, nonce: &str, expires_at_ms: i64) -> Result<bool> {
        sqlx::query!("delete from nonces where expires_at_ms < now_ms() - 60000").execute(&self.pool).await?;
        let done = sqlx::query!(
            "insert into nonces (signer, nonce, expires_at_ms) values ($1, $2, $3) on conflict do nothing",
            signer,
            nonce,
            expires_at_ms
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }
}

async fn joined_before(tx: &mut PgConnection, joining: &Joining<'_>) -> Result<Option<Joined>> {
    let used = sqlx::query!(
        r#"select t.agent_key, t.host_id, h.name, h.state, h.agent_key as "agent_now", host(h.mesh_address) as "address!",
                exists (select from mesh_keys k where k.mesh_key = $2 and k.host_id = t.host_id) as "keyed!"
           from tickets t join hosts h using (host_id) where t.hotkey = $1 and t.ticket = $3"#,
        joining.hotkey,
        joining.mesh_key,
        joining.ticket
    )
    .fetch_optional(tx)
    .await?;
    let Some(used) = used else { return Ok(None) };
    let is_same = used.agent_key == joining.agent_key && used.keyed;
    if !is_same || used.agent_now.as_ref() != Some(&used.agent_key) {
        return Err(StoreError::Constraint("tickets_pkey".into()));
    }
    let state: HostState = error::read_name("a host's state", used.state)?;
    if !state.is_member() {
        return Err(StoreError::Stale("host"));
    }
    Ok(Some(Joined { host: used.host_id.into(), name: used.name, address: read_address(&used.address)? }))
}

async fn join(tx: &mut PgConnection, joining: &Joining<'_>) -> Result<Joined> {
    let name = joining.name.map_or_else(|| named_after(joining.host), str::to_owned);
    sqlx::query!(
        "insert into hosts (host_id, name, hotkey, gpu_hour, vcpu_hour, gib_hour, term, agent_key, mesh_address, mesh_key, region)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::inet, $10, $11)",
        joining.host.0,
        name,
        joining.hotkey,
        joining.rate.gpu_hour.0,
        joining.rate.vcpu_hour.0,
        joining.rate.gib_hour.0,
        joining.term.as_str(),
        joining.agent_key,
        joining.address.to_string(),
        joining.mesh_key,
        joining.region.map(Region::as_str)
    )
    .execute(tx)
    .await?;
    Ok(Joined { host: joining.host, name, address: joining.address })
}

/// The end of an id, which is random, unlike its beginning.
fn named_after(host: HostId) -> String {
    format!("host-{:08x}", host.0.as_u128() & 0xffff_ffff)
}

/// What the host had proven and said was true of other hardware. Its leases stay in its
/// spec: the new agent does not have their containers, says so, and they are lost.
async fn rejoin(tx: &mut PgConnection, joining: &Joining<'_>, host: HostId) -> Result<Joined> {
    let row = sqlx::query!(
        "select state, name, host(mesh_address) as address from hosts where host_id = $1 and hotkey = $2 for update",
        host.0,
        joining.hotkey
    )
    .fetch_optional(&mut *tx)
    .await?
    .ok_or(StoreError::NotFound("host"))?;
    let from: HostState = error::read_name("a host's state", row.state)?;
    let to = host::next(from, HostEvent::Rejoin).ok_or(StoreError::Stale("host"))?;
    let address = row.address.as_deref().map_or(Ok(joining.address), read_address)?;
    let name = joining.name.map_or(row.name, str::to_owned);
    sqlx::query!(
        "update hosts set state = $2, agent_key = $3, mesh_key = $4, mesh_key_next = null, mesh_address = $5::text::inet,
            enrolled_at_ms = now_ms(), inventory = null, inventory_at_ms = null, proven = null, session = null, sequence = 0,
            reason_code = null, reason_message = null, reason_at_ms = null, paused = false,
            suite_cause = null, suite_at_ms = 0, retest_up_ms = null, below_percent = case when gpu_hour = $6 then below_percent end,
            price_floor = case when gpu_hour = $6 then price_floor end, gpu_hour = $6, vcpu_hour = $7, gib_hour = $8, term = $9, name = $10, region = $11, generation = generation + 1
         where host_id = $1",
        host.0,
        to.as_str(),
        joining.agent_key,
        joining.mesh_key,
        address.to_string(),
        joining.rate.gpu_hour.0,
        joining.rate.vcpu_hour.0,
        joining.rate.gib_hour.0,
        joining.term.as_str(),
        name,
        joining.region.map(Region::as_str)
    )
    .execute(&mut *tx)
    .await?;
    look::host_changed(tx, host).await?;
    Ok(Joined { host, name, address })
}

/// Gives a mesh key to a host for good.
pub(crate) async fn mesh_key_claim(tx: &mut PgConnection, host: HostId, key: &str) -> Result<()> {
    sqlx::query!(
        "insert into mesh_keys (mesh_key, host_id) values ($1, $2) on conflict (mesh_key) do nothing",
        key,
        host.0
    )
    .execute(&mut *tx)
    .await?;
    let owner =
        sqlx::query_scalar!("select host_id from mesh_keys where mesh_key = $1", key).fetch_one(tx).await?;
    if owner == host.0 { Ok(()) } else { Err(StoreError::Constraint("mesh_keys_pkey".into())) }
}

pub(crate) fn read_address(text: &str) -> Result<Ipv6Addr> {
    text.parse().map_err(|_| StoreError::Corrupt(format!("the mesh address {text:?}")))
}
