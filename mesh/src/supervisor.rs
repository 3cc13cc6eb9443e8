//! Keeps the process of a userspace device running.

use std::{
    ffi::OsString,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    Error, Name,
    device::{Device, socket},
    tunnel::READY,
};

/// How long a caller waits for a device to come up, and how many failures.
const UP_TIME_MAX: Duration = Duration::from_secs(20);
const FAILURES_MAX: u32 = 4;
/// How long a process that served the name before may take to end.
const HANDOVER_MAX: Duration = Duration::from_secs(5);
/// Between tries: this at first, twice as long each time, never longer than that.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The program that serves a userspace device when it is given the interface's name
/// and, after that, the name of its namespace if it has one. It calls [`crate::tunnel::run`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
}

impl Program {
    /// The running program itself, even if its file was replaced meanwhile, with its
    /// hidden subcommand `tunnel`.
    #[must_use]
    pub fn this() -> Self {
        Self::new("/proc/self/exe", ["tunnel"])
    }

    /// Another program, with what comes before the interface's name.
    pub fn new(path: impl Into<PathBuf>, args: impl IntoIterator<Item: Into<OsString>>) -> Self {
        Self { path: path.into(), args: args.into_iter().map(Into::into).collect() }
    }

    fn start(&self, device: &Device) -> Result<Child, Error> {
        let mut command = Command::new(&self.path);
        command.args(&self.args).arg(device.name.as_str());
        if let Some(namespace) = &device.namespace {
            command.arg(namespace.name());
        }
        // In a process group of its own: what a terminal sends to its foreground ends
        // the program that needs the tunnel first.
        command.arg0("nave-tunnel").process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().map_err(Error::io(format!("start the tunnel of {}", device.name)))
    }
}

/// A running supervisor; dropped, it ends the process and with it the interface.
pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    child: Option<Child>,
    stopping: bool,
    /// How often the device has come up.
    starts: u64,
    /// What went wrong since then, and how often.
    problem: Option<String>,
    failures: u32,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Supervisor {
    /// Starts the process and waits until the device is as wished.
    ///
    /// The process dies with the thread that starts it, so that thread is the
    /// supervisor's own.
    pub fn start(device: Arc<Device>, program: Program) -> Result<Self, Error> {
        await_handover(&device.name)?;
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let inner = Arc::clone(&shared);
        let name = device.name.to_string();
        let thread = thread::Builder::new()
            .name(format!("tunnel {name}"))
            .spawn(move || supervise(&inner, &device, &program))
            .map_err(Error::io(format!("start the supervisor of {name}")))?;
        let supervisor = Self { shared, thread: Some(thread) };
        let state = supervisor.shared.lock();
        supervisor.await_start(state, &name)?;
        Ok(supervisor)
    }

    /// Ends the process and waits until the next one has brought the device up.
    pub fn replace(&self, name: &str) -> Result<(), Error> {
        let mut state = self.shared.lock();
        kill(&mut state);
        self.await_start(state, name)
    }

    /// Waits until the device has come up once more.
    fn await_start(&self, state: MutexGuard<'_, State>, name: &str) -> Result<(), Error> {
        let before = state.starts;
        let waiting = |state: &mut State| state.starts == before && state.failures < FAILURES_MAX;
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, UP_TIME_MAX, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        if state.starts != before {
            return Ok(());
        }
        let reason = state.problem.clone().unwrap_or_else(|| "it does not answer".to_owned());
        Err(Error::Tunnel { name: name.to_owned(), reason })
    }

    /// Ends the process; the next one starts from the wish.
    pub fn restart(&self) {
        kill(&mut self.shared.lock());
    }

    /// How often the device has come up.
    pub fn starts(&self) -> u64 {
        self.shared.lock().starts
    }

    /// The process that serves the device now.
    pub fn process(&self) -> Option<u32> {
        self.shared.lock().child.as_ref().map(Child::id)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        kill(&mut state);
        drop(state);
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Safe for as long as the child is in there: only then it is not reaped yet.
fn kill(state: &mut State) {
    if let Some(child) = &mut state.child {
        let _ = child.kill();
    }
}

/// Waits for whoever serves the name to end.
fn await_handover(name: &Name) -> Result<(), Error> {
    let since = Instant::now();
    while UnixStream::connect(socket(name)).is_ok() {
        if since.elapsed() > HANDOVER_MAX {
            return Err(Error::NameTaken(name.to_string()));
        }
        thread::sleep(PAUSE_MIN);
    }
    Ok(())
}

fn supervise(shared: &Shared, device: &Device, program: &Program) {
    let mut pause = PAUSE_MIN;
    loop {
        match serve(shared, device, program) {
            Ok(()) => pause = PAUSE_MIN,
            Err(error) => {
                tracing::warn!(interface = %device.name, %error, "the tunnel does not come up");
                let mut state = shared.lock();
                state.problem = Some(chain(&error));
                state.failures += 1;
                drop(state);
                shared.changed.notify_all();
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
        let state = shared.lock();
        let (state, _) = shared
            .changed
            .wait_timeout_while(state, pause, |state| !state.stopping)
            .unwrap_or_else(PoisonError::into_inner);
        if state.stopping {
            break;
        }
        tracing::warn!(interface = %device.name, "the tunnel ended; it is started again");
    }
    let _ = std::fs::remove_file(socket(&device.name));
}

/// One process from its start to its end.
fn serve(shared: &Shared, device: &Device, program: &Program) -> Result<(), Error> {
    let Some(stdout) = start(shared, device, program)? else { return Ok(()) };
    let outcome = bring_up(shared, device, stdout);
    device.wish().ready = false;
    let child = {
        let mut state = shared.lock();
        kill(&mut state);
        state.child.as_mut().map(Child::wait)
    };
    shared.lock().child = None;
    tracing::debug!(interface = %device.name, status = ?child, "the tunnel's process ended");
    outcome
}

/// Starts the process, unless there is nothing more to start.
fn start(shared: &Shared, device: &Device, program: &Program) -> Result<Option<ChildStdout>, Error> {
    let mut state = shared.lock();
    if state.stopping {
        return Ok(None);
    }
    let child = state.child.insert(program.start(device)?);
    Ok(child.stdout.take())
}

/// Configures the device when it is there, and returns when its process has ended.
fn bring_up(shared: &Shared, device: &Device, stdout: ChildStdout) -> Result<(), Error> {
    let mut stdout = BufReader::new(stdout);
    let mut line = String::new();
    while line.trim_end() != READY {
        line.clear();
        let length = stdout.read_line(&mut line).map_err(Error::io("listen to the tunnel"))?;
        if length == 0 {
            let reason = "its process ended early".to_owned();
            return Err(Error::Tunnel { name: device.name.to_string(), reason });
        }
    }
    device.configure()?;
    let mut state = shared.lock();
    state.starts += 1;
    state.failures = 0;
    drop(state);
    shared.changed.notify_all();
    // Nothing more is said; the end of the stream is the end of the process.
    let _ = stdout.read_to_end(&mut Vec::new());
    Ok(())
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
