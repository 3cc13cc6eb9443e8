//! The treasury role: charges for the use of open leases as it is metered.
//!
//! A lease's last charge is posted when it closes, in the transaction that closes it;
//! this role only keeps the time between use and charge short.

use std::{future::Future, time::Duration};

use nave_crash_point::crash_point;
use nave_store::{Store, StoreError};

/// Charges until `shutdown`, once every `every`.
///
/// # Errors
/// None so far: what fails is logged and tried again.
pub async fn run(every: Duration, store: Store, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            () = tokio::time::sleep(every) => {}
        }
        if let Err(error) = charge_all(&store).await {
            tracing::warn!(%error, "could not charge; trying again");
        }
    }
}

/// Charges every open lease up to its last reading. One that cannot be charged does not
/// keep the others from being.
///
/// # Errors
/// When the database does not answer.
pub async fn charge_all(store: &Store) -> Result<(), StoreError> {
    for due in store.charges_due().await? {
        match store.lease_charge(due).await {
            Err(error @ StoreError::Database(_)) => return Err(error),
            Err(error) => tracing::error!(lease.id = %due.lease, %error, "could not charge a lease"),
            Ok(()) => crash_point!("treasury.charge.between_leases"),
        }
    }
    Ok(())
}
