//! Which machines stay: those that work, or that jobs which wait have a room on, as long as they are worth it.

use std::collections::BTreeMap;

use nave_domain::{JobId, MicroUsd, Millis, Timestamp, host::HostState};
use nave_store::{MachineDemand, RentedMachine, WaitingJob};
use uuid::Uuid;

use super::{Limits, Rented, asks, room::Room};

/// How long a machine may take from its enrolment until it has proven what it claims.
pub(super) const PROVE_MAX: Millis = Millis(1_800_000);
/// How long a machine stays that is not ready and that no job waits for any more.
pub(super) const UNUSED: Millis = Millis(30_000);
/// How long, since it was wanted, a machine that is ready waits for the others of a gang: a bit longer than these
/// may take to boot and prove what they have.
pub(super) const GANG_MAX: Millis = Millis(3_600_000);
/// The longest time for which a quote is held.
pub(super) const HOLD_MAX: Millis = Millis(300_000);

/// Who of those that wait has a room on a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Nobody.
    #[default]
    None,
    /// Jobs.
    Jobs,
    /// Jobs of a gang, which needs other machines, too.
    Gang,
}

/// For whom machines are still needed, as long as they are free or on their way; those for nobody are left out.
#[must_use]
pub fn needs(jobs: &[WaitingJob], rented: &[Rented], limits: &Limits) -> BTreeMap<Uuid, Need> {
    let mut rooms: Vec<Room> = Room::of_free(rented).collect();
    let jobs: Vec<&WaitingJob> = jobs.iter().filter(|job| asks(job, limits)).collect();
    Room::welcome(&mut rooms, jobs.iter().copied());
    let mut needs = BTreeMap::new();
    for job in jobs {
        let has = rooms.iter().find(|room| room.jobs.contains(&job.job)).map(|room| room.machine);
        let takes = || rooms.iter_mut().find_map(|room| room.take(job).then_some(room.machine));
        let Some(machine) = has.or_else(takes) else { continue };
        let need = if job.gang.is_some() { Need::Gang } else { Need::Jobs };
        let of = needs.entry(machine).or_default();
        *of = need.max(*of);
    }
    needs
}

/// Whether a machine is wanted, for whom it is needed; `is_asked` says whether its cloud was asked for it.
#[must_use]
pub fn wanted(
    machine: &RentedMachine,
    need: Need,
    is_asked: bool,
    limits: &Limits,
    now: Timestamp,
) -> MachineDemand {
    let since = match machine.row.demand {
        MachineDemand::Idle(since) => since,
        MachineDemand::Wanted | MachineDemand::Released => now,
    };
    let idle_for = |most: Millis| {
        if now.since(since) < most { MachineDemand::Idle(since) } else { MachineDemand::Released }
    };
    let Some(host) = machine.host else {
        return match need {
            _ if !is_asked && !machine.job_waits => MachineDemand::Released,
            Need::None => idle_for(UNUSED),
            Need::Jobs | Need::Gang => MachineDemand::Wanted,
        };
    };
    if machine.is_busy {
        return MachineDemand::Wanted;
    }
    let is_new = now.since(machine.row.enrolled_at.unwrap_or(now)) < PROVE_MAX;
    match host {
        HostState::Enrolled | HostState::Verifying if need == Need::None && !machine.has_worked => {
            idle_for(UNUSED)
        }
        HostState::Enrolled | HostState::Verifying if is_new => MachineDemand::Wanted,
        HostState::Enrolled | HostState::Verifying | HostState::Ready | HostState::Suspect => {
            if need == Need::Gang && now.since(machine.row.made_at) < GANG_MAX {
                MachineDemand::Wanted
            } else if machine.is_held {
                // Whoever asks for one quote after the other pays for nothing.
                idle_for(Millis(limits.idle.0.saturating_add(HOLD_MAX.0)))
            } else {
                MachineDemand::Idle(since)
            }
        }
        HostState::Refused | HostState::Draining | HostState::Gone | HostState::Banned => {
            MachineDemand::Released
        }
    }
}

/// Whether jobs have paid the operator's share of what a machine of this price has cost of late, or it is too new for
/// that to be known, or waits for others of a gang. One that is not worth it takes no new jobs.
#[must_use]
pub fn is_paid_for(
    machine: &RentedMachine,
    need: Need,
    price: MicroUsd,
    limits: &Limits,
    now: Timestamp,
) -> bool {
    let Some(enrolled_at) = machine.row.enrolled_at else { return true };
    if need == Need::Gang && now.since(machine.row.made_at) < GANG_MAX {
        return true;
    }
    let span = RentedMachine::PAID_SPAN.0;
    let share = i128::from(price.0) * i128::from(limits.share_percent) * i128::from(span);
    now.since(enrolled_at).0 < Limits::BOOT.0 + span || i128::from(machine.paid.0) * 100 * 3_600_000 >= share
}

/// What machines have lost, of what each has cost and what jobs on it were charged.
#[must_use]
pub fn lost(accounts: impl Iterator<Item = (MicroUsd, MicroUsd)>) -> MicroUsd {
    MicroUsd(accounts.fold(0, |sum, (cost, charged)| sum.saturating_add(cost.0).saturating_sub(charged.0)))
}

/// What jobs are told for whose customer no more machines are rented.
#[must_use]
pub fn not_rented(jobs: &[WaitingJob], limits: &Limits) -> Vec<(JobId, String)> {
    let refused = jobs.iter().filter(|job| asks(job, limits) && job.in_vain >= limits.unused);
    let told = refused.map(|job| {
        let why = format!(
            "no machine is rented for it: {} were within a day, for jobs of yours that ended before they ran",
            job.in_vain
        );
        (job.job, why)
    });
    told.collect()
}

/// When a machine stops taking new jobs, so that those it has end before it does: after half of its life.
#[must_use]
pub fn drains_from(made_at: Timestamp, dead_man: Timestamp) -> Timestamp {
    made_at.after(Millis(dead_man.since(made_at).0 / 2))
}
