//! `miner-agent enrol` against a market that answers, lies, is away or is slow.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    body::Bytes as Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::post,
};
use nave_domain::{
    HostId, Millis, Timestamp,
    host::Term,
    mesh::{PREFIX_BITS, Prefix},
    rate::Rate,
};
use nave_miner_agent::membership::Membership;
use nave_sdk::wire::{
    enrol::{Enrolment, EnrolmentRequest, MeshPlace, Signature, Ticket, TicketId, TicketPayload},
    rest::Problem,
    sign::{REPLY_SIGNATURE_HEADER, Request, SecretKey, Stamp, sha256},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

/// What the market does.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Honest,
    /// Signs with another key.
    Forged,
    /// Does not sign at all.
    Unsigned,
    /// Signs its refusal.
    Refuses,
}

struct Market {
    key: SecretKey,
    manner: Manner,
    url: String,
    away: AtomicBool,
    /// Hosts by ticket, with the agent key and the mesh key that used it first.
    used: Mutex<BTreeMap<TicketId, (String, String, HostId)>>,
    calls: Mutex<Vec<EnrolmentRequest>>,
}

impl Market {
    fn start(manner: Manner) -> Arc<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        listener.set_nonblocking(true).expect("a setting");
        let market = Arc::new(Self {
            key: SecretKey::generate().expect("a key"),
            manner,
            url: format!("http://{}", listener.local_addr().expect("an address")),
            away: AtomicBool::new(false),
            used: Mutex::default(),
            calls: Mutex::default(),
        });
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let app = Router::new().route("/v1/enrolments", post(enrol)).with_state(market.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        market
    }

    fn payload(&self, n: u8) -> TicketPayload {
        TicketPayload {
            url: self.url.clone(),
            market_key: self.key.public(),
            release_key: None,
            hotkey: "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY".into(),
            ticket: TicketId([n; 16]),
            expires_at: Timestamp(4_000_000_000_000),
            name: None,
            rate: Rate::default(),
            term: Term::OnDemand,
            region: None,
            agent_key: None,
            replaces: None,
        }
    }

    fn ticket(&self, n: u8) -> String {
        text(&self.payload(n))
    }

    fn calls(&self) -> usize {
        self.calls.lock().expect("not poisoned").len()
    }
}

/// Nobody but the market checks the hotkey's signature.
fn text(payload: &TicketPayload) -> String {
    let bytes = serde_json::to_vec(payload).expect("JSON");
    Ticket::new(bytes, Signature([9; 64])).expect("a ticket").to_string()
}

async fn enrol(State(market): State<Arc<Market>>, headers: HeaderMap, body: Body) -> Response {
    if market.away.load(Ordering::Relaxed) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let stamp = Stamp::read(|name| headers.get(name).and_then(|value| value.to_str().ok())).expect("a stamp");
    let (key, hash) = (market.key.public(), sha256(&body));
    let signed = Request { market: &key, method: "POST", target: "/v1/enrolments", body: &hash };
    let request: EnrolmentRequest = serde_json::from_slice(&body).expect("a request");
    assert_eq!(stamp.verify_agent(&signed), Ok(request.agent_key), "signed by the key it names");
    let ticket = request.check().expect("plausible").payload().ticket;
    let (status, body) = market.answer(ticket, &request);
    market.calls.lock().expect("not poisoned").push(request);
    let signer = SecretKey::generate().expect("a key");
    let signer = if market.manner == Manner::Forged { &signer } else { &market.key };
    let signature = signer.sign_reply(&stamp.signature, status.as_u16(), &body);
    match market.manner {
        Manner::Unsigned => (status, body).into_response(),
        Manner::Honest | Manner::Forged | Manner::Refuses => {
            (status, [(REPLY_SIGNATURE_HEADER, signature.to_string())], body).into_response()
        }
    }
}

