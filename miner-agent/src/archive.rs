//! Packs a job's result files into a tar archive.
//!
//! The job is hostile and its files are too: links are never followed, in no
//! part of a path, and only regular files and directories are packed. The same
//! files give the same bytes: names are sorted, owners and times are zero.

use std::{
    ffi::{CStr, CString, OsStr},
    fs::File,
    io::{self, BufWriter, Read as _, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use nave_sdk::wire::host::{BLOB_BYTES_MAX, ResultRef};
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::stat::{Mode, SFlag, fstatat},
};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// Directories deeper than this are left out.
const DEPTH_MAX: usize = 64;
/// Paths longer than this are left out, in bytes.
const PATH_BYTES_MAX: usize = 2_048;
/// A tar archive consists of blocks of this size.
const BLOCK: u64 = 512;
/// Two empty blocks end an archive.
const TRAILER: u64 = 2 * BLOCK;

/// What a result may be at most.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// The archive, in bytes.
    bytes: u64,
    /// What directories list of which something is packed. Each has a name of 255 bytes at most, so that bounds those, too.
    entries: usize,
    /// What is read of directories: one that lists too much is left out, and what was read of it is lost.
    names: usize,
}

const BOUNDS: Bounds = Bounds { bytes: BLOB_BYTES_MAX as u64, entries: 1 << 16, names: 1 << 20 };

/// A finished archive on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// Where it is.
    pub path: PathBuf,
    /// What names and describes it on the wire.
    pub result: ResultRef,
}

/// Packs the directory `out` below `work` into the file `to`; `None` where it
/// is empty or no directory.
///
/// # Errors
/// When the disk fails.
pub fn pack(work: &Path, out: &str, to: &Path) -> anyhow::Result<Option<Archive>> {
    pack_within(work, out, to, BOUNDS)
}

fn pack_within(work: &Path, out: &str, to: &Path, bounds: Bounds) -> anyhow::Result<Option<Archive>> {
    let parent = File::open(work).with_context(|| format!("open {}", work.display()))?;
    let Ok(root) = openat(&parent, out, directory_flags(), Mode::empty()) else {
        return Ok(None);
    };
    let file = File::create(to).with_context(|| format!("create {}", to.display()))?;
    let sink = Hashing { inner: BufWriter::new(file), hash: Sha256::new(), written: 0 };
    let room = Bounds { bytes: bounds.bytes - TRAILER, ..bounds };
    let mut walk = Walk { builder: Builder::new(sink), room, truncated: false, packed: 0 };
    walk.directory(root, Path::new(""), 0).context("pack the result files")?;
    let sink = walk.builder.into_inner().context("finish the result archive")?;
    let (sha256, size) = sink.finish().context("write the result archive")?;
    if walk.packed == 0 && !walk.truncated {
        return Ok(None);
    }
    let result = ResultRef { sha256, size, truncated: walk.truncated };
    Ok(Some(Archive { path: to.to_owned(), result }))
}

fn directory_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

/// Counts and hashes what is written.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    written: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<W: Write> Hashing<W> {
    fn finish(mut self) -> io::Result<(String, u64)> {
        self.inner.flush()?;
        Ok((hex::encode(self.hash.finalize()), self.written))
    }
}

struct Walk<W: Write> {
    builder: Builder<Hashing<W>>,
    /// What still fits.
    room: Bounds,
    truncated: bool,
    packed: u64,
}

impl<W: Write> Walk<W> {
    /// Packs what is in the directory `fd`, which is `path` in the archive.
    fn directory(&mut self, fd: OwnedFd, path: &Path, depth: usize) -> io::Result<()> {
        let mut dir = Dir::from_fd(fd)?;
        for name in self.sorted_names(&mut dir)? {
            let inner = path.join(OsStr::from_bytes(name.to_bytes()));
            let Ok(stat) = fstatat(&dir, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else {
                continue;
            };
            match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
                SFlag::S_IFDIR => self.enter(&dir, &name, &inner, depth)?,
                SFlag::S_IFREG => self.file(&dir, &name, &inner)?,
                // Links, sockets, pipes and devices are not results.
                _ => {}
            }
        }
        Ok(())
    }

