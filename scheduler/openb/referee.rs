//! Judges a list of placements by the rules of the trace alone: it keeps its own account
//! of what is free and knows nothing of who placed.

use crate::trace::{GPU_MILLI, Host, Placed, Pod};

/// What became of a run.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// GPU-milli requested and placed after each arrival.
    pub curve: Vec<(u64, u64)>,
    pub infeasible: Vec<String>,
    /// Pods that were refused although a host had room.
    pub refused: Vec<usize>,
}

struct Room {
    milli_cpu: u32,
    memory_mib: u32,
    gpus: Vec<u16>,
}

impl Room {
    fn fits(&self, host: &Host, pod: &Pod) -> bool {
        self.milli_cpu >= pod.milli_cpu
            && self.memory_mib >= pod.memory_mib
            && pod.models >> host.model & 1 == 1
            && match pod.gpus {
                0 => true,
                1 => self.gpus.iter().any(|free| *free >= pod.gpu_milli),
                wanted => self.gpus.iter().filter(|free| **free == GPU_MILLI).count() >= usize::from(wanted),
            }
    }

    /// Takes what the placement takes, or says what is wrong with it.
    fn take(&mut self, host: &Host, pod: &Pod, placed: &Placed) -> Result<(), String> {
        if pod.models >> host.model & 1 == 0 {
            return Err("another model".into());
        }
        if placed.gpus.len() != usize::from(pod.gpus) || !placed.gpus.is_sorted_by(|a, b| a < b) {
            return Err(format!("{:?} for {} GPUs", placed.gpus, pod.gpus));
        }
        self.milli_cpu = self.milli_cpu.checked_sub(pod.milli_cpu).ok_or("CPU is oversold")?;
        self.memory_mib = self.memory_mib.checked_sub(pod.memory_mib).ok_or("memory is oversold")?;
        for gpu in &placed.gpus {
            let free = self.gpus.get_mut(usize::from(*gpu)).ok_or("no such GPU")?;
            *free = free.checked_sub(pod.gpu_milli).ok_or("a GPU is oversold")?;
        }
        Ok(())
    }
}

/// Replays the placements over the arrivals.
pub fn judge(hosts: &[Host], arrivals: &[Pod], placed: &[Placed]) -> Verdict {
    let room = |host: &Host| Room {
        milli_cpu: host.milli_cpu,
        memory_mib: host.memory_mib,
        gpus: vec![GPU_MILLI; usize::from(host.gpus)],
    };
    let mut rooms: Vec<Room> = hosts.iter().map(room).collect();
    let mut verdict = Verdict::default();
    let mut rows = placed.iter().peekable();
    let (mut requested, mut got) = (0, 0);
    for (at, pod) in arrivals.iter().enumerate() {
        requested += pod.gpu_total();
        match rows.next_if(|row| row.pod == at) {
            Some(row) => match rooms[row.host].take(&hosts[row.host], pod, row) {
                Ok(()) => got += pod.gpu_total(),
                Err(what) => verdict.infeasible.push(format!("pod {at} on {}: {what}", hosts[row.host].name)),
            },
            None if rooms.iter().zip(hosts).any(|(room, host)| room.fits(host, pod)) => {
                verdict.refused.push(at)
            }
            None => {}
        }
        verdict.curve.push((requested, got));
    }
    if let Some(row) = rows.next() {
        verdict.infeasible.push(format!("pod {} is placed out of turn", row.pod));
    }
    verdict
}

impl Verdict {
    /// Placed GPU in parts of 100 000 of all, when that many percent of it were requested.
    pub fn allocation_at(&self, percent: u64, hosts: &[Host]) -> u64 {
        let all: u64 = hosts.iter().map(|host| u64::from(host.gpus) * u64::from(GPU_MILLI)).sum();
        let reached = self.curve.iter().find(|(requested, _)| requested * 100 >= percent * all);
        let (_, got) = reached.or(self.curve.last()).copied().unwrap_or_default();
        got * 100_000 / all.max(1)
    }
}
