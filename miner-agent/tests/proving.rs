//! Challenges: the agent has them answered by a prover of its own, which may die.

mod common;

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use common::{Agent, Plane, until};
use nave_domain::{ChallengeId, MilliCpu};
use nave_sdk::wire::proof::{
    Challenge, CpuTask, Failure, INLINE_MAX, Message, Nonce, OPENING_MAX, Opening, ProofReport, Reason, Task,
};
use tempfile::TempDir;

/// Answers step 0 with a commitment to the challenge's nonce and step 1 with an opening of the
/// size that the second argument of its directory's `size` says; writes down that it ran.
const PROVER: &str = r#"#!/usr/bin/python3
import base64, json, os, sys
here = os.path.dirname(os.path.abspath(__file__))
if sys.argv[1:] != ["prove"]:
    print('{"error":"no GPU"}'); sys.exit(0)
assert "NAVE_LEAKED" not in os.environ and os.environ["PATH"].startswith("/usr/local/sbin")
open(here + "/runs", "a").write("run\n")
if os.path.exists(here + "/die"): sys.exit(3)
answered = -1
for line in sys.stdin:
    challenge = json.loads(line)
    step = len(challenge["reveals"])
    if step <= answered: continue
    answered = step
    message = {"commitment": challenge["nonce"]}
    if step > 0:
        message = {"opening": {"inline": base64.b64encode(b"\xab" * int(open(here + "/size").read())).decode()}}
    print(json.dumps({"challenge": challenge["challenge"], "step": step, "message": message}), flush=True)
    if step > 0: break
"#;

struct Site {
    dir: TempDir,
    plane: Plane,
}

impl Site {
    fn begin(size: usize) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let prover = dir.path().join("prover");
        fs::write(&prover, PROVER).expect("written");
        fs::set_permissions(&prover, fs::Permissions::from_mode(0o755)).expect("a program");
        fs::write(dir.path().join("size"), size.to_string()).expect("written");
        Self { dir, plane: Plane::start() }
    }

    fn agent(&self) -> Agent {
        let prover = self.dir.path().join("prover");
        let env = [("NAVE_AGENT_PROVER", prover.to_str().expect("text")), ("NAVE_LEAKED", "secret")];
        Agent::start_with(&self.plane, &self.dir.path().join("data"), &["--runtime", "simulated"], &env)
    }

    fn challenge(&self, n: u8, reveals: usize) {
        let challenge = Challenge {
            version: 1,
            challenge: id(n),
            host: self.plane.host,
            task: Task::Cpu(CpuTask { milli_cpu: MilliCpu(1_000), segments: 8, samples: 2 }),
            nonce: Nonce([n; 32]),
            beacon: None,
            reveals: vec![Nonce([0; 32]); reveals],
        };
        self.plane.change(|spec| drop(spec.challenges.insert(challenge.challenge, challenge)));
    }

    fn forget(&self, n: u8) {
        self.plane.change(|spec| drop(spec.challenges.remove(&id(n))));
    }

    fn last(&self, n: u8) -> Option<ProofReport> {
        self.plane.kept().reports.last().and_then(|report| report.proofs.get(&id(n)).cloned())
    }

    async fn answer(&self, n: u8, step: u32) -> Message {
        let fits = |report: &ProofReport| (report.challenge, report.step) == (id(n), step);
        until("the step is answered", || self.last(n).as_ref().is_some_and(fits)).await;
        self.last(n).expect("just seen").message
    }

    fn runs(&self) -> usize {
        let runs: PathBuf = self.dir.path().join("runs");
        fs::read_to_string(runs).unwrap_or_default().lines().count()
    }
}

fn id(n: u8) -> ChallengeId {
    format!("challenge_{n:032x}").parse().expect("an id")
}

fn commitment(n: u8) -> Message {
    Message::Commitment(nave_sdk::wire::proof::Digest([n; 32]))
}

