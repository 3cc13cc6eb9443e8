//! Upgrades: another program takes this one's place, if the release key has signed it.
//!
//! The program comes through the mesh into `agent/bin/` and is started in place of
//! this one, as the same process. Containers go on; the new agent adopts them. A new
//! program has to prove itself: if it crashes, or does not reach the control plane,
//! the old one comes back, once, and that version is not tried again.
//!
//! Whoever starts the agent starts the program that was installed. It looks into
//! `agent/upgrade.json` and gives its place to the newer one.

use std::{
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nave_crash_point::crash_point;
use nave_sdk::wire::{
    keys::PublicKey,
    sign::{Release, SignedRelease},
};
use reqwest::Response;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use crate::{
    files::{self, Keep},
    membership,
};

/// How often a new program may be started before it has reached the control plane.
const STARTS_MAX: u32 = 3;
/// How long it may take to reach it.
const TRIAL: Duration = Duration::from_secs(180);
/// Largest program that is fetched, in bytes.
const PROGRAM_BYTES_MAX: u64 = 256 << 20;
/// The version that a test has a development build say.
pub(crate) const VERSION_SAID: &str = "NAVE_AGENT_VERSION";
/// How long a test gives the new program of a development build.
const TRIAL_SAID: &str = "NAVE_AGENT_TRIAL_MS";
/// Set for a program that another one has given its place to: where the one that was
/// installed lies.
const MARK: &str = "NAVE_AGENT_SUCCEEDS";

/// A program that was fetched, and how it has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What was signed.
    pub release: SignedRelease,
    /// How it has done.
    pub standing: Standing,
}

/// How a fetched program has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It was started so often and has not reached the control plane yet.
    Trying {
        /// Number of starts.
        starts: u32,
    },
    /// It has reached the control plane.
    Good,
    /// It did not reach it, and the old program has yet to show that it can.
    Fallen,
    /// The old program could.
    Bad,
}

/// What a program does when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// It runs. What was fetched is of no use any more.
    Forget,
    /// It runs, and what was fetched stands like this.
    Stay(Option<Standing>),
    /// It gives its place to what was fetched, which then stands like this.
    Yield(Standing),
}

/// What a program of version `own` does when it starts. `marked`: another program has
/// just given its place to it.
#[must_use]
pub fn start(record: Option<&Record>, own: &str, marked: bool) -> Start {
    let Some(record) = record else { return Start::Stay(None) };
    let (fetched, own) = (record.release.release.number(), number(own));
    if fetched < own {
        return Start::Forget;
    }
    if fetched == own || marked {
        return Start::Stay(Some(record.standing));
    }
    match record.standing {
        Standing::Good => Start::Yield(Standing::Good),
        Standing::Trying { starts } if starts < STARTS_MAX => {
            Start::Yield(Standing::Trying { starts: starts + 1 })
        }
        Standing::Trying { .. } => Start::Stay(Some(Standing::Fallen)),
        Standing::Fallen | Standing::Bad => Start::Stay(Some(record.standing)),
    }
}

/// Whether a release should take the place of a program of version `own`: the pinned key has
/// signed it, it is newer, it is for this machine, and it has not failed here before.
#[must_use]
pub fn is_wanted(
    release: &SignedRelease,
    key: Option<&PublicKey>,
    own: &str,
    record: Option<&Record>,
) -> bool {
    let signed = key.is_some_and(|key| release.verify(key).is_ok());
    let newer = release.release.number() > number(own);
    let fits = release.release.target == target() && release.release.size <= PROGRAM_BYTES_MAX;
    let failed = record.is_some_and(|record| {
        record.release.release == release.release
            && matches!(record.standing, Standing::Fallen | Standing::Bad)
    });
    signed && newer && fits && !failed
}

fn number(version: &str) -> Option<[u32; 3]> {
    let none = nave_sdk::wire::sign::Sha256([0; 32]);
    Release { version: version.to_owned(), target: String::new(), sha256: none, size: 0 }.number()
}

/// The platform of this program, as releases name it.
#[must_use]
pub fn target() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}

/// How long a new program may take to reach the control plane.
#[must_use]
pub fn trial() -> Duration {
    let shorter = std::env::var(TRIAL_SAID).ok().filter(|_| cfg!(debug_assertions));
    shorter.and_then(|ms| ms.parse().ok()).map_or(TRIAL, Duration::from_millis)
}

