//! Customers and miners that count as one: leases between them earn nothing.

use nave_domain::{CustomerId, Timestamp};
use sqlx::PgConnection;

use crate::{Result, Store, StoreError};

/// A customer and a miner that count as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelatedRow {
    /// The customer.
    pub customer: CustomerId,
    /// The miner.
    pub hotkey: String,
    /// How that is known.
    pub why: String,
    /// Since when it is.
    pub since: Timestamp,
}

impl Store {
    /// Has a customer and a miner count as one, in leases that are settled from now on.
    ///
    /// # Errors
    /// When there is no such customer, or `why` is empty or long.
    pub async fn related_set(&self, customer: CustomerId, hotkey: &str, why: &str) -> Result<()> {
        set(&mut *self.pool.acquire().await?, customer, hotkey, why).await
    }

    /// Has them count as two again, in leases that are settled from now on.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where they do.
    pub async fn related_remove(&self, customer: CustomerId, hotkey: &str) -> Result<()> {
        let removed =
            sqlx::query!("delete from related where customer_id = $1 and hotkey = $2", customer.0, hotkey)
                .execute(&self.pool)
                .await?;
        if removed.rows_affected() == 1 { Ok(()) } else { Err(StoreError::NotFound("relation")) }
    }

    /// All of them, the newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn related_list(&self) -> Result<Vec<RelatedRow>> {
        let rows = sqlx::query!(
            "select customer_id, hotkey, why, since_ms from related order by since_ms desc, customer_id, hotkey"
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| RelatedRow {
            customer: row.customer_id.into(),
            hotkey: row.hotkey,
            why: row.why,
            since: Timestamp(row.since_ms),
        });
        Ok(rows.collect())
    }
}

pub(crate) async fn set(tx: &mut PgConnection, customer: CustomerId, hotkey: &str, why: &str) -> Result<()> {
    sqlx::query!(
        "insert into related (customer_id, hotkey, why) values ($1, $2, $3)
         on conflict on constraint related_pkey do update set why = excluded.why",
        customer.0,
        hotkey,
        why
    )
    .execute(tx)
    .await?;
    Ok(())
}
