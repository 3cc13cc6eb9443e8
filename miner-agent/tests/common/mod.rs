//! A small control plane and a real agent process to hold against it.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    collections::BTreeMap,
    path::Path,
    process::Stdio,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Bytes as Body,
    extract::{DefaultBodyLimit, Path as Segments, Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post, put},
};
use nave_domain::{
    Bytes, HostId, LeaseId, MilliCpu, Millis,
    host::HostState,
    job::Egress,
    mesh::{MeshKey, PREFIX_BITS, Prefix},
};
use nave_miner_agent::membership::Membership;
use nave_sdk::wire::enrol::{Enrolment, MeshPlace, PublicKey, TicketId};
use nave_sdk::wire::host::{
    Exit, HostReport, HostSpec, LOG_BYTES_MAX, LeaseReport, LogAck, MeshSpec, Order, PROTOCOL, ReportAck,
    ResultRef,
};
use nave_sdk::wire::sign::SecretKey;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::{
    process::{Child, Command},
    sync::watch,
};

/// Longest that anything in a test may take.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// A lease of its own for each call.
pub fn new_lease() -> LeaseId {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    // The end of a real id is random; tests that run side by side must not meet.
    format!("lease_{:016x}{:08x}{n:08x}", 0, std::process::id()).parse().expect("an id")
}

/// A host of its own for each control plane: agents of one host share containers.
pub fn new_host() -> HostId {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("host_{:024x}{n:08x}", std::process::id()).parse().expect("an id")
}

pub fn order(argv: &[&str]) -> Order {
    Order {
        job: format!("job_{:032x}", 1).parse().expect("an id"),
        attempt: 1,
        stop: None,
        image: format!("127.0.0.1:1/none@sha256:{}", "0".repeat(64)),
        argv: argv.iter().map(ToString::to_string).collect(),
        env: BTreeMap::new(),
        milli_cpu: MilliCpu(1_000),
        memory: Bytes(128 << 20),
        disk: Bytes(64 << 20),
        devices: vec![],
        share: None,
        egress: Egress::None,
        address: None,
        peers: BTreeMap::new(),
    }
}

/// The key of the market in these tests.
pub const MARKET_KEY: PublicKey = PublicKey([7; 32]);

pub fn release_key() -> SecretKey {
    SecretKey::from_seed([8; 32]).expect("a key")
}

pub fn mesh_key(byte: u8) -> MeshKey {
    MeshKey::new([byte; 32]).expect("a key")
}

/// A control plane in memory, in place of the one behind the mesh.
#[derive(Clone)]
pub struct Plane {
    inner: Arc<Inner>,
    pub url: String,
    pub host: HostId,
}

struct Inner {
    spec: watch::Sender<HostSpec>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
pub struct Kept {
    pub logs: BTreeMap<(String, String), Vec<u8>>,
    pub log_calls: Vec<(u64, usize)>,
    pub blobs: BTreeMap<String, Vec<u8>>,
    pub reports: Vec<HostReport>,
    /// Every call is answered with 503.
    pub away: bool,
    /// The host is not known any more.
    pub dismissed: bool,
    /// Reports of agents of this version are answered with 503.
    pub deaf_to: Option<String>,
    /// What came of the host's tests, as JSON.
    pub verdicts: serde_json::Value,
    /// Programs of releases, by version.
    pub releases: BTreeMap<String, Vec<u8>>,
    /// When each lease was first reported to run.
    pub running: BTreeMap<LeaseId, Instant>,
}

#[derive(Deserialize)]
struct Poll {
    after: u64,
    wait_ms: u64,
}

#[derive(Deserialize)]
struct Offset {
    offset: u64,
}

impl Plane {
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        Self::serve(listener, new_host())
    }

