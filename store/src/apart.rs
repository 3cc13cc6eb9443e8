//! Jobs that are kept apart: replicas, of which no two are with one miner.

use nave_domain::{CustomerId, HostId, job::APART_JOBS_MAX};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, StoreError, job::LockedJob};

/// Lets a further job be kept apart from others of its customer, whose money is locked.
///
/// # Errors
/// [`StoreError::TooMany`] when there are as many as there may be.
pub(crate) async fn admit(tx: &mut PgConnection, customer: CustomerId, apart: Option<Uuid>) -> Result<()> {
    let Some(apart) = apart else { return Ok(()) };
    let count = sqlx::query_scalar!(
        r#"select count(*) as "count!" from jobs where customer_id = $1 and request ->> 'apart' = $2"#,
        customer.0,
        apart.to_string()
    )
    .fetch_one(tx)
    .await?;
    if count < i64::from(APART_JOBS_MAX) {
        Ok(())
    } else {
        Err(StoreError::TooMany("jobs that are kept apart"))
    }
}

/// Refuses a placement with a miner who has another of the jobs that this one is kept apart from. From here
/// to the end of the transaction none of them is placed. This lock comes after jobs and before hosts.
///
/// # Errors
/// [`StoreError::Stale`] when the miner has one.
pub(crate) async fn keep(tx: &mut PgConnection, job: &LockedJob, host: HostId) -> Result<()> {
    let Some(apart) = job.request.apart.map(|apart| apart.to_string()) else { return Ok(()) };
    sqlx::query!(
        "select pg_advisory_xact_lock(hashtextextended('apart ' || $1::uuid || ' ' || $2::text, 0))",
        job.customer.0,
        apart
    )
    .execute(&mut *tx)
    .await?;
    let taken = sqlx::query_scalar!(
        r#"select exists (select from hosts h where h.host_id = $4
                and h.hotkey in (select miners_apart($1, $2, $3))) as "taken!""#,
        job.customer.0,
        apart,
        job.job.0,
        host.0
    )
    .fetch_one(tx)
    .await?;
    if taken { Err(StoreError::Stale("job")) } else { Ok(()) }
}
