//! What proofs cost the verifier, and the host.

use std::{
    hint::black_box,
    sync::{Arc, Mutex},
    thread,
};

use criterion::{Criterion, criterion_group, criterion_main};
use nave_domain::{Bytes, ChallengeId, HostId, MilliCpu, Millis, Timestamp};
use nave_proof::{
    Answer, Challenge, Disk, Evidence, Failure, Nonce, Prover, Resources, Span, Task, Verdict, judge,
};
use uuid::Uuid;

/// A disk whose bytes are in memory: what is measured is the verifier.
#[derive(Clone, Default)]
struct Remembered(Arc<Mutex<Vec<u8>>>);

impl Disk for Remembered {
    fn write(&self, _: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.0.lock().expect("nobody broke off").extend_from_slice(bytes);
        Ok(())
    }

    fn settle(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn read(&self, offset: u64, piece: &mut [u8]) -> Result<(), Failure> {
        let kept = self.0.lock().expect("nobody broke off");
        piece.copy_from_slice(&kept[offset as usize..][..piece.len()]);
        Ok(())
    }
}

/// What an honest host answers, and how long each step of it takes when nothing travels.
fn answered(task: Task) -> (Challenge, Evidence, Vec<Span>) {
    let mut challenge =
        Challenge::new(ChallengeId(Uuid::from_u128(1)), HostId(Uuid::from_u128(2)), task, Nonce([3; 32]));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let disk = Remembered::default();
    let resources = Resources::new(threads).with_disk(move |_| Ok(Box::new(disk.clone())));
    let mut prover = Prover::new(&challenge, resources).expect("a challenge of this version");
    let (mut commitments, mut spans) = (Vec::new(), Vec::new());
    loop {
        let began = std::time::Instant::now();
        let answer = prover.answer(&challenge).expect("an answer");
        let took = i64::try_from(began.elapsed().as_millis()).expect("not for ever");
        println!("step {} took {took} ms", challenge.reveals.len());
        spans.push(Span { sent: Timestamp(0), received: Timestamp(took) });
        match answer {
            Answer::Commitment(commitment) => commitments.push(commitment),
            Answer::Opening(opening) => {
                println!("opening of {} bytes", opening.len());
                return (challenge, Evidence { commitments, opening }, spans);
            }
        }
        challenge.reveals.push(Nonce([9; 32]));
    }
}

fn judged(criterion: &mut Criterion, name: &str, task: Task) {
    println!("{name}:");
    let (challenge, evidence, spans) = answered(task);
    let verdict = judge(&challenge, &evidence, &spans);
    println!("{verdict:?}");
    assert!(matches!(verdict, Verdict::Passed(_)));
    criterion.bench_function(name, |bencher| {
        bencher.iter(|| judge(black_box(&challenge), black_box(&evidence), black_box(&spans)));
    });
}

fn proofs(criterion: &mut Criterion) {
    let cores = |count: i64| MilliCpu(count * 1000);
    judged(criterion, "judge/storage/1 GiB", Task::storage(Bytes(2 * Bytes::GIB)));
    judged(criterion, "judge/cpu/2 cores", Task::cpu(cores(2), Millis(2000)));
    for gib in [1, 8] {
        let task = Task::memory(Bytes(gib * Bytes::GIB), cores(2));
        judged(criterion, &format!("judge/memory/{gib} GiB"), task);
    }
}

criterion_group! {
    name = all;
    config = Criterion::default().sample_size(20);
    targets = proofs
}
criterion_main!(all);
