//! Bytes by their hash.

use nave_crash_point::crash_point;
use nave_domain::HostId;

use crate::{Result, Store, StoreError};

/// How many blobs a host may store for each lease and each challenge: one that counts, and
/// one that was packed before an agent started anew.
const CLAIMS_MAX: i64 = 2;
/// How many challenges of a day count: a host that claims something else after each has many.
/// One that has GPUs leased all day is tested about as often.
const CHALLENGES_MAX: i64 = 96;
/// How long a blob is kept that nothing refers to, and over how long claims are counted.
const UNUSED_MS: i64 = 24 * 3_600_000;

/// What came of a wish to store a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobClaim {
    /// It may be stored.
    Granted,
    /// The host has neither an open lease nor an open challenge.
    NothingOpen,
    /// The host has stored enough for what it has open.
    Full,
}

impl Store {
    /// Asks whether a host may store a blob now. It may store two for each lease and each
    /// challenge that was open within the last day.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such host.
    pub async fn blob_claim(&self, host: HostId, sha256: [u8; 32], size: u64) -> Result<BlobClaim> {
        let mut tx = self.begin().await?;
        sqlx::query_scalar!("select 1 from hosts where host_id = $1 for update", host.0)
            .fetch_optional(&mut *tx)
            .await?
            .ok_or(StoreError::NotFound("host"))?;
        let row = sqlx::query!(
            r#"select
                exists (select from leases where host_id = $1 and state <> 'closed')
                    or exists (select from challenges where host_id = $1 and verdict is null) as "open!",
                (select count(*) from leases where host_id = $1 and coalesce(closed_at_ms, now_ms()) > now_ms() - $3)
                    + (select least(count(*), $4) from challenges
                       where host_id = $1 and coalesce(decided_at_ms, now_ms()) > now_ms() - $3) as "reasons!",
                (select count(*) from blob_claims
                 where host_id = $1 and sha256 <> $2 and claimed_at_ms > now_ms() - $3) as "claimed!""#,
            host.0,
            sha256.as_slice(),
            UNUSED_MS,
            CHALLENGES_MAX
        )
        .fetch_one(&mut *tx)
        .await?;
        if !row.open {
            return Ok(BlobClaim::NothingOpen);
        }
        if row.claimed >= row.reasons * CLAIMS_MAX {
            return Ok(BlobClaim::Full);
        }
        sqlx::query!(
            "insert into blob_claims (host_id, sha256, size) values ($1, $2, $3) 
             on conflict (host_id, sha256) do update set claimed_at_ms = excluded.claimed_at_ms",
            host.0,
            sha256.as_slice(),
            i64::try_from(size).unwrap_or(i64::MAX)
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(BlobClaim::Granted)
    }

    /// Stores bytes under their SHA-256, which the caller has checked; again is a no-op.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn blob_put(&self, sha256: [u8; 32], bytes: &[u8]) -> Result<()> {
        sqlx::query!(
            "insert into blobs (sha256, bytes) values ($1, $2) on conflict do nothing",
            sha256.as_slice(),
            bytes
        )
        .execute(&self.pool)
        .await?;
        crash_point!("store.blob_put.after_commit");
        Ok(())
    }

    /// The bytes with this hash.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn blob_get(&self, sha256: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(sqlx::query_scalar!("select bytes from blobs where sha256 = $1", sha256)
            .fetch_optional(&self.pool)
            .await?)
    }

    /// The size of the bytes with this hash, if they are stored.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn blob_size(&self, sha256: &[u8]) -> Result<Option<u64>> {
        let size =
            sqlx::query_scalar!(r#"select length(bytes) as "size!" from blobs where sha256 = $1"#, sha256)
                .fetch_optional(&self.pool)
                .await?;
        Ok(size.map(|size| u64::from(size.unsigned_abs())))
    }

    /// Forgets blobs that are a day old, no job's result and no evidence that is kept; returns
    /// how many went.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn blobs_forget(&self) -> Result<u64> {
        sqlx::query!("delete from blob_claims where claimed_at_ms < now_ms() - $1", UNUSED_MS)
            .execute(&self.pool)
            .await?;
        // One that is stored again is claimed again, so it is there until its job refers to it.
        let done = sqlx::query!(
            "delete from blobs b where stored_at_ms < now_ms() - $1
                and not exists (select from jobs j where j.result_sha256 = b.sha256)
                and not exists (select from blob_claims c where c.sha256 = b.sha256)
                and not exists (select from challenge_steps s
                                where s.answer #>> '{opening,blob,sha256}' = encode(b.sha256, 'hex'))",
            UNUSED_MS
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }
}
