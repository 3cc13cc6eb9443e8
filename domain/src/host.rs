//! Hosts: what they have, what they offer and their states.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    fraction::{Division, Slice},
    job::Egress,
    units::{Bytes, MilliCpu},
    verdict::Kind,
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

/// One GPU, as NVML describes it, or as a file does that simulates it.
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
    /// There is no such GPU: its work is computed by the processor, in the time that its
    /// description allows. Its identifier begins with [`Device::SIMULATED`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
    /// How it is leased.
    #[serde(default, skip_serializing_if = "Division::is_whole")]
    pub division: Division,
}

impl Device {
    /// What the identifiers of simulated devices begin with, and of no others.
    pub const SIMULATED: &str = "SIM-";

    /// The model for people, who must see that a device is simulated.
    #[must_use]
    pub fn label(&self) -> String {
        if self.simulated { format!("{} (simulated)", self.model) } else { self.model.clone() }
    }

    /// What is proven of it, each as a device of its own: all of it, or its slices where it is cut. Nothing can compute on a
    /// device that is cut as a whole.
    #[must_use]
    pub fn parts(&self) -> Vec<Device> {
        match &self.division {
            Division::Whole | Division::Shares => vec![self.clone()],
            Division::Slices(slices) => slices.iter().map(|slice| self.part(slice)).collect(),
        }
    }

    /// A slice as CUDA shows it to who computes there.
    fn part(&self, slice: &Slice) -> Device {
        Device {
            uuid: slice.uuid.clone(),
            model: format!("{}{SLICED}{}", self.model, slice.profile),
            vram: slice.vram,
            driver: self.driver.clone(),
            simulated: self.simulated,
            division: Division::Whole,
        }
    }

    /// Whether it is called a slice of a device. No name of a whole device has that word in it.
    #[must_use]
    pub fn is_slice(&self) -> bool {
        is_slice(&self.model)
    }

    /// The identifier for people, who must see that a device is simulated.
    #[must_use]
    pub fn label_of(uuid: &str) -> String {
        if uuid.starts_with(Self::SIMULATED) { format!("{uuid} (simulated)") } else { uuid.to_owned() }
    }
}

/// What stands between the model of a device and the profile of a slice of it.
const SLICED: &str = " MIG ";

/// Whether this is the model of a slice.
#[must_use]
pub fn is_slice(model: &str) -> bool {
    model.contains(SLICED)
}

/// All that is proven of these devices; see [`Device::parts`].
#[must_use]
pub fn parts(devices: &[Device]) -> Vec<Device> {
    devices.iter().flat_map(Device::parts).collect()
}

/// Those of these devices of which a part is among `shown`.
#[must_use]
pub fn devices_of(devices: &[Device], shown: &[String]) -> Vec<String> {
    let is_shown = |device: &&Device| device.parts().iter().any(|part| shown.contains(&part.uuid));
    devices.iter().filter(is_shown).map(|device| device.uuid.clone()).collect()
}

/// Bounds that keep a hostile inventory from costing memory. Devices and slices of others count together: as many are
/// tested at once.
pub const DEVICES_MAX: usize = 64;
/// Longest text of an inventory, in bytes.
pub const TEXT_MAX: usize = 256;

impl Inventory {
    /// The devices that jobs can get whole: simulated ones only where jobs are simulated, too.
    pub fn rentable_devices(&self) -> impl Iterator<Item = &Device> {
        self.usable_devices().filter(|device| match device.division {
            Division::Whole | Division::Shares => true,
            Division::Slices(_) => false,
        })
    }

    /// The slices that jobs can get, with their devices.
    pub fn rentable_slices(&self) -> impl Iterator<Item = (&Device, &Slice)> {
        self.usable_devices()
            .flat_map(|device| device.division.slices().iter().map(move |slice| (device, slice)))
    }

    /// The devices of which jobs can get something.
    fn usable_devices(&self) -> impl Iterator<Item = &Device> {
        let acted_out = match &self.runtime {
            Runtime::Simulated => true,
            Runtime::Docker { .. } => false,
        };
        self.devices.iter().filter(move |device| acted_out || !device.simulated)
    }

