//! A market of its own for each test.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use nave_domain::{
    Bytes, CustomerId, HostId, JobId, LeaseId, MicroUsd, MilliCpu,
    fraction::Fraction,
    host::{Device, Inventory, Runtime},
    job::{Egress, Resources},
    mesh::Prefix,
    rate::Rate,
};
use nave_gateway::{Config, Gateway, HostListen};
use nave_sdk::wire::{
    host::{HostReport, HostSpec, LeaseReport, LogAck, PROTOCOL, ReportAck},
    rest::{Job, Problem, SCOPES},
    sign::SecretKey,
};
use nave_store::{
    HubRow, Placement, Store,
    testing::{self, NewHost},
};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{sync::oneshot, task::JoinHandle};
use uuid::Uuid;

/// An image that is pinned, so that nothing is looked up.
pub const IMAGE: &str =
    "127.0.0.1:5000/nave/python3@sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945";

/// What each part costs: 1 dollar an hour for a core, so that a job costs something soon.
pub const RATE: Rate =
    Rate { gpu_hour: MicroUsd(2_000_000), vcpu_hour: MicroUsd(36_000_000), gib_hour: MicroUsd(0) };

static COUNT: AtomicU64 = AtomicU64::new(0);
static ADDRESSES: AtomicU32 = AtomicU32::new(0x7f01_0001);

/// A text that no other caller gets.
pub fn fresh(what: &str) -> String {
    format!("{what}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// An address of this machine that nobody else in these tests speaks from.
pub fn fresh_address() -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(ADDRESSES.fetch_add(1, Ordering::Relaxed)))
}

/// The key of every market in these tests.
pub fn market_key() -> SecretKey {
    SecretKey::from_seed([9; 32]).expect("a key")
}

/// Where the hub of every market in these tests is.
pub fn hub() -> HubRow {
    HubRow {
        key: testing::mesh_key(HostId(Uuid::max())),
        endpoints: vec!["192.0.2.1:51820".to_owned()],
        address: Prefix::of_market(&market_key().public().0).hub(),
        port: 7461,
    }
}

/// A client whose connections come from this address.
pub fn client(from: Option<IpAddr>) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().tls_certs_only([]).local_address(from).build().expect("a client")
}

/// A running gateway with a customer who has money.
pub struct Market {
    pub store: Store,
    pub customer: CustomerId,
    pub token: String,
    pub base: String,
    /// Where hosts connect.
    pub hosts: SocketAddr,
    http: Client,
    stop: Option<oneshot::Sender<()>>,
    served: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Market {
    pub async fn start() -> Self {
        Self::configured(|_| {}).await
    }

    pub async fn configured(change: impl FnOnce(&mut Config)) -> Self {
        let store = nave_store::testing::store().await;
        let market = Self::over(store, change).await;
        market.store.default_image_set(IMAGE).await.expect("set the default image");
        market.store.hub_set(&hub()).await.expect("set the hub");
        let (customer, token) = market.customer("alice").await;
        Self { customer, token, ..market }
    }

    /// A gateway over a store, without any customer.
    pub async fn over(store: Store, change: impl FnOnce(&mut Config)) -> Self {
        let inside = TcpListener::bind("127.0.0.1:0").expect("a port");
        let hosts = inside.local_addr().expect("an address");
        let listen = listen(hosts, move || inside.try_clone());
        let mut config = Config::new(any_port(), listen, Arc::new(market_key()));
        change(&mut config);
        let gateway = Gateway::bind(config, store.clone()).await.expect("listen");
        let base = format!("http://{}", gateway.api().expect("an address"));
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(gateway.serve(async { drop(stopped.await) }));
        Self {
            store,
            customer: CustomerId(Uuid::nil()),
            token: String::new(),
            base,
            hosts,
            http: client(None),
            stop: Some(stop),
            served: Some(served),
        }
    }

    /// Another customer with ten dollars and a key for everything.
    pub async fn customer(&self, name: &str) -> (CustomerId, String) {
        let customer = self.store.customer_ensure(name).await.expect("a customer");
        self.store.credit(customer, "start", MicroUsd(10_000_000)).await.expect("credit");
        (customer, self.key(customer, &SCOPES).await)
    }

    pub async fn key(&self, customer: CustomerId, scopes: &[&str]) -> String {
        let scopes: Vec<String> = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        self.store.key_create(customer, "test", &scopes).await.expect("a key").1
    }

    /// The same gateway, called with another key.
    pub fn with_token(self, token: String) -> Self {
        Self { token, ..self }
    }

    /// A call without a key.
    pub fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.anonymous(Method::GET, path).bearer_auth(&self.token)
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.anonymous(Method::POST, path).bearer_auth(&self.token)
    }

