//! Runs tiny containers to see whether the engine does, and whether they see the GPUs.
//!
//! The image is made here, of one program. Everything carries a label with the host, by which the next
//! trial and the next agent clear away what one that was killed has left.

mod gpus;

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use bollard::{
    Docker as Client, body_full,
    container::LogOutput,
    models::{ContainerCreateBody, HostConfig},
    query_parameters::{
        CreateContainerOptionsBuilder, CreateImageOptionsBuilder, ListContainersOptionsBuilder,
        LogsOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder,
    },
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use nave_domain::HostId;
use nave_sdk::wire::proof::findings::{Component, Engine, FOUND_MAX, Trial, clip};
use tokio::time::timeout;

use super::{LABEL_HOST, container, settle};
use crate::{config::Prover, inspect::bounded};

/// Label of what belongs to a trial: its host.
const LABEL: &str = "nave.trial";
/// Longest that one container may take, from its creation to its removal.
const LIMIT: Duration = Duration::from_secs(30);
/// Name of the program in the image.
const PROGRAM: &str = "trial";
/// Memory of a container of a trial, into which a prover goes that loads the driver's libraries.
const MEMORY: i64 = 512 << 20;
/// What the program writes.
const LINE: &str = "nave: a container runs\n";

/// Writes the line that follows the code; ends, or waits for ever where it has an argument.
///
/// ```text
///         mov  eax, 1             ; write
///         mov  edi, eax           ; standard output
///         lea  rsi, [rip + line]
///         mov  edx, 23
///         syscall
///         cmp  dword ptr [rsp], 1 ; the number of arguments, with the program's name
///         ja   wait
///         mov  eax, 60            ; exit
///         xor  edi, edi
///         syscall
/// wait:   mov  eax, 34            ; pause
///         syscall
///         jmp  wait
/// line:
/// ```
const X86_64: (u16, &[u8]) = (
    62,
    b"\xb8\x01\x00\x00\x00\x89\xc7\x48\x8d\x35\x1f\x00\x00\x00\xba\x17\x00\x00\x00\x0f\x05\
      \x83\x3c\x24\x01\x77\x09\xb8\x3c\x00\x00\x00\x31\xff\x0f\x05\
      \xb8\x22\x00\x00\x00\x0f\x05\xeb\xf7",
);

/// The same.
///
/// ```text
///         mov  x0, #1             ; standard output
///         adr  x1, line
///         mov  x2, #23
///         mov  x8, #64            ; write
///         svc  #0
///         ldr  x3, [sp]           ; the number of arguments, with the program's name
///         cmp  x3, #1
///         b.hi wait
///         mov  x0, #0
///         mov  x8, #93            ; exit
///         svc  #0
/// wait:   mov  x0, #0
///         mov  x1, #0
///         mov  x2, #0
///         mov  x3, #0
///         mov  x8, #73            ; ppoll
///         svc  #0
///         b    wait
/// line:
/// ```
const AARCH64: (u16, &[u8]) = (
    183,
    b"\x20\x00\x80\xd2\x21\x02\x00\x10\xe2\x02\x80\xd2\x08\x08\x80\xd2\x01\x00\x00\xd4\
      \xe3\x03\x40\xf9\x7f\x04\x00\xf1\x88\x00\x00\x54\x00\x00\x80\xd2\xa8\x0b\x80\xd2\x01\x00\x00\xd4\
      \x00\x00\x80\xd2\x01\x00\x80\xd2\x02\x00\x80\xd2\x03\x00\x80\xd2\x28\x09\x80\xd2\x01\x00\x00\xd4\
      \xfa\xff\xff\x17",
);

/// Runs one container that writes a line and ends, and, where there are GPUs, one that waits while a prover looks at
/// what it sees of them.
pub(super) async fn run(
    client: &Client,
    host: HostId,
    prover: &Prover,
    devices: &[String],
) -> (Trial, Trial) {
    let Some(program) = program() else {
        let message = format!("no program is known here for {}", std::env::consts::ARCH);
        return (Trial::Fails(message), Trial::NotApplicable);
    };
    let trial = Running { client, host };
    let container = said(timeout(LIMIT, trial.writes(&program)).await);
    let gpus = match (&container, devices) {
        (_, []) | (Trial::NotApplicable | Trial::Fails(_), _) => Trial::NotApplicable,
        (Trial::Works, devices) => said(timeout(LIMIT, trial.sees(prover, devices)).await),
    };
    if let Err(error) = clear(client, host).await {
        tracing::info!(error = format!("{error:#}"), "a trial of the engine leaves something behind");
    }
    (container, gpus)
}

fn said(done: Result<anyhow::Result<()>, tokio::time::error::Elapsed>) -> Trial {
    match done {
        Ok(Ok(())) => Trial::Works,
        Ok(Err(error)) => Trial::Fails(clip(&format!("{error:#}"))),
        Err(_) => Trial::Fails(format!("it took longer than {} s", LIMIT.as_secs())),
    }
}

/// Removes what trials of this host have left.
///
/// # Errors
/// When the engine does not answer.
pub(super) async fn clear(client: &Client, host: HostId) -> anyhow::Result<()> {
    let filters = HashMap::from([("label", vec![format!("{LABEL}={host}")])]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    for left in client.list_containers(Some(options)).await.context("list containers of trials")? {
        let options = RemoveContainerOptionsBuilder::default().v(true).force(true).build();
        let id = left.id.unwrap_or_default();
        settle(client.remove_container(&id, Some(options)).await, &[404])
            .context("remove a trial's container")?;
    }
    let options = RemoveImageOptionsBuilder::default().force(true).build();
    let removed = client.remove_image(&image(host), Some(options), None).await.map(drop);
    settle(removed, &[404]).context("remove a trial's image")
}

fn image(host: HostId) -> String {
    format!("nave-trial:{host}")
}

/// What the engine says of itself; nothing where it does not answer.
pub(super) async fn engine(client: &Client) -> Engine {
    let (version, info) = tokio::join!(timeout(LIMIT, client.version()), timeout(LIMIT, client.info()));
    let version = version.ok().and_then(Result::ok).unwrap_or_default();
    let info = info.ok().and_then(Result::ok).unwrap_or_default();
    let component = |name: &str, version: &str| Component { name: clip(name), version: clip(version) };
    let components = version.components.unwrap_or_default();
    let mut components: Vec<Component> =
        components.iter().map(|found| component(&found.name, &found.version)).collect();
    components.truncate(FOUND_MAX);
    let runtimes: BTreeSet<String> = info.runtimes.unwrap_or_default().into_keys().collect();
    Engine {
        version: clip(&version.version.unwrap_or_default()),
        api: clip(&version.api_version.unwrap_or_default()),
        components,
        runtimes: bounded(runtimes),
    }
}

/// The engine's identifiers of containers with jobs of this host.
pub(super) async fn jobs(client: &Client, host: HostId) -> BTreeSet<String> {
    let filters = HashMap::from([("label", vec![format!("{LABEL_HOST}={host}")])]);
    let options = ListContainersOptionsBuilder::default().filters(&filters).build();
    let listed = client.list_containers(Some(options)).await.unwrap_or_default();
    listed.into_iter().filter_map(|container| container.id).collect()
}

/// A trial under way.
struct Running<'a> {
    client: &'a Client,
    host: HostId,
}

impl Running<'_> {
    /// Whether a container runs, and what it writes comes back.
    async fn writes(&self, program: &[u8]) -> anyhow::Result<()> {
        clear(self.client, self.host).await?;
        let (repository, tag) = ("nave-trial", self.host.to_string());
        let options = CreateImageOptionsBuilder::default().from_src("-").repo(repository).tag(&tag).build();
        let body = body_full(rootfs(program).context("pack an image")?.into());
        let import = self.client.create_image(Some(options), Some(body), None);
        import.try_for_each(|_| async { Ok(()) }).await.context("import an image")?;
        let id = self.start(&[], None).await?;
        let mut wait = std::pin::pin!(self.client.wait_container(&id, None));
        // A code other than 0 is an error here; what it wrote says more.
        let ended = wait.next().await;
        let options = LogsOptionsBuilder::default().stdout(true).build();
        let mut logs = self.client.logs(&id, Some(options));
        let mut written = Vec::new();
        while let Some(output) = logs.try_next().await.context("read what a container wrote")? {
            match output {
                LogOutput::StdOut { message } | LogOutput::Console { message } => {
                    written.extend_from_slice(&message)
                }
                LogOutput::StdErr { .. } | LogOutput::StdIn { .. } => {}
            }
            ensure!(written.len() <= 4 * LINE.len(), "a container wrote more than it was made to");
        }
        if written == LINE.as_bytes() {
            return Ok(());
        }
        match ended {
            Some(Err(error)) => Err(error).context("a container ended before it wrote its line"),
            Some(Ok(_)) | None => bail!("what a container wrote did not come back"),
        }
    }

    /// Whether a container that asks for GPUs as a job does can use them.
    async fn sees(&self, prover: &Prover, devices: &[String]) -> anyhow::Result<()> {
        let id = self.start(&["wait"], Some(devices)).await?;
        let found = self.client.inspect_container(&id, None).await.context("inspect a container")?;
        let pid = found.state.and_then(|state| state.pid).filter(|pid| *pid > 0);
        let pid = pid.context("a container that should wait has ended")?;
        gpus::check(prover, pid, devices).await
    }

    /// Starts a container of the trial's image.
    async fn start(&self, arguments: &[&str], devices: Option<&[String]>) -> anyhow::Result<String> {
        let program = [format!("/{PROGRAM}")].into_iter();
        let body = ContainerCreateBody {
            image: Some(image(self.host)),
            entrypoint: Some(vec![String::new()]),
            cmd: Some(program.chain(arguments.iter().map(ToString::to_string)).collect()),
            labels: Some(HashMap::from([(LABEL.to_owned(), self.host.to_string())])),
            user: Some(format!("{uid}:{uid}", uid = container::JOB_UID)),
            host_config: Some(host_config(devices)),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::default().build();
        let created =
            self.client.create_container(Some(options), body).await.context("create a container")?;
        self.client.start_container(&created.id, None).await.context("start a container")?;
        Ok(created.id)
    }
}

/// The limits of a job, as far as they matter to a program that does nothing.
fn host_config(devices: Option<&[String]>) -> HostConfig {
    HostConfig {
        memory: Some(MEMORY),
        memory_swap: Some(MEMORY),
        pids_limit: Some(container::PIDS_MAX),
        cap_drop: Some(vec!["ALL".into()]),
        security_opt: Some(vec!["no-new-privileges".into()]),
        readonly_rootfs: Some(true),
        network_mode: Some("none".into()),
        log_config: Some(container::log_config()),
        device_requests: devices.and_then(container::gpus),
        ..HostConfig::default()
    }
}

/// The program for this machine, where one is known.
fn program() -> Option<Vec<u8>> {
    match std::env::consts::ARCH {
        "x86_64" => Some(elf(X86_64)),
        "aarch64" => Some(elf(AARCH64)),
        _ => None,
    }
}

/// An ELF file of one segment, which holds its headers, the code and the line.
fn elf((machine, code): (u16, &[u8])) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + (code.len() + LINE.len()) as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // An executable for the machine, of version 1.
    file.extend([2_u16.to_le_bytes(), machine.to_le_bytes()].concat());
    file.extend(1_u32.to_le_bytes());
    // Where it begins, where its one program header is, and that it has no sections.
    file.extend([BASE + HEADERS, 64, 0].map(u64::to_le_bytes).concat());
    file.extend(0_u32.to_le_bytes());
    file.extend([64, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat());
    // Loaded as a whole, to be read and executed.
    file.extend([1_u32.to_le_bytes(), 5_u32.to_le_bytes()].concat());
    file.extend([0, BASE, BASE, size, size, 0x1000].map(u64::to_le_bytes).concat());
    file.extend_from_slice(code);
    file.extend_from_slice(LINE.as_bytes());
    file
}

/// The file system of the image.
fn rootfs(program: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    tar.append_data(&mut header, PROGRAM, program)?;
    tar.into_inner()
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, process::Command};

    use super::*;

    #[test]
    fn the_program_runs_on_this_machine_and_writes_its_line() {
        let Some(program) = program() else { return };
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(PROGRAM);
        let mut file = fs::File::create(&path).expect("a file");
        file.write_all(&program).expect("written");
        file.set_permissions(fs::Permissions::from_mode(0o755)).expect("a program");
        drop(file);
        let output = Command::new(&path).output().expect("it runs");
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), LINE.as_bytes()));
    }

    #[test]
    fn the_line_is_where_both_programs_look_for_it() {
        // lea rsi, [rip + …] ends at 14; adr x1 stands at 4 and counts from there.
        assert_eq!(X86_64.1.len(), 14 + usize::from(X86_64.1[10]));
        let word = u32::from_le_bytes([AARCH64.1[4], AARCH64.1[5], AARCH64.1[6], AARCH64.1[7]]);
        assert_eq!(AARCH64.1.len() as u32, 4 + ((word >> 5 & 0x7_ffff) << 2 | word >> 29 & 3));
        assert_eq!((LINE.len(), X86_64.1[15], u32::from(AARCH64.1[8]) >> 5), (23, 23, 7));
    }
}
