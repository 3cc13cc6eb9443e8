//! Epochs: deliveries, weights and how far they got.

use std::collections::BTreeMap;

use nave_crash_point::crash_point;
use nave_domain::{
    Bytes, MicroUsd, MilliCpu, MilliGpu, Millis, Timestamp,
    epoch::EpochState,
    rate::{Rate, Size, charge},
};

use crate::{Result, Store, StoreError, error};

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
}

/// What one miner delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeliveredRow {
    /// Use of all leases.
    pub used: Millis,
    /// What it was worth.
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
            "select epoch, state, chain, opened_at_ms, closed_at_ms, weights from epochs
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
            "select epoch, state, chain, opened_at_ms, closed_at_ms, weights from epochs order by epoch desc limit $1",
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
            "select epoch, state, chain, opened_at_ms, closed_at_ms, weights from epochs where epoch = $1",
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
            r#"select hotkey, sum(used_ms)::bigint as "used!", sum(value)::bigint as "value!"
               from epoch_leases where epoch = $1 group by hotkey"#,
            epoch
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows
            .into_iter()
            .map(|row| (row.hotkey, DeliveredRow { used: Millis(row.used), value: MicroUsd(row.value) }));
        Ok(rows.collect())
    }

    /// Closes the open epoch: the use of every lease that closed since the last one is counted
    /// in it, once, and the next epoch begins. A lease that is open may still be lost and
    /// refunded, so it does not count yet.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when this epoch is not open.
    pub async fn epoch_close(&self, epoch: i64, chain: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        let closed = sqlx::query!(
            "update epochs set state = 'closed', closed_at_ms = now_ms() where epoch = $1 and state = 'open'",
            epoch
        )
        .execute(&mut *tx)
        .await?;
        if closed.rows_affected() != 1 {
            return Err(StoreError::Stale("epoch"));
        }
        let leases = sqlx::query!(
            "select l.lease_id, h.hotkey, l.used_ms, l.settled_ms, l.milli_gpu, l.milli_cpu, l.memory, l.gpu_hour,
                    l.vcpu_hour, l.gib_hour
             from leases l join hosts h using (host_id) where l.state = 'closed' and l.used_ms > l.settled_ms
                -- The market pays clouds itself, and no weight for what they deliver.
                and not exists (select from machines m where m.host_id = l.host_id)
             order by l.lease_id for update of l"
        )
        .fetch_all(&mut *tx)
        .await?;
        for row in leases {
            let size = Size {
                milli_gpu: MilliGpu(row.milli_gpu),
                milli_cpu: MilliCpu(row.milli_cpu),
                memory: Bytes(row.memory),
            };
            let rate = Rate {
                gpu_hour: MicroUsd(row.gpu_hour),
                vcpu_hour: MicroUsd(row.vcpu_hour),
                gib_hour: MicroUsd(row.gib_hour),
            };
            let until = |ms: i64| charge(size, Millis(ms), rate);
            let value = until(row.used_ms)?.minus(until(row.settled_ms)?)?;
            sqlx::query!(
                "insert into epoch_leases (epoch, lease_id, hotkey, used_ms, value) values ($1, $2, $3, $4, $5)",
                epoch,
                row.lease_id,
                row.hotkey,
                row.used_ms - row.settled_ms,
                value.0
            )
            .execute(&mut *tx)
            .await?;
            sqlx::query!("update leases set settled_ms = $2 where lease_id = $1", row.lease_id, row.used_ms)
                .execute(&mut *tx)
                .await?;
        }
        sqlx::query!("insert into epochs (epoch, chain) values ($1, $2)", epoch + 1, chain)
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
            "update epochs set state = $3, weights = coalesce($4, weights) where epoch = $1 and state = $2",
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
    weights: Option<serde_json::Value>,
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
        })
    }
}
