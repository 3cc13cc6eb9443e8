//! A whole market of its own for a test: started by `naved up`, used through `nave`,
//! removed at the end, also when the test fails.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal::{self, SIGKILL, SIGTERM};
use serde_json::Value;

/// A running market.
pub struct Market {
    dir: tempfile::TempDir,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    api: u16,
}

/// What markets offer in tests unless they say otherwise: little, since several run at a
/// time and every host proves what it offers.
const OFFER: [(&str, &str); 4] =
    [("--cpu", "1"), ("--memory", "1GiB"), ("--disk", "6GiB"), ("--proof-effort", "2s")];

impl Market {
    /// A market that runs jobs in Docker, from an image built of this machine's packages.
    /// None where `NAVE_TEST_DOCKER` says `skip`, as it does without root.
    pub fn docker(arguments: &[&str]) -> Option<Self> {
        Self::docker_with(arguments, &[])
    }

    /// The same with variables in the environment of `naved up`.
    pub fn docker_with(arguments: &[&str], variables: &[(&str, &str)]) -> Option<Self> {
        let mut all = vec!["--runtime", "docker", "--local-registry"];
        all.extend(arguments);
        let market = Self::start(&all, variables)?;
        // scripts/test has one ready, in a registry that outlives every test. Hosts in
        // namespaces reach the market's own only.
        let is_host = market.hosts().len() == 1 && !market.is_divided();
        let shared = std::env::var("NAVE_TEST_IMAGE").ok().filter(|_| is_host);
        let image = shared.unwrap_or_else(|| market.build_image());
        succeed(market.naved().args(["admin", "default-image", &image]));
        Some(market)
    }

    fn build_image(&self) -> String {
        let up = self.up_json();
        let registry = up["registry"].as_str().expect("a registry");
        let said = succeed(Command::new(root().join("scripts/local-image")).args(["--registry", registry]));
        said.trim().to_owned()
    }

    /// A market that acts jobs out. None without root, as above.
    pub fn simulated(arguments: &[&str]) -> Option<Self> {
        Self::simulated_after(arguments, |_| {})
    }

    /// The same with something in its directory before it starts.
    pub fn simulated_after(arguments: &[&str], prepare: impl FnOnce(&Path)) -> Option<Self> {
        let mut all = vec!["--runtime", "simulated"];
        all.extend(arguments);
        Self::start_after(&all, &[], prepare)
    }

    fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Option<Self> {
        Self::start_after(arguments, variables, |_| {})
    }

    fn start_after(
        arguments: &[&str],
        variables: &[(&str, &str)],
        prepare: impl FnOnce(&Path),
    ) -> Option<Self> {
        if std::env::var("NAVE_TEST_DOCKER").is_ok_and(|choice| choice == "skip") {
            eprintln!("left out: NAVE_TEST_DOCKER=skip");
            return None;
        }
        // Short, since paths of sockets are bounded.
        let dir = tempfile::Builder::new().prefix("nave-").tempdir_in("/tmp").expect("a directory");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let api = listener.local_addr().expect("its address").port();
        drop(listener);
        let offer = OFFER.iter().filter(|(name, _)| !arguments.contains(name));
        let offer = offer.flat_map(|(name, value)| [*name, *value]);
        let arguments = arguments.iter().copied().chain(offer).map(str::to_owned).collect();
        let variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let market = Self { dir, arguments, variables, api };
        fs::create_dir(market.crash_points()).expect("a directory");
        prepare(&market.data());
        market.up();
        Some(market)
    }

    /// Starts it, again if need be, and waits until it is ready.
    pub fn up(&self) {
        succeed(&mut self.up_command());
    }

    pub fn up_command(&self) -> Command {
        let mut command = self.naved();
        let api = format!("127.0.0.1:{}", self.api);
        command.args(["up", "--detach", "--api", &api]).args(&self.arguments);
        command.envs(self.variables.iter().cloned());
        command
    }

    /// Kills the next process of this market that reaches a line.
    pub fn arm(&self, point: &str) {
        fs::write(self.crash_points().join(point), "").expect("arm a crash point");
    }

    pub fn is_armed(&self, point: &str) -> bool {
        self.crash_points().join(point).exists()
    }

