//! The file that a test of a disk writes and reads.
//!
//! It has no name while it is used, so that the kernel gives its room back with this process, however
//! that ends. Reads and writes go past the kernel's cache where the file system can do that.

use std::{
    fs::{self, File, OpenOptions},
    io::{Error, ErrorKind},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use nave_domain::Bytes;
use nave_proof::{Disk, Failure, Reason, StorageTask};
use nix::{
    fcntl::{FcntlArg, OFlag, PosixFadviseAdvice, fcntl, posix_fadvise},
    sys::statvfs::statvfs,
};

/// What the names of such files begin with, in the moment in which they have one.
const NAME: &str = "nave-disk-proof.";

/// A file of its own, for one test.
struct Unnamed {
    file: File,
    task: StorageTask,
}

/// Makes a file in `dir` for a task, and clears away what an earlier test may have left there.
///
/// # Errors
/// [`Reason::DiskMissing`] where there is no room for it.
pub fn open(dir: &Path, task: &StorageTask) -> Result<Box<dyn Disk>, Failure> {
    clear(dir);
    let free = statvfs(dir).map_err(|error| broken("look at the disk", &error.into()))?;
    let free = free.blocks_available().saturating_mul(free.fragment_size());
    if free < task.bytes {
        return Err(missing(task, &format!("{} are free", said(free))));
    }
    let path = dir.join(format!("{NAME}{}", std::process::id()));
    let create = |flags: OFlag| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600).custom_flags(flags.bits()).open(&path)
    };
    let file = match create(OFlag::O_DIRECT) {
        // The file system has no way past the cache; the file may be there all the same.
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            let _ = fs::remove_file(&path);
            create(OFlag::empty())
        }
        done => done,
    };
    let file = file.map_err(|error| failed(task, "make a file", &error))?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(broken("take the file's name away", &error)),
        Ok(()) | Err(_) => Ok(Box::new(Unnamed { file, task: task.clone() })),
    }
}

/// Removes files that were left with their names.
fn clear(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(NAME) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

impl Unnamed {
    /// Tries again through the cache where the file system wants other sizes than ours past it.
    fn around(&self, work: impl Fn(&File) -> Result<(), Error>) -> Result<(), Error> {
        match work(&self.file) {
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                let flags = OFlag::from_bits_truncate(fcntl(&self.file, FcntlArg::F_GETFL)?);
                fcntl(&self.file, FcntlArg::F_SETFL(flags - OFlag::O_DIRECT))?;
                work(&self.file)
            }
            done => done,
        }
    }
}

impl Disk for Unnamed {
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        let write = self.around(|file| file.write_all_at(bytes, offset));
        write.map_err(|error| failed(&self.task, &format!("write at {}", said(offset)), &error))
    }

    fn settle(&self) -> Result<(), Failure> {
        self.file.sync_all().map_err(|error| failed(&self.task, "settle what was written", &error))?;
        // Where it went through the cache, reads shall not.
        let advice = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        advice.map_err(|error| broken("empty the cache", &error.into()))
    }

    fn read(&self, offset: u64, piece: &mut [u8]) -> Result<(), Failure> {
        // Its buffer is borrowed anew by each try.
        let piece = std::cell::RefCell::new(piece);
        let read = self.around(|file| file.read_exact_at(&mut piece.borrow_mut(), offset));
        read.map_err(|error| broken(&format!("read at {}", said(offset)), &error))
    }
}

fn failed(task: &StorageTask, what: &str, error: &Error) -> Failure {
    if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        return missing(task, &format!("{what}: {error}"));
    }
    broken(what, error)
}

fn missing(task: &StorageTask, why: &str) -> Failure {
    let message = format!("claims {} of disk, but for {} of it: {why}", task.disk, said(task.bytes));
    Failure { code: Reason::DiskMissing, message }
}

fn broken(what: &str, error: &Error) -> Failure {
    Failure { code: Reason::Aborted, message: format!("{what}: {error}") }
}

fn said(bytes: u64) -> String {
    Bytes(i64::try_from(bytes).unwrap_or(i64::MAX)).to_string()
}
