//! The verifier's side of a test of GPUs: commitments first, then what was chosen of the work.

use nave_domain::{Bytes, Millis};

use super::{
    hashes, products, reads,
    work::{self, Chosen, Unit},
};
use crate::{
    DeviceProven, DeviceTask, DevicesTask, Digest, Failure, Phase, Reason,
    device::{GemmOpening, TILE_BYTES, lanes_of_return, next_pass},
    gemm,
    vram::{self, Contents},
};

/// A host's evidence.
pub(crate) struct Shown<'a> {
    /// What the work starts from, then what each reveal made of it.
    pub(crate) bindings: &'a [Digest],
    /// One for each phase.
    pub(crate) commitments: &'a [Digest],
    /// How long each phase took.
    pub(crate) took: &'a [Millis],
    /// The opening, after what it is bound to.
    pub(crate) opening: &'a [Unit],
}

/// A phase of a device in an opening.
struct Part<'a> {
    phase: Phase,
    seed: Digest,
    roots: Vec<Digest>,
    chosen: Chosen,
    /// The tiles, then the multiproofs.
    rest: &'a [Unit],
}

/// Judges what was shown of all devices.
pub(crate) fn weigh(task: &DevicesTask, shown: &Shown) -> Result<Vec<DeviceProven>, Failure> {
    let phases = task.phases();
    let devices = parts(task, &phases, shown)?;
    for (number, phase) in phases.iter().enumerate() {
        let parts = devices.iter().map(|parts| &parts[number]);
        let digests: Vec<Digest> = parts.map(|part| work::digest(*phase, &part.seed, &part.roots)).collect();
        if shown.commitments[number] != work::commitment(&digests) {
            let message = format!("phase {} is not opened as it was committed to", phase.as_str());
            return Err(Failure { code: Reason::EvidenceWrong, message });
        }
    }
    for (slot, (task, parts)) in task.devices.iter().zip(&devices).enumerate() {
        check(task, parts).map_err(|why| {
            let message = format!("{}: {why}", work::name(slot, &task.uuid));
            Failure { code: Reason::EvidenceWrong, message }
        })?;
    }
    Ok(task.devices.iter().map(|task| proven(task, &phases, shown.took)).collect())
}

/// Takes an opening apart, whose length follows from what was chosen.
fn parts<'a>(task: &DevicesTask, phases: &[Phase], shown: &Shown<'a>) -> Result<Vec<Vec<Part<'a>>>, Failure> {
    let last = &shown.bindings[phases.len()];
    let chosen: Vec<Vec<Chosen>> = (task.devices.iter().enumerate())
        .map(|(slot, task)| {
            let seed = work::seed(last, slot, &task.uuid);
            phases.iter().map(|phase| Chosen::of(task, *phase, &seed)).collect()
        })
        .collect();
    let units = |(task, chosen): (&DeviceTask, &Vec<Chosen>)| {
        let phases = phases.iter().zip(chosen);
        phases.map(|(phase, chosen)| work::roots(task, *phase) + chosen.units(task)).sum::<usize>()
    };
    let expected: usize = task.devices.iter().zip(&chosen).map(units).sum();
    if shown.opening.len() != expected {
        let message = format!("the opening has {} digests, not {expected}", shown.opening.len());
        return Err(Failure { code: Reason::EvidenceMalformed, message });
    }
    let mut rest = shown.opening;
    let mut take = |count| {
        let (taken, left) = rest.split_at(count);
        rest = left;
        taken
    };
    let devices = task.devices.iter().zip(chosen).enumerate();
    let parts = devices.map(|(slot, (task, chosen))| {
        let phases = phases.iter().zip(shown.bindings).zip(chosen);
        let part = phases.map(|((phase, binding), chosen)| Part {
            phase: *phase,
            seed: work::seed(binding, slot, &task.uuid),
            roots: take(work::roots(task, *phase)).iter().copied().map(Digest).collect(),
            rest: take(chosen.units(task)),
            chosen,
        });
        part.collect()
    });
    Ok(parts.collect())
}

