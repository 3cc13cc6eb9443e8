//! A private Postgres for one machine: unix socket only, its own directory and user.
//!
//! The launcher prepares and describes the server process; who runs it decides
//! how it is supervised.

use std::{
    fs, io,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::unistd::{Gid, Uid, User, chown};
use sqlx::{Connection, PgConnection};

/// Why a private Postgres could not be prepared or reached.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The server's programs are not installed.
    #[error(
        "no Postgres server found: install the package `postgresql`, or name its bin directory in NAVE_PG_BIN"
    )]
    NotInstalled,
    /// There is no cluster where one was expected.
    #[error("there is no database in {0}")]
    NoCluster(PathBuf),
    /// No account to run it as.
    #[error("Postgres does not run as root and there is no account `postgres` or `nobody` to run it as")]
    NoAccount,
    /// The account it runs as cannot enter a directory on the way.
    #[error(
        "Postgres runs as an account of its own, which cannot enter {0}: choose a directory outside of it, or `chmod o+x` it"
    )]
    Unreachable(PathBuf),
    /// A step on the file system failed.
    #[error("could not prepare {path}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `initdb` failed.
    #[error("initdb failed: {0}")]
    Initdb(String),
    /// It did not answer in time.
    #[error("Postgres in {dir} did not answer within {seconds} s; its log is {dir}/postgres.log")]
    NotReady {
        /// Its directory.
        dir: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
}

/// A private Postgres in a directory.
#[derive(Debug, Clone)]
pub struct Postgres {
    dir: PathBuf,
    bin: PathBuf,
    account: Option<(Uid, Gid)>,
}

impl Postgres {
    /// Makes the cluster in `dir` if there is none yet. When root, the server runs as
    /// an unprivileged account, which must be able to reach `dir`.
    ///
    /// # Errors
    /// [`LaunchError`]; nothing half made is kept.
    pub fn prepare(dir: &Path) -> Result<Self, LaunchError> {
        let made_by = fs::read_to_string(dir.join("data/PG_VERSION")).ok();
        let version = made_by.and_then(|version| version.trim().parse().ok());
        let postgres = Self { dir: dir.to_owned(), bin: find_bin(version)?, account: account()? };
        postgres.make_dir(dir)?;
        postgres.check_reachable()?;
        postgres.make_dir(&postgres.socket_dir())?;
        if !postgres.data().join("PG_VERSION").exists() {
            postgres.initdb()?;
        }
        Ok(postgres)
    }

    /// The cluster that [`Self::prepare`] made in `dir`.
    ///
    /// # Errors
    /// [`LaunchError::NoCluster`] when there is none.
    pub fn find(dir: &Path) -> Result<Self, LaunchError> {
        let made_by = fs::read_to_string(dir.join("data/PG_VERSION")).ok();
        let version = made_by.and_then(|version| version.trim().parse().ok());
        let postgres = Self { dir: dir.to_owned(), bin: find_bin(version)?, account: account()? };
        if postgres.data().join("PG_VERSION").exists() {
            Ok(postgres)
        } else {
            Err(LaunchError::NoCluster(dir.to_owned()))
        }
    }

