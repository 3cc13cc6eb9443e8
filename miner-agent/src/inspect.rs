//! What this machine is made of, as the agent sees it for itself.
//!
//! The verifier asks for it beside the proofs. All of it is what a host says: who changes the agent
//! says what they like. It is there for owners who do not know that their toolkit has a flaw, or
//! that somebody has put something between them and their driver.

pub mod driver;
pub mod kernel;
pub mod proc;

use std::{collections::BTreeSet, path::Path, time::Duration};

use nave_domain::host::Device;
use nave_sdk::wire::{
    proof::{
        Digest, Findings, Nonce,
        findings::{Component, Engine, FINDINGS_MAX, FOUND_MAX, Preloaded, Trial, clip},
    },
    sign::sha256,
};
use tokio::{task::JoinSet, time::timeout};

use crate::{command, config::Prover, runtime::Runtime};

/// Programs that give GPUs to containers.
const TOOLKIT: [&str; 4] =
    ["nvidia-ctk", "nvidia-container-runtime", "nvidia-container-toolkit", "nvidia-container-cli"];
/// Longest that one of them may take to say its version.
const SAY: Duration = Duration::from_secs(5);
/// Most that is read of a file that is not the kernel's, in bytes.
const READ_MAX: usize = 64 << 10;

/// What there is to look at.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// What runs jobs.
    pub runtime: &'a Runtime,
    /// The program that speaks to the GPU driver.
    pub prover: &'a Prover,
    /// The devices that are offered.
    pub devices: &'a [Device],
}

/// What was found of the engine, with containers that were run to see whether they do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Containers {
    /// The engine; none where jobs are simulated.
    pub engine: Option<Engine>,
    /// Whether a container runs.
    pub container: Trial,
    /// Whether a container sees the GPUs.
    pub gpus: Trial,
    /// The engine's identifiers of containers with jobs of this host.
    pub jobs: BTreeSet<String>,
    /// Processes of the daemons that share devices.
    pub daemons: BTreeSet<u32>,
}

impl Containers {
    /// Where jobs are simulated.
    #[must_use]
    pub fn none() -> Self {
        let (container, gpus) = (Trial::NotApplicable, Trial::NotApplicable);
        Self { engine: None, container, gpus, jobs: BTreeSet::new(), daemons: BTreeSet::new() }
    }
}

/// Looks at everything, in a few seconds and without disturbing jobs.
pub async fn look(site: &Site<'_>, nonce: Nonce) -> Findings {
    // What is cut into slices is seen by nobody as a whole.
    let real = site.devices.iter().filter(|device| !device.simulated && device.division.slices().is_empty());
    let real: Vec<String> = real.map(|device| device.uuid.clone()).collect();
    let (containers, toolkit, seen) =
        tokio::join!(site.runtime.inspect(site.prover, &real), toolkit(), driver::look(site.prover));
    let environment = variables(Path::new("/proc/self"))
        .into_iter()
        .chain(seen.environment.clone())
        .collect::<BTreeSet<_>>();
    Findings {
        nonce,
        kernel: clip(&read("/proc/sys/kernel/osrelease")),
        architecture: std::env::consts::ARCH.to_owned(),
        boot: Digest(sha256(read("/proc/sys/kernel/random/boot_id").trim().as_bytes()).0),
        driver: driver::version(&seen),
        mounts: driver::mounts_over(&seen),
        holders: driver::foreign(&seen, &containers),
        mapped: seen.mapped,
        engine: containers.engine,
        toolkit,
        preloaded: Preloaded { everywhere: preloaded(), environment: bounded(environment) },
        container: containers.container,
        gpus: containers.gpus,
    }
}