    fn enter(&mut self, parent: &Dir, name: &CStr, path: &Path, depth: usize) -> io::Result<()> {
        if depth >= DEPTH_MAX || !self.take(path, 0) {
            self.truncated = true;
            return Ok(());
        }
        let fd = match openat(parent, name, directory_flags(), Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ELOOP | Errno::ENOTDIR | Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut header = header(EntryType::Directory, 0o755, 0);
        self.builder.append_data(&mut header, path.join(""), io::empty())?;
        self.directory(fd, path, depth + 1)
    }

    fn file(&mut self, parent: &Dir, name: &CStr, path: &Path) -> io::Result<()> {
        // Without O_NONBLOCK, opening a pipe would wait for its other end.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = File::from(openat(parent, name, flags, Mode::empty())?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(());
        }
        if !self.take(path, metadata.len()) {
            self.truncated = true;
            return Ok(());
        }
        let mode = if metadata.mode() & 0o111 == 0 { 0o644 } else { 0o755 };
        let mut header = header(EntryType::Regular, mode, metadata.len());
        // An archive stays well-formed even when a file is shorter than it says.
        let exactly = file.chain(io::repeat(0)).take(metadata.len());
        self.builder.append_data(&mut header, path, exactly)
    }

    /// What is in a directory; nothing of one with more than there is room for, as in which order it lists is chance.
    fn sorted_names(&mut self, dir: &mut Dir) -> io::Result<Vec<CString>> {
        let mut names = Vec::new();
        for entry in dir.iter() {
            let name = entry?.file_name().to_owned();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if names.len() == self.room.entries || self.room.names == 0 {
                self.truncated = true;
                return Ok(Vec::new());
            }
            self.room.names -= 1;
            names.push(name);
        }
        self.room.entries -= names.len();
        names.sort_unstable();
        Ok(names)
    }

    /// Takes the room of one entry, where there is enough.
    fn take(&mut self, path: &Path, size: u64) -> bool {
        let name = path.as_os_str().len() as u64 + 2;
        let long_name = if name > 100 { BLOCK + name.next_multiple_of(BLOCK) } else { 0 };
        let need = size.checked_next_multiple_of(BLOCK).and_then(|size| size.checked_add(BLOCK + long_name));
        let fits =
            path.as_os_str().len() <= PATH_BYTES_MAX && need.is_some_and(|need| need <= self.room.bytes);
        if let (true, Some(need)) = (fits, need) {
            self.room.bytes -= need;
            self.packed += 1;
        }
        fits
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, os::unix::fs::symlink};

    use super::*;

    struct Job {
        dir: tempfile::TempDir,
    }

    impl Job {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("temporary directory");
            fs::create_dir_all(dir.path().join("work/out")).expect("create");
            Self { dir }
        }

        fn put(&self, name: &str, bytes: &[u8]) {
            let path = self.dir.path().join("work/out").join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("create");
            fs::write(path, bytes).expect("write");
        }

        fn pack(&self, bytes: u64) -> Option<Archive> {
            self.pack_within(Bounds { bytes, ..BOUNDS })
        }

        fn pack_within(&self, bounds: Bounds) -> Option<Archive> {
            let to = self.dir.path().join("result.tar");
            pack_within(&self.dir.path().join("work"), "out", &to, bounds).expect("pack")
        }