/// Where fetched programs and what is known of them lie.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// The one below `data`.
    #[must_use]
    pub fn of(data: &Path) -> Self {
        Self { dir: membership::dir(data) }
    }

    fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    fn previous(&self) -> PathBuf {
        self.bin().join("previous")
    }

    /// Where the program of a release lies.
    #[must_use]
    pub fn program(&self, release: &Release) -> PathBuf {
        self.bin().join(format!("miner-agent-{}", release.version))
    }

    /// What is known; nothing where it cannot be read.
    #[must_use]
    pub fn record(&self) -> Option<Record> {
        files::read_json(&self.dir.join("upgrade.json")).unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "what is known of upgrades cannot be read");
            None
        })
    }

    /// Writes down how a program stands.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn note(&self, release: &SignedRelease, standing: Standing) -> anyhow::Result<()> {
        let record = Record { release: release.clone(), standing };
        files::write_json(&self.dir.join("upgrade.json"), &record, Keep::Power)
    }

    /// Forgets what was fetched.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn forget(&self) -> anyhow::Result<()> {
        files::remove(&self.dir.join("upgrade.json"))
    }

    /// Takes the bytes of a release in, if they are what was signed.
    ///
    /// # Errors
    /// When they are not, or the disk refuses.
    pub async fn fetch(&self, release: &Release, mut answer: Response) -> anyhow::Result<()> {
        files::ensure_dir(&self.bin())?;
        let (path, part) = (self.program(release), self.bin().join("fetched.part"));
        let mut file = tokio::fs::File::create(&part).await.context("create the new program's file")?;
        let (mut hash, mut size) = (Sha256::new(), 0_u64);
        while let Some(piece) = answer.chunk().await.context("fetch the new program")? {
            size += piece.len() as u64;
            ensure!(size <= release.size, "the new program is longer than what was signed");
            hash.update(&piece);
            file.write_all(&piece).await.context("write the new program")?;
        }
        ensure!(size == release.size, "the new program is shorter than what was signed");
        ensure!(hash.finalize()[..] == release.sha256.0, "the new program is not what was signed");
        file.sync_all().await.context("flush the new program")?;
        drop(file);
        fs::set_permissions(&part, Permissions::from_mode(0o700)).context("make the new program one")?;
        crash_point!("agent.upgrade.before_place");
        files::rename(&part, &path, Keep::Power)
    }

    /// Whether the fetched program is still what was signed with `key`.
    #[must_use]
    pub fn is_intact(&self, release: &SignedRelease, key: Option<&PublicKey>) -> bool {
        let signed = key.is_some_and(|key| release.verify(key).is_ok());
        let bytes = || fs::read(self.program(&release.release)).unwrap_or_default();
        signed && Sha256::digest(bytes())[..] == release.release.sha256.0
    }

    /// Gives this process to the program of a release; its first start is written down.
    /// Returns only if that fails.
    ///
    /// # Errors
    /// Why it failed; the program then counts as fallen.
    pub fn succeed(&self, release: &SignedRelease, standing: Standing) -> anyhow::Result<()> {
        files::ensure_dir(&self.bin())?;
        let part = self.bin().join("previous.part");
        fs::copy("/proc/self/exe", &part).context("keep a copy of this program")?;
        fs::set_permissions(&part, Permissions::from_mode(0o700)).context("keep a copy of this program")?;
        files::rename(&part, &self.previous(), Keep::Power)?;
        self.note(release, standing)?;
        crash_point!("agent.upgrade.before_exec");
        let error = exec(&self.program(&release.release));
        self.note(release, Standing::Fallen)?;
        Err(error)
    }

    /// Gives this process back to the program that was there before.
    /// Returns only if that fails.
    ///
    /// # Errors
    /// Why it failed.
    pub fn fall_back(&self, release: &SignedRelease) -> anyhow::Result<()> {
        self.note(release, Standing::Fallen)?;
        crash_point!("agent.upgrade.before_fall");
        Err(exec(&self.previous()))
    }
}

/// Where the program lies that was installed, with what was installed beside it.
///
/// # Errors
/// When the system does not say.
pub fn installed() -> std::io::Result<PathBuf> {
    std::env::var_os(MARK).map_or_else(std::env::current_exe, |path| Ok(path.into()))
}

fn exec(program: &Path) -> anyhow::Error {
    let mut args = std::env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    if let Ok(installed) = installed() {
        command.env(MARK, installed);
    }
    // What a test has this program say and do is not for the other one.
    let error = command.args(args).env_remove(VERSION_SAID).env_remove(TRIAL_SAID).exec();
    anyhow::Error::new(error).context(format!("start {}", program.display()))
}

