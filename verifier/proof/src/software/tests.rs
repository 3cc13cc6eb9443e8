use std::time::Duration;

use nave_domain::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{device::CHUNK, gemm::Entry};

const FILL: Fill = Fill { bytes: 4 * CHUNK, depth: 2 };
const LANES: Lanes = Lanes { lanes: 500, reads: 8, samples: 5 };
const STREAM: Stream = Stream { passes: 3, samples: 5 };
const SPILL: Spill = Spill { bytes: 2 * CHUNK, samples: 2 };
const GEMM: Gemm = Gemm { m: 256, n: 256, k: 64, rounds: 2, samples: 16 };

fn model(dishonesty: Vec<Dishonesty>) -> SoftwareModel {
    SoftwareModel {
        model: "Simulated".into(),
        vram: Bytes(1 << 20),
        ops_per_s: 1_000_000_000_000,
        bytes_per_s: 1_000_000_000,
        reads_per_s: 100_000_000,
        hashes_per_s: 100_000_000,
        return_bytes_per_s: 100_000_000,
        dishonesty,
    }
}

fn device(dishonesty: Vec<Dishonesty>) -> (SoftwareDevice, VirtualClock) {
    let clock = VirtualClock::default();
    (SoftwareDevice::new(&model(dishonesty), clock.pace(), &Turns::default()), clock)
}

fn seed(number: u8) -> Digest {
    Digest([number; 32])
}

/// What a device answers to everything, with the openings that one seed chooses.
#[derive(Debug, PartialEq, Eq)]
struct Answers {
    rounds: Vec<Digest>,
    lanes: Digest,
    passes: Vec<Digest>,
    returned: (Digest, Digest),
    gemm: GemmOpening,
    lanes_proof: Vec<Digest>,
    stream_proofs: Vec<Vec<Digest>>,
    return_proofs: (Vec<Digest>, Vec<Digest>),
}

struct Lot {
    entries: Vec<Entry>,
    lanes: Vec<u64>,
    passes: Vec<PassChunk>,
    copy: Vec<u64>,
}

fn lot(seed: &Digest) -> Lot {
    Lot {
        entries: gemm::chosen(&GEMM, seed),
        lanes: vram::chosen_lanes(&LANES, seed),
        passes: vram::chosen_of_passes(&STREAM, &FILL, seed),
        copy: vram::chosen_of_copy(&SPILL, seed),
    }
}

/// Drives a device through all phases; phase `n` has seed `n`.
fn answers(device: &mut SoftwareDevice, lot: &Lot) -> Result<Answers, Failure> {
    device.fill(&FILL, &seed(1))?;
    let rounds = device.gemm(&GEMM, &seed(2))?;
    let lanes = device.lanes(&LANES, &seed(3))?;
    let passes = device.stream(&STREAM, &seed(4))?;
    device.spill(&SPILL, &seed(5))?;
    let returned = device.give_back(&SPILL, &LANES, &seed(6))?;
    Ok(Answers {
        rounds,
        lanes,
        passes,
        returned,
        gemm: device.gemm_open(&gemm::tiles(&GEMM, &lot.entries))?,
        lanes_proof: device.lanes_proof(&lot.lanes)?,
        stream_proofs: device.stream_proofs(&lot.passes)?,
        return_proofs: device.return_proofs(&lot.copy, &lot.lanes)?,
    })
}

/// Which phases' answers are right.
#[derive(Debug, PartialEq, Eq)]
struct Right {
    gemm: bool,
    lanes: bool,
    stream: bool,
    copy: bool,
    lanes_of_return: bool,
}

const ALL: Right = Right { gemm: true, lanes: true, stream: true, copy: true, lanes_of_return: true };

