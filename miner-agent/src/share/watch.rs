//! Hears from a prover who holds how much memory of which device.
//!
//! A process of its own asks the driver, twice a second, for as long as somebody listens.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use super::Held;
use crate::command;

/// Longest silence of a prover that watches.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Longest line of it, in bytes.
const LINE_MAX: u64 = 1 << 20;

/// A prover that watches; it ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    _child: Child,
    said: BufReader<ChildStdout>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    Holders(Vec<Held>),
    Error(String),
}

impl Watch {
    /// Starts one.
    ///
    /// # Errors
    /// When the program does not run.
    pub fn begin(prover: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(prover);
        command.arg("watch").env_clear().env("PATH", command::PATH).env("LC_ALL", "C").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("run {}", prover.display()))?;
        let said = BufReader::new(child.stdout.take().context("the prover has no output")?);
        Ok(Self { _child: child, said })
    }

    /// What it sees next.
    ///
    /// # Errors
    /// When it says nothing for long, or that it cannot see.
    pub async fn next(&mut self) -> anyhow::Result<Vec<Held>> {
        let mut line = String::new();
        let mut bounded = (&mut self.said).take(LINE_MAX);
        let heard = timeout(SILENCE_MAX, bounded.read_line(&mut line)).await;
        if heard.context("wait for a prover that watches")?.context("listen to a prover that watches")? == 0 {
            bail!("the prover that watches has ended");
        }
        match serde_json::from_str(&line).context("read what a prover saw")? {
            Said::Holders(held) => Ok(held),
            Said::Error(why) => bail!("{why}"),
        }
    }
}
