//! The product's planner, as one of the policies: translates pods and hosts, and nothing else.

use nave_scheduler::fleet::{Demand, Fleet, Gpus, Handle, Host, Rate, Request};

use crate::trace::{self, GPU_MILLI, Placed, Pod};

/// All prices of the trace are equal: a dollar an hour for a GPU.
const GPU_HOUR: i64 = 1_000_000;
/// Without a history it learns what is asked for each time that many pods have come.
const LEARNED_EVERY: usize = 512;

pub struct Planner {
    pub fleet: Fleet,
    /// Ascending; with indices of hosts.
    handles: Vec<(Handle, usize)>,
    /// What it learns from while pods come; nothing where there is a history.
    demand: Option<Demand>,
}

impl Planner {
    pub fn new(hosts: &[trace::Host], history: &[Pod]) -> Option<Self> {
        let mut fleet = Fleet::new();
        // Where all else is equal the fleet takes the host that it knew first.
        let mut order: Vec<usize> = (0..hosts.len()).collect();
        order.sort_by_key(|host| hosts[*host].rank);
        let insert = |host: usize| Some((fleet.insert(translate(&hosts[host]))?, host));
        let handles: Option<Vec<_>> = order.into_iter().map(insert).collect();
        for host in hosts {
            fleet.set_worth(host.model, GPU_HOUR);
        }
        let mut demand = Demand::default();
        history.iter().for_each(|pod| demand.observe(&request(pod)));
        fleet.learn(&demand);
        Some(Self { fleet, handles: handles?, demand: history.is_empty().then_some(demand) })
    }

    pub fn place(&mut self, at: usize, pod: &Pod) -> Option<Placed> {
        let request = request(pod);
        if let Some(demand) = &mut self.demand {
            demand.observe(&request);
            if at % LEARNED_EVERY == LEARNED_EVERY - 1 {
                self.fleet.learn(demand);
            }
        }
        let choice = self.fleet.decide(&request)?;
        let placed = self.fleet.place(choice.host, &request, &choice.devices);
        let found = self.handles.binary_search_by_key(&choice.host, |(handle, _)| *handle).ok()?;
        let host = self.handles[found].1;
        placed.then_some(Placed { pod: at, host, gpus: choice.devices })
    }
}

fn translate(host: &trace::Host) -> Host {
    Host {
        milli_cpu: host.milli_cpu,
        memory_mib: host.memory_mib,
        disk_mib: 0,
        // The trace knows no memory of GPUs.
        vram_mib: vec![0; usize::from(host.gpus)],
        class: host.model,
        zone: 0,
        miner: 0,
        has: 0,
        rate: Rate { gpu_hour: GPU_HOUR, vcpu_hour: 0, gib_hour: 0 },
        loss_ppm: 0,
        order_bytes: u32::MAX,
        start_s: 0,
    }
}

pub fn request(pod: &Pod) -> Request {
    let gpus = match pod.gpus {
        0 => Gpus::None,
        1 if pod.gpu_milli < GPU_MILLI => Gpus::Share { milli: pod.gpu_milli, vram_mib: 0 },
        count => Gpus::Whole { count, vram_mib: 0 },
    };
    Request { classes: pod.models, ..Request::new(pod.milli_cpu, pod.memory_mib, gpus) }
}
