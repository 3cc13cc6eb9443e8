//! Where rows of machines are kept: what survives when everything else is killed.

use std::{error::Error, future::Future, pin::Pin};

use nave_domain::Timestamp;

use crate::{
    error::CloudError,
    machine::Row,
    provider::{Cloud, CloudOffer, MachineId},
};

/// What a look into the ledger comes to.
pub type Kept<'a, T> = Pin<Box<dyn Future<Output = Result<T, Broken>> + Send + 'a>>;

/// The ledger could not be read or written. Nothing was, as far as it says.
pub type Broken = Box<dyn Error + Send + Sync>;

/// Rows of machines. A write is atomic and durable once it returns, or it did not happen.
pub trait Ledger: Send + Sync {
    /// All rows of a cloud that are not closed.
    fn open(&self, cloud: Cloud) -> Kept<'_, Vec<Row>>;

    /// A row, closed or not. Rows are never removed: a machine may turn up long after.
    fn find(&self, id: MachineId) -> Kept<'_, Option<Row>>;

    /// When a launch was last asked of a cloud.
    fn last_asked(&self, cloud: Cloud) -> Kept<'_, Option<Timestamp>>;

    /// Writes a row that was read at its version, and beside it what was tried. The row's version grows by
    /// one. False, and nothing is written, if it was written in between, or is there already and has
    /// version 0.
    fn write<'a>(&'a self, row: &'a Row, attempt: Option<&'a Attempt>) -> Kept<'a, bool>;

    /// Writes down what was tried and changed no row.
    fn note<'a>(&'a self, attempt: &'a Attempt) -> Kept<'a, ()>;
}

/// One call to a cloud that was made for a row, or to see all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The row; none for lists and quotes.
    pub row: Option<MachineId>,
    /// The cloud.
    pub cloud: Cloud,
    /// When it was asked.
    pub at: Timestamp,
    /// What.
    pub call: Call,
    /// What it had quoted, where that is launched.
    pub quoted: Option<CloudOffer>,
    /// What it said, if that was not what it should.
    pub error: Option<CloudError>,
}

/// What is asked of a cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// What it offers, before a launch.
    Quote,
    /// A launch.
    Launch,
    /// All machines.
    List,
    /// One machine.
    Look,
    /// A machine to be given back.
    Return,
}

impl Call {
    /// For programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Quote => "quote",
            Self::Launch => "launch",
            Self::List => "list",
            Self::Look => "look",
            Self::Return => "return",
        }
    }
}
