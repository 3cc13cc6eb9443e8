//! A prover as a process, as an agent runs it: what real devices do is measured with it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use nave_domain::host::Device;
use nave_proof::{Answer, Challenge, Message, ProofReport};
use serde::Deserialize;
use serde_json::Value;

/// `nave-prover`.
pub struct Program(PathBuf);

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Found {
    Devices(Vec<Device>),
    Error(String),
}

impl Program {
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The real devices of this machine.
    pub fn devices(&self) -> anyhow::Result<Vec<Device>> {
        let output = Command::new(&self.0).output().with_context(|| format!("run {}", self.0.display()))?;
        match serde_json::from_slice(&output.stdout).context("read the list of devices")? {
            Found::Devices(devices) if devices.is_empty() => bail!("this machine has no GPU"),
            Found::Devices(devices) => Ok(devices),
            Found::Error(why) => bail!("this machine's GPUs cannot be listed: {why}"),
        }
    }

    /// Starts it for one test.
    pub fn start(&self) -> anyhow::Result<Running> {
        let mut command = Command::new(&self.0);
        let child = command.arg("prove").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("run {}", self.0.display()))?;
        let input = child.stdin.take().context("the prover has no input")?;
        let output = BufReader::new(child.stdout.take().context("the prover has no output")?);
        Ok(Running { child, input, output })
    }
}

/// One that runs; dropped, it is ended.
pub struct Running {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Running {
    /// Its answer to the last step of a challenge.
    pub fn answer(&mut self, challenge: &Challenge) -> anyhow::Result<Answer> {
        let mut line = serde_json::to_string(challenge).context("write a challenge as JSON")?;
        line.push('\n');
        self.input.write_all(line.as_bytes()).context("tell the prover")?;
        line.clear();
        self.output.read_line(&mut line).context("hear the prover")?;
        let said: Value = serde_json::from_str(&line).context("read what the prover said")?;
        // An opening may be longer here than one that travels in a report.
        if let Some(opening) = said["message"]["opening"]["inline"].as_str() {
            return Ok(Answer::Opening(BASE64_STANDARD.decode(opening).context("read the opening")?));
        }
        let report: ProofReport = serde_json::from_value(said).context("read what the prover said")?;
        match report.message {
            Message::Commitment(commitment) => Ok(Answer::Commitment(commitment)),
            Message::Failed(failure) => bail!("the test broke off: {}", failure.message),
            Message::Opening(_) => bail!("the prover opens something else"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
