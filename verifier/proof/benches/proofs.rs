//! What proofs cost the verifier, and the host.

use std::{hint::black_box, thread};

use criterion::{Criterion, criterion_group, criterion_main};
use nave_domain::{Bytes, ChallengeId, HostId, MilliCpu, Millis, Timestamp};
use nave_proof::{Answer, Challenge, Evidence, Nonce, Prover, Span, Task, VERSION, Verdict, judge};
use uuid::Uuid;

/// What an honest host answers, and how long each step of it takes when nothing travels.
fn answered(task: Task) -> (Challenge, Evidence, Vec<Span>) {
    let mut challenge = Challenge {
        version: VERSION,
        challenge: ChallengeId(Uuid::from_u128(1)),
        host: HostId(Uuid::from_u128(2)),
        task,
        nonce: Nonce([3; 32]),
        beacon: None,
        reveals: Vec::new(),
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut prover = Prover::new(&challenge, threads).expect("a challenge of this version");
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