    fn crash_points(&self) -> PathBuf {
        self.dir.path().join("p")
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

    /// One of our programs, for this market.
    pub fn program(&self, name: &str) -> Command {
        let file = Path::new(env!("CARGO_BIN_EXE_naved")).with_file_name(name);
        assert!(file.exists(), "{} is not built; run `cargo build --bins`", file.display());
        let mut command = Command::new(file);
        command
            .env("NAVE_DATA", self.data())
            .env("XDG_CONFIG_HOME", self.dir.path().join("c"))
            .env("NAVE_CRASH_POINTS", self.crash_points())
            .env_remove("NAVE_URL")
            .env_remove("NAVE_TOKEN")
            .stdin(Stdio::null());
        command
    }

    /// The local miner's command.
    pub fn miner(&self, arguments: &[&str]) -> Command {
        let mut command = self.nave(&["miner"]);
        command.args(arguments).arg("--hotkey-file").arg(self.data().join("miner.hotkey"));
        command
    }

    /// The local hosts.
    pub fn hosts(&self) -> Vec<Host> {
        let up = self.up_json();
        let hosts = up["hosts"].as_array().expect("hosts").iter();
        hosts.zip(1..).map(|(host, number)| Host { number, document: host.clone() }).collect()
    }

    /// Whether its local hosts have namespaces.
    fn is_divided(&self) -> bool {
        self.up_json()["hosts"][0]["namespace"].is_string()
    }

    /// A local host by its id.
    pub fn host(&self, id: &str) -> Host {
        self.hosts().into_iter().find(|host| host.id() == id).expect("a local host")
    }

    /// The hosts as the market lists them.
    pub fn all_hosts(&self) -> Vec<Value> {
        let list = self.json(&["hosts"]);
        list["items"].as_array().or(list.as_array()).expect("hosts").clone()
    }

    /// A host as the market lists it.
    pub fn listed(&self, id: &str) -> Option<Value> {
        self.all_hosts().into_iter().find(|host| host["host"] == id)
    }

    /// Waits until a host is in a state.
    pub fn await_host(&self, id: &str, state: &str) -> Value {
        wait_for(&format!("{id} to be {state}"), || self.listed(id).filter(|host| host["state"] == state))
    }

    /// The UDP port by which hosts know this market.
    pub fn hub_port(&self) -> u16 {
        let slot = fs::read_to_string(self.data().join("slot")).expect("a slot");
        17_460 + slot.trim().parse::<u16>().expect("a number")
    }

    /// A host of its own that joins this market on this machine and acts jobs out. The
    /// market's local hosts must have namespaces: a network has one way into a mesh.
    pub fn stranger(&self, name: &str, offer: &[&str]) -> Stranger {
        let ticket = succeed(&mut self.miner(&["ticket", "--name", name]));
        self.stranger_with(&ticket, name, offer)
    }

    /// The same with a ticket of any miner's.
    pub fn stranger_with(&self, ticket: &str, name: &str, offer: &[&str]) -> Stranger {
        let data = self.dir.path().join(name);
        let mut enrol = self.program("miner-agent");
        enrol.args(["enrol", ticket.trim(), "--runtime", "simulated", "--data"]).arg(&data).args(offer);
        succeed(&mut enrol);
        let enrolment = read_json(&fs::read(data.join("agent/enrolment.json")).expect("an enrolment"));
        let id = enrolment["place"]["host"].as_str().expect("an id").to_owned();
        assert!(self.is_divided(), "the machine itself is a host already");
        let process = self.agent(&id, &data, offer);
        Stranger { id, data, process }
    }

    fn agent(&self, id: &str, data: &Path, offer: &[&str]) -> std::process::Child {
        let log = fs::File::options().create(true).append(true).open(data.join("log")).expect("a log");
        let mut run = self.program("miner-agent");
        run.args(["run", "--runtime", "simulated", "--mesh-interface", &stranger_interface(id)]);
        run.arg("--data").arg(data).args(offer).stderr(log);
        run.spawn().expect("run an agent")
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
        wait_for(&format!("{part} to run"), || self.pid_now(part))
    }

    /// The same, if it runs right now.
    pub fn pid_now(&self, part: &str) -> Option<i32> {
        let record = fs::read_to_string(self.data().join("run/pids").join(part)).ok()?;
        record.split(' ').next()?.parse().ok()
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
            "the hub's tunnel" => self.tunnel_of("hub"),
            "the agent's tunnel" => self.tunnel_of("agent"),
            part => self.pid(part),
        }
    }

    fn tunnel_of(&self, part: &str) -> i32 {
        let parent = self.pid(part);
        wait_for("a tunnel", || {
            children(parent).into_iter().find(|pid| command_line(*pid).contains("nave-tunnel"))
        })
    }

