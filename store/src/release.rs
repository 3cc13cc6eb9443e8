//! Releases: agents that hosts may upgrade to.

use nave_domain::HostId;
use serde_json::Value;

use crate::{
    Result, Store, StoreError, host as hosts,
    notify::{Changes, announce},
};

/// What an agent that names no platform runs on.
const TARGET: &str = "x86_64-linux";

/// A release to publish; its signature was checked.
#[derive(Debug, Clone, Copy)]
pub struct NewRelease<'a> {
    /// Three numbers, such as `0.2.0`.
    pub version: &'a str,
    /// Such as `x86_64-linux`.
    pub target: &'a str,
    /// What was signed.
    pub manifest: &'a Value,
    /// By the release key, hexadecimal.
    pub signature: &'a str,
    /// The program.
    pub bytes: &'a [u8],
}

/// A release without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseRow {
    /// What was signed.
    pub manifest: Value,
    /// By the release key, hexadecimal.
    pub signature: String,
}

impl Store {
    /// Offers a release to hosts. Publishing it again changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Constraint`] `releases_version` when this version is another program already.
    pub async fn release_publish(&self, release: &NewRelease<'_>) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query!(
            "insert into releases (version, target, manifest, signature, bytes) values ($1, $2, $3, $4, $5)
             on conflict do nothing",
            release.version,
            release.target,
            release.manifest,
            release.signature,
            release.bytes
        )
        .execute(&mut *tx)
        .await?;
        let is_ours = sqlx::query_scalar!(
            r#"select manifest = $3 as "is!" from releases where version = $1 and target = $2"#,
            release.version,
            release.target,
            release.manifest
        )
        .fetch_one(&mut *tx)
        .await?;
        if !is_ours {
            return Err(StoreError::Constraint("releases_version".into()));
        }
        hosts::bump_all(&mut tx).await?;
        announce(&mut tx, Changes::Mesh).await?;
        tx.commit().await?;
        Ok(())
    }

    /// The newest release for a host's platform, if its agent is older and this is a moment to
    /// take it: the host is not being tested, and is ready or runs nothing.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn release_for(&self, host: HostId) -> Result<Option<ReleaseRow>> {
        let agent = sqlx::query_scalar!(
            r#"select inventory ->> 'agent' as "agent!" from hosts h
               where host_id = $1 and inventory is not null
                 and not exists (select from challenges c where c.host_id = h.host_id and c.verdict is null)
                 and (state = 'ready'
                      or not exists (select from leases l where l.host_id = h.host_id and l.state <> 'closed'))"#,
            host.0
        )
        .fetch_optional(&self.pool)
        .await?;
        let Some(agent) = agent else { return Ok(None) };
        let (version, target) = agent.split_once(' ').unwrap_or((&agent, TARGET));
        let Some(present) = number(version) else { return Ok(None) };
        let newest = sqlx::query!(
            "select version, manifest, signature from releases where target = $1
             order by string_to_array(version, '.')::bigint[] desc limit 1",
            target
        )
        .fetch_optional(&self.pool)
        .await?;
        let newer = newest.filter(|newest| number(&newest.version) > Some(present));
        Ok(newer.map(|row| ReleaseRow { manifest: row.manifest, signature: row.signature }))
    }

    /// The program of a release.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none.
    pub async fn release_bytes(&self, version: &str, target: &str) -> Result<Vec<u8>> {
        sqlx::query_scalar!("select bytes from releases where version = $1 and target = $2", version, target)
            .fetch_optional(&self.pool)
            .await?
            .ok_or(StoreError::NotFound("release"))
    }
}

/// A version as numbers, so that 0.10.0 is newer than 0.9.0.
fn number(version: &str) -> Option<[u32; 3]> {
    let parts: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
    parts?.try_into().ok()
}
