//! Notice to leases that yield to a job, and what takes it back.

use nave_domain::{JobId, LeaseId};

use crate::{Result, Store};

impl Store {
    /// Tells a lease that it ends for another job. It ends when the notice is over, if that job still waits.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn lease_notice(&self, lease: LeaseId, for_job: JobId) -> Result<()> {
        sqlx::query!(
            "update leases set notice_up_ms = control_ms(), notice_for = $2
             where lease_id = $1 and notice_up_ms is null and state in ('placed', 'running')",
            lease.0,
            for_job.0
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Takes back every notice that was given for a job which waits no more.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn notices_clear(&self) -> Result<()> {
        sqlx::query!(
            "update leases set notice_up_ms = null, notice_for = null
             where notice_up_ms is not null and state in ('placed', 'running')
             and not exists (select from jobs where job_id = notice_for and state = 'queued')"
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