fn checked(answers: &Answers, lot: &Lot) -> Right {
    let old = Contents::new(&FILL, &seed(1));
    let new = old.spilled(&SPILL, &seed(5));
    let (pass, ends) = &answers.return_proofs;
    let lanes = |memory, seed: &Digest, root, proof| {
        vram::check_lanes(memory, (&LANES, seed), root, &lot.lanes, proof).is_ok()
    };
    let filled = (&FILL, &seed(1));
    let chunks = |bytes, seed: &Digest, root, chunks: &[u64], proof| {
        vram::check_chunks(filled, (bytes, seed), root, chunks, proof).is_ok()
    };
    let mut seeds = vec![seed(4)];
    answers.passes.iter().for_each(|root| seeds.push(next_pass(&seeds[seeds.len() - 1], root)));
    let passes = vram::by_pass(&lot.passes);
    Right {
        gemm: gemm::check(&GEMM, &seed(2), &answers.rounds, &lot.entries, &answers.gemm).is_ok(),
        lanes: lanes(&old, &seed(3), &answers.lanes, &answers.lanes_proof),
        stream: passes.iter().zip(&answers.stream_proofs).all(|((pass, chosen), proof)| {
            let at = *pass as usize;
            chunks(FILL.bytes, &seeds[at], &answers.passes[at], chosen, proof)
        }),
        copy: chunks(SPILL.bytes, &seed(6), &answers.returned.0, &lot.copy, pass),
        lanes_of_return: lanes(&new, &lanes_of_return(&seed(6)), &answers.returned.1, ends),
    }
}

#[test]
fn an_honest_device_is_believed_in_everything() {
    let (mut device, clock) = device(vec![]);
    let lot = lot(&seed(9));
    let answers = answers(&mut device, &lot).unwrap();
    assert_eq!(checked(&answers, &lot), ALL);
    // 8192 * 2 hashes for the fill and half as many for what is made anew, 2 * 256 * 256 * 64 * 2 operations,
    // twice 4000 reads, three passes over 256 KiB, 128 KiB there and back.
    let micros = 163 + 81 + 16 + 2 * 40 + 3 * 262 + 2 * 1310;
    let took = clock.now().as_micros();
    assert!((micros..micros + 10).contains(&took), "{took} µs, not {micros}");
}

#[test]
fn what_only_costs_time_is_answered_rightly_and_late() {
    let lot = lot(&seed(9));
    let (mut honest, honestly) = device(vec![]);
    let right = answers(&mut honest, &lot).unwrap();
    let slower = Dishonesty::HostVram { per_mille: 500, reads_per_s: 1_000_000, bytes_per_s: 10_000_000 };
    let away = Dishonesty::Away { delay_ms: nave_domain::Millis(20), bytes_per_s: 10_000_000 };
    let lent = Dishonesty::Lent { per_mille: 500, vram: Bytes(0) };
    for way in [slower, away, lent] {
        let (mut device, clock) = device(vec![way.clone()]);
        assert_eq!(answers(&mut device, &lot).unwrap(), right, "{way:?}");
        assert!(clock.now() > honestly.now(), "{way:?}");
    }
    for way in [Dishonesty::KeepVram { per_mille: 500 }, Dishonesty::ForgetCopy, Dishonesty::KeepCopy] {
        let (mut device, _) = device(vec![way.clone()]);
        assert_eq!(answers(&mut device, &lot).unwrap(), right, "{way:?}");
    }
}

#[test]
fn memory_that_is_not_there_is_read_at_the_rate_of_hashes() {
    let deep = Fill { depth: 32, ..FILL };
    let read = |dishonesty| {
        let (mut device, clock) = device(dishonesty);
        device.fill(&deep, &seed(1)).unwrap();
        let began = clock.now();
        let root = device.lanes(&LANES, &seed(3)).unwrap();
        (root, (clock.now() - began).as_micros())
    };
    let (honest, took) = read(vec![]);
    let (keeping_half, took_longer) = read(vec![Dishonesty::KeepVram { per_mille: 500 }]);
    assert_eq!(honest, keeping_half);
    // 4000 reads; then 2000 reads, and 2000 blocks of 32 hashes.
    assert_eq!((took, took_longer), (40, 20 + 640));
}

#[test]
fn a_copy_that_is_computed_again_comes_back_at_the_rate_of_hashes() {
    let deep = Fill { depth: 64, ..FILL };
    let returned = |dishonesty| {
        let (mut device, clock) = device(dishonesty);
        device.fill(&deep, &seed(1)).unwrap();
        device.spill(&SPILL, &seed(5)).unwrap();
        let began = clock.now();
        let roots = device.give_back(&SPILL, &LANES, &seed(6)).unwrap();
        (roots, clock.now() - began)
    };
    let (honest, took) = returned(vec![]);
    let (forgetful, took_longer) = returned(vec![Dishonesty::ForgetCopy]);
    assert_eq!(honest, forgetful);
    // 4096 blocks of 64 hashes instead of 128 KiB.
    assert_eq!((took.as_micros(), took_longer.as_micros()), (1350, 2661));
}

