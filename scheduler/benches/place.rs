//! How many placements a second the database takes, written many at a time and one by one; and how long looks take
//! in which nothing fits. `cargo bench -p nave-scheduler --bench place`.

#![allow(missing_docs, reason = "a program that prints")]

use std::{collections::BTreeMap, time::Instant};

use nave_domain::{
    Bytes, CustomerId, HostId, MicroUsd, MilliCpu,
    host::{Inventory, Runtime},
    job::{Egress, JobRequest},
    rate::Rate,
};
use nave_scheduler::{
    planner::{Plan, Planner},
    role::carry_out,
};
use nave_store::{
    Store, Submission,
    testing::{self, NewHost},
};
use uuid::Uuid;

const HOSTS: u32 = 100;
const JOBS: u32 = 1_000;
const ROUNDS: u32 = 5;

fn inventory() -> Inventory {
    Inventory {
        milli_cpu: MilliCpu(64_000),
        memory: Bytes(256 * Bytes::GIB),
        disk: Bytes(1_000 * Bytes::GIB),
        devices: Vec::new(),
        cpu_model: "test".into(),
        os: "an operating system".into(),
        kernel: "6".into(),
        runtime: Runtime::Simulated,
        egress: vec![Egress::Public, Egress::None],
        agent: "1".into(),
    }
}

async fn hosts(store: &Store) -> anyhow::Result<()> {
    let rate = Rate { gpu_hour: MicroUsd(0), vcpu_hour: MicroUsd(20_000), gib_hour: MicroUsd(3_000) };
    for number in 0..HOSTS {
        let host = HostId(Uuid::now_v7());
        let name = format!("host-{number}");
        store.host_enrol(&NewHost { host, name: &name, hotkey: &format!("miner {number}"), rate }).await?;
        store.host_hear(host, 1, 1, 0, &inventory()).await?;
    }
    Ok(())
}

async fn jobs(store: &Store, customer: CustomerId, number: u32) -> anyhow::Result<()> {
    let mut request = JobRequest::of(vec!["true".into()]);
    request.resources.milli_cpu = MilliCpu(10);
    request.resources.memory = Bytes(16 * Bytes::MIB);
    request.resources.disk = Bytes(16 * Bytes::MIB);
    request.max_spend = MicroUsd(1_000);
    for _ in 0..number {
        let key = Uuid::now_v7().to_string();
        store.job_submit(&Submission { customer, key: &key, hash: [0; 32], request: &request }).await?;
    }
    Ok(())
}

fn per_second(number: usize, since: Instant) -> u128 {
    number as u128 * 1_000_000 / since.elapsed().as_micros().max(1)
}

/// One by one, as gangs are.
fn alone(mut plan: Plan) -> Plan {
    for placement in &mut plan.placements {
        placement.gang = Some(placement.job);
    }
    plan
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let store = testing::store().await;
    let customer = store.customer_ensure("ada").await?;
    store.credit(customer, "first", MicroUsd(1_000_000_000)).await?;
    hosts(&store).await?;
    let mut planner = Planner::default();
    let mut rates: BTreeMap<&str, Vec<u128>> = BTreeMap::new();
    for round in 0..ROUNDS {
        jobs(&store, customer, JOBS).await?;
        let since = Instant::now();
        let snapshot = store.snapshot().await?;
        let read = since.elapsed();
        let since = Instant::now();
        let mut plan = planner.plan(&snapshot);
        let planned = since.elapsed();
        let name = if round + 1 < ROUNDS { "in batches" } else { "one by one" };
        if round + 1 == ROUNDS {
            plan = alone(plan);
        }
        let since = Instant::now();
        carry_out(&store, &plan).await?;
        rates.entry(name).or_default().push(per_second(plan.placements.len(), since));
        if let Some((_, reason)) = plan.waiting.first() {
            println!("{} wait: {}", plan.waiting.len(), reason.message);
        }
        println!("{} placed {name}; read in {read:?}, planned in {planned:?}", plan.placements.len());
    }
    for (name, rates) in rates {
        println!("{name}: {rates:?} placements a second");
    }
    Ok(())
}
