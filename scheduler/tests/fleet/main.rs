//! The fleet: where requests go, and what it costs.

mod capacity;
mod optimum;
mod placement;
mod queue;

use nave_scheduler::fleet::{Demand, Fleet, Gpus, Handle, Host, Rate, Request};

const GIB: u32 = 1_024;
/// What a device is worth in these tests, in micro-USD an hour.
const GPU_HOUR: i64 = 1_000_000;

/// A host of class 0 with 16 cores and 64 GiB for each of its devices of 24 GiB.
fn host(devices: usize) -> Host {
    let share = u32::try_from(devices.max(1)).expect("few devices");
    Host {
        milli_cpu: 16_000 * share,
        memory_mib: 64 * GIB * share,
        disk_mib: 1_000 * GIB,
        vram_mib: vec![24 * GIB; devices],
        class: 0,
        zone: 0,
        miner: 0,
        has: 0,
        rate: Rate { gpu_hour: GPU_HOUR, vcpu_hour: 10_000, gib_hour: 1_000 },
        loss_ppm: 0,
        order_bytes: u32::MAX,
        start_s: 0,
    }
}

fn fleet(hosts: impl IntoIterator<Item = Host>) -> (Fleet, Vec<Handle>) {
    let mut fleet = Fleet::new();
    let handles = hosts.into_iter().map(|host| fleet.insert(host).expect("a host of usual size")).collect();
    for class in 0..4 {
        fleet.set_worth(class, GPU_HOUR);
    }
    (fleet, handles)
}

fn whole(count: u8) -> Request {
    Request::new(4_000 * u32::from(count), 8 * GIB, Gpus::Whole { count, vram_mib: 0 })
}

fn share(milli: u16) -> Request {
    Request::new(1_000, 4 * GIB, Gpus::Share { milli, vram_mib: u32::from(milli) * 24 * GIB / 1_000 })
}

fn cpu(cores: u32) -> Request {
    Request::new(cores * 1_000, 4 * GIB, Gpus::None)
}

/// A distribution in which each of these comes as often as it is named.
fn demand(requests: &[Request]) -> Demand {
    let mut demand = Demand::default();
    requests.iter().for_each(|request| demand.observe(request));
    demand
}

/// Decides and occupies.
fn put(fleet: &mut Fleet, request: &Request) -> Option<Handle> {
    let choice = fleet.decide(request)?;
    assert!(fleet.place(choice.host, request, &choice.devices), "what was decided is free");
    Some(choice.host)
}
