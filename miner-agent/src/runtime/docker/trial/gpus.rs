//! Whether a container that was given GPUs has them: what a prover says that went into it, and what that means.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::Command,
    time::timeout,
};

use crate::{command, config::Prover, runtime::docker::container::JOB_UID};

/// Longest that a prover may take to load the driver's libraries.
const LOOK: Duration = Duration::from_secs(20);
/// Longest answer, in bytes.
const LINE_MAX: u64 = 64 << 10;
/// What a program needs besides the files of the GPUs themselves.
const CONTROL: [&str; 2] = ["nvidiactl", "nvidia-uvm"];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    Seen(Seen),
    Error(String),
}

/// What there is of GPUs in a container.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Seen {
    /// The driver's device files.
    files: Vec<String>,
    /// Those that cannot be opened, and why.
    refused: Vec<String>,
    /// Libraries of the driver that are not there.
    missing: Vec<String>,
    /// The GPUs that NVML lists, or why it does not.
    gpus: Result<Vec<String>, String>,
}

/// Whether the container with this process has these GPUs, as a job would.
///
/// # Errors
/// What it lacks.
pub(super) async fn check(prover: &Prover, pid: i64, devices: &[String]) -> anyhow::Result<()> {
    let seen = match look(prover, pid).await? {
        Said::Seen(seen) => seen,
        Said::Error(why) => bail!("a container cannot be looked at: {why}"),
    };
    let has = |name: &&str| Path::new("/dev").join(name).exists();
    let control: Vec<&str> = CONTROL.into_iter().filter(has).collect();
    judge(&seen, &control, devices)
}

async fn look(prover: &Prover, pid: i64) -> anyhow::Result<Said> {
    let mut command = Command::new(&prover.program);
    command.arg("see").args([pid, i64::from(JOB_UID)].map(|number| number.to_string()));
    command.env_clear().env("PATH", command::PATH).env("LC_ALL", "C").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("run {}", prover.program.display()))?;
    let output = child.stdout.take().context("the prover has no output")?;
    let mut line = String::new();
    let mut bounded = BufReader::new(output).take(LINE_MAX);
    let heard = timeout(LOOK, bounded.read_line(&mut line)).await;
    heard.context("wait for what a container sees")?.context("listen to what a container sees")?;
    ensure!(!line.is_empty(), "the driver's libraries end a program in a container");
    serde_json::from_str(&line).context("read what a container sees")
}

/// What it lacks that has GPUs with these control files beside them.
fn judge(seen: &Seen, control: &[&str], devices: &[String]) -> anyhow::Result<()> {
    let gpus: Vec<&String> = seen.files.iter().filter(|file| is_gpu(file)).collect();
    ensure!(gpus.len() >= devices.len(), "a container sees {} of {} GPUs", gpus.len(), devices.len());
    if let Some(lacks) = control.iter().find(|name| !seen.files.iter().any(|file| file == *name)) {
        bail!("a container has no /dev/{lacks}");
    }
    let needed = |why: &&String| {
        let path = why.split(':').next().and_then(|path| path.strip_prefix("/dev/")).unwrap_or_default();
        is_gpu(path) || CONTROL.contains(&path)
    };
    if let Some(why) = seen.refused.iter().find(needed) {
        bail!("a container may not open a GPU, as its control group or the file's mode has it: {why}");
    }
    if let Some(library) = seen.missing.first() {
        bail!("a container has no {library}: the toolkit does not give it the driver's libraries");
    }
    match &seen.gpus {
        Err(why) => bail!("NVML does not work in a container: {why}"),
        Ok(listed) => match devices.iter().find(|device| !listed.contains(device)) {
            Some(lacks) => {
                bail!("NVML in a container lists {} GPUs, and {lacks} is none of them", listed.len())
            }
            None => Ok(()),
        },
    }
}

/// `nvidia0`, and not `nvidiactl`.
fn is_gpu(name: &str) -> bool {
    let number = name.strip_prefix("nvidia").unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    fn whole() -> Seen {
        Seen {
            files: texts(&["nvidia-uvm", "nvidia0", "nvidia1", "nvidiactl"]),
            refused: vec![],
            missing: vec![],
            gpus: Ok(texts(&["GPU-1", "GPU-2"])),
        }
    }

    fn said(seen: &Seen) -> String {
        let judged = judge(seen, &CONTROL, &texts(&["GPU-1", "GPU-2"]));
        judged.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_container_that_has_all_that_it_asked_for_works() {
        assert_eq!(said(&whole()), "");
        let beside = Seen { refused: texts(&["/dev/nvidia-modeset: not permitted"]), ..whole() };
        assert_eq!(said(&beside), "", "what no job needs may be kept from it");
    }

    #[test]
    fn whatever_a_container_lacks_is_named() {
        let files = |files: &[&str]| Seen { files: texts(files), ..whole() };
        let refused = texts(&["/dev/nvidia0: Operation not permitted (os error 1)"]);
        let cases = [
            (files(&["nvidia-uvm", "nvidiactl", "nvidia1"]), "a container sees 1 of 2 GPUs"),
            (files(&["nvidia0", "nvidia1", "nvidiactl"]), "a container has no /dev/nvidia-uvm"),
            (Seen { refused, ..whole() }, "/dev/nvidia0: Operation not permitted"),
            (Seen { missing: texts(&["libcuda.so.1"]), ..whole() }, "a container has no libcuda.so.1"),
            (Seen { gpus: Err("driver mismatch".into()), ..whole() }, "in a container: driver mismatch"),
            (Seen { gpus: Ok(texts(&["GPU-1"])), ..whole() }, "lists 1 GPUs, and GPU-2 is none of them"),
        ];
        for (seen, why) in cases {
            assert!(said(&seen).contains(why), "{}", said(&seen));
        }
    }

    #[test]
    fn gpus_are_told_from_what_is_beside_them() {
        assert!(is_gpu("nvidia0") && is_gpu("nvidia12"));
        assert!(!["nvidiactl", "nvidia-uvm", "nvidia", "null"].into_iter().any(is_gpu));
    }
}
