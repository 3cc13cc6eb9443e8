//! What a plan costs, beside the least that any planner does: taking the first host that fits.

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use nave_domain::{
    Bytes, CustomerId, HostId, JobId, MicroUsd, MilliCpu, Millis, Timestamp,
    fraction::Division,
    host::{Device, Inventory, Runtime, Term, Trust},
    job::{Egress, GpuRequest, JobRequest},
    rate::Rate,
    wish::Terms,
};
use nave_scheduler::planner::{Planner, plan};
use nave_store::{Baselines, Past, QueuedJob, Snapshot, SupplyHost};
use uuid::Uuid;

const HOSTS: u128 = 1_000;
const JOBS: u128 = 1_000;

fn host(n: u128) -> SupplyHost {
    let spread = i64::try_from(n % 17).expect("a small number");
    SupplyHost {
        hotkey: "a miner".into(),
        generation: 1,
        rate: Rate { gpu_hour: MicroUsd(0), vcpu_hour: MicroUsd(20_000 + spread), gib_hour: MicroUsd(3_000) },
        terms: Terms { term: Term::OnDemand, region: None, trust: Trust::Verified },
        lasts: None,
        classes: BTreeMap::new(),
        models: BTreeMap::new(),
        past: Past::default(),
        past_elsewhere: Past::default(),
        yielding: Vec::new(),
        tenants: Vec::new(),
        inventory: Inventory {
            milli_cpu: MilliCpu(4_000 + 1_000 * spread),
            memory: Bytes(16 * Bytes::GIB),
            disk: Bytes(100 * Bytes::GIB),
            devices: Vec::new(),
            cpu_model: "a processor".into(),
            os: "an operating system".into(),
            kernel: "6".into(),
            runtime: Runtime::Simulated,
            egress: vec![Egress::Public, Egress::None],
            agent: "1".into(),
        },
        order_bytes: 0,
        milli_cpu_used: MilliCpu::ZERO,
        memory_used: Bytes::ZERO,
        disk_used: Bytes::ZERO,
        devices_used: Vec::new(),
        shared: BTreeMap::new(),
    }
}

fn job(n: u128, milli_cpu: i64) -> QueuedJob {
    let request = serde_json::json!({ "argv": ["true"], "resources": { "milli_cpu": milli_cpu } });
    let request: JobRequest = serde_json::from_value(request).expect("a request");
    QueuedJob {
        job: JobId(Uuid::from_u128(n)),
        customer: CustomerId(Uuid::from_u128(1)),
        left: request.max_spend,
        request,
        queued_at: Timestamp(0),
        queued: Millis(0),
        attempts: 0,
        failed_on: Vec::new(),
        gang: None,
        group_leases: 0,
        apart_from: BTreeSet::new(),
        order_bytes: 2_000,
    }
}

fn snapshot(milli_cpu: i64) -> Snapshot {
    let hosts: BTreeMap<HostId, SupplyHost> =
        (0..HOSTS).map(|n| (HostId(Uuid::from_u128(n)), host(n))).collect();
    let jobs = (0..JOBS).map(|n| job(n, milli_cpu)).collect();
    Snapshot { now: Timestamp(1_000), jobs, hosts, quotes: Vec::new(), baselines: Baselines::default() }
}

/// 100 hosts with 800 GPUs, and jobs of which each wishes 16 models; of one list for all, or of a list each.
fn wishful(lists: u128) -> Snapshot {
    let device = |at: u128| Device {
        uuid: format!("GPU-{at}"),
        model: format!("NVIDIA M{} {at}GB", at % 20),
        vram: Bytes(80 * Bytes::GIB),
        driver: "1".into(),
        simulated: false,
        division: Division::default(),
    };
    let gpu_host = |n: u128| {
        let mut host = host(n);
        host.inventory.devices = (0..8).map(|at| device(n * 8 + at)).collect();
        host.inventory.milli_cpu = MilliCpu(64_000);
        (HostId(Uuid::from_u128(n)), host)
    };
    let wishful = |n: u128| {
        let mut job = job(n, 1_000);
        let models = (0..16).map(|model| format!("M{} {}GB", model + 4, (n % lists) * 16 + model)).collect();
        job.request.trust.insert(Trust::Unrated);
        job.request.resources.gpu = Some(GpuRequest { models, ..GpuRequest::default() });
        job
    };
    let hosts = (0..100).map(gpu_host).collect();
    Snapshot { hosts, jobs: (0..JOBS).map(wishful).collect(), ..snapshot(1_000) }
}

