//! Groups: jobs of one customer that reach one another while their leases are open.
//!
//! Nothing of it is stored but the request's own words; who is whose peer is read from open
//! leases. A lease that opens or closes changes the specs of the others' hosts, in its own
//! transaction.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{HostId, JobId, LeaseId, job::GROUP_LEASES_MAX};
use sqlx::PgConnection;

use crate::{
    Result, Store, StoreError, host,
    job::LockedJob,
    notify::{Changes, announce},
    schedule::{self, Placement},
};

/// Bytes of an address in an order, and of as many peers as a group can have.
pub(crate) const ORDER_BYTES: i64 = 96 * (GROUP_LEASES_MAX as i64 + 1);

/// Leave to send from one lease to another, on another host. Each direction is one of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MeshRoute {
    /// The host of the lease that sends.
    pub host: HostId,
    /// The lease that sends.
    pub from: LeaseId,
    /// The lease that receives.
    pub to: LeaseId,
}

/// The hosts of the other open leases of a job's group; none where it has no group.
///
/// From here to the end of the transaction no other lease of the group opens or closes, so
/// that of two which open at the same time one knows the other. This lock comes after leases
/// and before hosts.
pub(crate) async fn lock(tx: &mut PgConnection, job: &LockedJob) -> Result<Vec<HostId>> {
    let Some(group) = &job.request.group else { return Ok(Vec::new()) };
    sqlx::query!(
        "select pg_advisory_xact_lock(hashtextextended('group ' || $1::uuid || ' ' || $2::text, 0))",
        job.customer.0,
        group
    )
    .execute(&mut *tx)
    .await?;
    let hosts = sqlx::query_scalar!(
        "select l.host_id from jobs j join leases l using (job_id)
         where j.customer_id = $1 and j.request ->> 'group' = $2 and j.job_id <> $3
           and j.state in ('placed', 'running', 'cancelling') and l.state <> 'closed'",
        job.customer.0,
        group,
        job.job.0
    )
    .fetch_all(tx)
    .await?;
    Ok(hosts.into_iter().map(HostId).collect())
}

/// What becomes of the host of a lease itself.
enum Turn<'a> {
    Open(&'a Placement),
    Close,
}

/// Locks the hosts that a lease on `host` concerns, in the order of their ids: its own takes
/// its turn, and the specs of the others change.
async fn walk(tx: &mut PgConnection, others: &[HostId], host: HostId, turn: Turn<'_>) -> Result<()> {
    let hosts: BTreeSet<HostId> = others.iter().copied().chain([host]).collect();
    for one in hosts {
        match turn {
            Turn::Open(placement) if one == host => schedule::hold(tx, placement).await?,
            Turn::Close if one == host => host::released(tx, host).await?,
            Turn::Open(_) | Turn::Close => host::bump(tx, one).await?,
        }
    }
    if others.is_empty() { Ok(()) } else { announce(tx, Changes::Mesh).await }
}

/// Takes the host of a lease that is about to open, and tells those of its group.
///
/// # Errors
/// [`StoreError::Stale`] when the group is full or the host has changed.
pub(crate) async fn joined(tx: &mut PgConnection, job: &LockedJob, placement: &Placement) -> Result<()> {
    let others = lock(tx, job).await?;
    if others.len() >= usize::try_from(GROUP_LEASES_MAX).unwrap_or(usize::MAX) {
        return Err(StoreError::Stale("group"));
    }
    walk(tx, &others, placement.host, Turn::Open(placement)).await
}

/// Lets go of the host of a lease that was closed, and tells the others of its group.
pub(crate) async fn left(tx: &mut PgConnection, others: &[HostId], host: HostId) -> Result<()> {
    walk(tx, others, host, Turn::Close).await
}

/// The peers of every open lease of a host, by lease and by the peer's job.
pub(crate) async fn peers_of_host(
    store: &Store,
    host: HostId,
) -> Result<BTreeMap<LeaseId, BTreeMap<JobId, LeaseId>>> {
    let rows = sqlx::query!(
        "select own.lease_id, other.job_id as peer_job, other.lease_id as peer
         from leases own join jobs j on j.job_id = own.job_id
         join jobs p on p.customer_id = j.customer_id and p.request ->> 'group' = j.request ->> 'group'
              and p.job_id <> j.job_id and p.state in ('placed', 'running', 'cancelling')
         join leases other on other.job_id = p.job_id and other.state <> 'closed'
         where own.host_id = $1 and own.state <> 'closed'",
        host.0
    )
    .fetch_all(&store.pool)
    .await?;
    let mut peers: BTreeMap<LeaseId, BTreeMap<JobId, LeaseId>> = BTreeMap::new();
    for row in rows {
        peers.entry(row.lease_id.into()).or_default().insert(row.peer_job.into(), row.peer.into());
    }
    Ok(peers)
}

impl Store {
    /// What may pass from one host to another: packets between open leases of one customer's
    /// group, in the order of the ids. Hosts that have left are nowhere in it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn mesh_routes(&self) -> Result<Vec<MeshRoute>> {
        let rows = sqlx::query!(
            r#"select own.host_id, own.lease_id as "from_lease", other.lease_id as "to_lease"
               from jobs j
               join jobs p on p.customer_id = j.customer_id and p.request ->> 'group' = j.request ->> 'group'
                    and p.job_id <> j.job_id and p.state in ('placed', 'running', 'cancelling')
               join leases own on own.job_id = j.job_id and own.state <> 'closed'
               join leases other on other.job_id = p.job_id and other.state <> 'closed'
               join hosts h on h.host_id = own.host_id and h.state not in ('gone', 'banned')
               join hosts o on o.host_id = other.host_id and o.state not in ('gone', 'banned')
               where j.state in ('placed', 'running', 'cancelling') and j.request ->> 'group' is not null
                 and own.host_id <> other.host_id
               order by own.host_id, own.lease_id, other.lease_id"#
        )
        .fetch_all(&self.pool)
        .await?;
        let route = |host: uuid::Uuid, from: uuid::Uuid, to: uuid::Uuid| MeshRoute {
            host: host.into(),
            from: from.into(),
            to: to.into(),
        };
        Ok(rows.into_iter().map(|row| route(row.host_id, row.from_lease, row.to_lease)).collect())
    }
}
