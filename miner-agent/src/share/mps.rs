//! The daemons of MPS: one for each device that is shared.
//!
//! A daemon outlives the agent, as the jobs do that it serves. What is wanted of it is written down
//! first, and its processes are known by the directory that their environment names, so that the next
//! agent goes on from any line at which this one was killed: it keeps the daemons of leases that are there,
//! and ends the others.
//!
//! A daemon that ends too soon is not replaced while leases are there that computed with it: they end for that, and
//! the next lease gets another one.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, File, Permissions},
    io,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, PoisonError},
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
use tokio::sync::{Mutex as Turn, MutexGuard as Mine};

use super::{CONTROL, MARK, MEMORY, Place, QUESTIONS, Record, Server, Stage, Terms, join};
use crate::{
    command,
    files::{self, Keep},
    runtime::docker::container::JOB_UID,
    upgrade,
};

/// Longest that a daemon may take until it answers, and that its processes may take to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest that leases may take to leave a device that the control plane has given to others already.
const LEAVING: Duration = Duration::from_secs(30);
/// How many times in a row a daemon that runs may not answer.
const SILENCES_MAX: u32 = 3;
/// What a daemon is asked to see whether it answers, and for its servers.
const LIST: &str = "get_server_list\n";
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
    /// Whom jobs run as, as this machine counts users.
    pub user: u32,
    /// Longest silence of a prover that watches what leases hold.
    pub silence_max: Duration,
}

impl Default for Means {
    fn default() -> Self {
        let launcher = upgrade::installed().unwrap_or_default();
        let prover = launcher.with_file_name("nave-prover");
        Self {
            control: CONTROL.into(),
            launcher,
            prover,
            wanted: false,
            user: JOB_UID,
            silence_max: Duration::from_secs(20),
        }
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
    records: Turn<BTreeMap<String, Record>>,
    /// The records as they were last written down, for who cannot wait for a daemon.
    written: Mutex<BTreeMap<String, Record>>,
}

impl Daemons {
    /// The daemons that are kept below `data`, as an earlier agent has left them.
    #[must_use]
    pub fn open(data: &Path, means: Means) -> Self {
        let dir = data.join("mps");
        let records: BTreeMap<_, _> =
            files::read_json(&dir.join("shares.json")).ok().flatten().unwrap_or_default();
        Self { dir, means, written: Mutex::new(records.clone()), records: Turn::new(records) }
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

    /// The leases whose daemon ended before they did.
    #[must_use]
    pub fn lost(&self) -> BTreeSet<LeaseId> {
        let is_lost = |record: &&Record| match record.stage {
            Stage::Beginning => false,
            Stage::Serving(server) => !server.is_there(),
            Stage::Lost => true,
        };
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.values().filter(is_lost).flat_map(|record| record.leases.iter().copied()).collect()
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
        let is_lost = records.get(&terms.device).is_none_or(|record| record.stage == Stage::Lost);
        ensure!(!is_lost, "the daemon that shares {} has ended", terms.device);
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
    ) -> anyhow::Result<Mine<'_, BTreeMap<String, Record>>> {
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

    /// Has every daemon run that somebody needs, or its leases be known for lost, and ends the others.
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
        files::write_json(&self.dir.join("shares.json"), records, Keep::Process)?;
        self.written.lock().unwrap_or_else(PoisonError::into_inner).clone_from(records);
        Ok(())
    }

    fn place(&self, terms: &Terms) -> Place {
        Place(self.dir.join(terms.name()))
    }

    /// Has the daemon of a device serve within its limits, or its leases be known for lost.
    async fn keep(&self, records: &mut BTreeMap<String, Record>, device: &str) -> anyhow::Result<()> {
        let Some(record) = records.get_mut(device).filter(|record| !record.leases.is_empty()) else {
            return Ok(());
        };
        let (terms, stage) = (record.terms.clone(), record.stage);
        record.stage = match stage {
            Stage::Beginning => {
                let begun = self.begin(&terms).await.with_context(|| format!("share {device}"))?;
                Stage::Serving(begun)
            }
            Stage::Serving(server) if self.goes_on(record, server).await? => return Ok(()),
            Stage::Serving(_) => {
                tracing::warn!(
                    device,
                    "the daemon that shares a device is gone, and with it what its leases compute"
                );
                Stage::Lost
            }
            Stage::Lost => Stage::Lost,
        };
        let is_lost = record.stage == Stage::Lost;
        // Before what is left of it is killed: how leases end by that is not their doing.
        self.save(records)?;
        if is_lost { kill_all(&self.place(&terms)).await } else { Ok(()) }
    }

    /// Whether a daemon serves. Its end costs its jobs what they compute, so that one that runs and
    /// does not answer has time to.
    async fn goes_on(&self, record: &mut Record, server: Server) -> anyhow::Result<bool> {
        if !server.is_there() {
            return Ok(false);
        }
        let Err(error) = self.say(&record.terms, LIST).await else {
            record.silences = 0;
            return Ok(true);
        };
        record.silences += 1;
        if record.silences < SILENCES_MAX {
            return Err(error).with_context(|| format!("ask the daemon of {}", record.terms.device));
        }
        Ok(false)
    }

    /// Starts a daemon where there may be the rest of another, tells it its limits and has it start its server.
    async fn begin(&self, terms: &Terms) -> anyhow::Result<Server> {
        let place = self.place(terms);
        place.check().map_err(anyhow::Error::msg)?;
        kill_all(&place).await?;
        prepare(&place)?;
        // No process computes there but through the daemon.
        self.set_mode(&terms.device, "exclusive").await?;
        self.launch(terms, &place)?;
        let served = self.serve(terms).await;
        if served.is_err() {
            kill_all(&place).await?;
        }
        served
    }

    /// Has a daemon that has just begun serve.
    async fn serve(&self, terms: &Terms) -> anyhow::Result<Server> {
        let (end, mut is_told) = (Instant::now() + PATIENCE, false);
        loop {
            match self.try_serve(terms, &mut is_told).await {
                Err(error) if Instant::now() >= end => return Err(error),
                Err(_) => tokio::time::sleep(PAUSE).await,
                Ok(server) => return Ok(server),
            }
        }
    }

    /// A server has the limits that were told before it started.
    async fn try_serve(&self, terms: &Terms, is_told: &mut bool) -> anyhow::Result<Server> {
        if !*is_told {
            self.tell_limits(terms).await.context("tell the daemon its limits")?;
            let start = format!("start_server -uid {}\n", self.means.user);
            self.say(terms, &start).await.context("have the daemon start its server")?;
            *is_told = true;
        }
        self.find_server(terms).await.context("find the server of the daemon")
    }

    /// The one server that a daemon names.
    async fn find_server(&self, terms: &Terms) -> anyhow::Result<Server> {
        let said = self.say(terms, LIST).await?;
        let pid = said.split_whitespace().next().context("it has no server")?;
        let pid = pid.parse().with_context(|| format!("read the server's number in {said:?}"))?;
        Server::find(pid).context("its server has ended")
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

/// Makes the directories of a daemon, and its memory, in place of what an earlier one may have left.
fn prepare(place: &Place) -> anyhow::Result<()> {
    let memory = place.memory();
    files::ensure_dir(&memory)?;
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
