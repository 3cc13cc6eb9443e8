//! Working directories with a real size limit: each is an ext4 file system in a
//! sparse file, mounted through a loop device.
//!
//! `<data>/leases/<lease>/work.img` is the file, `work` beside it the mount
//! point. All steps can be cut off anywhere and be repeated.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, chown},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use nave_domain::{Bytes, LeaseId};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
};

use crate::command;

/// One inode for this many bytes: enough for source trees, and little to write at the start.
const BYTES_PER_INODE: i64 = 65_536;
/// Fewest inodes.
const INODES_MIN: i64 = 4_096;

/// The working directories below one data directory.
#[derive(Debug, Clone)]
pub struct WorkDirs {
    root: PathBuf,
    owner: u32,
}

impl WorkDirs {
    /// Working directories below `data`, owned by user and group `owner`.
    #[must_use]
    pub fn new(data: &Path, owner: u32) -> Self {
        Self { root: data.join("leases"), owner }
    }

    /// Everything of a lease.
    #[must_use]
    pub fn dir(&self, lease: LeaseId) -> PathBuf {
        self.root.join(lease.to_string())
    }

    /// Where the working directory of a lease is mounted.
    #[must_use]
    pub fn mount_point(&self, lease: LeaseId) -> PathBuf {
        self.dir(lease).join("work")
    }

    /// Makes and mounts an empty working directory of `size` for a lease; an
    /// earlier one is thrown away.
    ///
    /// # Errors
    /// When the disk or a program fails.
    pub async fn create(&self, lease: LeaseId, size: Bytes) -> anyhow::Result<()> {
        self.remove(lease).await?;
        let dir = self.dir(lease);
        // A job's files are nobody's on this machine but root's.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.with_context(|| format!("create {}", dir.display()))?;
        self.format(lease, size).await?;
        self.mount(lease).await?;
        self.furnish(lease).with_context(|| format!("prepare the working directory of {lease}"))
    }

    async fn format(&self, lease: LeaseId, size: Bytes) -> anyhow::Result<()> {
        let image = self.image(lease);
        let length = u64::try_from(size.0).context("the size of the working directory is negative")?;
        let made = File::create(&image).and_then(|file| file.set_len(length));
        made.with_context(|| format!("create {}", image.display()))?;
        let owner = format!("lazy_itable_init=1,nodiscard,root_owner={0}:{0}", self.owner);
        let inodes = (size.0 / BYTES_PER_INODE).max(INODES_MIN).to_string();
        let image = image.to_str().context("the data directory's path is not UTF-8")?;
        // Without a journal and without blocks reserved for root: the files live
        // as long as the job, and all of the space is the job's.
        let args =
            ["-q", "-F", "-O", "^has_journal,^huge_file", "-E", &owner, "-m", "0", "-N", &inodes, image];
        command::run("mkfs.ext4", &args).await.context("make the file system of the working directory")?;
        Ok(())
    }

    fn image(&self, lease: LeaseId) -> PathBuf {
        self.dir(lease).join("work.img")
    }

    /// Mounts the working directory of a lease, where it is not mounted.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub async fn mount(&self, lease: LeaseId) -> anyhow::Result<()> {
        let (image, point) = (self.image(lease), self.mount_point(lease));
        fs::create_dir_all(&point).with_context(|| format!("create {}", point.display()))?;
        if is_mount(&point)? {
            return Ok(());
        }
        let args = [Path::new("-o"), Path::new("loop,nosuid,nodev"), &image, &point];
        command::run("mount", &args).await.context("mount the working directory")?;
        Ok(())
    }

    fn furnish(&self, lease: LeaseId) -> io::Result<()> {
        let point = self.mount_point(lease);
        let _ = fs::remove_dir(point.join("lost+found"));
        for name in ["out", "tmp"] {
            let path = point.join(name);
            fs::create_dir(&path)?;
            chown(&path, Some(self.owner), Some(self.owner))?;
        }
        Ok(())
    }

    /// Unmounts and deletes everything of a lease.
    ///
    /// # Errors
    /// When something is still in use.
    pub async fn remove(&self, lease: LeaseId) -> anyhow::Result<()> {
        let point = self.mount_point(lease);
        unmount(&point).with_context(|| format!("unmount {}", point.display()))?;
        let dir = self.dir(lease);
        tokio::task::spawn_blocking(move || match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("delete {}", dir.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        })
        .await
        .context("delete a working directory")?
    }

    /// Every lease that has a directory here.
    ///
    /// # Errors
    /// When the data directory cannot be read.
    pub fn leases(&self) -> anyhow::Result<BTreeSet<LeaseId>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(error).with_context(|| format!("read {}", self.root.display())),
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }
}

/// A mount point is on another device than the directory it is in.
fn is_mount(point: &Path) -> anyhow::Result<bool> {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
    let parent = point.parent().context("a mount point has a parent")?;
    let (inner, outer) =
        device(point).and_then(|inner| Ok((inner, device(parent)?))).context("look for a mount")?;
    Ok(inner != outer)
}

/// Unmounts as often as something is mounted there.
fn unmount(point: &Path) -> nix::Result<()> {
    loop {
        match umount2(point, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