    pub fn supervisor(&self) -> i32 {
        self.supervisor_now().expect("a running market")
    }

    /// The same, if there is one that has begun.
    pub fn supervisor_now(&self) -> Option<i32> {
        let up: Value = serde_json::from_slice(&fs::read(self.data().join("run/up.json")).ok()?).ok()?;
        up["supervisor"].as_str()?.split(' ').next()?.parse().ok()
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

/// A local host of a market.
pub struct Host {
    number: u8,
    document: Value,
}

impl Host {
    pub fn id(&self) -> &str {
        self.document["id"].as_str().expect("a host that has joined")
    }

    pub fn namespace(&self) -> &str {
        self.document["namespace"].as_str().expect("a host in a namespace")
    }

    /// The machine's end of its link.
    pub fn link(&self) -> String {
        self.document["interface"].as_str().expect("an interface").replacen("_h", "_u", 1)
    }

    /// The name of a part that belongs to it.
    pub fn part(&self, name: &str) -> String {
        if self.number == 1 { name.to_owned() } else { format!("{name}-{}", self.number) }
    }

    /// Takes its link down or up.
    pub fn set_link(&self, state: &str) {
        succeed(Command::new("ip").args(["link", "set", "dev", &self.link(), state]));
    }

    /// A command inside its network.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace())).arg("--").arg(program);
        command
    }

    /// Where its engine listens.
    pub fn engine(&self) -> &str {
        self.document["docker_host"].as_str().expect("an engine")
    }

    /// Directory of its agent.
    pub fn data(&self) -> PathBuf {
        self.document["data"].as_str().expect("a directory").into()
    }

    /// The containers that its engine has.
    pub fn containers(&self) -> Vec<String> {
        let engine = self.engine();
        let said = succeed(Command::new("/usr/bin/docker").args(["-H", engine, "ps", "-aq", "--no-trunc"]));
        said.lines().map(str::to_owned).collect()
    }

    /// The WireGuard key that its agent uses.
    pub fn mesh_key(&self) -> String {
        fs::read_to_string(self.data().join("agent/mesh.key")).expect("a key")
    }
}

/// The last letters of an id are random, and an interface is unique on its machine.
fn stranger_interface(id: &str) -> String {
    format!("nwt{}", &id[id.len() - 10..])
}

/// A host that nobody keeps running; gone at the end of the test.
pub struct Stranger {
    pub id: String,
    pub data: PathBuf,
    process: std::process::Child,
}

impl Stranger {
    /// The program that computes its proofs, while it does.
    pub fn prover(&self) -> Option<i32> {
        let parent = i32::try_from(self.process.id()).expect("a number");
        children(parent).into_iter().find(|pid| {
            let line = command_line(*pid);
            line.contains("nave-prover") && line.contains("prove\0")
        })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        kill(i32::try_from(self.process.id()).expect("a number"), SIGTERM);
        let began = Instant::now();
        while self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            if began.elapsed() > Duration::from_secs(10) {
                drop(self.process.kill());
            }
            thread::sleep(Duration::from_millis(20));
        }
        let name = stranger_interface(&self.id).parse().expect("a name");
        drop(nave_mesh::clean_up(&name, None));
        if thread::panicking() {
            eprintln!("== {}", fs::read_to_string(self.data.join("log")).unwrap_or_default());
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

/// Polls until there is an answer; gives up after two minutes.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "waited two minutes for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Each thread has children of its own.
fn children(parent: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn command_line(pid: i32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).into_owned()
}

/// The process that has `marker` among its arguments.
pub fn find_process(marker: &str) -> Option<i32> {
    find_processes(&[marker]).first().copied()
}

/// The processes that have all of `markers` among their arguments.
pub fn find_processes(markers: &[&str]) -> Vec<i32> {
    let pids = fs::read_dir("/proc").expect("processes").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let fits = |pid: &i32| {
        let line = command_line(*pid);
        let arguments: Vec<&str> = line.split('\0').collect();
        markers.iter().all(|marker| arguments.contains(marker))
    };
    pids.filter(fits).collect()
}

/// One that is killed for good has ended when this returns: until then it still seems to run and holds its locks.
pub fn kill(pid: i32, signal: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("signal a process");
    if signal == SIGKILL {
        wait_for("a killed process to end", || has_ended(pid).then_some(()));
    }
}

/// Whether nothing of it runs any more; whoever started it may not have looked yet.
fn has_ended(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    stats.all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])))
}
