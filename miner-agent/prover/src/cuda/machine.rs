//! What a GPU does for its proofs, as few things as there need to be: memory, copies, launches, order.

use nave_proof::Failure;

/// A kernel; `kernels/README.md` says what each does and what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    Expand,
    Gemm,
    Leaves,
    Tree256,
    TreeLevel,
    Fill,
    Lanes,
    LanesAgain,
    Stream,
    StreamAgain,
}

impl Kernel {
    pub(super) const ALL: [Self; 10] = [
        Self::Expand,
        Self::Gemm,
        Self::Leaves,
        Self::Tree256,
        Self::TreeLevel,
        Self::Fill,
        Self::Lanes,
        Self::LanesAgain,
        Self::Stream,
        Self::StreamAgain,
    ];

    /// Its name in the modules.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Expand => "expand_operand",
            Self::Gemm => "gemm",
            Self::Leaves => "leaves",
            Self::Tree256 => "tree_256",
            Self::TreeLevel => "tree_level",
            Self::Fill => "fill",
            Self::Lanes => "lanes",
            Self::LanesAgain => "lanes_again",
            Self::Stream => "stream",
            Self::StreamAgain => "stream_again",
        }
    }

    /// Threads of a block; those of `gemm` are its module's.
    pub(super) fn threads(self) -> u32 {
        match self {
            Self::Leaves | Self::Tree256 => 128,
            Self::Expand
            | Self::Gemm
            | Self::TreeLevel
            | Self::Fill
            | Self::Lanes
            | Self::LanesAgain
            | Self::Stream
            | Self::StreamAgain => 256,
        }
    }
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arg {
    /// An address in the device's memory, or none.
    At(u64),
    U32(u32),
    U64(u64),
}

/// What is launched or copied in one queue happens in order; queues do not wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    /// The work itself.
    Work,
    /// What hashes its results: it goes first where both could go on.
    Hash,
}

/// A moment in a queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark(pub(super) usize);

/// A GPU. What it is asked for happens later, until [`Machine::settle`].
pub(super) trait Machine: Send {
    /// Memory of the device.
    fn take(&mut self, bytes: u64) -> Result<u64, Failure>;
    fn free(&mut self, address: u64);
    /// Memory of the host that the device copies from and to at its full rate; gone with the machine.
    fn take_host(&mut self, bytes: u64) -> Result<u64, Failure>;
    fn launch(&mut self, queue: Queue, kernel: Kernel, grid: u64, args: &[Arg]) -> Result<(), Failure>;
    /// Copies host memory that [`Machine::take_host`] gave to the device.
    fn up(&mut self, queue: Queue, to: u64, host: u64, bytes: u64) -> Result<(), Failure>;
    /// Copies the device's memory to host memory that [`Machine::take_host`] gave.
    fn down(&mut self, queue: Queue, host: u64, from: u64, bytes: u64) -> Result<(), Failure>;
    /// This moment in a queue, for the other one to wait for.
    fn mark(&mut self, queue: Queue) -> Result<Mark, Failure>;
    fn wait(&mut self, queue: Queue, mark: Mark) -> Result<(), Failure>;
    /// Waits for both queues; marks are forgotten.
    fn settle(&mut self) -> Result<(), Failure>;
    /// Writes bytes to the device, after both queues.
    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), Failure>;
    /// Reads bytes of the device, after both queues.
    fn read(&mut self, from: u64, into: &mut [u8]) -> Result<(), Failure>;
}
