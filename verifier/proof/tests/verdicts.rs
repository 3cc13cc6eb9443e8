//! What hosts may try, and what becomes of it.

#![allow(clippy::unwrap_used, reason = "a test that panics at the unexpected says where")]

mod common;

use std::time::Instant;

use common::{Case, fresh, honest, span};
use nave_domain::{Bytes, ChallengeId, HostId, MilliCpu, Millis, Timestamp};
use nave_proof::{
    Challenge, CpuTask, Digest, Evidence, MemoryTask, Message, Nonce, OPENING_MAX, Opening, ProofReport,
    Proven, Prover, REFERENCE_STEPS_PER_S, Reason, STEPS, Span, TOLERANCE, Task, Verdict,
};
use proptest::prelude::*;
use uuid::Uuid;

fn cpu_task(milli_cpu: i64) -> CpuTask {
    CpuTask { milli_cpu: MilliCpu(milli_cpu), segments: 12, samples: 4 }
}

fn memory_task() -> MemoryTask {
    let (lanes, reads, samples) = (37, 8, 3);
    MemoryTask {
        memory: Bytes(20 << 20),
        milli_cpu: MilliCpu(1000),
        lanes,
        reads,
        samples,
        reads_ms: Millis(500),
    }
}

fn cpu() -> Case {
    honest(fresh(Task::Cpu(cpu_task(2500))))
}

fn memory() -> Case {
    honest(fresh(Task::Memory(memory_task())))
}

#[test]
fn an_honest_host_passes_both_proofs() {
    assert!(matches!(cpu().verdict(), Verdict::Passed(Proven::Cpu { .. })));
    match memory().verdict() {
        Verdict::Passed(Proven::Memory { memory, fill_ms, reads_ms, reads_per_s }) => {
            assert_eq!((memory, fill_ms, reads_ms), (Bytes(10 << 20), Millis(1), Millis(1)));
            assert_eq!(reads_per_s, 37 * 8 * 1000);
        }
        other @ (Verdict::Passed(_) | Verdict::Failed(_)) => panic!("{other:?}"),
    }
}

#[test]
fn a_claim_stands_up_to_the_tolerance_and_no_further() {
    let mut case = honest(fresh(Task::Cpu(cpu_task(2000))));
    let steps = 2 * 12 * STEPS;
    // The time in which two cores of half the reference rate do the work.
    let most = steps * 1000 * TOLERANCE / (2 * REFERENCE_STEPS_PER_S);
    case.spans[0] = span(i64::try_from(most).unwrap());
    match case.verdict() {
        Verdict::Passed(Proven::Cpu { milli_cpu, .. }) => assert!((1000..1300).contains(&milli_cpu.0)),
        other @ (Verdict::Passed(_) | Verdict::Failed(_)) => panic!("{other:?}"),
    }
    case.spans[0] = span(i64::try_from(most).unwrap() + 1);
    assert_eq!(case.reason(), Some(Reason::CpuOverclaimed));
}

#[test]
fn eight_times_the_cores_are_refused_and_the_message_says_what_was_shown() {
    let mut case = honest(fresh(Task::cpu(MilliCpu(16_000), Millis(10))));
    // Two fast cores, each of two and a half times the reference rate, need 32 ms for it.
    case.spans[0] = span(32);
    assert_eq!(case.message(), "claims 16 cores, proved 4.9 cores in 32 ms");
    assert_eq!(case.reason(), Some(Reason::CpuOverclaimed));
}

#[test]
fn eight_times_the_cores_of_this_machine_are_refused_in_real_time() {
    let cores = std::thread::available_parallelism().unwrap().get() as i64;
    let mut case = {
        let began = Instant::now();
        let mut case = honest(fresh(Task::cpu(MilliCpu(8 * cores * 1000), Millis(100))));
        case.spans[0] = span(i64::try_from(began.elapsed().as_millis()).unwrap());
        case
    };
    assert_eq!(case.reason(), Some(Reason::CpuOverclaimed), "{:?}", case.spans[0]);
    // Only the time refuses it: the work was done.
    case.spans[0] = span(1);
    assert_eq!(case.reason(), None);
}

#[test]
fn half_of_eight_gib_is_refused_however_the_rest_is_computed() {
    let task = Task::memory(Bytes(8 * Bytes::GIB), MilliCpu(2000));
    let Task::Memory(sizes) = &task else { panic!("{task:?}") };
    // Measured on a fast core, in docs/measurements/first-proofs.md.
    let (block_us, cores, blocks) = (20, 2, 8 * Bytes::GIB / 65_536 / 2);
    let (lanes, reads) = (i64::from(sizes.lanes), i64::from(sizes.reads));
    let one_for_each_read = lanes * reads / 2 * block_us / cores / 1000;
    let all_once_for_each_round = blocks * reads * block_us / cores / 1000;
    for took in [one_for_each_read, all_once_for_each_round] {
        let spans = vec![span(1), span(took), span(1)];
        let challenge = Challenge { reveals: vec![Nonce([0; 32]); 2], ..fresh(task.clone()) };
        let evidence = Evidence { commitments: vec![Digest([0; 32]); 2], opening: Vec::new() };
        let case = Case { challenge, evidence, spans };
        let refused = [Some(Reason::MemoryMissing), Some(Reason::TooLate)];
        assert!(refused.contains(&case.reason()), "{took} ms: {:?}", case.verdict());
    }
}

