//! Files that are there as a whole or not at all, for root's eyes only.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use anyhow::Context as _;
use nave_crash_point::crash_point;
use serde::{Serialize, de::DeserializeOwned};

/// What a file must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The end of this process.
    Process,
    /// The end of the machine's power.
    Power,
}

/// Makes a directory that only its owner may look into, where there is none.
///
/// # Errors
/// When the disk refuses.
pub fn ensure_dir(dir: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("create {}", dir.display()))
}

/// Replaces a file by these bytes.
///
/// # Errors
/// When the disk refuses; the file is then as it was.
pub fn replace(path: &Path, bytes: &[u8], keep: Keep) -> anyhow::Result<()> {
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let next = Path::new(&next);
    let mut options = OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o600).open(next);
    let mut file = opened.with_context(|| format!("create {}", next.display()))?;
    file.write_all(bytes).with_context(|| format!("write {}", next.display()))?;
    if keep == Keep::Power {
        file.sync_all().with_context(|| format!("flush {}", next.display()))?;
        crash_point!("agent.state.before_replace");
    }
    rename(next, path, keep)
}

/// Gives a file another name; what had that name is gone.
///
/// # Errors
/// When the disk refuses.
pub fn rename(from: &Path, to: &Path, keep: Keep) -> anyhow::Result<()> {
    fs::rename(from, to).with_context(|| format!("replace {}", to.display()))?;
    match to.parent() {
        Some(dir) if keep == Keep::Power => flush_dir(dir),
        Some(_) | None => Ok(()),
    }
}

/// Takes a file away, where there is one.
///
/// # Errors
/// When the disk refuses.
pub fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Replaces a file by a value as JSON.
///
/// # Errors
/// When the disk refuses.
pub fn write_json<T: Serialize>(path: &Path, value: &T, keep: Keep) -> anyhow::Result<()> {
    replace(path, &serde_json::to_vec(value).context("write JSON")?, keep)
}

/// The value in a file; `None` where there is no such file.
///
/// # Errors
/// When the file cannot be read or holds something else.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => {
            let value = serde_json::from_slice(&bytes);
            value.map(Some).with_context(|| format!("read {}", path.display()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn flush_dir(dir: &Path) -> anyhow::Result<()> {
    let flushed = File::open(dir).and_then(|dir| dir.sync_all());
    flushed.with_context(|| format!("flush {}", dir.display()))
}
