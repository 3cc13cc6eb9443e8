//! The prover as a process, as the agent runs it.

#![allow(clippy::unwrap_used, reason = "a test that panics at the unexpected says where")]

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use nave_domain::{Bytes, ChallengeId, HostId, MilliCpu, Millis, Timestamp};
use nave_proof::{
    Challenge, Evidence, MemoryTask, Message, Nonce, Opening, ProofReport, Reason, Span, Task, VERSION,
    Verdict, judge,
};
use uuid::Uuid;

/// A running prover, ended with the test.
struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nave-prover"));
        command.arg("prove").env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    fn tell(&mut self, challenge: &Challenge) {
        let line = serde_json::to_string(challenge).unwrap() + "\n";
        self.input.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    fn hear(&mut self) -> ProofReport {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let report: ProofReport = serde_json::from_str(&line).unwrap();
        report.check().unwrap();
        report
    }
}

fn challenge(task: Task) -> Challenge {
    Challenge {
        version: VERSION,
        challenge: ChallengeId(Uuid::from_u128(1)),
        host: HostId(Uuid::from_u128(2)),
        task,
        nonce: Nonce([3; 32]),
        beacon: None,
        reveals: Vec::new(),
    }
}

/// Takes a challenge to its verdict, each step of it in 10 ms on the verifier's clock.
fn verdict(mut challenge: Challenge) -> Verdict {
    let mut process = Process::start();
    let mut evidence = Evidence { commitments: Vec::new(), opening: Vec::new() };
    loop {
        process.tell(&challenge);
        if challenge.step() == 0 {
            // The agent may pass on the same spec twice.
            process.tell(&challenge);
        }
        let report = process.hear();
        assert_eq!((report.challenge, report.step as usize), (challenge.challenge, challenge.step()));
        match report.message {
            Message::Commitment(commitment) => evidence.commitments.push(commitment),
            Message::Opening(Opening::Inline(opening)) => {
                evidence.opening = opening;
                break;
            }
            other @ (Message::Opening(Opening::Blob { .. }) | Message::Failed(_)) => panic!("{other:?}"),
        }
        challenge.reveals.push(Nonce([challenge.step() as u8 + 4; 32]));
    }
    assert!(process.child.wait().unwrap().success());
    let span = Span { sent: Timestamp(0), received: Timestamp(10) };
    judge(&challenge, &evidence, &vec![span; challenge.step() + 1])
}

fn memory(memory: Bytes) -> MemoryTask {
    let (lanes, reads, samples) = (64, 16, 4);
    MemoryTask { memory, milli_cpu: MilliCpu(1000), lanes, reads, samples, reads_ms: Millis(1000) }
}

#[test]
fn an_honest_host_proves_its_cores() {
    let verdict = verdict(challenge(Task::cpu(MilliCpu(1500), Millis(10))));
    assert!(matches!(verdict, Verdict::Passed(_)), "{verdict:?}");
}

#[test]
fn an_honest_host_proves_its_memory() {
    let verdict = verdict(challenge(Task::Memory(memory(Bytes(20 << 20)))));
    assert!(matches!(verdict, Verdict::Passed(_)), "{verdict:?}");
}

#[test]
fn a_claim_beyond_the_machines_memory_fails_with_a_reason() {
    let mut process = Process::start();
    process.tell(&challenge(Task::Memory(memory(Bytes(1 << 50)))));
    match process.hear().message {
        Message::Failed(failure) => {
            assert_eq!(failure.code, Reason::MemoryUnavailable);
            assert!(failure.message.starts_with("claims 1048576 GiB, but "), "{}", failure.message);
        }
        other @ (Message::Commitment(_) | Message::Opening(_)) => panic!("{other:?}"),
    }
    assert!(process.child.wait().unwrap().success());
}

#[test]
fn another_version_of_the_proofs_is_refused_by_name() {
    let mut process = Process::start();
    let task = Task::cpu(MilliCpu(1000), Millis(10));
    process.tell(&Challenge { version: VERSION + 1, ..challenge(task) });
    match process.hear().message {
        Message::Failed(failure) => assert_eq!(failure.code, Reason::VersionUnknown),
        other @ (Message::Commitment(_) | Message::Opening(_)) => panic!("{other:?}"),
    }
}

#[test]
fn a_prover_ends_with_its_input_in_the_middle_of_its_work() {
    let mut process = Process::start();
    // A minute of work.
    process.tell(&challenge(Task::cpu(MilliCpu(1000), Millis(60_000))));
    process.input = None;
    assert!(process.child.wait().unwrap().success());
}

#[test]
fn what_is_no_challenge_ends_the_prover() {
    let mut process = Process::start();
    process.input.as_mut().unwrap().write_all(b"{\"version\":1}\n").unwrap();
    assert!(!process.child.wait().unwrap().success());
}

#[test]
fn the_kernel_ends_a_prover_before_anything_else() {
    let mut process = Process::start();
    process.tell(&challenge(Task::cpu(MilliCpu(1), Millis(10))));
    process.hear();
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", process.child.id())).unwrap();
    assert_eq!(score.trim(), "1000");
}
