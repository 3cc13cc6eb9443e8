//! Hosts: what they have, what they offer and their states.

use serde::{Deserialize, Serialize};

use crate::{
    job::Egress,
    units::{Bytes, MilliCpu},
};

/// What a host says it has. Nothing in it is proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// Capacity offered to jobs: thousandths of a virtual CPU.
    pub milli_cpu: MilliCpu,
    /// Capacity offered to jobs: memory in bytes.
    pub memory: Bytes,
    /// Capacity offered to jobs: space for working directories in bytes.
    pub disk: Bytes,
    /// GPUs.
    pub devices: Vec<Device>,
    /// Processor model, as in /proc/cpuinfo.
    pub cpu_model: String,
    /// Operating system, as in /etc/os-release.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// What runs the jobs.
    pub runtime: Runtime,
    /// The egress policies that this host can enforce.
    pub egress: Vec<Egress>,
    /// Version of the agent.
    pub agent: String,
}

/// What runs a host's jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Runtime {
    /// A Docker Engine.
    Docker {
        /// Its version.
        version: String,
    },
    /// Nothing: commands are acted out, never executed.
    Simulated,
}

/// One GPU, as NVML describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// The vendor's identifier, such as `GPU-4f2b…`.
    pub uuid: String,
    /// Model name.
    pub model: String,
    /// Memory in bytes.
    pub vram: Bytes,
    /// Driver version.
    pub driver: String,
}

/// Bounds that keep a hostile inventory from costing memory.
pub const DEVICES_MAX: usize = 64;
/// Longest text of an inventory, in bytes.
pub const TEXT_MAX: usize = 256;

impl Inventory {
    /// Refuses an inventory that no machine could have.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        let amounts = [("milli_cpu", self.milli_cpu.0), ("memory", self.memory.0), ("disk", self.disk.0)];
        if let Some((field, value)) = amounts.iter().find(|(_, value)| !(0..=1 << 50).contains(value)) {
            return Err(format!("{field}: {value} is out of range"));
        }
        if self.devices.len() > DEVICES_MAX {
            return Err(format!("devices: more than {DEVICES_MAX}"));
        }
        if self.egress.len() > 8 {
            return Err("egress: more policies than exist".into());
        }
        let mut uuids: Vec<&str> = self.devices.iter().map(|device| device.uuid.as_str()).collect();
        uuids.sort_unstable();
        if uuids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("devices: one uuid stands twice".into());
        }
        if self.devices.iter().any(|device| !(0..=1 << 42).contains(&device.vram.0)) {
            return Err("devices: vram is out of range".into());
        }
        self.check_texts()
    }

    fn check_texts(&self) -> Result<(), String> {
        let version = match &self.runtime {
            Runtime::Docker { version } => version.as_str(),
            Runtime::Simulated => "",
        };
        let of_devices = self.devices.iter().flat_map(|device| [&device.uuid, &device.model, &device.driver]);
        let all = [&self.cpu_model, &self.os, &self.kernel, &self.agent].into_iter().chain(of_devices);
        match all
            .map(String::as_str)
            .chain([version])
            .find(|text| text.len() > TEXT_MAX || text.contains('\0'))
        {
            Some(_) => Err(format!("a text is longer than {TEXT_MAX} bytes or contains a NUL byte")),
            None => Ok(()),
        }
    }
}

/// Where a host stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Known, not heard yet.
    Enrolled,
    /// Claims more than it has proven; takes no jobs until it has.
    Verifying,
    /// Takes jobs.
    Ready,
    /// Silent for longer than it should be; takes no new jobs.
    Suspect,
    /// Failed a proof; takes no jobs until it passes one.
    Refused,
    /// Finishes its jobs, takes no new ones, and leaves when the last is done.
    Draining,
    /// Left for good.
    Gone,
    /// Sent away by the operator for good.
    Banned,
}

impl HostState {
    /// All states, in the order of a host's life.
    pub const ALL: [Self; 8] = [
        Self::Enrolled,
        Self::Verifying,
        Self::Ready,
        Self::Suspect,
        Self::Refused,
        Self::Draining,
        Self::Gone,
        Self::Banned,
    ];

