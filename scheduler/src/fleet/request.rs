//! What is asked for.

/// What one placement takes from a host, and what it needs that host to be.
///
/// Equal requests are one *kind*: the fleet remembers what it found out about a kind, so
/// whoever makes requests should round what need not be exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// Thousandths of a core.
    pub milli_cpu: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Disk in MiB.
    pub disk_mib: u32,
    /// What it takes of devices.
    pub gpus: Gpus,
    /// Device classes that will do, one bit for each.
    pub classes: u64,
    /// Zones that will do, one bit for each.
    pub zones: u64,
    /// What the host must have, one bit for each.
    pub needs: u64,
    /// The most it pays, in micro-USD an hour.
    pub hourly_max: i64,
    /// How long it is expected to run, in minutes; at least one.
    pub run_minutes: u32,
    /// Work that is done again when its host is lost, in minutes.
    pub redo_minutes: u32,
    /// Which hosts and devices will do beyond all this, as [`Fleet::wish`](super::Fleet::wish) was told; 0 for all.
    pub wish: u32,
    /// Who asks, as [`Fleet::invite`](super::Fleet::invite) was told; 0 for nobody in particular.
    pub guest: u32,
}

/// What a request takes of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gpus {
    /// Nothing.
    None,
    /// A part of one device.
    Share {
        /// Thousandths of its time, below a whole device.
        milli: u16,
        /// Its memory in MiB; sold together with the time and never twice.
        vram_mib: u32,
    },
    /// Whole devices of one host.
    Whole {
        /// How many; at least one.
        count: u8,
        /// The least memory of each, in MiB.
        vram_mib: u32,
    },
}

/// Thousandths of a whole device.
pub const DEVICE_MILLI: u16 = 1_000;

impl Request {
    /// A request for CPU and memory that accepts every host and price.
    #[must_use]
    pub const fn new(milli_cpu: u32, memory_mib: u32, gpus: Gpus) -> Self {
        Self {
            milli_cpu,
            memory_mib,
            disk_mib: 0,
            gpus,
            classes: u64::MAX,
            zones: u64::MAX,
            needs: 0,
            hourly_max: i64::MAX,
            run_minutes: 60,
            redo_minutes: 0,
            wish: 0,
            guest: 0,
        }
    }

    /// Device time that it takes, in thousandths of a device.
    #[must_use]
    pub const fn gpu_milli(&self) -> u32 {
        match self.gpus {
            Gpus::None => 0,
            Gpus::Share { milli, .. } => milli as u32,
            Gpus::Whole { count, .. } => count as u32 * DEVICE_MILLI as u32,
        }
    }

    /// How many whole devices it takes at once.
    #[must_use]
    pub const fn whole(&self) -> u8 {
        match self.gpus {
            Gpus::None | Gpus::Share { .. } => 0,
            Gpus::Whole { count, .. } => count,
        }
    }
}
