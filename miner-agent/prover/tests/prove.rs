//! The prover as a process, as the agent runs it.

#![allow(clippy::unwrap_used, reason = "a test that panics at the unexpected says where")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use nave_domain::{Bytes, ChallengeId, HostId, MilliCpu, Millis, Timestamp, host::Device};
use nave_proof::{
    Challenge, DeviceTask, DevicesTask, Evidence, Failure, Fill, Gemm, Lanes, MemoryTask, Message, Nonce,
    Opening, ProofReport, Proven, Reason, Span, Spill, Stream, Task, VERSION, Verdict, judge,
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
        Self::start_with(&[])
    }

    fn start_with(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nave-prover"));
        command.arg("prove").args(arguments).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    fn tell(&mut self, challenge: &Challenge) {
        let line = serde_json::to_string(challenge).unwrap() + "\n";
        self.input.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    fn hear(&mut self) -> ProofReport {
        let report: ProofReport = serde_json::from_str(&self.hear_line()).unwrap();
        report.check().unwrap();
        report
    }

    fn hear_line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
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
fn verdict(challenge: Challenge) -> Verdict {
    verdict_with(challenge, &[])
}

/// The same of a prover that is told this, too.
fn verdict_with(mut challenge: Challenge, arguments: &[&str]) -> Verdict {
    let mut process = Process::start_with(arguments);
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
    // It says nothing after its opening.
    assert_eq!(process.hear_line(), "");
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

/// Two simulated devices, quick ones; the second has these fields, too.
struct Devices(tempfile::TempDir);

impl Devices {
    fn new(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rates = r#""model": "Nave Simulated", "vram": 1048576, "ops_per_s": 1000000000000,
            "bytes_per_s": 1000000000000, "reads_per_s": 1000000000000, "hashes_per_s": 1000000000000,
            "return_bytes_per_s": 1000000000000"#;
        let file = format!(r#"[{{"uuid": "SIM-1", {rates}}}, {{"uuid": "SIM-2", {rates}{more}}}]"#);
        fs::write(dir.path().join("devices.json"), file).unwrap();
        Self(dir)
    }

    fn verdict(&self, challenge: Challenge) -> Verdict {
        verdict_with(challenge, &["--simulated", self.0.path().join("devices.json").to_str().unwrap()])
    }
}

fn devices(names: &[&str]) -> Task {
    let device = |uuid: &&str| DeviceTask {
        uuid: (*uuid).to_owned(),
        fill: Some(Fill { bytes: 2 << 16, depth: 2 }),
        gemm: Some(Gemm { m: 256, n: 256, k: 64, rounds: 1, samples: 8 }),
        lanes: Some(Lanes { lanes: 64, reads: 8, samples: 4 }),
        stream: Some(Stream { passes: 1, samples: 2 }),
        spill: Some(Spill { bytes: 1 << 16, samples: 1 }),
    };
    let devices = names.iter().map(device).collect();
    Task::Devices(DevicesTask { devices, patience_ms: vec![Millis(10_000); 7] })
}

fn refusal(verdict: Verdict) -> Failure {
    match verdict {
        Verdict::Failed(failure) => failure,
        Verdict::Passed(proven) => panic!("{proven:?}"),
    }
}

#[test]
fn simulated_devices_are_listed_as_what_they_are() {
    let honest = Devices::new("");
    let mut command = Command::new(env!("CARGO_BIN_EXE_nave-prover"));
    let output = command.arg("--simulated").arg(honest.0.path().join("devices.json")).output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let listed: Vec<Device> = serde_json::from_value(answer["devices"].clone()).unwrap();
    let simulated: Vec<_> = listed.iter().filter(|device| device.simulated).collect();
    assert_eq!(simulated.iter().map(|device| &device.uuid).collect::<Vec<_>>(), ["SIM-1", "SIM-2"]);
    assert_eq!(simulated[0].model, "Nave Simulated");
}

#[test]
fn an_honest_host_proves_its_devices() {
    let verdict = Devices::new("").verdict(challenge(devices(&["SIM-1", "SIM-2"])));
    let Verdict::Passed(Proven::Devices(proven)) = verdict else { panic!("{verdict:?}") };
    assert_eq!(proven.iter().map(|device| device.uuid.as_str()).collect::<Vec<_>>(), ["SIM-1", "SIM-2"]);
    assert!(proven.iter().all(|device| device.ops_per_s.is_some() && device.return_bytes_per_s.is_some()));
}

#[test]
fn a_device_that_makes_up_what_it_should_compute_is_found_and_named() {
    let cheat = Devices::new(r#", "dishonesty": [{"skip": {"per_mille": 900}}]"#);
    let failure = refusal(cheat.verdict(challenge(devices(&["SIM-1", "SIM-2"]))));
    assert_eq!(failure.code, Reason::EvidenceWrong);
    assert!(failure.message.contains("SIM-2"), "{}", failure.message);
}

#[test]
fn a_host_that_answers_with_an_older_proof_is_found() {
    let cheat = Devices::new(r#", "replays": true"#);
    let first = challenge(devices(&["SIM-1", "SIM-2"]));
    let later =
        Challenge { challenge: ChallengeId(Uuid::from_u128(9)), nonce: Nonce([9; 32]), ..first.clone() };
    assert!(matches!(cheat.verdict(first), Verdict::Passed(_)));
    assert_eq!(refusal(cheat.verdict(later)).code, Reason::BindingWrong);
}

#[test]
fn a_device_that_is_not_there_is_unavailable() {
    let honest = Devices::new("");
    let file = honest.0.path().join("devices.json");
    let mut process = Process::start_with(&["--simulated", file.to_str().unwrap()]);
    process.tell(&challenge(devices(&["SIM-1", "SIM-3"])));
    match process.hear().message {
        Message::Failed(failure) => {
            assert_eq!(failure.code, Reason::DeviceUnavailable);
            assert!(failure.message.contains("SIM-3"), "{}", failure.message);
        }
        other @ (Message::Commitment(_) | Message::Opening(_)) => panic!("{other:?}"),
    }
}
