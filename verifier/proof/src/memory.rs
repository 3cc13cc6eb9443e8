//! Memory: filled with what is slow to compute, then read all over.
//!
//! A block is 1024 lines of 64 bytes, computed in two passes over all of it, each
//! line from the one before and one that the data choose. No line is there before
//! its block is, so a line that is not kept costs a block's whole work, about a
//! thousand times a read. A lane is a chain of reads in which each line decides
//! about the next. The commitment is the root over the ends of all lanes; the verifier
//! derives the blocks that a few lanes touch, and reads those lanes again.

use std::{
    collections::BTreeMap,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use crate::{
    Digest, Failure, MemoryTask, Reason,
    merkle::{self, Tree},
    mix::{State, add, below, round},
    sizes::{LINES, WORDS, blocks, covered},
    transcript::{draw, expand, hash, seal},
};

/// Rounds in a line of a block.
const ROUNDS: usize = 2;
/// Blocks that are allocated at once.
const SLAB: u64 = 256;
/// Lanes whose reads one thread keeps on their way at the same time.
const ABREAST: usize = 16;
/// Most blocks that the verifier keeps while it reads lanes.
const KEPT_MAX: usize = 256;

fn range(line: u64) -> std::ops::Range<usize> {
    let start = (line * WORDS) as usize;
    start..start + WORDS as usize
}

/// The name that blocks of memory are derived under.
const BLOCKS: &str = "nave proof block";

/// Computes block `number` into `block`, under a name that no other use shares.
pub(crate) fn derive(domain: &str, binding: &Digest, number: u64, block: &mut Vec<u64>) {
    block.clear();
    let mut state = expand(domain, binding, number);
    for line in 0..LINES {
        if line > 0 {
            let other = below(state[0], line);
            add(&mut state, &block[range(other)]);
        }
        (0..ROUNDS).for_each(|_| round(&mut state));
        block.extend_from_slice(&state);
    }
    for line in 0..LINES {
        let other = below(state[0], LINES);
        add(&mut state, &block[range(other)]);
        add(&mut state, &block[range(line)]);
        (0..ROUNDS).for_each(|_| round(&mut state));
        block[range(line)].copy_from_slice(&state);
    }
}

/// Memory that is filled and kept.
pub(crate) struct Fill {
    slabs: Vec<Vec<u64>>,
    lines: u64,
}

impl Fill {
    /// Fills the claimed memory with `threads` threads.
    pub(crate) fn new(task: &MemoryTask, binding: &Digest, threads: usize) -> Result<Self, Failure> {
        let blocks = blocks(task);
        let (slabs, next) = (slots(blocks.div_ceil(SLAB), task)?, AtomicUsize::new(0));
        let failed = AtomicBool::new(false);
        let fill = || {
            while let Some((number, slot)) = take(&slabs, &next, &failed) {
                let first = number as u64 * SLAB;
                match slab(binding, first..blocks.min(first + SLAB)) {
                    Some(slab) => drop(slot.set(slab)),
                    None => failed.store(true, Ordering::Relaxed),
                }
            }
        };
        everywhere(threads, fill);
        let slabs: Option<Vec<_>> = slabs.into_iter().map(OnceLock::into_inner).collect();
        let slabs = slabs.ok_or_else(|| unavailable(task))?;
        Ok(Self { slabs, lines: blocks * LINES })
    }

    fn line(&self, line: u64) -> &[u64] {
        &self.slabs[(line / (SLAB * LINES)) as usize][range(line % (SLAB * LINES))]
    }

    /// Reads all lanes with `threads` threads.
    pub(crate) fn read(&self, task: &MemoryTask, binding: &Digest, threads: usize) -> Result<Tree, Failure> {
        let groups = u64::from(task.lanes).div_ceil(ABREAST as u64);
        let (ends, next) = (slots::<[Digest; ABREAST]>(groups, task)?, AtomicUsize::new(0));
        let never = AtomicBool::new(false);
        let read = || {
            while let Some((number, slot)) = take(&ends, &next, &never) {
                slot.get_or_init(|| self.lanes(task, binding, (number * ABREAST) as u64));
            }
        };
        everywhere(threads, read);
        let ends = ends.iter().filter_map(OnceLock::get).flatten();
        Ok(Tree::over(ends.copied().take(task.lanes as usize).collect()))
    }

    /// The ends of some lanes, whose reads wait for memory together.
    fn lanes(&self, task: &MemoryTask, binding: &Digest, first: u64) -> [Digest; ABREAST] {
        let mut states: [State; ABREAST] = std::array::from_fn(|lane| start(binding, first + lane as u64));
        let mut came = [[0; WORDS as usize]; ABREAST];
        for _ in 0..task.reads {
            for (state, line) in states.iter().zip(&mut came) {
                line.copy_from_slice(self.line(below(state[0], self.lines)));
            }
            for (state, line) in states.iter_mut().zip(&came) {
                add(state, line);
                round(state);
            }
        }
        std::array::from_fn(|lane| end(binding, first + lane as u64, &states[lane]))
    }
}

/// Empty slots for results, without ending the program when there is no memory for them.
fn slots<T>(count: u64, task: &MemoryTask) -> Result<Vec<OnceLock<T>>, Failure> {
    let mut slots = Vec::new();
    slots.try_reserve_exact(usize::try_from(count).unwrap_or(usize::MAX)).map_err(|_| unavailable(task))?;
    slots.resize_with(count as usize, OnceLock::new);
    Ok(slots)
}

/// The next slot that nobody works on, unless something failed.
pub(crate) fn take<'a, T>(slots: &'a [T], next: &AtomicUsize, failed: &AtomicBool) -> Option<(usize, &'a T)> {
    if failed.load(Ordering::Relaxed) {
        return None;
    }
    let number = next.fetch_add(1, Ordering::Relaxed);
    slots.get(number).map(|slot| (number, slot))
}

