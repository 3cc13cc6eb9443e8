//! Fragmentation gradient descent (Weng et al., USENIX ATC'23), with the truncation of its artifact.

use std::collections::BTreeMap;

use crate::{
    baselines::Room,
    trace::{GPU_MILLI, GPUS_MAX, Pod},
};

pub struct Fgd {
    /// Popular kinds of pods and how many of each.
    typical: Vec<(Pod, i64)>,
    total: i64,
}

/// Share of the history, in percent, that typical pods make up.
const TYPICAL_PERCENT: i64 = 95;

impl Fgd {
    pub fn new(history: &[Pod]) -> Self {
        let mut counts: BTreeMap<Pod, i64> = BTreeMap::new();
        for pod in history {
            *counts.entry(*pod).or_default() += 1;
        }
        let mut counts: Vec<(Pod, i64)> = counts.into_iter().collect();
        counts.sort_by_key(|(pod, count)| (-count, *pod));
        let all: i64 = counts.iter().map(|(_, count)| count).sum();
        let mut total = 0;
        let mut typical = Vec::new();
        for (pod, count) in counts {
            if total * 100 >= all * TYPICAL_PERCENT {
                break;
            }
            total += count;
            typical.push((pod, count));
        }
        Self { typical, total: total.max(1) }
    }

    /// Idle GPU-milli that a typical pod cannot use, times the number of typical pods.
    fn fragmentation(&self, room: &Room) -> i64 {
        let idle: i64 = room.gpus.iter().map(|free| i64::from(*free)).sum();
        let of = |pod: &Pod| match pod.gpus {
            0 => idle,
            _ if !room.fits(pod) => idle,
            _ => room.gpus.iter().filter(|free| **free < pod.gpu_milli).map(|free| i64::from(*free)).sum(),
        };
        self.typical.iter().map(|(pod, count)| count * of(pod)).sum()
    }

    #[expect(clippy::float_arithmetic, reason = "the artifact's score is a sigmoid, truncated")]
    fn truncated(&self, less: i64) -> i64 {
        let less = less as f64 / self.total as f64 / f64::from(GPU_MILLI);
        (100.0 / (1.0 + (-less).exp())) as i64
    }

    pub fn score(&self, room: &Room, pod: &Pod) -> (i64, usize) {
        let before = self.fragmentation(room);
        let after = |gpu: usize| {
            let mut after = *room;
            after.take(pod, gpu);
            self.truncated(before - self.fragmentation(&after))
        };
        if !pod.is_share() {
            return (after(0), 0);
        }
        let fitting = (0..GPUS_MAX).filter(|gpu| room.gpus[*gpu] >= pod.gpu_milli);
        let mut gpus: Vec<usize> = fitting.collect();
        gpus.sort_by_key(|gpu| (room.gpus[*gpu], *gpu));
        gpus.dedup_by_key(|gpu| room.gpus[*gpu]);
        let scored = gpus.into_iter().rev().map(|gpu| (after(gpu), gpu));
        scored.max_by_key(|(score, _)| *score).unwrap_or((0, 0))
    }
}
