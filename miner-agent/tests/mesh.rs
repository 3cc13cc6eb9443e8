//! The agent in a real mesh: a hub in a namespace of its own, a host in another, and
//! between them a network that knows nothing of either.

mod common;

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv6Addr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use common::{Agent, MARKET_KEY, Plane, new_host, until};
use nave_domain::{
    HostId,
    mesh::{MTU_MAX, MeshKey, Prefix},
};
use nave_mesh::{Backend, Interface, Namespace, Options, Peer, PrivateKey, Program, clean_up};
use tempfile::TempDir;

/// A market's hub and a machine that is far from it.
struct Site {
    dir: TempDir,
    tag: String,
    room: Namespace,
    hub: Option<Interface>,
    plane: Plane,
    endpoints: Vec<String>,
}

impl Site {
    /// Each test names its own networks.
    fn begin(letter: char) -> Self {
        let tag = format!("{letter}{}", std::process::id());
        let prefix = Prefix::of_market(&MARKET_KEY.0);
        sweep(&tag);
        let room = Namespace::ensure(&format!("navt-hub-{tag}")).expect("a namespace");
        let hub = Interface::up(Options {
            name: format!("nvth{tag}").parse().expect("a name"),
            namespace: Some(room.clone()),
            address: prefix.hub(),
            prefix,
            mtu: MTU_MAX,
            port: 0,
            private_key: PrivateKey::generate(),
            backend: Backend::Any,
            program: Program::new(env!("CARGO_BIN_EXE_miner-agent"), ["tunnel"]),
        });
        let hub = hub.expect("a hub");
        let third = letter as u8;
        far(&tag, third);
        let listener = room.enter(|| TcpListener::bind((prefix.hub(), 0))).expect("entered").expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let dir = tempfile::tempdir().expect("a directory");
        let plane = Plane::serve(listener, new_host());
        let endpoints = vec![format!("198.18.{third}.1:{}", hub.port())];
        let site = Self { dir, tag, room, hub: Some(hub), plane, endpoints };
        site.join(port);
        site
    }