    /// A control plane for `host` that is reached where `listener` listens.
    pub fn serve(listener: std::net::TcpListener, host: HostId) -> Self {
        let spec = HostSpec {
            protocol: PROTOCOL,
            generation: 1,
            host,
            state: HostState::Ready,
            reason: None,
            fence_ms: Millis(60_000),
            report_ms: Millis(500),
            mesh: MeshSpec { key: mesh_key(1), hub_key: mesh_key(2), hub_endpoints: vec![] },
            challenges: BTreeMap::new(),
            serve: BTreeMap::new(),
            release: None,
            leases: BTreeMap::new(),
        };
        let inner = Arc::new(Inner { spec: watch::Sender::new(spec), kept: Mutex::default() });
        listener.set_nonblocking(true).expect("a setting");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let app = Router::new()
            .route("/host/v1/spec", get(poll))
            .route("/host/v1/report", post(report))
            .route("/host/v1/leases/{lease}/logs/{stream}", post(log))
            .route("/host/v1/blobs/{sha256}", put(blob))
            .route("/host/v1/verdicts", get(verdicts))
            .route("/host/v1/releases/{version}/{target}", get(release))
            .layer(DefaultBodyLimit::max(64 << 20))
            .with_state(inner.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { inner, url, host }
    }

    /// Makes this host a member of the market, as its enrolment would.
    pub fn join(&self, data: &Path) {
        self.join_with(data, |_| {});
    }

    /// The same with a place of its own.
    pub fn join_with(&self, data: &Path, change: impl FnOnce(&mut MeshPlace)) {
        let (own, prefix) = (MARKET_KEY, Prefix::of_market(&MARKET_KEY.0));
        let mut mesh = MeshPlace {
            address: prefix.host(self.host),
            prefix: PREFIX_BITS,
            hub_address: prefix.hub(),
            hub_key: mesh_key(2),
            hub_endpoints: vec![],
            port: 7461,
            keepalive_s: 15,
        };
        change(&mut mesh);
        let place = Enrolment { host: self.host, name: "test".into(), mesh, report_ms: Millis(500) };
        let membership = Membership {
            ticket: TicketId([1; 16]),
            url: "http://127.0.0.1:1".into(),
            market_key: own,
            release_key: Some(release_key().public()),
            hotkey: "none".into(),
            place,
        };
        membership.save(data).expect("saved");
    }

    pub fn kept(&self) -> MutexGuard<'_, Kept> {
        self.inner.kept.lock().expect("not poisoned")
    }

    pub fn away(&self, away: bool) {
        self.kept().away = away;
    }

    /// Changes the spec and its generation.
    pub fn change(&self, change: impl FnOnce(&mut HostSpec)) {
        self.inner.spec.send_modify(|spec| {
            change(spec);
            spec.generation += 1;
        });
    }

    pub fn place(&self, lease: LeaseId, order: Order) {
        self.change(|spec| drop(spec.leases.insert(lease, order)));
    }

    pub fn close(&self, lease: LeaseId) {
        self.change(|spec| drop(spec.leases.remove(&lease)));
    }

    pub fn stop(&self, lease: LeaseId) {
        self.change(|spec| {
            spec.leases.get_mut(&lease).expect("placed").stop =
                Some(nave_domain::lease::StopReason::Cancelled);
        });
    }

    pub fn last(&self, lease: LeaseId) -> Option<LeaseReport> {
        self.kept().reports.last().and_then(|report| report.leases.get(&lease).cloned())
    }

    pub fn log(&self, lease: LeaseId, stream: &str) -> Vec<u8> {
        self.kept().logs.get(&(lease.to_string(), stream.into())).cloned().unwrap_or_default()
    }

    pub fn text(&self, lease: LeaseId) -> String {
        String::from_utf8_lossy(&self.log(lease, "stdout")).into_owned()
    }

    pub async fn running(&self, lease: LeaseId) {
        until("the lease runs", || self.last(lease) == Some(LeaseReport::Running)).await;
    }

    pub async fn finished(&self, lease: LeaseId) -> (Exit, Option<ResultRef>) {
        let end = || match self.last(lease) {
            Some(LeaseReport::Finished { exit, result }) => Some((exit, result)),
            _ => None,
        };
        until("the lease is finished", || end().is_some()).await;
        end().expect("just seen")
    }

    /// Runs one order to its end and answers how it ended.
    pub async fn run(&self, lease: LeaseId, order: Order) -> Exit {
        self.place(lease, order);
        self.finished(lease).await.0
    }

    /// The files of a result, by name.
    pub fn files(&self, result: &ResultRef) -> BTreeMap<String, Vec<u8>> {
        let bytes = self.kept().blobs.get(&result.sha256).cloned().expect("uploaded");
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().expect("a tar archive");
        let read = |entry: std::io::Result<tar::Entry<&[u8]>>| {
            let mut entry = entry.expect("an entry");
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).expect("read");
            (entry.path().expect("a path").display().to_string(), bytes)
        };
        entries.map(read).collect()
    }
}

type Shared = State<Arc<Inner>>;

fn refuse(inner: &Inner) -> Option<Response> {
    let kept = inner.kept.lock().expect("not poisoned");
    if kept.away {
        return Some(StatusCode::SERVICE_UNAVAILABLE.into_response());
    }
    let problem = r#"{"type":"about:blank","title":"Forbidden","status":403,"detail":"it left",
        "code":"host_unknown","retryable":false,"suggestion":"enrol again"}"#;
    kept.dismissed.then(|| (StatusCode::FORBIDDEN, problem).into_response())
}

