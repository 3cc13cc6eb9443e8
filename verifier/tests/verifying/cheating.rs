//! Evidence that is not what was asked for.

use nave_domain::host::HostState;
use nave_proof::{Digest, Failure, Message, OPENING_MAX, Opening, ProofReport, Reason};
use serde_json::json;

use crate::market::{EFFORT, Host, config, look, open};
use nave_verifier::{Config, Verifier};

/// Brings a host to where its opening is due.
async fn committed(host: &mut Host, verifier: &mut Verifier) {
    look(verifier).await;
    host.work_within(EFFORT).await;
    look(verifier).await;
}

async fn sends(host: &Host, report: &ProofReport, verifier: &mut Verifier, code: &str) {
    assert!(host.send(report).await);
    look(verifier).await;
    assert_eq!((host.last_code().await, host.state().await), (code, HostState::Refused));
}

#[tokio::test]
async fn only_the_first_answer_of_the_tested_host_to_the_present_step_is_taken() {
    let market = open().await;
    let mut verifier = market.verifier();
    let (mut host, other) = (market.host("alpha", 1_000).await, market.host("beta", 1_000).await);
    look(&mut verifier).await;
    let unsent = host.challenges().await.pop().expect("a challenge").challenge;
    let guess = ProofReport { challenge: unsent, step: 0, message: Message::Commitment(Digest([1; 32])) };
    assert!(!host.send(&guess).await, "it was not asked yet");
    let challenge = host.fetch().await.expect("a challenge");
    let report = host.prove(&challenge);
    assert!(!other.send(&report).await, "another host");
    assert!(!host.send(&ProofReport { step: 1, ..report.clone() }).await, "a step that is not there");
    assert!(host.send(&report).await);
    assert!(!host.send(&report).await, "the same again");
    look(&mut verifier).await;
    assert!(!host.send(&ProofReport { message: guess.message, ..report }).await, "on second thoughts");
    host.work().await;
    look(&mut verifier).await;
    assert_ne!(host.last_code().await, "open");
    let late = ProofReport { challenge: unsent, step: 1, message: Message::Commitment(Digest([1; 32])) };
    assert!(!host.send(&late).await, "after the verdict");
}

#[tokio::test]
async fn an_opening_of_an_earlier_challenge_proves_nothing() {
    let market = open().await;
    let mut verifier = market.verifier();
    let mut host = market.host("alpha", 1_000).await;
    committed(&mut host, &mut verifier).await;
    let challenge = host.fetch().await.expect("a challenge");
    let old = host.prove(&challenge);
    let refused =
        json!(Message::Failed(Failure { code: Reason::Aborted, message: "a pause, please".into() }));
    assert!(host.send_json(&old, &refused).await);
    look(&mut verifier).await;
    assert_eq!(host.reason().await, ("aborted".into(), "a pause, please".into()));
    market.store.clock_advance(nave_domain::Millis(11_000)).await.expect("advance");
    host.report().await;
    committed(&mut host, &mut verifier).await;
    let now = host.fetch().await.expect("another challenge");
    assert_ne!(now.challenge, old.challenge);
    let replayed = ProofReport { challenge: now.challenge, ..old };
    sends(&host, &replayed, &mut verifier, "binding_wrong").await;
}

#[tokio::test]
async fn an_opening_of_another_host_proves_nothing() {
    let market = open().await;
    let mut verifier = market.verifier();
    let mut strong = market.host("strong", 1_000).await;
    let mut weak = market.host("weak", 1_000).await;
    committed(&mut strong, &mut verifier).await;
    weak.work_within(EFFORT).await;
    look(&mut verifier).await;
    let (theirs, ours) = (strong.fetch().await.expect("one"), weak.fetch().await.expect("another"));
    let opening = strong.prove(&theirs);
    let lent = ProofReport { challenge: ours.challenge, ..opening.clone() };
    sends(&weak, &lent, &mut verifier, "binding_wrong").await;
    assert!(strong.send(&opening).await);
    look(&mut verifier).await;
    assert_eq!(strong.last_code().await, "passed");
}

#[tokio::test]
async fn a_commitment_to_work_that_was_not_done_is_found_out() {
    let market = open().await;
    let mut verifier = market.verifier();
    let mut host = market.host("alpha", 1_000).await;
    look(&mut verifier).await;
    let challenge = host.fetch().await.expect("a challenge");
    let honest = host.prove(&challenge);
    let guess = ProofReport { message: Message::Commitment(Digest([1; 32])), ..honest };
    assert!(host.send(&guess).await);
    market.store.challenge_took(challenge.challenge, 0, EFFORT, EFFORT).await.expect("move time");
    look(&mut verifier).await;
    let challenge = host.fetch().await.expect("a challenge");
    let opening = host.prove(&challenge);
    sends(&host, &opening, &mut verifier, "binding_wrong").await;
}

