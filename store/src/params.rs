//! The market's parameters: every version, and which one holds.
//!
//! What they mean is not known here; whoever announces a document has checked it.

use nave_domain::Timestamp;
use serde_json::Value;
use sqlx::PgConnection;

use crate::{Result, Store, StoreError};

/// A version of the parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamsRow {
    /// Counted from 1.
    pub version: i64,
    /// The epoch from which on it holds, until a later one does.
    pub effective_epoch: i64,
    /// When it was announced.
    pub announced_at: Timestamp,
    /// The whole document.
    pub body: Value,
}

impl Store {
    /// Gives a market its first parameters, which hold from its begin; nothing where it has some.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn params_first(&self, body: &Value) -> Result<()> {
        sqlx::query!(
            "insert into parameters (body)
             select $1::jsonb || jsonb_build_object('version', 1, 'effective_epoch', 0, 'announced_ms', now_ms())
             where not exists (select from parameters) on conflict do nothing",
            body
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Announces parameters that hold from an epoch on; version and time are set here.
    ///
    /// # Errors
    /// [`StoreError::Constraint`] `parameters_notice` where that epoch is sooner than the parameters which hold now say, or
    /// than one that was announced before.
    pub async fn params_announce(&self, body: &Value, effective_epoch: i64) -> Result<ParamsRow> {
        let mut tx = self.begin().await?;
        // Announcements one after the other, and no epoch closes meanwhile.
        sqlx::query!("lock table parameters in share row exclusive mode").execute(&mut *tx).await?;
        let first = sqlx::query!(
            r#"select greatest(
                    e.epoch + coalesce((parameters_of(e.epoch) ->> 'notice_epochs')::bigint, 0),
                    (select max(effective_epoch) from parameters)) as "epoch!",
                (select coalesce(max(version), 0) + 1 from parameters) as "version!"
               from epochs e where e.state = 'open' for share of e"#
        )
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(StoreError::NotFound("epoch"))?;
        if effective_epoch < first.epoch {
            return Err(StoreError::Constraint("parameters_notice".into()));
        }
        sqlx::query!(
            "insert into parameters (body) select $1::jsonb || jsonb_build_object(
                'version', $2::bigint, 'effective_epoch', $3::bigint, 'announced_ms', now_ms())",
            body,
            first.version,
            effective_epoch
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        let announced = self.params_list().await?.into_iter().find(|row| row.version == first.version);
        announced.ok_or(StoreError::NotFound("parameters"))
    }

    /// Every version, the newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn params_list(&self) -> Result<Vec<ParamsRow>> {
        let rows = sqlx::query!(
            r#"select version as "version!", effective_epoch as "effective_epoch!", announced_ms as "announced_ms!", body
               from parameters order by version desc"#
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| ParamsRow {
            version: row.version,
            effective_epoch: row.effective_epoch,
            announced_at: Timestamp(row.announced_ms),
            body: row.body,
        });
        Ok(rows.collect())
    }

    /// The document that holds in an epoch, or in the newest one.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where the market has none yet.
    pub async fn params_of(&self, epoch: Option<i64>) -> Result<Value> {
        of(&mut *self.pool.acquire().await?, epoch).await
    }
}

/// The document that holds in an epoch, or in the newest one.
pub(crate) async fn of(tx: &mut PgConnection, epoch: Option<i64>) -> Result<Value> {
    let body = sqlx::query_scalar!(
        r#"select parameters_of(coalesce($1::bigint, (select max(epoch) from epochs), 0)) as "body""#,
        epoch
    )
    .fetch_one(tx)
    .await?;
    body.ok_or(StoreError::NotFound("parameters"))
}
