//! What an agent is doing, for people: the running agent writes it down, anybody reads it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

use nave_domain::{
    ChallengeId, HostId, LeaseId, Millis,
    fraction::Division,
    host::{Device, HostState, Runtime},
};
use nave_sdk::wire::{enrol::StateReason, host::LeaseReport, proof::Kind};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::{
    clock,
    files::{self, Keep},
    link::{self, Health},
    membership::{self, Membership},
    upgrade::Standing,
};

/// What a running agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doing {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Names the run of the kernel; the times below mean nothing in another.
    pub boot: String,
    /// When it said this, on the boot clock.
    pub said: Millis,
    /// When the control plane last answered, on the boot clock.
    pub heard: Option<Millis>,
    /// Where the market says that the host stands.
    pub state: Option<HostState>,
    /// Why it stands there, where the market says so.
    pub reason: Option<StateReason>,
    /// The market does not know the host any more.
    pub dismissed: bool,
    /// What runs jobs.
    pub runtime: Runtime,
    /// Whether that answers.
    pub runtime_answers: bool,
    /// GPUs that are not leased whole only, and how they are, for people.
    #[serde(default)]
    pub divided: BTreeMap<String, String>,
    /// Every lease, as it is reported.
    pub leases: BTreeMap<LeaseId, LeaseReport>,
    /// The proofs under way.
    pub proofs: Vec<Proving>,
    /// The mesh; absent where an agent runs without.
    pub mesh: Option<Health>,
    /// The program that was fetched last.
    pub upgrade: Option<Fetched>,
}

/// A proof under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proving {
    /// Which challenge.
    pub challenge: ChallengeId,
    /// What it tests.
    pub kind: Kind,
    /// The step that is answered.
    pub step: u32,
    /// Whether the answer is there.
    pub answered: bool,
}

/// A program that was fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// Its version.
    pub version: String,
    /// How it has done.
    pub standing: Standing,
}

/// Devices that are not leased whole only, and how they are.
#[must_use]
pub fn divided(devices: &[Device]) -> BTreeMap<String, String> {
    let words = |device: &Device| match &device.division {
        Division::Slices(slices) if slices.is_empty() => {
            Some("in MIG mode without slices: nobody leases it, see `miner-agent doctor`".to_owned())
        }
        division @ Division::Slices(_) => {
            division.words().map(|words| format!("{words}; each is tested and leased as a device of its own"))
        }
        division @ (Division::Whole | Division::Shares) => division.words(),
    };
    devices.iter().filter_map(|device| Some((device.uuid.clone(), words(device)?))).collect()
}

impl Doing {
    /// Writes it down for [`Status::read`].
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, data: &Path) -> anyhow::Result<()> {
        files::write_json(&path(data), self, Keep::Process)
    }
}

fn path(data: &Path) -> PathBuf {
    membership::dir(data).join("status.json")
}

/// What can be said about a data directory and its agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Whether an agent runs.
    pub running: bool,
    /// The host, once it has joined a market.
    pub host: Option<Place>,
    /// The mesh interface as the kernel has it.
    pub interface: Option<Link>,
    /// What the agent said last; only while it runs.
    pub agent: Option<Doing>,
    /// Milliseconds since the control plane last answered.
    pub heard_ms_ago: Option<Millis>,
}

/// A host's place in a market.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Its id.
    pub host: HostId,
    /// Its name.
    pub name: String,
    /// URL of the market.
    pub market: String,
    /// The miner.
    pub hotkey: String,
    /// Its address in the mesh.
    pub address: std::net::Ipv6Addr,
}

/// A network interface as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Largest packet.
    pub mtu: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

impl Status {
    /// Looks at `data` and at the machine.
    ///
    /// # Errors
    /// When the enrolment is there and cannot be read.
    pub fn read(data: &Path) -> anyhow::Result<Self> {
        let running = is_running(data);
        let host = Membership::find(data)?.map(|member| Place {
            host: member.place.host,
            name: member.place.name,
            market: member.url,
            hotkey: member.hotkey,
            address: member.place.mesh.address,
        });
        let boot = clock::boot_id()?;
        let said: Option<Doing> = files::read_json(&path(data)).ok().flatten();
        let agent = said.filter(|said| running && said.boot == boot);
        let heard = agent.as_ref().and_then(|agent| agent.heard);
        let heard_ms_ago = heard.map(|heard| Millis((clock::now().0 - heard.0).max(0)));
        let interface = link::interface_of(data).and_then(|name| interface(name.as_str()));
        Ok(Self { running, host, interface, agent, heard_ms_ago })
    }
}

/// An agent holds the lock of its data directory for as long as it runs.
fn is_running(data: &Path) -> bool {
    let Ok(file) = File::open(membership::dir(data).join("lock")) else { return false };
    Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
}

fn interface(name: &str) -> Option<Link> {
    let dir = Path::new("/sys/class/net").join(name);
    let number = |file: &str| fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok();
    Some(Link {
        name: name.to_owned(),
        mtu: number("mtu")?,
        rx_bytes: number("statistics/rx_bytes")?,
        tx_bytes: number("statistics/tx_bytes")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state;

    #[test]
    fn an_agent_is_running_while_it_holds_its_lock() {
        let data = tempfile::tempdir().expect("a directory");
        assert!(!Status::read(data.path()).expect("read").running);
        let lock = state::lock(data.path()).expect("locked");
        assert!(Status::read(data.path()).expect("read").running);
        drop(lock);
        assert!(!Status::read(data.path()).expect("read").running);
    }
}
