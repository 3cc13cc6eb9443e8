//! What holds for every plan over every snapshot.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    Bytes, HostId, MicroUsd, MilliCpu, Millis, Timestamp,
    host::Device,
    job::GpuRequest,
    rate::{affordable, charge},
};
use nave_scheduler::planner::{Plan, plan};
use nave_store::{Placement, QueuedJob, Snapshot, SupplyHost};
use proptest::{collection::vec, option, prelude::*};

use crate::supply::{NOW, device, host, host_id, job, snapshot};

prop_compose! {
    fn any_host()(
        milli_cpu in 0..16_000_i64, memory in 0..64_i64, disk in 0..64_i64, price in 0..9_000_000_i64,
        sizes in vec(1..4_i64, 0..5), used in (0..16_000_i64, 0..64_i64, 0..64_i64), first_used in any::<bool>(),
    ) -> SupplyHost {
        let mut host = host();
        host.rate.vcpu_hour = MicroUsd(price);
        host.inventory.milli_cpu = MilliCpu(milli_cpu);
        host.inventory.memory = Bytes(memory * Bytes::GIB);
        host.inventory.disk = Bytes(disk * Bytes::GIB);
        host.inventory.devices = sizes.iter().enumerate().map(|(n, size)| device(n, size * 20)).collect();
        host.milli_cpu_used = MilliCpu(used.0.min(milli_cpu));
        host.memory_used = Bytes(used.1.min(memory) * Bytes::GIB);
        host.disk_used = Bytes(used.2.min(disk) * Bytes::GIB);
        host.devices_used = host.inventory.devices.iter().take(first_used.into()).map(|d| d.uuid.clone()).collect();
        host
    }
}

prop_compose! {
    fn any_job()(
        milli_cpu in 10..8_000_i64, memory in 1..16_i64, disk in 1..16_i64, left in 0..5_000_000_i64,
        gpu in option::of((1..4_u8, 0..80_i64)), failed in vec(1..5_u128, 0..3), waited in 0..20_000_i64,
        queue_ms in 1..30_000_i64, run_ms in 1..100_000_i64,
    ) -> QueuedJob {
        let mut job = job(0);
        let wanted = &mut job.request.resources;
        wanted.milli_cpu = MilliCpu(milli_cpu);
        wanted.memory = Bytes(memory * Bytes::GIB);
        wanted.disk = Bytes(disk * Bytes::GIB);
        wanted.gpu = gpu.map(|(count, gib)| GpuRequest { count, vram: Bytes(gib * Bytes::GIB), ..GpuRequest::default() });
        job.request.limits.queue_ms = Millis(queue_ms);
        job.request.limits.run_ms = Millis(run_ms);
        job.left = MicroUsd(left);
        job.failed_on = failed.into_iter().map(host_id).collect();
        job.queued_at = Timestamp(NOW.0 - waited);
        job
    }
}

prop_compose! {
    fn any_snapshot()(mut jobs in vec(any_job(), 0..25), hosts in vec(any_host(), 0..5)) -> Snapshot {
        for (number, job) in (1..).zip(&mut jobs) {
            job.job = crate::supply::job_id(number);
        }
        snapshot(jobs, hosts)
    }
}

/// The hosts once every placement is made, each checked as it is made.
fn carry_out(snapshot: &Snapshot, plan: &Plan) -> BTreeMap<HostId, SupplyHost> {
    let mut hosts = snapshot.hosts.clone();
    for placement in &plan.placements {
        let host = hosts.get_mut(&placement.host).expect("a host of the snapshot");
        assert_eq!(placement.generation, host.generation, "the store would refuse it");
        host.generation += 1;
        host.milli_cpu_used.0 += placement.size.milli_cpu.0;
        host.memory_used.0 += placement.size.memory.0;
        host.disk_used.0 += placement.disk.0;
        for device in &placement.devices {
            assert!(!host.devices_used.contains(device), "{device} is given twice");
            host.devices_used.push(device.clone());
        }
        assert!(host.milli_cpu_used <= host.inventory.milli_cpu, "CPU is oversold: {placement:?}");
        assert!(host.memory_used <= host.inventory.memory, "memory is oversold: {placement:?}");
        assert!(host.disk_used <= host.inventory.disk, "disk is oversold: {placement:?}");
    }
    hosts
}

