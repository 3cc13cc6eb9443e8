//! Reads by asking the kernel itself.
//!
//! What is preloaded into this process stands before the C library's functions, and answers in their place. None of
//! them is called here, so a library that hides itself from all programs, as such libraries do, does not
//! hide from this one. One that was written against this agent can change its memory, and with that anything.

use std::path::{Path, PathBuf};

use rustix::{
    fd::OwnedFd,
    fs::{Dir, Mode, OFlags, open, readlink, stat},
    io::{Errno, read},
};

/// How much is read at once.
const PIECE: usize = 64 << 10;

fn opened(path: &Path, how: OFlags) -> Result<OwnedFd, Errno> {
    open(path, how | OFlags::CLOEXEC, Mode::empty())
}

/// At most so many bytes of a file.
///
/// # Errors
/// What the kernel says.
pub fn bytes(path: impl AsRef<Path>, most: usize) -> Result<Vec<u8>, Errno> {
    let file = opened(path.as_ref(), OFlags::RDONLY)?;
    let (mut bytes, mut piece) = (Vec::new(), vec![0; PIECE]);
    while bytes.len() < most {
        match read(&file, piece.as_mut_slice()) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(most);
    Ok(bytes)
}

/// What is in a directory; nothing where it cannot be read.
#[must_use]
pub fn entries(directory: impl AsRef<Path>) -> Vec<PathBuf> {
    let directory = directory.as_ref();
    let opened = opened(directory, OFlags::RDONLY | OFlags::DIRECTORY).and_then(|file| Dir::read_from(&file));
    let names = opened.into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "." && name != "..").map(|name| directory.join(name)).collect()
}

/// Device and inode of a file, past all links.
///
/// # Errors
/// What the kernel says.
pub fn identity(path: impl AsRef<Path>) -> Result<(u64, u64), Errno> {
    stat(path.as_ref()).map(|found| (found.st_dev, found.st_ino))
}

/// Where a link leads to.
///
/// # Errors
/// What the kernel says.
pub fn target(link: impl AsRef<Path>) -> Result<PathBuf, Errno> {
    readlink(link.as_ref(), Vec::new()).map(|target| PathBuf::from(target.to_string_lossy().into_owned()))
}

/// The path of a file, past all links.
///
/// # Errors
/// What the kernel says.
pub fn canonical(path: impl AsRef<Path>) -> Result<PathBuf, Errno> {
    use std::os::fd::AsRawFd as _;
    let file = opened(path.as_ref(), OFlags::PATH)?;
    target(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn files_directories_and_links_are_read_as_they_are() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, vec![7; PIECE + 3]).expect("written");
        symlink("file", &link).expect("a link");
        assert_eq!(bytes(&link, usize::MAX), Ok(vec![7; PIECE + 3]));
        assert_eq!(bytes(&file, 5), Ok(vec![7; 5]));
        assert_eq!(bytes(dir.path().join("none"), 5), Err(Errno::NOENT));
        let mut listed = entries(dir.path());
        listed.sort();
        assert_eq!(listed, [file.clone(), link.clone()]);
        assert!(entries("/does/not/exist").is_empty());
        assert_eq!((identity(&file), identity("/does/not/exist")), (identity(&link), Err(Errno::NOENT)));
        assert_eq!(
            (target(&link), canonical(&link)),
            (Ok("file".into()), file.canonicalize().map_err(|_| Errno::IO))
        );
    }
}
