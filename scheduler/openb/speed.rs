//! How fast decisions are on a large fleet that is in use: hosts of several shapes, requests
//! of many kinds, and for each that comes when it is full the oldest ones leave.

use std::{collections::VecDeque, time::Instant};

use anyhow::{Context, Result};
use nave_scheduler::fleet::{Choice, Demand, Fleet, Gpus, Host, Rate, Request};

use crate::random::Random;

/// Devices, cores, memory in GiB, memory of a device in GiB, micro-USD an hour for a device.
const SHAPES: [(u8, u32, u32, u32, i64); 8] = [
    (8, 96, 384, 80, 2_000_000),
    (8, 192, 2048, 80, 2_400_000),
    (8, 128, 1024, 141, 3_200_000),
    (8, 64, 512, 24, 350_000),
    (8, 128, 512, 48, 900_000),
    (8, 96, 768, 40, 1_300_000),
    (8, 64, 256, 16, 200_000),
    (8, 128, 768, 24, 400_000),
];

fn host(random: &mut Random) -> Host {
    let class = random.below(SHAPES.len());
    let (devices, cores, gib, vram, price) = SHAPES[class];
    // Owners differ by up to a tenth.
    let price = price * i64::try_from(95 + random.below(11)).unwrap_or(100) / 100;
    Host {
        milli_cpu: cores * 1_000,
        memory_mib: gib * 1_024,
        disk_mib: 4_000_000,
        vram_mib: vec![vram * 1_024; devices.into()],
        class: u8::try_from(class).unwrap_or(0),
        zone: u8::try_from(random.below(4)).unwrap_or(0),
        miner: 0,
        has: 0,
        rate: Rate { gpu_hour: price, vcpu_hour: 10_000, gib_hour: 1_000 },
        loss_ppm: u32::try_from(random.below(5)).unwrap_or(0) * 500,
        order_bytes: u32::MAX,
        start_s: 20,
    }
}

/// A kind of request: mostly whole devices, a third shares, some with neither.
fn request(random: &mut Random) -> Request {
    let classes = if random.below(3) == 0 { 1 << random.below(SHAPES.len()) } else { u64::MAX };
    let zones = if random.below(4) == 0 { 1 << random.below(4) } else { u64::MAX };
    let cores = 1 + u32::try_from(random.below(16)).unwrap_or(0);
    let gpus = match random.below(12) {
        0 => Gpus::None,
        1..=4 => Gpus::Share {
            milli: 50 * (1 + u16::try_from(random.below(19)).unwrap_or(0)),
            vram_mib: 1_024 * (1 + u32::try_from(random.below(12)).unwrap_or(0)),
        },
        5..=9 => Gpus::Whole { count: 1, vram_mib: 0 },
        10 => Gpus::Whole { count: 2, vram_mib: 16 * 1_024 },
        _ => Gpus::Whole { count: if random.below(2) == 0 { 4 } else { 8 }, vram_mib: 0 },
    };
    Request { classes, zones, redo_minutes: 15, ..Request::new(cores * 1_000, cores * 4_096, gpus) }
}

/// How many kinds come.
const KINDS: usize = 400;

/// Prints decisions a second, the slowest ones, and the memory.
pub fn run(hosts: u64, decisions: u64) -> Result<()> {
    let mut random = Random::new(1);
    let mut fleet = Fleet::new();
    for _ in 0..hosts {
        fleet.insert(host(&mut random)).context("a host that the fleet can hold")?;
    }
    for (class, shape) in SHAPES.iter().enumerate() {
        fleet.set_worth(u8::try_from(class)?, shape.4);
    }
    let kinds: Vec<Request> = (0..KINDS).map(|_| request(&mut random)).collect();
    let mut demand = Demand::default();
    kinds.iter().for_each(|kind| demand.observe(kind));
    let started = Instant::now();
    fleet.learn(&demand);
    println!("learned in {} ms", started.elapsed().as_millis());
    let mut placed: VecDeque<(Request, Choice)> = VecDeque::new();
    // Until the first that fits nowhere, and then on with what leaves.
    for (when, decisions) in [("while it fills", None), ("when it is full", Some(decisions))] {
        let before = on_cpu();
        let nanos = timed(&mut fleet, &kinds, &mut placed, &mut random, decisions)?;
        let busy = on_cpu().zip(before).map(|(now, before)| now - before);
        report(when, nanos, busy);
    }
    println!("{} placements on {hosts} hosts, {} MiB", placed.len(), fleet.bytes() >> 20);
    Ok(())
}

/// Nanoseconds that this thread was on a core, where the kernel says so: other than time
/// on the wall it does not count what else the machine did.
pub fn on_cpu() -> Option<u64> {
    std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split(' ').next()?.parse().ok()
}

/// Nanoseconds of each decision, its placement included.
fn timed(
    fleet: &mut Fleet,
    kinds: &[Request],
    placed: &mut VecDeque<(Request, Choice)>,
    random: &mut Random,
    decisions: Option<u64>,
) -> Result<Vec<u64>> {
    let mut nanos = Vec::new();
    for _ in 0..decisions.unwrap_or(u64::MAX) {
        let request = kinds[random.below(kinds.len())];
        let started = Instant::now();
        let choice = fleet.decide(&request);
        if let Some(choice) = &choice {
            fleet.place(choice.host, &request, &choice.devices);
        }
        nanos.push(u64::try_from(started.elapsed().as_nanos())?);
        match choice {
            Some(choice) => placed.push_back((request, choice)),
            None if decisions.is_none() => break,
            None => {
                // Leases end in no order.
                for _ in 0..4 {
                    let ends = random.below(placed.len());
                    if let Some((request, choice)) = placed.swap_remove_back(ends) {
                        fleet.release(choice.host, &request, &choice.devices);
                    }
                }
            }
        }
    }
    Ok(nanos)
}

fn report(when: &str, mut nanos: Vec<u64>, busy: Option<u64>) {
    nanos.sort_unstable();
    let a_second = |all: u64| nanos.len() as u64 * 1_000_000_000 / all.max(1);
    let at = |permille: usize| nanos[(nanos.len() - 1) * permille / 1_000] / 1_000;
    println!(
        "{when}: {} decisions, {}/s; median {} µs, p99 {} µs, p99.9 {} µs, slowest {} µs",
        nanos.len(),
        a_second(nanos.iter().sum()),
        at(500),
        at(990),
        at(999),
        at(1_000),
    );
    if let Some(busy) = busy {
        println!("  {}/s by the time on a core, what leaves included", a_second(busy));
    }
}
