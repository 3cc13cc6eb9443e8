//! Groups: jobs of one customer that reach one another while their leases are open.
//!
//! Nothing of it is stored but the request's own words; who is whose peer is read from open
//! leases. A lease that opens or closes changes the specs of the others' hosts, in its own
//! transaction.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    CustomerId, HostId, JobId, LeaseId,
    job::{GROUP_LEASES_MAX, JobRequest},
};
use sqlx::PgConnection;

use crate::{
    Result, Store, StoreError, host,
    job::LockedJob,
    notify::{Changes, announce},
    place::{self, Basis, Placement},
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

/// The gang that a new job starts with, by its first job: the oldest of its group and size that lacks one, in the place
/// also of one that was cancelled, or else a new one. The customer's money is locked.
pub(crate) async fn gang_of(
    tx: &mut PgConnection,
    customer: CustomerId,
    request: &JobRequest,
    job: JobId,
) -> Result<Option<JobId>> {
    let Some(size) = request.gang else { return Ok(None) };
    let forming = sqlx::query_scalar!(
        r#"select gang as "gang!" from jobs
           where customer_id = $1 and state = 'queued' and gang is not null and attempts = 0
             and request ->> 'group' = $2 and (request ->> 'gang')::bigint = $3
           group by gang having count(*) < $3 order by gang limit 1"#,
        customer.0,
        request.group,
        i64::from(size)
    )
    .fetch_optional(tx)
    .await?;
    Ok(Some(forming.map_or(job, JobId)))
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

/// Locks the hosts whose specs change, in the order of their ids: those of `others`, and `own` in the way
/// that is theirs.
async fn walk(
    tx: &mut PgConnection,
    others: &[HostId],
    own: &BTreeSet<HostId>,
    turn: Turn<'_>,
) -> Result<()> {
    let hosts: BTreeSet<HostId> = others.iter().chain(own).copied().collect();
    for host in hosts {
        match turn {
            Turn::Open(placements, basis) if own.contains(&host) => {
                for placement in placements.iter().filter(|placement| placement.host == host) {
                    place::hold(tx, placement, basis).await?;
                }
            }
            Turn::Close if own.contains(&host) => host::released(tx, host).await?,
            Turn::Open(..) | Turn::Close => host::bump(tx, host).await?,
        }
    }
    if others.is_empty() && own.len() == 1 { Ok(()) } else { announce(tx, Changes::Mesh).await }
}

/// What becomes of the hosts of leases themselves.
#[derive(Clone, Copy)]
enum Turn<'a> {
    Open(&'a [Placement], Basis),
    Close,
}

/// Takes the hosts of leases of one group that are about to open, and tells those of the others.
///
/// # Errors
/// [`StoreError::Stale`] when the group is full or a host has changed.
pub(crate) async fn joined(
    tx: &mut PgConnection,
    job: &LockedJob,
    placements: &[Placement],
    basis: Basis,
) -> Result<()> {
    let others = lock(tx, job).await?;
    let most = usize::try_from(GROUP_LEASES_MAX).unwrap_or(usize::MAX);
    if others.len() + placements.len() > most {
        return Err(StoreError::Stale("group"));
    }
    let own = placements.iter().map(|placement| placement.host).collect();
    walk(tx, &others, &own, Turn::Open(placements, basis)).await
}

/// Lets go of the host of a lease that was closed, and tells the others of its group.
pub(crate) async fn left(tx: &mut PgConnection, others: &[HostId], host: HostId) -> Result<()> {
    walk(tx, others, &BTreeSet::from([host]), Turn::Close).await
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
