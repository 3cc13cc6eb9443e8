//! Drawing challenges: of one host beside its jobs, or of many that are to prove their claims.

use std::collections::BTreeSet;

use nave_crash_point::crash_point;
use nave_domain::{
    ChallengeId, HostId, LeaseId,
    host::Inventory,
    verdict::{Cause, Kind},
};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, Store, StoreError, challenge::step_insert, error, host as hosts, look};

/// A challenge that is to be put into the spec of its host.
#[derive(Debug, Clone, Copy)]
pub struct Drawing<'a> {
    /// Who is tested.
    pub host: HostId,
    /// Its id.
    pub challenge: ChallengeId,
    /// What is tested.
    pub kind: Kind,
    /// Why.
    pub cause: Cause,
    /// What the host is asked to do.
    pub body: &'a Value,
    /// What it must prove.
    pub claims: &'a Inventory,
    /// Whether its verdict means nothing for the host.
    pub shadow: bool,
    /// The window in which it is drawn.
    pub window: Option<Uuid>,
    /// The lease beside which the host is tested; such a test is part of no suite.
    pub lease: Option<LeaseId>,
}

impl Store {
    /// Puts challenges into the specs of hosts that are to prove their claims: for each host all of them, or none. Says
    /// for which hosts; not for those that are not what they were at the generation that stands beside them.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn challenges_draw(
        &self,
        hosts: &[(HostId, u64)],
        drawings: &[Drawing<'_>],
    ) -> Result<Vec<HostId>> {
        let (ids, seen): (Vec<Uuid>, Vec<i64>) =
            hosts.iter().map(|(host, seen)| (host.0, seen.cast_signed())).unzip();
        let (of, kinds): (Vec<Uuid>, Vec<String>) =
            drawings.iter().map(|drawing| (drawing.host.0, drawing.kind.as_str().to_owned())).unzip();
        let mut tx = self.begin().await?;
        let tested = sqlx::query_scalar!(
            "select h.host_id from hosts h join unnest($1::uuid[], $2::bigint[]) as wanted (host_id, seen) using (host_id)
             where h.state = 'verifying' and h.generation = wanted.seen and not exists (
                select from challenges c join unnest($3::uuid[], $4::text[]) as drawing (host_id, kind) using (host_id, kind)
                where c.host_id = h.host_id and c.verdict is null)
             order by h.host_id for update of h",
            &ids,
            &seen,
            &of,
            &kinds
        )
        .fetch_all(&mut *tx)
        .await?;
        let tested: BTreeSet<HostId> = tested.into_iter().map(HostId).collect();
        let drawings: Vec<&Drawing<'_>> =
            drawings.iter().filter(|drawing| tested.contains(&drawing.host)).collect();
        insert_all(&mut tx, &drawings).await?;
        let tested: Vec<HostId> = tested.into_iter().collect();
        hosts::bump_each(&mut tx, &tested).await?;
        crash_point!("store.challenge_draw.before_commit");
        tx.commit().await?;
        Ok(tested)
    }

    /// Puts challenges into the specs of hosts, whatever these have proven: one at most for each. Says for which hosts; not
    /// for those that are tested for the same already, leave, or were tested for this before: once in a window,
    /// once at the start and the end of a lease.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn challenges_draw_beside(&self, drawings: &[Drawing<'_>]) -> Result<Vec<HostId>> {
        let hosts: Vec<Uuid> = drawings.iter().map(|drawing| drawing.host.0).collect();
        let leases: Vec<Option<Uuid>> =
            drawings.iter().map(|drawing| drawing.lease.map(|lease| lease.0)).collect();
        let kinds: Vec<String> = drawings.iter().map(|drawing| drawing.kind.as_str().to_owned()).collect();
        let causes: Vec<String> = drawings.iter().map(|drawing| drawing.cause.as_str().to_owned()).collect();
        let windows: Vec<Option<Uuid>> = drawings.iter().map(|drawing| drawing.window).collect();
        let mut tx = self.begin().await?;
        lock(&mut tx, &hosts, &leases).await?;
        // What others wrote until they let go of those is seen from here on.
        let tested = sqlx::query_scalar!(
            r#"select h.host_id from hosts h
                join unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::uuid[]) as wanted (host_id, kind, cause, window_id, lease_id)
                    using (host_id)
               -- Who drains has jobs, and shows what they get like any other.
               where (h.state in ('verifying', 'ready', 'suspect', 'refused') or (h.state = 'draining' and wanted.lease_id is not null))
                 and not exists (select from challenges c
                    where c.host_id = h.host_id and c.kind = wanted.kind and (c.verdict is null or c.window_id = wanted.window_id
                        or (c.lease_id = wanted.lease_id and c.cause = wanted.cause and c.cause <> 'lease')))"#,
            &hosts,
            &kinds,
            &causes,
            &windows as &[Option<Uuid>],
            &leases as &[Option<Uuid>]
        )
        .fetch_all(&mut *tx)
        .await?;
        let tested: BTreeSet<HostId> = tested.into_iter().map(HostId).collect();
        let drawn: Vec<&Drawing<'_>> =
            drawings.iter().filter(|drawing| tested.contains(&drawing.host)).collect();
        let of: Vec<Uuid> = drawn.iter().filter_map(|drawing| drawing.lease).map(|lease| lease.0).collect();
        sqlx::query!("update leases set probe_up_ms = null where lease_id = any($1)", &of)
            .execute(&mut *tx)
            .await?;
        insert_all(&mut tx, &drawn).await?;
        let tested: Vec<HostId> = tested.into_iter().collect();
        hosts::bump_each(&mut tx, &tested).await?;
        tx.commit().await?;
        Ok(tested)
    }
}

