//! How large a test is, and how long it may take.

use std::net::Ipv6Addr;

use nave_domain::{Bytes, MilliCpu, Millis};

use crate::{
    Challenge, CpuTask, DevicesTask, MemoryTask, SoftwareTask, StorageTask, Task, TransferTask, devices,
    sizes::{self, BLOCK, CHUNK, Layout, STEPS},
};

/// Steps in a second of what counts as one core: a hardware thread of a server of 2.5 GHz
/// whose other thread is busy too.
pub const REFERENCE_STEPS_PER_S: u64 = 20_000_000;
/// A claim stands up to this many times what was proven, so that a host does not
/// fail because it has other work to do.
pub const TOLERANCE: u64 = 2;
/// How long the opening may take: it needs no work, but may have to be stored first.
const OPENING_MS: i64 = 60_000;
/// Time for a message to come and go, beside what the work takes.
const TRAVEL_MS: i64 = 15_000;
/// Reads in each lane. They are many, so that a block that is computed once for all
/// lanes that want it now is wanted again hundreds of times later.
const READS: u32 = 256;
/// Lanes for each claimed core, and for all of them.
const LANES_PER_CORE: i64 = 1 << 15;
const LANES_MAX: i64 = 1 << 20;
/// Time for a read on one core, twice what is usual and more.
const READ_NS: i64 = 250;
/// What the reads may take in any case: the commitment has to come back, too.
const READS_MS: i64 = 3_000;
/// Most that is written to test a disk, so that the test lasts seconds and not hours.
const FILE_MAX: u64 = 1 << 30;
/// Longest file that a host may be asked for.
const FILE_ASKED_MAX: u64 = 16 << 30;
/// Reads of a disk: few enough for one that spins, all over the file and in chains that can be read together.
const DISK_LANES: u32 = 128;
const DISK_READS: u32 = 64;
/// How many lanes are read again by the verifier: each of their reads is the work of a whole block.
const DISK_SAMPLES: u32 = 24;
/// Most reads that the verifier does again, a fifth of a second of its time.
const DISK_JUDGED_MAX: u64 = 1 << 13;
/// The slowest disk whose reads are waited for, and whose writes are.
const DISK_READS_PER_S: i64 = 60;
const WRITTEN_PER_MS: i64 = 20 << 10;
/// Time to begin a file and to settle it.
const FILE_MS: i64 = 10_000;
/// How long the agent may look: it starts containers, and the engine may be busy with a job's image.
const SOFTWARE_MS: Millis = Millis(120_000);
/// What a transfer carries: a second or so of a line of 100 Mbit/s.
const TRANSFER_BYTES: u64 = 16 << 20;
/// Most that a host may be asked to fetch.
const TRANSFER_MAX: u64 = 1 << 28;
/// How many chunks of it are made again by the verifier.
const TRANSFER_SAMPLES: u32 = 32;
/// Time until the other host is reached: it learns of the transfer at the same time. And for
/// the transfer, after which nothing is taken to have come.
const REACH_MS: i64 = 30_000;
const TRANSFER_MS: i64 = 120_000;
/// Bytes that one core fills in a millisecond, a fraction of what is usual.
const FILL_PER_MS: i64 = 64 << 10;

impl Task {
    /// A test of a claim of computing power that takes a core of the reference rate `length`.
    #[must_use]
    pub fn cpu(milli_cpu: MilliCpu, length: Millis) -> Self {
        let chains = u64::try_from(milli_cpu.0).unwrap_or(1).div_ceil(1000).max(1);
        let steps = u64::try_from(length.0).unwrap_or(0).saturating_mul(REFERENCE_STEPS_PER_S / 1000);
        let segments = (steps / STEPS).clamp(1, (sizes::CHECKPOINTS_MAX / chains).max(1));
        Self::Cpu(CpuTask { milli_cpu, segments: u32::try_from(segments).unwrap_or(u32::MAX), samples: 64 })
    }

    /// A test of a claim of memory, for a host that claims `milli_cpu`, too.
    #[must_use]
    pub fn memory(memory: Bytes, milli_cpu: MilliCpu) -> Self {
        let lanes = LANES_PER_CORE.saturating_mul(milli_cpu.0.max(1000)) / 1000;
        let lanes = lanes.min(LANES_MAX);
        let reads_ns = (lanes * i64::from(READS) * READ_NS).saturating_mul(1000) / milli_cpu.0.max(1000);
        Self::Memory(MemoryTask {
            memory,
            milli_cpu,
            lanes: u32::try_from(lanes).unwrap_or(u32::MAX),
            reads: READS,
            samples: 4,
            reads_ms: Millis(READS_MS + reads_ns / 1_000_000),
        })
    }

    /// A test of a claim of disk: half of it, and a GiB at most, is written and read all over.
    ///
    /// There are as many reads as a spinning disk does in two minutes; what one does in a second is a lower bound,
    /// for the way of a message counts, too.
    #[must_use]
    pub fn storage(disk: Bytes) -> Self {
        let half = u64::try_from(disk.0 / 2).unwrap_or(0);
        let bytes = (half.min(FILE_MAX) / BLOCK).max(1) * BLOCK;
        let write_ms = FILE_MS + i64::try_from(bytes).unwrap_or(i64::MAX) / WRITTEN_PER_MS;
        let reads_ms = i64::from(DISK_LANES * DISK_READS) * 1_000 / DISK_READS_PER_S;
        Self::Storage(StorageTask {
            disk,
            bytes,
            lanes: DISK_LANES,
            reads: DISK_READS,
            samples: DISK_SAMPLES,
            patience_ms: [write_ms, reads_ms, OPENING_MS].map(Millis).to_vec(),
        })
    }

