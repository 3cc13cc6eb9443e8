//! Bytes by their hash.

use crate::{Result, Store};
use nave_crash_point::crash_point;

impl Store {
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
}
