//! A ledger in memory, which outlives the processes that write in it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nave_domain::Timestamp;

use super::Fuse;
use crate::{
    ledger::{Attempt, Kept, Ledger},
    machine::{Row, Stage},
    provider::{Cloud, MachineId},
};

/// What is written down.
#[derive(Debug, Default)]
pub struct Journal {
    /// Every row.
    pub rows: BTreeMap<MachineId, Row>,
    /// Everything that was tried.
    pub attempts: Vec<Attempt>,
    /// When each cloud was last asked for a launch.
    asked: BTreeMap<Cloud, Timestamp>,
}

/// The journal as one process sees it: at every line it may be killed before it has written, and after.
#[derive(Clone)]
pub struct Book {
    /// What is written down.
    pub journal: Arc<Mutex<Journal>>,
    /// Where the process is killed.
    pub fuse: Arc<Fuse>,
}

impl Book {
    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something in one step, between two points.
    fn step<'a, T: Send + 'a>(
        &'a self,
        [before, after]: [&'static str; 2],
        step: impl FnOnce(&mut Journal) -> T + Send + 'a,
    ) -> Kept<'a, T> {
        Box::pin(async move {
            self.fuse.point(before).await;
            let done = step(&mut self.journal());
            self.fuse.point(after).await;
            Ok(done)
        })
    }
}

/// The points around the writing of a row.
fn around_write(row: &Row) -> [&'static str; 2] {
    match row.stage {
        Stage::Intended => ["before an intended row", "after an intended row"],
        Stage::Asked => ["before an asked row", "after an asked row"],
        Stage::Held => ["before a held row", "after a held row"],
        Stage::Missed => ["before a missed row", "after a missed row"],
    }
}

impl Journal {
    /// Writes a row that was read at its version.
    pub fn write(&mut self, row: &Row) -> bool {
        let version = self.rows.get(&row.id).map_or(0, |row| row.version);
        if version != row.version {
            return false;
        }
        if let Some(asked_at) = row.asked_at {
            let last = self.asked.entry(row.cloud).or_insert(asked_at);
            *last = asked_at.max(*last);
        }
        self.rows.insert(row.id, Row { version: version + 1, ..row.clone() });
        true
    }
}

impl Ledger for Book {
    fn open(&self, cloud: Cloud) -> Kept<'_, Vec<Row>> {
        self.step(["before open rows", "after open rows"], move |journal| {
            let open = journal.rows.values().filter(|row| row.cloud == cloud && !row.is_closed());
            open.cloned().collect()
        })
    }

    fn find(&self, id: MachineId) -> Kept<'_, Option<Row>> {
        self.step(["before a row is found", "after a row is found"], move |journal| {
            journal.rows.get(&id).cloned()
        })
    }

    fn last_asked(&self, cloud: Cloud) -> Kept<'_, Option<Timestamp>> {
        self.step(["before the pace", "after the pace"], move |journal| journal.asked.get(&cloud).copied())
    }

    fn write<'a>(&'a self, row: &'a Row, attempt: Option<&'a Attempt>) -> Kept<'a, bool> {
        self.step(around_write(row), move |journal| {
            let is_written = journal.write(row);
            journal.attempts.extend(attempt.filter(|_| is_written).cloned());
            is_written
        })
    }

    fn note<'a>(&'a self, attempt: &'a Attempt) -> Kept<'a, ()> {
        self.step(["before a note", "after a note"], move |journal| journal.attempts.push(attempt.clone()))
    }
}
