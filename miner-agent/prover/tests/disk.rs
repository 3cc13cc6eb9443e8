//! Tests of a disk as a process does them, and what it leaves.

#![allow(clippy::unwrap_used, reason = "a test that panics at the unexpected says where")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use nave_domain::{Bytes, ChallengeId, HostId, Timestamp};
use nave_proof::{
    BLOCK, Challenge, Evidence, Message, Nonce, Opening, ProofReport, Proven, Reason, Span, StorageTask,
    Task, Verdict, judge,
};
use uuid::Uuid;

/// A prover that works in a directory, ended with the test.
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start(dir: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nave-prover"));
        command.arg("prove").arg("--disk").arg(dir).env_clear();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    fn ask(&mut self, challenge: &Challenge) -> Message {
        let line = serde_json::to_string(challenge).unwrap() + "\n";
        self.input.write_all(line.as_bytes()).unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str::<ProofReport>(&line).unwrap().message
    }
}

fn challenge(blocks: u64) -> Challenge {
    let Task::Storage(task) = Task::storage(Bytes(Bytes::GIB)) else { unreachable!() };
    Challenge::new(
        ChallengeId(Uuid::from_u128(1)),
        HostId(Uuid::from_u128(2)),
        Task::Storage(StorageTask { bytes: blocks * BLOCK, ..task }),
        Nonce([3; 32]),
    )
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn a_disk_is_written_and_read_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("nave-disk-proof.1"), "of a prover that was killed").unwrap();
    let mut process = Process::start(dir.path());
    let mut challenge = challenge(256);
    let mut evidence = Evidence { commitments: Vec::new(), opening: Vec::new() };
    loop {
        match process.ask(&challenge) {
            Message::Commitment(commitment) => evidence.commitments.push(commitment),
            Message::Opening(Opening::Inline(bytes)) => {
                evidence.opening = bytes;
                break;
            }
            other @ (Message::Opening(_) | Message::Failed(_)) => panic!("{other:?}"),
        }
        assert_eq!(entries(dir.path()), 0, "the file has no name while it is used");
        challenge.reveals.push(Nonce([7; 32]));
    }
    let spans = vec![Span { sent: Timestamp(0), received: Timestamp(500) }; 3];
    match judge(&challenge, &evidence, &spans) {
        Verdict::Passed(Proven::Storage { written, .. }) => assert_eq!(written, Bytes(16 << 20)),
        other @ (Verdict::Passed(_) | Verdict::Failed(_)) => panic!("{other:?}"),
    }
    assert!(process.child.wait().unwrap().success());
    assert_eq!(entries(dir.path()), 0);
}

#[test]
fn a_disk_without_room_is_said_to_be_missing_with_numbers() {
    let full = Full::mount();
    let Message::Failed(failure) = Process::start(full.0.path()).ask(&challenge(64)) else {
        panic!("there is no room");
    };
    assert_eq!(failure.code, Reason::DiskMissing, "{failure:?}");
    assert_eq!(failure.message, "claims 1 GiB of disk, but for 4 MiB of it: 1 MiB are free");
}

#[test]
fn a_directory_that_is_not_there_is_a_failure_of_the_test_alone() {
    let Message::Failed(failure) = Process::start(Path::new("/does/not/exist")).ask(&challenge(1)) else {
        panic!("there is no directory");
    };
    assert_eq!(failure.code, Reason::Aborted, "{failure:?}");
}

/// A file system of one MiB, gone with the test.
struct Full(tempfile::TempDir);

impl Full {
    fn mount() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (none, options): (Option<&str>, _) = (None, Some("size=1m"));
        nix::mount::mount(none, dir.path(), Some("tmpfs"), nix::mount::MsFlags::empty(), options).unwrap();
        Self(dir)
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}
