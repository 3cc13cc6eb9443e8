//! Challenges that the agent answers itself, and what it tells its prover of the disk.
//!
//! NAVE_TEST_DOCKER is the Unix socket of a Docker Engine, or `skip` to leave out what needs one.

mod common;
#[path = "common/engine.rs"]
mod engine;

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use bollard::{
    Docker, body_full,
    models::ContainerCreateBody,
    query_parameters::{
        CreateContainerOptionsBuilder, CreateImageOptionsBuilder, ListContainersOptionsBuilder,
    },
};
use common::{Agent, Plane, until};
use engine::{Engine, GPU, Table, libraries};
use futures_util::TryStreamExt as _;
use nave_domain::{Bytes, ChallengeId};
use nave_miner_agent::runtime::docker::connect;
use nave_sdk::wire::proof::{
    Challenge, Findings, Message, Nonce, Opening, StorageTask, Task,
    findings::{Driver, Holder, Trial},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use tempfile::TempDir;

/// Says that the first process and the agent hold memory of a GPU, and stays until its input ends;
/// commits to the directory that it shall write in.
const PROVER: &str = r#"#!/usr/bin/python3
import hashlib, json, os, sys
if sys.argv[1:] == ["look"]:
    held = lambda pid: {"device": "GPU-1", "pid": pid, "bytes": 1 << 30}
    print(json.dumps({"seen": {"driver": "570.195.03", "holders": [held(1), held(os.getppid())]}}), flush=True)
    sys.stdin.read()
elif sys.argv[1:2] == ["prove"]:
    challenge = json.loads(sys.stdin.readline())
    said = hashlib.sha256(" ".join(sys.argv[2:]).encode()).hexdigest()
    print(json.dumps({"challenge": challenge["challenge"], "step": 0, "message": {"commitment": said}}), flush=True)
    sys.stdin.read()
else:
    print('{"error":"no GPU"}')
"#;

struct Site {
    dir: TempDir,
    plane: Plane,
}

impl Site {
    fn begin() -> Self {
        Self::with_prover(PROVER)
    }

    fn with_prover(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let prover = dir.path().join("prover");
        fs::write(&prover, text).expect("written");
        fs::set_permissions(&prover, fs::Permissions::from_mode(0o755)).expect("a program");
        Self { dir, plane: Plane::start() }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn agent(&self, arguments: &[&str], more: &[(&str, &str)]) -> Agent {
        let prover = self.dir.path().join("prover");
        let mut env = vec![("NAVE_AGENT_PROVER", prover.to_str().expect("text"))];
        env.extend(more);
        Agent::start_with(&self.plane, &self.data(), arguments, &env)
    }

    /// The answer to a challenge with this task.
    async fn answer(&self, task: Task) -> Message {
        let id: ChallengeId = format!("challenge_{:032x}", 1).parse().expect("an id");
        let challenge = Challenge {
            version: nave_sdk::wire::proof::VERSION,
            challenge: id,
            host: self.plane.host,
            task,
            nonce: Nonce([5; 32]),
            beacon: None,
            reveals: Vec::new(),
        };
        self.plane.change(|spec| drop(spec.challenges.insert(id, challenge)));
        let said = || self.plane.kept().reports.last().and_then(|report| report.proofs.get(&id).cloned());
        until("the challenge is answered", || said().is_some()).await;
        said().expect("just seen").message
    }

    async fn findings(&self) -> Findings {
        let answer = self.answer(Task::software()).await;
        let Message::Opening(Opening::Inline(bytes)) = answer else { panic!("{answer:?}") };
        serde_json::from_slice(&bytes).expect("findings")
    }
}

#[tokio::test]
async fn an_agent_tells_what_it_finds_and_who_holds_gpus_that_are_not_its_own() {
    let site = Site::begin();
    let _agent = site.agent(&["--runtime", "simulated"], &[("LD_LIBRARY_PATH", "/nave/no/libraries")]);
    let found = site.findings().await;
    assert_eq!(found.excess(), None);
    assert_eq!(found.nonce, Nonce([5; 32]));
    let expected = Holder { device: "GPU-1".into(), pid: 1, memory: Bytes(1 << 30) };
    assert_eq!(found.holders, [expected], "what the agent holds is its own");
    let library = found.driver.and_then(|Driver { library, .. }| library);
    assert_eq!(library.as_deref(), Some("570.195.03"));
    assert_eq!(
        found.preloaded.environment,
        ["LD_LIBRARY_PATH=/nave/no/libraries"],
        "the agent's, not the prover's"
    );
    assert!(found.mapped.iter().any(|mapped| mapped.path.contains("libc.so")), "{:?}", found.mapped);
    assert!(found.mapped.iter().all(|mapped| !mapped.replaced), "{:?}", found.mapped);
    assert_eq!((found.engine, found.container), (None, Trial::NotApplicable));
}

/// Gives this thread, and what it starts, mounts of its own, with a directory of a driver's libraries in which one is
/// mounted over another. They are gone with the thread.
fn hook_the_driver(dir: &Path) {
    let (hook, library) = (dir.join("hook.so"), Path::new("/usr/local/lib/libcuda.so.1"));
    fs::write(&hook, "no library").expect("written");
    unshare(CloneFlags::CLONE_NEWNS).expect("mounts of its own");
    let none: Option<&str> = None;
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(none, "/", none, private, none).expect("private mounts");
    mount(none, "/usr/local/lib", Some("tmpfs"), MsFlags::empty(), none).expect("libraries");
    fs::write(library, "a library").expect("written");
    mount(Some(&hook), library, none, MsFlags::MS_BIND, none).expect("a hook");
}

#[tokio::test]
async fn what_is_mounted_over_the_driver_is_told() {
    let site = Site::begin();
    hook_the_driver(site.dir.path());
    let _agent = site.agent(&["--runtime", "simulated"], &[]);
    let found = site.findings().await;
    let [mount] = found.mounts.as_slice() else { panic!("{:?}", found.mounts) };
    assert_eq!(
        (mount.covers.as_str(), mount.point.as_str()),
        ("/usr/local/lib/libcuda.so.1", "/usr/local/lib/libcuda.so.1")
    );
    assert!(mount.root.ends_with("/hook.so"), "{mount:?}");
}

/// Gives this thread, and what it starts, mounts of its own, in which a library is preloaded into every program. They are
/// gone with the thread.
fn preload(dir: &Path) -> PathBuf {
    let library = dir.join("hidden.so");
    let mut compiler = Command::new("g++");
    compiler.args(["-std=c++17", "-shared", "-fPIC", "-o"]).arg(&library);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/doubles/hidden.cpp");
    let done = compiler.arg(source).status();
    assert!(done.expect("g++ is missing: scripts/install installs it (Debian's package g++)").success());
    let [upper, work] = ["upper", "work"].map(|name| dir.join(name));
    [&upper, &work].iter().for_each(|dir| fs::create_dir(dir).expect("a directory"));
    unshare(CloneFlags::CLONE_NEWNS).expect("mounts of its own");
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).expect("private mounts");
    let layers = format!("lowerdir=/etc,upperdir={},workdir={}", upper.display(), work.display());
    mount(none, "/etc", Some("overlay"), MsFlags::empty(), Some(layers.as_str()))
        .expect("an /etc of its own");
    fs::write("/etc/ld.so.preload", format!("{}\n", library.display())).expect("written");
    library
}

#[tokio::test]
async fn a_library_that_is_preloaded_and_hides_from_programs_is_told_all_the_same() {
    let site = Site::begin();
    let library = preload(site.dir.path());
    let mut hidden_from = Command::new("/usr/bin/python3");
    hidden_from.args(["-c", "open('/etc/ld.so.preload')"]);
    let said = hidden_from.output().expect("it runs").stderr;
    assert!(String::from_utf8_lossy(&said).contains("FileNotFoundError"), "other programs do not see it");
    let agent = site.agent(&["--runtime", "simulated"], &[]);
    let found = site.findings().await;
    let maps = fs::read_to_string(format!("/proc/{}/maps", agent.pid())).expect("it runs");
    // `scripts/agent-static` has this done by an agent that is linked to nothing.
    assert_eq!(
        maps.contains("/hidden.so"),
        maps.contains("/libc.so"),
        "it is in every agent but a static one"
    );
    assert_eq!(found.preloaded.everywhere, [library.display().to_string()]);
    assert!(found.mapped.iter().any(|mapped| Path::new(&mapped.path) == library), "{:?}", found.mapped);
}

#[tokio::test]
async fn a_prover_learns_where_the_disk_is_that_it_shall_test() {
    let site = Site::begin();
    let _agent = site.agent(&["--runtime", "simulated"], &[]);
    let Task::Storage(task) = Task::storage(Bytes(1 << 30)) else { panic!("another task") };
    let message = site.answer(Task::Storage(StorageTask { bytes: 1 << 16, ..task })).await;
    let told = format!("--disk {}", site.data().display());
    let expected = nave_sdk::wire::sign::sha256(told.as_bytes()).to_string();
    assert_eq!(serde_json::to_value(message).expect("JSON")["commitment"], expected, "it was told {told}");
}

/// What a trial that was killed has left, and a container of somebody else.
async fn left_behind(engine: &Docker, label: HashMap<String, String>, image: &str) {
    let (repository, tag) = image.split_once(':').expect("a tag");
    let options = CreateImageOptionsBuilder::default().from_src("-").repo(repository).tag(tag).build();
    let empty = tar::Builder::new(Vec::new()).into_inner().expect("an archive");
    let import = engine.create_image(Some(options), Some(body_full(empty.into())), None);
    import.try_for_each(|_| async { Ok(()) }).await.expect("imported");
    let body = ContainerCreateBody {
        image: Some(image.into()),
        cmd: Some(vec!["/trial".into()]),
        labels: Some(label),
        ..ContainerCreateBody::default()
    };
    let options = CreateContainerOptionsBuilder::default().build();
    engine.create_container(Some(options), body).await.expect("created");
}

async fn containers(engine: &Docker, label: &str) -> usize {
    let filters = HashMap::from([("label", vec![label.to_owned()])]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    engine.list_containers(Some(options)).await.expect("listed").len()
}

#[tokio::test]
async fn an_engine_that_runs_containers_is_found_to_and_nothing_is_left_of_that() {
    let fix = "set NAVE_TEST_DOCKER to the socket of a Docker Engine, or to skip";
    let socket = std::env::var("NAVE_TEST_DOCKER").ok().filter(|value| !value.is_empty()).expect(fix);
    if socket == "skip" {
        return;
    }
    let socket = socket.trim_start_matches("unix://");
    let engine = connect(Path::new(socket)).await.expect("the engine answers");
    let site = Site::begin();
    let (label, image) =
        (format!("nave.trial={}", site.plane.host), format!("nave-trial:{}", site.plane.host));
    left_behind(&engine, HashMap::from([("nave.trial".to_owned(), site.plane.host.to_string())]), &image)
        .await;
    assert_eq!(containers(&engine, &label).await, 1);
    let _table = Table("ntx");
    let _agent = site
        .agent(&["--runtime", "docker", "--docker", socket, "--bridge-prefix", "ntx", "--pool", "78"], &[]);
    let found = site.findings().await;
    assert_eq!((&found.container, &found.gpus), (&Trial::Works, &Trial::NotApplicable));
    let engine_found = found.engine.expect("an engine");
    assert!(
        !engine_found.version.is_empty() && engine_found.runtimes.contains(&"runc".to_owned()),
        "{engine_found:?}"
    );
    assert!(engine_found.components.iter().any(|component| component.name == "runc"), "{engine_found:?}");
    assert_eq!(containers(&engine, &label).await, 0, "what was left is gone, and so is what was new");
    assert!(engine.inspect_image(&image).await.is_err(), "the image is gone");
}

/// Lists one GPU, and goes into containers as the real one does.
fn prover_with_a_gpu() -> String {
    let real = Path::new(env!("CARGO_BIN_EXE_miner-agent")).with_file_name("nave-prover");
    assert!(real.exists(), "{} is missing: cargo build -p nave-prover", real.display());
    let device = format!(r#"{{"uuid": "{GPU}", "model": "any", "vram": 1, "driver": "570.195.03"}}"#);
    format!(
        "#!/usr/bin/python3\nimport os, sys\nif sys.argv[1:2] == ['see']:\n    os.execv('{}', sys.argv)\n\
         print('{{\"devices\": [{device}]}}', flush=True)\nsys.stdin.read()\n",
        real.display()
    )
}

/// What an agent with a GPU finds of it in a container of this engine.
async fn gpus_in_a_container(engine: &Engine, prefix: &'static str, pool: &str) -> Trial {
    let site = Site::with_prover(&prover_with_a_gpu());
    let socket = engine.socket();
    let _table = Table(prefix);
    let docker = ["--docker", socket.to_str().expect("text"), "--bridge-prefix", prefix, "--pool", pool];
    let _agent = site.agent(&[&["--runtime", "docker"], &docker[..]].concat(), &[]);
    let found = site.findings().await;
    assert_eq!(found.container, Trial::Works);
    found.gpus
}

#[tokio::test]
async fn a_container_that_can_use_its_gpus_is_told_from_one_that_lacks_something() {
    if std::env::var("NAVE_TEST_DOCKER").is_ok_and(|value| value == "skip") {
        return;
    }
    let engine = Engine::start(true);
    let made = tempfile::tempdir().expect("a directory");
    let [nvml, cuda] = libraries(made.path());
    // Files that open like the system's null, and one that no container may open: the kernel's log.
    let (open, closed) = ((1, 3), (1, 11));
    let both = [nvml.as_path(), cuda.as_path()];
    engine.give(&[("nvidia0", open), ("nvidiactl", open)], &both);
    assert_eq!(gpus_in_a_container(&engine, "ntg", "79").await, Trial::Works);
    let lacks = [
        (vec![("nvidiactl", open)], &both[..], "a container sees 0 of 1 GPUs"),
        (vec![("nvidia0", closed), ("nvidiactl", open)], &both[..], "a container may not open a GPU"),
        (vec![("nvidia0", open)], &both[..1], "a container has no libcuda.so.1"),
        (vec![("nvidia0", open)], &both[1..], "a container has no libnvidia-ml.so.1"),
    ];
    for (files, libraries, why) in lacks {
        engine.give(&files, libraries);
        let Trial::Fails(said) = gpus_in_a_container(&engine, "ntg", "79").await else {
            panic!("{why} was overlooked")
        };
        assert!(said.contains(why), "{said}");
    }
}

#[tokio::test]
async fn an_engine_that_cannot_give_gpus_is_told() {
    if std::env::var("NAVE_TEST_DOCKER").is_ok_and(|value| value == "skip") {
        return;
    }
    let said = gpus_in_a_container(&Engine::start(false), "nth", "80").await;
    let Trial::Fails(said) = said else { panic!("{said:?}") };
    assert!(said.contains("could not select device driver"), "{said}");
}
