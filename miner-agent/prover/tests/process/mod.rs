//! A prover as a process, and its verdict.

#![allow(dead_code, reason = "each file of tests uses some of it")]

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use nave_domain::{ChallengeId, HostId, Timestamp};
use nave_proof::{Challenge, Evidence, Message, Nonce, ProofReport, Span, Task, Verdict, judge};
use serde_json::Value;
use uuid::Uuid;

/// A running prover, ended with the test.
pub struct Process {
    pub child: Child,
    pub input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(arguments: &[&str]) -> Self {
        Self::start_in(arguments, &[])
    }

    /// With these variables and no others.
    pub fn start_in(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nave-prover"));
        command
            .arg("prove")
            .args(arguments)
            .env_clear()
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    pub fn tell(&mut self, challenge: &Challenge) {
        let line = serde_json::to_string(challenge).unwrap() + "\n";
        self.input.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    pub fn hear(&mut self) -> ProofReport {
        let report: ProofReport = serde_json::from_str(&self.hear_line()).unwrap();
        report.check().unwrap();
        report
    }

    pub fn hear_line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }
}

pub fn challenge(task: Task) -> Challenge {
    Challenge::new(ChallengeId(Uuid::from_u128(1)), HostId(Uuid::from_u128(2)), task, Nonce([3; 32]))
}

/// Takes a challenge to its verdict, each step of it in 10 ms on the verifier's clock.
pub fn verdict(challenge: Challenge) -> Verdict {
    verdict_with(challenge, &[])
}

/// The same of a prover that is told this, too.
pub fn verdict_with(challenge: Challenge, arguments: &[&str]) -> Verdict {
    verdict_of(Process::start_with(arguments), challenge)
}

/// The same of this one.
pub fn verdict_of(mut process: Process, mut challenge: Challenge) -> Verdict {
    let mut evidence = Evidence { commitments: Vec::new(), opening: Vec::new() };
    loop {
        process.tell(&challenge);
        if challenge.step() == 0 {
            // The agent may pass on the same spec twice.
            process.tell(&challenge);
        }
        let line: Value = serde_json::from_str(&process.hear_line()).unwrap();
        // It may be longer than one that travels.
        if let Some(opening) = line["message"]["opening"]["inline"].as_str() {
            evidence.opening = BASE64_STANDARD.decode(opening).unwrap();
            break;
        }
        let report: ProofReport = serde_json::from_value(line).unwrap();
        assert_eq!((report.challenge, report.step as usize), (challenge.challenge, challenge.step()));
        match report.message {
            Message::Commitment(commitment) => evidence.commitments.push(commitment),
            other @ (Message::Opening(_) | Message::Failed(_)) => panic!("{other:?}"),
        }
        challenge.reveals.push(Nonce([challenge.step() as u8 + 4; 32]));
    }
    assert!(process.child.wait().unwrap().success());
    // It says nothing after its opening.
    assert_eq!(process.hear_line(), "");
    let span = Span { sent: Timestamp(0), received: Timestamp(10) };
    judge(&challenge, &evidence, &vec![span; challenge.step() + 1])
}
