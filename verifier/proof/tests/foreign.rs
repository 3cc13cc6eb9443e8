//! Everything that strangers send is read or refused: it never breaks anything, never takes more memory than its
//! length explains, and never passes for something else.
//!
//! This is a fuzzer of mutations with a fixed budget: the same inputs in every run, made from
//! honest messages. What it finds becomes a test of its own.

#![allow(clippy::unwrap_used, reason = "a test that panics at the unexpected says where")]

mod common;

use common::{Case, Host, Remembered, answered, fresh, honest, span, usual, whole_suite};
use nave_domain::{Bytes, ChallengeId, MilliCpu, Millis};
use nave_proof::{
    BLOCK, Challenge, CpuTask, Digest, EXPLANATION_MAX, Evidence, Failure, INLINE_MAX, MemoryTask, Message,
    Nonce, OPENING_MAX, Opening, ProofReport, Proven, Reason, Resources, StorageTask, Task, Verdict,
};
use uuid::Uuid;

/// Inputs of each kind that are made from each honest one.
const BUDGET: usize = 3_000;
/// What may be allocated beside what the honest cases took.
const GROWTH_KIB_MAX: u64 = 64 << 10;
/// What numbers become.
const EXTREMES: [&str; 12] = [
    "0",
    "-1",
    "1",
    "255",
    "65536",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e400",
    "null",
];

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }
}