    /// The command that runs the server in the foreground, logging to `postgres.log`.
    ///
    /// # Errors
    /// [`LaunchError::Io`] when the log cannot be opened.
    pub fn command(&self) -> Result<Command, LaunchError> {
        let path = self.dir.join("postgres.log");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|source| LaunchError::Io { path, source })?;
        let mut command = self.program("postgres");
        command
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.socket_dir())
            .args(["-c", "listen_addresses=", "-c", "port=5432", "-c", "unix_socket_permissions=0700"])
            .args(["-c", "max_connections=200", "-c", "shared_buffers=128MB"])
            .args(["-c", "log_min_messages=warning", "-c", "log_checkpoints=off"])
            .stdin(Stdio::null())
            .stderr(log);
        Ok(command)
    }

    /// Connection string of the database `nave`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("nave")
    }

    /// Connection string of a database. The port is part of the name of the socket; left
    /// out, `PGPORT` in the environment would choose another one.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        let dir = self.socket_dir();
        let host: String = dir.to_string_lossy().bytes().map(percent_encode).collect();
        format!("postgres://nave@localhost:5432/{database}?host={host}")
    }

    /// Waits until the server answers and the database `nave` exists.
    ///
    /// # Errors
    /// [`LaunchError::NotReady`] after 60 s.
    pub async fn ready(&self) -> Result<(), LaunchError> {
        const SECONDS: u64 = 60;
        for _ in 0..SECONDS * 20 {
            if self.create_database("nave").await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(LaunchError::NotReady { dir: self.dir.clone(), seconds: SECONDS })
    }

    pub(crate) async fn create_database(&self, name: &str) -> Result<(), sqlx::Error> {
        let mut admin = PgConnection::connect(&self.url_of("postgres")).await?;
        let made = sqlx::raw_sql(sqlx::AssertSqlSafe(format!("create database \"{name}\"")))
            .execute(&mut admin)
            .await;
        match made {
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P04") => Ok(()),
            other => other.map(drop),
        }
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn socket_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    fn make_dir(&self, dir: &Path) -> Result<(), LaunchError> {
        let make = || {
            fs::create_dir_all(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
            if let Some((uid, gid)) = self.account {
                chown(dir, Some(uid), Some(gid))?;
            }
            Ok(())
        };
        make().map_err(|source| LaunchError::Io { path: dir.to_owned(), source })
    }

    fn check_reachable(&self) -> Result<(), LaunchError> {
        let Some((uid, _)) = self.account else { return Ok(()) };
        let enters = |dir: &Path| {
            let found = fs::metadata(dir)?;
            let own = found.uid() == uid.as_raw();
            Ok(found.mode() & if own { 0o100 } else { 0o001 } != 0)
        };
        for dir in self.dir.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()) {
            if !enters(dir).map_err(|source| LaunchError::Io { path: dir.to_owned(), source })? {
                return Err(LaunchError::Unreachable(dir.to_owned()));
            }
        }
        Ok(())
    }

    /// Makes the cluster beside its place and moves it there, so that a cluster is whole or absent.
    fn initdb(&self) -> Result<(), LaunchError> {
        let fresh = self.dir.join("data.new");
        let io = |source| LaunchError::Io { path: fresh.clone(), source };
        if fresh.exists() {
            fs::remove_dir_all(&fresh).map_err(io)?;
        }
        let output = self
            .program("initdb")
            .arg("-D")
            .arg(&fresh)
            .args(["--username=nave", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"])
            .output()
            .map_err(io)?;
        if !output.status.success() {
            return Err(LaunchError::Initdb(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        fs::rename(&fresh, self.data()).map_err(io)
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        command.current_dir(&self.dir).env_clear().env("LC_ALL", "C");
        if let Some((uid, gid)) = self.account {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        command
    }
}

fn percent_encode(byte: u8) -> String {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    }
}

fn account() -> Result<Option<(Uid, Gid)>, LaunchError> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| User::from_name(name).ok().flatten())
        .map(|user| Some((user.uid, user.gid)))
        .ok_or(LaunchError::NoAccount)
}

/// `NAVE_PG_BIN`, then Debian's places, then PATH. A cluster is served by the version that
/// made it; a new one is made by the newest.
fn find_bin(version: Option<u32>) -> Result<PathBuf, LaunchError> {
    let named = std::env::var_os("NAVE_PG_BIN").map(PathBuf::from);
    let packaged: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    named
        .into_iter()
        .chain(best_first(packaged, version))
        .chain(std::env::split_paths(&path))
        .find(|bin| bin.join("postgres").exists() && bin.join("initdb").exists())
        .ok_or(LaunchError::NotInstalled)
}

fn best_first(mut packaged: Vec<(u32, PathBuf)>, version: Option<u32>) -> impl Iterator<Item = PathBuf> {
    packaged.sort_by_key(|(packaged, _)| std::cmp::Reverse((Some(*packaged) == version, *packaged)));
    packaged.into_iter().map(|(_, bin)| bin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_served_by_the_version_that_made_it_and_a_new_one_made_by_the_newest() {
        let packaged = || [15, 17, 16].map(|version| (version, PathBuf::from(version.to_string()))).to_vec();
        let order = |version| best_first(packaged(), version).collect::<Vec<_>>();
        assert_eq!(order(Some(15)), ["15", "17", "16"].map(PathBuf::from));
        assert_eq!(order(None), ["17", "16", "15"].map(PathBuf::from));
        assert_eq!(order(Some(14)), ["17", "16", "15"].map(PathBuf::from));
    }
}
