//! Transfers between hosts: who fetches from whom while a challenge is open, and what came of it.
//!
//! Whatever lets two hosts reach one another is read from open challenges, so nothing of it is left
//! when they end. A transfer changes the specs of both hosts in its own transaction.

use std::net::Ipv6Addr;

use nave_domain::{ChallengeId, HostId, Millis, host::Inventory};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Drawing, Result, Store, StoreError, drawing,
    enrol::read_address,
    error::{self, readable},
    host as hosts,
    notify::{Changes, announce},
    suite::HEARD_MS_MAX,
};

/// For how long a transfer says something about its hosts.
const RECENT_MS: i64 = 7 * 86_400_000;

/// A host that takes jobs and was heard just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkedHost {
    /// Its id.
    pub host: HostId,
    /// Who owns it.
    pub hotkey: String,
    /// Its address in the mesh.
    pub address: Ipv6Addr,
    /// What it claims.
    pub claims: Inventory,
    /// Whether it is time for it to fetch from another.
    pub is_due: bool,
    /// Whether it has nothing else to do: no jobs, no tests, nobody to serve.
    pub is_free: bool,
}

/// A transfer that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Where it came from.
    pub source: HostId,
    /// Who owns that.
    pub source_hotkey: String,
    /// Who fetched it.
    pub host: HostId,
    /// Who owns that.
    pub hotkey: String,
    /// What came of it.
    pub measured: Measured,
}

/// What came of a transfer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    /// What came in a second, 0 where nothing came; none where nobody can say.
    pub bytes_per_s: Option<u64>,
    /// Whether the host that fetched could connect to the source; none where nobody can say.
    pub is_reached: Option<bool>,
}

/// What a host is to send to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeRow {
    /// What the other is asked.
    pub challenge: ChallengeId,
    /// The same as it was drawn.
    pub body: Value,
    /// What the bytes are made of, hexadecimal.
    pub key: String,
    /// The other's address in the mesh.
    pub peer: Ipv6Addr,
}

/// Two hosts that reach one another while a transfer is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TransferRoute {
    /// The address of the one that sends.
    pub source: Ipv6Addr,
    /// The address of the one that fetches.
    pub host: Ipv6Addr,
}