/// Runs `work` in `threads` threads, one of them this one; fewer where no more start.
pub(crate) fn everywhere(threads: usize, work: impl Fn() + Sync) {
    thread::scope(|scope| {
        for _ in 1..threads.max(1) {
            if thread::Builder::new().spawn_scoped(scope, &work).is_err() {
                break;
            }
        }
        work();
    });
}

fn slab(binding: &Digest, blocks: std::ops::Range<u64>) -> Option<Vec<u64>> {
    let (mut slab, mut block) = (Vec::new(), Vec::new());
    slab.try_reserve_exact(((blocks.end - blocks.start) * LINES * WORDS) as usize).ok()?;
    block.try_reserve_exact((LINES * WORDS) as usize).ok()?;
    for number in blocks {
        derive(BLOCKS, binding, number, &mut block);
        slab.extend_from_slice(&block);
    }
    Some(slab)
}

fn unavailable(task: &MemoryTask) -> Failure {
    let message =
        format!("claims {}, but {} of it could not be allocated", task.memory, covered(task.memory));
    Failure { code: Reason::MemoryUnavailable, message }
}

fn start(binding: &Digest, lane: u64) -> State {
    expand("nave proof lane", binding, lane)
}

fn end(binding: &Digest, lane: u64, state: &State) -> Digest {
    seal("nave proof lane end", binding, lane, state)
}

/// The commitment that says that memory is filled. The reads show whether it is.
pub(crate) fn filled(binding: &Digest) -> Digest {
    hash("nave proof filled", &[&binding.0])
}

/// The lanes that `seed` chooses.
fn chosen(task: &MemoryTask, seed: &Digest) -> Vec<u64> {
    draw(seed, task.samples, u64::from(task.lanes))
}

/// The digests of an opening: the proof for the chosen lanes.
pub(crate) fn open(task: &MemoryTask, tree: &Tree, seed: &Digest) -> Vec<Digest> {
    tree.proof(chosen(task, seed))
}

/// How many digests an opening has.
pub(crate) fn opening_len(task: &MemoryTask, seed: &Digest) -> usize {
    merkle::proof_len(chosen(task, seed), u64::from(task.lanes))
}

/// Blocks that the verifier has derived.
pub(crate) struct Derived<'a> {
    domain: &'static str,
    binding: &'a Digest,
    blocks: BTreeMap<u64, Vec<u64>>,
}

impl<'a> Derived<'a> {
    pub(crate) fn new(domain: &'static str, binding: &'a Digest) -> Self {
        Self { domain, binding, blocks: BTreeMap::new() }
    }

    fn line(&mut self, line: u64) -> &[u64] {
        &self.block(line / LINES)[range(line % LINES)]
    }

    pub(crate) fn block(&mut self, number: u64) -> &[u64] {
        let mut spare = Vec::new();
        if self.blocks.len() >= KEPT_MAX && !self.blocks.contains_key(&number) {
            spare = self.blocks.pop_first().map(|(_, block)| block).unwrap_or_default();
        }
        self.blocks.entry(number).or_insert_with(|| {
            derive(self.domain, self.binding, number, &mut spare);
            spare
        })
    }
}

