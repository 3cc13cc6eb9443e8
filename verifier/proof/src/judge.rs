//! From evidence to a verdict.

use nave_domain::{Bytes, MilliCpu, Millis};

use crate::{
    Challenge, CpuTask, DevicesTask, Digest, Evidence, Failure, Findings, MemoryTask, OPENING_MAX, Proven,
    Reason, Span, StorageTask, Task, TransferTask, VERSION, Verdict, cpu,
    devices::judge::{self as devices, Shown},
    memory,
    sizes::{Layout, STEPS},
    storage,
    task::{REFERENCE_STEPS_PER_S, TOLERANCE, shown},
    transcript::{binding, revealed},
    transfer::{self, Content},
};

/// Judges everything that came back for `challenge`; `spans` has one entry for each step.
///
/// What is cheap comes first: times cost nothing, so a host that was too slow costs
/// the verifier nothing either.
#[must_use]
pub fn judge(challenge: &Challenge, evidence: &Evidence, spans: &[Span]) -> Verdict {
    let proven = weigh(challenge, evidence, spans);
    proven.map_or_else(Verdict::Failed, Verdict::Passed)
}

fn weigh(challenge: &Challenge, evidence: &Evidence, spans: &[Span]) -> Result<Proven, Failure> {
    if challenge.version != VERSION {
        let message =
            format!("version {} of the proofs is not judged here, but {VERSION}", challenge.version);
        return Err(failure(Reason::VersionUnknown, message));
    }
    let task = &challenge.task;
    task.check().map_err(|why| failure(Reason::Aborted, why))?;
    let commitments = task.commitments();
    let complete = challenge.reveals.len() == commitments
        && evidence.commitments.len() == commitments
        && spans.len() == commitments + 1;
    if !complete {
        return Err(failure(Reason::Aborted, "the challenge was not answered to its end"));
    }
    let took: Vec<Millis> = spans.iter().map(|span| span.received.since(span.sent)).collect();
    let mut steps = took.iter().enumerate();
    if let Some((step, took)) = steps.find(|(step, took)| **took > task.patience(*step)) {
        let message = format!("step {step} was answered after {took}, at most {}", task.patience(step));
        return Err(failure(Reason::TooLate, message));
    }
    let bindings = bindings(challenge, &evidence.commitments);
    match task {
        Task::Cpu(task) => weigh_cpu(task, evidence, &bindings, took[0]),
        Task::Memory(task) => weigh_memory(task, evidence, &bindings, (took[0], took[1])),
        Task::Devices(task) => weigh_devices(task, evidence, &bindings, &took),
        Task::Storage(task) => weigh_storage(task, evidence, &bindings, (took[0], took[1])),
        Task::Software(_) => {
            Findings::read(&evidence.opening, &challenge.nonce).map(|found| Proven::Software(Box::new(found)))
        }
        Task::Transfer(task) => {
            let content = Content::of(&challenge.reveals[1], &challenge.reveals[0]);
            weigh_transfer(task, evidence, &content, &bindings, took[1])
        }
    }
}

fn weigh_cpu(
    task: &CpuTask,
    evidence: &Evidence,
    bindings: &[Digest],
    took: Millis,
) -> Result<Proven, Failure> {
    let steps = u128::from(Layout::of(task).segments()) * u128::from(STEPS);
    let elapsed = u128::try_from(took.0.max(1)).unwrap_or(1);
    let milli_cpu = steps * 1_000_000 / (elapsed * u128::from(REFERENCE_STEPS_PER_S));
    let milli_cpu = MilliCpu(i64::try_from(milli_cpu).unwrap_or(i64::MAX));
    if i128::from(task.milli_cpu.0) > i128::from(milli_cpu.0) * i128::from(TOLERANCE) {
        let message = format!("claims {}, proved {} in {took}", cores(task.milli_cpu), cores(milli_cpu));
        return Err(failure(Reason::CpuOverclaimed, message));
    }
    let seed = &bindings[1];
    let opening = digests(&evidence.opening, seed, || cpu::opening_len(task, seed))?;
    cpu::check(task, &bindings[0], &evidence.commitments[0], seed, &opening)
        .map_err(|why| failure(Reason::EvidenceWrong, why))?;
    let steps_per_s = u64::try_from(steps * 1000 / elapsed).unwrap_or(u64::MAX);
    Ok(Proven::Cpu { milli_cpu, steps_per_s, elapsed_ms: took })
}

fn weigh_memory(
    task: &MemoryTask,
    evidence: &Evidence,
    bindings: &[Digest],
    (fill_ms, reads_ms): (Millis, Millis),
) -> Result<Proven, Failure> {
    if reads_ms > task.reads_ms {
        let message = format!(
            "claims {}, but reads all over it took {reads_ms}, at most {}: part of it was not there",
            task.memory, task.reads_ms
        );
        return Err(failure(Reason::MemoryMissing, message));
    }
    if evidence.commitments[0] != memory::filled(&bindings[0]) {
        return Err(failure(Reason::EvidenceWrong, "the first commitment is not that memory is filled"));
    }
    let seed = &bindings[2];
    let opening = digests(&evidence.opening, seed, || memory::opening_len(task, seed))?;
    let keys = (&bindings[0], &bindings[1], seed);
    memory::check(task, keys, &evidence.commitments[1], &opening)
        .map_err(|why| failure(Reason::EvidenceWrong, why))?;
    let reads = u64::from(task.lanes) * u64::from(task.reads);
    let elapsed = u64::try_from(reads_ms.0.max(1)).unwrap_or(1);
    Ok(Proven::Memory { memory: shown(task), fill_ms, reads_ms, reads_per_s: reads * 1000 / elapsed })
}