#[tokio::test]
async fn an_opening_may_come_as_a_blob_and_must_be_there_and_small_enough() {
    let market = open().await;
    let mut verifier = market.verifier();
    let mut host = market.host("stored", 1_000).await;
    committed(&mut host, &mut verifier).await;
    let challenge = host.fetch().await.expect("a challenge");
    let opening = host.prove(&challenge);
    let opening = host.stored(opening).await;
    assert!(host.send(&opening).await);
    look(&mut verifier).await;
    assert_eq!(host.last_code().await, "passed");

    let absent = Opening::Blob { sha256: Digest([9; 32]), size: 9 };
    let large = Opening::Blob { sha256: Digest([9; 32]), size: OPENING_MAX as u64 + 1 };
    for (name, opening) in [("absent", absent), ("large", large), ("empty", Opening::Inline(Vec::new()))] {
        let mut host = market.host(name, 1_000).await;
        committed(&mut host, &mut verifier).await;
        let challenge = host.fetch().await.expect("a challenge").challenge;
        let report = ProofReport { challenge, step: 1, message: Message::Opening(opening) };
        sends(&host, &report, &mut verifier, "evidence_malformed").await;
    }
}

#[tokio::test]
async fn nonsense_is_refused_and_holds_up_nobody() {
    let market = open().await;
    let mut verifier = market.verifier();
    let (mut mad, mut sane) = (market.host("mad", 1_000).await, market.host("sane", 1_000).await);
    look(&mut verifier).await;
    let challenge = mad.fetch().await.expect("a challenge");
    let report = mad.prove(&challenge);
    assert!(mad.send_json(&report, &json!({ "commitment": { "of": ["sorts"] } })).await);
    sane.work_within(EFFORT).await;
    look(&mut verifier).await;
    assert_eq!((mad.last_code().await, mad.state().await), ("evidence_malformed", HostState::Refused));
    sane.work().await;
    look(&mut verifier).await;
    assert_eq!(sane.last_code().await, "passed");
}

#[tokio::test]
async fn a_flood_of_evidence_does_not_keep_others_from_their_nonces() {
    let market = open().await;
    let one = Config { judges: std::num::NonZeroUsize::MIN, ..config() };
    let mut verifier = Verifier::new(one, market.store.clone());
    let mut crowd = Vec::new();
    for number in 0..6 {
        crowd.push(market.host(&format!("crowd {number}"), 1_000).await);
    }
    look(&mut verifier).await;
    for host in &mut crowd {
        host.work_within(EFFORT).await;
    }
    look(&mut verifier).await;
    let mut last = market.host("last", 1_000).await;
    look(&mut verifier).await;
    for host in &mut crowd {
        host.work().await;
    }
    last.work_within(EFFORT).await;
    // The look itself answers, before anything is judged.
    verifier.look().await.expect("look");
    assert_eq!(last.fetch().await.expect("a challenge").step(), 1);
    verifier.settle().await;
    for host in &crowd {
        assert_eq!(host.last_code().await, "passed");
    }
}

#[tokio::test]
async fn openings_of_one_miner_do_not_keep_those_of_another_waiting() {
    let market = open().await;
    let one = Config { judges: std::num::NonZeroUsize::MIN, ..config() };
    let mut verifier = Verifier::new(one, market.store.clone());
    let mut crowd = Vec::new();
    for number in 0..6 {
        crowd.push(market.host_of("many", &format!("crowd {number}"), 1_000).await);
    }
    let mut last = market.host("last", 1_000).await;
    for host in crowd.iter_mut().chain([&mut last]) {
        committed(host, &mut verifier).await;
    }
    for host in crowd.iter_mut().chain([&mut last]) {
        host.work().await;
    }
    look(&mut verifier).await;
    let theirs = decided_at(&last).await;
    let mut before = 0;
    for host in &crowd {
        before += usize::from(decided_at(host).await < theirs);
    }
    assert!(before <= 1, "{before} of six were judged before the one of another miner");
}

async fn decided_at(host: &Host) -> nave_domain::Timestamp {
    let last = host.store.verdict_list(host.id, None, 1).await.expect("verdicts").remove(0);
    last.verdict.expect("a verdict").1
}
