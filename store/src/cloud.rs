//! Machines that are rented from clouds: their rows, which outlive whoever keeps them.
//!
//! A machine's keeper writes what it knows of it, others whether it is wanted and which host it is. Each
//! must have read the row last. A machine that has an ending is no host any more: both are one write.

use nave_crash_point::crash_point;
use nave_domain::{
    HostId, JobId, MicroUsd, Millis, Timestamp,
    host::{HostState, Inventory, Proven, Trust},
    ledger::Posting,
};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Departure, Result, Store, StoreError, error, ledger, miner,
    notify::{Changes, announce},
};

/// A machine that is wanted, or was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineRow {
    /// Its id.
    pub machine: Uuid,
    /// How often the row was written.
    pub version: u64,
    /// Where.
    pub cloud: String,
    /// When it was wanted.
    pub made_at: Timestamp,
    /// Whether it is wanted.
    pub demand: MachineDemand,
    /// When its agent enrolled.
    pub enrolled_at: Option<Timestamp>,
    /// Why it goes back.
    pub ending: Option<String>,
    /// Whether nothing is left to be done.
    pub is_closed: bool,
    /// What it has cost so far at the most.
    pub cost: MicroUsd,
    /// What its keeper knows of it.
    pub known: Value,
    /// What it has and costs for jobs; none where it only turned up.
    pub shape: Option<Value>,
    /// The job that it was rented for.
    pub job: Option<JobId>,
    /// The host that it is.
    pub host: Option<HostId>,
}

impl MachineRow {
    /// How long before its dead-man switch a machine goes back, as its keeper has it.
    pub const MARGIN: Millis = Millis(300_000);
}

/// Whether a machine is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineDemand {
    /// It is waited for, or works.
    Wanted,
    /// It has nothing to do since then.
    Idle(Timestamp),
    /// It is to go now.
    Released,
}

impl MachineDemand {
    fn parts(self) -> (&'static str, Option<i64>) {
        match self {
            Self::Wanted => ("wanted", None),
            Self::Idle(since) => ("idle", Some(since.0)),
            Self::Released => ("released", None),
        }
    }
}

/// What a keeper writes of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineWrite<'a> {
    /// Its id.
    pub machine: Uuid,
    /// The version that was read; 0 for a machine that only turned up.
    pub version: u64,
    /// Where.
    pub cloud: &'a str,
    /// When it was wanted.
    pub made_at: Timestamp,
    /// When its launch was asked for.
    pub asked_at: Option<Timestamp>,
    /// Why it goes back.
    pub ending: Option<MachineEnding>,
    /// Whether nothing is left to be done.
    pub is_closed: bool,
    /// What it has cost so far at the most.
    pub cost: MicroUsd,
    /// What its keeper knows of it.
    pub known: Value,
}

/// Why a machine goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineEnding {
    /// For programs.
    pub name: &'static str,
    /// Since when.
    pub at: Timestamp,
    /// Whether only a machine that has nothing to do goes back for it.
    pub is_for_want_of_work: bool,
}

/// One call to a cloud, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineAttempt {
    /// The machine; none for lists.
    pub machine: Option<Uuid>,
    /// Who was asked.
    pub cloud: String,
    /// What for.
    pub call: String,
    /// When, or when the same came of it last.
    pub at: Timestamp,
    /// How often the same came of it, one time after the other.
    pub times: i64,
    /// What the machine cost an hour then.
    pub hourly: Option<MicroUsd>,
    /// What the cloud had said of what was launched, without secrets and at most 8 KiB, and when it was asked.
    pub quoted: Option<(String, Timestamp)>,
    /// Why it did not work.
    pub fault: Option<AttemptFault>,
}

/// Why a call to a cloud did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptFault {
    /// For programs.
    pub reason: String,
    /// The cloud's own word for it.
    pub code: String,
    /// Its explanation, without secrets.
    pub message: String,
}

pub(crate) struct RawMachine {
    pub(crate) machine_id: Uuid,
    pub(crate) version: i64,
    pub(crate) cloud: String,
    pub(crate) made_at_ms: i64,
    pub(crate) demand: String,
    pub(crate) idle_at_ms: Option<i64>,
    pub(crate) enrolled_at_ms: Option<i64>,
    pub(crate) ending: Option<String>,
    pub(crate) is_closed: bool,
    pub(crate) cost: i64,
    pub(crate) known: Value,
    pub(crate) shape: Option<Value>,
    pub(crate) job_id: Option<Uuid>,
    pub(crate) host_id: Option<Uuid>,
}