async fn poll(State(inner): Shared, Query(poll): Query<Poll>) -> Response {
    if let Some(refusal) = refuse(&inner) {
        return refusal;
    }
    let mut spec = inner.spec.subscribe();
    let newer = spec.wait_for(|spec| spec.generation > poll.after);
    match tokio::time::timeout(Duration::from_millis(poll.wait_ms), newer).await {
        Ok(Ok(spec)) => Json(spec.clone()).into_response(),
        Ok(Err(_)) | Err(_) => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn report(State(inner): Shared, Json(report): Json<HostReport>) -> Response {
    if let Some(refusal) = refuse(&inner) {
        return refusal;
    }
    report.inventory.check().expect("a plausible inventory");
    let mut kept = inner.kept.lock().expect("not poisoned");
    if kept.deaf_to.as_ref() == Some(&report.inventory.agent) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    for (lease, phase) in &report.leases {
        if *phase == LeaseReport::Running {
            kept.running.entry(*lease).or_insert_with(Instant::now);
        }
    }
    kept.reports.push(report);
    Json(ReportAck { generation: inner.spec.borrow().generation }).into_response()
}

async fn log(
    State(inner): Shared,
    Segments((lease, stream)): Segments<(String, String)>,
    Query(at): Query<Offset>,
    body: Body,
) -> Response {
    if let Some(refusal) = refuse(&inner) {
        return refusal;
    }
    let mut kept = inner.kept.lock().expect("not poisoned");
    kept.log_calls.push((at.offset, body.len()));
    let log = kept.logs.entry((lease, stream)).or_default();
    let have = log.len() as u64;
    if at.offset <= have {
        let known = usize::try_from(have - at.offset).expect("small");
        log.extend_from_slice(body.get(known..).unwrap_or_default());
    }
    let keep = usize::try_from(LOG_BYTES_MAX).expect("fits");
    let full = log.len() >= keep;
    log.truncate(keep);
    Json(LogAck { next_offset: log.len() as u64, full }).into_response()
}

async fn blob(State(inner): Shared, Segments(sha): Segments<String>, body: Body) -> Response {
    if let Some(refusal) = refuse(&inner) {
        return refusal;
    }
    assert_eq!(sha, hex::encode(Sha256::digest(&body)), "the name is the hash");
    inner.kept.lock().expect("not poisoned").blobs.insert(sha, body.to_vec());
    StatusCode::NO_CONTENT.into_response()
}

async fn verdicts(State(inner): Shared) -> Response {
    refuse(&inner)
        .unwrap_or_else(|| Json(inner.kept.lock().expect("not poisoned").verdicts.clone()).into_response())
}

async fn release(State(inner): Shared, Segments((version, _)): Segments<(String, String)>) -> Response {
    if let Some(refusal) = refuse(&inner) {
        return refusal;
    }
    match inner.kept.lock().expect("not poisoned").releases.get(&version) {
        Some(bytes) => bytes.clone().into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Waits until something holds, or fails saying what did not.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "it did not come true that {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn program() -> std::ffi::OsString {
    std::env::var_os("NAVE_TEST_AGENT").unwrap_or_else(|| env!("CARGO_BIN_EXE_miner-agent").into())
}

/// A real agent process, killed when it goes out of scope.
pub struct Agent {
    child: Child,
}

impl Agent {
    pub fn start(plane: &Plane, data: &Path, args: &[&str]) -> Self {
        Self::start_with(plane, data, args, &[])
    }

    /// The same with variables in its environment.
    pub fn start_with(plane: &Plane, data: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        plane.join(data);
        let args = [&["--without-mesh", &plane.url], args].concat();
        Self::spawn(Command::new(program()), data, &args, env)
    }

    /// An agent in a network namespace, whose enrolment is there.
    pub fn start_in(namespace: &str, data: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = Command::new("/usr/bin/env");
        command.args(["ip", "netns", "exec", namespace, "env"]);
        // The agent's variables are not those of the programs that put it there.
        command.args(env.iter().map(|(name, value)| format!("{name}={value}"))).arg(program());
        Self::spawn(command, data, args, &[])
    }

    fn spawn(mut command: Command, data: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        let child = command
            .arg("run")
            .arg("--data")
            .arg(data)
            .env("NAVE_AGENT_PROVER", "/bin/false")
            .envs(env.iter().copied())
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the agent starts");
        Self { child }
    }

    /// Whether it has ended by itself.
    pub fn is_over(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Waits until it has ended by itself.
    pub async fn ended(mut self) -> std::process::ExitStatus {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends in time").expect("waited")
    }

    /// Ends it as a power failure would.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("killed");
    }

    /// The same, without waiting for the end.
    pub fn kill_now(mut self) {
        let _ = self.child.start_kill();
        // It must be gone before its data directory can be taken over.
        while matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to stop and waits until it has.
    pub async fn terminate(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.pid().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signalled");
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        assert!(status.expect("it stops in time").expect("waited").success());
    }
}
