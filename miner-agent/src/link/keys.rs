//! The host's mesh keys on the disk.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use nave_crash_point::crash_point;
use nave_domain::mesh::MeshKey;
use nave_mesh::PrivateKey;

use super::turn::Side;
use crate::{
    files::{self, Keep},
    membership,
};

/// The keys of a host.
#[derive(Debug)]
pub struct Keys {
    dir: PathBuf,
    current: PrivateKey,
    next: Option<PrivateKey>,
}

impl Keys {
    /// Reads them.
    ///
    /// # Errors
    /// When there are none or the disk does not give them.
    pub fn load(data: &Path) -> anyhow::Result<Self> {
        let dir = membership::dir(data);
        let current = PrivateKey::load(&dir.join("mesh.key"))?;
        let next = dir.join("mesh-next.key");
        let next = if next.exists() { Some(PrivateKey::load(&next)?) } else { None };
        Ok(Self { dir, current, next })
    }

    /// One of them; the current one where there is no next.
    #[must_use]
    pub fn get(&self, side: Side) -> &PrivateKey {
        match side {
            Side::Current => &self.current,
            Side::Next => self.next.as_ref().unwrap_or(&self.current),
        }
    }

    /// The public half of the next key.
    #[must_use]
    pub fn next(&self) -> Option<MeshKey> {
        self.next.as_ref().map(PrivateKey::public)
    }

    /// Whether the current key has been in use for so long, or somebody asks for another.
    #[must_use]
    pub fn is_due(&self, after: Duration) -> bool {
        let made = fs::metadata(self.dir.join("mesh.key")).and_then(|data| data.modified());
        let old = made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age >= after));
        (old && !after.is_zero()) || self.wish().exists()
    }

    /// Makes the next key.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn make_next(&mut self) -> anyhow::Result<()> {
        let key = PrivateKey::generate();
        crash_point!("agent.rotate.before_make");
        key.save(&self.dir.join("mesh-next.key"))?;
        crash_point!("agent.rotate.after_make");
        files::remove(&self.wish())?;
        self.next = Some(key);
        Ok(())
    }

    /// The next key is the current one from now on, and the old one is forgotten.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        let Some(next) = self.next.clone() else { return Ok(()) };
        crash_point!("agent.rotate.before_settle");
        files::rename(&self.dir.join("mesh-next.key"), &self.dir.join("mesh.key"), Keep::Power)?;
        crash_point!("agent.rotate.after_settle");
        (self.current, self.next) = (next, None);
        Ok(())
    }

    fn wish(&self) -> PathBuf {
        wish_path(&self.dir)
    }
}

/// Asks the agent of `data` for a new key.
///
/// # Errors
/// When the disk refuses.
pub fn ask_for_new(data: &Path) -> anyhow::Result<()> {
    let path = wish_path(&membership::dir(data));
    fs::write(&path, "").with_context(|| format!("write {}", path.display()))
}

fn wish_path(dir: &Path) -> PathBuf {
    dir.join("rotate")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin() -> (tempfile::TempDir, Keys) {
        let data = tempfile::tempdir().expect("a directory");
        let dir = membership::dir(data.path());
        files::ensure_dir(&dir).expect("made");
        PrivateKey::generate().save(&dir.join("mesh.key")).expect("saved");
        let keys = Keys::load(data.path()).expect("loaded");
        (data, keys)
    }

    #[test]
    fn both_keys_survive_until_the_change_is_settled() {
        let (data, mut keys) = begin();
        let old = keys.get(Side::Current).public();
        keys.make_next().expect("made");
        let next = keys.next().expect("there is one");
        let mut again = Keys::load(data.path()).expect("loaded");
        assert_eq!((again.get(Side::Current).public(), again.next()), (old, Some(next)));
        again.settle().expect("settled");
        let last = Keys::load(data.path()).expect("loaded");
        assert_eq!((last.get(Side::Current).public(), last.next()), (next, None));
    }

    #[test]
    fn a_wish_for_a_new_key_is_granted_once() {
        let (data, mut keys) = begin();
        assert!(!keys.is_due(Duration::from_secs(3600)));
        ask_for_new(data.path()).expect("asked");
        assert!(keys.is_due(Duration::from_secs(3600)));
        keys.make_next().expect("made");
        assert!(!keys.is_due(Duration::from_secs(3600)));
    }
}