    /// Refuses an inventory that no machine could have.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        let amounts = [("milli_cpu", self.milli_cpu.0), ("memory", self.memory.0), ("disk", self.disk.0)];
        if let Some((field, value)) = amounts.iter().find(|(_, value)| !(0..=1 << 50).contains(value)) {
            return Err(format!("{field}: {value} is out of range"));
        }
        if self.devices.len() > DEVICES_MAX || parts(&self.devices).len() > DEVICES_MAX {
            return Err(format!("devices: more than {DEVICES_MAX}, or as many slices"));
        }
        if self.egress.len() > 8 {
            return Err("egress: more policies than exist".into());
        }
        let slices = || self.devices.iter().flat_map(|device| device.division.slices());
        let devices = self.devices.iter().map(|device| device.uuid.as_str());
        let mut uuids: Vec<&str> = devices.chain(slices().map(|slice| slice.uuid.as_str())).collect();
        uuids.sort_unstable();
        if uuids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("devices: one uuid stands twice".into());
        }
        let is_misnamed = |device: &Device| device.simulated != device.uuid.starts_with(Device::SIMULATED);
        if self.devices.iter().any(is_misnamed) || parts(&self.devices).iter().any(is_misnamed) {
            return Err("devices: the identifiers of simulated ones begin with SIM-, and of no others".into());
        }
        if self.devices.iter().any(|device| !(0..=1 << 42).contains(&device.vram.0)) {
            return Err("devices: vram is out of range".into());
        }
        for device in &self.devices {
            device.division.check(device.vram).map_err(|problem| format!("devices: {problem}"))?;
        }
        self.check_texts()
    }

    fn check_texts(&self) -> Result<(), String> {
        let version = match &self.runtime {
            Runtime::Docker { version } => version.as_str(),
            Runtime::Simulated => "",
        };
        let of_devices = self.devices.iter().flat_map(|device| [&device.uuid, &device.model, &device.driver]);
        let slices = self.devices.iter().flat_map(|device| device.division.slices());
        let of_slices = slices.flat_map(|slice| [&slice.uuid, &slice.profile]);
        let all = [&self.cpu_model, &self.os, &self.kernel, &self.agent]
            .into_iter()
            .chain(of_devices)
            .chain(of_slices);
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

/// What a host has proven: the claims it passed its proofs with. What is none was not tested,
/// and any claim of it stands.
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
    /// Space for working directories in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
    /// GPUs by their identifiers, or their slices where they are cut; others, more or fewer are another machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<BTreeMap<String, ProvenDevice>>,
    /// Kernel release with which the software was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
}

/// What one GPU, or a slice of one, has proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ProvenDevice {
    /// Its class by what it measured; none where nothing is known of its model: it is unrated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// The models of that class: what else it may be asked for by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// What it was called, which nobody has proven: it is what customers are shown and pay for. None
    /// where it was proven before models were kept; then it must be proven again.
    #[serde(default)]
    pub model: String,
    /// Memory in bytes that it was claimed to have.
    pub vram: Bytes,
    /// Driver version.
    pub driver: String,
    /// There is no such GPU, and it was tested as one that is simulated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
}

impl ProvenDevice {
    /// What a device has proven that passed its tests with this claim.
    #[must_use]
    pub fn of(claim: &Device, class: Option<String>) -> Self {
        Self {
            class,
            models: Vec::new(),
            model: claim.model.clone(),
            vram: claim.vram,
            driver: claim.driver.clone(),
            simulated: claim.simulated,
        }
    }

    /// Whether this claim is of the same device, with as much memory at most.
    fn covers(&self, claim: &Device) -> bool {
        claim.vram <= self.vram
            && claim.model == self.model
            && claim.driver == self.driver
            && claim.simulated == self.simulated
    }
}

impl Proven {
    /// What passing proofs of cores and memory with these claims proves.
    #[must_use]
    pub fn of(inventory: &Inventory) -> Self {
        Self {
            milli_cpu: inventory.milli_cpu,
            memory: inventory.memory,
            cpu_model: inventory.cpu_model.clone(),
            disk: None,
            devices: None,
            kernel: None,
        }
    }

