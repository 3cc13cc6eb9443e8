//! The only SQL of Nave.
//!
//! One module per aggregate; functions are named `noun_verb`. Rows are locked in the
//! order that ARCHITECTURE.md names, so that transactions never deadlock.
//! Every change that somebody waits for is announced with `NOTIFY`; the announcement
//! only shortens the wait, polling finds the same.

mod account;
mod apart;
mod ban;
mod baseline;
mod blob;
mod bundle;
mod challenge;
mod class_use;
mod clock;
mod cloud;
mod collateral;
mod device;
mod dispute;
mod drawing;
mod earnings;
pub mod embedded;
mod enrol;
mod epoch;
mod error;
mod event;
mod evidence;
mod freeze;
mod group;
mod held;
mod host;
mod idle;
mod job;
mod lease;
mod ledger;
mod log;
mod look;
mod mesh;
mod miner;
mod notice;
mod notify;
mod params;
mod place;
mod quote;
mod related;
mod release;
mod rent;
mod resting;
mod schedule;
mod schema;
mod setting;
mod settle;
mod suite;
#[cfg(feature = "testing")]
pub mod testing;
mod transfer;
mod verdict;
mod watch;

use std::time::Duration;

use nave_domain::Timestamp;
use sqlx::{
    Connection as _, PgConnection, PgPool, Postgres, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions},
};

pub use account::{Caller, KeyRow};
pub use ban::BanRow;
pub use baseline::{BaselineRow, BaselineSource, Baselines};
pub use blob::BlobClaim;
pub use bundle::BundleRow;
pub use challenge::{Decision, Moment, OpenChallenge, SentChallenge, StepRow};
pub use cloud::{AttemptFault, MachineAttempt, MachineDemand, MachineEnding, MachineRow, MachineWrite};
pub use collateral::{CallRow, CollateralRow};
pub use device::Holder;
pub use dispute::{DisputeRow, Disputed, Disputing, JobDisputes};
pub use drawing::Drawing;
pub use earnings::{EarningsRow, LeaseEarned, OfferRow};
pub use enrol::{Joined, Joining};
pub use epoch::{DeliveredRow, EpochRow, SettledRow};
pub use error::StoreError;
pub use event::{Decided as EventDecided, EventRow, Outages, PendingEvent, XidRow};
pub use evidence::Swept;
pub use group::MeshRoute;
pub use host::{Heard, HostReason, HostRow, OrderRow, SpecRow};
pub use job::{AttemptRow, JobRow, Submission, Submitted};
pub use lease::{ChargeDue, HeldLease, OpenLease, ResultRow};
pub use ledger::{BalanceRow, LedgerRow};
pub use log::{Appended, LogRow};
pub use look::Look;
pub use mesh::{HubRow, MeshPeer};
pub use miner::{Departure, HostPatch};
pub use notify::{Changes, Listener};
pub use params::ParamsRow;
pub use place::{Grounds, ORDERS_BYTES_MAX, Placement};
pub use quote::{
    AskedQuote, Asking, Considered, OPEN_MAX as QUOTES_MAX, QuoteAnswer, QuoteFault, QuoteRow,
    RECENT_MAX as QUOTES_RECENT_MAX,
};
pub use related::RelatedRow;
pub use release::{NewRelease, ReleaseRow};
pub use rent::{MachineAccount, NewMachine, RentSnapshot, RentedMachine, WaitingJob};
pub use resting::{CloudRow, MachineEnd};
pub use schedule::{ORDER_BYTES_MAX, Occupied, Past, QueuedJob, Snapshot, SupplyHost, Yielding};
pub use settle::{
    ClassEvidence, EpochFrame, EpochResult, EventEvidence, IdleEvidence, LeaseCredit, LeaseEvidence,
    LeaseResult, MinerEvidence, MinerResult, Settlement, VerdictEvidence,
};
pub use suite::{Decided, DueHost};
pub use transfer::{LinkedHost, Measured, ServeRow, Transfer, TransferRoute};
pub use verdict::{Appeal, ExchangeRow, VerdictBan, VerdictRow};
pub use watch::{OpenWindow, Watch, WatchedHost, WatchedLease};

/// The result of every store call.
pub type Result<T> = std::result::Result<T, StoreError>;

/// What Postgres ends by itself, so that a process or a machine that vanished in the middle
/// of a transaction holds up the others for a moment and not until its connection is missed.
const SESSION: [(&str, &str); 3] =
    [("lock_timeout", "5s"), ("statement_timeout", "30s"), ("idle_in_transaction_session_timeout", "30s")];

/// A connection pool to the market's database.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    url: String,
}

impl Store {
    /// Connects lazily; a database that is down shows on first use.
    ///
    /// # Errors
    /// When `url` is not a Postgres connection string.
    pub async fn connect(url: &str) -> Result<Self> {
        let pool = PgPoolOptions::new()
            .max_connections(16)
            .acquire_timeout(Duration::from_secs(10))
            .after_connect(|connection, _| Box::pin(schema::check(connection)))
            .connect_lazy_with(url.parse::<PgConnectOptions>()?.options(SESSION));
        Ok(Self { pool, url: url.to_owned() })
    }

    /// Begins a transaction. What is dropped while its BEGIN is on the way would go back to the pool inside of one, with all
    /// that others write there later; so beginning goes on by itself, and what nobody waits for any more is rolled back.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Postgres>> {
        let pool = self.pool.clone();
        let begun = tokio::spawn(async move { pool.begin().await }).await;
        Ok(begun.unwrap_or(Err(sqlx::Error::PoolClosed))?)
    }

    /// Brings the schema up to date; concurrent callers wait for each other. Where that changes anything, all other
    /// sessions end: programs that know the schema connect again, and older ones are refused.
    ///
    /// # Errors
    /// When a migration fails or the database is newer than this program.
    pub async fn migrate(&self) -> Result<()> {
        // Not from the pool: a migration takes as long as it takes.
        let mut connection = PgConnection::connect(&self.url).await?;
        schema::migrate(&mut connection).await?;
        Ok(connection.close().await?)
    }

    /// The database's clock, which is the market's.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn now(&self) -> Result<Timestamp> {
        Ok(Timestamp(sqlx::query_scalar!(r#"select now_ms() as "now!""#).fetch_one(&self.pool).await?))
    }
}