#[test]
fn evidence_of_another_host_challenge_or_claim_is_refused() {
    for case in [cpu(), memory()] {
        let original = &case.challenge;
        let others = [
            Challenge { host: HostId(Uuid::from_u128(9)), ..original.clone() },
            Challenge { challenge: ChallengeId(Uuid::from_u128(9)), ..original.clone() },
            Challenge { nonce: Nonce([9; 32]), ..original.clone() },
        ];
        for challenge in others {
            let replayed = Case { challenge, ..case.clone() };
            let reason = replayed.reason().unwrap();
            assert!([Reason::BindingWrong, Reason::EvidenceWrong].contains(&reason), "{reason:?}");
        }
    }
    // An opening that pretends to be for this host is found out by its content.
    let (mut case, other) = (cpu(), HostId(Uuid::from_u128(9)));
    let own = honest(Challenge { host: other, reveals: Vec::new(), ..case.challenge.clone() });
    case.evidence.commitments = own.evidence.commitments.clone();
    case.evidence.opening = own.evidence.opening.clone();
    assert_eq!(case.reason(), Some(Reason::BindingWrong));
}

#[test]
fn an_opening_for_a_stale_nonce_is_refused() {
    for mut case in [cpu(), memory()] {
        let last = case.challenge.reveals.len() - 1;
        case.challenge.reveals[last] = Nonce([99; 32]);
        assert_eq!(case.reason(), Some(Reason::BindingWrong));
    }
}

#[test]
fn a_challenge_that_changes_is_not_answered() {
    let challenge = fresh(Task::Cpu(cpu_task(500)));
    let mut prover = Prover::new(&challenge, 1).unwrap();
    prover.answer(&challenge).unwrap();
    let ahead = Challenge { reveals: vec![Nonce([1; 32]); 2], ..challenge.clone() };
    let elsewhere =
        Challenge { host: HostId(Uuid::from_u128(9)), reveals: vec![Nonce([1; 32])], ..challenge };
    for other in [ahead, elsewhere] {
        assert_eq!(prover.answer(&other).unwrap_err().code, Reason::Aborted);
    }
}

#[test]
fn silence_and_halves_of_evidence_are_failures() {
    for case in [cpu(), memory()] {
        let mut late = case.clone();
        let last = late.spans.len() - 1;
        late.spans[last] = span(late.challenge.task.patience(last).0 + 1);
        assert_eq!(late.reason(), Some(Reason::TooLate));
        let mut half = case.clone();
        half.evidence.commitments.pop();
        assert_eq!(half.reason(), Some(Reason::Aborted));
        let mut unstamped = case;
        unstamped.spans.pop();
        assert_eq!(unstamped.reason(), Some(Reason::Aborted));
    }
}

#[test]
fn openings_of_a_wrong_length_are_malformed() {
    for case in [cpu(), memory()] {
        let lengths =
            [0, 31, case.evidence.opening.len() - 32, case.evidence.opening.len() + 32, OPENING_MAX + 32];
        for length in lengths {
            let mut changed = case.clone();
            changed.evidence.opening.resize(length, 0);
            assert_eq!(changed.reason(), Some(Reason::EvidenceMalformed), "{length}");
        }
    }
}

#[test]
fn a_commitment_that_memory_is_filled_is_no_other_digest() {
    let mut case = memory();
    case.evidence.commitments[0] = Digest([0; 32]);
    assert_eq!(case.reason(), Some(Reason::EvidenceWrong));
}

#[test]
fn messages_keep_their_form_in_json() {
    let report = |message| ProofReport { challenge: ChallengeId(Uuid::from_u128(1)), step: 1, message };
    let json = |report: &ProofReport| serde_json::to_string(report).unwrap();
    let opening = report(Message::Opening(Opening::Inline(vec![1, 2, 3])));
    let text = r#"{"challenge":"challenge_00000000000000000000000000000001","step":1,"message":{"opening":{"inline":"AQID"}}}"#;
    assert_eq!(json(&opening), text);
    assert_eq!(serde_json::from_str::<ProofReport>(text).unwrap(), opening);
    let challenge = fresh(Task::Cpu(cpu_task(1500)));
    let text = serde_json::to_string(&challenge).unwrap();
    assert_eq!(serde_json::from_str::<Challenge>(&text).unwrap(), challenge);
    let commitment = json(&report(Message::Commitment(Digest([255; 32]))));
    assert!(commitment.contains(&format!("\"commitment\":\"{}\"", "ff".repeat(32))));
    for length in [63, 65] {
        let bad = commitment.replace(&"f".repeat(64), &"f".repeat(length));
        assert!(serde_json::from_str::<ProofReport>(&bad).is_err());
    }
}