fn weigh_storage(
    task: &StorageTask,
    evidence: &Evidence,
    bindings: &[Digest],
    (write_ms, reads_ms): (Millis, Millis),
) -> Result<Proven, Failure> {
    if evidence.commitments[0] != storage::written(&bindings[0]) {
        return Err(failure(Reason::EvidenceWrong, "the first commitment is not that the file is written"));
    }
    let seed = &bindings[2];
    let opening = digests(&evidence.opening, seed, || storage::opening_len(task, seed))?;
    let keys = (&bindings[0], &bindings[1], seed);
    storage::check(task, keys, &evidence.commitments[1], &opening)
        .map_err(|why| failure(Reason::EvidenceWrong, why))?;
    let reads = u64::from(task.lanes) * u64::from(task.reads);
    let elapsed = u64::try_from(reads_ms.0.max(1)).unwrap_or(1);
    let written = Bytes(i64::try_from(task.bytes).unwrap_or(i64::MAX));
    Ok(Proven::Storage { written, write_ms, reads_ms, reads_per_s: reads * 1000 / elapsed })
}

fn weigh_transfer(
    task: &TransferTask,
    evidence: &Evidence,
    content: &Content,
    bindings: &[Digest],
    took: Millis,
) -> Result<Proven, Failure> {
    if evidence.commitments[0] != transfer::reached_of(&bindings[0]) {
        let message = "the first commitment is not that the other host is reached";
        return Err(failure(Reason::EvidenceWrong, message));
    }
    let seed = &bindings[2];
    let opening = digests(&evidence.opening, seed, || transfer::opening_len(task, seed))?;
    transfer::check(task, content, seed, &evidence.commitments[1], &opening)
        .map_err(|why| failure(Reason::EvidenceWrong, why))?;
    let elapsed = u64::try_from(took.0.max(1)).unwrap_or(1);
    Ok(Proven::Transfer {
        bytes: task.bytes,
        elapsed_ms: took,
        bytes_per_s: task.bytes.saturating_mul(1000) / elapsed,
    })
}

fn weigh_devices(
    task: &DevicesTask,
    evidence: &Evidence,
    bindings: &[Digest],
    took: &[Millis],
) -> Result<Proven, Failure> {
    let opening = opened(&evidence.opening, &bindings[bindings.len() - 1])?;
    let shown = Shown { bindings, commitments: &evidence.commitments, took, opening };
    devices::weigh(task, &shown).map(Proven::Devices)
}

/// What the work starts from, then what each reveal made of it.
fn bindings(challenge: &Challenge, commitments: &[Digest]) -> Vec<Digest> {
    let mut bindings = vec![binding(challenge)];
    for (commitment, reveal) in commitments.iter().zip(&challenge.reveals) {
        let before = bindings[bindings.len() - 1];
        bindings.push(revealed(&before, commitment, reveal));
    }
    bindings
}

/// What an opening has after the digest that it is bound to.
fn opened<'a>(bytes: &'a [u8], seed: &Digest) -> Result<&'a [[u8; 32]], Failure> {
    let malformed = |why: String| failure(Reason::EvidenceMalformed, why);
    let (units, rest) = bytes.as_chunks::<32>();
    if bytes.len() > OPENING_MAX || !rest.is_empty() {
        return Err(malformed(format!("the opening has {} bytes, which none can have", bytes.len())));
    }
    let (first, units) = units.split_first().ok_or_else(|| malformed("the opening is empty".into()))?;
    if first != &seed.0 {
        let message = "the opening is for another challenge, host, commitment or nonce";
        return Err(failure(Reason::BindingWrong, message));
    }
    Ok(units)
}

/// The digests of an opening that has `expected`, after the one that it is bound to.
fn digests(bytes: &[u8], seed: &Digest, expected: impl FnOnce() -> usize) -> Result<Vec<Digest>, Failure> {
    let (units, expected) = (opened(bytes, seed)?, expected());
    if units.len() != expected {
        let message = format!("the opening has {} digests, not {expected}", units.len());
        return Err(failure(Reason::EvidenceMalformed, message));
    }
    Ok(units.iter().copied().map(Digest).collect())
}

fn failure(code: Reason, message: impl Into<String>) -> Failure {
    Failure { code, message: message.into() }
}

/// `1.9 cores`: tenths, rounded down.
fn cores(milli: MilliCpu) -> String {
    match (milli.0 / 1000, milli.0 % 1000 / 100) {
        (1, 0) => "1 core".into(),
        (whole, 0) => format!("{whole} cores"),
        (whole, tenth) => format!("{whole}.{tenth} cores"),
    }
}