        fn contents(&self) -> BTreeMap<String, Vec<u8>> {
            let mut archive =
                tar::Archive::new(File::open(self.dir.path().join("result.tar")).expect("open"));
            let entries = archive.entries().expect("entries");
            let read = |entry: io::Result<tar::Entry<File>>| {
                let mut entry = entry.expect("entry");
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).expect("read");
                (entry.path().expect("path").display().to_string(), bytes)
            };
            entries.map(read).collect()
        }
    }

    #[test]
    fn files_and_directories_are_packed_the_same_way_every_time() {
        let job = Job::new();
        job.put("b/c", b"two");
        job.put("a", b"one");
        let first = job.pack(1 << 20).expect("an archive");
        fs::rename(job.dir.path().join("work/out/a"), job.dir.path().join("work/out/z")).expect("rename");
        fs::rename(job.dir.path().join("work/out/z"), job.dir.path().join("work/out/a")).expect("rename");
        assert_eq!(job.pack(1 << 20).expect("an archive").result, first.result);
        assert!(!first.result.truncated);
        let bytes = fs::read(&first.path).expect("read");
        assert_eq!(first.result.sha256, hex::encode(Sha256::digest(&bytes)));
        assert_eq!(first.result.size, bytes.len() as u64);
        let names: Vec<String> = job.contents().into_keys().collect();
        assert_eq!(names, ["a", "b/", "b/c"]);
    }

    #[test]
    fn an_empty_output_directory_gives_no_archive() {
        assert_eq!(Job::new().pack(1 << 20), None);
    }

    #[test]
    fn planted_links_and_special_files_are_never_followed() {
        let job = Job::new();
        let out = job.dir.path().join("work/out");
        fs::create_dir(job.dir.path().join("secret")).expect("create");
        fs::write(job.dir.path().join("secret/key"), b"secret").expect("write");
        symlink("/etc/passwd", out.join("passwd")).expect("link");
        symlink(job.dir.path().join("secret"), out.join("dir")).expect("link");
        nix::unistd::mkfifo(&out.join("pipe"), Mode::S_IRWXU).expect("pipe");
        job.put("real", b"kept");
        job.pack(1 << 20).expect("an archive");
        assert_eq!(job.contents().into_keys().collect::<Vec<_>>(), ["real"]);
    }

    #[test]
    fn an_output_directory_that_is_a_link_counts_as_none() {
        let job = Job::new();
        fs::remove_dir(job.dir.path().join("work/out")).expect("remove");
        symlink("/etc", job.dir.path().join("work/out")).expect("link");
        assert_eq!(job.pack(1 << 20), None);
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_said() {
        let job = Job::new();
        job.put("a-large", &[7; 8_192]);
        job.put("b-small", b"fits");
        let archive = job.pack(4_096).expect("an archive");
        assert!(archive.result.truncated);
        assert!(archive.result.size <= 4_096);
        assert_eq!(job.contents().into_keys().collect::<Vec<_>>(), ["b-small"]);
    }

    #[test]
    fn a_directory_of_too_many_files_is_left_out_and_the_others_are_packed() {
        let job = Job::new();
        ["a", "few/one", "z"].iter().for_each(|name| job.put(name, b""));
        (0..9).for_each(|number| job.put(&format!("many/{number}"), b""));
        let bounds = Bounds { entries: 13, ..BOUNDS };
        assert!(job.pack_within(bounds).expect("an archive").result.truncated);
        assert_eq!(job.contents().into_keys().collect::<Vec<_>>(), ["a", "few/", "few/one", "many/", "z"]);
        let room = Bounds { entries: 14, ..BOUNDS };
        assert!(!job.pack_within(room).expect("an archive").result.truncated);
        assert_eq!(job.contents().len(), 14);
    }

    #[test]
    fn no_more_names_are_read_than_are_allowed_however_many_directories_have_too_many() {
        let job = Job::new();
        job.put("z", b"");
        (0..20).for_each(|number| job.put(&format!("many/{number}"), b""));
        (0..3).for_each(|number| job.put(&format!("more/{number}"), b""));
        let bounds = Bounds { entries: 10, names: 12, ..BOUNDS };
        assert!(job.pack_within(bounds).expect("an archive").result.truncated);
        assert_eq!(job.contents().into_keys().collect::<Vec<_>>(), ["many/", "more/", "z"]);
    }

    #[test]
    fn a_result_of_too_many_files_is_empty_and_says_so() {
        let job = Job::new();
        (0..3).for_each(|number| job.put(&number.to_string(), b""));
        let archive = job.pack_within(Bounds { entries: 2, ..BOUNDS }).expect("an archive");
        assert!(archive.result.truncated && job.contents().is_empty());
    }

    #[test]
    fn a_sparse_giant_and_a_deep_or_long_path_do_no_harm() {
        let job = Job::new();
        File::create(job.dir.path().join("work/out/giant")).expect("create").set_len(1 << 40).expect("grow");
        let deep = "d/".repeat(DEPTH_MAX + 5);
        job.put(&format!("{deep}leaf"), b"");
        job.put(&"n".repeat(200), b"long");
        let archive = job.pack(1 << 20).expect("an archive");
        assert!(archive.result.truncated && archive.result.size <= 1 << 20);
        assert_eq!(job.contents().get(&"n".repeat(200)).map(Vec::as_slice), Some(&b"long"[..]));
    }
}
