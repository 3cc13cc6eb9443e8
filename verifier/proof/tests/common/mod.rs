//! Hosts that answer challenges, and what comes of it.

#![allow(dead_code, reason = "each of the tests uses its own part")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use nave_domain::{Bytes, ChallengeId, HostId, Millis, Timestamp};
use nave_proof::{
    Answer, Challenge, DeviceProven, DeviceTask, DevicesTask, Disk, Evidence, Failure, Fill, Gemm, Lanes,
    Nonce, PIECE, Proven, Prover, Reason, Resources, Span, Spill, Stream, Task, Verdict,
    device::{CHUNK, Device},
    judge,
    software::{Dishonesty, SoftwareDevice, SoftwareModel, Turns, VirtualClock},
};
use uuid::Uuid;

/// Everything that came back for a challenge.
#[derive(Debug, Clone)]
pub struct Case {
    pub challenge: Challenge,
    pub evidence: Evidence,
    pub spans: Vec<Span>,
}

impl Case {
    pub fn verdict(&self) -> Verdict {
        judge(&self.challenge, &self.evidence, &self.spans)
    }

    pub fn reason(&self) -> Option<Reason> {
        match self.verdict() {
            Verdict::Failed(failure) => Some(failure.code),
            Verdict::Passed(_) => None,
        }
    }

    pub fn message(&self) -> String {
        match self.verdict() {
            Verdict::Failed(failure) => failure.message,
            Verdict::Passed(proven) => panic!("passed: {proven:?}"),
        }
    }

    /// What was proven of each device.
    pub fn devices(&self) -> Vec<DeviceProven> {
        match self.verdict() {
            Verdict::Passed(Proven::Devices(devices)) => devices,
            other @ (Verdict::Passed(_) | Verdict::Failed(_)) => panic!("{other:?}"),
        }
    }
}

pub fn fresh(task: Task) -> Challenge {
    Challenge::new(ChallengeId(Uuid::from_u128(1)), HostId(Uuid::from_u128(2)), task, Nonce([3; 32]))
}

pub fn span(ms: i64) -> Span {
    Span { sent: Timestamp(1_000), received: Timestamp(1_000 + ms) }
}

/// What the verifier draws after a commitment, where nothing depends on it.
pub fn usual(step: usize) -> Nonce {
    Nonce([40 + step as u8; 32])
}

/// A host's answers to a challenge, whose reveals `draw` gives; `took` is asked for the time of each step.
pub fn answered(
    mut challenge: Challenge,
    resources: impl Into<Resources>,
    draw: impl Fn(usize) -> Nonce,
    mut took: impl FnMut() -> i64,
) -> Case {
    let mut prover = Prover::new(&challenge, resources).unwrap();
    let (mut commitments, mut spans) = (Vec::new(), Vec::new());
    loop {
        let answer = prover.answer(&challenge).unwrap();
        spans.push(span(took()));
        assert_eq!(prover.answer(&challenge).unwrap(), answer, "the same step again");
        match answer {
            Answer::Commitment(commitment) => commitments.push(commitment),
            Answer::Opening(opening) => {
                return Case { challenge, evidence: Evidence { commitments, opening }, spans };
            }
        }
        challenge.reveals.push(draw(challenge.step()));
    }
}

/// An honest host's answers to a challenge without devices; each step took a millisecond.
pub fn honest(challenge: Challenge) -> Case {
    answered(challenge, 2, usual, || 1)
}

/// Sizes of everything that one device can be asked for, small enough for a test.
pub fn whole_suite() -> DeviceTask {
    DeviceTask {
        uuid: String::new(),
        fill: Some(Fill { bytes: 4 * CHUNK, depth: 4 }),
        gemm: Some(Gemm { m: 256, n: 512, k: 64, rounds: 2, samples: 8 }),
        lanes: Some(Lanes { lanes: 200, reads: 16, samples: 5 }),
        stream: Some(Stream { passes: 2, samples: 3 }),
        spill: Some(Spill { bytes: 3 * CHUNK, samples: 2 }),
    }
}

