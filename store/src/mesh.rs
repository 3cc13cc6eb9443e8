//! The mesh: who is in it, with which key, and where its hub is.

use std::net::{IpAddr, Ipv6Addr};

use nave_crash_point::crash_point;
use nave_domain::{HostId, host::HostState};
use serde::{Deserialize, Serialize};

use crate::{
    Result, Store, StoreError,
    enrol::{mesh_key_claim, read_address},
    error::{self, readable},
    host as hosts,
    notify::{Changes, announce},
};

/// A host that the hub lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshPeer {
    /// The host.
    pub host: HostId,
    /// Its address.
    pub address: Ipv6Addr,
    /// Its WireGuard public key, base64.
    pub key: String,
    /// The key it is about to use instead.
    pub next: Option<String>,
}

/// Where hosts find the hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubRow {
    /// Its WireGuard public key, base64.
    pub key: String,
    /// `host:port` of its UDP socket, best first.
    pub endpoints: Vec<String>,
    /// Its address in the mesh.
    pub address: Ipv6Addr,
    /// Port of the host protocol at that address.
    pub port: u16,
}

/// Keys that one host may announce in a day; each is kept for ever.
const KEYS_A_DAY_MAX: i64 = 50;

const HUB: &str = "mesh_hub";

impl Store {
    /// Everyone the hub lets in, by address.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn mesh_peers(&self) -> Result<Vec<MeshPeer>> {
        let rows = sqlx::query!(
            r#"select host_id, host(mesh_address) as "address!", mesh_key as "key!", mesh_key_next from hosts
               where state not in ('gone', 'banned') and mesh_address is not null and mesh_key is not null
               order by mesh_address"#
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| {
            Ok(MeshPeer {
                host: row.host_id.into(),
                address: read_address(&row.address)?,
                key: row.key,
                next: row.mesh_key_next,
            })
        });
        Ok(rows.filter_map(readable).collect())
    }

    /// The host at an address of the mesh, and where it stands.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none.
    pub async fn host_at(&self, address: IpAddr) -> Result<(HostId, HostState)> {
        let row = sqlx::query!(
            "select host_id, state from hosts where mesh_address = $1::text::inet",
            address.to_string()
        )
        .fetch_optional(&self.pool)
        .await?
        .ok_or(StoreError::NotFound("host"))?;
        Ok((row.host_id.into(), error::read_name("a host's state", row.state)?))
    }

    /// The mesh key that the hub lets a host in with.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such host.
    pub async fn mesh_key(&self, host: HostId) -> Result<Option<String>> {
        sqlx::query_scalar!("select mesh_key from hosts where host_id = $1", host.0)
            .fetch_optional(&self.pool)
            .await?
            .ok_or(StoreError::NotFound("host"))
    }

    /// A host is about to use another key. The hub takes it over when it sees this. One that
    /// announces keys all the time is not heard.
    ///
    /// # Errors
    /// [`StoreError::Constraint`] `mesh_keys_pkey` when the key is or was another host's.
    pub async fn mesh_key_announce(&self, host: HostId, key: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        let done = sqlx::query!(
            "update hosts set mesh_key_next = $2
             where host_id = $1 and mesh_key <> $2 and mesh_key_next is distinct from $2 and state not in ('gone', 'banned')
               and (select count(*) from mesh_keys where host_id = $1 and since_ms > now_ms() - 86400000) < $3",
            host.0,
            key,
            KEYS_A_DAY_MAX
        )
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(());
        }
        mesh_key_claim(&mut tx, host, key).await?;
        announce(&mut tx, Changes::Mesh).await?;
        tx.commit().await?;
        Ok(())
    }

    /// The hub lets a host in with its next key from now on; its spec says so.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn mesh_key_adopt(&self, host: HostId, key: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        let done = sqlx::query!(
            "update hosts set mesh_key = mesh_key_next, mesh_key_next = null, generation = generation + 1
             where host_id = $1 and mesh_key_next = $2",
            host.0,
            key
        )
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 1 {
            announce(&mut tx, Changes::Host(host)).await?;
        }
        crash_point!("store.mesh_key_adopt.before_commit");
        tx.commit().await?;
        Ok(())
    }

    /// Where the hub is, once it has run.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn hub(&self) -> Result<Option<HubRow>> {
        let value = sqlx::query_scalar!("select value from settings where name = $1", HUB)
            .fetch_optional(&self.pool)
            .await?;
        value.map(|value| error::read_json("the hub", value)).transpose()
    }

    /// Says where the hub is; specs carry it to hosts that know it elsewhere.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn hub_set(&self, hub: &HubRow) -> Result<()> {
        let mut tx = self.begin().await?;
        let changed = sqlx::query!(
            "insert into settings (name, value) values ($1, $2)
             on conflict (name) do update set value = excluded.value where settings.value <> excluded.value",
            HUB,
            error::write_json(hub)?
        )
        .execute(&mut *tx)
        .await?;
        if changed.rows_affected() == 1 {
            hosts::bump_all(&mut tx).await?;
            announce(&mut tx, Changes::Mesh).await?;
        }
        tx.commit().await?;
        Ok(())
    }
}
