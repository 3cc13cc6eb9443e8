//! Epochs: deliveries, weights and how far they got.

use std::collections::BTreeMap;

use nave_crash_point::crash_point;
use nave_domain::{MicroUsd, Millis, Timestamp, epoch::EpochState};
use serde_json::Value;

use crate::{Result, Store, StoreError, error, event, freeze};

/// An epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochRow {
    /// Counted from 1.
    pub epoch: i64,
    /// Where it stands.
    pub state: EpochState,
    /// Where the weights go.
    pub chain: String,
    /// When it began.
    pub opened_at: Timestamp,
    /// When its deliveries were fixed.
    pub closed_at: Option<Timestamp>,
    /// Weight by hotkey, once settled.
    pub weights: Option<BTreeMap<String, u16>>,
    /// What came of it, once settled.
    pub settled: Option<SettledRow>,
}

/// What came of an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettledRow {
    /// SHA-256 of the last line of its bundle, hexadecimal.
    pub head: String,
    /// Lines of its bundle.
    pub lines: i64,
    /// Bytes of its bundle, packed.
    pub bundle_bytes: i64,
    /// Sums over all miners, as in the bundle.
    pub result: Value,
}

/// What one miner delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeliveredRow {
    /// Use of all leases.
    pub used: Millis,
    /// What customers have paid for it.
    pub value: MicroUsd,
}

impl Store {
    /// The open epoch; opened if there is none.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn epoch_open(&self, chain: &str) -> Result<EpochRow> {
        sqlx::query!(
            "insert into epochs (epoch, chain) select coalesce(max(epoch), 0) + 1, $1 from epochs
             where not exists (select from epochs where state = 'open')
             on conflict do nothing",
            chain
        )
        .execute(&self.pool)
        .await?;
        let open = self.epochs_in(EpochState::Open).await?;
        open.into_iter().next().ok_or(StoreError::Stale("epoch"))
    }

    /// Epochs in a state, oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn epochs_in(&self, state: EpochState) -> Result<Vec<EpochRow>> {
        let rows = sqlx::query_as!(
            RawEpoch,
            "select epoch, state, chain, opened_at_ms, closed_at_ms, weights, head, lines, bundle_bytes, result from epochs
             where state = $1 order by epoch",
            state.as_str()
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(RawEpoch::read).collect()
    }

    /// The newest epochs, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn epoch_list(&self, limit: i64) -> Result<Vec<EpochRow>> {
        let rows = sqlx::query_as!(
            RawEpoch,
            "select epoch, state, chain, opened_at_ms, closed_at_ms, weights, head, lines, bundle_bytes, result from epochs order by epoch desc limit $1",
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(RawEpoch::read).collect()
    }

    /// One epoch.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when it does not exist.
    pub async fn epoch_get(&self, epoch: i64) -> Result<EpochRow> {
        let row = sqlx::query_as!(
            RawEpoch,
            "select epoch, state, chain, opened_at_ms, closed_at_ms, weights, head, lines, bundle_bytes, result from epochs where epoch = $1",
            epoch
        )
        .fetch_optional(&self.pool)
        .await?;
        row.ok_or(StoreError::NotFound("epoch"))?.read()
    }

    /// What each miner delivered in an epoch.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn epoch_delivered(&self, epoch: i64) -> Result<BTreeMap<String, DeliveredRow>> {
        let rows = sqlx::query!(
            "select hotkey, used_ms as used, charged as value from epoch_miners where epoch = $1 and used_ms > 0",
            epoch
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows
            .into_iter()
            .map(|row| (row.hotkey, DeliveredRow { used: Millis(row.used), value: MicroUsd(row.value) }));
        Ok(rows.collect())
    }

    /// Closes the open epoch, and the next one begins. What it is settled from stands still from then on: every lease that
    /// has closed, of which nothing is undecided, and that stands in no epoch yet; miners, classes and idle devices as they
    /// are; events and verdicts since the last close.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when this epoch is not open.
    pub async fn epoch_close(&self, epoch: i64, chain: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query!("set local statement_timeout = '10min'").execute(&mut *tx).await?;
        let closed = sqlx::query!(
            "update epochs set state = 'closed', closed_at_ms = greatest(now_ms(), opened_at_ms) where epoch = $1 and state = 'open'",
            epoch
        )
        .execute(&mut *tx)
        .await?;
        if closed.rows_affected() != 1 {
            return Err(StoreError::Stale("epoch"));
        }
        freeze::leases(&mut tx, epoch).await?;
        freeze::events(&mut tx, epoch).await?;
        freeze::verdicts(&mut tx, epoch).await?;
        freeze::classes(&mut tx, epoch).await?;
        let excused = event::excused(&mut tx).await?;
        freeze::miners(&mut tx, epoch, &excused).await?;
        // Last, since hosts are locked by it.
        freeze::idle(&mut tx, epoch, &excused).await?;
        // It begins where this one ends, wherever the clock has gone meanwhile.
        sqlx::query!(
            "insert into epochs (epoch, chain, opened_at_ms) select $1, $2, closed_at_ms from epochs where epoch = $3",
            epoch + 1,
            chain,
            epoch
        )
            .execute(&mut *tx)
            .await?;
        crash_point!("store.epoch_close.before_commit");
        tx.commit().await?;
        crash_point!("store.epoch_close.after_commit");
        Ok(())
    }

    /// Moves an epoch one state on; `weights` go with the step to settled.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when it is not in the state before.
    pub async fn epoch_advance(
        &self,
        epoch: i64,
        from: EpochState,
        weights: Option<&BTreeMap<String, u16>>,
    ) -> Result<()> {
        let to = from.next().ok_or(StoreError::Stale("epoch"))?;
        let moved = sqlx::query!(
            "update epochs set state = $3, weights = coalesce($4, weights),
                confirmed_at_ms = case when $3 = 'confirmed' then now_ms() end
             where epoch = $1 and state = $2",
            epoch,
            from.as_str(),
            to.as_str(),
            weights.map(error::write_json).transpose()?
        )
        .execute(&self.pool)
        .await?;
        if moved.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Stale("epoch")) }
    }
}

struct RawEpoch {
    epoch: i64,
    state: String,
    chain: String,
    opened_at_ms: i64,
    closed_at_ms: Option<i64>,
    weights: Option<Value>,
    head: Option<String>,
    lines: Option<i64>,
    bundle_bytes: Option<i64>,
    result: Option<Value>,
}

impl RawEpoch {
    fn read(self) -> Result<EpochRow> {
        Ok(EpochRow {
            epoch: self.epoch,
            state: error::read_name("an epoch's state", self.state)?,
            chain: self.chain,
            opened_at: Timestamp(self.opened_at_ms),
            closed_at: self.closed_at_ms.map(Timestamp),
            weights: self.weights.map(|value| error::read_json("weights", value)).transpose()?,
            settled: self.head.zip(self.lines).zip(self.bundle_bytes).zip(self.result).map(
                |(((head, lines), bundle_bytes), result)| SettledRow { head, lines, bundle_bytes, result },
            ),
        })
    }
}
