//! How much of a host's free device time is going to stay unused.
//!
//! A host is filled by requests as they come. After each one it may be the last that comes,
//! with a small chance [`END`]; what is free then is *stranded*. The expected stranded time
//! of a state follows from that of the states that requests lead to, weighed by how often
//! each kind of request comes and counting only those that fit:
//!
//! `L(s) = (r · free(s) + Σ p · L(s − t)) / (r + Σ p)`
//!
//! Fragmentation gradient descent (Weng et al., USENIX ATC'23) is its first step. States are
//! told apart by one thing at a time, so that tables stay small: how much of one device is
//! free; and how much of all devices beside how much CPU, or how much memory.

use std::collections::BTreeMap;

use super::request::{DEVICE_MILLI, Gpus, Request};
use super::room::{Room, Rounded, thousandths};

/// Stranded time is counted in this many parts of a thousandth of a device.
const PARTS: u64 = 256;
/// Weights of kinds add up to about this.
const WEIGHTS: u64 = 1_000_000;
/// The chance that a request was the last one for a device: 1 in 20.
const END_OF_DEVICE: u64 = WEIGHTS / 20;
/// The chance that a request was the last one for a host: 1 in 80.
const END_OF_HOST: u64 = WEIGHTS / 80;
/// Thousandths of a device to a step of the table of one device.
const DEVICE_STEP: u16 = 10;
/// Thousandths of a device to a step of the tables of a host.
const HOST_STEP: u32 = 100;
/// Steps of CPU and of memory.
const STEPS: u32 = 128;

/// The expected stranding of hosts of one class.
#[derive(Debug, Clone)]
pub(super) struct Stranding {
    /// By what is usable of a device.
    device: Vec<u32>,
    cpu: Table,
    memory: Table,
}

/// The largest host of a class.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Largest {
    pub devices: usize,
    pub vram_mib: u32,
    pub milli_cpu: u32,
    pub memory_mib: u32,
}

impl Largest {
    pub fn with(self, room: &Room) -> Self {
        Self {
            devices: self.devices.max(room.devices()),
            vram_mib: room.host.vram_mib.iter().copied().fold(self.vram_mib, u32::max),
            milli_cpu: self.milli_cpu.max(room.host.milli_cpu),
            memory_mib: self.memory_mib.max(room.host.memory_mib),
        }
    }
}

/// What a kind of request takes, in steps, and how often it comes.
struct Draw {
    gpu: usize,
    other: usize,
    weight: u64,
}

/// By device time and one other thing that are free.
#[derive(Debug, Clone)]
struct Table {
    /// Of the other thing, to a step.
    unit: u32,
    stranded: Vec<u32>,
}

const WIDTH: usize = STEPS as usize + 1;

impl Stranding {
    /// Of requests and how often each comes to a class of hosts.
    pub fn new(largest: Largest, kinds: &[(Request, u64)]) -> Self {
        let total: u64 = kinds.iter().map(|(_, count)| count).sum();
        let weigh = |count: u64| {
            let weight = u128::from(count) * u128::from(WEIGHTS) / u128::from(total.max(1));
            u64::try_from(weight).unwrap_or(WEIGHTS)
        };
        let kinds: Vec<(Request, u64)> = kinds.iter().map(|(kind, count)| (*kind, weigh(*count))).collect();
        Self {
            device: device_table(largest, &kinds),
            cpu: Table::new(largest.devices, largest.milli_cpu, &kinds, |kind| kind.milli_cpu),
            memory: Table::new(largest.devices, largest.memory_mib, &kinds, |kind| kind.memory_mib),
        }
    }

    /// Of one device.
    pub fn of_device(&self, usable: u16) -> i64 {
        self.device.get(usize::from(usable / DEVICE_STEP)).copied().map_or(0, i64::from)
    }

    /// Of devices that guests share: whatever they leave is of use to nobody else.
    pub fn of_rest(rest_milli: u32) -> i64 {
        i64::from(rest_milli) * PARTS as i64
    }

