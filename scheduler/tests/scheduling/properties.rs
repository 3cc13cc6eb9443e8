//! What holds for every plan over every snapshot.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    Bytes, HostId, MicroUsd, MilliCpu, Millis, Timestamp,
    host::{Device, Term, Trust},
    job::{Egress, GpuRequest, Isolation, TermWish},
    rate::{affordable, charge, gpu_hourly},
    wish::{Known, unmet},
};
use nave_scheduler::planner::{Plan, plan};
use nave_store::{Baselines, Placement, QueuedJob, Snapshot, SupplyHost};
use proptest::{collection::vec, option, prelude::*};

use crate::supply::{NOW, customer_id, device, host, host_id, job, snapshot};

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

const REGIONS: [&str; 2] = ["eu", "us"];
const MODELS: [&str; 3] = ["NVIDIA A100", "NVIDIA H100 80GB", "NVIDIA L4"];

prop_compose! {
    pub fn any_place()(
        mut host in any_host(), region in 0..3_usize, on_demand in any::<bool>(), trust in 0..4_usize, closed in any::<bool>(),
        miner in 0..2_u8, models in vec((0..3_usize, option::of(0..3_usize)), 5), tenant in option::of((1..4_u128, any::<bool>())),
    ) -> SupplyHost {
        host.hotkey = format!("miner {miner}");
        host.terms.region = REGIONS.get(region).and_then(|name| name.parse().ok());
        host.terms.term = if on_demand { Term::OnDemand } else { Term::Spot };
        host.terms.trust = Trust::ALL[trust];
        if closed { host.inventory.egress = vec![Egress::None]; }
        for (device, (model, class)) in host.inventory.devices.iter_mut().zip(models) {
            device.model = MODELS[model].into();
            if let Some(class) = class {
                host.classes.insert(device.uuid.clone(), ["a100-80", "h100-sxm", "l4"][class].into());
            }
        }
        if let Some((tenant, alone)) = tenant {
            host.tenants.push((customer_id(tenant), alone));
        }
        host
    }
}

prop_compose! {
    pub fn any_wish()(
        mut job in any_job(), customer in 1..4_u128, region in 0..4_usize, term in 0..3_usize, trusting in any::<bool>(),
        alone in 0..4_u8, models in vec(0..3_usize, 0..3), vram_max in option::of(20..80_i64), apart in 0..6_u128,
        (most, offline, grouped) in (option::of(0..9_000_000_i64), any::<bool>(), any::<bool>()),
    ) -> QueuedJob {
        job.customer = customer_id(customer);
        let request = &mut job.request;
        request.region = REGIONS.get(region).and_then(|name| name.parse().ok());
        request.term = TermWish::ALL[term];
        if trusting { request.trust = Trust::ALL.into(); }
        if alone == 0 { request.isolation = Isolation::Host; }
        request.max_price = most.map(MicroUsd);
        if offline { request.egress = Egress::None; }
        if apart == 0 { request.apart = Some(uuid::Uuid::from_u128(1)); }
        else if grouped { request.group = Some("g".into()); }
        if let Some(gpu) = &mut request.resources.gpu {
            gpu.models = models.iter().map(|model| ["A100", "H100", "l4"][*model].to_owned()).collect();
            gpu.vram_max = vram_max.map(|gib| Bytes(gib * Bytes::GIB).max(gpu.vram));
        }
        job
    }
}

prop_compose! {
    fn any_market()(
        mut jobs in vec(any_wish(), 0..25), hosts in vec(any_place(), 0..6), size in 2..4_u8, in_gangs in 0..5_usize,
        clouds in vec(option::of(0..9_000_000_i64), 3),
    ) -> Snapshot {
        for (number, job) in (1..).zip(&mut jobs) {
            job.job = crate::supply::job_id(number);
        }
        // The first ones are gangs.
        for gang in jobs.chunks_mut(usize::from(size)).take(in_gangs) {
            let (first, customer) = (gang[0].job, gang[0].customer);
            for job in gang {
                (job.customer, job.gang) = (customer, Some(first));
                (job.request.group, job.request.gang, job.request.apart) = (Some("g".into()), Some(size), None);
            }
        }
        let asked = ["a100-80", "h100-sxm", "l4"].into_iter().zip(clouds);
        let baselines =
            asked.filter_map(|(class, price)| Some(((class.to_owned(), None), MicroUsd(price?)))).collect();
        Snapshot { baselines, ..snapshot(jobs, hosts) }
    }
}

