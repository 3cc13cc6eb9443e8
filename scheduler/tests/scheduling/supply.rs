//! Snapshots to plan over.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    Bytes, CustomerId, HostId, JobId, MicroUsd, MilliCpu, Millis, Timestamp,
    host::{Device, Inventory, Runtime, Term, Trust},
    job::{Egress, GpuRequest, JobRequest},
    rate::Rate,
    wish::Terms,
};
use nave_scheduler::planner::{Plan, plan};
use nave_store::{Baselines, Past, QueuedJob, Snapshot, SupplyHost};
use uuid::Uuid;

pub const NOW: Timestamp = Timestamp(1_790_000_000_000);

/// One dollar an hour for a virtual CPU, three for a GPU.
pub const RATE: Rate =
    Rate { gpu_hour: MicroUsd(3_000_000), vcpu_hour: MicroUsd(1_000_000), gib_hour: MicroUsd(10_000) };

pub fn host_id(number: u128) -> HostId {
    HostId(Uuid::from_u128(number))
}

pub fn job_id(number: u128) -> JobId {
    JobId(Uuid::from_u128(number))
}

pub fn customer_id(number: u128) -> CustomerId {
    CustomerId(Uuid::from_u128(number))
}

/// A host with 8 CPUs, 32 GiB of memory, 100 GiB of disk and nothing leased.
pub fn host() -> SupplyHost {
    SupplyHost {
        hotkey: "a miner".into(),
        generation: 5,
        rate: RATE,
        terms: Terms { term: Term::OnDemand, region: None, trust: Trust::Verified },
        lasts: None,
        classes: BTreeMap::new(),
        models: BTreeMap::new(),
        past: Past::default(),
        past_elsewhere: Past::default(),
        yielding: Vec::new(),
        tenants: Vec::new(),
        inventory: Inventory {
            milli_cpu: MilliCpu(8_000),
            memory: Bytes(32 * Bytes::GIB),
            disk: Bytes(100 * Bytes::GIB),
            devices: Vec::new(),
            cpu_model: "test".into(),
            os: "test".into(),
            kernel: "test".into(),
            runtime: Runtime::Simulated,
            egress: vec![Egress::Public, Egress::None],
            agent: "test".into(),
        },
        order_bytes: 0,
        milli_cpu_used: MilliCpu::ZERO,
        memory_used: Bytes::ZERO,
        disk_used: Bytes::ZERO,
        devices_used: Vec::new(),
        shared: BTreeMap::new(),
    }
}

/// The same host with devices of these sizes in GiB, named `GPU-0`, `GPU-1` and so on.
pub fn gpu_host(sizes: &[i64]) -> SupplyHost {
    let mut host = host();
    host.inventory.devices = sizes.iter().enumerate().map(|(number, gib)| device(number, *gib)).collect();
    host
}

pub fn device(number: usize, gib: i64) -> Device {
    Device {
        uuid: format!("GPU-{number}"),
        model: "test".into(),
        vram: Bytes(gib * Bytes::GIB),
        driver: "test".into(),
        simulated: false,
        division: nave_domain::fraction::Division::default(),
    }
}

/// The smallest request, waiting since a second.
pub fn job(number: u128) -> QueuedJob {
    let request = JobRequest::of(vec!["true".into()]);
    QueuedJob {
        job: job_id(number),
        customer: customer_id(1),
        left: request.max_spend,
        request,
        queued_at: Timestamp(NOW.0 - 1_000),
        queued: Millis::ZERO,
        attempts: 0,
        failed_on: Vec::new(),
        gang: None,
        group_leases: 0,
        apart_from: BTreeSet::new(),
        order_bytes: 2_000,
    }
}

pub fn gpu_job(number: u128, count: u8, gib: i64) -> QueuedJob {
    let mut job = job(number);
    job.request.resources.gpu =
        Some(GpuRequest { count, vram: Bytes(gib * Bytes::GIB), ..GpuRequest::default() });
    job
}

pub fn snapshot(jobs: Vec<QueuedJob>, hosts: Vec<SupplyHost>) -> Snapshot {
    let hosts: BTreeMap<_, _> = (1..).map(host_id).zip(hosts).collect();
    Snapshot { now: NOW, jobs, hosts, quotes: Vec::new(), baselines: Baselines::default() }
}

/// Plans for these jobs, oldest first, on hosts numbered from 1.
pub fn plan_for(jobs: Vec<QueuedJob>, hosts: Vec<SupplyHost>) -> Plan {
    plan(&snapshot(jobs, hosts))
}

/// The hosts' numbers in the order of a plan's placements.
pub fn hosts_of(plan: &Plan) -> Vec<u128> {
    plan.placements.iter().map(|placement| placement.host.0.as_u128()).collect()
}