fn assert_met(placement: &Placement, job: &QueuedJob, host: &SupplyHost) {
    let wanted = &job.request.resources;
    assert_eq!((placement.size, placement.disk), (wanted.size(), wanted.disk));
    assert_eq!(placement.rate, host.rate);
    assert!(placement.run_max <= job.request.limits.run_ms);
    let cost = charge(placement.size, placement.run_max, placement.rate);
    assert!(cost.expect("in range") <= job.left, "the spend cap could be exceeded");
    let device = |uuid: &String| -> &Device {
        host.inventory.devices.iter().find(|device| device.uuid == *uuid).expect("a device of that host")
    };
    assert_eq!(placement.devices.len(), wanted.gpu.as_ref().map_or(0, |gpu| gpu.count.into()));
    for uuid in &placement.devices {
        assert!(device(uuid).vram >= wanted.gpu.as_ref().expect("a wish for GPUs").vram);
    }
}

fn fits(host: &SupplyHost, job: &QueuedJob) -> bool {
    let wanted = &job.request.resources;
    let free = |device: &&Device| {
        wanted.gpu.as_ref().is_some_and(|gpu| device.vram >= gpu.vram)
            && !host.devices_used.contains(&device.uuid)
    };
    host.milli_cpu_used.0 + wanted.milli_cpu.0 <= host.inventory.milli_cpu.0
        && host.memory_used.0 + wanted.memory.0 <= host.inventory.memory.0
        && host.disk_used.0 + wanted.disk.0 <= host.inventory.disk.0
        && host.inventory.devices.iter().filter(free).count()
            >= wanted.gpu.as_ref().map_or(0, |gpu| gpu.count.into())
}

/// Whether the job can pay for a second, or for all it may run.
fn pays(host: &SupplyHost, job: &QueuedJob) -> bool {
    let least = job.request.limits.run_ms.min(Millis(1_000));
    affordable(job.request.resources.size(), job.left, host.rate).is_none_or(|paid| paid >= least)
}

/// The same market, its devices listed the other way round and its maps filled from the end.
fn turned_round(snapshot: &Snapshot) -> Snapshot {
    let hosts = snapshot.hosts.iter().rev().map(|(id, host)| {
        let mut host = host.clone();
        host.inventory.devices.reverse();
        host.devices_used.reverse();
        (*id, host)
    });
    Snapshot { hosts: hosts.collect(), ..snapshot.clone() }
}

proptest! {
    #[test]
    fn a_plan_never_oversells_and_gives_every_job_what_it_asked_for(snapshot in any_snapshot()) {
        let plan = plan(&snapshot);
        carry_out(&snapshot, &plan);
        for placement in &plan.placements {
            let job = snapshot.jobs.iter().find(|job| job.job == placement.job).expect("a job that waits");
            assert_met(placement, job, &snapshot.hosts[&placement.host]);
        }
    }

    #[test]
    fn a_plan_says_of_every_job_exactly_once_what_becomes_of_it(snapshot in any_snapshot()) {
        let plan = plan(&snapshot);
        let placed = plan.placements.iter().map(|placement| placement.job);
        let rest = plan.waiting.iter().chain(&plan.failed).map(|(job, _)| *job);
        let mut all: Vec<_> = placed.chain(rest).collect();
        all.sort();
        prop_assert_eq!(all, snapshot.jobs.iter().map(|job| job.job).collect::<Vec<_>>());
    }

    #[test]
    fn no_job_waits_for_capacity_that_is_there(snapshot in any_snapshot()) {
        let plan = plan(&snapshot);
        let hosts = carry_out(&snapshot, &plan);
        let waiting: BTreeSet<_> = plan
            .waiting
            .iter()
            .filter(|(_, reason)| reason.code != "backing_off")
            .map(|(job, _)| *job)
            .collect();
        for job in snapshot.jobs.iter().filter(|job| waiting.contains(&job.job)) {
            prop_assert!(!hosts.values().any(|host| fits(host, job) && pays(host, job)), "{:?} would fit", job);
        }
    }

    #[test]
    fn the_same_snapshot_gives_the_same_plan_however_it_was_put_together(snapshot in any_snapshot()) {
        let first = plan(&snapshot);
        prop_assert_eq!(&plan(&snapshot.clone()), &first);
        prop_assert_eq!(&plan(&turned_round(&snapshot)), &first);
    }
}
