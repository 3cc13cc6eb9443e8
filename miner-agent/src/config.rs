//! What an agent is told when it starts.

use std::{ffi::OsStr, path::PathBuf, str::FromStr, time::Duration};

use nave_domain::{Bytes, HostId, MilliCpu, mesh::Prefix};
use nave_mesh::Name;

use crate::{membership::Membership, share::mps::Means, upgrade::Record};

/// Everything an agent is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which host of which market it is.
    pub member: Membership,
    /// How it reaches the control plane.
    pub reach: Reach,
    /// Where its state and the working directories are.
    pub data: PathBuf,
    /// What runs jobs.
    pub runtime: RuntimeChoice,
    /// How jobs run on a Docker Engine.
    pub docker: DockerConfig,
    /// What of the machine is offered.
    pub offer: Offer,
    /// The program that speaks to the GPU driver and computes proofs.
    pub prover: Prover,
    /// The program that was fetched last, if any, and how it stands.
    pub trial: Option<Record>,
}

impl Config {
    /// Which host it is.
    #[must_use]
    pub fn host(&self) -> HostId {
        self.member.place.host
    }
}

/// The program that speaks to the GPU driver and computes proofs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prover {
    /// Where it is.
    pub program: PathBuf,
    /// The file that describes devices which it simulates beside those of the machine.
    pub simulated: Option<PathBuf>,
}

impl Prover {
    /// What it is told beside what it shall do.
    #[must_use]
    pub fn arguments(&self) -> Vec<&OsStr> {
        let simulated = self.simulated.as_deref().map(|file| [OsStr::new("--simulated"), file.as_os_str()]);
        simulated.into_iter().flatten().collect()
    }
}

/// How an agent reaches its control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// Through the mesh, and no other way.
    Mesh {
        /// Name of the interface, unique on the machine.
        interface: Name,
        /// How long a mesh key is used.
        rotate: Duration,
    },
    /// At this base URL, where a test stands in for what is behind the mesh.
    WithoutMesh(String),
}

/// Which runtime is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimeChoice {
    /// A Docker Engine; it is an error when there is none.
    Docker,
    /// No job is executed; commands are acted out.
    Simulated,
    /// A Docker Engine where it can be used, else simulated, said aloud.
    Auto,
}

impl FromStr for RuntimeChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "docker" => Ok(Self::Docker),
            "simulated" => Ok(Self::Simulated),
            "auto" => Ok(Self::Auto),
            _ => Err("choose docker, simulated or auto".into()),
        }
    }
}

/// How jobs run on a Docker Engine.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    /// Path of its Unix socket.
    pub socket: PathBuf,
    /// First letters of the names of the bridges it makes; two agents on one
    /// machine need different ones.
    pub prefix: BridgePrefix,
    /// Networks of jobs are cut from these.
    pub pools: Pools,
    /// Resolvers of jobs with egress `public`. They must be public themselves:
    /// a job does not reach the host's own.
    pub dns: Vec<String>,
    /// Where jobs of groups reach one another; without it they cannot.
    pub mesh: Option<MeshSide>,
    /// With what devices are shared among jobs of one customer.
    pub shares: Means,
}

/// The mesh as jobs of groups see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshSide {
    /// The market's addresses.
    pub prefix: Prefix,
    /// The interface behind which other hosts are.
    pub interface: Name,
}

impl DockerConfig {
    /// The defaults, on the engine at `socket`.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        let dns = ["1.1.1.1", "9.9.9.9", "2606:4700:4700::1111"].map(str::to_owned).to_vec();
        Self {
            socket,
            prefix: BridgePrefix::default(),
            pools: Pools::default(),
            dns,
            mesh: None,
            shares: Means::default(),
        }
    }
}

/// First letters of a bridge's name: 2 to 4 lower-case letters.
///
/// An interface name has at most 15 bytes, of which a lease takes 11.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgePrefix(String);

impl Default for BridgePrefix {
    fn default() -> Self {
        Self("nvj".into())
    }
}

impl FromStr for BridgePrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let letters = text.bytes().all(|b| b.is_ascii_lowercase());
        if letters && (2..=4).contains(&text.len()) {
            return Ok(Self(text.to_owned()));
        }
        Err("2 to 4 lower-case letters".into())
    }
}

impl BridgePrefix {
    /// The letters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Private ranges from which each job with egress `public` gets a network:
/// a /29 of a /16, and a /64 of a /48.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pools {
    /// First two bytes of the IPv4 range.
    pub v4: [u8; 2],
    /// First three groups of the IPv6 range.
    pub v6: [u16; 3],
}

impl Default for Pools {
    fn default() -> Self {
        Self::numbered(213)
    }
}

impl Pools {
    /// The `n`th pair of pools: 10.n.0.0/16 and fd6e:6176:65nn::/48.
    #[must_use]
    pub const fn numbered(n: u8) -> Self {
        Self { v4: [10, n], v6: [0xfd6e, 0x6176, 0x6500 | n as u16] }
    }

    /// How many networks there are.
    pub const SIZE: u16 = 8_192;

    /// The IPv4 range.
    #[must_use]
    pub fn range4(self) -> String {
        format!("{}.{}.0.0/16", self.v4[0], self.v4[1])
    }

    /// The IPv6 range.
    #[must_use]
    pub fn range6(self) -> String {
        format!("{:x}:{:x}:{:x}::/48", self.v6[0], self.v6[1], self.v6[2])
    }

    /// The `index`th /29.
    #[must_use]
    pub fn subnet4(self, index: u16) -> String {
        let [third, fourth] = ((index % Self::SIZE) << 3).to_be_bytes();
        format!("{}.{}.{third}.{fourth}/29", self.v4[0], self.v4[1])
    }

    /// The `index`th /64.
    #[must_use]
    pub fn subnet6(self, index: u16) -> String {
        format!("{:x}:{:x}:{:x}:{:x}::/64", self.v6[0], self.v6[1], self.v6[2], index % Self::SIZE)
    }
}

/// What of the machine is offered; what is not said is derived from the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Offer {
    /// Cores.
    pub cpu: Option<MilliCpu>,
    /// Memory.
    pub memory: Option<Bytes>,
    /// Space for working directories.
    pub disk: Option<Bytes>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_a_pool_lie_in_it_and_differ() {
        let pools = Pools::default();
        assert_eq!(pools.subnet4(0), "10.213.0.0/29");
        assert_eq!(pools.subnet4(33), "10.213.1.8/29");
        assert_eq!(pools.subnet4(Pools::SIZE - 1), "10.213.255.248/29");
        assert_eq!(pools.range6(), "fd6e:6176:65d5::/48");
        assert_eq!(pools.subnet6(33), "fd6e:6176:65d5:21::/64");
    }

    #[test]
    fn a_bridge_prefix_leaves_room_for_a_lease() {
        assert!("nvj".parse::<BridgePrefix>().is_ok());
        for text in ["", "n", "nvjob", "nv1", "nv*", "\"x"] {
            assert!(text.parse::<BridgePrefix>().is_err(), "{text} was taken");
        }
    }
}