    /// The name in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Verifying => "verifying",
            Self::Ready => "ready",
            Self::Suspect => "suspect",
            Self::Refused => "refused",
            Self::Draining => "draining",
            Self::Gone => "gone",
            Self::Banned => "banned",
        }
    }

    /// Whether the host is part of the mesh and heard when it speaks.
    #[must_use]
    pub fn is_member(self) -> bool {
        match self {
            Self::Enrolled
            | Self::Verifying
            | Self::Ready
            | Self::Suspect
            | Self::Refused
            | Self::Draining => true,
            Self::Gone | Self::Banned => false,
        }
    }
}

/// What can happen to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HostEvent {
    /// A valid report came, and what it claims has been proven.
    Heard,
    /// A valid report came that claims more than has been proven.
    Claimed,
    /// It missed its reports for a while.
    Silent,
    /// It passed its proofs.
    Proved,
    /// It failed a proof.
    Failed,
    /// It may try its proofs again.
    Retry,
    /// It enrolled again, on other hardware or without its keys.
    Rejoin,
    /// Its owner wants it empty.
    Drain,
    /// The last of its leases was closed.
    Emptied,
    /// Its owner takes it out.
    Leave,
    /// The operator sends it away.
    Ban,
}

impl HostEvent {
    /// All events.
    pub const ALL: [Self; 11] = [
        Self::Heard,
        Self::Claimed,
        Self::Silent,
        Self::Proved,
        Self::Failed,
        Self::Retry,
        Self::Rejoin,
        Self::Drain,
        Self::Emptied,
        Self::Leave,
        Self::Ban,
    ];
}

/// A host's state after `event`; `None` where the event is illegal.
#[must_use]
pub fn next(state: HostState, event: HostEvent) -> Option<HostState> {
    use HostEvent as E;
    use HostState as S;
    match (state, event) {
        (S::Gone | S::Banned, _) => None,
        (_, E::Ban) => Some(S::Banned),
        (_, E::Leave) => Some(S::Gone),
        (S::Draining, E::Emptied) => Some(S::Gone),
        (S::Draining, E::Heard | E::Claimed | E::Silent | E::Proved | E::Failed | E::Drain)
        | (_, E::Drain) => Some(S::Draining),
        (S::Draining, E::Retry | E::Rejoin) | (_, E::Emptied) => None,
        (_, E::Rejoin) => Some(S::Enrolled),
        (S::Enrolled | S::Verifying | S::Ready | S::Suspect, E::Heard) => Some(S::Ready),
        (S::Enrolled | S::Verifying | S::Ready | S::Suspect, E::Claimed) => Some(S::Verifying),
        (S::Refused, E::Heard | E::Claimed | E::Silent) => Some(S::Refused),
        (S::Enrolled, E::Silent) => Some(S::Enrolled),
        (S::Verifying | S::Ready | S::Suspect, E::Silent) | (S::Suspect, E::Proved) => Some(S::Suspect),
        (S::Verifying | S::Ready, E::Proved) => Some(S::Ready),
        (S::Verifying | S::Ready | S::Suspect, E::Failed) => Some(S::Refused),
        (S::Refused, E::Retry) => Some(S::Verifying),
        (S::Enrolled | S::Refused, E::Proved | E::Failed)
        | (S::Enrolled | S::Verifying | S::Ready | S::Suspect, E::Retry) => None,
    }
}

/// For how long capacity is offered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Term {
    /// Until its owner drains it.
    #[default]
    OnDemand,
    /// Its owner may take it back at any time.
    Spot,
}

impl Term {
    /// All terms.
    pub const ALL: [Self; 2] = [Self::OnDemand, Self::Spot];

    /// The name in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OnDemand => "on_demand",
            Self::Spot => "spot",
        }
    }
}

/// What a host has proven: the claims it passed its proofs with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Proven {
    /// Thousandths of a virtual CPU.
    pub milli_cpu: MilliCpu,
    /// Memory in bytes.
    pub memory: Bytes,
    /// The processor it was proven on; another one is another machine.
    pub cpu_model: String,
}

impl Proven {
    /// What passing proofs with these claims proves.
    #[must_use]
    pub fn of(inventory: &Inventory) -> Self {
        Self {
            milli_cpu: inventory.milli_cpu,
            memory: inventory.memory,
            cpu_model: inventory.cpu_model.clone(),
        }
    }

    /// Whether these claims need no further proof.
    #[must_use]
    pub fn covers(&self, claims: &Inventory) -> bool {
        claims.milli_cpu <= self.milli_cpu
            && claims.memory <= self.memory
            && claims.cpu_model == self.cpu_model
    }
}

/// How far a host's claims have been tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// Nothing it says has been tested.
    Unrated,
}