impl Market {
    fn answer(&self, ticket: TicketId, request: &EnrolmentRequest) -> (StatusCode, Vec<u8>) {
        let mut used = self.used.lock().expect("not poisoned");
        let host: HostId = format!("host_{:032x}", used.len() + 1).parse().expect("an id");
        let keys = (request.agent_key.to_string(), request.mesh_key.to_string(), host);
        let (agent, mesh, host) = used.entry(ticket).or_insert(keys).clone();
        assert_eq!(mesh, request.mesh_key.to_string(), "the same wish has the same keys");
        if agent != request.agent_key.to_string() || self.manner == Manner::Refuses {
            let problem = Problem {
                r#type: "about:blank".into(),
                title: "Conflict".into(),
                status: 409,
                detail: "another agent has used this ticket".into(),
                code: "ticket_used".into(),
                retryable: false,
                suggestion: "have a new one made".into(),
            };
            return (StatusCode::CONFLICT, serde_json::to_vec(&problem).expect("JSON"));
        }
        let prefix = Prefix::of_market(&self.key.public().0);
        let place = MeshPlace {
            address: prefix.host(host),
            prefix: PREFIX_BITS,
            hub_address: prefix.hub(),
            hub_key: common::mesh_key(3),
            hub_endpoints: vec!["127.0.0.1:1".into()],
            port: 7461,
            keepalive_s: 15,
        };
        let place = Enrolment { host, name: "h".into(), mesh: place, report_ms: Millis(1_000) };
        (StatusCode::CREATED, serde_json::to_vec(&place).expect("JSON"))
    }
}

async fn call(data: &Path, args: &[&str], crash: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_miner-agent"));
    command.arg(args[0]).arg("--data").arg(data).args(&args[1..]).stdin(Stdio::null()).kill_on_drop(true);
    if let Some(dir) = crash {
        command.env("NAVE_CRASH_POINTS", dir);
    }
    command.output().await.expect("it runs")
}

async fn join(data: &TempDir, ticket: &str, more: &[&str]) -> Output {
    let fixed = ["enrol", "--runtime", "simulated", "--prover", "/bin/false", "--json", ticket];
    call(&data.path().join("data"), &[&fixed, more].concat(), None).await
}

fn json(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {said}"))
}

fn data() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

#[tokio::test]
async fn a_ticket_makes_this_machine_a_host_and_asked_again_it_is_the_same_host() {
    let (market, data) = (Market::start(Manner::Honest), data());
    let first = join(&data, &market.ticket(1), &[]).await;
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let again = join(&data, &market.ticket(1), &[]).await;
    assert_eq!(json(&first), json(&again));
    assert_eq!(market.calls(), 1, "it knows what it is");
    let status = call(&data.path().join("data"), &["status", "--json"], None).await;
    assert_eq!(json(&status)["host"]["host"], json(&first)["host"]);
    assert_eq!(json(&status)["running"], false);
}

#[tokio::test]
async fn killed_at_any_point_and_called_again_it_is_the_same_host() {
    for point in [
        "agent.enrol.after_keys",
        "agent.enrol.before_save",
        "agent.state.before_replace",
        "agent.enrol.before_settle",
    ] {
        let (market, data) = (Market::start(Manner::Honest), data());
        fs::write(data.path().join(point), "").expect("armed");
        let ticket = market.ticket(1);
        let args = ["enrol", "--runtime", "simulated", "--prover", "/bin/false", "--json", &ticket];
        let dir = data.path().join("data");
        let killed = call(&dir, &args, Some(data.path())).await;
        assert!(!killed.status.success() && !data.path().join(point).exists(), "{point} was reached");
        let again = call(&dir, &args, Some(data.path())).await;
        assert!(again.status.success(), "{point}: {}", String::from_utf8_lossy(&again.stderr));
        assert_eq!(market.used.lock().expect("not poisoned").len(), 1);
        let member = Membership::load(&dir).expect("a member");
        let key = nave_mesh::PrivateKey::load(&dir.join("agent/mesh.key")).expect("a key").public();
        let told = market.calls.lock().expect("not poisoned").last().map(|call| call.mesh_key);
        assert_eq!(told, Some(key), "{point}: the key in use is the one the market knows");
        assert_eq!(member.market_key, market.key.public());
        let left = fs::read_dir(dir.join("agent")).expect("listed").flatten();
        let left: Vec<String> = left.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
        assert!(!left.iter().any(|name| name.starts_with("mesh-")), "{point}: {left:?}");
    }
}

