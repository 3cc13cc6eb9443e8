//! The scheduling role: a thin shell around the planner and the watch.

use std::{collections::BTreeSet, future::Future, time::Duration};

use nave_crash_point::crash_point;
use nave_store::{Changes, OpenLease, Placement, QuoteAnswer, Store, StoreError};
use tokio::{sync::broadcast, time::timeout};

use crate::{
    planner::{Plan, Quoted, Reason, plan},
    watch::{Decision, Patience, watch},
};

/// Longest time between two looks at the market.
const TICK: Duration = Duration::from_millis(500);

/// Schedules until `shutdown`.
///
/// # Errors
/// None so far: what fails is logged and tried again.
pub async fn run(patience: Patience, store: Store, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let mut changes = store.listen().subscribe();
    tokio::pin!(shutdown);
    loop {
        // One look answers every announcement before it: many jobs at once are not many looks.
        changes = changes.resubscribe();
        if let Err(error) = look(&store, &patience).await {
            tracing::warn!(%error, "could not schedule; trying again");
        }
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            () = supply_changed(&mut changes) => {}
        }
    }
}

async fn supply_changed(changes: &mut broadcast::Receiver<Changes>) {
    let wait = async {
        while let Ok(Changes::Job(_) | Changes::Host(_) | Changes::Quote(_)) = changes.recv().await {}
    };
    drop(timeout(TICK, wait).await);
}

async fn look(store: &Store, patience: &Patience) -> Result<(), StoreError> {
    // What keeps jobs from being placed does not keep those that run from being guarded.
    let placed = place(store).await;
    guard(store, patience).await.and(placed)
}

async fn place(store: &Store) -> Result<(), StoreError> {
    let plan = plan(&store.snapshot().await?);
    crash_point!("scheduler.plan.before_place");
    carry_out(store, &plan).await?;
    for (job, Reason { code, message }) in &plan.waiting {
        store.job_waits(*job, code, message).await?;
    }
    for (job, Reason { code, message }) in &plan.failed {
        match store.job_fail_queued(*job, code, message).await {
            Ok(()) => tracing::info!(job.id = %job, reason = code, "a job could not be placed"),
            Err(StoreError::Stale(_)) => {}
            Err(error @ StoreError::Database(_)) => return Err(error),
            Err(error) => tracing::error!(job.id = %job, %error, "could not fail a job"),
        }
    }
    Ok(())
}

/// Places what a plan decided, then answers those who ask for quotes. Where that fails for a host, whatever
/// follows there is left to the next look: it counts on the host's generation, which somebody else's
/// change may have reached instead. A gang is placed as a whole or not at all.
///
/// # Errors
/// When the database does not answer.
pub async fn carry_out(store: &Store, plan: &Plan) -> Result<(), StoreError> {
    let mut moved = BTreeSet::new();
    for together in plan.placements.chunk_by(|one, next| one.gang.is_some() && one.gang == next.gang) {
        let hosts = together.iter().map(|placement| placement.host);
        if hosts.clone().any(|host| moved.contains(&host)) || !place_together(store, together).await? {
            moved.extend(hosts);
        }
    }
    for quoted in &plan.quotes {
        let host = match &quoted.answer {
            QuoteAnswer::Place(placement) => Some(placement.host),
            QuoteAnswer::None(..) => None,
        };
        let has_moved = host.is_some_and(|host| moved.contains(&host));
        if !has_moved && !answer(store, quoted).await? {
            moved.extend(host);
        }
    }
    Ok(())
}

/// Whether the jobs were placed.
async fn place_together(store: &Store, placements: &[Placement]) -> Result<bool, StoreError> {
    match store.gang_place(placements).await {
        Ok(leases) => {
            for (placement, lease) in placements.iter().zip(leases) {
                tracing::info!(job.id = %placement.job, host.id = %placement.host, lease.id = %lease, "placed a job");
            }
            return Ok(true);
        }
        Err(StoreError::Stale(_)) => tracing::debug!("the market moved on; planning anew"),
        Err(error @ StoreError::Database(_)) => return Err(error),
        Err(error) => {
            let job = placements.first().map(|placement| tracing::field::display(placement.job));
            tracing::error!(job.id = job, %error, "could not place a job");
        }
    }
    Ok(false)
}

/// Whether a wish for a quote was answered.
async fn answer(store: &Store, Quoted { quote, answer, considered }: &Quoted) -> Result<bool, StoreError> {
    match store.quote_answer(*quote, answer, considered).await {
        Ok(()) => return Ok(true),
        Err(StoreError::Stale(_)) => {}
        Err(error @ StoreError::Database(_)) => return Err(error),
        Err(error) => tracing::error!(quote.id = %quote, %error, "could not answer a quote"),
    }
    Ok(false)
}

async fn guard(store: &Store, patience: &Patience) -> Result<(), StoreError> {
    if store.hosts_suspect(patience.suspect).await? > 0 {
        tracing::info!("a host has fallen silent");
    }
    for lease in &store.leases_open().await? {
        match act(store, lease, patience).await {
            Err(error @ StoreError::Database(_)) => return Err(error),
            Err(error) => tracing::error!(lease.id = %lease.lease, %error, "could not guard a lease"),
            Ok(()) => {}
        }
    }
    Ok(())
}

async fn act(store: &Store, lease: &OpenLease, patience: &Patience) -> Result<(), StoreError> {
    match watch(lease, patience) {
        None => Ok(()),
        Some(Decision::Stop(reason)) => {
            tracing::info!(lease.id = %lease.lease, reason = reason.as_str(), "ending a lease");
            store.lease_stop(lease.host, lease.lease, reason).await
        }
        Some(Decision::Lose) => {
            tracing::warn!(lease.id = %lease.lease, host.id = %lease.host, "a host has lost a lease");
            crash_point!("scheduler.guard.before_lose");
            if lease.silent > patience.lost {
                store.lease_lost_silent(lease.host, lease.lease, patience.lost).await
            } else {
                store.lease_lost(lease.host, lease.lease).await
            }
        }
    }
}