    fn hub(&self) -> &Interface {
        self.hub.as_ref().expect("it is up")
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Makes the machine a member whose key the hub knows.
    fn join(&self, port: u16) {
        let key = PrivateKey::generate();
        self.plane.join_with(&self.data(), |place| {
            place.hub_key = self.hub().public_key();
            place.hub_endpoints.clone_from(&self.endpoints);
            place.port = port;
        });
        key.save(&self.data().join("agent/mesh.key")).expect("saved");
        self.let_in(key.public());
    }

    /// The hub knows this key from now on, and the spec says so.
    fn let_in(&self, key: MeshKey) {
        let peer = Peer {
            key,
            addresses: BTreeSet::from([address(self.plane.host)]),
            endpoint: None,
            keepalive_s: None,
        };
        self.hub().set_peers(&[peer]).expect("a peer");
        let (hub_key, endpoints) = (self.hub().public_key(), self.endpoints.clone());
        self.plane.change(|spec| {
            (spec.mesh.key, spec.mesh.hub_key, spec.mesh.hub_endpoints) = (key, hub_key, endpoints);
        });
    }

    fn agent(&self, env: &[(&str, &str)]) -> Agent {
        let interface = format!("nvtm{}", self.tag);
        let args = ["--runtime", "simulated", "--mesh-interface", &interface];
        Agent::start_in(&format!("navt-far-{}", self.tag), &self.data(), &args, env)
    }

    fn reports(&self) -> usize {
        self.plane.kept().reports.len()
    }

    /// Waits until the agent is heard again.
    async fn heard(&self) {
        let before = self.reports();
        until("the host is heard", || self.reports() > before + 1).await;
    }

    fn announced(&self) -> Option<MeshKey> {
        self.plane.kept().reports.last().and_then(|report| report.mesh_key_next)
    }

    fn key_in_use(&self) -> MeshKey {
        PrivateKey::load(&self.data().join("agent/mesh.key")).expect("a key").public()
    }

    fn ask_for_new_key(&self) {
        nave_miner_agent::link::keys::ask_for_new(&self.data()).expect("asked");
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(self.hub.take());
        let name = format!("nvth{}", self.tag).parse().expect("a name");
        let _ = clean_up(&name, Some(&self.room));
        sweep(&self.tag);
    }
}

fn address(host: HostId) -> Ipv6Addr {
    Prefix::of_market(&MARKET_KEY.0).host(host)
}

/// A machine in a namespace, on a link to this one.
fn far(tag: &str, third: u8) {
    let (space, here, there) = (format!("navt-far-{tag}"), format!("nvtv{tag}"), format!("nvtp{tag}"));
    ip(&format!("netns add {space}"));
    ip(&format!("link add {here} type veth peer name {there} netns {space}"));
    ip(&format!("address add 198.18.{third}.1/24 dev {here}"));
    ip(&format!("link set {here} up"));
    ip(&format!("-n {space} link set lo up"));
    ip(&format!("-n {space} address add 198.18.{third}.2/24 dev {there}"));
    ip(&format!("-n {space} link set {there} up"));
    // Where a packet without a tunnel would go.
    ip(&format!("-n {space} -6 route add default via fe80::1 dev {there}"));
}

/// Takes away what a killed agent or test has left.
fn sweep(tag: &str) {
    let _ = Command::new("ip").args(["link", "delete", &format!("nvtv{tag}")]).output();
    let far = Namespace::named(&format!("navt-far-{tag}")).expect("a name");
    let _ = clean_up(&format!("nvtm{tag}").parse().expect("a name"), Some(&far));
}

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().expect("ip runs");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Processes that `parent` has started.
fn children(parent: u32) -> Vec<i32> {
    let path = format!("/proc/{parent}/task");
    let tasks = fs::read_dir(path).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn status(data: &Path) -> serde_json::Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_miner-agent"));
    let output = command.args(["status", "--json", "--data"]).arg(data).output().expect("it runs");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_heard_through_the_mesh_and_says_how_it_is() {
    let site = Site::begin('a');
    let _agent = site.agent(&[]);
    site.heard().await;
    let told = || status(&site.data())["agent"]["mesh"].clone();
    until("the path was probed", || told()["mtu"] == u64::from(MTU_MAX)).await;
    until("a handshake was seen", || told()["handshake_s"].is_u64()).await;
    assert_eq!(told()["key"], site.key_in_use().to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_dies_is_replaced() {
    let site = Site::begin('b');
    let agent = site.agent(&[]);
    site.heard().await;
    let before = children(agent.pid());
    for pid in &before {
        let pid = nix::unistd::Pid::from_raw(*pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("killed");
    }
    site.heard().await;
    assert!(!children(agent.pid()).iter().any(|pid| before.contains(pid)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_answers_at_another_endpoint_only_is_found_there() {
    let mut site = Site::begin('c');
    site.endpoints.insert(0, "198.18.99.1:9".into());
    let port =
        nave_miner_agent::membership::Membership::load(&site.data()).expect("a member").place.mesh.port;
    site.join(port);
    let _agent = site.agent(&[]);
    site.heard().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_is_announced_used_and_confirmed() {
    let site = Site::begin('d');
    let _agent = site.agent(&[]);
    site.heard().await;
    let old = site.key_in_use();
    site.ask_for_new_key();
    until("it is announced", || site.announced().is_some()).await;
    let next = site.announced().expect("just seen");
    site.let_in(next);
    until("it is settled", || site.key_in_use() == next).await;
    assert_ne!(old, next);
    until("nothing more is announced", || site.announced().is_none()).await;
    site.heard().await;
}

/// Changes the key of a host whose agent is killed at `point` and then started again.
async fn killed_at(letter: char, point: &str) {
    let site = Site::begin(letter);
    let armed = site.dir.path().join(point);
    fs::write(&armed, "").expect("armed");
    let dir = site.dir.path().to_str().expect("text").to_owned();
    let env = [("NAVE_CRASH_POINTS", dir.as_str())];
    let mut agent = site.agent(&env);
    site.heard().await;
    let old = site.key_in_use();
    site.ask_for_new_key();
    let (mut swapped, mut settled) = (None, None);
    until(&format!("the host is heard with its new key in spite of {point}"), || {
        if agent.is_over() {
            agent = site.agent(&env);
        }
        if let (Some(next), None) = (site.announced(), swapped) {
            swapped = Some(next);
            site.let_in(next);
        }
        if !armed.exists() && site.key_in_use() != old && site.announced().is_none() {
            settled.get_or_insert(site.reports());
        }
        settled.is_some_and(|at| site.reports() > at + 1)
    })
    .await;
    assert_eq!(Some(site.key_in_use()), swapped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_before_it_announced_its_new_key_goes_on_with_it() {
    killed_at('e', "agent.rotate.after_make").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_when_the_market_knew_its_new_key_finds_the_right_one() {
    killed_at('f', "agent.rotate.after_ack").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_before_it_used_its_new_key_finds_the_right_one() {
    killed_at('g', "agent.rotate.before_switch").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_before_it_forgot_its_old_key_forgets_it() {
    killed_at('h', "agent.rotate.before_settle").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_when_it_had_forgotten_its_old_key_goes_on() {
    killed_at('i', "agent.rotate.after_settle").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_tunnel_nothing_leaves_the_machine() {
    let site = Site::begin('j');
    let space = format!("navt-far-{}", site.tag);
    let counter = "table inet t {\ncounter c { }\nchain o {\ntype filter hook output priority 0\n\
                   ip6 daddr fd00::/8 counter name c\n}\n}";
    let nft = |args: &[&str]| {
        let output = Command::new("ip").args(["netns", "exec", &space, "nft"]).args(args).output();
        String::from_utf8_lossy(&output.expect("nft runs").stdout).into_owned()
    };
    nft(&[counter]);
    // Without programs it cannot guard an interface, so it makes none.
    let agent = site.agent(&[("PATH", "/does/not/exist")]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(agent.pid() > 0 && site.reports() == 0);
    let counted = nft(&["list", "counter", "inet", "t", "c"]);
    assert!(counted.contains("packets 0 "), "{counted}");
    let said = status(&site.data());
    assert!(said["agent"]["mesh"]["problem"].as_str().is_some_and(|text| text.contains("guard")), "{said}");
}
