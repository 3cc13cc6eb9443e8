//! What two hosts may try with a transfer, and what becomes of it.

#![allow(clippy::unwrap_used, reason = "a test that panics at the unexpected says where")]

mod common;

use std::net::Ipv6Addr;

use common::{Case, fresh, span};
use nave_domain::Millis;
use nave_proof::{
    Digest, Evidence, Nonce, Proven, Reason, Task, TransferTask, Verdict,
    transfer::{Content, Fetched, PIECE, reached},
};

const KEY: Nonce = Nonce([7; 32]);
const REQUEST: Nonce = Nonce([8; 32]);

fn task() -> TransferTask {
    let patience_ms = [1_000, 2_000, 3_000].map(Millis).to_vec();
    TransferTask { source: Ipv6Addr::LOCALHOST, port: 9, bytes: 21 << 16, samples: 5, patience_ms }
}

/// A host that was sent `content`, as far as it says.
fn fetched(content: &Content) -> Case {
    let task = task();
    let mut challenge = fresh(Task::Transfer(task.clone()));
    let (mut fetched, mut chunk) = (Fetched::default(), vec![0; PIECE]);
    for number in 0..21 {
        content.chunk(number, &mut chunk);
        fetched.take(&chunk);
    }
    let commitments = vec![reached(&challenge), fetched.commitment().unwrap()];
    challenge.reveals = vec![REQUEST, KEY];
    let opening = fetched.opening(&challenge, &task).unwrap();
    Case {
        challenge,
        evidence: Evidence { commitments, opening },
        spans: vec![span(900), span(500), span(50)],
    }
}

fn honest() -> Case {
    fetched(&Content::of(&KEY, &REQUEST))
}

#[test]
fn what_came_counts_for_the_time_in_which_it_came() {
    match honest().verdict() {
        Verdict::Passed(Proven::Transfer { bytes, elapsed_ms, bytes_per_s }) => {
            assert_eq!((bytes, elapsed_ms, bytes_per_s), (21 << 16, Millis(500), 42 << 16));
        }
        other @ (Verdict::Passed(_) | Verdict::Failed(_)) => panic!("{other:?}"),
    }
}

#[test]
fn bytes_of_another_key_or_for_another_request_are_not_what_had_to_come() {
    let others = [Content::of(&REQUEST, &REQUEST), Content::of(&KEY, &KEY), Content::of(&REQUEST, &KEY)];
    for other in others {
        assert_eq!(fetched(&other).reason(), Some(Reason::EvidenceWrong));
    }
}

#[test]
fn what_is_changed_afterwards_or_taken_from_another_test_is_refused() {
    let whole = honest();
    let mut changed = whole.clone();
    changed.evidence.opening[40] ^= 1;
    assert_eq!(changed.reason(), Some(Reason::EvidenceWrong));
    let mut short = whole.clone();
    short.evidence.opening.truncate(64);
    assert_eq!(short.reason(), Some(Reason::EvidenceMalformed));
    let mut unreached = whole.clone();
    unreached.evidence.commitments[0] = Digest([1; 32]);
    assert_eq!(unreached.reason(), Some(Reason::EvidenceWrong));
    let mut other = whole.clone();
    other.challenge.nonce.0[0] ^= 1;
    assert_eq!(other.reason(), Some(Reason::EvidenceWrong));
    let mut slow = whole;
    slow.spans[1] = span(2_000 + 15_001);
    assert_eq!(slow.reason(), Some(Reason::TooLate));
}

#[test]
fn nothing_is_opened_before_the_last_reveal() {
    let mut case = honest();
    let mut fetched = Fetched::default();
    assert_eq!(fetched.commitment(), None);
    fetched.take(&[0; PIECE]);
    case.challenge.reveals.pop();
    assert_eq!(fetched.opening(&case.challenge, &task()), None);
}

#[test]
fn sizes_that_no_honest_verifier_draws_are_refused() {
    assert_eq!(Task::transfer(Ipv6Addr::LOCALHOST, 9).check(), Ok(()));
    let refused = |change: fn(&mut TransferTask)| {
        let mut task = task();
        change(&mut task);
        assert!(Task::Transfer(task.clone()).check().is_err(), "{task:?}");
    };
    refused(|task| task.bytes = 0);
    refused(|task| task.bytes += 1);
    refused(|task| task.bytes = 1 << 30);
    refused(|task| task.samples = 0);
    refused(|task| task.port = 0);
    refused(|task| task.patience_ms.truncate(2));
}
