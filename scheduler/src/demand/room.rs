//! What is left of a machine for the jobs that wait, and what those pay.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    CustomerId, JobId, MicroUsd,
    job::Isolation,
    rate::{charge, hourly},
};
use nave_store::WaitingJob;
use uuid::Uuid;

use super::{Limits, Rented, Shape};

/// What is left of a machine for the jobs that wait.
#[derive(Clone)]
pub(super) struct Room {
    /// The machine; nil where it is not rented yet.
    pub machine: Uuid,
    /// The job that the machine was rented for.
    job: Option<JobId>,
    /// What is left of it.
    shape: Shape,
    /// Who is on it.
    tenants: BTreeSet<CustomerId>,
    /// Who has it alone.
    reserved: Option<CustomerId>,
    /// What it has taken.
    pub jobs: BTreeSet<JobId>,
    /// What those pay in an hour.
    hourly: i128,
    /// What they pay as long as they are expected to run, within what is left of their spend caps.
    paid: i128,
}

impl Room {
    /// Those of the machines that are free, or on their way.
    pub fn of_free(rented: &[Rented]) -> impl Iterator<Item = Self> {
        let free = rented.iter().filter(|machine| machine.is_free);
        free.filter_map(|machine| Some(Self::new(machine.machine, machine.job, machine.shape.clone()?)))
    }

    /// Gives the jobs for which machines were rented their rooms, before others take them.
    pub fn welcome<'j>(rooms: &mut [Self], jobs: impl Iterator<Item = &'j WaitingJob>) {
        let jobs: BTreeMap<JobId, &WaitingJob> = jobs.map(|job| (job.job, job)).collect();
        for room in rooms {
            if let Some(job) = room.job.and_then(|job| jobs.get(&job)) {
                room.take(job);
            }
        }
    }

    pub fn new(machine: Uuid, job: Option<JobId>, shape: Shape) -> Self {
        let (tenants, jobs) = (BTreeSet::new(), BTreeSet::new());
        Self { machine, job, shape, tenants, reserved: None, jobs, hourly: 0, paid: 0 }
    }

    /// Whether the job has a place here, which it then has taken.
    pub fn take(&mut self, job: &WaitingJob) -> bool {
        let request = &job.request;
        let is_other = |customer: &CustomerId| *customer != job.customer;
        let wants_alone = request.isolation == Isolation::Host;
        if self.reserved.as_ref().is_some_and(is_other) || wants_alone && self.tenants.iter().any(is_other) {
            return false;
        }
        let mut models =
            request.resources.gpu.as_ref().map_or(vec![None], |gpu| gpu.choices().collect()).into_iter();
        if !models.any(|model| self.shape.takes(job, model)) {
            return false;
        }
        let wanted = &request.resources;
        self.shape.cpu.0 -= wanted.milli_cpu.0;
        self.shape.memory.0 -= wanted.memory.0;
        self.shape.disk.0 -= wanted.disk.0;
        self.shape.devices -= wanted.gpu.as_ref().map_or(0, |gpu| u32::from(gpu.count));
        self.tenants.insert(job.customer);
        if wants_alone {
            self.reserved = Some(job.customer);
        }
        let (size, rate) = (wanted.size(), self.shape.rate);
        let expected = request.expected().min(request.limits.run_ms);
        let paid = charge(size, expected, rate).unwrap_or(job.left).min(job.left);
        self.jobs.insert(job.job);
        self.hourly += i128::from(hourly(size, rate).unwrap_or_default().0);
        self.paid += i128::from(paid.0);
        true
    }

    /// Whether the least that a job can ask for is not left.
    pub fn is_full(&self) -> bool {
        self.shape.cpu.0 <= 0 || self.shape.memory.0 <= 0 || self.shape.disk.0 <= 0
    }

    /// Whether what it has taken pays the operator's share of what it costs: in an hour, and in all of what a machine
    /// costs while it boots, proves what it has, and is idle before it goes back.
    pub fn pays(&self, price: MicroUsd, limits: &Limits) -> bool {
        let share = i128::from(price.0) * i128::from(limits.share_percent);
        let beside = i128::from(Limits::BOOT.0) + i128::from(limits.idle.0);
        self.hourly * 100 >= share && self.paid * 100 * 3_600_000 >= share * beside
    }
}