impl Store {
    /// Hosts that may fetch from one another, by id.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn hosts_linked(&self) -> Result<Vec<LinkedHost>> {
        let rows = sqlx::query!(
            r#"select h.host_id, h.hotkey, host(h.mesh_address) as "address!", h.inventory as "inventory!",
                    coalesce(h.transfer_up_ms <= control_ms(), true) as "is_due!",
                    not exists (select from leases l where l.host_id = h.host_id and l.state <> 'closed')
                    and not exists (select from challenges c where c.host_id = h.host_id and c.verdict is null)
                    and not exists (select from transfers t join challenges c using (challenge_id)
                        where t.source_id = h.host_id and c.verdict is null) as "is_free!"
               from hosts h
               where h.state = 'ready' and h.inventory is not null and h.mesh_address is not null
                 and h.heard_up_ms > control_ms() - $1::bigint
               order by h.host_id"#,
            HEARD_MS_MAX
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| {
            Ok(LinkedHost {
                host: row.host_id.into(),
                hotkey: row.hotkey,
                address: read_address(&row.address)?,
                claims: error::read_json("an inventory", row.inventory)?,
                is_due: row.is_due,
                is_free: row.is_free,
            })
        });
        Ok(rows.filter_map(readable).collect())
    }

    /// Recent transfers from or to these hosts, the newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn transfers_of(&self, hosts: &[HostId]) -> Result<Vec<Transfer>> {
        let hosts: Vec<Uuid> = hosts.iter().map(|host| host.0).collect();
        let rows = sqlx::query!(
            "select t.source_id, c.host_id, t.bytes_per_s, t.is_reached, h.hotkey, s.hotkey as source_hotkey
             from transfers t join challenges c using (challenge_id)
             join hosts h on h.host_id = c.host_id join hosts s on s.host_id = t.source_id
             where (c.host_id = any($1) or t.source_id = any($1)) and c.drawn_at_ms > now_ms() - $2::bigint
             order by t.challenge_id desc",
            &hosts,
            RECENT_MS
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| Transfer {
            source: row.source_id.into(),
            source_hotkey: row.source_hotkey,
            host: row.host_id.into(),
            hotkey: row.hotkey,
            measured: Measured {
                bytes_per_s: row.bytes_per_s.map(i64::unsigned_abs),
                is_reached: row.is_reached,
            },
        });
        Ok(rows.collect())
    }

    /// Has a host fetch from another, and sets when it does so next.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when one of them does not take jobs, or has a part in another transfer.
    pub async fn transfer_draw(
        &self,
        drawing: &Drawing<'_>,
        source: HostId,
        key: &str,
        next_up: Millis,
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        let both = [drawing.host.0, source.0];
        let ready = sqlx::query_scalar!(
            "select host_id from hosts where host_id = any($1) and state = 'ready' order by host_id for update",
            &both
        )
        .fetch_all(&mut *tx)
        .await?;
        let busy = sqlx::query_scalar!(
            r#"select exists (select from transfers t join challenges c using (challenge_id)
                    where c.verdict is null and (t.source_id = any($1) or c.host_id = any($1))) as "busy!""#,
            &both
        )
        .fetch_one(&mut *tx)
        .await?;
        if ready.len() != both.len() || busy {
            return Err(StoreError::Stale("host"));
        }
        drawing::insert(&mut tx, drawing).await?;
        sqlx::query!(
            "insert into transfers (challenge_id, source_id, key) values ($1, $2, $3)",
            drawing.challenge.0,
            source.0,
            key
        )
        .execute(&mut *tx)
        .await?;
        sqlx::query!("update hosts set transfer_up_ms = $2 where host_id = $1", drawing.host.0, next_up.0)
            .execute(&mut *tx)
            .await?;
        hosts::bump(&mut tx, drawing.host).await?;
        hosts::bump(&mut tx, source).await?;
        announce(&mut tx, Changes::Mesh).await?;
        tx.commit().await?;
        Ok(())
    }

    /// What the source of a transfer makes its bytes of, hexadecimal.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the challenge is no transfer.
    pub async fn transfer_key(&self, challenge: ChallengeId) -> Result<String> {
        sqlx::query_scalar!("select key from transfers where challenge_id = $1", challenge.0)
            .fetch_optional(&self.pool)
            .await?
            .ok_or(StoreError::NotFound("transfer"))
    }

    /// Writes down what came of a transfer.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn transfer_measured(&self, challenge: ChallengeId, measured: Measured) -> Result<()> {
        let bytes_per_s = measured.bytes_per_s.map(|rate| i64::try_from(rate).unwrap_or(i64::MAX));
        sqlx::query!(
            "update transfers set bytes_per_s = $2, is_reached = $3 where challenge_id = $1",
            challenge.0,
            bytes_per_s,
            measured.is_reached
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// What a host is to send to others now.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn transfers_served(&self, source: HostId) -> Result<Vec<ServeRow>> {
        let rows = sqlx::query!(
            r#"select t.challenge_id, t.key, c.challenge, host(h.mesh_address) as "peer!"
               from transfers t join challenges c using (challenge_id) join hosts h using (host_id)
               where t.source_id = $1 and c.verdict is null and h.mesh_address is not null
               order by t.challenge_id"#,
            source.0
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| {
            let peer = read_address(&row.peer)?;
            Ok(ServeRow { challenge: row.challenge_id.into(), body: row.challenge, key: row.key, peer })
        });
        Ok(rows.filter_map(readable).collect())
    }

    /// Hosts that reach one another because one fetches from the other. Those that have left
    /// are nowhere in it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn transfer_routes(&self) -> Result<Vec<TransferRoute>> {
        let rows = sqlx::query!(
            r#"select host(s.mesh_address) as "source!", host(h.mesh_address) as "host!"
               from transfers t join challenges c using (challenge_id)
               join hosts h on h.host_id = c.host_id and h.state not in ('gone', 'banned')
               join hosts s on s.host_id = t.source_id and s.state not in ('gone', 'banned')
               where c.verdict is null and h.mesh_address is not null and s.mesh_address is not null
               order by t.challenge_id"#
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| {
            Ok(TransferRoute { source: read_address(&row.source)?, host: read_address(&row.host)? })
        });
        Ok(rows.filter_map(readable).collect())
    }
}

/// Locks both hosts of a transfer, in the order of their ids, and returns the one that sends; none
/// where the challenge is no transfer.
pub(crate) async fn lock(tx: &mut PgConnection, challenge: ChallengeId) -> Result<Option<HostId>> {
    let rows = sqlx::query!(
        "select h.host_id, t.source_id from transfers t join challenges c using (challenge_id)
         join hosts h on h.host_id in (c.host_id, t.source_id)
         where t.challenge_id = $1 order by h.host_id for update of h",
        challenge.0
    )
    .fetch_all(tx)
    .await?;
    Ok(rows.first().map(|row| row.source_id.into()))
}

/// Tells the host that sent and the hub that a transfer is over.
pub(crate) async fn ended(tx: &mut PgConnection, source: HostId) -> Result<()> {
    hosts::bump(tx, source).await?;
    announce(tx, Changes::Mesh).await
}