/// 10,000 hosts with 80,000 GPUs of 20 models, of which three in eight are free and half may be shared; and jobs of 50 customers
/// for cores, shares, and one to eight GPUs.
fn mixed() -> Snapshot {
    let gpu_host = |n: u128| {
        let device = |at: u128| Device {
            uuid: format!("GPU-{n}-{at}"),
            model: format!("NVIDIA M{}", n % 20),
            vram: Bytes(80 * Bytes::GIB),
            driver: "1".into(),
            simulated: false,
            division: if n.is_multiple_of(2) { Division::Shares } else { Division::Whole },
        };
        let mut host = host(n);
        host.rate.gpu_hour =
            MicroUsd(1_000_000 + 1_000 * i64::try_from(n * 7 % 1_009).expect("a small number"));
        host.inventory.devices = (0..8).map(device).collect();
        host.inventory.milli_cpu = MilliCpu(64_000);
        host.devices_used = (0..(n * 5 + n / 7) % 9).map(|at| format!("GPU-{n}-{at}")).collect();
        (HostId(Uuid::from_u128(n)), host)
    };
    let mixed = |n: u128| {
        let mut job = job(n, i64::try_from(1_000 * (1 + n % 4)).expect("a small number"));
        job.customer = CustomerId(Uuid::from_u128(n % 50));
        let (count, share) =
            [(0, 0), (1, 250), (1, 500), (1, 125), (1, 0), (1, 0), (2, 0), (4, 0), (8, 0)][(n % 9) as usize];
        let models = if n.is_multiple_of(5) {
            vec![format!("M{}", n % 20), format!("M{}", n % 7)]
        } else {
            Vec::new()
        };
        let share = (share > 0).then_some(share);
        let gpu = GpuRequest { count, share, models, ..GpuRequest::default() };
        job.request.resources.gpu = (count > 0).then_some(gpu);
        job
    };
    let hosts = (0..10_000).map(gpu_host).collect();
    Snapshot { hosts, jobs: (0..JOBS).map(mixed).collect(), ..snapshot(1_000) }
}

/// The same market when so many of its hosts have been left by some of those who were on them.
fn later(snapshot: &Snapshot, hosts: usize) -> Snapshot {
    let mut later = snapshot.clone();
    let step = later.hosts.len() / hosts;
    for host in later.hosts.values_mut().step_by(step) {
        host.generation += 1;
        host.milli_cpu_used.0 += 1_000;
        host.devices_used.pop();
    }
    later
}

/// A planner that has seen the market before, half a second and one host in a hundred ago. What it has decided comes to
/// nothing, so that it has as much to take back.
fn again(criterion: &mut Criterion) {
    let markets = [mixed(), later(&mixed(), 100)];
    let mut planner = Planner::default();
    let mut looks = (0..).map(|look: i64| {
        let market = &markets[usize::try_from(look % 2).expect("one of two")];
        Snapshot { now: Timestamp(1_000 + look * 500), ..market.clone() }
    });
    let mut group = criterion.benchmark_group("mixed on 80,000 devices");
    group.throughput(Throughput::Elements(u64::try_from(JOBS).expect("a small number"))).sample_size(20);
    group.bench_function("plan again", |bench| {
        bench.iter_batched(
            || looks.next().expect("one more"),
            |snapshot| (planner.plan(black_box(&snapshot)), snapshot),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// The floor: CPU, memory and disk of the first host that has enough.
fn first_fit(snapshot: &Snapshot) -> usize {
    let mut hosts = snapshot.hosts.clone();
    let fits = |host: &SupplyHost, job: &QueuedJob| {
        let wanted = &job.request.resources;
        host.inventory.milli_cpu.0 - host.milli_cpu_used.0 >= wanted.milli_cpu.0
            && host.inventory.memory.0 - host.memory_used.0 >= wanted.memory.0
            && host.inventory.disk.0 - host.disk_used.0 >= wanted.disk.0
    };
    let mut placed = 0;
    for job in &snapshot.jobs {
        if let Some(host) = hosts.values_mut().find(|host| fits(host, job)) {
            host.milli_cpu_used.0 += job.request.resources.milli_cpu.0;
            placed += 1;
        }
    }
    placed
}

fn plans(criterion: &mut Criterion) {
    let cases = [
        ("all placed", snapshot(1_000)),
        ("none fits", snapshot(1_000_000)),
        ("sixteen models for all", wishful(1)),
        ("sixteen models each", wishful(JOBS)),
        ("mixed on 80,000 devices", mixed()),
    ];
    for (name, snapshot) in &cases {
        let mut group = criterion.benchmark_group(*name);
        group.throughput(Throughput::Elements(u64::try_from(JOBS).expect("a small number"))).sample_size(10);
        group.bench_function("plan", |bench| bench.iter(|| plan(black_box(snapshot))));
        group.bench_function("first fit", |bench| bench.iter(|| first_fit(black_box(snapshot))));
        group.finish();
    }
}

criterion_group!(benches, plans, again);
criterion_main!(benches);
