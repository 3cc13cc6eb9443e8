//! What a decision costs on a fleet that is in use.

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nave_scheduler::fleet::{Choice, Demand, Fleet, Gpus, Host, Rate, Request};

/// Small numbers without a pattern that matters.
fn scattered(at: u32, end: u32) -> u32 {
    at.wrapping_mul(2_654_435_761) % 65_521 % end
}

fn host(at: u32) -> Host {
    let class = scattered(at, 8);
    Host {
        milli_cpu: 96_000 + 32_000 * (class % 3),
        memory_mib: 524_288,
        disk_mib: 4_000_000,
        vram_mib: vec![24_576; 8],
        class: u8::try_from(class).expect("a small number"),
        zone: 0,
        miner: 0,
        has: 0,
        rate: Rate {
            gpu_hour: 400_000 + 1_000 * i64::from(scattered(at + 7, 20)),
            vcpu_hour: 10_000,
            gib_hour: 0,
        },
        loss_ppm: 0,
        order_bytes: u32::MAX,
        start_s: 20,
    }
}

/// Shares, whole devices and neither; a quarter accept one class only.
fn request(at: u32) -> Request {
    let gpus = match scattered(at, 6) {
        0 => Gpus::None,
        1 | 2 => Gpus::Share {
            milli: u16::try_from(50 + 50 * scattered(at, 18)).expect("a small number"),
            vram_mib: 1_024 * (1 + scattered(at + 1, 20)),
        },
        3 | 4 => Gpus::Whole { count: 1, vram_mib: 0 },
        _ => Gpus::Whole { count: 1 << (1 + scattered(at + 2, 3)), vram_mib: 0 },
    };
    let classes = if scattered(at + 3, 4) == 0 { 1 << scattered(at + 4, 8) } else { u64::MAX };
    Request {
        classes,
        ..Request::new(1_000 + 1_000 * scattered(at + 5, 12), 8_192 * (1 + scattered(at, 5)), gpus)
    }
}

const KINDS: u32 = 200;

/// A fleet that is nearly full, and what is placed there.
fn full(hosts: u32) -> (Fleet, Vec<(Request, Choice)>) {
    let mut fleet = Fleet::new();
    for at in 0..hosts {
        fleet.insert(host(at));
    }
    (0..8).for_each(|class| fleet.set_worth(class, 400_000));
    let mut demand = Demand::default();
    (0..KINDS).for_each(|at| demand.observe(&request(at)));
    fleet.learn(&demand);
    let mut placed = Vec::new();
    for at in 0.. {
        let request = request(at % KINDS);
        let Some(choice) = fleet.decide(&request) else { break };
        fleet.place(choice.host, &request, &choice.devices);
        placed.push((request, choice));
    }
    (fleet, placed)
}

/// One lease ends, and one request is decided and placed.
fn decisions(criterion: &mut Criterion) {
    for hosts in [1_213, 10_000] {
        let (mut fleet, mut placed) = full(hosts);
        let mut at = 0_u32;
        let mut group = criterion.benchmark_group(format!("{hosts} hosts"));
        group.throughput(Throughput::Elements(1)).sample_size(20);
        group.bench_function("decide, place, release", |bench| {
            bench.iter(|| {
                at = at.wrapping_add(1);
                let ends = scattered(at, u32::try_from(placed.len()).expect("a small number"));
                let (request_ended, choice) = placed.swap_remove(ends as usize);
                fleet.release(choice.host, &request_ended, &choice.devices);
                let request = request(at % KINDS);
                if let Some(choice) = black_box(fleet.decide(&request)) {
                    fleet.place(choice.host, &request, &choice.devices);
                    placed.push((request, choice));
                }
                if placed.len() < 1_000 {
                    (fleet, placed) = full(hosts);
                }
            });
        });
        group.finish();
    }
}

criterion_group!(benches, decisions);
criterion_main!(benches);
