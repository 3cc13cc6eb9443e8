//! What is launched on a GPU, and in which order.

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
