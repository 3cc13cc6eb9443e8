//! Runs the prover: a process of its own that gets challenges as lines of JSON and
//! answers in lines of JSON. What it does is documented in `miner-agent/prover`.

use std::{path::Path, process::Stdio, sync::Arc};

use anyhow::{Context as _, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use nave_crash_point::crash_point;
use nave_domain::ChallengeId;
use nave_sdk::wire::{
    proof::{Challenge, Digest, Failure, INLINE_MAX, Message, OPENING_MAX, Opening, ProofReport},
    sign::sha256,
};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
    task::JoinHandle,
};

use super::{Agent, Event};
use crate::{
    backoff::Backoff,
    command,
    endpoint::{CallError, ControlPlane},
    proof::Order,
};

/// Longest line that is read: an opening in base64, and what is around it.
const LINE_BYTES_MAX: u64 = 2 * OPENING_MAX as u64 + 4_096;

impl Agent {
    /// Brings the prover in line with the spec, and the reports with what it said.
    pub(super) fn prove(&mut self) {
        let wanted = self.spec.as_ref().and_then(|spec| spec.challenge.as_ref());
        for order in self.proof.want(wanted) {
            match order {
                Order::End => self.prover = None,
                Order::Feed(challenge) => {
                    if let Some((_, prover)) = &self.prover {
                        prover.feed(challenge);
                    }
                }
                Order::Begin(challenge) => {
                    tracing::info!(challenge.id = %challenge.challenge, "proving what this host claims");
                    self.serial += 1;
                    let (plane, events) = (self.plane.clone(), self.events.clone());
                    let prover = Prover::start(&self.program, challenge, plane, self.serial, events);
                    self.prover = Some((self.serial, prover));
                }
            }
        }
        let report = self.proof.report().cloned();
        self.bulletin.send_if_modified(|bulletin| {
            let changed = bulletin.proof != report;
            bulletin.proof = report;
            changed
        });
    }

    pub(super) fn take_word(&mut self, serial: u64, word: Word) {
        if self.prover.as_ref().map(|(serial, _)| *serial) != Some(serial) {
            return;
        }
        match word {
            Word::Answer(answer) => self.proof.answer(answer),
            Word::Ended(why) => {
                tracing::info!(reason = why, "the prover has ended");
                self.proof.ended(&why);
            }
        }
        self.prove();
    }
}

/// A prover under way; dropped, its process is killed.
pub(super) struct Prover {
    challenges: mpsc::UnboundedSender<Challenge>,
    task: JoinHandle<()>,
}

impl Drop for Prover {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What came of a prover.
#[derive(Debug)]
pub(super) enum Word {
    Answer(ProofReport),
    /// It has ended; why.
    Ended(String),
}

/// A report as the prover prints it: its opening may be longer than one that travels.
#[derive(Deserialize)]
struct Printed {
    challenge: ChallengeId,
    step: u32,
    message: PrintedMessage,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum PrintedMessage {
    Commitment(Digest),
    Opening(PrintedOpening),
    Failed(Failure),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum PrintedOpening {
    Inline(String),
}

impl Prover {
    /// Starts `program` for a challenge; what it says arrives as events with `serial`.
    pub(super) fn start(
        program: &Path,
        challenge: Challenge,
        plane: Arc<ControlPlane>,
        serial: u64,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        let (challenges, inbox) = mpsc::unbounded_channel();
        let _ = challenges.send(challenge);
        let child = spawn(program);
        let task = tokio::spawn(async move {
            let said = |word| drop(events.send(Event::Prover(serial, word)));
            let why = match child {
                Ok(child) => talk(child, inbox, &plane, &said).await,
                Err(error) => Err(error),
            };
            let why = why.map_or_else(|error| format!("{error:#}"), |()| "it has ended".to_owned());
            said(Word::Ended(why));
        });
        Self { challenges, task }
    }

    /// Tells it that the challenge has grown.
    pub(super) fn feed(&self, challenge: Challenge) {
        let _ = self.challenges.send(challenge);
    }
}

fn spawn(program: &Path) -> anyhow::Result<Child> {
    crash_point!("agent.proof.before_start");
    let mut command = Command::new(program);
    command.arg("prove").env_clear().env("PATH", command::PATH).env("LC_ALL", "C").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("run {}", program.display()))
}

async fn talk(
    mut child: Child,
    mut inbox: mpsc::UnboundedReceiver<Challenge>,
    plane: &ControlPlane,
    said: &impl Fn(Word),
) -> anyhow::Result<()> {
    let mut stdin = child.stdin.take().context("the prover has no input")?;
    let stdout = child.stdout.take().context("the prover has no output")?;
    let mut lines = BufReader::new(stdout);
    let mut line = Vec::new();
    loop {
        let mut bounded = (&mut lines).take(LINE_BYTES_MAX.saturating_sub(line.len() as u64));
        tokio::select! {
            Some(challenge) = inbox.recv() => tell(&mut stdin, &challenge).await,
            read = bounded.read_until(b'\n', &mut line) => {
                if read.context("listen to the prover")? == 0 {
                    break;
                }
                if line.last() != Some(&b'\n') {
                    bail!("the prover broke off within a line, or said too much");
                }
                said(Word::Answer(deliver(plane, &line).await?));
                line.clear();
            }
        }
    }
    let status = child.wait().await.context("wait for the prover")?;
    if status.success() { Ok(()) } else { bail!("the prover ended with {status}") }
}

/// A prover that does not listen says why by its end.
async fn tell(stdin: &mut ChildStdin, challenge: &Challenge) {
    let Ok(mut line) = serde_json::to_vec(challenge) else { return };
    line.push(b'\n');
    if let Err(error) = async {
        stdin.write_all(&line).await?;
        stdin.flush().await
    }
    .await
    {
        tracing::info!(%error, "the prover does not listen");
    }
}

/// What a report can say of a line; a long opening is stored first.
async fn deliver(plane: &ControlPlane, line: &[u8]) -> anyhow::Result<ProofReport> {
    let Printed { challenge, step, message } =
        serde_json::from_slice(line).context("read what the prover said")?;
    let message = match message {
        PrintedMessage::Commitment(digest) => Message::Commitment(digest),
        PrintedMessage::Failed(failure) => Message::Failed(failure),
        PrintedMessage::Opening(PrintedOpening::Inline(text)) => {
            let bytes = BASE64_STANDARD.decode(text).context("read the prover's opening")?;
            Message::Opening(opening(plane, bytes).await?)
        }
    };
    Ok(ProofReport { challenge, step, message })
}

async fn opening(plane: &ControlPlane, bytes: Vec<u8>) -> anyhow::Result<Opening> {
    if bytes.len() <= INLINE_MAX {
        return Ok(Opening::Inline(bytes));
    }
    let (hash, size, bytes) = (sha256(&bytes), bytes.len() as u64, Bytes::from(bytes));
    let mut backoff = Backoff::default();
    while let Err(error) = plane.blob_bytes(&hash.to_string(), bytes.clone()).await {
        match error {
            CallError::Away(reason) => tracing::info!(%reason, "the opening of a proof waits"),
            CallError::Refused { .. } | CallError::Unknown => return Err(error).context("store the opening"),
        }
        backoff.wait().await;
    }
    Ok(Opening::Blob { sha256: Digest(hash.0), size })
}
