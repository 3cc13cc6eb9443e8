//! What is wanted of clouds: machines for jobs that wait, and no machine that has nothing to do.

use std::collections::BTreeSet;

use nave_clouds::{Row, ledger::Broken, machine::Stage, provider::MachineId};
use nave_crash_point::crash_point;
use nave_domain::{Millis, Timestamp, host::HostState};
use nave_store::{Departure, NewMachine, RentSnapshot, RentedMachine, StoreError};
use uuid::Uuid;

use super::{
    Role,
    ledger::{known, read},
};
use crate::demand::{Purchase, Refused, Rented, demand, drains_from, wanted};

/// For how long an offer that came to nothing is not tried again.
const REFUSED: Millis = Millis(600_000);

/// Looks once at what waits and what is rented.
pub async fn look(role: &Role) -> Result<(), Broken> {
    let snapshot = role.store.rent_snapshot(REFUSED).await?;
    for machine in snapshot.machines.iter().filter(|machine| machine.row.ending.is_none()) {
        tend(role, machine, snapshot.now).await?;
    }
    buy(role, &snapshot).await
}

/// Says whether a machine is wanted, and lets its host take no new jobs once half of its life is over.
async fn tend(role: &Role, machine: &RentedMachine, now: Timestamp) -> Result<(), Broken> {
    let row = read(&machine.row)?;
    let demand = wanted(machine, row.stage != Stage::Intended, now);
    if demand != machine.row.demand {
        // Who wrote the row meanwhile knows more: it is looked at again.
        role.store.machine_demand(machine.row.machine, machine.row.version, demand).await?;
        role.wake(row.cloud);
    }
    let takes_jobs = match machine.host {
        Some(HostState::Verifying | HostState::Ready | HostState::Suspect) => true,
        Some(
            HostState::Enrolled
            | HostState::Refused
            | HostState::Draining
            | HostState::Gone
            | HostState::Banned,
        )
        | None => false,
    };
    if let Some(host) =
        machine.row.host.filter(|_| takes_jobs && now >= drains_from(row.made_at, row.dead_man))
    {
        match role.store.host_depart(None, host, Departure::Drain).await {
            Ok(_) => tracing::info!(host.id = %host, "a machine takes no new jobs; its end is near"),
            Err(StoreError::Stale(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

async fn buy(role: &Role, snapshot: &RentSnapshot) -> Result<(), Broken> {
    let Some(market) = &role.market else { return Ok(()) };
    let rows: Vec<Row> =
        snapshot.machines.iter().map(|machine| read(&machine.row)).collect::<Result<_, _>>()?;
    let machines = || snapshot.machines.iter().zip(&rows);
    let open = machines().filter(|(machine, _)| !machine.row.is_closed);
    let rented = open.map(|(machine, row)| seen(machine, row)).collect::<Result<Vec<_>, _>>()?;
    let refused: BTreeSet<Refused> = machines()
        .filter(|(machine, row)| machine.row.enrolled_at.is_none() && row.ending.is_some())
        .map(|(_, row)| (row.cloud, row.offer.0.clone(), row.offer.1.clone()))
        .collect();
    let purchases = demand(&snapshot.jobs, &role.offers(), &rented, &refused, &role.limits, snapshot.now);
    if purchases.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = purchases.iter().map(|_| Uuid::now_v7()).collect();
    let dead_man = snapshot.now.after(role.limits.life);
    let wishes = purchases.iter().zip(&ids).map(|(purchase, id)| {
        Ok(NewMachine {
            machine: *id,
            cloud: purchase.offer.cloud.name(),
            known: known(&intended(purchase, *id, snapshot.now, dead_man))?,
            shape: serde_json::to_value(&purchase.shape)?,
            hotkey: &market.hotkey,
            job: purchase.job,
        })
    });
    let wishes: Vec<NewMachine<'_>> = wishes.collect::<Result<_, Broken>>()?;
    crash_point!("scheduler.rent.before_want");
    match role.store.machines_want(snapshot.seen, &wishes).await {
        Ok(()) => {}
        // Somebody else has wanted machines, perhaps for the same jobs.
        Err(StoreError::Stale(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    for (purchase, id) in purchases.iter().zip(&ids) {
        let offer = &purchase.offer;
        tracing::info!(machine.id = %MachineId(*id), job.id = %purchase.job, cloud.name = offer.cloud.name(),
            offer = offer.id, price = %offer.price, "a machine is to be rented");
        role.wake(offer.cloud);
    }
    Ok(())
}

fn intended(purchase: &Purchase, id: Uuid, now: Timestamp, dead_man: Timestamp) -> Row {
    let offer = &purchase.offer;
    let what = (offer.id.clone(), offer.region.clone());
    Row::intend(MachineId(id), offer.cloud, what, offer.price, purchase.price_max, now, dead_man)
}

/// A machine as those that are chosen beside it must see it.
fn seen(machine: &RentedMachine, row: &Row) -> Result<Rented, Broken> {
    let takes_jobs = match machine.host {
        None | Some(HostState::Enrolled | HostState::Verifying | HostState::Ready | HostState::Suspect) => {
            true
        }
        Some(HostState::Refused | HostState::Draining | HostState::Gone | HostState::Banned) => false,
    };
    let shape = machine.row.shape.clone().map(serde_json::from_value).transpose()?;
    let is_free = row.ending.is_none() && takes_jobs && !machine.is_long_busy;
    Ok(Rented { shape, price_max: row.price_max, is_free })
}
