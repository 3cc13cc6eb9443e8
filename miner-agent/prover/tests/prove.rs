//! The prover as a process, as the agent runs it.

#![allow(clippy::unwrap_used, reason = "a test that panics at the unexpected says where")]

mod process;

use std::{fs, io::Write as _, process::Command};

use nave_domain::{Bytes, ChallengeId, MilliCpu, Millis, host::Device};
use nave_proof::{
    Challenge, DeviceTask, DevicesTask, Failure, Fill, Gemm, Lanes, MemoryTask, Message, Nonce, Proven,
    Reason, Spill, Stream, Task, VERSION, Verdict,
};
use process::{Process, challenge, verdict, verdict_with};
use uuid::Uuid;

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

/// What is added to the second device to cut it in two.
const CUT: &str = r#", "division": {"slices": [
    {"uuid": "SIM-2-0", "profile": "1g", "milli": 500, "vram": 524288},
    {"uuid": "SIM-2-1", "profile": "1g", "milli": 500, "vram": 524288}]}"#;

#[test]
fn an_honest_host_proves_slices_each_in_a_process_of_its_own() {
    let verdict = Devices::new(CUT).verdict(challenge(devices(&["SIM-1", "SIM-2-0", "SIM-2-1"])));
    let Verdict::Passed(Proven::Devices(proven)) = verdict else { panic!("{verdict:?}") };
    let uuids: Vec<_> = proven.iter().map(|device| device.uuid.as_str()).collect();
    assert_eq!(uuids, ["SIM-1", "SIM-2-0", "SIM-2-1"]);
    assert!(proven.iter().all(|device| device.ops_per_s.is_some() && device.return_bytes_per_s.is_some()));
}

#[test]
fn a_slice_that_makes_up_what_it_should_compute_is_found_and_named() {
    let cheat = format!(r#"{CUT}, "dishonesty": [{{"skip": {{"per_mille": 900}}}}]"#);
    let failure = refusal(Devices::new(&cheat).verdict(challenge(devices(&["SIM-1", "SIM-2-1"]))));
    assert_eq!(failure.code, Reason::EvidenceWrong);
    assert!(failure.message.contains("SIM-2-1"), "{}", failure.message);
}

#[test]
fn a_device_that_is_cut_is_not_there_as_a_whole_nor_is_a_slice_that_nobody_made() {
    for (cut, uuid) in [(CUT, "SIM-2"), (CUT, "SIM-2-7"), ("", "SIM-2-0"), ("", "MIG-1")] {
        let host = Devices::new(cut);
        let file = host.0.path().join("devices.json");
        let mut process = Process::start_with(&["--simulated", file.to_str().unwrap()]);
        process.tell(&challenge(devices(&[uuid])));
        match process.hear().message {
            Message::Failed(failure) => assert_eq!(failure.code, Reason::DeviceUnavailable, "{failure:?}"),
            other @ (Message::Commitment(_) | Message::Opening(_)) => panic!("{other:?}"),
        }
        assert!(process.child.wait().unwrap().success());
    }
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