/// Gives this process to a newer program, where one was fetched and stands well.
/// Answers what was fetched where this program is the one to run.
///
/// # Errors
/// When what is known cannot be written.
pub fn begin(data: &Path, key: Option<&PublicKey>) -> anyhow::Result<Option<Record>> {
    let store = Store::of(data);
    let record = store.record();
    let marked = std::env::var_os(MARK).is_some();
    match (start(record.as_ref(), crate::version(), marked), record) {
        (Start::Forget, _) => store.forget().map(|()| None),
        (Start::Yield(standing), Some(record)) if store.is_intact(&record.release, key) => {
            tracing::info!(version = record.release.release.version, "a newer program takes over");
            if let Err(error) = store.succeed(&record.release, standing) {
                tracing::error!(error = format!("{error:#}"), "the newer program does not start");
            }
            Ok(store.record())
        }
        (Start::Yield(_), _) => {
            tracing::warn!("the newer program is gone or damaged; this one goes on");
            store.forget().map(|()| None)
        }
        (Start::Stay(Some(standing)), Some(record)) => {
            if standing != record.standing {
                let version = &record.release.release.version;
                tracing::error!(version, "the newer program did not come up; this one goes on");
                store.note(&record.release, standing)?;
            }
            Ok(Some(Record { standing, ..record }))
        }
        (Start::Stay(_), _) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use nave_sdk::wire::sign::{SecretKey, sha256};

    use super::*;

    fn key() -> SecretKey {
        SecretKey::from_seed([7; 32]).expect("a key")
    }

    fn signed(version: &str) -> SignedRelease {
        let release =
            Release { version: version.into(), target: target(), sha256: sha256(b"agent"), size: 5 };
        SignedRelease { signature: key().sign(&release.bytes()), release }
    }

    fn record(version: &str, standing: Standing) -> Record {
        Record { release: signed(version), standing }
    }

    fn wanted(release: &SignedRelease, record: Option<&Record>) -> bool {
        is_wanted(release, Some(&key().public()), "0.2.0", record)
    }

    #[test]
    fn only_what_the_pinned_key_signed_takes_over() {
        let newer = signed("0.3.0");
        assert!(wanted(&newer, None));
        assert!(!is_wanted(&newer, None, "0.2.0", None), "without a key there are no upgrades");
        let stranger = SecretKey::generate().expect("a key").public();
        assert!(!is_wanted(&newer, Some(&stranger), "0.2.0", None));
        let mut altered = newer;
        altered.release.version = "0.4.0".into();
        assert!(!wanted(&altered, None));
    }

    #[test]
    fn nothing_older_or_for_another_machine_takes_over() {
        for version in ["0.1.9", "0.2.0"] {
            assert!(!wanted(&signed(version), None), "{version}");
        }
        let mut release = signed("0.3.0").release;
        release.target = "sparc-plan9".into();
        let foreign = SignedRelease { signature: key().sign(&release.bytes()), release };
        assert!(!wanted(&foreign, None));
    }

    #[test]
    fn a_version_that_failed_here_is_not_tried_again_and_the_next_one_is() {
        for standing in [Standing::Fallen, Standing::Bad] {
            let failed = record("0.3.0", standing);
            assert!(!wanted(&signed("0.3.0"), Some(&failed)));
            assert!(wanted(&signed("0.3.1"), Some(&failed)));
        }
    }

    #[test]
    fn the_installed_program_gives_its_place_to_a_newer_one_that_did_well() {
        let good = record("0.3.0", Standing::Good);
        assert_eq!(start(Some(&good), "0.2.0", false), Start::Yield(Standing::Good));
        assert_eq!(start(Some(&good), "0.3.0", true), Start::Stay(Some(Standing::Good)));
        assert_eq!(start(Some(&good), "0.3.0", false), Start::Stay(Some(Standing::Good)));
        assert_eq!(start(Some(&good), "0.4.0", false), Start::Forget, "a package has overtaken it");
    }

    #[test]
    fn a_program_that_keeps_crashing_is_given_up() {
        let trying = |starts| record("0.3.0", Standing::Trying { starts });
        let again = Start::Yield(Standing::Trying { starts: 2 });
        assert_eq!(start(Some(&trying(1)), "0.2.0", false), again);
        assert_eq!(start(Some(&trying(STARTS_MAX)), "0.2.0", false), Start::Stay(Some(Standing::Fallen)));
    }

    #[test]
    fn a_program_that_lies_about_its_version_does_not_start_itself_for_ever() {
        let good = record("0.3.0", Standing::Good);
        assert_eq!(start(Some(&good), "0.2.0", true), Start::Stay(Some(Standing::Good)));
    }
}
