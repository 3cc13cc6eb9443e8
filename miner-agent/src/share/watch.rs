//! Hears from a prover who holds how much memory of which device.
//!
//! A process of its own asks the driver, twice a second, for as long as somebody listens.

use std::{collections::BTreeSet, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, ChildStdout, Command},
    time::{Instant, timeout_at},
};

use super::Held;
use crate::command;

/// Longest line of it, in bytes.
const LINE_MAX: usize = 4 << 20;

/// A prover that watches; it ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    _child: Child,
    said: BufReader<ChildStdout>,
    /// What has come of its next line.
    line: Vec<u8>,
    /// When it last said something.
    heard: Instant,
    silence_max: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    Holders(Vec<Held>),
    Error(String),
}

impl Watch {
    /// Starts one that watches these devices, and may be silent for so long.
    ///
    /// # Errors
    /// When the program does not run.
    pub fn begin(prover: &Path, devices: &BTreeSet<String>, silence_max: Duration) -> anyhow::Result<Self> {
        let mut command = Command::new(prover);
        command
            .arg("watch")
            .args(devices)
            .env_clear()
            .env("PATH", command::PATH)
            .env("LC_ALL", "C")
            .kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("run {}", prover.display()))?;
        let said = BufReader::new(child.stdout.take().context("the prover has no output")?);
        Ok(Self { _child: child, said, line: Vec::new(), heard: Instant::now(), silence_max })
    }

    /// What it sees next. May be cut off and called again.
    ///
    /// # Errors
    /// When it says nothing for long, or that it cannot see.
    pub async fn next(&mut self) -> anyhow::Result<Vec<Held>> {
        let left = LINE_MAX.saturating_sub(self.line.len());
        let mut bounded = (&mut self.said).take(left as u64);
        let heard =
            timeout_at(self.heard + self.silence_max, bounded.read_until(b'\n', &mut self.line)).await;
        if heard.context("wait for a prover that watches")?.context("listen to a prover that watches")? == 0 {
            bail!("the prover that watches has ended, or says too much");
        }
        self.heard = Instant::now();
        match serde_json::from_slice(&std::mem::take(&mut self.line)).context("read what a prover saw")? {
            Said::Holders(held) => Ok(held),
            Said::Error(why) => bail!("{why}"),
        }
    }
}
