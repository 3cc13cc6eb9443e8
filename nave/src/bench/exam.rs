//! A test that this machine gives itself: nothing travels.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nave_domain::{ChallengeId, HostId, Millis, Timestamp};
use nave_proof::{
    Answer, Challenge, Evidence, Nonce, Prover, Resources, Span, Task, Verdict, judge,
    software::{Sleeping, SoftwareDevice, SoftwareModel, Turns},
};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{median, process_time, thread_time};

/// A test with everything that came of it.
pub struct Exam {
    pub challenge: Challenge,
    pub evidence: Evidence,
    pub spans: Vec<Span>,
    /// How long the host took, from the first nonce to the opening.
    pub wall: Duration,
    /// How long its cores were at work.
    pub core: Duration,
}

/// Threads for filling and reading memory, and devices of one model.
pub fn resources(model: &SoftwareModel) -> Resources {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let (model, turns) = (model.clone(), Turns::default());
    Resources::new(threads)
        .with_devices(move |_| Ok(Box::new(SoftwareDevice::new(&model, Box::new(Sleeping), &turns))))
}

/// Does a test; each number has nonces of its own.
pub fn take(task: Task, resources: Resources, number: u64) -> anyhow::Result<Exam> {
    let mut prover = Prover::new(&fresh(task.clone(), number), resources).map_err(said)?;
    take_of(task, number, |challenge| prover.answer(challenge).map_err(said))
}

/// A challenge whose nonces are those of this number.
pub fn fresh(task: Task, number: u64) -> Challenge {
    Challenge::new(ChallengeId(Uuid::from_u128(1)), HostId(Uuid::from_u128(2)), task, nonce(number, 0))
}

/// The same test of whoever answers so.
pub fn take_of(
    task: Task,
    number: u64,
    mut answer: impl FnMut(&Challenge) -> anyhow::Result<Answer>,
) -> anyhow::Result<Exam> {
    let mut challenge = fresh(task, number);
    let (began, core) = (Instant::now(), process_time()?);
    let (mut commitments, mut spans) = (Vec::new(), Vec::new());
    let opening = loop {
        let step = Instant::now();
        let answer = answer(&challenge)?;
        let took = i64::try_from(step.elapsed().as_millis()).context("a step without end")?;
        spans.push(Span { sent: Timestamp(0), received: Timestamp(0).after(Millis(took)) });
        match answer {
            Answer::Commitment(commitment) => commitments.push(commitment),
            Answer::Opening(opening) => break opening,
        }
        challenge.reveals.push(nonce(number, spans.len()));
    };
    let (wall, core) = (began.elapsed(), process_time()?.saturating_sub(core));
    Ok(Exam { challenge, evidence: Evidence { commitments, opening }, spans, wall, core })
}

/// The nonce of a step.
pub fn nonce(number: u64, step: usize) -> Nonce {
    let step = u64::try_from(step).unwrap_or(u64::MAX);
    Nonce(Sha256::digest([number.to_le_bytes(), step.to_le_bytes()].concat()).into())
}

fn said(failure: nave_proof::Failure) -> anyhow::Error {
    anyhow::anyhow!("the test broke off: {}", failure.message)
}

impl Exam {
    /// How many devices were tested.
    pub fn devices(&self) -> usize {
        match &self.challenge.task {
            Task::Devices(task) => task.devices.len(),
            Task::Cpu(_) | Task::Memory(_) | Task::Storage(_) | Task::Software(_) | Task::Transfer(_) => 0,
        }
    }

    pub fn judge(&self) -> Verdict {
        judge(&self.challenge, &self.evidence, &self.spans)
    }

    /// Time of a core for judging it: the middle one of several.
    pub fn judge_time(&self, times: u32) -> anyhow::Result<Duration> {
        if let Verdict::Failed(failure) = self.judge() {
            bail!("an honest host was refused: {}", failure.message);
        }
        let once = || {
            let began = thread_time()?;
            std::hint::black_box(self.judge());
            Ok(thread_time()?.saturating_sub(began))
        };
        let mut all = (0..times.max(1)).map(|_| once()).collect::<anyhow::Result<Vec<_>>>()?;
        median(&mut all).context("nothing was judged")
    }
}
