//! What tests of GPUs cost the verifier.
//!
//! The sizes are those that count for it: sums of 65 536 products, blocks of 32 hashes, lanes of 1024 reads. Trees
//! are smaller than a real device's, which leaves out a few hashes for each sample. What is measured is the time of
//! this thread on a core, so that whatever else the machine does counts little.

use std::{hint::black_box, time::Duration};

use criterion::{
    Criterion, criterion_group, criterion_main,
    measurement::{Measurement, ValueFormatter, WallTime},
};
use nave_domain::{Bytes, ChallengeId, HostId, Millis, Timestamp};
use nave_proof::{
    Answer, Challenge, DeviceTask, DevicesTask, Digest, Evidence, Fill, Gemm, Lanes, Nonce, Prover,
    Resources, Span, Spill, Stream, Task, Verdict,
    device::CHUNK,
    gemm::{self, Entry},
    judge,
    software::{SoftwareDevice, SoftwareModel, Turns, VirtualClock},
    vram::{self, Contents},
};
use nix::time::ClockId;
use uuid::Uuid;

const GEMM: Gemm = Gemm { m: 256, n: 256, k: 65_536, rounds: 1, samples: 256 };
const FILL: Fill = Fill { bytes: 32 << 20, depth: 32 };
const LANES: Lanes = Lanes { lanes: 2048, reads: 1024, samples: 32 };
const STREAM: Stream = Stream { passes: 2, samples: 16 };
const SPILL: Spill = Spill { bytes: 16 << 20, samples: 8 };

/// The time that this thread was on a core.
struct CoreTime;

impl Measurement for CoreTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        Duration::from(ClockId::CLOCK_THREAD_CPUTIME_ID.now().expect("the kernel counts it"))
    }

    fn end(&self, began: Duration) -> Duration {
        self.start() - began
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

/// What the verifier does again, one by one. The proofs are wrong, which shows at the end.
fn parts(criterion: &mut Criterion<CoreTime>) {
    let (seed, root) = (Digest([1; 32]), Digest([2; 32]));
    let large = Fill { bytes: 64 << 30, depth: 32 };
    let memory = Contents::new(&large, &seed);
    let mut number = 0_u32;
    criterion.bench_function("one entry of a product, k = 65536", |bencher| {
        bencher.iter(|| {
            number = (number + 1) % 256;
            gemm::entry(&GEMM, &seed, black_box(&Entry { round: 0, row: number, column: 255 - number }))
        });
    });
    for lanes in [1, 32] {
        let chosen: Vec<u64> = (0..lanes).collect();
        let name = format!("lanes of 1024 reads, depth 32: {lanes}");
        criterion.bench_function(&name, |bencher| {
            let lanes = (&LANES, &seed);
            bencher.iter(|| vram::check_lanes(&memory, lanes, black_box(&root), black_box(&chosen), &[]));
        });
    }
    criterion.bench_function("a chunk, depth 32", |bencher| {
        let all = (large.bytes, &seed);
        bencher
            .iter(|| vram::check_chunks((&large, &seed), all, black_box(&root), black_box(&[12_345]), &[]));
    });
}

/// What an honest host with one device answers.
fn answered(device: DeviceTask) -> (Challenge, Evidence, Vec<Span>) {
    let devices = vec![device];
    let phases = DevicesTask { devices: devices.clone(), patience_ms: Vec::new() }.phases().len();
    let task = Task::Devices(DevicesTask { devices, patience_ms: vec![Millis(600_000); phases + 1] });
    let mut challenge =
        Challenge::new(ChallengeId(Uuid::from_u128(1)), HostId(Uuid::from_u128(2)), task, Nonce([3; 32]));
    let model = SoftwareModel {
        model: "Simulated".into(),
        vram: Bytes(Bytes::GIB),
        ops_per_s: 1,
        bytes_per_s: 1,
        reads_per_s: 1,
        hashes_per_s: 1,
        return_bytes_per_s: 1,
        dishonesty: Vec::new(),
    };
    let resources = Resources::new(1).with_devices(move |_| {
        let pace = VirtualClock::default().pace();
        Ok(Box::new(SoftwareDevice::new(&model, pace, &Turns::default())))
    });
    let mut prover = Prover::new(&challenge, resources).expect("a challenge of this version");
    let mut commitments = Vec::new();
    loop {
        match prover.answer(&challenge).expect("an answer") {
            Answer::Commitment(commitment) => commitments.push(commitment),
            Answer::Opening(opening) => {
                println!("opening of {} bytes", opening.len());
                let span = Span { sent: Timestamp(0), received: Timestamp(1000) };
                return (challenge, Evidence { commitments, opening }, vec![span; phases + 1]);
            }
        }
        challenge.reveals.push(Nonce([9; 32]));
    }
}

fn judged(criterion: &mut Criterion<CoreTime>, name: &str, device: DeviceTask) {
    let (challenge, evidence, spans) = answered(device);
    let verdict = judge(&challenge, &evidence, &spans);
    assert!(matches!(verdict, Verdict::Passed(_)), "{verdict:?}");
    criterion.bench_function(name, |bencher| {
        bencher.iter(|| judge(black_box(&challenge), black_box(&evidence), black_box(&spans)));
    });
}

fn suites(criterion: &mut Criterion<CoreTime>) {
    let small = DeviceTask {
        uuid: "one".into(),
        fill: None,
        gemm: Some(GEMM),
        lanes: None,
        stream: None,
        spill: None,
    };
    judged(criterion, "judge/a small proof of one GPU", small.clone());
    let whole = DeviceTask {
        fill: Some(FILL),
        lanes: Some(LANES),
        stream: Some(STREAM),
        spill: Some(SPILL),
        ..small
    };
    assert!(FILL.bytes.is_multiple_of(CHUNK));
    judged(criterion, "judge/everything of one GPU", whole);
}

criterion_group! {
    name = all;
    config = Criterion::default().with_measurement(CoreTime).sample_size(20);
    targets = parts, suites
}
criterion_main!(all);