    pub async fn fetch<T: DeserializeOwned>(&self, path: &str) -> T {
        read(self.get(path).send().await.expect("an answer")).await
    }

    /// Asks for a job in the usual way.
    pub fn submission(&self, key: &str, body: &Value) -> RequestBuilder {
        self.post("/v1/jobs").header("Idempotency-Key", key).json(body)
    }

    /// A job that was accepted.
    pub async fn submit(&self) -> Job {
        let body = json!({"argv": ["true"], "max_spend": 1_000_000});
        read(self.submission(&fresh("key"), &body).send().await.expect("an answer")).await
    }

    /// Places a queued job as the scheduler would.
    pub async fn place(&self, job: JobId, host: HostId) -> LeaseId {
        self.place_on(job, host, &[], None).await
    }

    /// The same, on GPUs or a slice, or on a share of one.
    pub async fn place_on(
        &self,
        job: JobId,
        host: HostId,
        devices: &[&str],
        share: Option<Fraction>,
    ) -> LeaseId {
        let snapshot = self.store.snapshot().await.expect("a snapshot");
        let queued = snapshot.jobs.iter().find(|queued| queued.job == job).expect("a queued job");
        let supply = &snapshot.hosts[&host];
        let Resources { disk, .. } = queued.request.resources;
        let placement = Placement {
            job,
            host,
            generation: supply.generation,
            size: queued.request.resources.size(),
            disk,
            devices: devices.iter().map(|uuid| (*uuid).to_owned()).collect(),
            share,
            rate: supply.rate,
            run_max: queued.request.limits.run_ms,
            capped_by_spend: false,
            grounds: nave_store::Grounds::default(),
            gang: None,
        };
        self.store.job_place(&placement).await.expect("a placement")
    }

    /// A job on a host that was told of it.
    pub async fn placed(&self, host: &Host<'_>) -> (Job, LeaseId) {
        let job = self.submit().await;
        let lease = self.place(job.job, host.id).await;
        (job, lease)
    }

    /// A host that was heard and takes jobs.
    pub async fn host(&self, name: &str) -> Host<'_> {
        self.host_with(name, inventory()).await
    }

    /// The same, with other claims.
    pub async fn host_with(&self, name: &str, inventory: Inventory) -> Host<'_> {
        let id = HostId(Uuid::now_v7());
        let new = NewHost { host: id, name, hotkey: "5Miner", rate: RATE };
        self.store.host_enrol(&new).await.expect("enrol");
        let address = fresh_address();
        self.store.host_move(id, address).await.expect("an address");
        let mut host = Host { inventory, ..Host::new(self, id, address) };
        host.report(&[]).await;
        host
    }

    /// Ends the gateway and waits until it has ended.
    pub async fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(served) = self.served.take() {
            served.await.expect("no panic").expect("a clean end");
        }
    }

    pub async fn assert_books_balance(&self) {
        assert_eq!(self.store.ledger_audit().await.expect("an audit"), Vec::<String>::new());
    }
}

pub fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

pub fn listen(
    address: SocketAddr,
    bind: impl Fn() -> io::Result<TcpListener> + Send + Sync + 'static,
) -> HostListen {
    HostListen { address, bind: Arc::new(bind) }
}

