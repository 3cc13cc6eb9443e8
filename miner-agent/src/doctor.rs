//! Says what this machine can do, what each finding means and what would fix it.

use std::path::Path;

use nave_domain::host::Device;
use serde::Serialize;

use crate::{command, config::Prover, inventory, runtime::docker};

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// Whether it is as it should be.
    pub ok: bool,
    /// Whether a host can do without.
    pub optional: bool,
    /// What was found.
    pub found: String,
    /// What that means for jobs.
    pub means: &'static str,
    /// What to do about it; nothing where it is fine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<&'static str>,
}

impl Finding {
    fn new(
        name: &'static str,
        found: Result<String, String>,
        good: &'static str,
        bad: &'static str,
        fix: &'static str,
    ) -> Self {
        match found {
            Ok(found) => Self { name, ok: true, optional: false, found, means: good, fix: None },
            Err(found) => Self { name, ok: false, optional: false, found, means: bad, fix: Some(fix) },
        }
    }
}

impl Finding {
    fn optional(mut self) -> Self {
        self.optional = true;
        self
    }
}

/// Looks at everything that the agent needs; changes nothing.
pub async fn examine(socket: &Path, prover: &Prover) -> Vec<Finding> {
    let (docker, nft, mkfs, mesh, gpu) =
        tokio::join!(docker(socket), nft(), mkfs(), ip(), inventory::devices(prover));
    vec![
        root(),
        docker,
        nft,
        loop_devices(),
        mkfs,
        forwarding(),
        mesh,
        tun(),
        Finding::new(
            "gpu",
            gpu.map(|devices| found_devices(&devices)).map_err(|why| format!("{why:#}")),
            "GPUs are offered to jobs",
            "no GPUs are offered; the host earns with CPU and memory",
            "install the NVIDIA driver and check that nvidia-smi works, if this machine has a GPU",
        )
        .optional(),
    ]
}

/// Whether this machine can be a host that runs jobs in containers.
#[must_use]
pub fn can_host(findings: &[Finding]) -> bool {
    let needed = ["root", "docker", "loop", "mkfs.ext4", "nft", "ip", "wireguard"];
    findings.iter().filter(|finding| needed.contains(&finding.name)).all(|finding| finding.ok)
}

fn root() -> Finding {
    let uid = nix::unistd::geteuid();
    let found = format!("user {uid}");
    Finding::new(
        "root",
        if uid.is_root() { Ok(found) } else { Err(found) },
        "the agent can mount working directories and load the egress filter",
        "jobs can only be simulated: a working directory with a size limit needs a mount",
        "run the agent as root",
    )
}

async fn docker(socket: &Path) -> Finding {
    let found = async {
        let nobody = |why| format!("no Docker Engine answers on {}: {why}", socket.display());
        let client = docker::connect(socket).await.map_err(|error| nobody(error.root_cause().to_string()))?;
        let version = client.version().await.map_err(|error| error.to_string())?;
        Ok(format!("Docker Engine {} on {}", version.version.unwrap_or_default(), socket.display()))
    };
    Finding::new(
        "docker",
        found.await,
        "jobs run in containers",
        "jobs can only be simulated",
        "install Docker Engine (Debian: apt install docker.io), or name its socket with --docker",
    )
}

async fn nft() -> Finding {
    let listed = command::run("nft", &["list", "tables"]).await;
    Finding::new(
        "nft",
        listed.map(|_| "nftables answers".into()).map_err(|error| chain(&error)),
        "jobs may reach public addresses and nothing else; the mesh reaches nothing on this machine",
        "the host cannot join the mesh, which has to be guarded, and jobs get no network",
        "install nftables (Debian: apt install nftables) and run the agent as root",
    )
}

async fn ip() -> Finding {
    let version = command::run("ip", &["-V"]).await;
    Finding::new(
        "ip",
        version.map(|_| "iproute2 answers".into()).map_err(|error| chain(&error)),
        "the mesh interface can be configured",
        "the host cannot join the mesh",
        "install iproute2 (Debian: apt install iproute2)",
    )
}

fn tun() -> Finding {
    let (kernel, tun) = (Path::new("/sys/module/wireguard"), Path::new("/dev/net/tun"));
    let found = match (kernel.exists(), tun.exists()) {
        (true, _) => Ok("WireGuard in the kernel".into()),
        (false, true) => Ok("TUN devices; a process of the agent does WireGuard".into()),
        (false, false) => Err("neither WireGuard in the kernel nor /dev/net/tun".into()),
    };
    Finding::new(
        "wireguard",
        found,
        "the host can join the mesh",
        "the host cannot join the mesh",
        "load a kernel module (modprobe wireguard, or modprobe tun), or give the agent's container /dev/net/tun",
    )
}

fn loop_devices() -> Finding {
    let path = Path::new("/dev/loop-control");
    Finding::new(
        "loop",
        if path.exists() { Ok("loop devices".into()) } else { Err("no /dev/loop-control".into()) },
        "working directories have a real size limit",
        "jobs can only be simulated",
        "load the kernel module (modprobe loop), or give the agent's container access to /dev/loop*",
    )
}

async fn mkfs() -> Finding {
    let version = command::run("mkfs.ext4", &["-V"]).await;
    Finding::new(
        "mkfs.ext4",
        version.map(|_| "mkfs.ext4 answers".into()).map_err(|error| chain(&error)),
        "working directories can be made",
        "jobs can only be simulated",
        "install e2fsprogs (Debian: apt install e2fsprogs)",
    )
}

fn forwarding() -> Finding {
    let path = "/proc/sys/net/ipv4/ip_forward";
    let writable = std::fs::OpenOptions::new().write(true).open(path);
    Finding::new(
        "forwarding",
        writable.map(|_| "the agent can switch it on".into()).map_err(|error| format!("{path}: {error}")),
        "packets of jobs reach the network",
        "jobs get no network: only egress \"none\" is offered",
        "run the agent as root, where /proc/sys is not mounted read-only",
    )
}

fn chain(error: &command::Failed) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}

fn found_devices(devices: &[Device]) -> String {
    match devices.iter().filter(|device| device.simulated).count() {
        0 => format!("{} devices", devices.len()),
        simulated => format!("{} devices, {simulated} of them simulated", devices.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_problem_names_its_fix() {
        let absent = Prover { program: "/does/not/exist".into(), simulated: None };
        let findings = examine(Path::new("/does/not/exist"), &absent).await;
        let docker = findings.iter().find(|finding| finding.name == "docker").expect("docker");
        assert!(!docker.ok && docker.found.contains("/does/not/exist"));
        assert!(findings.iter().all(|finding| finding.ok == finding.fix.is_none()));
        assert!(!can_host(&findings));
        let gpu = findings.iter().find(|finding| finding.name == "gpu").expect("gpu");
        assert!(!gpu.ok && gpu.optional, "a host without a GPU is a host");
    }
}