/// Whether a place is all that a job wishes, said once more and in another way than the planner does.
fn assert_wished(placement: &Placement, job: &QueuedJob, host: &SupplyHost, baselines: &Baselines) {
    let request = &job.request;
    assert_eq!(unmet(request, &host.terms, host.rate), None);
    assert!(host.inventory.egress.contains(&request.egress));
    assert!(request.group.is_none() || host.inventory.egress.contains(&Egress::Public));
    let mut strangers = host.tenants.iter().filter(|(tenant, _)| *tenant != job.customer);
    assert!(strangers.all(|(_, alone)| !*alone && request.isolation != Isolation::Host));
    let Some(gpu) = &request.resources.gpu else { return };
    let device =
        |uuid: &String| host.inventory.devices.iter().find(|device| device.uuid == *uuid).expect("a device");
    let all_are = |model: Option<&str>| {
        placement.devices.iter().map(device).all(|device| {
            let models = host.models.get(&device.uuid).map(Vec::as_slice).unwrap_or_default();
            let class = host.classes.get(&device.uuid).map(|class| (class.as_str(), models));
            model.is_none_or(|model| Known::of(&device.model, class).is(model))
        })
    };
    assert!(placement.devices.iter().all(|uuid| gpu.fits(device(uuid).vram)));
    let is_bid = request.max_price.is_some() || host.terms.trust == Trust::Cloud;
    let clouds = |uuid| baselines.of(host.classes.get(uuid)?, host.terms.region.as_ref());
    let price = gpu_hourly(placement.size, placement.rate).expect("it has GPUs");
    assert!(is_bid || placement.devices.iter().filter_map(clouds).all(|clouds| price <= clouds));
    assert!(gpu.choices().any(all_are));
}

fn again(snapshot: &Snapshot) -> Plan {
    plan(snapshot)
}

proptest! {
    #[test]
    fn every_placement_is_all_that_was_wished_and_gangs_are_whole(snapshot in any_market()) {
        let plan = plan(&snapshot);
        carry_out(&snapshot, &plan);
        let mut hosts = snapshot.hosts.clone();
        let mut apart = BTreeSet::new();
        let mut gangs: BTreeMap<_, usize> = BTreeMap::new();
        for placement in &plan.placements {
            let job = snapshot.jobs.iter().find(|job| job.job == placement.job).expect("a job that waits");
            let host = hosts.get_mut(&placement.host).expect("a host");
            assert_met(placement, job, host);
            assert_wished(placement, job, host, &snapshot.baselines);
            host.tenants.push((job.customer, job.request.isolation == Isolation::Host));
            if job.request.apart.is_some() {
                prop_assert!(apart.insert((job.customer, host.hotkey.clone())), "two with one miner");
            }
            if let Some(gang) = job.gang { *gangs.entry(gang).or_default() += 1; }
        }
        for (gang, members) in gangs {
            let size = snapshot.jobs.iter().find(|job| job.job == gang).and_then(|job| job.request.gang);
            prop_assert_eq!(Some(members), size.map(usize::from), "a part of a gang was placed");
        }
        let placed = plan.placements.iter().map(|placement| placement.job);
        let mut all: Vec<_> = placed.chain(plan.waiting.iter().chain(&plan.failed).map(|(job, _)| *job)).collect();
        all.sort();
        prop_assert_eq!(all, snapshot.jobs.iter().map(|job| job.job).collect::<Vec<_>>());
        prop_assert_eq!(again(&turned_round(&snapshot)), plan);
    }
}