/// An agent, as far as the gateway can tell.
pub struct Host<'a> {
    pub market: &'a Market,
    pub id: HostId,
    pub address: IpAddr,
    /// What it says it has.
    pub inventory: Inventory,
    http: Client,
    pub session: u64,
    pub sequence: u64,
    pub generation: u64,
}

impl<'a> Host<'a> {
    /// A host that speaks from `address`, whether it may or not.
    pub fn new(market: &'a Market, id: HostId, address: IpAddr) -> Self {
        let http = client(Some(address));
        Self { market, id, address, inventory: inventory(), http, session: 7, sequence: 0, generation: 0 }
    }

    pub fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("http://{}{path}", self.market.hosts))
    }

    /// The next report, not sent yet.
    pub fn next_report(&mut self, leases: &[(LeaseId, LeaseReport)]) -> HostReport {
        self.sequence += 1;
        HostReport {
            protocol: PROTOCOL,
            generation: self.generation,
            sequence: self.sequence,
            session: self.session,
            inventory: self.inventory.clone(),
            mesh_key_next: None,
            proofs: BTreeMap::new(),
            boot: None,
            xids: Vec::new(),
            leases: leases.iter().cloned().collect::<BTreeMap<_, _>>(),
        }
    }

    pub async fn send(&self, report: &HostReport) -> ReportAck {
        read(self.call(Method::POST, "/host/v1/report").json(report).send().await.expect("an answer")).await
    }

    pub async fn report(&mut self, leases: &[(LeaseId, LeaseReport)]) -> ReportAck {
        let report = self.next_report(leases);
        self.send(&report).await
    }

    pub async fn spec(&self, after: u64, wait_ms: u64) -> Option<HostSpec> {
        let path = format!("/host/v1/spec?after={after}&wait_ms={wait_ms}");
        let answer = self.call(Method::GET, &path).send().await.expect("an answer");
        if answer.status() == StatusCode::NO_CONTENT { None } else { Some(read(answer).await) }
    }

    pub async fn log(&self, lease: LeaseId, stream: &str, offset: u64, bytes: &[u8]) -> LogAck {
        let path = format!("/host/v1/leases/{lease}/logs/{stream}?offset={offset}");
        read(self.call(Method::POST, &path).body(bytes.to_vec()).send().await.expect("an answer")).await
    }
}

pub fn inventory() -> Inventory {
    Inventory {
        milli_cpu: MilliCpu(8_000),
        memory: Bytes(8 * Bytes::GIB),
        disk: Bytes(64 * Bytes::GIB),
        devices: vec![Device {
            uuid: "GPU-1".to_owned(),
            model: "H200".to_owned(),
            vram: Bytes(140 * Bytes::GIB),
            driver: "580".to_owned(),
            simulated: false,
            division: nave_domain::fraction::Division::default(),
        }],
        cpu_model: "test".to_owned(),
        os: "test".to_owned(),
        kernel: "6".to_owned(),
        runtime: Runtime::Docker { version: "28".to_owned() },
        egress: vec![Egress::Public, Egress::None],
        agent: "test".to_owned(),
    }
}

/// The document of a successful answer.
pub async fn read<T: DeserializeOwned>(answer: Response) -> T {
    let (status, text) = (answer.status(), answer.text().await.expect("a body"));
    assert!(status.is_success(), "{status}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The problem of a refused call, which must have this status and code.
pub async fn refused(call: RequestBuilder, status: u16, code: &str) -> Problem {
    let answer = call.send().await.expect("an answer");
    let (got, headers) = (answer.status(), answer.headers().clone());
    let text = answer.text().await.expect("a body");
    assert_eq!(got, status, "{text}");
    assert_eq!(headers["content-type"], "application/problem+json");
    let problem: Problem = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!((problem.status, problem.code.as_str()), (status, code), "{text}");
    assert!(!problem.detail.is_empty() && !problem.suggestion.is_empty(), "{text}");
    problem
}