    /// A look at what is installed, loaded and mounted, which takes seconds.
    #[must_use]
    pub fn software() -> Self {
        Self::Software(SoftwareTask { patience_ms: SOFTWARE_MS })
    }

    /// A transfer from the host at this address.
    #[must_use]
    pub fn transfer(source: Ipv6Addr, port: u16) -> Self {
        Self::Transfer(TransferTask {
            source,
            port,
            bytes: TRANSFER_BYTES,
            samples: TRANSFER_SAMPLES,
            patience_ms: [REACH_MS, TRANSFER_MS, OPENING_MS].map(Millis).to_vec(),
        })
    }

    /// Refuses sizes that would cost a host or the verifier too much.
    ///
    /// # Errors
    /// A sentence that says what is out of range.
    pub fn check(&self) -> Result<(), String> {
        let in_range = match self {
            Self::Devices(task) => return devices::check(task),
            Self::Cpu(task) => {
                let layout = Layout::of(task);
                task.milli_cpu.0 > 0
                    && layout.chains() <= sizes::CHAINS_MAX
                    && task.segments > 0
                    && layout.segments() <= sizes::CHECKPOINTS_MAX
                    && (1..=1024).contains(&task.samples)
            }
            Self::Memory(task) => {
                (1..=1 << 50).contains(&task.memory.0)
                    && (1..=1 << 50).contains(&task.milli_cpu.0)
                    && (1..=LANES_MAX).contains(&i64::from(task.lanes))
                    && (1..=1024).contains(&task.reads)
                    && (1..=64).contains(&task.samples)
                    && (1..=600_000).contains(&task.reads_ms.0)
            }
            Self::Storage(task) => {
                let reads = u64::from(task.samples.min(task.lanes)) * u64::from(task.reads);
                (0..=1 << 50).contains(&task.disk.0)
                    && (BLOCK..=FILE_ASKED_MAX).contains(&task.bytes)
                    && task.bytes.is_multiple_of(BLOCK)
                    && (1..=1 << 16).contains(&task.lanes)
                    && (1..=1 << 16).contains(&task.reads)
                    && (1..=DISK_JUDGED_MAX).contains(&reads)
                    && is_patience(&task.patience_ms, 3)
            }
            Self::Software(task) => (1..=600_000).contains(&task.patience_ms.0),
            Self::Transfer(task) => {
                task.port > 0
                    && (CHUNK..=TRANSFER_MAX).contains(&task.bytes)
                    && task.bytes.is_multiple_of(CHUNK)
                    && (1..=1024).contains(&task.samples)
                    && is_patience(&task.patience_ms, 3)
            }
        };
        if in_range { Ok(()) } else { Err("the size of the test is out of range".into()) }
    }

    /// What a core of the reference rate needs for a whole chain, in milliseconds.
    pub(crate) fn chain_ms(task: &CpuTask) -> i64 {
        let steps = u64::from(task.segments).saturating_mul(STEPS);
        i64::try_from(steps.saturating_mul(1000) / REFERENCE_STEPS_PER_S).unwrap_or(i64::MAX)
    }

    /// How long the verifier waits for the answer to a step before silence is the answer.
    #[must_use]
    pub fn patience(&self, step: usize) -> Millis {
        let work = match self {
            Self::Cpu(task) => [Self::chain_ms(task).saturating_mul(8)].get(step).copied(),
            Self::Memory(task) => {
                let per_s = FILL_PER_MS.saturating_mul(task.milli_cpu.0.max(1000)) / 1000;
                [task.memory.0 / per_s, task.reads_ms.0.saturating_mul(4)].get(step).copied()
            }
            Self::Devices(DevicesTask { patience_ms, .. })
            | Self::Storage(StorageTask { patience_ms, .. })
            | Self::Transfer(TransferTask { patience_ms, .. }) => patience_ms.get(step).map(|most| most.0),
            Self::Software(task) => Some(task.patience_ms.0),
        };
        Millis(work.map_or(OPENING_MS, |work| work.saturating_add(TRAVEL_MS)))
    }
}

impl Challenge {
    /// How long the verifier waits for the answer to the present step.
    #[must_use]
    pub fn patience(&self) -> Millis {
        self.task.patience(self.step())
    }
}

/// Whether there is a time for each of so many steps, and none is absurd.
fn is_patience(patience_ms: &[Millis], steps: usize) -> bool {
    patience_ms.len() == steps && patience_ms.iter().all(|most| (1..=600_000).contains(&most.0))
}

/// Bytes of memory that a claim must show, and how many blocks that is.
pub(crate) fn shown(task: &MemoryTask) -> Bytes {
    Bytes(i64::try_from(sizes::blocks(task) * BLOCK).unwrap_or(i64::MAX))
}
