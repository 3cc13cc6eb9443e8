//! Parts: child processes that are kept running until the market stops.
//!
//! A part outlives a supervisor that is killed. A file says who it is, so that the next
//! supervisor ends it before it starts its own. The file is there before the part is: it
//! holds a mark first, which the part carries in its environment, then its process.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nave_crash_point::crash_point;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use uuid::Uuid;

use super::layout::write_whole;

/// The variable that marks a part and what it starts.
const MARK: &str = "NAVE_PART";

/// Longest wait before a part that ended is started again.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A part that ran this long has started well.
const SETTLED: Duration = Duration::from_secs(10);

/// Makes the command of a part, and whatever it needs before each start.
pub type Make = Box<dyn Fn() -> anyhow::Result<Command> + Send + Sync>;

/// What a part needs to be kept running.
pub struct Part {
    pub name: String,
    pub make: Make,
    /// How long it may take to stop by itself.
    pub patience: Duration,
}

/// A part that is kept running.
pub struct Kept {
    name: String,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Part {
    /// Keeps it running until [`Kept::stop`].
    pub fn keep(self, log: PathBuf, pids: PathBuf) -> Kept {
        let (stop, stopped) = watch::channel(false);
        let name = self.name.clone();
        let task = tokio::spawn(async move { self.run(&log, &pids, stopped).await });
        Kept { name, stop, task }
    }

    async fn run(&self, log: &Path, pids: &Path, mut stopped: watch::Receiver<bool>) {
        let mut pause = Duration::from_millis(100);
        while !*stopped.borrow() {
            let began = Instant::now();
            match self.once(log, pids, &mut stopped).await {
                Ok(_) if *stopped.borrow() => return,
                Ok(ended) => tracing::warn!(part = %self.name, ended, "a part has ended; starting it again"),
                Err(error) => {
                    tracing::warn!(part = %self.name, error = format!("{error:#}"), "a part did not start")
                }
            }
            pause = if began.elapsed() > SETTLED {
                Duration::from_millis(100)
            } else {
                (pause * 2).min(PAUSE_MAX)
            };
            if !*stopped.borrow() {
                drop(timeout(pause, stopped.changed()).await);
            }
        }
    }

    async fn once(
        &self,
        log: &Path,
        pids: &Path,
        stopped: &mut watch::Receiver<bool>,
    ) -> anyhow::Result<String> {
        let mut command = (self.make)()?;
        let file =
            fs::OpenOptions::new().create(true).append(true).open(log.join(format!("{}.log", self.name)))?;
        // A group of its own: Ctrl-C at the terminal reaches the supervisor alone.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mark = Uuid::now_v7().simple().to_string();
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).env(MARK, &mark);
        let record = pids.join(&self.name);
        write_whole(&record, mark.as_bytes())?;
        let mut child = tokio::process::Command::from(command).spawn().context("start it")?;
        crash_point!("up.part.after_spawn");
        let pid = child.id().context("it has ended at once")?;
        write_whole(
            &record,
            Process::of(pid).map(|process| process.to_string()).unwrap_or_default().as_bytes(),
        )?;
        let ended = tokio::select! {
            status = child.wait() => status?.to_string(),
            _ = stopped.changed() => {
                signal(pid, stop_signal(&self.name));
                if timeout(self.patience, child.wait()).await.is_err() {
                    child.kill().await?;
                }
                "stopped".to_owned()
            }
        };
        fs::remove_file(&record)?;
        Ok(ended)
    }
}

impl Kept {
    /// Ends the part and waits until it has.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::warn!(part = %self.name, %error, "a part did not end well");
        }
    }
}

/// What asks a part to stop: on SIGTERM Postgres waits for its clients to leave, on SIGINT
/// it sends them away.
fn stop_signal(name: &str) -> Signal {
    if name == "postgres" { Signal::SIGINT } else { Signal::SIGTERM }
}

fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // The process may just have ended; then there is nothing to signal.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// A process, told from a later one with the same number by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    started: u64,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.pid, self.started)
    }
}

impl Process {
    /// The running process with this number, unless it has ended and only waits to be reaped.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may contain anything, so fields count from its end.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let (state, started) = (*fields.first()?, fields.get(19)?.parse().ok()?);
        (state != "Z").then_some(Self { pid, started })
    }

    /// Reads what [`Part`] or [`Self::to_string`] wrote, if that process still runs.
    pub fn recorded(text: &str) -> Option<Self> {
        let (pid, started) = text.trim().split_once(' ')?;
        let process = Self::of(pid.parse().ok()?)?;
        (process.started == started.parse::<u64>().ok()?).then_some(process)
    }

    /// The first process that was started with a mark in its environment.
    fn marked(mark: &str) -> Option<Self> {
        let line = format!("{MARK}={mark}");
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let carries = |pid: &u32| {
            let variables = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            variables.split(|byte| *byte == 0).any(|variable| variable == line.as_bytes())
        };
        pids.filter(carries).filter_map(Self::of).min_by_key(|process| (process.started, process.pid))
    }

    /// Ends it, with force after `patience`; `name` is the part it runs.
    pub async fn end(self, name: &str, patience: Duration) {
        signal(self.pid, stop_signal(name));
        let gone = async {
            while Self::of(self.pid) == Some(self) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(patience, gone).await.is_err() {
            signal(self.pid, Signal::SIGKILL);
        }
    }
}

/// Ends what a killed supervisor left running, agents first.
pub async fn end_leftovers(pids: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(pids).with_context(|| format!("read {}", pids.display()))?;
    let mut records = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
    // In the order of their names that is before what they use: dockerd, gateway, hub, postgres.
    records.sort();
    for path in records {
        if let Some(process) = left_running(&fs::read_to_string(&path)?).await {
            tracing::info!(part = %path.display(), "ending a part that an earlier supervisor left running");
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            process.end(&name, Duration::from_secs(15)).await;
        }
        fs::remove_file(&path)?;
    }
    Ok(())
}

/// The process that a record is about, if it runs.
async fn left_running(record: &str) -> Option<Process> {
    if record.contains(' ') || record.is_empty() {
        return Process::recorded(record);
    }
    if let Some(process) = Process::marked(record) {
        return Some(process);
    }
    // Its supervisor was killed at most a moment ago: it may be about to become what it is.
    tokio::time::sleep(Duration::from_millis(100)).await;
    Process::marked(record)
}
