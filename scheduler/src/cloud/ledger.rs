//! The rows of machines in Postgres.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Instant,
};

use nave_clouds::{
    Cloud, CloudError, Ledger, Row,
    ledger::{Attempt, Broken, Kept},
    machine::Demand,
    provider::MachineId,
};
use nave_domain::Timestamp;
use nave_store::{
    AttemptFault, MachineAttempt, MachineDemand, MachineEnding, MachineRow, MachineWrite, Store,
};
use serde_json::Value;

/// The database's clock, as it was read last and has gone on since.
#[derive(Debug)]
pub struct Clock {
    began: Instant,
    /// What the database's clock said then.
    base: AtomicI64,
}

impl Clock {
    /// A clock that says `now`.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self { began: Instant::now(), base: AtomicI64::new(now.0) }
    }

    /// Sets it by the database's.
    pub fn set(&self, now: Timestamp) {
        self.base.store(now.0.saturating_sub(self.elapsed()), Ordering::Relaxed);
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp(self.base.load(Ordering::Relaxed).saturating_add(self.elapsed()))
    }

    fn elapsed(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}

/// The rows of machines, as keepers see them.
pub struct Rows {
    /// Where they are.
    pub store: Store,
    /// Whose hotkey signs tickets: what another one wanted is left to its own keeper, as long as there is one.
    pub hotkey: String,
    /// The time until which costs are counted.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

/// What a row says, as it was written by its keeper and by others since.
///
/// # Errors
/// When it cannot be understood.
pub fn read(row: &MachineRow) -> Result<Row, Broken> {
    let known: Row = serde_json::from_value(row.known.clone())
        .map_err(|error| format!("machine {}: {error}", row.machine))?;
    let demand = match row.demand {
        MachineDemand::Wanted => Demand::Wanted,
        MachineDemand::Idle(since) => Demand::Idle { since },
        MachineDemand::Released => Demand::Released,
    };
    Ok(Row { version: row.version, demand, enrolled_at: row.enrolled_at, ..known })
}

/// A row as it is kept; version, demand and enrolment have columns of their own.
///
/// # Errors
/// Never in practice: all of it can be written as JSON.
pub fn known(row: &Row) -> Result<Value, Broken> {
    Ok(serde_json::to_value(row)?)
}

impl Rows {
    async fn write_row(&self, row: &Row, attempt: Option<&Attempt>) -> Result<bool, Broken> {
        let ending = row.ending.map(|ending| MachineEnding {
            name: ending.why.name(),
            at: ending.at,
            is_for_want_of_work: ending.why.is_for_want_of_work(),
        });
        let write = MachineWrite {
            machine: row.id.0,
            version: row.version,
            cloud: row.cloud.name(),
            made_at: row.made_at,
            asked_at: row.asked_at,
            ending,
            is_closed: row.is_closed(),
            cost: row.cost(row.cloud.terms().billing, (self.now)()),
            known: known(row)?,
        };
        let attempt = attempt.map(|attempt| MachineAttempt { hourly: Some(row.price), ..tried(attempt) });
        Ok(self.store.machine_write(&write, attempt.as_ref()).await?)
    }
}

/// An attempt as it is kept.
pub(super) fn tried(attempt: &Attempt) -> MachineAttempt {
    let fault = |error: &CloudError| AttemptFault {
        reason: error.kind.name().to_owned(),
        code: error.code.clone(),
        message: error.message.clone(),
    };
    MachineAttempt {
        machine: attempt.row.map(|id| id.0),
        cloud: attempt.cloud.name().to_owned(),
        call: attempt.call.name().to_owned(),
        at: attempt.at,
        times: 1,
        hourly: None,
        quoted: attempt.quoted.as_ref().map(|offer| (offer.raw.clone(), offer.fetched_at)),
        fault: attempt.error.as_ref().map(fault),
    }
}

impl Ledger for Rows {
    fn open(&self, cloud: Cloud) -> Kept<'_, Vec<Row>> {
        Box::pin(async move {
            let others = self.store.machines_of_others(cloud.name(), &self.hotkey).await?;
            let open = self.store.machines_open(cloud.name()).await?;
            open.iter().filter(|row| !others.contains(&row.machine)).map(read).collect()
        })
    }

    fn find(&self, id: MachineId) -> Kept<'_, Option<Row>> {
        Box::pin(async move { self.store.machine_find(id.0).await?.as_ref().map(read).transpose() })
    }

    fn last_asked(&self, cloud: Cloud) -> Kept<'_, Option<Timestamp>> {
        Box::pin(async move { Ok(self.store.machine_asked_last(cloud.name()).await?) })
    }

    fn write<'a>(&'a self, row: &'a Row, attempt: Option<&'a Attempt>) -> Kept<'a, bool> {
        Box::pin(self.write_row(row, attempt))
    }

    fn note<'a>(&'a self, attempt: &'a Attempt) -> Kept<'a, ()> {
        Box::pin(async move { Ok(self.store.machine_note(&tried(attempt)).await?) })
    }
}