    /// Whether these claims need no further proof.
    #[must_use]
    pub fn covers(&self, claims: &Inventory) -> bool {
        claims.milli_cpu <= self.milli_cpu
            && claims.memory <= self.memory
            && claims.cpu_model == self.cpu_model
            && self.disk.is_none_or(|disk| claims.disk <= disk)
            && self.kernel.as_ref().is_none_or(|kernel| claims.kernel == *kernel)
            && self.devices.as_ref().is_none_or(|devices| are_covered(&claims.devices, devices))
    }

    /// The classes of the GPUs that have one, by identifier.
    pub fn classes(&self) -> impl Iterator<Item = (String, String)> {
        let devices = self.devices.iter().flatten();
        devices.filter_map(|(uuid, device)| Some((uuid.clone(), device.class.clone()?)))
    }

    /// The models of those classes, by identifier.
    pub fn models(&self) -> impl Iterator<Item = (String, Vec<String>)> {
        let devices = self.devices.iter().flatten().filter(|(_, device)| device.class.is_some());
        devices.map(|(uuid, device)| (uuid.clone(), device.models.clone()))
    }

    /// What a GPU has proven.
    #[must_use]
    pub fn device(&self, uuid: &str) -> Option<&ProvenDevice> {
        self.devices.as_ref()?.get(uuid)
    }

    /// Whether tests of this kind were passed, or there was nothing to be tested.
    #[must_use]
    pub fn has(&self, kind: Kind) -> bool {
        match kind {
            Kind::Cpu | Kind::Memory => true,
            Kind::Storage => self.disk.is_some(),
            Kind::Devices => self.devices.is_some(),
            Kind::Software => self.kernel.is_some(),
            Kind::Transfer => false,
        }
    }
}

/// Whether these are the same devices and slices under the same names, with as much memory at most.
fn are_covered(claims: &[Device], proven: &BTreeMap<String, ProvenDevice>) -> bool {
    let claims = parts(claims);
    let is_same = |device: &Device| proven.get(&device.uuid).is_some_and(|proven| proven.covers(device));
    claims.len() == proven.len() && claims.iter().all(is_same)
}

/// What is known of a host: who vouches for what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// It has proven all that it claims. Its owner can still read what runs on it.
    Verified,
    /// A trusted execution environment vouches for what runs on it.
    Attested,
    /// A machine that the market rents of a cloud itself.
    Cloud,
    /// It has proven less than it claims, such as a GPU of a kind that nobody has measured enough of.
    Unrated,
}

impl Trust {
    /// All classes.
    pub const ALL: [Self; 4] = [Self::Verified, Self::Attested, Self::Cloud, Self::Unrated];

