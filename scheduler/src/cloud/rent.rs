//! What is wanted of clouds: machines for jobs that wait, and no machine that has nothing to do.

use std::sync::atomic::Ordering;

use nave_clouds::{Row, ledger::Broken, machine::Stage, provider::MachineId};
use nave_crash_point::crash_point;
use nave_domain::{MicroUsd, Millis, Timestamp, host::HostState};
use nave_store::{
    AttemptFault, Departure, MachineAccount, MachineAttempt, MachineDemand, NewMachine, RentSnapshot,
    RentedMachine, StoreError, WaitingJob,
};
use uuid::Uuid;

use super::{
    Role,
    ledger::{known, read},
    stops::refused,
};
use crate::demand::{
    Need, Purchase, Rented, Shape, demand, drains_from, is_paid_for, lost, needs, not_rented, wanted,
};

/// The time over which losses are summed.
pub const DAY: Millis = Millis(86_400_000);

/// Looks once at what waits and what is rented.
pub(super) async fn look(role: &Role) -> Result<(), Broken> {
    let snapshot = role.store.rent_snapshot(Millis::ZERO).await?;
    let rented = rented(role, &snapshot);
    let needs = needs(&snapshot.jobs, &rented, &role.limits);
    for machine in snapshot.machines.iter().filter(|machine| machine.row.ending.is_none()) {
        let need = needs.get(&machine.row.machine).copied().unwrap_or_default();
        let Some(row) = role.readable(machine.row.machine, read(&machine.row)) else { continue };
        tend(role, machine, &row, need, snapshot.now).await?;
    }
    tell(role, &snapshot).await?;
    buy(role, &snapshot, &rented).await
}

/// Tells jobs why no machine is rented for them, where that is another reason than what they wait for.
async fn tell(role: &Role, snapshot: &RentSnapshot) -> Result<(), Broken> {
    let told = not_rented(&snapshot.jobs, &role.limits);
    let is_told = |job: &WaitingJob| {
        let why = told.iter().find(|(id, _)| *id == job.job).map(|(_, why)| why);
        why == job.not_rented.as_ref()
    };
    if !snapshot.jobs.iter().all(is_told) {
        role.store.jobs_not_rented(&told).await?;
    }
    Ok(())
}

/// Says whether a machine is wanted, and lets its host take no new jobs where it is not paid for, and once half of its
/// life is over.
async fn tend(
    role: &Role,
    machine: &RentedMachine,
    row: &Row,
    need: Need,
    now: Timestamp,
) -> Result<(), Broken> {
    let is_drained = role.is_drained(row.cloud);
    // What was let go before it was a host stays so.
    let is_let_go = is_drained || machine.row.demand == MachineDemand::Released;
    let demand = if is_let_go && machine.row.host.is_none() {
        MachineDemand::Released
    } else {
        wanted(machine, need, row.stage != Stage::Intended, &role.limits, now)
    };
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
    let why = if is_drained {
        "its cloud is drained"
    } else if now >= drains_from(row.made_at, row.dead_man) {
        "its end is near"
    } else if !is_paid_for(machine, need, row.price, &role.limits, now) {
        "too little of what it costs is paid"
    } else {
        return Ok(());
    };
    if let Some(host) = machine.row.host.filter(|_| takes_jobs) {
        match role.store.host_depart(None, host, Departure::End).await {
            Ok(_) => tracing::info!(host.id = %host, why, "a machine takes no new jobs"),
            Err(StoreError::Stale(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The machines that are not closed, as those that are chosen beside them must see them. One whose row cannot be read has
/// room for nobody.
fn rented(role: &Role, snapshot: &RentSnapshot) -> Vec<Rented> {
    let open = snapshot.machines.iter().filter(|machine| !machine.row.is_closed);
    let seen = |machine: &RentedMachine| {
        role.readable(machine.row.machine, read(&machine.row).and_then(|row| seen(machine, &row)))
    };
    open.filter_map(seen).collect()
}

async fn buy(role: &Role, snapshot: &RentSnapshot, rented: &[Rented]) -> Result<(), Broken> {
    let Some(market) = &role.market else { return Ok(()) };
    let offers = role.offers();
    let refused = refused(role, &market.hotkey, &offers, snapshot.now).await?;
    let purchases =
        demand(&snapshot.jobs, &offers, &role.models, rented, &refused, &role.limits, snapshot.now);
    if purchases.is_empty() || has_lost_too_much(role, &purchases, snapshot.now).await? {
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

/// Whether machines have lost within a day what they may, so that none is rented; it is said then.
async fn has_lost_too_much(role: &Role, purchases: &[Purchase], now: Timestamp) -> Result<bool, Broken> {
    let accounts = role.store.machine_accounts(DAY).await?;
    // Of a row that cannot be read counts what was written of its cost.
    let sum = |account: &MachineAccount| {
        let paid = role.readable(account.row.machine, paid(account, now));
        paid.unwrap_or((account.row.cost, account.charged))
    };
    let sums: Vec<_> = accounts.iter().map(sum).collect();
    let (lost, most) = (lost(sums.into_iter()), role.limits.loss);
    let has = lost >= most;
    if has != role.has_lost.swap(has, Ordering::Relaxed) {
        tracing::warn!(%lost, limit = %most, "machines are {}", if has {
            "rented no more: what was rented within a day has lost as much as it may"
        } else {
            "rented again: what was rented within a day has lost less than it may"
        });
    }
    let cloud = purchases.first().map(|purchase| purchase.offer.cloud.name().to_owned());
    let Some(cloud) = cloud.filter(|_| has) else { return Ok(has) };
    let message = format!(
        "nothing more is rented: machines of the last day have cost {lost} more than jobs on them paid, where \
         {most} is the most; see [limits] loss in the file of clouds"
    );
    let fault = AttemptFault { reason: "loss".to_owned(), code: "limit".to_owned(), message };
    let (call, hourly) = ("rent".to_owned(), None);
    let attempt = MachineAttempt {
        machine: None,
        cloud,
        call,
        at: now,
        times: 1,
        hourly,
        quoted: None,
        fault: Some(fault),
    };
    role.store.machine_note(&attempt).await?;
    Ok(true)
}

/// What a machine has cost and what jobs on it were charged.
///
/// # Errors
/// When its row cannot be understood.
pub fn paid(account: &MachineAccount, now: Timestamp) -> Result<(MicroUsd, MicroUsd), Broken> {
    let row = read(&account.row)?;
    Ok((row.cost(row.cloud.terms().billing, now), account.charged))
}

/// A machine as those that are chosen beside it must see it.
fn seen(machine: &RentedMachine, row: &Row) -> Result<Rented, Broken> {
    let takes_jobs = match machine.host {
        None | Some(HostState::Enrolled | HostState::Verifying | HostState::Ready | HostState::Suspect) => {
            true
        }
        Some(HostState::Refused | HostState::Draining | HostState::Gone | HostState::Banned) => false,
    };
    let shape: Option<Shape> = machine.row.shape.clone().map(serde_json::from_value).transpose()?;
    let shape = shape.map(|shape| match &machine.has {
        Some((has, proven)) => shape.proven(has, proven.as_ref()),
        None => shape,
    });
    let is_free = row.ending.is_none() && takes_jobs && !machine.is_long_busy;
    Ok(Rented {
        machine: machine.row.machine,
        job: machine.row.job,
        shape,
        price_max: row.price_max,
        is_free,
    })
}