/// Locks leases and hosts, in the order in which they are locked everywhere.
async fn lock(tx: &mut PgConnection, hosts: &[Uuid], leases: &[Option<Uuid>]) -> Result<()> {
    sqlx::query!(
        "select from leases where lease_id = any($1) order by lease_id for update",
        leases as &[Option<Uuid>]
    )
    .fetch_all(&mut *tx)
    .await?;
    sqlx::query!("select from hosts where host_id = any($1) order by host_id for update", hosts)
        .fetch_all(&mut *tx)
        .await?;
    Ok(())
}

pub(crate) async fn insert(tx: &mut PgConnection, drawing: &Drawing<'_>) -> Result<()> {
    let drawn = sqlx::query!(
        "insert into challenges (challenge_id, host_id, kind, cause, challenge, claims, shadow, window_id, lease_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict do nothing",
        drawing.challenge.0,
        drawing.host.0,
        drawing.kind.as_str(),
        drawing.cause.as_str(),
        drawing.body,
        error::write_json(drawing.claims)?,
        drawing.shadow,
        drawing.window,
        drawing.lease.map(|lease| lease.0)
    )
    .execute(&mut *tx)
    .await?;
    if drawn.rows_affected() == 0 {
        return Err(StoreError::Stale("host"));
    }
    step_insert(tx, drawing.challenge, 0, None).await?;
    look::begin(tx, drawing.challenge, drawing.host).await
}

/// Draws challenges of hosts that are locked and have none of these kinds open.
async fn insert_all(tx: &mut PgConnection, drawings: &[&Drawing<'_>]) -> Result<()> {
    let ids: Vec<Uuid> = drawings.iter().map(|drawing| drawing.challenge.0).collect();
    let hosts: Vec<Uuid> = drawings.iter().map(|drawing| drawing.host.0).collect();
    let kinds: Vec<String> = drawings.iter().map(|drawing| drawing.kind.as_str().to_owned()).collect();
    let causes: Vec<String> = drawings.iter().map(|drawing| drawing.cause.as_str().to_owned()).collect();
    let bodies: Vec<Value> = drawings.iter().map(|drawing| drawing.body.clone()).collect();
    let claims: Vec<Value> =
        drawings.iter().map(|drawing| error::write_json(drawing.claims)).collect::<Result<_>>()?;
    let shadows: Vec<bool> = drawings.iter().map(|drawing| drawing.shadow).collect();
    let windows: Vec<Option<Uuid>> = drawings.iter().map(|drawing| drawing.window).collect();
    let leases: Vec<Option<Uuid>> =
        drawings.iter().map(|drawing| drawing.lease.map(|lease| lease.0)).collect();
    sqlx::query!(
        "insert into challenges (challenge_id, host_id, kind, cause, challenge, claims, shadow, window_id, lease_id)
         select * from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::jsonb[], $6::jsonb[], $7::bool[], $8::uuid[], $9::uuid[])",
        &ids,
        &hosts,
        &kinds,
        &causes,
        &bodies,
        &claims,
        &shadows,
        &windows as &[Option<Uuid>],
        &leases as &[Option<Uuid>]
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "insert into challenge_steps (challenge_id, step) select id, 0 from unnest($1::uuid[]) id",
        &ids
    )
    .execute(&mut *tx)
    .await?;
    look::begin_all(tx, &ids, &hosts).await
}
