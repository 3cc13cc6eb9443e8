//! The host's side of a test of a disk.

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicBool, AtomicUsize},
};

use super::{BLOCKS, PIECE_WORDS, chosen, end, pieces, start, take_in, written};
use crate::{
    Digest, Failure, StorageTask,
    memory::{derive, everywhere, take},
    merkle::Tree,
    mix::below,
    prover::{Done, Work, aborted, committed, gone, opening},
    sizes::{BLOCK, PIECE},
};

/// Reads that are under way at the same time.
const ABREAST: usize = 32;
/// Blocks that are written at once.
const RUN: u64 = 16;

/// A file on the disk that is tested, which is gone once this is dropped.
///
/// All offsets, lengths and addresses of buffers are multiples of [`PIECE`]. Each method fails with
/// [`crate::Reason::DiskMissing`] where there is no room, and with [`crate::Reason::Aborted`] where the disk
/// does not do its work.
pub trait Disk: Send + Sync {
    /// Writes some bytes.
    ///
    /// # Errors
    /// See [`Disk`].
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure>;

    /// Returns once all that was written is on the disk.
    ///
    /// # Errors
    /// See [`Disk`].
    fn settle(&self) -> Result<(), Failure>;

    /// Reads one piece, from the disk and not from memory as far as that can be had.
    ///
    /// # Errors
    /// See [`Disk`].
    fn read(&self, offset: u64, piece: &mut [u8]) -> Result<(), Failure>;
}

/// Opens a disk for a task.
pub(crate) type Open = dyn Fn(&StorageTask) -> Result<Box<dyn Disk>, Failure> + Send + Sync;

/// A file that is written, then read.
pub(crate) struct Stored {
    task: StorageTask,
    open: Arc<Open>,
    disk: Option<Box<dyn Disk>>,
    tree: Option<Tree>,
}

impl Stored {
    pub(crate) fn new(task: &StorageTask, open: &Arc<Open>) -> Self {
        Self { task: task.clone(), open: open.clone(), disk: None, tree: None }
    }
}

impl Work for Stored {
    fn go_on(&mut self, bindings: &[Digest]) -> Result<Done, Failure> {
        match (bindings, &self.disk, &self.tree) {
            ([binding], ..) => {
                let disk = (self.open)(&self.task)?;
                write(&*disk, &self.task, binding)?;
                self.disk = Some(disk);
                Ok(Done::Commitment(written(binding)))
            }
            ([_, seed], Some(disk), _) => committed(self.tree.insert(read(&**disk, &self.task, seed)?)),
            ([_, _, seed], _, Some(tree)) => {
                // What is opened is in the tree: the room can be given back.
                self.disk = None;
                Ok(opening(&tree.proof(chosen(&self.task, seed))))
            }
            _ => Err(gone()),
        }
    }
}

/// Bytes whose address is a multiple of [`PIECE`], as reads and writes past the kernel's cache need it.
struct Buffer {
    bytes: Vec<u8>,
    range: std::ops::Range<usize>,
}

impl Buffer {
    fn new(len: u64) -> Self {
        let (len, step) = (len as usize, PIECE as usize);
        let bytes = vec![0; len + step];
        let start = bytes.as_ptr().align_offset(step).min(step);
        Self { bytes, range: start..start + len }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.range.clone()]
    }
}

/// Writes the whole file.
fn write(disk: &dyn Disk, task: &StorageTask, binding: &Digest) -> Result<(), Failure> {
    let (mut block, mut buffer) = (Vec::new(), Buffer::new(RUN * BLOCK));
    let blocks = task.bytes / BLOCK;
    for first in (0..blocks).step_by(RUN as usize) {
        let run = RUN.min(blocks - first);
        for number in 0..run {
            derive(BLOCKS, binding, first + number, &mut block);
            let place = &mut buffer.get()[(number * BLOCK) as usize..];
            for (bytes, word) in place.chunks_exact_mut(8).zip(&block) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
        disk.write(first * BLOCK, &buffer.get()[..(run * BLOCK) as usize])?;
    }
    disk.settle()
}

/// Reads all lanes, several at the same time.
fn read(disk: &dyn Disk, task: &StorageTask, binding: &Digest) -> Result<Tree, Failure> {
    let mut ends: Vec<OnceLock<Digest>> = Vec::new();
    ends.resize_with(task.lanes as usize, OnceLock::new);
    let (next, failed, why) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(None));
    everywhere(ABREAST.min(ends.len()), || {
        let mut buffer = Buffer::new(PIECE);
        while let Some((lane, slot)) = take(&ends, &next, &failed) {
            match follow(disk, task, binding, lane as u64, &mut buffer) {
                Ok(end) => drop(slot.set(end)),
                Err(failure) => {
                    failed.store(true, std::sync::atomic::Ordering::Relaxed);
                    why.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
                }
            }
        }
    });
    if let Some(failure) = why.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(failure);
    }
    let ends: Option<Vec<Digest>> = ends.into_iter().map(OnceLock::into_inner).collect();
    ends.map(Tree::over).ok_or_else(|| aborted("not all lanes were read"))
}

/// The end of one lane.
fn follow(
    disk: &dyn Disk,
    task: &StorageTask,
    binding: &Digest,
    lane: u64,
    buffer: &mut Buffer,
) -> Result<Digest, Failure> {
    let mut state = start(binding, lane);
    let mut piece = [0; PIECE_WORDS];
    for _ in 0..task.reads {
        disk.read(below(state[0], pieces(task)) * PIECE, buffer.get())?;
        for (word, bytes) in piece.iter_mut().zip(buffer.get().as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        take_in(&mut state, &piece);
    }
    Ok(end(binding, lane, &state))
}