impl RawMachine {
    pub(crate) fn read(self) -> Result<MachineRow> {
        let demand = match (self.demand.as_str(), self.idle_at_ms) {
            ("wanted", None) => MachineDemand::Wanted,
            ("idle", Some(since)) => MachineDemand::Idle(Timestamp(since)),
            ("released", None) => MachineDemand::Released,
            _ => return Err(StoreError::Corrupt(format!("a demand: {}", self.demand))),
        };
        Ok(MachineRow {
            machine: self.machine_id,
            version: self.version.cast_unsigned(),
            cloud: self.cloud,
            made_at: Timestamp(self.made_at_ms),
            demand,
            enrolled_at: self.enrolled_at_ms.map(Timestamp),
            ending: self.ending,
            is_closed: self.is_closed,
            cost: MicroUsd(self.cost),
            known: self.known,
            shape: self.shape,
            job: self.job_id.map(JobId),
            host: self.host_id.map(HostId),
        })
    }
}

impl Store {
    /// Machines of a cloud that are not closed.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn machines_open(&self, cloud: &str) -> Result<Vec<MachineRow>> {
        let rows = sqlx::query_as!(
            RawMachine,
            "select machine_id, version, cloud, made_at_ms, demand, idle_at_ms, enrolled_at_ms, ending, is_closed,
                    cost, known, shape, job_id, host_id
             from machines where cloud = $1 and not is_closed order by machine_id",
            cloud
        );
        rows.fetch_all(&self.pool).await?.into_iter().map(RawMachine::read).collect()
    }

    /// The newest machines, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn machine_list(&self, limit: i64) -> Result<Vec<MachineRow>> {
        let rows = sqlx::query_as!(
            RawMachine,
            "select machine_id, version, cloud, made_at_ms, demand, idle_at_ms, enrolled_at_ms, ending, is_closed,
                    cost, known, shape, job_id, host_id
             from machines order by is_closed, made_at_ms desc limit $1",
            limit
        );
        rows.fetch_all(&self.pool).await?.into_iter().map(RawMachine::read).collect()
    }

    /// One machine, closed or not.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn machine_find(&self, machine: Uuid) -> Result<Option<MachineRow>> {
        let row = sqlx::query_as!(
            RawMachine,
            "select machine_id, version, cloud, made_at_ms, demand, idle_at_ms, enrolled_at_ms, ending, is_closed,
                    cost, known, shape, job_id, host_id
             from machines where machine_id = $1",
            machine
        );
        row.fetch_optional(&self.pool).await?.map(RawMachine::read).transpose()
    }

    /// When a launch was last asked of a cloud.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn machine_asked_last(&self, cloud: &str) -> Result<Option<Timestamp>> {
        let last = sqlx::query_scalar!("select max(asked_at_ms) from machines where cloud = $1", cloud);
        Ok(last.fetch_one(&self.pool).await?.map(Timestamp))
    }

    /// Writes what a keeper knows of a machine, and beside it what was tried. False, and nothing is written,
    /// where somebody else wrote the row since it was read. So too where a machine was to go back for want
    /// of work and its host has some: then it is wanted again.
    ///
    /// A machine that begins to go back is no host any more: what else ran there is lost and runs again. What it has
    /// cost since the last write is posted with it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn machine_write(
        &self,
        write: &MachineWrite<'_>,
        attempt: Option<&MachineAttempt>,
    ) -> Result<bool> {
        let mut tx = self.begin().await?;
        if write.version == 0 {
            if !turn_up(&mut tx, write).await? {
                return Ok(false);
            }
            owe(&mut tx, write, MicroUsd::ZERO).await?;
        } else {
            let locked = lock(&mut tx, write.machine, write.version).await?;
            let Some((host, before)) = locked else { return Ok(false) };
            if let (Host::Is(host), Some(ending)) = (host, write.ending)
                && !leave(&mut tx, write.machine, host, ending).await?
            {
                tx.commit().await?;
                return Ok(false);
            }
            update(&mut tx, write).await?;
            owe(&mut tx, write, before).await?;
        }
        if let Some(attempt) = attempt {
            note(&mut tx, attempt).await?;
        }
        crash_point!("store.machine_write.before_commit");
        tx.commit().await?;
        crash_point!("store.machine_write.after_commit");
        Ok(true)
    }

    /// Writes down what was tried and changed no row.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn machine_note(&self, attempt: &MachineAttempt) -> Result<()> {
        let mut tx = self.begin().await?;
        note(&mut tx, attempt).await?;
        Ok(tx.commit().await?)
    }

    /// What was tried, the latest first; of one machine, or of all and of none.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn machine_attempts(&self, machine: Option<Uuid>, limit: i64) -> Result<Vec<MachineAttempt>> {
        let rows = sqlx::query!(
            "select machine_id, cloud, call, last_ms, times, hourly, quoted, quoted_ms, reason, code, message
             from machine_attempts
             where $1::uuid is null or machine_id = $1 order by attempt_id desc limit $2",
            machine,
            limit
        );
        let rows = rows.fetch_all(&self.pool).await?.into_iter().map(|row| MachineAttempt {
            machine: row.machine_id,
            cloud: row.cloud,
            call: row.call,
            at: Timestamp(row.last_ms),
            times: row.times,
            hourly: row.hourly.map(MicroUsd),
            quoted: row.quoted.zip(row.quoted_ms.map(Timestamp)),
            fault: row.reason.zip(row.code).zip(row.message).map(|((reason, code), message)| AttemptFault {
                reason,
                code,
                message,
            }),
        });
        Ok(rows.collect())
    }

    /// Says whether a machine is wanted; false where somebody else wrote the row since it was read.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn machine_demand(&self, machine: Uuid, version: u64, demand: MachineDemand) -> Result<bool> {
        let (demand, since) = demand.parts();
        let done = sqlx::query!(
            "update machines set demand = $3, idle_at_ms = $4, version = version + 1
             where machine_id = $1 and version = $2",
            machine,
            version.cast_signed(),
            demand,
            since
        );
        Ok(done.execute(&self.pool).await?.rows_affected() == 1)
    }
}