/// Changes bytes in a few places: bits, lengths, repetitions, and pieces of another input.
fn mutated(numbers: &mut Numbers, original: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..=numbers.below(3) {
        let (at, end) = (numbers.below(bytes.len()), numbers.below(bytes.len() + 1));
        let range = at.min(end)..at.max(end).min(at.min(end) + 200);
        match numbers.below(8) {
            0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << numbers.below(8),
            2 if !bytes.is_empty() => bytes[at] = numbers.next() as u8,
            3 => drop(bytes.drain(range)),
            4 => {
                let piece = bytes[range].to_vec();
                bytes.splice(at..at, piece);
            }
            5 => bytes.truncate(at),
            6 => {
                let from = numbers.below(other.len());
                let piece = other[from..other.len().min(from + 64)].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes.resize(bytes.len() + numbers.below(96), numbers.next() as u8),
        }
    }
    bytes
}

/// Replaces one number or one word of JSON by something that a reader may stumble over.
fn rewritten(numbers: &mut Numbers, original: &[u8]) -> Vec<u8> {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let starts: Vec<usize> = (1..original.len())
        .filter(|at| is_digit(&original[*at]) && b":[,-".contains(&original[*at - 1]))
        .collect();
    if starts.is_empty() {
        return mutated(numbers, original, original);
    }
    let start = starts[numbers.below(starts.len())];
    let end = start + original[start..].iter().take_while(|byte| is_digit(byte)).count();
    let mut bytes = original.to_vec();
    bytes.splice(start..end, EXTREMES[numbers.below(EXTREMES.len())].bytes());
    bytes
}

fn cases() -> Vec<Case> {
    let cpu = CpuTask { milli_cpu: MilliCpu(2500), segments: 12, samples: 4 };
    let memory = MemoryTask {
        memory: Bytes(4 << 20),
        milli_cpu: MilliCpu(1000),
        lanes: 37,
        reads: 8,
        samples: 3,
        reads_ms: Millis(500),
    };
    let storage = StorageTask {
        disk: Bytes(4 << 20),
        bytes: 5 * BLOCK,
        lanes: 37,
        reads: 8,
        samples: 5,
        patience_ms: vec![Millis(1_000); 3],
    };
    let disk = Remembered::default();
    let resources = Resources::new(1).with_disk(move |_| Ok(Box::new(disk.clone())));
    vec![
        honest(fresh(Task::Cpu(cpu))),
        honest(fresh(Task::Memory(memory))),
        Host::honest(2).shows(&whole_suite()),
        answered(fresh(Task::Storage(storage)), resources, usual, || 1),
    ]
}

/// The most memory that this process had so far.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

fn openings(numbers: &mut Numbers, case: &Case, other: &Case) {
    for _ in 0..BUDGET {
        let opening = mutated(numbers, &case.evidence.opening, &other.evidence.opening);
        let evidence = Evidence { opening, ..case.evidence.clone() };
        let is_honest = evidence == case.evidence;
        let changed = Case { evidence, ..case.clone() };
        assert_eq!(changed.reason().is_none(), is_honest);
    }
    // Of the right length, for this challenge, and made up.
    for _ in 0..BUDGET / 10 {
        let mut changed = case.clone();
        changed.evidence.opening[32..].fill_with(|| numbers.next() as u8);
        assert_eq!(changed.reason(), Some(Reason::EvidenceWrong));
    }
}

fn challenges(numbers: &mut Numbers, case: &Case, other: &Case) {
    let (own, foreign) = [case, other].map(|case| serde_json::to_vec(&case.challenge).unwrap()).into();
    for number in 0..BUDGET {
        let text = match number % 2 {
            0 => rewritten(numbers, &own),
            _ => mutated(numbers, &own, &foreign),
        };
        let Ok(challenge) = serde_json::from_slice::<Challenge>(&text) else { continue };
        let again = serde_json::to_vec(&challenge).unwrap();
        assert_eq!(serde_json::from_slice::<Challenge>(&again).unwrap(), challenge);
        let _ = (challenge.task.check(), challenge.patience(), challenge.task.kind());
        let is_own = challenge == case.challenge;
        let changed = Case { challenge, ..case.clone() };
        assert_eq!(changed.reason().is_none(), is_own, "{}", String::from_utf8_lossy(&text));
    }
}

fn reports(numbers: &mut Numbers, case: &Case) {
    let report = |message| ProofReport { challenge: ChallengeId(Uuid::from_u128(1)), step: 1, message };
    let opening = case.evidence.opening[..case.evidence.opening.len().min(3000)].to_vec();
    let messages = [
        Message::Commitment(case.evidence.commitments[0]),
        Message::Opening(Opening::Inline(opening)),
        Message::Opening(Opening::Blob { sha256: Digest([7; 32]), size: 70_000 }),
        Message::Failed(Failure { code: Reason::DeviceBusy, message: "others hold its memory".into() }),
    ];
    let texts = messages.map(|message| serde_json::to_vec(&report(message)).unwrap());
    for number in 0..BUDGET {
        let own = &texts[number % texts.len()];
        let text = match numbers.below(2) {
            0 => rewritten(numbers, own),
            _ => mutated(numbers, own, &texts[(number + 1) % texts.len()]),
        };
        let Ok(report) = serde_json::from_slice::<ProofReport>(&text) else { continue };
        let again = serde_json::to_vec(&report).unwrap();
        assert_eq!(serde_json::from_slice::<ProofReport>(&again).unwrap(), report);
        match (report.check(), &report.message) {
            (Ok(()), Message::Opening(Opening::Inline(bytes))) => assert!(bytes.len() <= INLINE_MAX),
            (Ok(()), Message::Opening(Opening::Blob { size, .. })) => assert!(*size <= OPENING_MAX as u64),
            (Ok(()) | Err(_), _) => {}
        }
    }
}

/// What an agent finds; it passes for whatever it says, as long as it can be read.
fn findings(numbers: &mut Numbers) {
    let text = format!(
        r#"{{"nonce":"{}","kernel":"6.8.0","architecture":"x86_64","boot":"{}","toolkit":[{{"name":"nvidia-ctk","version":"1.17.8"}}],"preloaded":{{"everywhere":[],"environment":["LD_PRELOAD=x"]}},"mounts":[],"mapped":[{{"path":"/usr/lib/libc.so.6","replaced":true}}],"holders":[{{"device":"GPU-1","pid":7,"memory":1073741824}}],"container":"works","gpus":{{"fails":"no device"}}}}"#,
        Nonce([3; 32]),
        Digest([9; 32]),
    );
    let challenge = fresh(Task::software());
    let case = |opening| {
        let evidence = Evidence { commitments: Vec::new(), opening };
        Case { challenge: challenge.clone(), evidence, spans: vec![span(1)] }
    };
    assert_eq!(case(text.clone().into_bytes()).reason(), None);
    for number in 0..BUDGET {
        let opening = match number % 2 {
            0 => rewritten(numbers, text.as_bytes()),
            _ => mutated(numbers, text.as_bytes(), text.as_bytes()),
        };
        match case(opening).verdict() {
            Verdict::Passed(Proven::Software(found)) => assert_eq!(found.excess(), None),
            Verdict::Passed(other) => panic!("{other:?}"),
            Verdict::Failed(failure) => assert!(failure.message.len() <= EXPLANATION_MAX, "{failure:?}"),
        }
    }
}

#[test]
fn what_strangers_send_is_read_or_refused_and_passes_for_nothing_else() {
    let cases = cases();
    assert!(cases.iter().all(|case| case.reason().is_none()));
    let (mut numbers, before) = (Numbers(0x6e61_7665), peak_kib());
    for (number, case) in cases.iter().enumerate() {
        let other = &cases[(number + 1) % cases.len()];
        openings(&mut numbers, case, other);
        challenges(&mut numbers, case, other);
        reports(&mut numbers, case);
    }
    findings(&mut numbers);
    let growth = peak_kib() - before;
    assert!(growth <= GROWTH_KIB_MAX, "{growth} KiB more than before");
}