#[test]
fn every_size_that_a_verifier_draws_is_in_range() {
    for milli in [1, 999, 1000, 2500, 64_000, 1_024_000] {
        Task::cpu(MilliCpu(milli), Millis(2000)).check().unwrap();
        Task::memory(Bytes(2 * Bytes::GIB), MilliCpu(milli)).check().unwrap();
    }
}

fn mutated(case: &Case, what: usize, at: usize, bit: u8) -> Case {
    let mut changed = case.clone();
    let (evidence, challenge) = (&mut changed.evidence, &mut changed.challenge);
    let flip = |bytes: &mut [u8]| {
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
    };
    match what {
        0 => flip(&mut evidence.opening),
        1 => {
            let which = at % evidence.commitments.len();
            flip(&mut evidence.commitments[which].0);
        }
        2 => flip(&mut challenge.nonce.0),
        3 => {
            let which = at % challenge.reveals.len();
            flip(&mut challenge.reveals[which].0);
        }
        _ => evidence.opening.truncate(at % evidence.opening.len()),
    }
    changed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_change_of_evidence_is_refused(what in 0_usize..5, at: usize, bit in 0_u8..8) {
        thread_local! {
            static CASES: [Case; 2] = [cpu(), memory()];
        }
        CASES.with(|cases| {
            for case in cases {
                prop_assert_eq!(case.reason(), None);
                prop_assert!(mutated(case, what, at, bit).reason().is_some());
            }
            Ok(())
        })?;
    }

    #[test]
    fn no_bytes_make_the_judge_panic_or_pass(
        opening in prop::collection::vec(any::<u8>(), 0..3000),
        commitments in prop::collection::vec(any::<[u8; 32]>(), 0..4),
        bound: bool,
        memory: bool,
        spans in prop::collection::vec((any::<i64>(), any::<i64>()), 0..4),
        honest_spans: bool,
    ) {
        let task = if memory { Task::Memory(memory_task()) } else { Task::Cpu(cpu_task(500)) };
        let mut challenge = fresh(task);
        challenge.reveals = vec![Nonce([7; 32]); challenge.task.commitments()];
        let spans = match honest_spans {
            true => vec![span(1); challenge.reveals.len() + 1],
            false => spans.iter().map(|(a, b)| Span { sent: Timestamp(*a), received: Timestamp(*b) }).collect(),
        };
        let mut commitments: Vec<Digest> = commitments.into_iter().map(Digest).collect();
        if bound {
            commitments.resize(challenge.reveals.len(), Digest([0; 32]));
        }
        let case = Case { challenge, evidence: Evidence { commitments, opening }, spans };
        prop_assert!(case.reason().is_some());
    }

    #[test]
    fn sizes_of_any_kind_are_weighed_or_refused(
        milli: i64, bytes: i64, lanes: u32, reads: u32, samples: u32, segments: u32, ms: i64,
    ) {
        let memory = MemoryTask {
            memory: Bytes(bytes), milli_cpu: MilliCpu(milli), lanes, reads, samples, reads_ms: Millis(ms),
        };
        for task in [Task::Memory(memory), Task::Cpu(CpuTask { milli_cpu: MilliCpu(milli), segments, samples })] {
            let mut challenge = fresh(task);
            challenge.reveals = vec![Nonce([7; 32]); challenge.task.commitments()];
            let evidence = Evidence { commitments: vec![Digest([0; 32]); challenge.reveals.len()], opening: vec![0; 64] };
            let spans = vec![span(1); challenge.reveals.len() + 1];
            let case = Case { challenge, evidence, spans };
            let _ = case.challenge.patience();
            prop_assert!(case.reason().is_some());
        }
        let _ = Task::cpu(MilliCpu(milli), Millis(ms)).check();
        let _ = Task::memory(Bytes(bytes), MilliCpu(milli)).check();
    }

    #[test]
    fn text_of_any_kind_is_read_or_refused(text in ".{0,300}") {
        let _ = serde_json::from_str::<Challenge>(&text);
        let _ = serde_json::from_str::<ProofReport>(&text);
        let inline = format!(r#"{{"opening":{{"inline":{}}}}}"#, serde_json::to_string(&text).unwrap());
        let _ = serde_json::from_str::<Message>(&inline);
    }
}
