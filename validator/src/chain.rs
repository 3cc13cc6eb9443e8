//! Where weights go. Only this module touches a chain.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// What a chain is told of an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commitment {
    /// Weight by miner hotkey.
    pub weights: BTreeMap<String, u16>,
    /// SHA-256 of the last line of the epoch's bundle, hexadecimal; none for epochs that were settled before there were any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
}

/// A chain that takes weights.
#[derive(Debug, Clone)]
pub enum Chain {
    /// A file on this machine that stands for a chain. It is no chain: nobody else sees it.
    Local(LocalChain),
}

/// Why a chain did not take or show something.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} {path}")]
pub struct ChainError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Chain {
    /// Its name in epochs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Local(_) => "local",
        }
    }

    /// Submits an epoch's weights and the head of its bundle; submitting the same again changes nothing.
    ///
    /// # Errors
    /// [`ChainError`]; submit again.
    pub fn submit(&self, epoch: i64, commitment: &Commitment) -> Result<(), ChainError> {
        match self {
            Self::Local(chain) => chain.submit(epoch, commitment),
        }
    }

    /// What the chain shows of an epoch.
    ///
    /// # Errors
    /// [`ChainError`]; read again.
    pub fn read_back(&self, epoch: i64) -> Result<Option<Commitment>, ChainError> {
        match self {
            Self::Local(chain) => chain.read_back(epoch),
        }
    }
}

/// One file an epoch in a directory.
#[derive(Debug, Clone)]
pub struct LocalChain {
    dir: PathBuf,
}

impl LocalChain {
    /// A local chain in `dir`, which is made when it is first written.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn file(&self, epoch: i64) -> PathBuf {
        self.dir.join(format!("epoch-{epoch}.json"))
    }

    /// Writes beside and moves into place, so that an epoch's weights are whole or absent.
    fn submit(&self, epoch: i64, commitment: &Commitment) -> Result<(), ChainError> {
        let path = self.file(epoch);
        let fresh = path.with_extension("new");
        let write = || {
            fs::create_dir_all(&self.dir)?;
            let mut file = fs::File::create(&fresh)?;
            serde_json::to_writer(&mut file, commitment)?;
            file.flush()?;
            file.sync_all()?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|source| ChainError { action: "write", path: path.clone(), source })
    }

    fn read_back(&self, epoch: i64) -> Result<Option<Commitment>, ChainError> {
        let path = self.file(epoch);
        let read = || match fs::read(&path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        read().map_err(|source| ChainError { action: "read", path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_submitted_twice_shows_once_and_others_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let chain = Chain::Local(LocalChain::new(dir.path()));
        let weights = BTreeMap::from([("miner".to_owned(), u16::MAX)]);
        let commitment = Commitment { weights, head: Some("00".repeat(32)) };
        chain.submit(3, &commitment).expect("submit");
        chain.submit(3, &commitment).expect("submit again");
        assert_eq!(chain.read_back(3).expect("read"), Some(commitment));
        assert_eq!(chain.read_back(4).expect("read"), None);
    }
}