/// Findings as they travel. Where they are longer than any may be, the ends of their lists are left out.
///
/// # Errors
/// When they cannot be written as JSON.
pub fn written(mut found: Findings) -> serde_json::Result<Vec<u8>> {
    let mut most = FOUND_MAX;
    loop {
        let bytes = serde_json::to_vec(&found)?;
        if bytes.len() <= FINDINGS_MAX || most == 0 {
            return Ok(bytes);
        }
        most /= 2;
        found.mounts.truncate(most);
        found.mapped.truncate(most);
        found.holders.truncate(most);
        found.preloaded.everywhere.truncate(most);
        found.preloaded.environment.truncate(most);
        if let Some(engine) = &mut found.engine {
            engine.components.truncate(most);
            engine.runtimes.truncate(most);
        }
    }
}

/// The text of a file, or nothing; what is not UTF-8 in it is replaced.
pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let most = if path.as_ref().starts_with("/proc") { usize::MAX } else { READ_MAX };
    kernel::bytes(path, most)
        .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The variables of a process that have the dynamic linker load something.
fn variables(process: &Path) -> Vec<String> {
    proc::linker_variables(&kernel::bytes(process.join("environ"), usize::MAX).unwrap_or_default())
}

/// As many texts as findings may have, as they may have them.
pub(crate) fn bounded(texts: impl IntoIterator<Item = String>) -> Vec<String> {
    texts.into_iter().take(FOUND_MAX).map(|text| clip(&text)).collect()
}

fn preloaded() -> Vec<String> {
    bounded(proc::preloads(&read("/etc/ld.so.preload")).map(str::to_owned))
}

/// The versions of the programs that give GPUs to containers, as far as they are here.
async fn toolkit() -> Vec<Component> {
    let mut asked = JoinSet::new();
    for program in TOOLKIT {
        asked.spawn(async move {
            let said = timeout(SAY, command::run(program, &["--version"])).await.ok()?.ok()?;
            let version = proc::said_version(&String::from_utf8_lossy(&said))?;
            Some(Component { name: program.to_owned(), version: clip(&version) })
        });
    }
    let mut found: Vec<Component> = asked.join_all().await.into_iter().flatten().collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

#[cfg(test)]
mod tests {
    use nave_sdk::wire::proof::findings::{FOUND_TEXT_MAX, Mount};

    use super::*;

    fn prover() -> Prover {
        Prover { program: "/does/not/exist".into(), simulated: None }
    }

    #[tokio::test]
    async fn a_machine_without_a_prover_or_an_engine_is_looked_at_all_the_same() {
        let dir = tempfile::tempdir().expect("a directory");
        let runtime = crate::runtime::simulated::Simulated::open(dir.path()).map(Runtime::Simulated);
        let (runtime, prover) = (runtime.expect("a runtime"), prover());
        let site = Site { runtime: &runtime, prover: &prover, devices: &[] };
        let found = look(&site, Nonce([7; 32])).await;
        assert_eq!(found.kernel, read("/proc/sys/kernel/osrelease").trim());
        assert_eq!(
            (&found.container, &found.gpus, found.engine.is_none()),
            (&Trial::NotApplicable, &Trial::NotApplicable, true)
        );
        assert_eq!((found.nonce, found.excess()), (Nonce([7; 32]), None));
    }

    #[tokio::test]
    async fn findings_that_are_too_long_lose_the_ends_of_their_lists() {
        let dir = tempfile::tempdir().expect("a directory");
        let runtime = crate::runtime::simulated::Simulated::open(dir.path()).map(Runtime::Simulated);
        let (runtime, prover) = (runtime.expect("a runtime"), prover());
        let mut found =
            look(&Site { runtime: &runtime, prover: &prover, devices: &[] }, Nonce([7; 32])).await;
        let text = "\"".repeat(FOUND_TEXT_MAX);
        let mount = Mount { covers: text.clone(), point: text.clone(), kind: text.clone(), root: text };
        found.mounts = vec![mount; FOUND_MAX];
        let written = written(found).expect("JSON");
        assert!(written.len() <= FINDINGS_MAX);
        let read: Findings = serde_json::from_slice(&written).expect("findings");
        assert!(!read.mounts.is_empty());
    }
}