#[tokio::test]
async fn an_answer_that_the_ticketed_market_did_not_sign_is_not_believed() {
    for manner in [Manner::Forged, Manner::Unsigned] {
        let (market, data) = (Market::start(manner), data());
        let refused = join(&data, &market.ticket(1), &[]).await;
        assert!(!refused.status.success());
        assert_eq!(json(&refused)["error"]["code"], "reply_not_signed");
        assert_eq!(Membership::find(&data.path().join("data")).expect("read"), None);
    }
}

#[tokio::test]
async fn a_refusal_of_the_market_is_shown_with_what_to_do() {
    let (market, data) = (Market::start(Manner::Refuses), data());
    let refused = join(&data, &market.ticket(1), &[]).await;
    let error = &json(&refused)["error"];
    assert_eq!(
        (&error["code"], &error["suggestion"]),
        (&"ticket_used".into(), &"have a new one made".into())
    );
}

#[tokio::test]
async fn a_market_that_is_away_is_waited_for() {
    let (market, data) = (Market::start(Manner::Honest), data());
    market.away.store(true, Ordering::Relaxed);
    let back = async {
        tokio::time::sleep(std::time::Duration::from_millis(600)).await;
        market.away.store(false, Ordering::Relaxed);
    };
    let ticket = market.ticket(1);
    let (joined, ()) = tokio::join!(join(&data, &ticket, &["--wait", "30"]), back);
    assert!(joined.status.success());
    assert!(String::from_utf8_lossy(&joined.stderr).contains("no answer yet"));
}

#[tokio::test]
async fn another_host_is_given_up_only_on_request() {
    let (market, data) = (Market::start(Manner::Honest), data());
    let first = json(&join(&data, &market.ticket(1), &[]).await);
    let refused = join(&data, &market.ticket(2), &[]).await;
    assert_eq!(json(&refused)["error"]["code"], "already_enrolled");
    assert!(json(&refused)["error"]["suggestion"].as_str().is_some_and(|text| text.contains("--replace")));
    let second = json(&join(&data, &market.ticket(2), &["--replace"]).await);
    assert_ne!(first["host"], second["host"]);
    let calls = market.calls.lock().expect("not poisoned");
    assert_ne!(calls[0].mesh_key, calls[1].mesh_key, "another host has another mesh key");
    assert_eq!(calls[0].agent_key, calls[1].agent_key, "the agent is the same");
}

#[tokio::test]
async fn a_ticket_for_another_agent_is_not_even_sent() {
    let (market, data) = (Market::start(Manner::Honest), data());
    let mine = call(&data.path().join("data"), &["key"], None).await;
    let mine = String::from_utf8_lossy(&mine.stdout).trim().to_owned();
    let bound = |key: &str| text(&TicketPayload { agent_key: key.parse().ok(), ..market.payload(1) });
    let refused = join(&data, &bound(&"ab".repeat(32)), &[]).await;
    assert_eq!((json(&refused)["error"]["code"].as_str(), market.calls()), (Some("ticket_bound"), 0));
    assert!(join(&data, &bound(&mine), &[]).await.status.success());
}

#[tokio::test]
async fn text_that_is_no_ticket_is_refused_before_anything_is_made() {
    let data = data();
    let refused = join(&data, "nave1.rubbish", &[]).await;
    assert_eq!(json(&refused)["error"]["code"], "ticket_malformed");
    assert!(!data.path().join("data").exists());
}
