//! The scheduling role: a thin shell around the planner and the watch.

use std::{collections::BTreeSet, future::Future, time::Duration};

use nave_crash_point::crash_point;
use nave_domain::{HostId, LeaseId};
use nave_store::{Changes, OpenLease, Placement, QuoteAnswer, Store, StoreError};
use tokio::{
    sync::broadcast,
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};

use crate::{
    planner::{Plan, Planner, Quoted, Reason},
    watch::{Decision, Patience, watch},
};

/// Longest time between two looks at the market.
const TICK: Duration = Duration::from_millis(500);
/// Time between two looks that count how much of each class is leased.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// Jobs that are placed in one transaction.
const BATCH: usize = 128;

/// Schedules until `shutdown`.
///
/// # Errors
/// None so far: what fails is logged and tried again.
pub async fn run(patience: Patience, store: Store, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    // Neither waits for the other: a long plan delays no end of a lease that is lost.
    tokio::select! {
        () = shutdown => {}
        () = place_for_ever(&store) => {}
        () = guard_for_ever(&store, &patience) => {}
    }
    Ok(())
}

async fn place_for_ever(store: &Store) {
    let mut changes = store.listen().subscribe();
    let (mut planner, mut counted) = (Planner::default(), None);
    loop {
        // One look answers every announcement before it: many jobs at once are not many looks.
        changes = changes.resubscribe();
        if let Err(error) = place(store, &mut planner, &mut counted).await {
            tracing::warn!(%error, "could not schedule; trying again");
        }
        supply_changed(&mut changes).await;
    }
}

async fn guard_for_ever(store: &Store, patience: &Patience) {
    loop {
        if let Err(error) = guard(store, patience).await {
            tracing::warn!(%error, "could not guard leases; trying again");
        }
        sleep(TICK).await;
    }
}

async fn supply_changed(changes: &mut broadcast::Receiver<Changes>) {
    let wait = async {
        while let Ok(Changes::Job(_) | Changes::Host(_) | Changes::Quote(_)) = changes.recv().await {}
    };
    drop(timeout(TICK, wait).await);
}

async fn place(store: &Store, planner: &mut Planner, counted: &mut Option<Instant>) -> anyhow::Result<()> {
    let snapshot = store.snapshot().await?;
    if counted.is_none_or(|at| at.elapsed() >= COUNT_EVERY) {
        store.class_use_add(&store.class_use_now().await?).await?;
        *counted = Some(Instant::now());
    }
    let mut own = std::mem::take(planner);
    // A plan is computed at a stretch: not where others wait to go on.
    let planned = spawn_blocking(move || (own.plan(&snapshot), own)).await?;
    let plan = planned.0;
    *planner = planned.1;
    crash_point!("scheduler.plan.before_place");
    carry_out(store, &plan).await?;
    for notice in &plan.notices {
        tracing::info!(lease.id = %notice.lease, job.id = %notice.for_job, "a spot lease yields");
        store.lease_notice(notice.lease, notice.for_job).await?;
    }
    let waiting = plan.waiting.iter().map(|(job, reason)| (*job, reason.code, reason.message.as_str()));
    store.jobs_wait(waiting).await?;
    for (job, Reason { code, message }) in &plan.failed {
        match store.job_fail_queued(*job, code, message).await {
            Ok(()) => tracing::info!(job.id = %job, reason = code, "a job could not be placed"),
            Err(StoreError::Stale(_)) => {}
            Err(error @ StoreError::Database(_)) => return Err(error.into()),
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
    for together in plan.placements.chunk_by(|one, next| one.gang == next.gang) {
        if together.iter().any(|placement| placement.gang.is_some()) {
            place_gang(store, together, &mut moved).await?;
        } else {
            for batch in together.chunks(BATCH) {
                place_batch(store, batch, &mut moved).await?;
            }
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

async fn place_gang(
    store: &Store,
    gang: &[Placement],
    moved: &mut BTreeSet<HostId>,
) -> Result<(), StoreError> {
    let hosts = gang.iter().map(|placement| placement.host);
    if hosts.clone().any(|host| moved.contains(&host)) || !is_placed(gang, store.gang_place(gang).await)? {
        moved.extend(hosts);
    }
    Ok(())
}

/// Places jobs that have nothing to do with one another; where one of them is in the way, the others by halves.
async fn place_batch(
    store: &Store,
    batch: &[Placement],
    moved: &mut BTreeSet<HostId>,
) -> Result<(), StoreError> {
    let mut todo = vec![batch.to_vec()];
    while let Some(mut some) = todo.pop() {
        some.retain(|placement| !moved.contains(&placement.host));
        let placed = match some.as_slice() {
            [] => continue,
            [one] => is_placed(&some, store.gang_place(std::slice::from_ref(one)).await)?,
            _ => is_placed(&some, store.batch_place(&some).await)?,
        };
        match (placed, some.as_slice()) {
            (true, _) => {}
            (false, [one]) => drop(moved.insert(one.host)),
            (false, _) => {
                let later = some.split_off(some.len() / 2);
                todo.extend([later, some]);
            }
        }
    }
    Ok(())
}

/// Whether jobs were placed.
fn is_placed(placements: &[Placement], leases: Result<Vec<LeaseId>, StoreError>) -> Result<bool, StoreError> {
    match leases {
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
    store.notices_clear().await?;
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
