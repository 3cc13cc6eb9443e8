//! The daemons of MPS: one for each device that is shared.
//!
//! A daemon outlives the agent, as the jobs do that it serves. What is wanted of it is written down
//! first, and its processes are known by the directory that their environment names, so that the next
//! agent goes on from any line at which this one was killed: it keeps the daemons of leases that are there,
//! and ends the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, File, Permissions},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nave_domain::{Bytes, LeaseId};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::sync::{Mutex, MutexGuard};

use super::{CONTROL, MARK, MEMORY, Place, QUESTIONS, Record, Terms, join};
use crate::{
    command,
    files::{self, Keep},
    upgrade,
};

/// Longest that a daemon may take until it answers, and that its processes may take to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest that leases may take to leave a device that the control plane has given to others already.
const LEAVING: Duration = Duration::from_secs(30);
/// How many times in a row a daemon that runs may not answer.
const SILENCES_MAX: u32 = 3;
/// Time between two looks at whether it does.
const PAUSE: Duration = Duration::from_millis(50);
/// Memory that daemons and those whom they serve may share; what is in it counts against the jobs that wrote it.
const MEMORY_MAX: i64 = Bytes::GIB;

/// What daemons are made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Means {
    /// The program that is the daemon, and that speaks to it.
    pub control: PathBuf,
    /// The agent's own program, which puts a daemon where it belongs.
    pub launcher: PathBuf,
    /// The program that speaks to the GPU driver.
    pub prover: PathBuf,
    /// Whether the owner wants devices to be shared.
    pub wanted: bool,
}

impl Default for Means {
    fn default() -> Self {
        let launcher = upgrade::installed().unwrap_or_default();
        let prover = launcher.with_file_name("nave-prover");
        Self { control: CONTROL.into(), launcher, prover, wanted: false }
    }
}

impl Means {
    /// Whether the owner wants devices to be shared, and they can be.
    #[must_use]
    pub fn are_offered(&self) -> bool {
        self.wanted && self.is_here()
    }

    /// Whether the program that controls MPS is here.
    #[must_use]
    pub fn is_here(&self) -> bool {
        // A path that is absolute replaces the directory.
        std::env::split_paths(command::PATH).any(|dir| dir.join(&self.control).is_file())
    }
}

/// The daemons of this host.
#[derive(Debug)]
pub struct Daemons {
    dir: PathBuf,
    means: Means,
    records: Mutex<BTreeMap<String, Record>>,
}

impl Daemons {
    /// The daemons that are kept below `data`, as an earlier agent has left them.
    #[must_use]
    pub fn open(data: &Path, means: Means) -> Self {
        let dir = data.join("mps");
        let records = files::read_json(&dir.join("shares.json")).ok().flatten().unwrap_or_default();
        Self { dir, means, records: Mutex::new(records) }
    }

    /// What they are made with.
    #[must_use]
    pub fn means(&self) -> &Means {
        &self.means
    }

    /// Who shares which device.
    pub async fn records(&self) -> Vec<Record> {
        self.records.lock().await.values().cloned().collect()
    }

    /// Gives a lease a share of a device, whose daemon serves with these limits once this returns. Where others
    /// had the device until now, this waits until they have left. May be cut off at any point; [`Self::leave`] clears up.
    ///
    /// # Errors
    /// When the device is shared on other terms, or its daemon does not come up.
    pub async fn join(&self, lease: LeaseId, terms: &Terms) -> anyhow::Result<Place> {
        let device = std::slice::from_ref(&terms.device);
        let mut records = self.once(device, |records| join(records, lease, terms)).await?;
        self.save(&records)?;
        self.keep(&mut records, &terms.device).await?;
        Ok(self.place(terms))
    }

    /// Waits until nobody shares these devices any more: another lease has them whole.
    ///
    /// # Errors
    /// When somebody still does after a while.
    pub async fn vacate(&self, devices: &[String]) -> anyhow::Result<()> {
        if devices.is_empty() {
            return Ok(());
        }
        let is_free = |records: &mut BTreeMap<String, Record>| match devices
            .iter()
            .find(|device| records.contains_key(*device))
        {
            Some(device) => Err(format!("{device} is shared")),
            None => Ok(()),
        };
        self.once(devices, is_free).await.map(drop)
    }

