//! The state directory: the few facts that containers cannot carry in labels.
//!
//! `state.json` holds the last spec and the notes, written before they matter
//! and flushed to the disk. `heard.json` holds when the control plane was last
//! heard; it is written often and not flushed, because its time means nothing
//! after the machine has restarted. `session.json` holds the number of the last
//! agent process.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, bail};
use nave_crash_point::crash_point;
use nave_domain::{HostId, LeaseId, Millis};
use nave_sdk::wire::host::HostSpec;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    clock,
    core::{Memory, Note},
    files::{self, Keep},
    membership,
};

/// An agent's state directory, held by one process at a time.
#[derive(Debug)]
pub struct StateDir {
    dir: PathBuf,
    host: HostId,
    boot: String,
    _lock: Flock<File>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    host: HostId,
    boot: String,
    spec: Option<HostSpec>,
    notes: BTreeMap<LeaseId, Note>,
}

#[derive(Serialize, Deserialize)]
struct Heard {
    boot: String,
    heard: Millis,
}

impl StateDir {
    /// Opens the state directory below `data` for `host` and takes its lock.
    ///
    /// # Errors
    /// When the directory cannot be written or another agent uses it.
    pub fn open(data: &Path, host: HostId) -> anyhow::Result<Self> {
        let lock = lock(data)?;
        Ok(Self { dir: membership::dir(data), host, boot: clock::boot_id()?, _lock: lock })
    }

    /// Names this run of the kernel.
    #[must_use]
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// What an earlier agent of this host left; nothing where there was none or
    /// its state cannot be read.
    #[must_use]
    pub fn load(&self) -> (Option<HostSpec>, Memory) {
        let mut memory = Memory { heard: clock::now(), ..Memory::default() };
        if let Some(heard) = self.read::<Heard>("heard.json").filter(|heard| heard.boot == self.boot) {
            memory.heard = heard.heard.min(memory.heard);
            memory.in_touch = true;
        }
        let Some(saved) = self.read::<Saved>("state.json").filter(|saved| saved.host == self.host) else {
            return (None, memory);
        };
        memory.notes = saved.notes;
        if saved.boot != self.boot {
            memory.machine_restarted();
        }
        (saved.spec, memory)
    }

    /// Writes the spec and the notes down, on the disk before it returns.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, spec: Option<&HostSpec>, notes: &BTreeMap<LeaseId, Note>) -> anyhow::Result<()> {
        let saved =
            Saved { host: self.host, boot: self.boot.clone(), spec: spec.cloned(), notes: notes.clone() };
        crash_point!("agent.state.before_save");
        self.write("state.json", &saved, Keep::Power)?;
        crash_point!("agent.state.after_save");
        Ok(())
    }

    /// Writes down when the control plane was last heard.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save_heard(&self, heard: Millis) -> anyhow::Result<()> {
        self.write("heard.json", &Heard { boot: self.boot.clone(), heard }, Keep::Process)
    }

    /// A number for this process, larger than that of every earlier one of this host: what those
    /// have said may still be on its way. Where the state was lost, the time makes it larger.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn next_session(&self) -> anyhow::Result<u64> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let ms = u64::try_from(since.as_millis()).unwrap_or_default();
        let before: u64 = self.read("session.json").unwrap_or_default();
        let session = ms.max(before.saturating_add(1));
        self.write("session.json", &session, Keep::Power)?;
        Ok(session)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let path = self.dir.join(name);
        let bytes = fs::read(&path).ok()?;
        match serde_json::from_slice(&bytes) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the saved state cannot be read; starting without it");
                None
            }
        }
    }

    fn write<T: Serialize>(&self, name: &str, value: &T, keep: Keep) -> anyhow::Result<()> {
        files::write_json(&self.dir.join(name), value, keep)
    }
}

