//! Leases: one attempt of a job on one host, and how it ends.

use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// Where a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// The host was told; nothing is charged yet.
    Placed,
    /// The host said that the command runs; every second is charged.
    Running,
    /// The host was told to end the command and has not confirmed.
    Stopping,
    /// The command has ended, its logs and results are on their way; nothing more is charged.
    Draining,
    /// Over; its [`Outcome`] is set and its charge is final.
    Closed,
}

impl LeaseState {
    /// All states, in the order of a lease's life.
    pub const ALL: [Self; 5] = [Self::Placed, Self::Running, Self::Stopping, Self::Draining, Self::Closed];

    /// The name in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Draining => "draining",
            Self::Closed => "closed",
        }
    }
}

/// What can happen to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeaseEvent {
    /// The host reports that the command runs.
    Started,
    /// The control plane wants it ended.
    Stop,
    /// The host reports that the command has ended.
    Exited,
    /// The host has delivered all it has, or failed to start it.
    Finished,
    /// The host was silent for longer than its fence and the margin.
    Lost,
}

impl LeaseEvent {
    /// All events.
    pub const ALL: [Self; 5] = [Self::Started, Self::Stop, Self::Exited, Self::Finished, Self::Lost];
}

/// A lease's state after `event`; `None` where the event is illegal.
///
/// A report that comes again is legal and changes nothing: hosts repeat
/// themselves until they are heard.
#[must_use]
pub fn next(state: LeaseState, event: LeaseEvent) -> Option<LeaseState> {
    use LeaseEvent as E;
    use LeaseState as S;
    match (state, event) {
        (S::Placed | S::Running, E::Started) => Some(S::Running),
        (S::Placed | S::Running, E::Stop) | (S::Stopping, E::Started | E::Stop) => Some(S::Stopping),
        (S::Placed | S::Running | S::Stopping, E::Exited) | (S::Draining, E::Exited | E::Stop) => {
            Some(S::Draining)
        }
        (S::Placed | S::Running | S::Stopping | S::Draining, E::Finished | E::Lost) => Some(S::Closed),
        (S::Draining, E::Started) | (S::Closed, _) => None,
    }
}

/// Why the host of an attempt was chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ChosenFor {
    /// No other one fitted.
    #[default]
    OnlyFit,
    /// None of those that fitted is cheaper.
    Cheapest,
    /// Cheaper ones have failed the job before.
    FailedElsewhere,
    /// Cheaper ones have GPUs, which the job does not need.
    KeepsGpusFree,
    /// Cheaper ones would be missed more by others.
    LeastCost,
    /// The customer had a quote for it.
    Quoted,
}

impl ChosenFor {
    /// All reasons.
    pub const ALL: [Self; 6] = [
        Self::OnlyFit,
        Self::Cheapest,
        Self::FailedElsewhere,
        Self::KeepsGpusFree,
        Self::LeastCost,
        Self::Quoted,
    ];

    /// The name in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OnlyFit => "only_fit",
            Self::Cheapest => "cheapest",
            Self::FailedElsewhere => "failed_elsewhere",
            Self::KeepsGpusFree => "keeps_gpus_free",
            Self::LeastCost => "least_cost",
            Self::Quoted => "quoted",
        }
    }
}

/// Why the control plane ends a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The customer cancelled the job.
    Cancelled,
    /// It did not start within its start limit.
    StartTimeout,
    /// It ran into its run limit.
    RunTimeout,
    /// It used up what the customer set aside for it.
    SpendCap,
    /// Its spot job yields to another one.
    Preempted,
}

impl StopReason {
    /// All reasons.
    pub const ALL: [Self; 5] =
        [Self::Cancelled, Self::StartTimeout, Self::RunTimeout, Self::SpendCap, Self::Preempted];

    /// The name in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::StartTimeout => "start_timeout",
            Self::RunTimeout => "run_timeout",
            Self::SpendCap => "spend_cap",
            Self::Preempted => "preempted",
        }
    }

    /// How a lease ended for this reason is recorded.
    #[must_use]
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Cancelled => Outcome::Cancelled,
            Self::StartTimeout => Outcome::StartTimeout,
            Self::RunTimeout => Outcome::RunTimeout,
            Self::SpendCap => Outcome::SpendCap,
            Self::Preempted => Outcome::Preempted,
        }
    }
}

/// How a lease ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Outcome {
    /// The command exited by itself.
    Exited {
        /// Its exit code; 128 + n for a signal n.
        code: i32,
    },
    /// The command used more memory than its limit and was ended by the kernel.
    OutOfMemory,
    /// The command used more memory of its share of a GPU than it had asked for, and its host ended it.
    OutOfGpuMemory {
        /// What it had asked for.
        asked: Bytes,
        /// What it was seen to use.
        used: Bytes,
    },
    /// The command was killed, by nothing that the market knows of, or exited with 137.
    Killed,
    /// The container could not be started.
    StartFailed {
        /// What the host said about it.
        detail: String,
    },
    /// It did not start within its start limit.
    StartTimeout,
    /// It ran into its run limit.
    RunTimeout,
    /// It used up what the customer set aside for it.
    SpendCap,
    /// The customer cancelled the job.
    Cancelled,
    /// Its spot job yielded to another one; it runs again.
    Preempted,
    /// The host fell silent, or lost what the command ran in or computed with; the customer is not charged for this attempt.
    HostLost,
}

impl Outcome {
    /// Whether the attempt ended through the host rather than through the job.
    #[must_use]
    pub fn is_hosts_fault(&self) -> bool {
        matches!(self, Self::HostLost | Self::StartFailed { .. } | Self::Killed)
    }

    /// Whether the customer pays for the time the attempt ran.
    #[must_use]
    pub fn is_charged(&self) -> bool {
        !matches!(self, Self::HostLost | Self::StartFailed { .. } | Self::StartTimeout)
    }

    /// The exit code that a customer sees, where there is one.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Exited { code } => Some(*code),
            Self::OutOfMemory | Self::OutOfGpuMemory { .. } | Self::Killed => Some(137),
            Self::StartFailed { .. }
            | Self::StartTimeout
            | Self::RunTimeout
            | Self::SpendCap
            | Self::Cancelled
            | Self::Preempted
            | Self::HostLost => None,
        }
    }
}