/// Whether the opening shows chosen lanes of the reads that were committed to.
pub(crate) fn check(
    task: &MemoryTask,
    (filled, revealed, seed): (&Digest, &Digest, &Digest),
    commitment: &Digest,
    opening: &[Digest],
) -> Result<(), String> {
    let lines = blocks(task) * LINES;
    let mut derived = Derived::new(BLOCKS, filled);
    let mut ends = BTreeMap::new();
    for lane in chosen(task, seed) {
        let mut state = start(revealed, lane);
        for _ in 0..task.reads {
            let line = derived.line(below(state[0], lines));
            add(&mut state, line);
            round(&mut state);
        }
        ends.insert(lane, end(revealed, lane, &state));
    }
    match merkle::root(ends, u64::from(task.lanes), opening) {
        Some(root) if root == *commitment => Ok(()),
        Some(_) | None => Err("chosen lanes are not what was committed to".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use nave_domain::{Bytes, ChallengeId, HostId, MilliCpu, Millis, Timestamp};
    use uuid::Uuid;

    use super::*;
    use crate::{
        BLOCK, Challenge, Evidence, Nonce, Span, Task, Verdict, judge,
        transcript::{binding, revealed},
    };

    const FILL: Millis = Millis(100);
    const READS_MS: Millis = Millis(400);

    /// 16 MiB, and 131 072 reads all over it.
    fn task() -> MemoryTask {
        let (lanes, reads, samples) = (2048, 64, 4);
        MemoryTask {
            memory: Bytes(32 << 20),
            milli_cpu: MilliCpu(1000),
            lanes,
            reads,
            samples,
            reads_ms: READS_MS,
        }
    }

    fn challenge(task: &MemoryTask) -> Challenge {
        let (id, host) = (ChallengeId(Uuid::from_u128(1)), HostId(Uuid::from_u128(2)));
        let reveals = vec![Nonce([4; 32]), Nonce([5; 32])];
        Challenge { reveals, ..Challenge::new(id, host, Task::Memory(task.clone()), Nonce([3; 32])) }
    }

    /// What a host answers whose lanes end as `read` says, and how long that took.
    fn answer(
        challenge: &Challenge,
        task: &MemoryTask,
        read: impl FnOnce(&Digest, &Digest) -> Tree,
    ) -> (Evidence, Duration) {
        let first = binding(challenge);
        let second = revealed(&first, &filled(&first), &challenge.reveals[0]);
        let began = Instant::now();
        let tree = read(&first, &second);
        let took = began.elapsed();
        let root = tree.root().unwrap();
        let third = revealed(&second, &root, &challenge.reveals[1]);
        let opening = [third].iter().chain(&open(task, &tree, &third)).flat_map(|digest| digest.0).collect();
        (Evidence { commitments: vec![filled(&first), root], opening }, took)
    }

    fn spans(reads: Duration) -> Vec<Span> {
        let span = |took| Span { sent: Timestamp(0), received: Timestamp(took) };
        vec![span(FILL.0), span(i64::try_from(reads.as_millis()).unwrap()), span(100)]
    }

    /// Lanes of a host that kept every other block and computes the others when it needs them.
    fn half(fill: &Fill, task: &MemoryTask, first: &Digest, second: &Digest) -> Tree {
        let mut block = Vec::new();
        let ends = (0..u64::from(task.lanes)).map(|lane| {
            let mut state = start(second, lane);
            for _ in 0..task.reads {
                let line = below(state[0], fill.lines);
                if (line / LINES).is_multiple_of(2) {
                    add(&mut state, fill.line(line));
                } else {
                    derive(BLOCKS, first, line / LINES, &mut block);
                    add(&mut state, &block[range(line % LINES)]);
                }
                round(&mut state);
            }
            end(second, lane, &state)
        });
        Tree::over(ends.collect())
    }

    #[test]
    fn a_host_that_kept_half_of_its_memory_is_refused_by_the_clock_alone() {
        let task = task();
        let challenge = challenge(&task);
        let fill = Fill::new(&task, &binding(&challenge), 2).unwrap();
        let (honest, honest_took) =
            answer(&challenge, &task, |_, second| fill.read(&task, second, 2).unwrap());
        let (cheating, cheating_took) =
            answer(&challenge, &task, |first, second| half(&fill, &task, first, second));

        // What it says is right: it computed what it had not kept.
        assert_eq!(honest, cheating);
        assert!(
            matches!(judge(&challenge, &honest, &spans(honest_took)), Verdict::Passed(_)),
            "{honest_took:?}"
        );
        match judge(&challenge, &cheating, &spans(cheating_took)) {
            Verdict::Failed(failure) => {
                assert_eq!(failure.code, Reason::MemoryMissing);
                assert!(failure.message.starts_with("claims 32 MiB, but "), "{}", failure.message);
            }
            Verdict::Passed(proven) => panic!("{proven:?} in {cheating_took:?}"),
        }
    }

    #[test]
    fn no_line_of_a_block_stays_as_the_first_pass_left_it() {
        let mut block = Vec::new();
        derive(BLOCKS, &Digest([1; 32]), 7, &mut block);
        let mut state = expand("nave proof block", &Digest([1; 32]), 7);
        (0..ROUNDS).for_each(|_| round(&mut state));
        assert_ne!(block[range(0)], state);
        assert_eq!(block.len() as u64 * 8, BLOCK);
    }
}
