//! Says what this machine can do, what each finding means and what would fix it.

use std::path::Path;

use nave_domain::{fraction::Division, host::Device};
use serde::Serialize;

use crate::{command, config::Prover, inventory, runtime::docker, share::mps::Means};

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
pub async fn examine(socket: &Path, prover: &Prover, means: &Means) -> Vec<Finding> {
    let (docker, nft, mkfs, mesh, gpu) =
        tokio::join!(docker(socket), nft(), mkfs(), ip(), inventory::devices(prover));
    let listed = gpu.as_ref().cloned().unwrap_or_default();
    let (shares, slices) = (shares(&listed.devices, means), slices(&listed.devices));
    let mut findings = vec![
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
            gpu.map(|listed| found_devices(&listed.devices)).map_err(|why| format!("{why:#}")),
            "GPUs are offered to jobs",
            "no GPUs are offered; the host earns with CPU and memory",
            "install the NVIDIA driver and check that nvidia-smi works, if this machine has a GPU",
        )
        .optional(),
        shares,
    ];
    findings.extend(slices);
    findings.extend(left_out(&listed.left_out));
    findings
}

/// GPUs that are there and not offered; nothing where there are none.
fn left_out(why: &[String]) -> Option<Finding> {
    let found = Err(why.join("; "));
    let finding = Finding::new(
        "gpu left out",
        found,
        "",
        "these GPUs are not offered; the others are, and are tested without them",
        "do what stands there, then start the agent again; there is no remedy for a GPU without a kernel",
    );
    (!why.is_empty()).then(|| finding.optional())
}

/// What becomes of devices in MIG mode; nothing where there are none.
fn slices(devices: &[Device]) -> Option<Finding> {
    let cut = devices.iter().filter_map(|device| match &device.division {
        Division::Whole | Division::Shares => None,
        Division::Slices(slices) => Some((device, slices.is_empty())),
    });
    let (mut bare, mut sliced) = (Vec::new(), Vec::new());
    for (device, is_bare) in cut {
        let words = device.division.words().unwrap_or_default();
        if is_bare { &mut bare } else { &mut sliced }.push(format!("{} is {words}", device.uuid));
    }
    let found = match (bare.as_slice(), sliced.as_slice()) {
        ([], []) => return None,
        ([], sliced) => Ok(sliced.join(", ")),
        (bare, _) => Err(bare.join(", ")),
    };
    let finding = Finding::new(
        "gpu slices",
        found,
        "each slice is tested as a device of its own, and leased once it has passed; a kind that nobody has measured yet \
         goes to jobs that take unrated devices",
        "nobody leases a GPU in MIG mode without slices, and it is not tested",
        "make slices whose compute instance is as large as its GPU instance (`nvidia-smi mig -cgi PROFILES -C`), or switch \
         MIG off (`nvidia-smi -i GPU -mig 0`); then start the agent again",
    );
    Some(finding.optional())
}

/// What of the GPUs can be leased in fractions, and how.
fn shares(devices: &[Device], means: &Means) -> Finding {
    Finding::new(
        "gpu shares",
        fractions(devices, means),
        "jobs get slices of GPUs, or shares of them beside other jobs of their customer; nobody has tried that on a GPU",
        "GPUs are leased whole",
        "cut them into slices (MIG) with nvidia-smi, or install nvidia-cuda-mps-control and give the agent --share-gpus",
    )
    .optional()
}