    /// Does something about the records of these devices, as soon as it can be done.
    async fn once<T>(
        &self,
        devices: &[String],
        mut attempt: impl FnMut(&mut BTreeMap<String, Record>) -> Result<T, String>,
    ) -> anyhow::Result<MutexGuard<'_, BTreeMap<String, Record>>> {
        let end = Instant::now() + LEAVING;
        loop {
            let mut records = self.records.lock().await;
            self.end_unused(&mut records, devices).await?;
            match attempt(&mut records) {
                Ok(_) => return Ok(records),
                Err(why) if Instant::now() >= end => bail!(why),
                Err(_) => drop(records),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Takes a lease's share back; the last one ends the daemon.
    ///
    /// # Errors
    /// When the daemon does not end; [`Self::tend`] tries again.
    pub async fn leave(&self, lease: LeaseId) -> anyhow::Result<()> {
        let mut records = self.records.lock().await;
        let left = retain(&mut records, |other| *other != lease);
        if left.is_empty() {
            return Ok(());
        }
        self.save(&records)?;
        self.end_unused(&mut records, &left).await
    }

    /// Takes back the shares of all leases but these, and ends what nobody knows of.
    ///
    /// # Errors
    /// As [`Self::leave`].
    pub async fn settle(&self, known: &BTreeSet<LeaseId>) -> anyhow::Result<()> {
        let mut records = self.records.lock().await;
        retain(&mut records, |lease| known.contains(lease));
        self.save(&records)?;
        let devices: Vec<String> = records.keys().cloned().collect();
        let ended = self.end_unused(&mut records, &devices).await;
        let names: BTreeSet<String> = records.values().map(|record| record.terms.name()).collect();
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let is_known = entry.file_name().to_str().is_some_and(|name| names.contains(name));
            if entry.path().is_dir() && !is_known {
                remove(&Place(entry.path())).await?;
            }
        }
        ended
    }

    /// Has every daemon run that somebody needs, and ends the others.
    ///
    /// # Errors
    /// Everything that did not work; the same again tries again.
    pub async fn tend(&self) -> anyhow::Result<()> {
        let mut records = self.records.lock().await;
        let devices: Vec<String> = records.keys().cloned().collect();
        let mut failed = Vec::from_iter(self.end_unused(&mut records, &devices).await.err());
        for device in devices {
            failed.extend(self.keep(&mut records, &device).await.err());
        }
        all_done(&failed)
    }

    /// Processes of all daemons.
    pub async fn processes(&self) -> BTreeSet<u32> {
        let records = self.records.lock().await;
        let places = records.values().map(|record| self.place(&record.terms));
        places.flat_map(|place| processes(&place)).map(|pid| pid.as_raw().unsigned_abs()).collect()
    }

    /// Ends the sharing of those of these devices that nobody shares any more. One that does not end is in no other's way.
    async fn end_unused(
        &self,
        records: &mut BTreeMap<String, Record>,
        devices: &[String],
    ) -> anyhow::Result<()> {
        let is_unused = |record: &&Record| record.leases.is_empty() && devices.contains(&record.terms.device);
        let unused: Vec<Terms> =
            records.values().filter(is_unused).map(|record| record.terms.clone()).collect();
        let mut failed = Vec::new();
        for terms in unused {
            let ended =
                self.end(&terms).await.with_context(|| format!("end the sharing of {}", terms.device));
            match ended {
                Ok(()) => {
                    records.remove(&terms.device);
                    self.save(records)?;
                }
                Err(error) => failed.push(error),
            }
        }
        all_done(&failed)
    }

    fn save(&self, records: &BTreeMap<String, Record>) -> anyhow::Result<()> {
        if records.is_empty() && !self.dir.exists() {
            return Ok(());
        }
        files::ensure_dir(&self.dir)?;
        files::write_json(&self.dir.join("shares.json"), records, Keep::Process)
    }

    fn place(&self, terms: &Terms) -> Place {
        Place(self.dir.join(terms.name()))
    }

    /// Has the daemon of a device run and know its limits.
    async fn keep(&self, records: &mut BTreeMap<String, Record>, device: &str) -> anyhow::Result<()> {
        let Some(record) = records.get_mut(device).filter(|record| !record.leases.is_empty()) else {
            return Ok(());
        };
        if record.ready && self.goes_on(record).await? {
            return Ok(());
        }
        if std::mem::take(&mut record.ready) {
            tracing::warn!(device, "the daemon that shares a device is gone; starting another");
        }
        let terms = record.terms.clone();
        // An agent that finds the next daemon must not take it for one that has its limits.
        self.save(records)?;
        self.begin(&terms).await.with_context(|| format!("share {device}"))?;
        if let Some(record) = records.get_mut(device) {
            record.ready = true;
        }
        self.save(records)
    }

    /// Whether a daemon serves. Another one costs its jobs what they compute, so that one that runs and
    /// does not answer has time to.
    async fn goes_on(&self, record: &mut Record) -> anyhow::Result<bool> {
        if processes(&self.place(&record.terms)).is_empty() {
            record.silences = 0;
            return Ok(false);
        }
        let Err(error) = self.say(&record.terms, "get_server_list\n").await else {
            record.silences = 0;
            return Ok(true);
        };
        record.silences += 1;
        if record.silences < SILENCES_MAX {
            return Err(error).with_context(|| format!("ask the daemon of {}", record.terms.device));
        }
        record.silences = 0;
        Ok(false)
    }

    /// Starts a daemon where there may be the rest of another, and tells it its limits.
    async fn begin(&self, terms: &Terms) -> anyhow::Result<()> {
        let place = self.place(terms);
        place.check().map_err(anyhow::Error::msg)?;
        kill_all(&place).await?;
        prepare(&place)?;
        // No process computes there but through the daemon.
        self.set_mode(&terms.device, "exclusive").await?;
        self.launch(terms, &place)?;
        let end = Instant::now() + PATIENCE;
        while let Err(error) = self.tell_limits(terms).await {
            if Instant::now() >= end {
                kill_all(&place).await?;
                return Err(error).context("tell the daemon its limits");
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    fn launch(&self, terms: &Terms, place: &Place) -> anyhow::Result<()> {
        let path = place.0.join("daemon.log");
        let log = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        let again = log.try_clone().context("use the daemon's log twice")?;
        let mut command = tokio::process::Command::new(&self.means.launcher);
        command.arg("mps").arg(place.memory()).arg(&self.means.control);
        command
            .env_clear()
            .env("PATH", command::PATH)
            .env("LC_ALL", "C")
            .envs(place.variables(&terms.device));
        command.stdin(Stdio::null()).stdout(log).stderr(again);
        // What ends the agent from its terminal does not end what its jobs need.
        command.process_group(0).kill_on_drop(false);
        // Whoever does not wait for it has it reaped all the same.
        drop(command.spawn().with_context(|| format!("run {}", self.means.launcher.display()))?);
        Ok(())
    }

    /// Tells a daemon its limits, and has it say them back: what it does not take, it may not tell.
    async fn tell_limits(&self, terms: &Terms) -> anyhow::Result<()> {
        self.say(terms, &terms.commands()).await?;
        let said = self.say(terms, QUESTIONS).await?;
        ensure!(terms.are_limits(&said), "its limits are other ones: {said:?}");
        Ok(())
    }

    /// Speaks to a daemon, and answers what it says.
    async fn say(&self, terms: &Terms, what: &str) -> anyhow::Result<String> {
        let control = self.means.control.to_str().context("the path of the control of MPS is not UTF-8")?;
        let variables = self.place(terms).outside();
        let no_arguments: [&str; 0] = [];
        let said = command::run_in(control, &no_arguments, what.as_bytes(), &variables).await?;
        String::from_utf8(said).context("read what a daemon says")
    }

    async fn set_mode(&self, device: &str, mode: &str) -> anyhow::Result<()> {
        let prover = self.means.prover.to_str().context("the prover's path is not UTF-8")?;
        command::run(prover, &["mode", device, mode]).await.context("set the compute mode")?;
        Ok(())
    }

    /// Ends a daemon and everything of it. Nobody uses it any more.
    async fn end(&self, terms: &Terms) -> anyhow::Result<()> {
        let place = self.place(terms);
        if !processes(&place).is_empty() {
            if let Err(error) = self.say(terms, "quit\n").await {
                tracing::info!(error = format!("{error:#}"), "a daemon does not heed; killing it");
            }
            let _ = are_gone(&place, PATIENCE / 2).await;
        }
        kill_all(&place).await?;
        self.set_mode(&terms.device, "default").await?;
        remove(&place).await
    }
}

/// Takes back the shares of all leases but those that stay. Answers which devices somebody has left.
fn retain(records: &mut BTreeMap<String, Record>, stays: impl Fn(&LeaseId) -> bool) -> Vec<String> {
    let left = |record: &mut Record| {
        let before = record.leases.len();
        record.leases.retain(&stays);
        (record.leases.len() < before).then(|| record.terms.device.clone())
    };
    records.values_mut().filter_map(left).collect()
}

/// One error of all of them.
fn all_done(failed: &[anyhow::Error]) -> anyhow::Result<()> {
    let said: Vec<String> = failed.iter().map(|error| format!("{error:#}")).collect();
    ensure!(said.is_empty(), said.join("; "));
    Ok(())
}

/// Makes the directories of a daemon, and its memory.
fn prepare(place: &Place) -> anyhow::Result<()> {
    let memory = place.memory();
    files::ensure_dir(&memory)?;
    if is_whole(place)? {
        // Jobs that run have this file system; in another one they would not find the next daemon.
        return empty(&place.pipes());
    }
    unmount(&memory)?;
    let options = format!("size={MEMORY_MAX},mode=1777");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), &memory, Some("tmpfs"), flags, Some(options.as_str()))
        .with_context(|| format!("mount memory at {}", memory.display()))?;
    // Servers, which run as the jobs' user, write into the one, and jobs may go through the other.
    for (dir, mode) in [(place.log(), 0o1777), (place.pipes(), 0o755)] {
        let made =
            fs::create_dir(&dir).and_then(|()| fs::set_permissions(&dir, Permissions::from_mode(mode)));
        made.with_context(|| format!("create {}", dir.display()))?;
    }
    Ok(())
}

/// Whether the memory of a daemon is there as an earlier one had it. The pipes are made last.
fn is_whole(place: &Place) -> anyhow::Result<bool> {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    let of_both = device(&place.0).and_then(|outer| Ok(outer != device(&place.memory())?));
    let is_mounted = of_both.with_context(|| format!("look at {}", place.0.display()))?;
    Ok(is_mounted && place.pipes().is_dir())
}

fn empty(dir: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        gone.with_context(|| format!("delete {}", path.display()))?;
    }
    Ok(())
}

/// Removes the directory of a daemon, whose processes are killed.
async fn remove(place: &Place) -> anyhow::Result<()> {
    kill_all(place).await?;
    unmount(&place.memory())?;
    match fs::remove_dir_all(&place.0) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("delete {}", place.0.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn unmount(point: &Path) -> anyhow::Result<()> {
    loop {
        match umount2(point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("unmount {}", point.display())),
        }
    }
}

/// The processes whose environment names this place: a daemon and its servers. A job may say there what it likes, but
/// its processes have numbers of their own.
fn processes(place: &Place) -> Vec<Pid> {
    let wanted = [MARK.as_bytes(), b"=", place.0.as_os_str().as_bytes()].concat();
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace("self");
    let names = fs::read_dir("/proc").into_iter().flatten().flatten();
    let found = names.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let pid: i32 = name.parse().ok()?;
        let environment = fs::read(entry.path().join("environ")).ok()?;
        let names_it = environment.split(|byte| *byte == 0).any(|variable| variable == wanted);
        (names_it && namespace(&name) == own).then_some(Pid::from_raw(pid))
    });
    found.collect()
}

async fn are_gone(place: &Place, within: Duration) -> bool {
    let end = Instant::now() + within;
    while !processes(place).is_empty() {
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(PAUSE).await;
    }
    true
}

async fn kill_all(place: &Place) -> anyhow::Result<()> {
    for pid in processes(place) {
        match kill(pid, Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("kill process {pid}")),
        }
    }
    ensure!(are_gone(place, PATIENCE).await, "processes of MPS do not end");
    Ok(())
}

/// Becomes a daemon whose shared memory is in `memory`, where those find it whom it serves: everybody else's is
/// another. Returns only when that fails.
///
/// # Errors
/// Why it did.
pub fn become_daemon(memory: &Path, control: &OsStr) -> anyhow::Result<()> {
    let no_path: Option<&Path> = None;
    unshare(CloneFlags::CLONE_NEWNS).context("leave the machine's mounts")?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(no_path, "/", no_path, flags, no_path).context("keep mounts to this process")?;
    let bound = mount(Some(memory), MEMORY, no_path, MsFlags::MS_BIND, no_path);
    bound.context("mount the memory over /dev/shm")?;
    let failed = std::process::Command::new(control).arg("-f").exec();
    bail!(anyhow::Error::new(failed).context(format!("run {}", Path::new(control).display())))
}