    /// The name in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Attested => "attested",
            Self::Cloud => "cloud",
            Self::Unrated => "unrated",
        }
    }

    /// What a miner's host has earned: it is verified once all it claims is proven and each GPU, or slice, that
    /// jobs can get has a class.
    #[must_use]
    pub fn of(claims: Option<&Inventory>, proven: Option<&Proven>) -> Self {
        let (Some(claims), Some(proven)) = (claims, proven) else { return Self::Unrated };
        let is_rated = |device: &Device| proven.device(&device.uuid).is_some_and(|of| of.class.is_some());
        let rated = |device: &Device| device.parts().iter().all(is_rated);
        let all = proven.covers(claims) && claims.usable_devices().all(rated);
        if all { Self::Verified } else { Self::Unrated }
    }

    /// What counts for jobs without GPUs, which a host takes only once it has proven what they get.
    #[must_use]
    pub fn without_gpus(self) -> Self {
        match self {
            Self::Unrated => Self::Verified,
            Self::Verified | Self::Attested | Self::Cloud => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(uuid: &str, simulated: bool) -> Device {
        let (model, driver) = ("any".to_owned(), "1".to_owned());
        let division = Division::default();
        Device { uuid: uuid.to_owned(), model, vram: Bytes(1 << 30), driver, simulated, division }
    }

    fn inventory(runtime: Runtime, devices: Vec<Device>) -> Inventory {
        Inventory {
            milli_cpu: MilliCpu(1_000),
            memory: Bytes(1 << 30),
            disk: Bytes(1 << 30),
            devices,
            cpu_model: String::new(),
            os: String::new(),
            kernel: String::new(),
            runtime,
            egress: Vec::new(),
            agent: String::new(),
        }
    }

    fn cut(uuid: &str, slices: &[&str]) -> Device {
        let slice = |uuid: &&str| Slice {
            uuid: (*uuid).to_owned(),
            profile: "1g.10gb".into(),
            milli: crate::MilliGpu(142),
            vram: Bytes(1 << 27),
        };
        let division = Division::Slices(slices.iter().map(slice).collect());
        Device { division, ..device(uuid, uuid.starts_with(Device::SIMULATED)) }
    }

    #[test]
    fn slices_are_proven_as_devices_of_their_own_and_the_device_that_is_cut_is_not() {
        let parts = parts(&[device("GPU-1", false), cut("GPU-2", &["MIG-1", "MIG-2"]), cut("GPU-3", &[])]);
        let shown: Vec<(&str, &str, i64)> =
            parts.iter().map(|part| (part.uuid.as_str(), part.model.as_str(), part.vram.0)).collect();
        let slice = "any MIG 1g.10gb";
        assert_eq!(shown, [("GPU-1", "any", 1 << 30), ("MIG-1", slice, 1 << 27), ("MIG-2", slice, 1 << 27)]);
        assert_eq!(parts.iter().map(Device::is_slice).collect::<Vec<_>>(), [false, true, true]);
        let devices = [device("GPU-1", false), cut("GPU-2", &["MIG-1", "MIG-2"])];
        assert_eq!(devices_of(&devices, &["MIG-2".to_owned()]), ["GPU-2"]);
    }

    #[test]
    fn slices_that_were_not_proven_are_another_machine_and_a_whole_device_proves_none() {
        let proven = |devices: &[Device]| {
            let parts = parts(devices).into_iter();
            let devices = parts.map(|part| (part.uuid.clone(), ProvenDevice::of(&part, None))).collect();
            Proven { devices: Some(devices), ..Proven::of(&inventory(Runtime::Simulated, vec![])) }
        };
        let claims = |devices: &[Device]| inventory(Runtime::Simulated, devices.to_vec());
        let (whole, two) = ([device("GPU-1", false)], [cut("GPU-1", &["MIG-1", "MIG-2"])]);
        assert!(proven(&two).covers(&claims(&two)));
        assert!(!proven(&whole).covers(&claims(&two)) && !proven(&two).covers(&claims(&whole)));
        assert!(!proven(&two).covers(&claims(&[cut("GPU-1", &["MIG-1"])])));
        assert!(
            proven(&[cut("GPU-1", &[])]).covers(&claims(&[cut("GPU-1", &[])])),
            "nothing is leased of it"
        );
    }

    #[test]
    fn slices_of_simulated_devices_are_simulated_and_all_that_is_tested_is_bounded() {
        let check = |devices: Vec<Device>| inventory(Runtime::Simulated, devices).check();
        assert_eq!(check(vec![cut("SIM-1", &["SIM-1-0"]), cut("GPU-1", &["MIG-0"])]), Ok(()));
        assert!(check(vec![cut("SIM-1", &["MIG-0"])]).is_err());
        assert!(check(vec![cut("GPU-1", &["SIM-1-0"])]).is_err());
        let seven = |number: usize| {
            let names: Vec<String> = (0..7).map(|slice| format!("MIG-{number}-{slice}")).collect();
            cut(&format!("GPU-{number}"), &names.iter().map(String::as_str).collect::<Vec<_>>())
        };
        assert_eq!(check((0..9).map(seven).collect()), Ok(()));
        assert!(check((0..10).map(seven).collect()).is_err_and(|why| why.contains("slices")));
    }

    #[test]
    fn a_host_with_slices_is_verified_once_each_of_them_has_a_class() {
        let claims =
            inventory(Runtime::Docker { version: "28".into() }, vec![cut("GPU-1", &["MIG-1", "MIG-2"])]);
        let trust = |classes: [Option<&str>; 2]| {
            let parts = parts(&claims.devices);
            let of = |(part, class): (&Device, Option<&str>)| {
                (part.uuid.clone(), ProvenDevice::of(part, class.map(str::to_owned)))
            };
            let devices = Some(parts.iter().zip(classes).map(of).collect());
            Trust::of(Some(&claims), Some(&Proven { devices, ..Proven::of(&claims) }))
        };
        assert_eq!(trust([Some("h100-1g"), Some("h100-1g")]), Trust::Verified);
        assert_eq!(trust([Some("h100-1g"), None]), Trust::Unrated);
    }

    #[test]
    fn simulated_devices_are_for_simulated_jobs_only() {
        let devices = vec![device("GPU-1", false), device("SIM-1", true)];
        let rentable = |runtime| {
            let inventory = inventory(runtime, devices.clone());
            inventory.rentable_devices().map(|device| device.uuid.clone()).collect::<Vec<_>>()
        };
        assert_eq!(rentable(Runtime::Docker { version: "28".into() }), ["GPU-1"]);
        assert_eq!(rentable(Runtime::Simulated), ["GPU-1", "SIM-1"]);
    }

    #[test]
    fn a_simulated_device_cannot_pass_for_another_nor_another_for_it() {
        let check = |uuid, simulated| inventory(Runtime::Simulated, vec![device(uuid, simulated)]).check();
        assert_eq!((check("GPU-1", false), check("SIM-1", true)), (Ok(()), Ok(())));
        assert!(check("GPU-1", true).is_err() && check("SIM-1", false).is_err());
    }

    #[test]
    fn a_device_under_another_name_is_not_the_one_that_was_proven() {
        let claims = |devices| inventory(Runtime::Simulated, devices);
        let claim = device("GPU-1", false);
        let proof = ProvenDevice::of(&claim, None);
        let devices = Some(BTreeMap::from([(claim.uuid.clone(), proof)]));
        let proven = Proven { devices, ..Proven::of(&claims(vec![claim.clone()])) };
        assert!(proven.covers(&claims(vec![claim.clone()])));
        assert!(!proven.covers(&claims(vec![Device { model: "better".into(), ..claim.clone() }])));
        assert!(!proven.covers(&claims(vec![Device { simulated: true, ..claim }])));
    }

    #[test]
    fn what_was_proven_without_a_name_is_proven_again() {
        let before = serde_json::json!({ "vram": 1 << 30, "driver": "1" });
        let before: ProvenDevice = serde_json::from_value(before).expect("readable");
        assert!(!before.covers(&device("GPU-1", false)));
    }

    #[test]
    fn a_host_is_verified_once_every_gpu_that_jobs_can_get_has_a_class() {
        let claims = inventory(Runtime::Docker { version: "28".into() }, vec![device("GPU-1", false)]);
        let with = |class: Option<&str>| {
            let proof = ProvenDevice::of(&claims.devices[0], class.map(str::to_owned));
            let devices = Some(BTreeMap::from([("GPU-1".to_owned(), proof)]));
            Proven { devices, ..Proven::of(&claims) }
        };
        assert_eq!(Trust::of(Some(&claims), None), Trust::Unrated);
        assert_eq!(Trust::of(Some(&claims), Some(&Proven::of(&claims))), Trust::Unrated);
        assert_eq!(Trust::of(Some(&claims), Some(&with(None))), Trust::Unrated);
        assert_eq!(Trust::of(Some(&claims), Some(&with(Some("h100")))), Trust::Verified);
        let more = Inventory { memory: Bytes(2 << 30), ..claims.clone() };
        assert_eq!(Trust::of(Some(&more), Some(&with(Some("h100")))), Trust::Unrated);
        let none = Inventory { devices: Vec::new(), ..claims };
        assert_eq!(Trust::of(Some(&none), Some(&Proven::of(&none))), Trust::Verified);
    }

    #[test]
    fn people_see_that_a_device_is_simulated() {
        assert_eq!(device("SIM-1", true).label(), "any (simulated)");
        assert_eq!(device("GPU-1", false).label(), "any");
        assert_eq!(Device::label_of("SIM-1"), "SIM-1 (simulated)");
    }

    #[test]
    fn a_real_device_is_written_as_before() {
        let written = serde_json::to_value(device("GPU-1", false)).expect("JSON");
        assert_eq!(written.get("simulated"), None);
        assert_eq!(serde_json::from_value::<Device>(written).expect("a device"), device("GPU-1", false));
    }
}
