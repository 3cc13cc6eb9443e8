//! Runs provers, one for each challenge: a process of its own that gets its challenge as lines
//! of JSON and answers in lines of JSON. What it does is documented in `miner-agent/prover`.

use std::{collections::BTreeMap, ffi::OsStr, future::Future, path::Path, process::Stdio};

use anyhow::{Context as _, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use nave_crash_point::crash_point;
use nave_domain::ChallengeId;
use nave_sdk::wire::{
    proof::{Challenge, Digest, Failure, INLINE_MAX, Kind, Message, OPENING_MAX, Opening, ProofReport},
    sign::sha256,
};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
    task::JoinHandle,
};

use super::{
    Agent, Event,
    inspect::{self, Ground},
};
use crate::{
    backoff::Backoff,
    command,
    config::Prover,
    endpoint::{CallError, ControlPlane},
    proof::Order,
};

/// Longest line that is read: an opening in base64, and what is around it.
const LINE_BYTES_MAX: u64 = 2 * OPENING_MAX as u64 + 4_096;

impl Agent {
    /// Brings those who answer challenges in line with the spec, and the reports with what they said.
    pub(super) fn prove(&mut self) {
        let none = BTreeMap::new();
        let wanted = self.spec.as_ref().map_or(&none, |spec| &spec.challenges);
        for order in self.proofs.want(wanted) {
            match order {
                Order::End(challenge) => drop(self.answering.remove(&challenge)),
                Order::Feed(challenge) => {
                    if let Some(answering) = self.answering.get(&challenge.challenge) {
                        answering.feed(challenge);
                    }
                }
                Order::Begin(challenge) => {
                    let disk = (challenge.task.kind() == Kind::Storage).then_some(self.data.as_path());
                    let (child, plane) = (spawn(&self.prover, disk), self.plane.clone());
                    self.begin_answer(challenge, async move |inbox, said| {
                        talk(child?, inbox, &plane, &said).await
                    });
                }
                Order::Inspect(challenge) => {
                    let (ground, plane) = (self.ground(), self.plane.clone());
                    self.begin_answer(challenge, async move |inbox, said| {
                        inspect::answer(&ground, inbox, &plane, &said).await
                    });
                }
            }
        }
        let reports = self.proofs.reports();
        self.bulletin.send_if_modified(|bulletin| {
            let changed = bulletin.proofs != reports;
            bulletin.proofs = reports;
            changed
        });
    }

    fn ground(&self) -> Ground {
        let devices = self.bulletin.borrow().inventory.devices.clone();
        let address = self.link.as_ref().map(|link| link.address());
        Ground { runtime: self.runtime.clone(), prover: self.prover.clone(), devices, address }
    }

    fn begin_answer<W, F>(&mut self, challenge: Challenge, work: W)
    where
        W: FnOnce(Inbox, Said) -> F,
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let (id, kind) = (challenge.challenge, challenge.task.kind().as_str());
        tracing::info!(challenge.id = %id, kind, "proving what this host claims");
        self.serial += 1;
        let said = Said { challenge: id, serial: self.serial, events: self.events.clone() };
        let (challenges, inbox) = mpsc::unbounded_channel();
        let _ = challenges.send(challenge);
        let over = said.clone();
        let work = work(inbox, said);
        let task = tokio::spawn(async move {
            let why = work.await.map_or_else(|error| format!("{error:#}"), |()| "it has ended".to_owned());
            over.say(Word::Ended(why));
        });
        self.answering.insert(id, Answering { serial: self.serial, challenges, task });
    }

    pub(super) fn take_word(&mut self, challenge: ChallengeId, serial: u64, word: Word) {
        if self.answering.get(&challenge).map(|answering| answering.serial) != Some(serial) {
            return;
        }
        match word {
            Word::Answer(answer) => self.proofs.answer(answer),
            Word::Ended(reason) => {
                tracing::info!(challenge.id = %challenge, reason, "a prover has ended");
                self.proofs.ended(challenge, &reason);
            }
        }
        self.prove();
    }
}

/// Whoever answers a challenge; dropped, it is ended.
pub(super) struct Answering {
    serial: u64,
    challenges: mpsc::UnboundedSender<Challenge>,
    task: JoinHandle<()>,
}

/// A challenge, and again each time it has grown.
pub(super) type Inbox = mpsc::UnboundedReceiver<Challenge>;

impl Answering {
    /// Tells it that the challenge has grown.
    fn feed(&self, challenge: Challenge) {
        let _ = self.challenges.send(challenge);
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How whoever answers a challenge tells the agent.
#[derive(Debug, Clone)]
pub(super) struct Said {
    challenge: ChallengeId,
    serial: u64,
    events: mpsc::UnboundedSender<Event>,
}

impl Said {
    /// Answers a step of the challenge.
    pub(super) fn answer(&self, step: u32, message: Message) {
        self.say(Word::Answer(ProofReport { challenge: self.challenge, step, message }));
    }

    fn say(&self, word: Word) {
        let _ = self.events.send(Event::Said(self.challenge, self.serial, word));
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
struct Printed<'a> {
    challenge: ChallengeId,
    step: u32,
    #[serde(borrow)]
    message: PrintedMessage<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum PrintedMessage<'a> {
    Commitment(Digest),
    #[serde(borrow)]
    Opening(PrintedOpening<'a>),
    Failed(Failure),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum PrintedOpening<'a> {
    Inline(&'a str),
}

fn spawn(prover: &Prover, disk: Option<&Path>) -> anyhow::Result<Child> {
    crash_point!("agent.proof.before_start");
    let mut command = Command::new(&prover.program);
    command.arg("prove").args(prover.arguments());
    command.args(disk.into_iter().flat_map(|dir| [OsStr::new("--disk"), dir.as_os_str()]));
    command.env_clear().env("PATH", command::PATH).env("LC_ALL", "C").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("run {}", prover.program.display()))
}

async fn talk(mut child: Child, mut inbox: Inbox, plane: &ControlPlane, said: &Said) -> anyhow::Result<()> {
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
                deliver(plane, std::mem::take(&mut line), said).await?;
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

/// Passes on what a line says; a long opening is stored first.
async fn deliver(plane: &ControlPlane, line: Vec<u8>, said: &Said) -> anyhow::Result<()> {
    let (step, message) = {
        let Printed { challenge, step, message } =
            serde_json::from_slice(&line).context("read what the prover said")?;
        if challenge != said.challenge {
            bail!("the prover has answered {challenge}, which is another challenge");
        }
        let message = match message {
            PrintedMessage::Commitment(digest) => Ok(Message::Commitment(digest)),
            PrintedMessage::Failed(failure) => Ok(Message::Failed(failure)),
            PrintedMessage::Opening(PrintedOpening::Inline(text)) => {
                Err(BASE64_STANDARD.decode(text).context("read the prover's opening")?)
            }
        };
        (step, message)
    };
    // An opening may be long, and so may the way that it has to go.
    drop(line);
    let message = match message {
        Ok(message) => message,
        Err(bytes) => Message::Opening(opening(plane, bytes).await?),
    };
    said.answer(step, message);
    Ok(())
}

/// What a report can say of an opening; a long one is stored first.
pub(super) async fn opening(plane: &ControlPlane, bytes: Vec<u8>) -> anyhow::Result<Opening> {
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
