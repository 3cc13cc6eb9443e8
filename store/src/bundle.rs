//! The bundles of epochs: evidence that is packed, kept for a while, and free to be read once the weights are.

use nave_domain::Millis;

use crate::{Result, Store, StoreError, error};

/// For how long bundles are kept where no operator says otherwise.
const KEPT_DAYS: i64 = 90;

/// A bundle that is free to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleRow {
    /// Of which epoch.
    pub epoch: i64,
    /// SHA-256 of its last line, hexadecimal.
    pub head: String,
    /// How many lines it has.
    pub lines: i64,
    /// Bytes of all pieces: lines, packed with gzip.
    pub bytes: i64,
    /// How many pieces it has.
    pub pieces: i32,
}

impl Store {
    /// What there is of an epoch's bundle.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] before the chain shows the epoch's weights (`revealed bundle`), and when the bundle is too old
    /// to be kept (`kept bundle`).
    pub async fn bundle_open(&self, epoch: i64) -> Result<BundleRow> {
        let row = sqlx::query!(
            r#"select head as "head!", lines as "lines!", bundle_bytes as "bytes!",
                (select count(*) from bundle_pieces b where b.epoch = e.epoch)::int as "pieces!"
               from epochs e where epoch = $1 and state = 'confirmed' and head is not null"#,
            epoch
        )
        .fetch_optional(&self.pool)
        .await?
        .ok_or(StoreError::NotFound("revealed bundle"))?;
        if row.pieces == 0 {
            return Err(StoreError::NotFound("kept bundle"));
        }
        Ok(BundleRow { epoch, head: row.head, lines: row.lines, bytes: row.bytes, pieces: row.pieces })
    }

    /// A piece of a bundle, counted from 0; none after the last. Whoever shows it to others has asked
    /// [`Store::bundle_open`] before.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn bundle_piece(&self, epoch: i64, piece: i32) -> Result<Option<Vec<u8>>> {
        let bytes = sqlx::query_scalar!(
            "select bytes from bundle_pieces where epoch = $1 and piece = $2",
            epoch,
            piece
        );
        Ok(bytes.fetch_optional(&self.pool).await?)
    }

    /// For how many days bundles are kept after they were free to be read.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn evidence_days(&self) -> Result<i64> {
        let value = sqlx::query_scalar!("select value from settings where name = 'evidence_days'")
            .fetch_optional(&self.pool)
            .await?;
        Ok(value.map(|value| error::read_json("evidence_days", value)).transpose()?.unwrap_or(KEPT_DAYS))
    }

    /// Sets that.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn evidence_days_set(&self, days: u32) -> Result<()> {
        sqlx::query!(
            "insert into settings (name, value) values ('evidence_days', to_jsonb($1::bigint))
             on conflict (name) do update set value = excluded.value",
            i64::from(days)
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Removes bundles that are too old; their heads stay. Returns how many.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn bundles_sweep(&self) -> Result<usize> {
        let kept = Millis(self.evidence_days().await?.saturating_mul(86_400_000));
        let swept = sqlx::query_scalar!(
            r#"with old as (
                delete from bundle_pieces where epoch in (
                    select epoch from epochs where state = 'confirmed' and confirmed_at_ms < now_ms() - $1)
                returning epoch)
               select count(distinct epoch) as "count!" from old"#,
            kept.0
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(usize::try_from(swept).unwrap_or(0))
    }
}