/// A row for a machine that nobody wanted; false where there is one.
async fn turn_up(tx: &mut PgConnection, write: &MachineWrite<'_>) -> Result<bool> {
    let done = sqlx::query!(
        "insert into machines (machine_id, version, cloud, made_at_ms, asked_at_ms, ending, ended_at_ms, is_closed, cost, known)
         values ($1, 1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict do nothing",
        write.machine,
        write.cloud,
        write.made_at.0,
        write.asked_at.map(|at| at.0),
        write.ending.map(|ending| ending.name),
        write.ending.map(|ending| ending.at.0),
        write.is_closed,
        write.cost.0,
        write.known
    );
    Ok(done.execute(tx).await?.rows_affected() == 1)
}

/// What a machine is, beside a machine.
enum Host {
    /// No host, or none any more.
    None,
    /// A host that is to leave when the machine goes.
    Is(HostId),
}

/// Locks a machine that was read at a version; none where it was written since. With what it had cost then.
async fn lock(tx: &mut PgConnection, machine: Uuid, version: u64) -> Result<Option<(Host, MicroUsd)>> {
    let row = sqlx::query!(
        "select host_id, ending, cost from machines where machine_id = $1 and version = $2 for update",
        machine,
        version.cast_signed()
    );
    let row = row.fetch_optional(tx).await?;
    let host = |host: Option<Uuid>| host.map_or(Host::None, |host| Host::Is(HostId(host)));
    Ok(row.map(|row| (if row.ending.is_some() { Host::None } else { host(row.host_id) }, MicroUsd(row.cost))))
}

/// Posts what a machine has cost since it was written last. A row is written once in each version, and so is this.
async fn owe(tx: &mut PgConnection, write: &MachineWrite<'_>, before: MicroUsd) -> Result<()> {
    let posted = ledger::post(tx, &Posting::rent(write.machine, write.version, before, write.cost)?).await?;
    if posted || write.cost == before { Ok(()) } else { Err(StoreError::Stale("machine")) }
}

/// Takes out the host that a machine is. False where it goes back for want of work and its host has some: leases, or
/// what a quote holds as long as the machine is only idle.
async fn leave(tx: &mut PgConnection, machine: Uuid, host: HostId, ending: MachineEnding) -> Result<bool> {
    // The lock that placements wait for: what is placed is either seen here or sees this.
    let state = sqlx::query_scalar!("select state from hosts where host_id = $1 for update", host.0)
        .fetch_one(&mut *tx)
        .await?;
    let has = sqlx::query!(
        r#"select exists (select from leases where host_id = $1 and state <> 'closed') as "leases!",
                exists (select from quotes where host_id = $1 and job_id is null and expires_at_ms > now_ms())
                and exists (select from machines where machine_id = $2 and demand <> 'released') as "quotes!""#,
        host.0,
        machine
    );
    let has = has.fetch_one(&mut *tx).await?;
    if ending.is_for_want_of_work && has.leases {
        sqlx::query!(
            "update machines set demand = 'wanted', idle_at_ms = null, version = version + 1 where machine_id = $1",
            machine
        )
        .execute(tx)
        .await?;
        return Ok(false);
    }
    if ending.is_for_want_of_work && has.quotes {
        return Ok(false);
    }
    let state: HostState = error::read_name("a host's state", state)?;
    if state.is_member() {
        miner::depart(tx, None, host, Departure::Return).await?;
    }
    Ok(true)
}

async fn update(tx: &mut PgConnection, write: &MachineWrite<'_>) -> Result<()> {
    sqlx::query!(
        "update machines set version = version + 1, asked_at_ms = $2, ending = $3, ended_at_ms = $4, is_closed = $5,
            cost = $6, known = $7
         where machine_id = $1",
        write.machine,
        write.asked_at.map(|at| at.0),
        write.ending.map(|ending| ending.name),
        write.ending.map(|ending| ending.at.0),
        write.is_closed,
        write.cost.0,
        write.known
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Notes an attempt; one of which the same came as of the one before is counted there, in its own words.
async fn note(tx: &mut PgConnection, attempt: &MachineAttempt) -> Result<()> {
    let fault = attempt.fault.as_ref();
    let (reason, code) = (fault.map(|fault| &fault.reason), fault.map(|fault| &fault.code));
    let (quoted, quoted_ms) = attempt.quoted.as_ref().map(|(raw, at)| (raw, at.0)).unzip();
    let counted = sqlx::query!(
        "update machine_attempts set times = times + 1, last_ms = $6, quoted = $8, quoted_ms = $9, message = $10
         where attempt_id = (select max(attempt_id) from machine_attempts
                             where cloud = $1 and machine_id is not distinct from $2)
             and call = $3 and reason is not distinct from $4 and code is not distinct from $5
             and hourly is not distinct from $7",
        attempt.cloud,
        attempt.machine,
        attempt.call,
        reason,
        code,
        attempt.at.0,
        attempt.hourly.map(|price| price.0),
        quoted,
        quoted_ms,
        fault.map(|fault| &fault.message)
    );
    if counted.execute(&mut *tx).await?.rows_affected() > 0 {
        return Ok(());
    }
    sqlx::query!(
        "insert into machine_attempts (machine_id, cloud, call, first_ms, last_ms, hourly, quoted, quoted_ms, reason,
            code, message)
         values ($1, $2, $3, $4, $4, $5, $6, $7, $8, $9, $10)",
        attempt.machine,
        attempt.cloud,
        attempt.call,
        attempt.at.0,
        attempt.hourly.map(|price| price.0),
        quoted,
        quoted_ms,
        reason,
        code,
        fault.map(|fault| &fault.message)
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// A ticket was used to make a host: if it was a machine's, the host is that machine.
///
/// # Errors
/// [`StoreError::Stale`] when the machine is going back: it must not become a host.
pub(crate) async fn joined(tx: &mut PgConnection, ticket: &str, hotkey: &str, host: HostId) -> Result<()> {
    let Ok(machine) = Uuid::try_parse(ticket) else { return Ok(()) };
    let row = sqlx::query!(
        "select ending, host_id from machines where machine_id = $1 and hotkey = $2 for update",
        machine,
        hotkey
    );
    let Some(row) = row.fetch_optional(&mut *tx).await? else { return Ok(()) };
    if row.ending.is_some() || row.host_id.is_some() {
        return Err(StoreError::Stale("machine"));
    }
    sqlx::query!(
        "update machines set host_id = $2, enrolled_at_ms = now_ms(), version = version + 1 where machine_id = $1",
        machine,
        host.0
    )
    .execute(&mut *tx)
    .await?;
    announce(tx, Changes::Supply).await
}

/// How much longer what runs on a machine can go on: until it goes back, since its dead-man switch is near.
pub(crate) fn lasts(dead_man: Option<Value>, now: Timestamp) -> Result<Option<Millis>> {
    let dead_man: Option<Timestamp> =
        dead_man.map(|at| error::read_json("a dead-man switch", at)).transpose()?;
    Ok(dead_man.map(|at| Millis(at.since(now).0 - MachineRow::MARGIN.0)))
}

/// What is known of a host: a machine that the market rents itself is what it was rented as.
pub(crate) fn trust(is_rented: bool, claims: Option<&Inventory>, proven: Option<&Proven>) -> Trust {
    if is_rented { Trust::Cloud } else { Trust::of(claims, proven) }
}