#[test]
fn a_copy_that_stays_in_the_device_is_missing_where_lanes_read() {
    let deep = Fill { depth: 64, ..FILL };
    let phases = |dishonesty| {
        let (mut device, clock) = device(dishonesty);
        device.fill(&deep, &seed(1)).unwrap();
        let began = clock.now();
        device.spill(&SPILL, &seed(5)).unwrap();
        let spilled = clock.now();
        let roots = device.give_back(&SPILL, &LANES, &seed(6)).unwrap();
        (roots, (spilled - began).as_micros(), (clock.now() - spilled).as_micros())
    };
    let (honest, spill, took) = phases(vec![]);
    let (keeping, no_spill, took_longer) = phases(vec![Dishonesty::KeepCopy]);
    assert_eq!(honest, keeping);
    // 128 KiB and 4096 blocks of 64 hashes; then 128 KiB and 4000 reads.
    assert_eq!((spill, took), (3932, 1350));
    // 128 KiB at the device's own rate, 2000 reads, and 2000 blocks of 64 hashes.
    assert_eq!((no_spill, took_longer), (0, 131 + 20 + 1280));
}

#[test]
fn what_is_made_up_is_seen_where_all_of_it_is_chosen() {
    let everything = Lot {
        entries: gemm::chosen(&Gemm { samples: 4096, ..GEMM }, &seed(9)),
        lanes: (0..500).collect(),
        passes: vram::chosen_of_passes(&Stream { samples: 12, ..STREAM }, &FILL, &seed(9)),
        copy: vec![0, 1],
    };
    let right = |way| {
        let (mut device, _) = device(vec![way]);
        checked(&answers(&mut device, &everything).unwrap(), &everything)
    };
    assert_eq!(right(Dishonesty::Skip { per_mille: 10 }), Right { gemm: false, ..ALL });
    let wrong = Right { lanes: false, lanes_of_return: false, ..ALL };
    assert_eq!(right(Dishonesty::CheatReads { per_mille: 10 }), wrong);
    let wrong = Right { stream: false, copy: false, ..ALL };
    assert_eq!(right(Dishonesty::CheatStream { per_mille: 900 }), wrong);
}

#[test]
fn what_was_computed_before_is_for_another_seed() {
    let (mut device, clock) = device(vec![Dishonesty::Precomputed]);
    let lot = lot(&seed(9));
    let answers = answers(&mut device, &lot).unwrap();
    let wrong = Right { gemm: false, lanes: false, stream: false, copy: false, lanes_of_return: false };
    assert_eq!((checked(&answers, &lot), clock.now()), (wrong, Duration::ZERO));
}

#[test]
fn devices_that_are_one_are_as_slow_as_one() {
    let gemm = Gemm { rounds: 1, ..GEMM };
    let took = |names: [&str; 3]| {
        let (clock, turns) = (VirtualClock::default(), Turns::default());
        let device = |name: &str| {
            let with = vec![Dishonesty::Shared { with: name.into() }];
            SoftwareDevice::new(&model(with), clock.pace(), &turns)
        };
        let devices = names.map(device);
        std::thread::scope(|scope| {
            for mut device in devices {
                scope.spawn(move || device.gemm(&gemm, &seed(1)).unwrap());
            }
        });
        clock.pass(Duration::ZERO)
    };
    let (apart, one) = (took(["a", "b", "c"]), took(["a", "a", "a"]));
    assert!(apart > Duration::ZERO);
    assert_eq!((one, took(["a", "b", "a"])), (apart * 3, apart * 2));
}

#[test]
fn a_device_without_room_says_why() {
    let reason = |dishonesty, fill: &Fill| device(dishonesty).0.fill(fill, &seed(1)).unwrap_err().code;
    let large = Fill { bytes: (1 << 20) + CHUNK, depth: 2 };
    assert_eq!(reason(vec![], &large), Reason::DeviceUnavailable);
    let lent = Dishonesty::Lent { per_mille: 0, vram: Bytes(900 << 10) };
    assert_eq!(reason(vec![lent], &FILL), Reason::DeviceBusy);
    let broken = Dishonesty::Broken { phase: Phase::Fill };
    assert_eq!(reason(vec![broken], &FILL), Reason::DeviceUnavailable);
}