#[tokio::test]
async fn a_challenge_is_answered_step_by_step_by_one_prover() {
    let site = Site::begin(100);
    let _agent = site.agent();
    site.challenge(1, 0);
    assert_eq!(site.answer(1, 0).await, commitment(1));
    let seen = site.plane.kept().reports.len();
    until("it is reported on", || site.plane.kept().reports.len() > seen + 1).await;
    assert_eq!(site.answer(1, 0).await, commitment(1), "it stays until the next step is shown");
    site.challenge(1, 1);
    assert_eq!(site.answer(1, 1).await, Message::Opening(Opening::Inline(vec![0xab; 100])));
    site.forget(1);
    until("it is forgotten", || site.last(1).is_none()).await;
    assert_eq!(site.runs(), 1);
}

#[tokio::test]
async fn a_long_opening_is_stored_before_it_is_reported() {
    let size = INLINE_MAX + 1;
    let site = Site::begin(size);
    let _agent = site.agent();
    site.challenge(1, 1);
    let Message::Opening(Opening::Blob { sha256, size: said }) = site.answer(1, 1).await else {
        panic!("it is no blob");
    };
    assert_eq!(said, size as u64);
    assert_eq!(site.plane.kept().blobs.get(&sha256.to_string()), Some(&vec![0xab; size]));
}

#[tokio::test]
async fn a_prover_that_dies_is_reported_and_the_next_challenge_gets_another() {
    let site = Site::begin(1);
    fs::write(site.dir.path().join("die"), "").expect("written");
    let _agent = site.agent();
    site.challenge(1, 0);
    let failed = site.answer(1, 0).await;
    assert!(matches!(&failed, Message::Failed(Failure { code: Reason::Aborted, .. })), "{failed:?}");
    fs::remove_file(site.dir.path().join("die")).expect("removed");
    site.forget(1);
    site.challenge(2, 0);
    assert_eq!(site.answer(2, 0).await, commitment(2));
    assert_eq!(site.runs(), 2);
}

#[tokio::test]
async fn challenges_are_answered_side_by_side_each_by_a_prover_of_its_own() {
    let site = Site::begin(10);
    let _agent = site.agent();
    site.challenge(1, 0);
    assert_eq!(site.answer(1, 0).await, commitment(1));
    site.challenge(2, 0);
    assert_eq!(site.answer(2, 0).await, commitment(2));
    assert_eq!(site.answer(1, 0).await, commitment(1), "the other one still stands");
    site.challenge(1, 1);
    assert_eq!(site.answer(1, 1).await, Message::Opening(Opening::Inline(vec![0xab; 10])));
    assert_eq!(site.answer(2, 0).await, commitment(2));
    assert_eq!(site.runs(), 2);
}

#[tokio::test]
async fn the_death_of_one_prover_is_nothing_to_the_other() {
    let site = Site::begin(10);
    let _agent = site.agent();
    site.challenge(1, 0);
    assert_eq!(site.answer(1, 0).await, commitment(1));
    fs::write(site.dir.path().join("die"), "").expect("written");
    site.challenge(2, 0);
    assert!(matches!(site.answer(2, 0).await, Message::Failed(_)));
    site.challenge(1, 1);
    assert_eq!(site.answer(1, 1).await, Message::Opening(Opening::Inline(vec![0xab; 10])));
}

#[tokio::test]
async fn the_longest_opening_of_all_is_stored_and_reported() {
    let site = Site::begin(OPENING_MAX);
    let _agent = site.agent();
    site.challenge(1, 1);
    let Message::Opening(Opening::Blob { sha256, size }) = site.answer(1, 1).await else {
        panic!("it is no blob");
    };
    assert_eq!(size, OPENING_MAX as u64);
    assert_eq!(site.plane.kept().blobs.get(&sha256.to_string()).map(Vec::len), Some(OPENING_MAX));
}

#[tokio::test]
async fn an_agent_killed_mid_challenge_has_the_work_done_anew() {
    let site = Site::begin(10);
    let first = site.agent();
    site.challenge(1, 0);
    site.answer(1, 0).await;
    first.kill().await;
    site.challenge(1, 1);
    let _second = site.agent();
    assert_eq!(site.answer(1, 1).await, Message::Opening(Opening::Inline(vec![0xab; 10])));
    assert_eq!(site.runs(), 2);
}
