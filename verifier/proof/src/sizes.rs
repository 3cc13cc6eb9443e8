//! How the work of the tests of cores and memory is divided.

use nave_domain::Bytes;

use crate::{CpuTask, MemoryTask};

/// Steps in a segment of a chain.
pub const STEPS: u64 = 4096;
/// Most checkpoints of all chains together: 256 MiB at the host while it works.
pub(crate) const CHECKPOINTS_MAX: u64 = 1 << 23;
/// Most chains: each is a thread of the prover.
pub(crate) const CHAINS_MAX: u64 = 1024;
/// Lines in a block of memory.
pub(crate) const LINES: u64 = 1024;
/// Words of 64 bits in a line.
pub(crate) const WORDS: u64 = 8;
/// Bytes in a block.
pub const BLOCK: u64 = LINES * WORDS * 8;

/// Bytes that a test of a disk reads at once.
pub const PIECE: u64 = 4096;

/// Entries of a row of a product that are hashed together.
pub const TILE: usize = 256;
/// Bytes in a block of a GPU's fill.
pub const VRAM_BLOCK: u64 = 32;
/// Bytes in a chunk, the unit of passes, spills and transfers.
pub const CHUNK: u64 = 64 << 10;

/// Where each chain's checkpoints stand among all.
pub(crate) struct Layout {
    whole: u64,
    last: u64,
    chains: u64,
}

impl Layout {
    pub(crate) fn of(task: &CpuTask) -> Self {
        let milli = u64::try_from(task.milli_cpu.0).unwrap_or(0).max(1);
        let whole = u64::from(task.segments).max(1);
        let rest = milli - (milli.div_ceil(1000) - 1).saturating_mul(1000);
        Self { whole, last: whole.saturating_mul(rest).div_ceil(1000), chains: milli.div_ceil(1000) }
    }

    pub(crate) fn chains(&self) -> u64 {
        self.chains
    }

    /// Segments of all chains together.
    pub(crate) fn segments(&self) -> u64 {
        (self.chains - 1).saturating_mul(self.whole).saturating_add(self.last)
    }

    pub(crate) fn segments_of(&self, chain: u64) -> u64 {
        if chain + 1 == self.chains { self.last } else { self.whole }
    }

    pub(crate) fn first_of(&self, chain: u64) -> u64 {
        chain * self.whole
    }

    pub(crate) fn chain_of(&self, segment: u64) -> u64 {
        segment / self.whole
    }

    pub(crate) fn is_first_of_its_chain(&self, segment: u64) -> bool {
        segment.is_multiple_of(self.whole)
    }
}

/// What of a claim is filled: all but a sixteenth and 32 MiB, which the system, the agent
/// and the prover need, and half of it at least.
#[must_use]
pub fn covered(claim: Bytes) -> Bytes {
    let claim = claim.0.max(0);
    Bytes(claim - (claim / 16).saturating_add(32 << 20).min(claim / 2))
}

pub(crate) fn blocks(task: &MemoryTask) -> u64 {
    u64::try_from(covered(task.memory).0).unwrap_or(0).div_ceil(BLOCK).max(1)
}

#[cfg(test)]
mod tests {
    use nave_domain::MilliCpu;

    use super::*;

    #[test]
    fn the_last_core_of_a_claim_does_its_fraction() {
        let segments = |milli_cpu| Layout::of(&task(milli_cpu)).segments();
        assert_eq!([1, 999, 1000, 1001, 1500, 64_000].map(segments), [1, 999, 1000, 1001, 1500, 64_000]);
        assert_eq!(Layout::of(&task(1001)).chains(), 2);
    }

    #[test]
    fn all_but_a_small_part_of_a_claim_is_filled() {
        assert_eq!(covered(Bytes(8 * Bytes::GIB)), Bytes(8 * Bytes::GIB - (512 << 20) - (32 << 20)));
        assert_eq!(covered(Bytes(10)), Bytes(5));
        assert_eq!(covered(Bytes(-10)), Bytes(0));
    }

    fn task(milli_cpu: i64) -> CpuTask {
        CpuTask { milli_cpu: MilliCpu(milli_cpu), segments: 1000, samples: 1 }
    }
}
