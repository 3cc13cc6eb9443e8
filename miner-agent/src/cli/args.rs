//! What several commands are told.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use nave_domain::{Bytes, MilliCpu};
use nave_miner_agent::{
    config::{BridgePrefix, DockerConfig, Offer, Pools, Prover},
    share::{self, mps::Means},
    upgrade,
};

#[derive(Debug, Args)]
pub struct DataArg {
    /// Directory for the agent's keys and state and for working directories.
    #[arg(long, env = "NAVE_AGENT_DATA", default_value = "/var/lib/nave-agent")]
    data: PathBuf,
}

impl DataArg {
    pub fn absolute(&self) -> anyhow::Result<PathBuf> {
        std::path::absolute(&self.data).context("make the data directory's path absolute")
    }
}

#[derive(Debug, Args)]
pub struct DockerArgs {
    /// Unix socket of the Docker Engine.
    #[arg(long, env = "NAVE_AGENT_DOCKER", default_value = "/var/run/docker.sock")]
    pub docker: PathBuf,
    /// First letters of bridge names; agents on one machine need different ones.
    #[arg(long, env = "NAVE_AGENT_BRIDGE_PREFIX", default_value = "nvj")]
    bridge_prefix: BridgePrefix,
    /// Networks of jobs come from 10.N.0.0/16 and fd6e:6176:65NN::/48, NN in hexadecimal.
    #[arg(long, env = "NAVE_AGENT_POOL", default_value_t = 213, value_name = "N")]
    pool: u8,
    /// Public resolvers for jobs, instead of well-known ones.
    #[arg(long, env = "NAVE_AGENT_DNS", value_delimiter = ',')]
    dns: Vec<String>,
    /// Offers GPUs in shares, too, to jobs of one customer at a time, through NVIDIA's MPS. Nobody has tried this on a
    /// GPU yet.
    #[arg(long, env = "NAVE_AGENT_SHARE_GPUS")]
    share_gpus: bool,
    /// The program that controls MPS; by default where the system has it.
    #[arg(long, env = "NAVE_AGENT_MPS_CONTROL", default_value = share::CONTROL, value_name = "PROGRAM", hide = true)]
    mps_control: PathBuf,
}

impl DockerArgs {
    pub fn config(self) -> DockerConfig {
        let default = DockerConfig::new(self.docker);
        let dns = if self.dns.is_empty() { default.dns } else { self.dns };
        let shares = Means { control: self.mps_control, wanted: self.share_gpus, ..default.shares };
        DockerConfig { prefix: self.bridge_prefix, pools: Pools::numbered(self.pool), dns, shares, ..default }
    }
}

#[derive(Debug, Args)]
pub struct OfferArgs {
    /// Cores to offer, such as 2 or 0.5; all by default.
    #[arg(long, env = "NAVE_AGENT_CPU")]
    cpu: Option<MilliCpu>,
    /// Memory to offer, such as 8GiB; by default all but 1 GiB, and at least half.
    #[arg(long, env = "NAVE_AGENT_MEMORY")]
    memory: Option<Bytes>,
    /// Disk space to offer, such as 20GiB; half of what is free by default.
    #[arg(long, env = "NAVE_AGENT_DISK")]
    disk: Option<Bytes>,
    /// The program that speaks to the GPU driver; by default nave-prover beside this one.
    #[arg(long, env = "NAVE_AGENT_PROVER")]
    prover: Option<PathBuf>,
    /// JSON file that describes GPUs to simulate beside those of the machine, for development.
    /// Everybody sees that they are simulated; jobs get them only where jobs are simulated, too.
    #[arg(long, env = "NAVE_AGENT_SIMULATED_DEVICES", value_name = "FILE")]
    simulated_devices: Option<PathBuf>,
}

impl OfferArgs {
    pub fn offer(&self) -> Offer {
        Offer { cpu: self.cpu, memory: self.memory, disk: self.disk }
    }

    pub fn prover(&self) -> anyhow::Result<Prover> {
        let beside = || -> anyhow::Result<PathBuf> {
            let installed = upgrade::installed().context("find this program's own path")?;
            Ok(installed.with_file_name("nave-prover"))
        };
        let program = self.prover.clone().map_or_else(beside, Ok)?;
        let absolute =
            |file| std::path::absolute(file).context("make the path of the devices' file absolute");
        let simulated = self.simulated_devices.as_ref().map(absolute).transpose()?;
        if let Some(file) = &simulated {
            anyhow::ensure!(file.is_file(), "there are no simulated devices in {}", file.display());
        }
        Ok(Prover { program, simulated })
    }
}
