//! The agent process on a real Docker Engine: what a job gets, what it must not
//! get, and what is left afterwards.
//!
//! NAVE_TEST_DOCKER is the engine's Unix socket, NAVE_TEST_IMAGE a digest-pinned
//! image with python3 that it can pull. Without them these tests fail;
//! NAVE_TEST_DOCKER=skip leaves them out.
//!
//! `cargo test -p nave-miner-agent --test docker -- --ignored --nocapture` measures;
//! NAVE_TEST_AGENT names another build of the agent for it.

mod common;
#[path = "common/doubles.rs"]
mod doubles;
#[path = "common/far.rs"]
mod far;
#[path = "common/site.rs"]
mod site;

use std::{
    net::Ipv6Addr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use bollard::{Docker, query_parameters::KillContainerOptions};
use common::{Agent, MARKET_KEY, Plane, new_lease, order, until};
use doubles::{DEVICE, Doubles, share};
use far::Far;
use nave_domain::{Bytes, HostId, JobId, LeaseId, job::Egress, mesh::Prefix};
use nave_miner_agent::runtime::docker::{connect, container};
use nave_sdk::wire::host::{Exit, LOG_BYTES_MAX, LeaseReport, Order};
use site::Site;
use tempfile::TempDir;
use uuid::Uuid;

/// One machine with a control plane; everything on it is removed at the end.
struct Machine {
    dir: TempDir,
    plane: Plane,
    prefix: String,
    socket: PathBuf,
    image: String,
    /// What the agent is told beyond what every one is.
    more: Vec<String>,
    agent: Option<Agent>,
}

impl Machine {
    /// `None` where these tests are left out. Each test names its own bridges.
    fn begin(letter: char) -> Option<Self> {
        let mut machine = Self::prepare(letter)?;
        machine.start_agent();
        Some(machine)
    }

    /// The same without an agent.
    fn prepare(letter: char) -> Option<Self> {
        let setting = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let fix = "set NAVE_TEST_DOCKER to the socket of a Docker Engine and NAVE_TEST_IMAGE to an \
                   image with python3, pinned by digest; or set NAVE_TEST_DOCKER=skip";
        let socket = setting("NAVE_TEST_DOCKER").expect(fix);
        if socket == "skip" {
            return None;
        }
        let image = setting("NAVE_TEST_IMAGE").expect(fix);
        let dir = tempfile::tempdir().expect("temporary directory");
        let plane = Plane::start();
        let socket = PathBuf::from(socket.trim_start_matches("unix://"));
        Some(Self { dir, plane, prefix: format!("nt{letter}"), socket, image, more: Vec::new(), agent: None })
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn docker_args(&self) -> Vec<String> {
        let socket = self.socket.display().to_string();
        ["--docker", &socket, "--bridge-prefix", &self.prefix, "--pool", "77"].map(str::to_owned).to_vec()
    }

    /// The interface behind which an agent takes the mesh to be.
    fn mesh(&self) -> String {
        format!("tmesh{}{}", &self.prefix[2..], std::process::id())
    }

    fn start_agent(&mut self) {
        let mut args = vec!["--runtime".to_owned(), "docker".to_owned()];
        args.extend(self.docker_args());
        args.extend(["--mesh-interface".to_owned(), self.mesh()]);
        args.extend(self.more.iter().cloned());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.agent = Some(Agent::start(&self.plane, &self.data(), &args));
    }

    /// A machine whose GPU and MPS are acted out.
    fn begin_sharing(letter: char) -> Option<(Self, Doubles)> {
        let mut machine = Self::prepare(letter)?;
        let doubles = Doubles::new(&machine.dir.path().join("doubles"));
        let path = |name| doubles.path(name).display().to_string();
        let more = ["--share-gpus", "--prover", &path("nave-prover"), "--mps-control", &path("mps-control")];
        machine.more = more.map(str::to_owned).to_vec();
        machine.start_agent();
        Some((machine, doubles))
    }

    /// A job with 8 GiB of the device, which says what it sees of its daemon and stays.
    fn sharer(&self, tenant: u128) -> Order {
        let script = "import os, time\n\
            pipes = os.environ['CUDA_MPS_PIPE_DIRECTORY']\n\
            print(pipes, os.path.exists(pipes + '/nvidia-cuda-mps-control.pid'), os.access(pipes, os.W_OK), flush=True)\n\
            open('/dev/shm/mine', 'w')\n\
            while not os.path.exists('/dev/shm/go'): time.sleep(0.05)";
        let share = Some(share(tenant, 8));
        Order { devices: vec![DEVICE.to_owned()], share, ..self.python(script) }
    }

    /// The first process of a lease, as this machine counts it.
    async fn process(&self, lease: LeaseId) -> u32 {
        let found = self.client().await.inspect_container(&container::name(lease), None).await;
        let pid = found.expect("a container").state.expect("a state").pid.expect("a process");
        pid.try_into().expect("it runs")
    }

    async fn kill_agent(&mut self) {
        self.agent.take().expect("it runs").kill().await;
    }

    fn order(&self, argv: &[&str]) -> Order {
        Order { image: self.image.clone(), ..order(argv) }
    }

    fn python(&self, script: &str) -> Order {
        self.order(&["python3", "-c", script])
    }

    async fn client(&self) -> Docker {
        connect(&self.socket).await.expect("the engine answers")
    }

    /// Runs a script to its end and answers its standard output.
    async fn output(&self, order: Order) -> (Exit, String) {
        let lease = new_lease();
        let exit = self.plane.run(lease, order).await;
        (exit, self.plane.text(lease))
    }

    /// How long the engine's own client takes to start the same image.
    fn docker_run(&self, egress: Egress) -> Duration {
        let socket = format!("unix://{}", self.socket.display());
        let docker = |args: &[&str]| {
            let output = Command::new("/usr/bin/docker").args(["-H", &socket]).args(args).output();
            let output = output.expect("docker runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        if egress == Egress::Public {
            let _ = docker(&["network", "create", "nave-measure"]);
        }
        let network = if egress == Egress::Public { "nave-measure" } else { "none" };
        let begun = Instant::now();
        let id = docker(&["run", "-d", "--network", network, &self.image, "true"]);
        let took = begun.elapsed();
        docker(&["rm", "-f", &id]);
        if egress == Egress::Public {
            let _ = docker(&["network", "rm", "nave-measure"]);
        }
        took
    }

    /// A lease is forgotten when its container is gone, and the rest follows.
    async fn becomes_clean(&self, lease: LeaseId) {
        let end = Instant::now() + common::PATIENCE;
        while !self.is_clean(lease).await {
            assert!(Instant::now() < end, "something is left of {lease}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether anything of a lease is left on this machine.
    async fn is_clean(&self, lease: LeaseId) -> bool {
        let client = self.client().await;
        let container = client.inspect_container(&container::name(lease), None).await.is_ok();
        let networks = client.list_networks(None).await.expect("networks");
        let tail = lease.to_string()[30..].to_owned();
        let network = networks.iter().any(|network| {
            network
                .name
                .as_deref()
                .is_some_and(|name| name.starts_with(&self.prefix) && name.ends_with(&tail))
        });
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
        let dir = self.data().join("leases").join(lease.to_string());
        !container && !network && !mounts.contains(&lease.to_string()) && !dir.exists()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.kill_now();
        }
        let removed = Command::new(env!("CARGO_BIN_EXE_miner-agent"))
            .arg("remove-all")
            .arg("--data")
            .arg(self.data())
            .args(self.docker_args())
            .env("NAVE_AGENT_PROVER", self.dir.path().join("doubles/nave-prover"))
            .status();
        Doubles::clear(&self.data());
        assert!(removed.expect("remove-all runs").success() || std::thread::panicking());
    }
}

/// Resident memory of a process in KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident set");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn success() -> Exit {
    Exit::Code { code: 0 }
}

#[tokio::test]
async fn a_job_runs_as_given_and_delivers_logs_exit_code_and_files() {
    let Some(machine) = Machine::begin('a') else { return };
    let script = "import os, sys\n\
        print(sys.argv[1:], os.environ['GREETING'], os.getcwd())\n\
        print('to stderr', file=sys.stderr)\n\
        os.makedirs(os.environ['NAVE_OUT'] + '/deep')\n\
        open(os.environ['NAVE_OUT'] + '/deep/answer', 'w').write('42')\n\
        os.symlink('/etc/passwd', os.environ['NAVE_OUT'] + '/passwd')\n\
        sys.exit(3)";
    let mut order = machine.order(&["python3", "-c", script, "$(id)", "a b", "`ls`"]);
    order.env.insert("GREETING".into(), "hello; world".into());
    let lease = new_lease();
    machine.plane.place(lease, order);
    let (exit, result) = machine.plane.finished(lease).await;
    assert_eq!(exit, Exit::Code { code: 3 });
    assert_eq!(machine.plane.text(lease), "['$(id)', 'a b', '`ls`'] hello; world /work\n");
    assert_eq!(machine.plane.log(lease, "stderr"), b"to stderr\n");
    let files = machine.plane.files(&result.expect("a result"));
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!((names, files["deep/answer"].as_slice()), (vec!["deep/", "deep/answer"], &b"42"[..]));
    machine.plane.close(lease);
    until("the lease is forgotten", || machine.plane.last(lease).is_none()).await;
    machine.becomes_clean(lease).await;
}

#[tokio::test]
async fn output_that_is_not_text_arrives_byte_for_byte() {
    let Some(machine) = Machine::begin('b') else { return };
    let script = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 400)";
    let lease = new_lease();
    assert_eq!(machine.plane.run(lease, machine.python(script)).await, success());
    let all: Vec<u8> = (0..=255).collect();
    let got = machine.plane.log(lease, "stdout");
    // The engine ends the last line where the job did not.
    assert_eq!(got.strip_suffix(b"\n").unwrap_or(&got), all.repeat(400));
}

#[tokio::test]
async fn a_job_has_no_rights_and_a_read_only_root() {
    let Some(machine) = Machine::begin('c') else { return };
    let script = "import os\n\
        status = dict(l.split(':\\t', 1) for l in open('/proc/self/status').read().splitlines() if ':\\t' in l)\n\
        print(os.getuid(), os.getgid(), os.getpid(), status['CapEff'], status['CapBnd'], status['NoNewPrivs'], status['Seccomp'])\n\
        for path in ['/etc/x', '/usr/x', '/x', '/proc/sys/kernel/hostname']:\n\
        \x20   try:\n\
        \x20       open(path, 'w'); print('WRITABLE', path)\n\
        \x20   except OSError as e:\n\
        \x20       print(e.errno)\n\
        open('/tmp/x', 'w'); open('/work/x', 'w'); open(os.environ['TMPDIR'] + '/x', 'w')";
    let (exit, text) = machine.output(machine.python(script)).await;
    assert_eq!(exit, success(), "{text}");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("65534 65534 1 0000000000000000 0000000000000000 1 2"));
    assert!(!text.contains("WRITABLE"), "{text}");
}

#[tokio::test]
async fn memory_disk_and_processes_are_limited() {
    let Some(machine) = Machine::begin('d') else { return };
    let eats = machine.python("x = bytearray(1 << 30)\nfor i in range(0, 1 << 30, 4096): x[i] = 1");
    assert_eq!(machine.output(Order { memory: Bytes(64 << 20), ..eats }).await.0, Exit::OutOfMemory);

    let fills = "import errno\nn = 0\n\
        try:\n\
        \x20   with open('/work/big', 'wb', 0) as f:\n\
        \x20       while True: n += f.write(b'x' * (1 << 20))\n\
        except OSError as e:\n\
        \x20   print(e.errno == errno.ENOSPC, 48 < n >> 20 <= 64)";
    let (exit, text) = machine.output(machine.python(fills)).await;
    assert_eq!((exit, text.as_str()), (success(), "True True\n"));

    let forks = "import os, time\nn = 0\n\
        try:\n\
        \x20   while n < 2000:\n\
        \x20       if os.fork() == 0: time.sleep(60)\n\
        \x20       n += 1\n\
        except BlockingIOError:\n\
        \x20   print(400 < n < 512, flush=True)\n\
        os._exit(0)";
    let (exit, text) = machine.output(machine.python(forks)).await;
    assert_eq!((exit, text.as_str()), (success(), "True\n"));
}

#[tokio::test]
async fn a_fork_bomb_fills_its_own_limit_and_nothing_else() {
    let Some(machine) = Machine::begin('q') else { return };
    let bomb = new_lease();
    let forks = "import os, time
first = os.getpid()
while True:
    try: os.fork()
    except BlockingIOError:
        if os.getpid() == first:
            first = None
            print(400 < sum(name.isdigit() for name in os.listdir('/proc')) <= 512, flush=True)
            print('full', flush=True)
        time.sleep(1)
";
    machine.plane.place(bomb, Order { memory: Bytes(2 << 30), ..machine.python(forks) });
    until("the bomb is full", || machine.plane.text(bomb).contains("full")).await;
    assert_eq!(machine.plane.text(bomb), "True\nfull\n");
    // A job beside it forks as it likes, and the agent goes on.
    let forks =
        "import os\nfor _ in range(50):\n    if os.fork() == 0: os._exit(0)\n    os.wait()\nprint('fine')";
    let (exit, text) = machine.output(machine.python(forks)).await;
    assert_eq!((exit, text.as_str()), (success(), "fine\n"));
    assert_eq!(machine.plane.last(bomb), Some(LeaseReport::Running));
    machine.plane.stop(bomb);
    assert_eq!(machine.plane.finished(bomb).await.0, Exit::Stopped);
    machine.plane.close(bomb);
    until("the lease is forgotten", || machine.plane.last(bomb).is_none()).await;
    machine.becomes_clean(bomb).await;
}

#[tokio::test]
async fn what_a_shell_would_act_on_arrives_as_it_is_and_does_nothing() {
    let Some(machine) = Machine::begin('r') else { return };
    let trap = machine.dir.path().join("owned").display().to_string();
    let nasty = [
        format!("$(touch {trap})"),
        format!("`touch {trap}`"),
        format!("; touch {trap} #"),
        format!("\n touch {trap} \n"),
        format!("'; touch {trap}; echo '"),
        format!("\" && touch {trap} && \""),
        format!("| touch {trap} &"),
        "--privileged".to_owned(),
        "--volume=/:/host".to_owned(),
        "-e=A=B".to_owned(),
        "* ? ~ $HOME ${HOME} %s \\ \t".to_owned(),
        String::new(),
    ];
    let script = "import json, os, sys
print(json.dumps([sys.argv[1:], [os.environ['N%d' % i] for i in range(len(sys.argv) - 1)]]))
for n, text in enumerate(sys.argv[1:]):
    name = text.replace('/', '_').replace(chr(10), ' ')
    open(os.path.join(os.environ['NAVE_OUT'], name or 'empty'), 'w').write(str(n))
";
    let mut order = machine.python(script);
    order.argv.extend(nasty.iter().cloned());
    order.env = nasty.iter().enumerate().map(|(n, text)| (format!("N{n}"), text.clone())).collect();
    let lease = new_lease();
    machine.plane.place(lease, order);
    let (exit, result) = machine.plane.finished(lease).await;
    assert_eq!(exit, success(), "{}", String::from_utf8_lossy(&machine.plane.log(lease, "stderr")));
    let said: serde_json::Value = serde_json::from_str(&machine.plane.text(lease)).expect("JSON");
    assert_eq!(said, serde_json::json!([nasty, nasty]));
    let files = machine.plane.files(&result.expect("a result"));
    for (n, text) in nasty.iter().enumerate() {
        let name = text.replace('/', "_").replace('\n', " ");
        let name = if name.is_empty() { "empty" } else { &name };
        assert_eq!(
            files.get(name).map(Vec::as_slice),
            Some(n.to_string().as_bytes()),
            "{name:?} in {files:?}"
        );
    }
    // An image is a reference and nothing else.
    for text in &nasty[..9] {
        let image = format!("{text}@sha256:{}", "0".repeat(64));
        let exit = machine.output(Order { image, ..machine.python("") }).await.0;
        assert!(matches!(exit, Exit::StartFailed { .. }), "{text:?}: {exit:?}");
    }
    assert!(!std::path::Path::new(&trap).exists(), "something was run");
}

#[tokio::test]
async fn a_job_without_egress_has_nothing_but_its_loopback() {
    let Some(machine) = Machine::begin('e') else { return };
    let (exit, text) = machine.output(machine.python("import os; print(os.listdir('/sys/class/net'))")).await;
    assert_eq!((exit, text.as_str()), (success(), "['lo']\n"));
}

#[tokio::test]
async fn a_job_with_public_egress_reaches_the_internet_and_nothing_near() {
    let Some(machine) = Machine::begin('f') else { return };
    let site = Site::begin('f');
    // A neighbour that would answer everyone, and says where it is.
    let neighbour = new_lease();
    let serve = machine.python(site::SERVE);
    machine.plane.place(neighbour, Order { egress: Egress::Public, ..serve });
    until("the neighbour listens", || machine.plane.text(neighbour).contains("ready")).await;
    let near = machine.plane.text(neighbour);
    let mut targets: Vec<String> = site.near();
    targets.extend(near.lines().filter(|line| *line != "ready").map(str::to_owned));
    assert!(targets.iter().any(|target| target.starts_with("fd6e")), "the neighbour has IPv6: {near}");

    let mut probe = machine.order(&["python3", "-c", site::PROBE]);
    probe.argv.extend(targets);
    probe.argv.push("--".into());
    probe.argv.extend(site.far());
    let (exit, text) = machine.output(Order { egress: Egress::Public, ..probe }).await;
    assert_eq!(exit, success(), "{text}");
    let reached: Vec<&str> = text.lines().filter(|line| line.contains("REACHED near")).collect();
    assert!(reached.is_empty(), "{reached:?}");
    let far: Vec<&str> = text.lines().filter(|line| line.contains("REACHED far")).collect();
    assert_eq!(far.len(), site.far().len(), "{text}");
}

/// The order of a job of a group whose others are at these addresses.
fn grouped(lease: LeaseId, peers: &[Ipv6Addr], order: Order) -> Order {
    let peers = (7..).zip(peers).map(|(n, peer)| (JobId(Uuid::from_u128(n)), *peer)).collect();
    Order { address: Some(prefix().lease(lease)), peers, ..order }
}

/// A lease as it is in a market: addresses of any two are far from each other.
fn far_lease() -> LeaseId {
    LeaseId(Uuid::now_v7())
}

fn prefix() -> Prefix {
    Prefix::of_market(&MARKET_KEY.0)
}

#[tokio::test]
async fn a_job_of_a_group_reaches_its_peers_and_nothing_else_of_the_mesh() {
    let Some(machine) = Machine::begin('o') else { return };
    let (site, plane) = (Site::begin('o'), &machine.plane);
    let [own, beside, stranger, there, elsewhere] = [(); 5].map(|()| far_lease());
    let at = |lease| prefix().lease(lease);
    let host = prefix().host(HostId(Uuid::from_u128(77)));
    let behind = [at(there), at(elsewhere), host, prefix().hub()];
    let far = Far::begin(&machine.mesh(), prefix(), &behind);
    let public = |order| Order { egress: Egress::Public, ..order };
    plane.place(beside, grouped(beside, &[at(own)], machine.python(site::SERVE)));
    plane.place(stranger, grouped(stranger, &[at(elsewhere)], public(machine.python(site::SERVE))));
    for lease in [beside, stranger] {
        until("a neighbour listens", || plane.text(lease).contains("ready")).await;
    }
    let mut near = site.near();
    near.extend([at(stranger), at(elsewhere), host, prefix().hub()].map(|address| address.to_string()));
    near.extend(plane.text(stranger).lines().filter(|line| *line != "ready").map(str::to_owned));
    let peers = [at(beside), at(there)];

    for egress in [Egress::None, Egress::Public] {
        let lease = if egress == Egress::None { own } else { far_lease() };
        if egress == Egress::Public {
            plane.change(|spec| {
                let other = spec.leases.get_mut(&beside).expect("placed");
                other.peers = [(JobId(Uuid::from_u128(7)), at(lease))].into();
            });
        }
        let mut targets = near.clone();
        let mut open: Vec<String> = peers.map(|address| address.to_string()).into();
        match egress {
            Egress::None => targets.extend(site.far()),
            Egress::Public => open.extend(site.far()),
        }
        let mut probe = machine.order(&["python3", "-c", site::PROBE]);
        probe.argv.extend(targets);
        probe.argv.push("--".into());
        probe.argv.extend(open.iter().cloned());
        let exit = plane.run(lease, grouped(lease, &peers, Order { egress, ..probe })).await;
        let text = plane.text(lease);
        assert_eq!(exit, success(), "{text}");
        let reached = |kind| text.lines().filter(|line| line.contains(kind)).collect::<Vec<_>>();
        assert!(reached("REACHED near").is_empty(), "{egress:?}: {text}");
        assert_eq!(reached("REACHED far").len(), open.len(), "{egress:?}: {text}");
    }
    assert!(far.reaches(at(elsewhere), at(stranger)), "its own group reaches the stranger");
    assert!(!far.reaches(at(there), at(stranger)) && !far.reaches(host, at(stranger)), "and nobody else");
}

#[tokio::test]
async fn a_job_reads_who_is_in_its_group_and_is_cut_off_from_who_leaves() {
    let Some(mut machine) = Machine::begin('p') else { return };
    let [lease, there] = [(); 2].map(|()| far_lease());
    let _far = Far::begin(&machine.mesh(), prefix(), &[prefix().lease(there)]);
    let script = "import os, socket, time
def peers(): return open(os.environ['NAVE_PEERS']).read().splitlines()
def wait(some):
    while bool(peers()) != some: time.sleep(.05)
own = os.environ['NAVE_ADDRESS']
print(own, peers(), os.environ['NAVE_JOB'], os.environ['NAVE_ATTEMPT'], flush=True)
wait(True)
address, job = peers()[0].split()
s = socket.create_connection((address, 4444), 20, (own, 0))
print(s.recv(9), job, flush=True)
s.settimeout(1)
def echoes():
    try: s.sendall(b'x'); return s.recv(1) == b'x'
    except OSError: return False
print(echoes(), flush=True)
wait(False)
print(echoes(), flush=True)
try: open(os.environ['NAVE_PEERS'], 'w')
except OSError: print('read-only')
";
    let order = grouped(lease, &[], machine.python(script));
    machine.plane.place(lease, order.clone());
    until("it has begun", || machine.plane.text(lease).contains('\n')).await;
    let own = prefix().lease(lease);
    assert_eq!(machine.plane.text(lease), format!("{own} [] {} 1\n", order.job));
    let peers = |machine: &Machine, peers| {
        machine.plane.change(|spec| spec.leases.get_mut(&lease).expect("placed").peers = peers);
    };
    let other = JobId(Uuid::from_u128(9));
    machine.kill_agent().await;
    peers(&machine, [(other, prefix().lease(there))].into());
    machine.start_agent();
    until("they speak", || {
        let failed = machine.plane.log(lease, "stderr");
        assert!(failed.is_empty(), "{}", String::from_utf8_lossy(&failed));
        machine.plane.text(lease).contains("True")
    })
    .await;
    peers(&machine, [].into());
    assert_eq!(machine.plane.finished(lease).await.0, success(), "{}", machine.plane.text(lease));
    let said = machine.plane.text(lease);
    let lines: Vec<&str> = said.lines().skip(1).collect();
    assert_eq!(lines, [&format!("b'far' {other}"), "True", "False", "read-only"]);
    machine.plane.close(lease);
    until("the lease is forgotten", || machine.plane.last(lease).is_none()).await;
    machine.becomes_clean(lease).await;
}

#[tokio::test]
async fn what_cannot_start_says_why_and_is_not_tried_again() {
    let Some(machine) = Machine::begin('g') else { return };
    let unpinned = Order { image: "python:3".into(), ..machine.python("") };
    let absent = Order { image: format!("127.0.0.1:1/no@sha256:{}", "a".repeat(64)), ..machine.python("") };
    for (order, word) in [(unpinned, "digest"), (absent, "pull the image")] {
        let exit = machine.output(order).await.0;
        assert!(matches!(&exit, Exit::StartFailed { detail } if detail.contains(word)), "{exit:?}");
    }
    let lease = new_lease();
    assert_eq!(machine.plane.run(lease, machine.order(&["no-such-program"])).await, Exit::Code { code: 127 });
    let said = String::from_utf8_lossy(&machine.plane.log(lease, "stderr")).into_owned();
    assert!(said.starts_with("nave: ") && said.contains("no-such-program"), "{said}");
    assert_eq!(
        machine.plane.run(new_lease(), machine.order(&["/etc/passwd"])).await,
        Exit::Code { code: 126 }
    );
}

#[tokio::test]
async fn an_order_to_stop_gives_the_job_time_to_end() {
    let Some(machine) = Machine::begin('h') else { return };
    let script = "import signal, sys, time\n\
        def end(*_):\n\
        \x20   print('ending'); sys.exit(0)\n\
        signal.signal(signal.SIGTERM, end)\n\
        print('ready', flush=True)\n\
        time.sleep(600)";
    let lease = new_lease();
    machine.plane.place(lease, machine.python(script));
    until("the job is ready", || machine.plane.text(lease) == "ready\n").await;
    machine.plane.stop(lease);
    assert_eq!(machine.plane.finished(lease).await.0, Exit::Stopped);
    assert_eq!(machine.plane.text(lease), "ready\nending\n");
}

#[tokio::test]
async fn a_job_that_something_else_killed_is_reported_as_killed() {
    let Some(machine) = Machine::begin('i') else { return };
    let lease = new_lease();
    machine.plane.place(lease, machine.python("import time; time.sleep(600)"));
    machine.plane.running(lease).await;
    let (client, name) = (machine.client().await, container::name(lease));
    client.kill_container(&name, None::<KillContainerOptions>).await.expect("killed");
    assert_eq!(machine.plane.finished(lease).await.0, Exit::Killed);
}

#[tokio::test]
async fn an_agent_killed_mid_job_adopts_it_with_every_byte_once() {
    let Some(mut machine) = Machine::begin('j') else { return };
    let script = "import time\nfor i in range(40): print('line', i, flush=True); time.sleep(0.05)";
    let lease = new_lease();
    machine.plane.place(lease, machine.python(script));
    until("some lines have come", || machine.plane.text(lease).lines().count() > 5).await;
    machine.kill_agent().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    machine.start_agent();
    assert_eq!(machine.plane.finished(lease).await.0, success());
    let expected: String = (0..40).map(|i| format!("line {i}\n")).collect();
    assert_eq!(machine.plane.text(lease), expected);
}

#[tokio::test]
async fn an_agent_killed_at_any_point_runs_the_job_once_and_leaves_nothing() {
    let Some(mut machine) = Machine::begin('k') else { return };
    for pause in [5, 40, 90, 180, 350] {
        let lease = new_lease();
        let order = Order { egress: Egress::Public, ..machine.python("print('once')") };
        machine.plane.place(lease, order);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        machine.kill_agent().await;
        machine.start_agent();
        assert_eq!(machine.plane.finished(lease).await.0, success(), "killed after {pause} ms");
        assert_eq!(machine.plane.text(lease), "once\n", "killed after {pause} ms");
        machine.plane.close(lease);
        machine.kill_agent().await;
        machine.start_agent();
        until("the lease is forgotten", || {
            machine.plane.kept().reports.last().is_some_and(|report| report.leases.is_empty())
        })
        .await;
        machine.becomes_clean(lease).await;
    }
}

#[tokio::test]
async fn an_agent_that_stops_leaves_its_jobs_and_reports_nothing_wrong() {
    let Some(mut machine) = Machine::begin('l') else { return };
    let lease = new_lease();
    machine.plane.place(lease, machine.python("import time; time.sleep(1.5); print('done')"));
    machine.plane.running(lease).await;
    machine.agent.take().expect("it runs").terminate().await;
    machine.start_agent();
    assert_eq!(machine.plane.finished(lease).await.0, success());
    assert_eq!(machine.plane.text(lease), "done\n");
    assert!(matches!(machine.plane.last(lease), Some(LeaseReport::Finished { .. })));
}

#[tokio::test]
async fn a_start_that_hangs_ends_when_the_spec_says_so() {
    let Some(machine) = Machine::begin('m') else { return };
    // A registry that accepts connections and never answers.
    let registry = std::net::TcpListener::bind("127.0.0.1:0").expect("listening");
    let port = registry.local_addr().expect("an address").port();
    let lease = new_lease();
    let image = format!("127.0.0.1:{port}/slow@sha256:{}", "b".repeat(64));
    machine.plane.place(lease, Order { image, ..machine.python("") });
    until("the image is awaited", || machine.plane.last(lease) == Some(LeaseReport::Preparing)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    machine.plane.stop(lease);
    assert_eq!(machine.plane.finished(lease).await.0, Exit::Stopped);
}

#[tokio::test]
async fn a_flood_of_output_is_kept_up_to_its_limit_and_costs_no_memory() {
    let Some(machine) = Machine::begin('n') else { return };
    let script = "import sys\nfor i in range(400_000): sys.stdout.write(f'{i:079}\\n')";
    let lease = new_lease();
    assert_eq!(machine.plane.run(lease, machine.python(script)).await, success());
    let text = machine.plane.text(lease);
    assert_eq!(text.len() as u64, LOG_BYTES_MAX);
    assert!(text.lines().enumerate().take(200_000).all(|(i, line)| line == format!("{i:079}")));
    let pid = machine.agent.as_ref().expect("it runs").pid();
    assert!(resident_kib(pid) < 64 << 10, "{} KiB", resident_kib(pid));
}

#[tokio::test]
async fn a_job_that_asked_for_8_gib_of_a_gpu_and_takes_9_is_ended_and_its_neighbour_is_not() {
    let Some((machine, doubles)) = Machine::begin_sharing('w') else { return };
    let (greedy, modest) = (new_lease(), new_lease());
    for lease in [greedy, modest] {
        machine.plane.place(lease, machine.sharer(1));
        machine.plane.running(lease).await;
    }
    let said = doubles.said();
    assert_eq!(said.iter().filter(|line| line.starts_with("daemon of")).count(), 1, "{said:?}");
    assert!(said.contains(&"set_default_device_pinned_mem_limit 0 8192M".to_owned()), "{said:?}");
    let (one, other) = (machine.process(greedy).await, machine.process(modest).await);
    doubles.hold(&[(one, 8 << 30), (other, 8 << 30), (std::process::id(), 64 << 30)]);
    until("it says what it sees", || !machine.plane.text(greedy).is_empty()).await;
    assert_eq!(machine.plane.text(greedy), "/dev/shm/nave-mps True False\n");
    doubles.hold(&[(one, 9 << 30), (other, 8 << 30)]);
    let exit = Exit::OutOfGpuMemory { asked: Bytes(8 << 30), used: Bytes(9 << 30) };
    assert_eq!(machine.plane.finished(greedy).await.0, exit);
    assert_eq!(machine.plane.last(modest), Some(LeaseReport::Running));
    machine.plane.close(greedy);
    machine.becomes_clean(greedy).await;
    assert!(!Doubles::processes(&machine.data()).is_empty(), "the other one still needs it");
    machine.plane.stop(modest);
    machine.plane.finished(modest).await;
    machine.plane.close(modest);
    machine.becomes_clean(modest).await;
    until("the daemon is gone", || Doubles::processes(&machine.data()).is_empty()).await;
    until("the device is as it was", || doubles.said().contains(&"mode SIM-1 default".to_owned())).await;
}

#[tokio::test]
async fn a_daemon_outlives_the_agent_with_its_jobs_and_is_ended_by_the_next_one_without_them() {
    let Some((mut machine, doubles)) = Machine::begin_sharing('x') else { return };
    let lease = new_lease();
    machine.plane.place(lease, machine.sharer(1));
    machine.plane.running(lease).await;
    let before = Doubles::processes(&machine.data());
    machine.kill_agent().await;
    machine.start_agent();
    let heard = machine.plane.kept().reports.len();
    until("the next agent reports", || machine.plane.kept().reports.len() > heard + 2).await;
    assert_eq!(machine.plane.last(lease), Some(LeaseReport::Running));
    let pid = before.first().copied().expect("a process");
    assert!(Doubles::processes(&machine.data()).contains(&pid), "it is the same one");
    doubles.hold(&[(machine.process(lease).await, 9 << 30)]);
    assert!(
        matches!(machine.plane.finished(lease).await.0, Exit::OutOfGpuMemory { .. }),
        "it is watched again"
    );
    machine.kill_agent().await;
    machine.plane.close(lease);
    machine.start_agent();
    machine.becomes_clean(lease).await;
    until("the daemon is gone", || Doubles::processes(&machine.data()).is_empty()).await;
}

#[tokio::test]
async fn jobs_whose_daemon_died_end_as_lost_whatever_they_make_of_it_while_the_agent_is_away() {
    let Some((mut machine, _doubles)) = Machine::begin_sharing('v') else { return };
    let (fails, stays) = (new_lease(), new_lease());
    let script =
        "import os, time\nwhile not os.path.exists('/dev/shm/go'): time.sleep(0.05)\nraise SystemExit(3)";
    let Order { argv, .. } = machine.python(script);
    machine.plane.place(fails, Order { argv, ..machine.sharer(1) });
    machine.plane.place(stays, Order { argv: machine.order(&["sleep", "600"]).argv, ..machine.sharer(1) });
    for lease in [fails, stays] {
        machine.plane.running(lease).await;
    }
    let process = machine.process(fails).await;
    machine.kill_agent().await;
    Doubles::kill_all(&machine.data());
    let place = std::fs::read_dir(machine.data().join("mps")).expect("daemons").flatten();
    let place = place.map(|entry| entry.path()).find(|path| path.is_dir()).expect("a place");
    std::fs::write(place.join("shm/go"), "").expect("written");
    until("its command has ended", || !Path::new(&format!("/proc/{process}")).exists()).await;
    machine.start_agent();
    for lease in [fails, stays] {
        assert_eq!(machine.plane.finished(lease).await.0, Exit::Lost);
    }
    for lease in [fails, stays] {
        machine.plane.close(lease);
        machine.becomes_clean(lease).await;
    }
    let next = new_lease();
    machine.plane.place(next, machine.sharer(1));
    machine.plane.running(next).await;
    machine.plane.stop(next);
    machine.plane.finished(next).await;
}

#[tokio::test]
#[ignore = "measures; its numbers belong into docs/measurements"]
async fn time_from_order_to_running_and_memory_at_rest() {
    let Some(machine) = Machine::begin('z') else { return };
    until("the agent reports", || !machine.plane.kept().reports.is_empty()).await;
    for egress in [Egress::None, Egress::Public] {
        let (mut agent, mut engine) = (Vec::new(), Vec::new());
        for _ in 0..10 {
            let (lease, begun) = (new_lease(), Instant::now());
            machine.plane.place(lease, Order { egress, ..machine.order(&["true"]) });
            machine.plane.finished(lease).await;
            let kept = machine.plane.kept().running.get(&lease).copied();
            agent.extend(kept.map(|running| running - begun));
            machine.plane.close(lease);
            until("the lease is forgotten", || machine.plane.last(lease).is_none()).await;
            engine.push(machine.docker_run(egress));
        }
        agent.sort_unstable();
        engine.sort_unstable();
        println!(
            "{egress:?}: order to running, as reported {:?}; docker run -d {:?} (medians, {} and {})",
            agent.get(agent.len() / 2),
            engine[engine.len() / 2],
            agent.len(),
            engine.len(),
        );
    }
    let pid = machine.agent.as_ref().expect("it runs").pid();
    println!("resident: {} KiB", resident_kib(pid));
}
