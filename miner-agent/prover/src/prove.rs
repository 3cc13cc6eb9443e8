//! Does the work of one challenge.
//!
//! On its input it gets the challenge as a line of JSON, and the whole challenge again
//! each time it has grown by a reveal, as the host's spec carries it. For each line that
//! shows a new step it prints one line: the [`nave_proof::ProofReport`] for that step. Lines that
//! show nothing new are ignored, so the agent may pass on every spec. Where the work
//! fails, the message says so and the program ends.
//!
//! It ends with status 0 after the opening, and also when its input ends: then nobody
//! waits for an answer any more. Its errors are for people.
//!
//! Proofs use all cores and nearly all memory for seconds. So the kernel is told to end
//! this process first when memory runs out, and to end it with the thread that started it;
//! the agent therefore starts it from a thread that lives on.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{ExitCode, exit},
    sync::mpsc,
    thread,
};

use nave_domain::Bytes;
use nave_proof::{
    Answer, Challenge, EXPLANATION_MAX, Failure, Message, Opening, Prover, Reason, Resources, Task, covered,
};
use nix::sys::{prctl::set_pdeathsig, signal::Signal};
use serde_json::{Value, json};

use crate::{devices, disk, replay::Replay, simulated::Simulated, slice};

/// Longest line of input, in bytes.
const LINE_MAX: u64 = 256 << 10;
/// Memory that stays free beside a fill.
const SPARE: i64 = 64 << 20;

/// Proves what the challenge on standard input asks for, with the simulated devices of a file, too.
pub fn run(simulated: Option<&Path>, disk: Option<&Path>) -> ExitCode {
    step_back();
    let (simulated, disk) = (simulated.map(Path::to_owned), disk.map(Path::to_owned));
    let mut host = Host { simulated, disk, prover: None, replay: None };
    let mut answered = None;
    for challenge in listen() {
        if answered.is_some_and(|step| challenge.step() <= step) {
            continue;
        }
        let message = host.answer(&challenge);
        let is_last = message.get("commitment").is_none();
        if let Err(error) = print(&challenge, message) {
            eprintln!("write an answer: {error}");
            return ExitCode::FAILURE;
        }
        if is_last {
            return ExitCode::SUCCESS;
        }
        answered = Some(challenge.step());
    }
    ExitCode::SUCCESS
}

/// Computes on a slice for the process that started this one.
pub fn run_slice(uuid: &str, simulated: Option<&Path>) -> ExitCode {
    step_back();
    let read = simulated.map(Simulated::read).transpose().map_err(unavailable);
    slice::serve(read.and_then(|simulated| devices::open_one(&simulated.unwrap_or_default(), uuid)))
}

/// What answers.
struct Host {
    /// The file with simulated devices.
    simulated: Option<PathBuf>,
    /// Where the file of a test of a disk is made.
    disk: Option<PathBuf>,
    prover: Option<Prover>,
    /// Older answers, where the devices are to be proven with those.
    replay: Option<Replay>,
}

impl Host {
    /// The message for the present step.
    fn answer(&mut self, challenge: &Challenge) -> Value {
        let answer = self.begin(challenge).and_then(|()| {
            if let Some(older) = self.replay.as_ref().and_then(|replay| replay.answer(challenge)) {
                return Ok(older);
            }
            let prover = self.prover.as_mut().ok_or_else(|| aborted("nothing has begun"))?;
            let message = match prover.answer(challenge)? {
                Answer::Commitment(commitment) => Message::Commitment(commitment),
                Answer::Opening(bytes) => Message::Opening(Opening::Inline(bytes)),
            };
            serde_json::to_value(message).map_err(|error| aborted(&error.to_string()))
        });
        let message = answer.unwrap_or_else(|failure| {
            eprintln!("{}: {}", challenge.challenge, failure.message);
            let end = failure.message.floor_char_boundary(EXPLANATION_MAX);
            json!({ "failed": Failure { message: failure.message[..end].to_owned(), ..failure } })
        });
        if let Some(replay) = &mut self.replay {
            replay.keep(challenge, &message);
        }
        message
    }

    /// Gets ready for the challenge, the first time.
    fn begin(&mut self, challenge: &Challenge) -> Result<(), Failure> {
        if self.prover.is_some() {
            return Ok(());
        }
        check_memory(&challenge.task)?;
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let mut resources = Resources::new(threads);
        if matches!(challenge.task, Task::Devices(_)) {
            let file = self.simulated.as_deref();
            let simulated = file.map(Simulated::read).transpose().map_err(unavailable)?.unwrap_or_default();
            self.replay = file.filter(|_| simulated.replays()).map(|file| Replay::beside(file, challenge));
            let file = file.map(Path::to_owned);
            resources = resources.with_devices(move |task| devices::open(&simulated, file.as_deref(), task));
        }
        if let Some(dir) = self.disk.clone() {
            resources = resources.with_disk(move |task| disk::open(&dir, task));
        }
        self.prover = Some(Prover::new(challenge, resources)?);
        Ok(())
    }
}

fn aborted(message: &str) -> Failure {
    Failure { code: Reason::Aborted, message: message.to_owned() }
}

fn unavailable(message: String) -> Failure {
    Failure { code: Reason::DeviceUnavailable, message }
}

/// Makes this process the first to go when memory runs out or the agent ends.
fn step_back() {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "1000") {
        eprintln!("write oom_score_adj: {error}");
    }
    if let Err(error) = set_pdeathsig(Signal::SIGKILL) {
        eprintln!("ask to end with the agent: {error}");
    }
}

/// The challenges on standard input. When it ends, so does the process, whatever it is doing.
fn listen() -> mpsc::Receiver<Challenge> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut input = BufReader::new(std::io::stdin());
        loop {
            match read(&mut input) {
                Ok(Some(challenge)) => drop(sender.send(challenge)),
                Ok(None) => exit(0),
                Err(error) => {
                    eprintln!("read a challenge: {error}");
                    exit(1);
                }
            }
        }
    });
    receiver
}

fn read(input: &mut impl BufRead) -> Result<Option<Challenge>, String> {
    let mut line = String::new();
    input.take(LINE_MAX).read_line(&mut line).map_err(|error| error.to_string())?;
    match line.is_empty() {
        true => Ok(None),
        false => serde_json::from_str(&line).map(Some).map_err(|error| error.to_string()),
    }
}

/// Refuses a fill that the machine has no memory for, before it costs others theirs.
fn check_memory(task: &Task) -> Result<(), Failure> {
    let Task::Memory(task) = task else { return Ok(()) };
    let Some(available) = fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(available) else {
        return Ok(());
    };
    if covered(task.memory).0.saturating_add(SPARE) <= available.0 {
        return Ok(());
    }
    let message = format!("claims {}, but {available} are available", task.memory);
    Err(Failure { code: Reason::MemoryUnavailable, message })
}

/// What /proc/meminfo says is available.
fn available(meminfo: &str) -> Option<Bytes> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: i64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).map(Bytes)
}

fn print(challenge: &Challenge, message: Value) -> Result<(), String> {
    let step = u32::try_from(challenge.step()).unwrap_or(u32::MAX);
    let report = json!({ "challenge": challenge.challenge, "step": step, "message": message });
    let mut output = std::io::stdout().lock();
    writeln!(output, "{report}").and_then(|()| output.flush()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_as_the_kernel_writes_it() {
        let meminfo = "MemTotal:       24689236 kB\nMemAvailable:   22000000 kB\nBuffers: 1 kB\n";
        assert_eq!(available(meminfo), Some(Bytes(22_000_000 * 1024)));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }
}
