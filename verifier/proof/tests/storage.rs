//! What hosts may try with their disks, and what becomes of it.

#![allow(clippy::unwrap_used, reason = "a test that panics at the unexpected says where")]

mod common;

use common::{Case, Remembered, answered, fresh, usual};
use nave_domain::{Bytes, Millis};
use nave_proof::{BLOCK, Disk, Failure, Proven, Prover, Reason, Resources, StorageTask, Task, Verdict};

/// A disk that was never written to.
struct Empty;

impl Disk for Empty {
    fn write(&self, _: u64, _: &[u8]) -> Result<(), Failure> {
        Ok(())
    }

    fn settle(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn read(&self, _: u64, piece: &mut [u8]) -> Result<(), Failure> {
        piece.fill(0);
        Ok(())
    }
}

/// A disk with room for so many bytes.
struct Full(u64);

impl Disk for Full {
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        if offset + bytes.len() as u64 <= self.0 {
            return Ok(());
        }
        Err(Failure { code: Reason::DiskMissing, message: format!("there is room for {}", self.0) })
    }

    fn settle(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Failure> {
        Ok(())
    }
}

fn task() -> StorageTask {
    let (lanes, reads, samples) = (37, 8, 5);
    let patience_ms = [1_000, 2_000, 3_000].map(Millis).to_vec();
    StorageTask { disk: Bytes(4 << 20), bytes: 33 * BLOCK, lanes, reads, samples, patience_ms }
}

fn resources(disk: impl Disk + Clone + 'static) -> Resources {
    Resources::new(2).with_disk(move |_| Ok(Box::new(disk.clone())))
}

fn honest(task: StorageTask) -> Case {
    answered(fresh(Task::Storage(task)), resources(Remembered::default()), usual, || 100)
}

#[test]
fn an_honest_host_passes_and_what_its_disk_did_is_said() {
    match honest(task()).verdict() {
        Verdict::Passed(Proven::Storage { written, write_ms, reads_ms, reads_per_s }) => {
            assert_eq!((written, write_ms, reads_ms), (Bytes(33 << 16), Millis(100), Millis(100)));
            assert_eq!(reads_per_s, 37 * 8 * 10);
        }
        other @ (Verdict::Passed(_) | Verdict::Failed(_)) => panic!("{other:?}"),
    }
}

#[test]
fn a_disk_that_was_never_written_is_refused() {
    let resources = Resources::new(2).with_disk(|_| Ok(Box::new(Empty)));
    let case = answered(fresh(Task::Storage(task())), resources, usual, || 1);
    assert_eq!(case.reason(), Some(Reason::EvidenceWrong));
}

#[test]
fn what_is_changed_afterwards_or_taken_from_another_test_is_refused() {
    let whole = honest(task());
    let mut changed = whole.clone();
    changed.evidence.opening[40] ^= 1;
    assert_eq!(changed.reason(), Some(Reason::EvidenceWrong));
    let mut short = whole.clone();
    short.evidence.opening.truncate(64);
    assert_eq!(short.reason(), Some(Reason::EvidenceMalformed));
    let mut other = whole.clone();
    other.challenge.nonce.0[0] ^= 1;
    assert_eq!(other.reason(), Some(Reason::EvidenceWrong));
    let mut later = whole.clone();
    later.challenge.reveals[1].0[0] ^= 1;
    assert_eq!(later.reason(), Some(Reason::BindingWrong));
    let mut slow = whole;
    slow.spans[1] = common::span(2_000 + 15_001);
    assert_eq!(slow.reason(), Some(Reason::TooLate));
}

#[test]
fn a_disk_without_room_says_how_much_there_is() {
    let challenge = fresh(Task::Storage(task()));
    let full = Resources::new(2).with_disk(|_| Ok(Box::new(Full(1 << 20))));
    let failure = Prover::new(&challenge, full).unwrap().answer(&challenge).unwrap_err();
    assert_eq!((failure.code, failure.message.as_str()), (Reason::DiskMissing, "there is room for 1048576"));
    let none = Prover::new(&challenge, 2).unwrap().answer(&challenge).unwrap_err();
    assert_eq!(none.code, Reason::Aborted);
}

#[test]
fn the_size_of_a_test_follows_from_the_claim_and_stays_small() {
    let bytes = |claim: i64| match Task::storage(Bytes(claim)) {
        Task::Storage(task) => {
            assert_eq!(Task::Storage(task.clone()).check(), Ok(()));
            task.bytes
        }
        other @ (Task::Cpu(_)
        | Task::Memory(_)
        | Task::Devices(_)
        | Task::Software(_)
        | Task::Transfer(_)) => panic!("{other:?}"),
    };
    assert_eq!(bytes(100 << 30), 1 << 30);
    assert_eq!(bytes(1 << 30), 1 << 29);
    assert_eq!(bytes(100_001), BLOCK);
}

#[test]
fn sizes_that_no_honest_verifier_draws_are_refused() {
    let refused = |change: fn(&mut StorageTask)| {
        let mut task = task();
        change(&mut task);
        assert!(Task::Storage(task.clone()).check().is_err(), "{task:?}");
    };
    refused(|task| task.bytes = 0);
    refused(|task| task.bytes += 1);
    refused(|task| task.bytes = 32 << 30);
    refused(|task| task.lanes = 0);
    refused(|task| task.disk = Bytes(-1));
    refused(|task| task.patience_ms.truncate(2));
    refused(|task| (task.lanes, task.reads, task.samples) = (1 << 16, 1 << 16, 1 << 16));
}
