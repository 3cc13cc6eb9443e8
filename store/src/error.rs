//! What a store call can fail with.

use nave_domain::Overflow;

use crate::quote::QuoteFault;

/// Why a store call did not happen.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such row, or not for this caller.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The row changed meanwhile; look again and decide anew.
    #[error("the {0} has changed meanwhile")]
    Stale(&'static str),
    /// The idempotency key belongs to another request.
    #[error("this idempotency key was used for another request")]
    KeyReused,
    /// The available balance does not cover a hold.
    #[error("the available balance does not cover it")]
    BalanceTooLow,
    /// There are as many as there may be.
    #[error("there are too many {0}")]
    TooMany(&'static str),
    /// A quote cannot be used or had.
    #[error(transparent)]
    Quote(QuoteFault),
    /// A named constraint refused the row.
    #[error("constraint {0} refused it")]
    Constraint(String),
    /// A row holds what the domain does not know.
    #[error("the database holds {0}, which this version does not understand")]
    Corrupt(String),
    /// An amount left the range of a bigint.
    #[error("an amount left its range")]
    Overflow(#[source] Overflow),
    /// The schema could not be brought up to date.
    #[error("the schema could not be brought up to date")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// The database did not answer as expected.
    #[error("the database did not answer as expected")]
    Database(#[source] sqlx::Error),
}

impl From<QuoteFault> for StoreError {
    fn from(fault: QuoteFault) -> Self {
        Self::Quote(fault)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let refused = error.as_database_error();
        let constraint = refused.and_then(|refused| refused.constraint()).map(str::to_owned);
        match constraint.as_deref() {
            Some("ledger_accounts_funds") => Self::BalanceTooLow,
            Some(name) => Self::Constraint(name.to_owned()),
            None => Self::Database(error),
        }
    }
}

impl From<sqlx::migrate::MigrateError> for StoreError {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        Self::Migrate(error)
    }
}

impl From<Overflow> for StoreError {
    fn from(error: Overflow) -> Self {
        Self::Overflow(error)
    }
}

/// Reads a value that was written as JSON.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(
    what: &str,
    value: serde_json::Value,
) -> Result<T, StoreError> {
    serde_json::from_value(value).map_err(|error| StoreError::Corrupt(format!("{what}: {error}")))
}

/// Leaves out a row that this version does not understand, so that it does not hold up the others.
pub(crate) fn readable<T>(row: Result<T, StoreError>) -> Option<T> {
    row.inspect_err(|error| tracing::error!(%error, "a row is left out")).ok()
}

/// Reads the name of an enum's value, such as a state.
pub(crate) fn read_name<T: serde::de::DeserializeOwned>(what: &str, name: String) -> Result<T, StoreError> {
    read_json(what, serde_json::Value::String(name))
}

/// Writes a domain value as JSON.
pub(crate) fn write_json<T: serde::Serialize>(value: &T) -> Result<serde_json::Value, StoreError> {
    serde_json::to_value(value).map_err(|error| StoreError::Corrupt(error.to_string()))
}