fn fractions(devices: &[Device], means: &Means) -> Result<String, String> {
    let count = |is: fn(&Device) -> bool| devices.iter().filter(|device| is(device)).count();
    let cut = count(|device| !device.division.slices().is_empty());
    let able = count(|device| device.division == Division::Shares);
    let cut_words = format!("{cut} devices are cut into slices");
    match (able, means.is_here(), means.wanted) {
        (0, _, _) if cut > 0 => Ok(cut_words),
        (0, _, _) => Err("no device can be leased in fractions".into()),
        (able, true, true) => Ok(format!("{cut_words}, {able} can be shared")),
        (able, here, wanted) => {
            let lacks = match (here, wanted) {
                (false, _) => "there is no nvidia-cuda-mps-control here",
                (true, false) => "the agent is not told --share-gpus",
                (true, true) => "nothing is missing",
            };
            let said = format!("{cut_words}, {able} could be shared: {lacks}");
            if cut > 0 { Ok(said) } else { Err(said) }
        }
    }
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
    use nave_domain::{Bytes, MilliGpu, fraction::Slice};

    use super::*;

    #[tokio::test]
    async fn every_problem_names_its_fix() {
        let absent = Prover { program: "/does/not/exist".into(), simulated: None };
        let findings = examine(Path::new("/does/not/exist"), &absent, &Means::default()).await;
        let docker = findings.iter().find(|finding| finding.name == "docker").expect("docker");
        assert!(!docker.ok && docker.found.contains("/does/not/exist"));
        assert!(findings.iter().all(|finding| finding.ok == finding.fix.is_none()));
        assert!(!can_host(&findings));
        let gpu = findings.iter().find(|finding| finding.name == "gpu").expect("gpu");
        assert!(!gpu.ok && gpu.optional, "a host without a GPU is a host");
    }

    #[test]
    fn an_owner_is_told_which_gpus_are_left_out_and_why() {
        assert!(left_out(&[]).is_none());
        let finding = left_out(&["GPU 0 (Tesla T4): it has no kernel".to_owned()]).expect("a finding");
        assert!(!finding.ok && finding.optional, "the others are offered");
        assert_eq!(finding.found, "GPU 0 (Tesla T4): it has no kernel");
    }

    #[test]
    fn an_owner_is_told_what_becomes_of_gpus_in_mig_mode() {
        let device = |uuid: &str, division| Device {
            uuid: uuid.into(),
            model: "H100".into(),
            vram: Bytes(80 << 30),
            driver: "1".into(),
            simulated: false,
            division,
        };
        let slice =
            Slice { uuid: "MIG-1".into(), profile: "1g.10gb".into(), milli: MilliGpu(142), vram: Bytes(1) };
        let (cut, bare) =
            (device("GPU-1", Division::Slices(vec![slice])), device("GPU-2", Division::Slices(vec![])));
        assert!(slices(&[device("GPU-0", Division::Shares)]).is_none());
        let fine = slices(std::slice::from_ref(&cut)).expect("a finding");
        assert!(fine.ok && fine.found == "GPU-1 is in slices: 1 x 1g.10gb", "{}", fine.found);
        let lacks = slices(&[cut, bare]).expect("a finding");
        assert!(!lacks.ok && lacks.found == "GPU-2 is in slices: none", "{}", lacks.found);
        assert!(lacks.fix.is_some_and(|fix| fix.contains("-mig 0")));
    }

    #[test]
    fn it_says_what_can_be_leased_in_fractions_and_what_is_missing() {
        let device = |division| Device {
            uuid: "GPU-1".into(),
            model: "any".into(),
            vram: Bytes(1),
            driver: String::new(),
            simulated: false,
            division,
        };
        let slice =
            Slice { uuid: "MIG-1".into(), profile: "1g.1gb".into(), milli: MilliGpu(142), vram: Bytes(1) };
        let (whole, cut) = (device(Division::Whole), device(Division::Slices(vec![slice])));
        let shares = device(Division::Shares);
        let (absent, here) = (Path::new("/does/not/exist"), Path::new("/bin/false"));
        let fractions = |devices: &[&Device], control: &Path, wanted| {
            let devices: Vec<Device> = devices.iter().map(|device| (*device).clone()).collect();
            fractions(&devices, &Means { control: control.into(), wanted, ..Means::default() })
        };
        assert!(fractions(&[&whole], here, true).is_err());
        assert_eq!(fractions(&[&cut], absent, false), Ok("1 devices are cut into slices".into()));
        assert_eq!(
            fractions(&[&cut, &shares], here, true),
            Ok("1 devices are cut into slices, 1 can be shared".into())
        );
        assert!(
            fractions(&[&shares], absent, true)
                .is_err_and(|why| why.ends_with("no nvidia-cuda-mps-control here"))
        );
        assert!(fractions(&[&shares], here, false).is_err_and(|why| why.ends_with("not told --share-gpus")));
    }
}