/// A product alone, as a device is tested beside jobs.
pub fn small_proof(gemm: Gemm) -> DeviceTask {
    DeviceTask { uuid: String::new(), fill: None, gemm: Some(gemm), lanes: None, stream: None, spill: None }
}

pub fn uuid(slot: usize) -> String {
    format!("GPU-4f1f07c2-0000-0000-0000-{slot:012}")
}

/// The same for each of `count` devices.
pub fn task(device: &DeviceTask, count: usize) -> DevicesTask {
    let devices = (0..count).map(|slot| DeviceTask { uuid: uuid(slot), ..device.clone() });
    let mut task = DevicesTask { devices: devices.collect(), patience_ms: Vec::new() };
    task.patience_ms = vec![Millis(60_000); task.phases().len() + 1];
    task
}

/// A device so slow that what tests ask of it takes hundreds of milliseconds and more.
pub fn model(dishonesty: Vec<Dishonesty>) -> SoftwareModel {
    SoftwareModel {
        model: "Simulated".into(),
        vram: Bytes(1 << 30),
        ops_per_s: 100_000_000,
        bytes_per_s: 1 << 20,
        reads_per_s: 10_000,
        hashes_per_s: 20_000,
        return_bytes_per_s: 1 << 18,
        dishonesty,
    }
}

/// A host with one simulated device of each model, which take their time on a clock that is only counted.
pub struct Host {
    models: Vec<SoftwareModel>,
    clock: VirtualClock,
}

impl Host {
    pub fn of(models: Vec<SoftwareModel>) -> Self {
        Self { models, clock: VirtualClock::default() }
    }

    pub fn honest(count: usize) -> Self {
        Self::of(vec![model(vec![]); count])
    }

    /// One device that deceives, beside an honest one.
    pub fn with(dishonesty: Vec<Dishonesty>) -> Self {
        Self::of(vec![model(vec![]), model(dishonesty)])
    }

    pub fn resources(&self) -> Resources {
        let (models, clock, turns) = (self.models.clone(), self.clock.clone(), Turns::default());
        Resources::new(1).with_devices(move |task| {
            let slot = (0..models.len()).find(|slot| uuid(*slot) == task.uuid).unwrap();
            let device = SoftwareDevice::new(&models[slot], clock.pace(), &turns);
            Ok(Box::new(device) as Box<dyn Device>)
        })
    }

    pub fn task(&self, device: &DeviceTask) -> Task {
        Task::Devices(task(device, self.models.len()))
    }

    pub fn answer(&self, challenge: Challenge) -> Case {
        self.answer_to(challenge, usual)
    }

    /// Answers a challenge with other reveals than the usual ones.
    pub fn answer_to(&self, challenge: Challenge, draw: impl Fn(usize) -> Nonce) -> Case {
        let mut before = self.clock.now();
        answered(challenge, self.resources(), draw, || {
            let now = self.clock.pass(Duration::ZERO);
            let took = now - std::mem::replace(&mut before, now);
            i64::try_from(took.as_millis()).unwrap()
        })
    }

    /// All its answers to a test of `device` on each of its devices.
    pub fn shows(&self, device: &DeviceTask) -> Case {
        self.answer(fresh(self.task(device)))
    }
}

/// A disk whose bytes are in memory.
#[derive(Clone, Default)]
pub struct Remembered(Arc<Mutex<Vec<u8>>>);

impl Disk for Remembered {
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        let mut kept = self.0.lock().unwrap();
        assert_eq!((offset as usize, offset % PIECE, bytes.as_ptr().align_offset(4096)), (kept.len(), 0, 0));
        kept.extend_from_slice(bytes);
        Ok(())
    }

    fn settle(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn read(&self, offset: u64, piece: &mut [u8]) -> Result<(), Failure> {
        assert_eq!((offset % PIECE, piece.as_ptr().align_offset(4096)), (0, 0));
        piece.copy_from_slice(&self.0.lock().unwrap()[offset as usize..][..piece.len()]);
        Ok(())
    }
}