/// Looks at everything that was chosen of one device.
fn check(task: &DeviceTask, parts: &[Part]) -> Result<(), String> {
    let seed = |phase| {
        let part = parts.iter().find(|part| part.phase == phase);
        part.map(|part| &part.seed).ok_or("a phase is missing")
    };
    for part in parts {
        let (tiles, proofs) = part.shown(task);
        match (&part.chosen, task.fill.as_ref(), proofs.as_slice()) {
            (Chosen::Nothing, ..) => {}
            (Chosen::Gemm { entries, .. }, ..) => {
                let opening = GemmOpening { tiles, proofs };
                let gemm = task.gemm.as_ref().ok_or("there are no products")?;
                gemm::check(gemm, &part.seed, &part.roots, entries, &opening)?;
            }
            (Chosen::Lanes(lanes), Some(fill), [proof]) => {
                let task = task.lanes.as_ref().ok_or("there are no lanes")?;
                let memory = Contents::new(fill, seed(Phase::Fill)?);
                vram::check_lanes(&memory, (task, &part.seed), part.root(0)?, lanes, proof)?;
            }
            (Chosen::Stream(chosen), Some(fill), proofs) => {
                let filled = (fill, seed(Phase::Fill)?);
                let passes: Vec<Digest> = part.passes();
                for ((pass, chunks), proof) in vram::by_pass(chosen).iter().zip(proofs) {
                    let pass = *pass as usize;
                    let this = (fill.bytes, &passes[pass]);
                    vram::check_chunks(filled, this, part.root(pass)?, chunks, proof)?;
                }
            }
            (Chosen::Return { chunks, lanes }, Some(fill), [copy, ends]) => {
                let spill = task.spill.as_ref().ok_or("there is no spill")?;
                let (old, pass) = (seed(Phase::Fill)?, (spill.bytes, &part.seed));
                vram::check_chunks((fill, old), pass, part.root(0)?, chunks, copy)?;
                let task = task.lanes.as_ref().ok_or("there are no lanes")?;
                let again = lanes_of_return(&part.seed);
                let memory = Contents::new(fill, old).spilled(spill, seed(Phase::Spill)?);
                vram::check_lanes(&memory, (task, &again), part.root(1)?, lanes, ends)?;
            }
            (Chosen::Lanes(_) | Chosen::Stream(_) | Chosen::Return { .. }, ..) => {
                return Err("there is no fill".into());
            }
        }
    }
    Ok(())
}

impl Part<'_> {
    /// The tiles and the multiproofs.
    fn shown(&self, task: &DeviceTask) -> (Vec<[u8; TILE_BYTES]>, Vec<Vec<Digest>>) {
        let (tiles, mut rest) = self.rest.split_at(self.chosen.tiles() * work::TILE_UNITS);
        let proofs = self.chosen.proofs(task).into_iter().map(|len| {
            let (proof, left) = rest.split_at(len);
            rest = left;
            proof.iter().copied().map(Digest).collect()
        });
        let proofs = proofs.collect();
        (tiles.as_flattened().as_chunks().0.to_vec(), proofs)
    }

    fn root(&self, number: usize) -> Result<&Digest, String> {
        self.roots.get(number).ok_or_else(|| "a root is missing".into())
    }

    /// The seed of each pass.
    fn passes(&self) -> Vec<Digest> {
        let mut seed = self.seed;
        let next = |root| {
            let after = next_pass(&seed, root);
            std::mem::replace(&mut seed, after)
        };
        self.roots.iter().map(next).collect()
    }
}

/// What a device did in the time that all had.
fn proven(task: &DeviceTask, phases: &[Phase], took: &[Millis]) -> DeviceProven {
    let per_s = |phase: Phase, count: Option<u128>| {
        let at = phases.iter().position(|other| *other == phase)?;
        let elapsed = u128::try_from(took.get(at)?.0.max(1)).unwrap_or(1);
        Some(u64::try_from(count? * 1000 / elapsed).unwrap_or(u64::MAX))
    };
    // A fill that nothing reads shows nothing.
    let fill = task.fill.filter(|_| task.lanes.is_some() || task.stream.is_some());
    let passes = task.stream.zip(task.fill);
    DeviceProven {
        uuid: task.uuid.clone(),
        ops_per_s: per_s(Phase::Gemm, task.gemm.as_ref().map(|gemm| 2 * products(gemm))),
        vram: fill.map(|fill| Bytes(i64::try_from(fill.bytes).unwrap_or(i64::MAX))),
        hashes_per_s: per_s(Phase::Fill, fill.as_ref().map(hashes)),
        reads_per_s: per_s(Phase::Lanes, task.lanes.as_ref().map(reads)),
        bytes_per_s: per_s(
            Phase::Stream,
            passes.map(|(stream, fill)| u128::from(stream.passes) * u128::from(fill.bytes)),
        ),
        return_bytes_per_s: per_s(Phase::Return, task.spill.map(|spill| u128::from(spill.bytes))),
    }
}
