//! What hosts may try with their GPUs, and what becomes of it.

#![allow(clippy::unwrap_used, reason = "a test that panics at the unexpected says where")]

mod common;

use std::{
    collections::BTreeSet,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

use common::{Case, Host, fresh, model, small_proof, span, task, uuid, whole_suite};
use nave_domain::{Bytes, ChallengeId, HostId, Millis};
use nave_proof::{
    Challenge, DeviceTask, DevicesTask, Digest, Failure, Fill, Gemm, Lanes, Nonce, OPENING_MAX, Phase,
    Prover, Reason, Resources, Spill, Stream, Task, VERSION,
    device::{CHUNK, Device, GemmOpening, PassChunk, Tile},
    gemm::{self, Entry},
    software::Dishonesty,
};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// How long a device waits for the others, which come at once.
const PATIENCE: Duration = Duration::from_secs(60);
/// A test of one phase's worth: products of which enough is looked at that skipping 5 % is seen.
const GEMM: Gemm = Gemm { m: 512, n: 512, k: 64, rounds: 2, samples: 256 };

/// What two honest devices commit to in `whole_suite`, and SHA-256 of their opening.
const COMMITMENTS: [&str; 6] = [
    "7cf23f44f9271af1c0696eaabbc7375db1e3f371ecccc4c6d155ff808e288dbe",
    "1d88792b95cf7c8aed170fdda1288314d614813990922f606f663917893f77f6",
    "5aba0a9391a940359ccb3a607223adef45bed178b9110f3a2acc405ae0a987bb",
    "c820c8d0e70d4471f396c2b3c8443fffbaf1a3e752465e2671cf902f4c5c888a",
    "9bf65fccf8b2f9056bcaaf6b01ca303e81d2f5df720fa89c3f4e750fba0285a7",
    "f49f76ad9ab988edd282cc3712aabbe10bbc57d858c67d36970730583b496b6f",
];
const OPENING: &str = "c8f2141ef2a65ae588b532ae63e507c48b1a30b1a298e2edd57ece69bffafcbf";

#[test]
fn honest_devices_pass_and_their_rates_follow_from_the_verifiers_clock() {
    let mut case = Host::honest(3).shows(&whole_suite());
    case.spans = [200, 400, 500, 800, 900, 1600, 5].map(span).to_vec();
    let devices = case.devices();
    assert_eq!(devices.len(), 3);
    for (slot, device) in devices.iter().enumerate() {
        assert_eq!(device.uuid, uuid(slot));
        assert_eq!(device.vram, Some(Bytes(4 * CHUNK as i64)));
        assert_eq!(device.hashes_per_s, Some(4 * CHUNK / 32 * 4 * 5));
        assert_eq!(device.ops_per_s, Some(2 * 2 * 256 * 512 * 64 * 10 / 4));
        assert_eq!(device.reads_per_s, Some(200 * 16 * 2));
        assert_eq!(device.bytes_per_s, Some(2 * 4 * CHUNK * 10 / 8));
        assert_eq!(device.return_bytes_per_s, Some(3 * CHUNK * 10 / 16));
    }
}

#[test]
fn the_formats_are_in_every_byte_what_the_documentation_says() {
    // Whoever changes one of these changes `VERSION`, and docs/proofs.md.
    let case = Host::honest(2).shows(&whole_suite());
    let commitments = case.evidence.commitments.iter().map(Digest::to_string);
    assert_eq!(commitments.collect::<Vec<_>>(), COMMITMENTS);
    let opening = Digest(Sha256::digest(&case.evidence.opening).into()).to_string();
    assert_eq!((case.evidence.opening.len(), opening.as_str()), (23_776, OPENING));
    let documented = include_str!("../../../docs/proofs.md");
    assert!(COMMITMENTS.iter().chain([&OPENING]).all(|digest| documented.contains(digest)));
    assert!(documented.contains(&serde_json::to_string(&case.challenge.task).unwrap()));
}

#[test]
fn a_product_alone_says_nothing_of_memory() {
    let case = Host::honest(1).shows(&small_proof(GEMM));
    let device = &case.devices()[0];
    assert!(device.ops_per_s.is_some());
    let others = (device.vram, device.hashes_per_s, device.reads_per_s, device.bytes_per_s);
    assert_eq!((others, device.return_bytes_per_s), ((None, None, None, None), None));
    // Nor does a fill that nothing reads.
    let filled = DeviceTask { fill: whole_suite().fill, ..small_proof(GEMM) };
    let device = &Host::honest(1).shows(&filled).devices()[0];
    assert_eq!((device.vram, device.hashes_per_s), (None, None));
}

#[test]
fn a_host_that_skips_a_twentieth_of_its_tiles_is_refused_and_told_which_device_did() {
    let case = Host::with(vec![Dishonesty::Skip { per_mille: 50 }]).shows(&small_proof(GEMM));
    assert_eq!(case.reason(), Some(Reason::EvidenceWrong));
    let message = case.message();
    assert!(message.starts_with("GPU 1 (GPU-4f1f07c2…): row "), "{message}");
    assert!(message.contains(", column ") && message.contains(" of product "), "{message}");
}

#[test]
fn lanes_and_chunks_that_are_made_up_are_refused() {
    let suite = DeviceTask {
        lanes: Some(Lanes { lanes: 200, reads: 16, samples: 64 }),
        stream: Some(Stream { passes: 8, samples: 24 }),
        spill: Some(Spill { bytes: 4 * CHUNK, samples: 4 }),
        ..whole_suite()
    };
    let ways = [
        (Dishonesty::CheatReads { per_mille: 100 }, "chosen lanes"),
        (Dishonesty::CheatStream { per_mille: 500 }, "chosen chunks"),
    ];
    for (way, what) in ways {
        let case = Host::with(vec![way]).shows(&suite);
        assert_eq!(case.reason(), Some(Reason::EvidenceWrong));
        assert!(case.message().contains(what), "{}", case.message());
    }
}

#[test]
fn a_copy_that_was_made_up_on_its_way_back_is_refused() {
    // No pass of its own, so that only the return can show it.
    let suite =
        DeviceTask { stream: None, spill: Some(Spill { bytes: 4 * CHUNK, samples: 4 }), ..whole_suite() };
    let case = Host::with(vec![Dishonesty::CheatStream { per_mille: 1000 }]).shows(&suite);
    assert_eq!(case.reason(), Some(Reason::EvidenceWrong));
    assert_eq!(case.message(), "GPU 1 (GPU-4f1f07c2…): chosen chunks are not what was committed to");
}

/// Whether a device that makes up a tenth of its tiles passes, of which 8 are looked at.
fn passes(nonce: u32, last: u32) -> bool {
    let host = Host::of(vec![model(vec![Dishonesty::Skip { per_mille: 100 }])]);
    let gemm = Gemm { m: 256, n: 256, k: 64, rounds: 2, samples: 8 };
    let number = |number: u32| {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        Nonce(bytes)
    };
    let challenge = Challenge { nonce: number(nonce), ..fresh(host.task(&small_proof(gemm))) };
    host.answer_to(challenge, |_| number(last)).reason().is_none()
}

#[test]
fn what_was_skipped_passes_as_often_as_the_sampling_says() {
    let (trials, passed) = (300, (0..300).filter(|number| passes(*number, 0)).count());
    // 0.9^8 = 0.43; four standard deviations of 300 trials are 34. All nonces are fixed, so it
    // stays as it is.
    assert!((95..=163).contains(&passed), "{passed} of {trials} passed");
}

#[test]
fn a_commitment_that_was_ground_for_one_nonce_is_no_luckier_with_the_one_that_comes() {
    // What is committed to follows from the first nonce: of many, the host has one that passes
    // a last nonce it expects. It passes another one as often as any.
    let ground = (0..50).filter(|nonce| passes(*nonce, 0)).take(10);
    let (tried, passed) = ground.fold((0, 0), |(tried, passed), nonce| {
        (tried + 10, passed + (1..11).filter(|last| passes(nonce, *last)).count())
    });
    assert!(tried == 100 && passed < 65, "{passed} of {tried} passed");
}

#[test]
fn what_is_shown_for_another_challenge_host_nonce_or_window_is_refused() {
    let case = Host::honest(2).shows(&whole_suite());
    let original = &case.challenge;
    let mut stale = original.clone();
    stale.reveals[5] = Nonce([99; 32]);
    let others = [
        Challenge { host: HostId(Uuid::from_u128(9)), ..original.clone() },
        Challenge { challenge: ChallengeId(Uuid::from_u128(9)), ..original.clone() },
        Challenge { nonce: Nonce([9; 32]), ..original.clone() },
        Challenge { beacon: Some(Nonce([9; 32])), ..original.clone() },
        stale,
    ];
    for challenge in others {
        let replayed = Case { challenge: challenge.clone(), ..case.clone() };
        assert_eq!(replayed.reason(), Some(Reason::BindingWrong));
        // An opening that pretends to be for this challenge is found out by its content.
        let mut forged = replayed;
        let own = Host::honest(2).answer(Challenge { reveals: vec![], ..challenge });
        forged.evidence.opening[..32].copy_from_slice(&own.evidence.opening[..32]);
        assert!(forged.reason().is_some());
    }
}

#[test]
fn another_version_is_neither_answered_nor_judged() {
    let case = Host::honest(1).shows(&small_proof(GEMM));
    for version in [VERSION - 1, VERSION + 1] {
        let challenge = Challenge { version, ..case.challenge.clone() };
        let refused = Prover::new(&challenge, 1).err().map(|failure| failure.code);
        assert_eq!(refused, Some(Reason::VersionUnknown));
        assert_eq!(Case { challenge, ..case.clone() }.reason(), Some(Reason::VersionUnknown));
    }
}

#[test]
fn what_one_device_did_is_no_evidence_of_another() {
    let case = Host::honest(2).shows(&small_proof(GEMM));
    for swap in [true, false] {
        let mut other = case.clone();
        let Task::Devices(task) = &mut other.challenge.task else { panic!("{other:?}") };
        match swap {
            true => task.devices.reverse(),
            false => task.devices[1].uuid = uuid(7),
        }
        assert_eq!(other.reason(), Some(Reason::BindingWrong));
    }
}

#[test]
fn a_device_that_computed_before_it_knew_what_would_be_asked_is_refused() {
    let case = Host::with(vec![Dishonesty::Precomputed]).shows(&whole_suite());
    assert_eq!(case.reason(), Some(Reason::EvidenceWrong));
}

#[test]
fn a_commitment_cannot_be_changed_once_the_next_nonce_is_known() {
    let case = Host::honest(1).shows(&whole_suite());
    for phase in 0..6 {
        let mut changed = case.clone();
        changed.evidence.commitments[phase].0[0] ^= 1;
        assert_eq!(changed.reason(), Some(Reason::BindingWrong));
    }
}

#[test]
fn a_phase_that_is_not_opened_as_it_was_committed_to_is_named() {
    let mut case = Host::honest(1).shows(&small_proof(GEMM));
    // The first root, after what the opening is bound to.
    case.evidence.opening[32] ^= 1;
    assert_eq!(case.reason(), Some(Reason::EvidenceWrong));
    assert_eq!(case.message(), "phase gemm is not opened as it was committed to");
}

#[test]
fn half_of_the_memory_is_as_slow_as_computing_the_other_half() {
    let suite = DeviceTask { spill: None, ..whole_suite() };
    let whole = Host::honest(1).shows(&suite).devices().remove(0);
    let half = Dishonesty::KeepVram { per_mille: 500 };
    let half = Host::of(vec![model(vec![half])]).shows(&suite).devices().remove(0);
    // What it says is right, because it computes what it has not kept. The clock tells.
    assert_eq!(whole.vram, half.vram);
    let (model, second) = (model(vec![]), 1_000_000_000);
    let block = 4 * second / model.hashes_per_s;
    let is_between = |was: Option<u64>, kept: u64| {
        let (was, expected) = (second / was.unwrap(), (kept + block) / 2);
        assert!(was.abs_diff(expected) <= expected / 50, "{was} ns, not {expected}");
    };
    is_between(half.reads_per_s, second / model.reads_per_s);
    is_between(half.bytes_per_s.map(|bytes| bytes / 32), 32 * second / model.bytes_per_s);
    assert!(half.bytes_per_s.unwrap() * 2 < whole.bytes_per_s.unwrap());
}

#[test]
fn memory_that_is_the_hosts_is_as_slow_as_that_is() {
    let suite = DeviceTask { spill: None, ..whole_suite() };
    let whole = Host::honest(1).shows(&suite).devices().remove(0);
    let way = Dishonesty::HostVram { per_mille: 100, reads_per_s: 500, bytes_per_s: 1 << 16 };
    let paged = Host::of(vec![model(vec![way])]).shows(&suite).devices().remove(0);
    assert!(paged.reads_per_s.unwrap() * 2 < whole.reads_per_s.unwrap());
    assert!(paged.bytes_per_s.unwrap() * 2 < whole.bytes_per_s.unwrap());
}

#[test]
fn one_device_that_poses_as_four_has_a_quarter_of_each_rate() {
    let alone = Host::honest(4).shows(&whole_suite());
    let shared = model(vec![Dishonesty::Shared { with: "one".into() }]);
    let shared = Host::of(vec![shared; 4]).shows(&whole_suite());
    for (one, other) in shared.devices().iter().zip(alone.devices()) {
        let pairs = [
            (one.ops_per_s, other.ops_per_s),
            (one.reads_per_s, other.reads_per_s),
            (one.bytes_per_s, other.bytes_per_s),
            (one.hashes_per_s, other.hashes_per_s),
        ];
        for (one, other) in pairs {
            let (one, other) = (one.unwrap(), other.unwrap());
            assert!(one * 4 <= other + other / 50 && one * 5 > other, "{one} of {other}");
        }
    }
}

#[test]
fn a_copy_that_was_not_kept_comes_back_slowly() {
    let suite = DeviceTask { fill: Some(Fill { bytes: 4 * CHUNK, depth: 64 }), ..whole_suite() };
    let kept = Host::honest(1).shows(&suite).devices().remove(0);
    let forgot = Host::of(vec![model(vec![Dishonesty::ForgetCopy])]).shows(&suite).devices().remove(0);
    assert!(forgot.return_bytes_per_s.unwrap() * 2 < kept.return_bytes_per_s.unwrap());
}

/// A device that goes wrong in its first phase, as `how` says.
struct Wrong(Box<dyn Fn() -> Failure + Send>);

impl Device for Wrong {
    fn fill(&mut self, _: &Fill, _: &Digest) -> Result<(), Failure> {
        Err((self.0)())
    }
    fn gemm(&mut self, _: &Gemm, _: &Digest) -> Result<Vec<Digest>, Failure> {
        Err((self.0)())
    }
    fn lanes(&mut self, _: &Lanes, _: &Digest) -> Result<Digest, Failure> {
        Err((self.0)())
    }
    fn stream(&mut self, _: &Stream, _: &Digest) -> Result<Vec<Digest>, Failure> {
        Err((self.0)())
    }
    fn spill(&mut self, _: &Spill, _: &Digest) -> Result<(), Failure> {
        Err((self.0)())
    }
    fn give_back(&mut self, _: &Spill, _: &Lanes, _: &Digest) -> Result<(Digest, Digest), Failure> {
        Err((self.0)())
    }
    fn gemm_open(&mut self, _: &[Tile]) -> Result<GemmOpening, Failure> {
        Err((self.0)())
    }
    fn lanes_proof(&mut self, _: &[u64]) -> Result<Vec<Digest>, Failure> {
        Err((self.0)())
    }
    fn stream_proofs(&mut self, _: &[PassChunk]) -> Result<Vec<Vec<Digest>>, Failure> {
        Err((self.0)())
    }
    fn return_proofs(&mut self, _: &[u64], _: &[u64]) -> Result<(Vec<Digest>, Vec<Digest>), Failure> {
        Err((self.0)())
    }
}

fn unavailable() -> Failure {
    Failure { code: Reason::DeviceUnavailable, message: "it fell off the bus".into() }
}

#[test]
fn a_device_that_fails_panics_or_is_not_there_is_a_failure_that_names_it() {
    let challenge = fresh(Task::Devices(task(&whole_suite(), 1)));
    let fails = |how: fn() -> Failure| {
        Resources::new(1).with_devices(move |_| Ok(Box::new(Wrong(Box::new(how))) as Box<dyn Device>))
    };
    let cases = [
        (fails(unavailable), Reason::DeviceUnavailable, "it fell off the bus"),
        (fails(|| panic!("a test panics")), Reason::Aborted, "what drives it broke off"),
        (
            Resources::new(1).with_devices(|_| Err(unavailable())),
            Reason::DeviceUnavailable,
            "it fell off the bus",
        ),
        (
            Resources::new(1).with_devices(|_| panic!("a test panics")),
            Reason::Aborted,
            "what drives it broke off",
        ),
        (Resources::new(1), Reason::DeviceUnavailable, "there are no devices here"),
    ];
    for (resources, code, message) in cases {
        let mut prover = Prover::new(&challenge, resources).unwrap();
        let message = format!("GPU 0 (GPU-4f1f07c2…): {message}");
        assert_eq!(prover.answer(&challenge).unwrap_err(), Failure { code, message });
        // It does not begin again.
        assert_eq!(prover.answer(&challenge).unwrap_err().code, Reason::Aborted);
    }
}

#[test]
fn all_devices_of_a_host_work_at_the_same_time_and_each_stays_in_its_thread() {
    const COUNT: usize = 5;
    let met = Arc::new((Mutex::new(0), Condvar::new()));
    let resources = Resources::new(1).with_devices(move |_| {
        let (met, opened_in) = (Arc::clone(&met), thread::current().id());
        let meet = move || {
            let (count, all) = &*met;
            *count.lock().unwrap() += 1;
            all.notify_all();
            let waited = all.wait_timeout_while(count.lock().unwrap(), PATIENCE, |count| *count < COUNT);
            let are_all_here = !waited.unwrap().1.timed_out();
            let message = format!("{are_all_here} {}", thread::current().id() == opened_in);
            Failure { code: Reason::DeviceBusy, message }
        };
        Ok(Box::new(Wrong(Box::new(meet))) as Box<dyn Device>)
    });
    let challenge = fresh(Task::Devices(task(&whole_suite(), COUNT)));
    let failure = Prover::new(&challenge, resources).unwrap().answer(&challenge).unwrap_err();
    assert_eq!(failure.message, "GPU 0 (GPU-4f1f07c2…): true true");
}

#[test]
fn a_device_that_breaks_down_later_is_a_failure_of_that_step() {
    for (number, phase) in Phase::ALL.into_iter().enumerate() {
        let host = Host::with(vec![Dishonesty::Broken { phase }]);
        let mut challenge = fresh(host.task(&whole_suite()));
        let mut prover = Prover::new(&challenge, host.resources()).unwrap();
        for _ in 0..number {
            prover.answer(&challenge).unwrap();
            challenge.reveals.push(Nonce([1; 32]));
        }
        let failure = prover.answer(&challenge).unwrap_err();
        assert_eq!(failure.code, Reason::DeviceUnavailable);
        assert!(failure.message.starts_with("GPU 1 (GPU-4f1f07c2…): "), "{}", failure.message);
    }
}

#[test]
fn phases_come_in_their_order_and_none_is_left_out() {
    let host = Host::honest(1);
    let challenge = fresh(host.task(&whole_suite()));
    let mut prover = Prover::new(&challenge, host.resources()).unwrap();
    prover.answer(&challenge).unwrap();
    let with = |reveals| Challenge { reveals: vec![Nonce([1; 32]); reveals], ..challenge.clone() };
    assert_eq!(prover.answer(&with(2)).unwrap_err().code, Reason::Aborted);
    prover.answer(&with(1)).unwrap();
    assert_eq!(prover.answer(&challenge).unwrap_err().code, Reason::Aborted);
    prover.answer(&with(2)).unwrap();
}

#[test]
fn openings_of_a_wrong_length_are_malformed() {
    let case = Host::honest(2).shows(&whole_suite());
    let own = case.evidence.opening.len();
    for length in [0, 31, 32, own - 32, own - 1, own + 1, own + 32, OPENING_MAX, OPENING_MAX + 32] {
        let mut changed = case.clone();
        changed.evidence.opening.resize(length, 0);
        assert_eq!(changed.reason(), Some(Reason::EvidenceMalformed), "{length}");
    }
}

#[test]
fn what_came_too_late_is_not_even_looked_at() {
    let mut case = Host::honest(1).shows(&small_proof(GEMM));
    case.evidence.opening.clear();
    case.spans[0] = span(case.challenge.task.patience(0).0 + 1);
    assert_eq!(case.reason(), Some(Reason::TooLate));
}

/// The products of two bytes, one of a row and one of a column.
fn products_of_two(seed: u8) -> Vec<i32> {
    let one = Gemm { m: 256, n: 256, k: 1, rounds: 1, samples: 1 };
    let entry = |number: u32| Entry { round: 0, row: number / 64, column: number % 64 };
    (0..64 * 64).map(|number| gemm::entry(&one, &Digest([seed; 32]), &entry(number))).collect()
}

#[test]
fn matrices_have_no_structure_to_hold_on_to() {
    let products = products_of_two(1);
    let different: BTreeSet<i32> = products.iter().copied().collect();
    // 64 signed bytes times 64: of few values, such as -1, 0 and 1, there would be few products.
    assert!(different.len() > 1000, "{}", different.len());
    assert!(
        products.iter().any(|product| *product > 10_000) && products.iter().any(|product| *product < -10_000)
    );
    assert!(different.contains(&0) || products.iter().any(|product| product.abs() < 100));
    // Another round, device or challenge has another seed, and nothing of it is known before.
    let same = products.iter().zip(products_of_two(2)).filter(|(one, other)| **one == *other).count();
    assert!(same < 200, "{same}");
}

#[test]
fn a_commitment_is_to_every_entry_and_not_to_sums_of_them() {
    // Two entries of a tile are exchanged, or one is more by what another is less: every sum over rows and
    // columns that a linear check could look at stays, and the leaf does not.
    let case = Host::honest(1).shows(&small_proof(GEMM));
    let tile = 32 * (1 + GEMM.rounds as usize);
    let entry = |at: usize| tile + 4 * at..tile + 4 * at + 4;
    let value = |case: &Case, at| i32::from_le_bytes(case.evidence.opening[entry(at)].try_into().unwrap());
    let mut shifted = case.clone();
    for (at, by) in [(3, 1), (4, -1)] {
        let changed = value(&case, at) + by;
        shifted.evidence.opening[entry(at)].copy_from_slice(&changed.to_le_bytes());
    }
    let mut swapped = case.clone();
    for (at, other) in [(3, 4), (4, 3)] {
        swapped.evidence.opening[entry(at)].copy_from_slice(&value(&case, other).to_le_bytes());
    }
    for forged in [shifted, swapped] {
        assert_eq!(forged.reason(), Some(Reason::EvidenceWrong));
        assert!(forged.message().contains("not what was committed to"), "{}", forged.message());
    }
}

/// A change that makes a test of `whole_suite` something that no verifier draws.
type Change = fn(&mut DevicesTask);

const OUT_OF_RANGE: [(&str, Change); 26] = [
    ("no devices", |task| task.devices.clear()),
    ("too many", |task| *task = common::task(&small_proof(GEMM), 65)),
    ("one twice", |task| task.devices[1].uuid = task.devices[0].uuid.clone()),
    ("no name", |task| task.devices[0].uuid.clear()),
    ("a long name", |task| task.devices[0].uuid = "x".repeat(65)),
    ("a name with a line", |task| task.devices[0].uuid = "GPU\n1".into()),
    ("other phases", |task| task.devices[1].stream = None),
    ("too few times", |task| task.patience_ms.truncate(6)),
    ("too many times", |task| task.patience_ms.push(Millis(1))),
    ("no time", |task| task.patience_ms[0] = Millis(0)),
    ("for ever", |task| task.patience_ms[6] = Millis(i64::MAX)),
    ("nothing to read", |task| task.devices.iter_mut().for_each(|device| device.fill = None)),
    ("nothing to do", |task| *task = common::task(&DeviceTask { gemm: None, ..small_proof(GEMM) }, 1)),
    ("a spill without lanes", |task| task.devices.iter_mut().for_each(|device| device.lanes = None)),
    ("a part of a chunk", |task| task.devices[0].fill = Some(Fill { bytes: CHUNK + 32, depth: 4 })),
    ("no depth", |task| task.devices[0].fill = Some(Fill { bytes: CHUNK * 4, depth: 0 })),
    ("a fill without end", |task| task.devices[0].fill = Some(Fill { bytes: 1 << 62, depth: 4 })),
    ("an odd side", |task| task.devices[0].gemm = Some(Gemm { m: 128, ..GEMM })),
    ("no side", |task| task.devices[0].gemm = Some(Gemm { n: 0, ..GEMM })),
    ("an odd sum", |task| task.devices[0].gemm = Some(Gemm { k: 65, ..GEMM })),
    ("a sum that overflows", |task| task.devices[0].gemm = Some(Gemm { k: 131_072, ..GEMM })),
    ("products without end", |task| task.devices[0].gemm = Some(Gemm { rounds: u32::MAX, ..GEMM })),
    ("no samples", |task| task.devices[0].lanes = Some(Lanes { lanes: 1, reads: 1, samples: 0 })),
    ("reads without end", |task| {
        task.devices[0].lanes = Some(Lanes { lanes: 1 << 26, reads: 1 << 16, samples: 1 });
    }),
    ("more than the fill", |task| task.devices[0].spill = Some(Spill { bytes: 5 * CHUNK, samples: 1 })),
    ("much to hash", |task| {
        task.devices[0].fill = Some(Fill { bytes: 4 * CHUNK, depth: 4096 });
        task.devices[0].stream = Some(Stream { passes: 4096, samples: 4096 });
    }),
];

#[test]
fn tests_without_end_are_neither_done_nor_judged() {
    Task::Devices(task(&whole_suite(), 2)).check().unwrap();
    for (what, change) in OUT_OF_RANGE {
        let mut out_of_range = task(&whole_suite(), 2);
        change(&mut out_of_range);
        let challenge = fresh(Task::Devices(out_of_range));
        assert!(challenge.task.check().is_err(), "{what}");
        assert!(Prover::new(&challenge, 1).is_err(), "{what}");
        let answered = Case {
            evidence: nave_proof::Evidence { commitments: vec![], opening: vec![] },
            spans: vec![],
            challenge,
        };
        assert_eq!(answered.reason(), Some(Reason::Aborted), "{what}");
    }
}

#[test]
fn eight_large_devices_fit_a_test() {
    let suite = DeviceTask {
        uuid: String::new(),
        fill: Some(Fill { bytes: 139 << 30, depth: 32 }),
        gemm: Some(Gemm { m: 16_384, n: 16_384, k: 65_536, rounds: 200, samples: 256 }),
        lanes: Some(Lanes { lanes: 1 << 24, reads: 1024, samples: 32 }),
        stream: Some(Stream { passes: 64, samples: 32 }),
        spill: Some(Spill { bytes: 64 << 30, samples: 32 }),
    };
    Task::Devices(task(&suite, 8)).check().unwrap();
    let onboarding = Gemm { samples: 1024, k: 65_536, ..suite.gemm.unwrap() };
    Task::Devices(task(&DeviceTask { gemm: Some(onboarding), ..suite }, 8)).check().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_bit_of_an_opening_matters(at: usize, bit in 0_u8..8) {
        thread_local! {
            static CASE: Case = Host::honest(2).shows(&whole_suite());
        }
        CASE.with(|case| {
            prop_assert_eq!(case.reason(), None);
            let mut changed = case.clone();
            let at = at % changed.evidence.opening.len();
            changed.evidence.opening[at] ^= 1 << bit;
            let expected = if at < 32 { Reason::BindingWrong } else { Reason::EvidenceWrong };
            prop_assert_eq!(changed.reason(), Some(expected));
            Ok(())
        })?;
    }

    #[test]
    fn sizes_of_any_kind_are_weighed_or_refused(
        bytes: u64, depth: u32, sides: (u32, u32, u32), rounds: u32, lanes: (u32, u32), passes: u32,
        samples in 0_u32..5000, scale in 0_u32..64,
    ) {
        let less = |number: u32| number >> (scale / 2);
        let device = DeviceTask {
            uuid: String::new(),
            fill: Some(Fill { bytes: (bytes >> scale).next_multiple_of(CHUNK) & !(1 << 63), depth: less(depth) }),
            gemm: Some(Gemm {
                m: less(sides.0) & !255, n: less(sides.1) & !255, k: less(sides.2) & !63, rounds: less(rounds), samples,
            }),
            lanes: Some(Lanes { lanes: less(lanes.0), reads: less(lanes.1), samples }),
            stream: Some(Stream { passes: less(passes), samples }),
            spill: None,
        };
        let mut challenge = fresh(Task::Devices(task(&device, 1)));
        challenge.reveals = vec![Nonce([7; 32]); 4];
        let evidence = nave_proof::Evidence { commitments: vec![Digest([0; 32]); 4], opening: vec![0; 64] };
        let case = Case { challenge, evidence, spans: vec![span(1); 5] };
        prop_assert!(case.reason().is_some());
    }
}