#[test]
fn what_was_never_computed_cannot_be_opened() {
    let (mut device, _) = device(vec![]);
    let reasons = [
        device.lanes(&LANES, &seed(1)).map(drop),
        device.stream(&STREAM, &seed(1)).map(drop),
        device.spill(&SPILL, &seed(1)),
        device.give_back(&SPILL, &LANES, &seed(1)).map(drop),
        device.gemm_open(&[Tile { round: 0, leaf: 0 }]).map(drop),
        device.lanes_proof(&[0]).map(drop),
        device.stream_proofs(&[PassChunk { pass: 0, chunk: 0 }]).map(drop),
        device.return_proofs(&[0], &[0]).map(drop),
    ];
    assert!(reasons.iter().all(|end| end.as_ref().is_err_and(|failure| failure.code == Reason::Aborted)));
}

/// Of `trials` reveals, how many do not catch products of which a fraction was made up, and how many
/// would not by (1 − δ)^samples, with the fraction δ of tiles that really are made up.
fn unnoticed(per_mille: u16, samples: u32, trials: u32) -> (u64, u64) {
    let gemm = Gemm { m: 256, n: 1024, k: 64, rounds: 2, samples };
    let (mut device, _) = device(vec![Dishonesty::Skip { per_mille }]);
    let roots = device.gemm(&gemm, &seed(2)).unwrap();
    let passed = (0..trials).filter(|trial| {
        let entries = gemm::chosen(&gemm, &hash("a reveal", &[&trial.to_le_bytes()]));
        let opening = device.gemm_open(&gemm::tiles(&gemm, &entries)).unwrap();
        gemm::check(&gemm, &seed(2), &roots, &entries, &opening).is_ok()
    });
    let (tiles, second) = (gemm::leaves(&gemm), next_round(&seed(2), &roots[0]));
    let honest = |seed: &Digest| (0..tiles).filter(|tile| !is_made_up(seed, *tile, per_mille)).count() as u64;
    let honest = honest(&seed(2)) + honest(&second);
    let expected = (0..samples).fold(u64::from(trials) << 32, |left, _| left * honest / (2 * tiles));
    (passed.count() as u64, expected >> 32)
}

#[test]
fn partial_products_pass_as_often_as_the_sampling_says() {
    for (per_mille, samples, trials) in
        [(0, 16, 500), (50, 16, 3000), (100, 16, 3000), (20, 64, 1500), (50, 64, 1500), (50, 256, 500)]
    {
        let (passed, expected) = unnoticed(per_mille, samples, trials);
        // Four standard deviations; the seeds are fixed, so what passed once passes always.
        let missed = u64::from(trials) - expected;
        let bound = 4 * (expected * missed / u64::from(trials)).isqrt() + 1;
        assert!(
            passed.abs_diff(expected) <= bound,
            "{per_mille} ‰ made up, {samples} samples: {passed} of {trials} passed, not {expected} ± {bound}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn any_honest_work_is_proven(first: [u8; 32], lanes in 1_u32..600, chunks in 1_u64..4, samples in 1_u32..9) {
        let (fill, lanes) = (Fill { bytes: chunks * CHUNK, depth: 2 }, Lanes { lanes, reads: 3, samples });
        let (first, lot) = (Digest(first), seed(7));
        let (mut device, _) = device(vec![]);
        device.fill(&fill, &first).unwrap();
        let root = device.lanes(&lanes, &seed(3)).unwrap();
        let chosen = vram::chosen_lanes(&lanes, &lot);
        let proof = device.lanes_proof(&chosen).unwrap();
        let memory = Contents::new(&fill, &first);
        let checked = vram::check_lanes(&memory, (&lanes, &seed(3)), &root, &chosen, &proof);
        prop_assert_eq!(checked, Ok(()));
        let roots = device.stream(&Stream { passes: 1, samples }, &seed(4)).unwrap();
        let chosen: Vec<u64> = (0..chunks).step_by(2).collect();
        let wanted: Vec<PassChunk> = chosen.iter().map(|chunk| PassChunk { pass: 0, chunk: *chunk }).collect();
        let proofs = device.stream_proofs(&wanted).unwrap();
        let checked = vram::check_chunks((&fill, &first), (fill.bytes, &seed(4)), &roots[0], &chosen, &proofs[0]);
        prop_assert_eq!(checked, Ok(()));
    }
}