/// Keeps other agents away from `data` for as long as it is held.
///
/// # Errors
/// When the directory cannot be written or another agent uses it.
pub fn lock(data: &Path) -> anyhow::Result<Flock<File>> {
    let dir = membership::dir(data);
    // The spec carries the variables of jobs, which may be secrets.
    files::ensure_dir(&dir)?;
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err(_) => bail!("another agent uses {}: stop it, or give this one its own --data", data.display()),
    }
}

/// When an earlier agent with this data directory last heard the control plane, on the boot
/// clock; `None` where there was none since the machine started.
#[must_use]
pub fn heard_of(data: &Path) -> Option<Millis> {
    let heard: Option<Heard> = files::read_json(&membership::dir(data).join("heard.json")).ok().flatten();
    let boot = clock::boot_id().ok()?;
    heard.filter(|heard| heard.boot == boot).map(|heard| heard.heard)
}

/// The host whose state is below `data`, where there is any.
#[must_use]
pub fn host_of(data: &Path) -> Option<HostId> {
    let saved: Option<Saved> = files::read_json(&membership::dir(data).join("state.json")).ok().flatten();
    saved.map(|saved| saved.host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: u128) -> HostId {
        format!("host_{n:032x}").parse().expect("an id")
    }

    #[test]
    fn what_was_saved_is_there_after_a_restart_and_only_for_the_same_host() {
        let data = tempfile::tempdir().expect("temporary directory");
        let lease: LeaseId = format!("lease_{:032x}", 1).parse().expect("an id");
        let state = StateDir::open(data.path(), host(1)).expect("open");
        let notes = BTreeMap::from([(lease, Note { started: true, ..Note::default() })]);
        state.save(None, &notes).expect("save");
        state.save_heard(Millis(5)).expect("save");
        drop(state);
        let (_, memory) = StateDir::open(data.path(), host(1)).expect("open").load();
        assert_eq!((memory.notes, memory.heard), (notes, Millis(5)));
        let (_, other) = StateDir::open(data.path(), host(2)).expect("open").load();
        assert!(other.notes.is_empty());
    }

    #[test]
    fn every_agent_process_has_a_larger_number_than_those_before() {
        let data = tempfile::tempdir().expect("temporary directory");
        let next = || StateDir::open(data.path(), host(1)).expect("open").next_session().expect("a number");
        let (first, second) = (next(), next());
        assert!(second > first, "{first} {second}");
        fs::write(data.path().join("agent/session.json"), (1_u64 << 60).to_string()).expect("write");
        assert_eq!(next(), (1 << 60) + 1, "also where the clock was set back");
    }

    #[test]
    fn what_was_heard_before_the_machine_restarted_does_not_count() {
        let data = tempfile::tempdir().expect("temporary directory");
        let mut state = StateDir::open(data.path(), host(1)).expect("open");
        state.save(None, &BTreeMap::new()).expect("save");
        state.save_heard(Millis(5)).expect("save");
        assert!(state.load().1.in_touch);
        state.boot = "another".into();
        let (_, memory) = state.load();
        assert!(!memory.in_touch && memory.restarted);
    }

    #[test]
    fn when_the_control_plane_was_heard_is_known_to_the_next_agent() {
        let data = tempfile::tempdir().expect("temporary directory");
        assert_eq!(heard_of(data.path()), None);
        StateDir::open(data.path(), host(1)).expect("open").save_heard(Millis(5)).expect("save");
        assert_eq!(heard_of(data.path()), Some(Millis(5)));
    }

    #[test]
    fn two_agents_do_not_share_a_data_directory() {
        let data = tempfile::tempdir().expect("temporary directory");
        let _first = StateDir::open(data.path(), host(1)).expect("open");
        assert!(StateDir::open(data.path(), host(1)).is_err());
    }

    #[test]
    fn a_state_cut_short_counts_as_none() {
        let data = tempfile::tempdir().expect("temporary directory");
        let state = StateDir::open(data.path(), host(1)).expect("open");
        fs::write(data.path().join("agent/state.json"), b"{\"host\":").expect("write");
        assert_eq!(state.load().0, None);
    }
}
