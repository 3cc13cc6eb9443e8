//! A whole market of its own for a test: started by `naved up`, used through `nave`,
//! removed at the end, also when the test fails.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// A running market.
pub struct Market {
    dir: tempfile::TempDir,
    arguments: Vec<String>,
    api: u16,
}

impl Market {
    /// A market that runs jobs in Docker, from an image built of this machine's packages.
    /// None where `NAVE_TEST_DOCKER` says `skip`, as it does without root.
    pub fn docker(arguments: &[&str]) -> Option<Self> {
        if std::env::var("NAVE_TEST_DOCKER").is_ok_and(|choice| choice == "skip") {
            eprintln!("left out: NAVE_TEST_DOCKER=skip");
            return None;
        }
        let mut all = vec!["--runtime", "docker", "--local-registry"];
        all.extend(arguments);
        let market = Self::start(&all);
        // scripts/test has one ready, in a registry that outlives every test.
        let image = std::env::var("NAVE_TEST_IMAGE").unwrap_or_else(|_| market.build_image());
        succeed(market.naved().args(["admin", "default-image", &image]));
        Some(market)
    }

    fn build_image(&self) -> String {
        let up = self.up_json();
        let registry = up["registry"].as_str().expect("a registry");
        let said = succeed(Command::new(root().join("scripts/local-image")).args(["--registry", registry]));
        said.trim().to_owned()
    }

    /// A market that acts jobs out.
    pub fn simulated(arguments: &[&str]) -> Self {
        let mut all = vec!["--runtime", "simulated"];
        all.extend(arguments);
        Self::start(&all)
    }

    fn start(arguments: &[&str]) -> Self {
        // Short, since paths of sockets are bounded.
        let dir = tempfile::Builder::new().prefix("nave-").tempdir_in("/tmp").expect("a directory");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let api = listener.local_addr().expect("its address").port();
        drop(listener);
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let market = Self { dir, arguments, api };
        market.up();
        market
    }

    /// Starts it, again if need be, and waits until it is ready.
    pub fn up(&self) {
        let api = format!("127.0.0.1:{}", self.api);
        succeed(self.naved().args(["up", "--detach", "--api", &api, "--disk", "8GiB"]).args(&self.arguments));
    }

    /// Stops it.
    pub fn down(&self) {
        succeed(self.naved().arg("down"));
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("d")
    }

    pub fn up_json(&self) -> Value {
        read_json(&fs::read(self.data().join("run/up.json")).expect("a running market"))
    }

    pub fn naved(&self) -> Command {
        self.program("naved")
    }

    /// The customer's command, configured as `naved up` did it.
    pub fn nave(&self, arguments: &[&str]) -> Command {
        let mut command = self.program("nave");
        command.args(arguments);
        command
    }

    fn program(&self, name: &str) -> Command {
        let file = Path::new(env!("CARGO_BIN_EXE_naved")).with_file_name(name);
        assert!(file.exists(), "{} is not built; run `cargo build --bins`", file.display());
        let mut command = Command::new(file);
        command
            .env("NAVE_DATA", self.data())
            .env("XDG_CONFIG_HOME", self.dir.path().join("c"))
            .env_remove("NAVE_URL")
            .env_remove("NAVE_TOKEN")
            .stdin(Stdio::null());
        command
    }

