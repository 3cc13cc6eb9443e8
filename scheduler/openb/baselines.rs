//! What the planner is compared with: policies of the literature, as simply as they can be said.
//!
//! Each gives a host that fits a score, and the greatest is chosen; ties go to the least rank.

use std::collections::BTreeMap;

use crate::{
    fgd::Fgd,
    random::Random,
    trace::{GPU_MILLI, GPUS_MAX, Host, Placed, Pod},
};

/// What is free on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub milli_cpu: u32,
    pub memory_mib: u32,
    pub gpus: [u16; GPUS_MAX],
    pub model: u8,
}

impl Room {
    pub fn of(host: &Host) -> Self {
        let mut gpus = [0; GPUS_MAX];
        gpus[..usize::from(host.gpus)].fill(GPU_MILLI);
        Self { milli_cpu: host.milli_cpu, memory_mib: host.memory_mib, gpus, model: host.model }
    }

    pub fn fits(&self, pod: &Pod) -> bool {
        self.milli_cpu >= pod.milli_cpu
            && self.memory_mib >= pod.memory_mib
            && pod.models >> self.model & 1 == 1
            && self.gpus.iter().filter(|free| **free >= pod.gpu_milli && **free > 0).count()
                >= usize::from(pod.gpus)
    }

    /// The tightest GPU that has the share.
    pub fn tightest(&self, milli: u16) -> usize {
        let fitting = (0..GPUS_MAX).filter(|gpu| self.gpus[*gpu] >= milli);
        fitting.min_by_key(|gpu| self.gpus[*gpu]).unwrap_or(0)
    }

    /// The GPUs that the pod takes, where a share goes to GPU `share`.
    pub fn take(&mut self, pod: &Pod, share: usize) -> Vec<u8> {
        self.milli_cpu -= pod.milli_cpu;
        self.memory_mib -= pod.memory_mib;
        let taken: Vec<usize> = if pod.is_share() {
            vec![share]
        } else {
            (0..GPUS_MAX).filter(|gpu| self.gpus[*gpu] == GPU_MILLI).take(usize::from(pod.gpus)).collect()
        };
        for gpu in &taken {
            self.gpus[*gpu] -= pod.gpu_milli;
        }
        taken.into_iter().filter_map(|gpu| u8::try_from(gpu).ok()).collect()
    }
}

/// A policy that scores hosts one by one.
pub enum Policy {
    Random(Random),
    FirstFit,
    BestFit,
    DotProduct,
    Packing,
    Clustering,
    Fgd(Fgd),
}

impl Policy {
    pub const NAMES: [&str; 7] =
        ["random", "dot-product", "clustering", "packing", "best-fit", "first-fit", "fgd"];

    pub fn named(name: &str, history: &[Pod], seed: u64) -> Option<Self> {
        Some(match name {
            "random" => Self::Random(Random::new(seed)),
            "first-fit" => Self::FirstFit,
            "best-fit" => Self::BestFit,
            "dot-product" => Self::DotProduct,
            "packing" => Self::Packing,
            "clustering" => Self::Clustering,
            "fgd" => Self::Fgd(Fgd::new(history)),
            _ => return None,
        })
    }

    /// Score and, of a share, the GPU. The state of `tenants` counts kinds of tenants for clustering.
    fn score(&self, host: &Host, room: &Room, tenants: [u16; 3], pod: &Pod) -> (i64, usize) {
        let tight = room.tightest(pod.gpu_milli);
        let score = match self {
            Self::Random(_) | Self::FirstFit => 0,
            Self::BestFit => -left(room, pod),
            Self::DotProduct => aligned(room, pod),
            Self::Packing => packed(host, room, pod, tight),
            Self::Clustering => match pod.gpus {
                0 => 0,
                _ => i64::from(tenants[cluster(pod)] > 0) * 1_000_000 - left(room, pod),
            },
            Self::Fgd(fgd) => return fgd.score(room, pod),
        };
        (score, tight)
    }
}

/// Which pods clustering keeps together.
fn cluster(pod: &Pod) -> usize {
    match (pod.gpus, pod.is_share()) {
        (0 | 1, true) => 0,
        (0 | 1, false) => 1,
        (_, _) => 2,
    }
}

/// Most of CPU, memory and GPU that a host of the trace has: what resources are measured in.
const MOST: [i64; 3] = [128_000, 1_048_576, 8_000];

fn free(room: &Room) -> [i64; 3] {
    let gpu = room.gpus.iter().map(|free| i64::from(*free)).sum();
    [i64::from(room.milli_cpu), i64::from(room.memory_mib), gpu]
}

fn wanted(pod: &Pod) -> [i64; 3] {
    [i64::from(pod.milli_cpu), i64::from(pod.memory_mib), i64::from(pod.gpus) * i64::from(pod.gpu_milli)]
}

