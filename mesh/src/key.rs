use std::{
    fmt, fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use nave_domain::mesh::MeshKey;
use wireguard_control::Key;

use crate::Error;

/// A WireGuard private key. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(Key);

impl PrivateKey {
    /// A new key from the operating system's randomness.
    #[must_use]
    pub fn generate() -> Self {
        Self(Key::generate_private())
    }

    /// The public key that belongs to it.
    ///
    /// # Panics
    /// Never: no private key has the public key zero.
    #[must_use]
    pub fn public(&self) -> MeshKey {
        let bytes = self.0.get_public().0;
        // The only way to zero is a point of low order, and the base point is none.
        MeshKey::new(bytes).unwrap_or_else(|_| unreachable!("a multiple of the base point is not zero"))
    }

    /// The key in a file, in base64 as WireGuard's own tools write it.
    ///
    /// # Errors
    /// When the file cannot be read or holds anything else.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(Error::file("read the key", path))?;
        let key = Key::from_base64(text.trim_end()).map_err(|_| Error::Key(path.display().to_string()))?;
        Ok(Self(key))
    }

    /// Writes the key to a file that only its owner reads, all of it or nothing.
    /// What the file held before is replaced.
    ///
    /// # Errors
    /// When the file or its folder cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let fresh = path.with_extension("new");
        let write = || {
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(format!("{}\n", self.0.to_base64()).as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, path)?;
            match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                Some(folder) => fs::File::open(folder)?.sync_all(),
                None => Ok(()),
            }
        };
        write().map_err(Error::file("write the key", path))
    }

    /// The key in a file, or a new one that is in the file from now on.
    ///
    /// # Errors
    /// When the file exists and holds no key, or cannot be written.
    pub fn load_or_generate(path: &Path) -> Result<Self, Error> {
        match Self::load(path) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                let key = Self::generate();
                key.save(path)?;
                Ok(key)
            }
            loaded => loaded,
        }
    }

    pub(crate) fn raw(&self) -> Key {
        self.0.clone()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_survives_in_a_file_that_only_its_owner_reads() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mesh.key");
        let key = PrivateKey::load_or_generate(&path).expect("made");
        assert_eq!(PrivateKey::load_or_generate(&path).expect("loaded"), key);
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing else is left");
    }

    #[test]
    fn a_damaged_key_is_an_error_and_is_not_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mesh.key");
        fs::write(&path, "not a key").expect("written");
        assert!(matches!(PrivateKey::load_or_generate(&path), Err(Error::Key(_))));
        assert_eq!(fs::read_to_string(&path).expect("a file"), "not a key");
    }

    #[test]
    fn a_private_key_is_never_printed() {
        let key = PrivateKey::generate();
        assert!(!format!("{key:?}").contains(&key.raw().to_base64()));
    }

    #[test]
    fn public_keys_are_those_of_other_implementations() {
        // From the tests of wg(8) itself.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mesh.key");
        fs::write(&path, "SGb+ojrRNDuMePufwtIYhXzA//k6wF3R21tEBgKlzlM=\n").expect("written");
        let public = PrivateKey::load(&path).expect("a key").public();
        assert_eq!(public.to_string(), "DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8=");
    }
}
