//! Computing power: one chain of sequential work for each claimed core.
//!
//! A segment is [`STEPS`] steps from one checkpoint to the next; a checkpoint is
//! SHA-256 of the state, so that what follows cannot begin before it is there.
//! The commitment is the root over all checkpoints of all chains; the opening has
//! the checkpoints before the segments that the reveal chose, and the verifier
//! computes those segments again.

use std::{collections::BTreeMap, thread};

use crate::{
    CpuTask, Digest, Failure, Reason,
    merkle::{self, Tree},
    mix,
    sizes::{Layout, STEPS},
    transcript::{draw, expand, seal},
};

/// Rounds in a step.
const ROUNDS: usize = 4;
fn first_checkpoint(layout: &Layout, binding: &Digest, segment: u64) -> Digest {
    seal("nave proof chain", binding, layout.chain_of(segment), &[0; 8])
}

/// The checkpoint at the end of a segment.
fn segment(binding: &Digest, number: u64, from: &Digest) -> Digest {
    let mut state = expand("nave proof segment", from, number);
    for _ in 0..STEPS {
        for _ in 0..ROUNDS {
            mix::round(&mut state);
        }
    }
    seal("nave proof checkpoint", binding, number, &state)
}

fn chain(binding: &Digest, layout: &Layout, chain: u64) -> Vec<Digest> {
    let first = layout.first_of(chain);
    let mut last = first_checkpoint(layout, binding, first);
    let numbers = first..first + layout.segments_of(chain);
    numbers
        .map(|number| {
            last = segment(binding, number, &last);
            last
        })
        .collect()
}

/// Does the work: all chains at once, each in a thread.
pub(crate) fn prove(task: &CpuTask, binding: &Digest) -> Result<Tree, Failure> {
    let layout = &Layout::of(task);
    let chains = thread::scope(|scope| {
        let start = |number| {
            let thread = thread::Builder::new().stack_size(128 << 10);
            thread.spawn_scoped(scope, move || chain(binding, layout, number))
        };
        let threads: Result<Vec<_>, _> = (0..layout.chains()).map(start).collect();
        let threads = threads.map_err(|error| aborted(format!("start a thread for each core: {error}")))?;
        let ends =
            threads.into_iter().map(|thread| thread.join().map_err(|_| aborted("a chain broke off".into())));
        ends.collect::<Result<Vec<_>, _>>()
    })?;
    Ok(Tree::over(chains.concat()))
}

fn aborted(message: String) -> Failure {
    Failure { code: Reason::Aborted, message }
}

/// The segments that `seed` chooses.
fn chosen(task: &CpuTask, layout: &Layout, seed: &Digest) -> Vec<u64> {
    draw(seed, task.samples, layout.segments())
}

/// The leaves of the tree that the opening of `segments` shows or lets compute.
fn leaves(layout: &Layout, segments: &[u64]) -> Vec<u64> {
    let before = segments.iter().filter(|segment| !layout.is_first_of_its_chain(**segment));
    segments.iter().copied().chain(before.map(|segment| segment - 1)).collect()
}

/// The digests of an opening: the checkpoint before each chosen segment, then the proof.
pub(crate) fn open(task: &CpuTask, tree: &Tree, binding: &Digest, seed: &Digest) -> Vec<Digest> {
    let layout = Layout::of(task);
    let segments = chosen(task, &layout, seed);
    let before = |segment: &u64| match layout.is_first_of_its_chain(*segment) {
        true => Some(first_checkpoint(&layout, binding, *segment)),
        false => tree.leaf(segment - 1),
    };
    let starts = segments.iter().filter_map(before);
    starts.chain(tree.proof(leaves(&layout, &segments))).collect()
}

/// How many digests an opening has.
pub(crate) fn opening_len(task: &CpuTask, seed: &Digest) -> usize {
    let layout = Layout::of(task);
    let segments = chosen(task, &layout, seed);
    segments.len() + merkle::proof_len(leaves(&layout, &segments), layout.segments())
}

/// Whether the opening shows chosen segments of the work that was committed to.
pub(crate) fn check(
    task: &CpuTask,
    binding: &Digest,
    commitment: &Digest,
    seed: &Digest,
    opening: &[Digest],
) -> Result<(), String> {
    let layout = Layout::of(task);
    let segments = chosen(task, &layout, seed);
    let (starts, proof) = opening.split_at_checked(segments.len()).ok_or("the opening is too short")?;
    let mut known = BTreeMap::new();
    let mut learn = |leaf, digest| match known.insert(leaf, digest) {
        Some(other) if other != digest => Err(format!("checkpoint {leaf} is shown as two")),
        Some(_) | None => Ok(()),
    };
    for (&number, start) in segments.iter().zip(starts) {
        if !layout.is_first_of_its_chain(number) {
            learn(number - 1, *start)?;
        } else if *start != first_checkpoint(&layout, binding, number) {
            return Err(format!("segment {number} does not start where its chain does"));
        }
        learn(number, segment(binding, number, start))?;
    }
    match merkle::root(known, layout.segments(), proof) {
        Some(root) if root == *commitment => Ok(()),
        Some(_) | None => Err("chosen segments are not what was committed to".into()),
    }
}

#[cfg(test)]
mod tests {
    use nave_domain::MilliCpu;

    use super::*;
    use crate::transcript::hash;

    fn task(milli_cpu: i64, segments: u32, samples: u32) -> CpuTask {
        CpuTask { milli_cpu: MilliCpu(milli_cpu), segments, samples }
    }

    /// The root over chains in which every `nth` segment was made up instead of computed.
    fn skipping(task: &CpuTask, binding: &Digest, nth: u64) -> Tree {
        let layout = Layout::of(task);
        let mut last = first_checkpoint(&layout, binding, 0);
        let checkpoints = (0..layout.segments()).map(|number| {
            if layout.is_first_of_its_chain(number) {
                last = first_checkpoint(&layout, binding, number);
            }
            last = match number % nth {
                0 => hash("made up", &[&number.to_le_bytes()]),
                _ => segment(binding, number, &last),
            };
            last
        });
        Tree::over(checkpoints.collect())
    }

    #[test]
    fn skipped_segments_pass_as_often_as_the_sampling_says() {
        let (task, binding, trials) = (task(2000, 100, 8), Digest([5; 32]), 400);
        let tree = skipping(&task, &binding, 10);
        let root = tree.root().unwrap();
        let passed = (0..trials).filter(|trial: &u32| {
            let seed = hash("a reveal", &[&trial.to_le_bytes()]);
            let opening = open(&task, &tree, &binding, &seed);
            check(&task, &binding, &root, &seed, &opening).is_ok()
        });
        // Eight of 200 without repetition, one in ten skipped: 0.9^8 = 0.43, or 0.424 exactly.
        // Four standard deviations of 400 trials are 0.1; the seeds are fixed, so it stays as it is.
        let passed = passed.count();
        assert!((130..=210).contains(&passed), "{passed} of {trials} passed");
    }
}