    /// Runs a job and returns its final document, whatever its state.
    pub fn run(&self, options: &[&str], argv: &[&str]) -> Value {
        let output = self.run_output(options, argv);
        let document = read_json(&output.stdout);
        assert!(
            document["job"].is_string(),
            "no job: {document} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        document
    }

    pub fn run_output(&self, options: &[&str], argv: &[&str]) -> Output {
        let mut command = self.nave(&["run", "--json"]);
        command.args(options).arg("--").args(argv).output().expect("run nave")
    }

    /// Submits a job and returns its id.
    pub fn submit(&self, options: &[&str], argv: &[&str]) -> String {
        let mut all = vec!["--detach"];
        all.extend(options);
        self.run(&all, argv)["job"].as_str().expect("an id").to_owned()
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        read_json(succeed(self.nave(arguments).arg("--json")).as_bytes())
    }

    /// A job's document from the API.
    pub fn job(&self, job: &str) -> Value {
        let list = self.json(&["ps"]);
        let items = list["items"].as_array().expect("items").clone();
        items.into_iter().find(|item| item["job"] == job).expect("the job")
    }

    /// Waits until a job satisfies a condition.
    pub fn await_job(&self, job: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        wait_for(&format!("{job} to be {what}"), || {
            let document = self.job(job);
            condition(&document).then_some(document)
        })
    }

    pub fn await_final(&self, job: &str) -> Value {
        self.await_job(job, "final", |document| {
            ["succeeded", "failed", "cancelled"].contains(&document["state"].as_str().unwrap_or_default())
        })
    }

    pub fn receipt(&self, job: &str) -> Value {
        self.json(&["receipt", job])
    }

    /// What a job has printed to standard output, over all attempts.
    pub fn stdout(&self, job: &str) -> String {
        let logs = self.json(&["logs", job]);
        let lines = logs["lines"].as_array().expect("lines");
        let stdout = lines.iter().filter(|line| line["stream"] == "stdout");
        stdout.map(|line| line["text"].as_str().expect("text")).collect()
    }

    /// The process of a part that the supervisor keeps running.
    pub fn pid(&self, part: &str) -> i32 {
        wait_for(&format!("{part} to run"), || {
            let record = fs::read_to_string(self.data().join("run/pids").join(part)).ok()?;
            record.split(' ').next()?.parse().ok()
        })
    }

    /// A part's process, or one that a part has started.
    pub fn pid_of(&self, name: &str) -> i32 {
        match name {
            "containerd" => {
                let file = self.data().join("docker/exec/containerd/containerd.pid");
                fs::read_to_string(file).expect("its number").trim().parse().expect("a number")
            }
            "a backend of postgres" => {
                let parent = self.pid("postgres");
                let is_backend = |pid: &i32| {
                    let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                    title.starts_with(b"postgres: nave nave")
                };
                wait_for("a backend", || children(parent).into_iter().find(is_backend))
            }
            part => self.pid(part),
        }
    }

    pub fn supervisor(&self) -> i32 {
        let up = self.up_json();
        let record = up["supervisor"].as_str().expect("a supervisor");
        record.split(' ').next().expect("a number").parse().expect("a number")
    }

    /// Fails unless the books balance.
    pub fn audit(&self) {
        succeed(self.naved().args(["admin", "audit"]));
    }
}

impl Drop for Market {
    fn drop(&mut self) {
        if thread::panicking() {
            self.print_logs();
        }
        let done = self.naved().arg("down").output();
        if !thread::panicking() {
            assert!(done.is_ok_and(|output| output.status.success()), "the market did not stop");
        }
    }
}

impl Market {
    fn print_logs(&self) {
        for entry in fs::read_dir(self.data().join("log")).into_iter().flatten().flatten() {
            let text = fs::read(entry.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let from = text.len().saturating_sub(3_000);
            let from = (from..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
            eprintln!("== {}\n{}", entry.path().display(), &text[from..]);
        }
    }
}

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent").to_owned()
}

/// Runs a command that must succeed and returns its standard output.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

fn read_json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(bytes)))
}

/// Polls until there is an answer; gives up after a minute.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "waited a minute for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn children(parent: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The process that has `marker` among its arguments.
pub fn find_process(marker: &str) -> Option<i32> {
    fs::read_dir("/proc").expect("processes").flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let arguments = fs::read(entry.path().join("cmdline")).ok()?;
        arguments.split(|b| *b == 0).any(|argument| argument == marker.as_bytes()).then_some(pid)
    })
}

pub fn kill(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("signal a process");
}