    /// For want of CPU and memory, of a host with that much free.
    pub fn of_host(&self, usable_milli: u32, milli_cpu: u32, memory_mib: u32) -> i64 {
        self.cpu.get(usable_milli, milli_cpu) + self.memory.get(usable_milli, memory_mib)
    }

    /// The worth of stranded time, in micro-USD an hour, where a device is worth `gpu_hour`.
    pub fn worth(stranded: i64, gpu_hour: i64) -> i64 {
        stranded.saturating_mul(gpu_hour) / (PARTS as i64 * i64::from(DEVICE_MILLI))
    }
}

fn device_table(largest: Largest, kinds: &[(Request, u64)]) -> Vec<u32> {
    let steps = usize::from(DEVICE_MILLI / DEVICE_STEP);
    let mut weights = vec![0; steps + 1];
    for (kind, weight) in kinds {
        match kind.gpus {
            Gpus::None => {}
            Gpus::Share { milli, vram_mib } => {
                let by_vram = thousandths(vram_mib.into(), largest.vram_mib.max(1).into(), Rounded::Up);
                weights[usize::from(milli.max(by_vram).div_ceil(DEVICE_STEP))] += weight;
            }
            Gpus::Whole { count, .. } => weights[steps] += weight * u64::from(count),
        }
    }
    let mut table = vec![0; steps + 1];
    for free in 1..=steps {
        let all = free as u64 * u64::from(DEVICE_STEP) * PARTS;
        let (mut weight, mut stranded) = (END_OF_DEVICE, END_OF_DEVICE * all);
        for need in 1..=free {
            weight += weights[need];
            stranded += weights[need] * u64::from(table[free - need]);
        }
        table[free] = u32::try_from(stranded / weight).unwrap_or(u32::MAX);
    }
    table
}

impl Table {
    fn new(devices: usize, most: u32, kinds: &[(Request, u64)], of: impl Fn(&Request) -> u32) -> Self {
        let unit = most.div_ceil(STEPS).max(1);
        let mut draws = BTreeMap::new();
        for (kind, weight) in kinds {
            let gpu = (kind.gpu_milli() + HOST_STEP / 2) / HOST_STEP;
            *draws.entry((gpu as usize, of(kind).div_ceil(unit) as usize)).or_default() += weight;
        }
        let draw = |((gpu, other), weight)| Draw { gpu, other, weight };
        let draws: Vec<Draw> = draws.into_iter().filter(|(of, _)| *of != (0, 0)).map(draw).collect();
        let rows = devices * usize::from(DEVICE_MILLI) / HOST_STEP as usize + 1;
        let mut stranded = vec![0; rows * WIDTH];
        for gpu in 1..rows {
            for other in 0..WIDTH {
                stranded[gpu * WIDTH + other] = expected(&stranded, &draws, gpu, other);
            }
        }
        Self { unit, stranded }
    }

    fn get(&self, usable_milli: u32, other: u32) -> i64 {
        let gpu = ((usable_milli + HOST_STEP / 2) / HOST_STEP) as usize;
        let other = ((other / self.unit) as usize).min(WIDTH - 1);
        self.stranded.get(gpu * WIDTH + other).copied().map_or(0, i64::from)
    }
}

/// The expected stranding of a state, from those that are smaller.
fn expected(stranded: &[u32], draws: &[Draw], gpu: usize, other: usize) -> u32 {
    let all = gpu as u64 * u64::from(HOST_STEP) * PARTS;
    let (mut weight, mut sum) = (END_OF_HOST, END_OF_HOST * all);
    for draw in draws {
        if draw.gpu <= gpu && draw.other <= other {
            weight += draw.weight;
            sum += draw.weight * u64::from(stranded[(gpu - draw.gpu) * WIDTH + other - draw.other]);
        }
    }
    u32::try_from(sum / weight).unwrap_or(u32::MAX)
}