/// What stays free, summed over resources in parts of 10 000 of the most.
fn left(room: &Room, pod: &Pod) -> i64 {
    let (free, wanted) = (free(room), wanted(pod));
    (0..3).map(|of| (free[of] - wanted[of]) * 10_000 / MOST[of]).sum()
}

/// The product of what is free and what is wanted.
fn aligned(room: &Room, pod: &Pod) -> i64 {
    let (free, wanted) = (free(room), wanted(pod));
    (0..3).map(|of| (free[of] * 10_000 / MOST[of]) * (wanted[of] * 10_000 / MOST[of])).sum()
}

/// Shares go to GPUs that are shared, then to hosts in use; whole GPUs to the fullest host.
fn packed(host: &Host, room: &Room, pod: &Pod, tight: usize) -> i64 {
    let whole = room.gpus.iter().filter(|free| **free == GPU_MILLI).count();
    let untouched = usize::from(host.gpus) == whole;
    let left = -i64::try_from(whole).unwrap_or(0);
    match pod.gpus {
        0 => 0,
        _ if pod.is_share() && room.gpus[tight] < GPU_MILLI => 1_000 - i64::from(room.gpus[tight]),
        _ if !untouched => left - 100,
        _ => left - 1_000,
    }
}

/// A score and a GPU for a share; `None` where the pod does not fit.
type Scored = Option<(i64, usize)>;

/// A run of a policy over hosts. A score is kept until its host changes.
pub struct Run<'a> {
    policy: Policy,
    hosts: &'a [Host],
    /// Hosts in the order of their ranks.
    order: Vec<usize>,
    rooms: Vec<Room>,
    tenants: Vec<[u16; 3]>,
    versions: Vec<u32>,
    /// For each kind of pod and host what came out, and at which version of the host.
    kept: BTreeMap<Pod, Vec<(u32, Scored)>>,
}

impl<'a> Run<'a> {
    pub fn new(policy: Policy, hosts: &'a [Host]) -> Self {
        let mut order: Vec<usize> = (0..hosts.len()).collect();
        order.sort_by_key(|host| hosts[*host].rank);
        Self {
            policy,
            hosts,
            order,
            rooms: hosts.iter().map(Room::of).collect(),
            tenants: vec![[0; 3]; hosts.len()],
            versions: vec![1; hosts.len()],
            kept: BTreeMap::new(),
        }
    }

    pub fn place(&mut self, at: usize, pod: &Pod) -> Option<Placed> {
        let kept = self.kept.entry(*pod).or_insert_with(|| vec![(0, None); self.hosts.len()]);
        for (host, kept) in kept.iter_mut().enumerate().filter(|(host, kept)| kept.0 != self.versions[*host])
        {
            let room = &self.rooms[host];
            let score = || self.policy.score(&self.hosts[host], room, self.tenants[host], pod);
            *kept = (self.versions[host], room.fits(pod).then(score));
        }
        let (host, gpu) = match &mut self.policy {
            Policy::Random(random) => any(random, kept, &self.rooms, pod)?,
            Policy::FirstFit
            | Policy::BestFit
            | Policy::DotProduct
            | Policy::Packing
            | Policy::Clustering
            | Policy::Fgd(_) => best(kept, &self.order)?,
        };
        self.versions[host] += 1;
        if pod.gpus > 0 {
            self.tenants[host][cluster(pod)] += 1;
        }
        Some(Placed { pod: at, host, gpus: self.rooms[host].take(pod, gpu) })
    }
}

/// Any host that fits, and any of its GPUs that do.
fn any(random: &mut Random, kept: &[(u32, Scored)], rooms: &[Room], pod: &Pod) -> Option<(usize, usize)> {
    let fitting: Vec<usize> = (0..kept.len()).filter(|host| kept[*host].1.is_some()).collect();
    let host = *fitting.get(random.below(fitting.len().max(1)))?;
    let gpus = (0..GPUS_MAX).filter(|gpu| rooms[host].gpus[*gpu] >= pod.gpu_milli.max(1));
    let gpus: Vec<usize> = gpus.collect();
    Some((host, gpus.get(random.below(gpus.len().max(1))).copied().unwrap_or(0)))
}

/// The host with the greatest score, and the first of these in the order.
fn best(kept: &[(u32, Scored)], order: &[usize]) -> Option<(usize, usize)> {
    let mut best: Option<(i64, usize, usize)> = None;
    for host in order {
        if let Some((score, gpu)) = kept[*host].1
            && best.is_none_or(|(than, _, _)| score > than)
        {
            best = Some((score, *host, gpu));
        }
    }
    best.map(|(_, host, gpu)| (host, gpu))
}
