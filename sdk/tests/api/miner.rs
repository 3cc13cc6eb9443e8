//! What `nave miner` promises to the owners of hosts, against a market that checks signatures.

use std::{
    fs,
    path::Path,
    process::{Output, Stdio},
};

use nave_sdk::{
    hotkey::Hotkey,
    wire::{
        enrol::{PublicKey, Ticket},
        sign::{BadStamp, Request, Stamp, sha256},
    },
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::stub::{Reply, Seen, Stub, nowhere};

const NAVE: &str = env!("CARGO_BIN_EXE_nave");
const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
const HOST: &str = "host_00000000000000000000000000000001";
const MARKET: PublicKey = PublicKey([0xaa; 32]);
const RELEASE: PublicKey = PublicKey([0xbb; 32]);

/// A person's home directory and shell.
struct Person {
    home: TempDir,
}

impl Person {
    fn new() -> Self {
        Self { home: tempfile::tempdir().expect("a home") }
    }

    fn path(&self) -> &Path {
        self.home.path()
    }

    fn nave(&self, url: &str, args: &[&str]) -> Command {
        let mut command = Command::new(NAVE);
        command.arg("miner").args(args).env("NAVE_URL", url).env("HOME", self.path());
        command.env("XDG_CONFIG_HOME", self.path().join("config")).env_remove("NAVE_HOTKEY_URI");
        command.env("NAVE_TOKEN", "nave_secret").stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn types(&self, url: &str, line: &str) -> Output {
        let args: Vec<&str> = line.split_whitespace().collect();
        self.nave(url, &args).output().await.expect("nave runs")
    }

    async fn alice(&self, url: &str, line: &str) -> Output {
        self.types(url, &format!("{line} --hotkey-uri //Alice")).await
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

fn document(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON document on stdout")
}

fn market(key: PublicKey, release: Option<PublicKey>) -> Reply {
    Reply::json(&json!({
        "market_key": key, "release_key": release, "version": "0.1.0",
        "hub": { "key": format!("{}=", "C".repeat(42) + "A"), "endpoints": ["203.0.113.1:51820"] }
    }))
}

fn host(changes: &Value) -> Value {
    let mut host = json!({
        "host": HOST, "name": "gpu-1", "state": "ready", "reason": null, "paused": false,
        "rate": { "gpu_hour": 1_500_000, "vcpu_hour": 20_000, "gib_hour": 3_000 }, "term": "on_demand",
        "trust": "unrated", "inventory": null, "proven": null, "mesh_address": null, "heard_at": null,
        "leases": 2, "enrolled_at": null, "actions": []
    });
    for (field, value) in changes.as_object().expect("an object") {
        host[field] = value.clone();
    }
    host
}

/// Who signed a request, as a gateway finds it out.
fn signer(seen: &Seen) -> Result<Hotkey, BadStamp> {
    let stamp = Stamp::read(|name| seen.header(name))?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    stamp.check_expiry(nave_domain::Timestamp(i64::try_from(now.as_millis()).expect("soon")))?;
    let (target, body) = (seen.uri.to_string(), sha256(&seen.body));
    stamp.verify_hotkey(&Request {
        market: &MARKET,
        method: seen.method.as_str(),
        target: &target,
        body: &body,
    })
}

/// A market with one host, which belongs to Alice.
fn one_host(seen: &Seen) -> Reply {
    let call = seen.call();
    if call == "GET /v1/market" {
        return market(MARKET, Some(RELEASE));
    }
    if signer(seen).map(|key| key.to_string()).as_deref() != Ok(ALICE) {
        return Reply::problem(401, "signature_refused");
    }
    match call.strip_prefix("GET /v1/miner/hosts") {
        Some("") => return Reply::json(&json!([host(&json!({}))])),
        Some(one) if one == format!("/{HOST}") => return Reply::json(&host(&json!({}))),
        Some(_) => return Reply::problem(404, "host_not_found"),
        None => {}
    }
    match call.rsplit('/').next() {
        Some("drain") => Reply::json(&host(&json!({ "state": "draining" }))),
        Some("leave") => Reply::json(&host(&json!({ "state": "gone", "leases": 0 }))),
        Some(_) => Reply::json(&host(&serde_json::from_slice(&seen.body).expect("a change"))),
        None => Reply::problem(404, "host_not_found"),
    }
}

async fn stub() -> Stub {
    Stub::start(|_, seen| one_host(seen)).await
}

/// Bodies of the calls that change something.
fn changes(stub: &Stub) -> Vec<Value> {
    let patches = stub.seen().into_iter().filter(|seen| seen.method == "PATCH");
    patches.map(|seen| serde_json::from_slice(&seen.body).expect("JSON")).collect()
}

#[tokio::test]
async fn a_ticket_stands_alone_on_stdout_and_what_to_type_next_on_stderr() {
    let (stub, person) = (stub().await, Person::new());
    let output = person.alice(&stub.url, "ticket --name gpu-7 --price-gpu 2 --term spot --expires 2h").await;
    let ticket: Ticket = text(&output.stdout).trim_end().parse().expect("a ticket");
    assert_eq!(ticket.verify().map(|key| key.to_string()), Ok(ALICE.to_owned()));
    let payload = ticket.payload();
    assert_eq!((payload.market_key, payload.release_key), (MARKET, Some(RELEASE)));
    assert_eq!((payload.url.as_str(), payload.name.as_deref()), (stub.url.as_str(), Some("gpu-7")));
    assert_eq!((payload.rate.gpu_hour.0, payload.rate.vcpu_hour.0), (2_000_000, 20_000));
    assert_eq!((payload.agent_key, payload.replaces), (None, None));
    let notes = text(&output.stderr);
    assert!(notes.contains("miner-agent enrol TICKET") && notes.contains("works once"), "{notes}");
    assert!(notes.contains("this machine itself"), "{notes}");
}

#[tokio::test]
async fn a_ticket_as_json_says_everything_and_can_be_bound_to_an_agent_and_a_host() {
    let (stub, person) = (stub().await, Person::new());
    let agent = PublicKey([7; 32]);
    let output = person.alice(&stub.url, &format!("ticket --json --for {agent} --replaces gpu-1")).await;
    let made = document(&output);
    let ticket: Ticket = made["ticket"].as_str().expect("text").parse().expect("a ticket");
    assert_eq!(ticket.payload().agent_key, Some(agent));
    assert_eq!(ticket.payload().replaces.map(|host| host.to_string()).as_deref(), Some(HOST));
    assert_eq!(made["payload"]["hotkey"], ALICE);
    assert_eq!(made["payload"]["market_key"], json!(MARKET));
}

#[tokio::test]
async fn a_host_that_joins_again_keeps_its_price_and_term_where_none_is_given() {
    let stub = Stub::start(|_, seen| match seen.call().as_str() {
        "GET /v1/miner/hosts" => {
            let rate = json!({ "gpu_hour": 7, "vcpu_hour": 8, "gib_hour": 9 });
            let gone = host(&json!({ "host": HOST.replace('1', "2"), "state": "gone" }));
            Reply::json(&json!([gone, host(&json!({ "rate": rate, "term": "spot" }))]))
        }
        _ => one_host(seen),
    })
    .await;
    let output = Person::new().alice(&stub.url, "ticket --json --replaces gpu-1 --price-gpu 3").await;
    let payload = &document(&output)["payload"];
    assert_eq!(payload["replaces"], HOST);
    assert_eq!(payload["rate"], json!({ "gpu_hour": 3_000_000, "vcpu_hour": 8, "gib_hour": 9 }));
    assert_eq!(payload["term"], "spot");
}

#[tokio::test]
async fn two_tickets_are_never_the_same() {
    let (stub, person) = (stub().await, Person::new());
    let first = person.alice(&stub.url, "ticket").await;
    assert_ne!(first.stdout, person.alice(&stub.url, "ticket").await.stdout);
}

#[tokio::test]
async fn the_first_market_key_is_told_and_another_one_later_is_refused() {
    let person = Person::new();
    let address = nowhere().await;
    let listen = || {
        std::net::TcpListener::bind(address).map(|listener| {
            listener.set_nonblocking(true).expect("nonblocking");
            tokio::net::TcpListener::from_std(listener).expect("a listener")
        })
    };
    let changing = Stub::serve(listen().expect("the port"), |earlier, seen| match seen.call().as_str() {
        "GET /v1/market" if earlier < 4 => market(MARKET, Some(RELEASE)),
        "GET /v1/market" => market(PublicKey([0xcc; 32]), Some(RELEASE)),
        _ => one_host(seen),
    });
    let first = person.alice(&changing.url, "hosts").await;
    assert!(text(&first.stderr).contains(&MARKET.to_string()), "{}", text(&first.stderr));
    assert!(text(&first.stderr).contains("markets.toml"), "{}", text(&first.stderr));
    let second = person.alice(&changing.url, "hosts").await;
    assert_eq!((second.status.code(), text(&second.stderr)), (Some(0), ""));
    let third = person.alice(&changing.url, "ticket").await;
    let (code, why) = (third.status.code(), text(&third.stderr));
    assert!(code == Some(1) && third.stdout.is_empty() && why.contains("its key has changed"), "{why}");
    assert!(why.contains(&format!("--market-key {}", "cc".repeat(32))), "{why}");
    let accepted = person.alice(&changing.url, &format!("ticket --market-key {}", "cc".repeat(32))).await;
    assert!(accepted.status.success(), "{}", text(&accepted.stderr));
}

#[tokio::test]
async fn a_pinned_key_that_the_market_does_not_have_stops_everything() {
    let (stub, person) = (stub().await, Person::new());
    let output = person.alice(&stub.url, &format!("hosts --json --market-key {}", "cc".repeat(32))).await;
    assert_eq!(output.status.code(), Some(1));
    let problem: Value = serde_json::from_slice(&output.stdout).expect("a problem document");
    assert_eq!(problem["code"], "market_key_mismatch");
    assert_eq!(stub.seen().len(), 1);
}

#[tokio::test]
async fn hosts_are_listed_with_a_signature_and_without_the_customers_token() {
    let (stub, person) = (stub().await, Person::new());
    let output = person.alice(&stub.url, "hosts --json").await;
    assert_eq!(document(&output)[0]["name"], "gpu-1");
    let seen = stub.seen();
    let signed = seen.last().expect("a call");
    assert_eq!(signed.header("nave-key"), Some(ALICE));
    assert_eq!(signed.header("authorization"), None);
}

#[tokio::test]
async fn a_host_is_found_by_name_and_by_id_and_the_others_are_named() {
    let (stub, person) = (stub().await, Person::new());
    for name in ["gpu-1", HOST] {
        assert_eq!(document(&person.alice(&stub.url, &format!("show {name} --json")).await)["host"], HOST);
    }
    let output = person.alice(&stub.url, "show gpu-2").await;
    assert_eq!(output.status.code(), Some(102));
    assert!(text(&output.stderr).contains("this hotkey has gpu-1"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn only_what_was_named_changes() {
    let (stub, person) = (stub().await, Person::new());
    let lines = ["price gpu-1 --price-cpu 0.05", "term gpu-1 spot", "pause gpu-1", "resume gpu-1"];
    let mut said = Vec::new();
    for line in lines {
        let output = person.alice(&stub.url, line).await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        said.push(text(&output.stdout).to_owned());
    }
    let expected = [
        json!({ "rate": { "gpu_hour": 1_500_000, "vcpu_hour": 50_000, "gib_hour": 3_000 } }),
        json!({ "term": "spot" }),
        json!({ "paused": true }),
        json!({ "paused": false }),
    ];
    assert_eq!(changes(&stub), expected);
    assert!(said[0].contains("$0.050000 per CPU") && said[1].contains("offered spot"), "{said:?}");
    assert!(said[2].contains("is paused") && said[3].contains("not paused any more"), "{said:?}");
}

#[tokio::test]
async fn a_host_with_jobs_leaves_only_when_that_was_confirmed() {
    let (stub, person) = (stub().await, Person::new());
    let asked = person.alice(&stub.url, "leave gpu-1").await;
    assert_eq!(asked.status.code(), Some(2));
    assert!(text(&asked.stderr).contains("-y"), "{}", text(&asked.stderr));
    assert!(!stub.seen().iter().any(|seen| seen.call().ends_with("/leave")));
    let left = person.alice(&stub.url, "leave gpu-1 -y").await;
    assert_eq!(text(&left.stdout), "gpu-1 is gone\n");
    let drained = person.alice(&stub.url, "drain gpu-1").await;
    assert_eq!(text(&drained.stdout), "gpu-1 is draining: it finishes 2 jobs and leaves\n");
}

#[tokio::test]
async fn a_call_that_must_be_repeated_is_signed_anew() {
    let stub = Stub::start(|earlier, seen| match earlier {
        1 => Reply::problem(503, "restarting").with("retry-after", "0"),
        _ => one_host(seen),
    })
    .await;
    let output = Person::new().alice(&stub.url, "hosts").await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let seen = stub.seen();
    let nonces: Vec<_> = seen.iter().filter_map(|seen| seen.header("nave-nonce")).collect();
    assert!(nonces.len() == 2 && nonces[0] != nonces[1], "{nonces:?}");
}

#[tokio::test]
async fn another_hotkey_is_refused_by_the_market_in_its_own_words() {
    let (stub, person) = (stub().await, Person::new());
    let output = person.types(&stub.url, "hosts --hotkey-uri //Bob").await;
    let why = text(&output.stderr);
    assert!(why.contains("signature_refused happened") && !why.contains("NAVE_TOKEN"), "{why}");
}

#[tokio::test]
async fn a_hotkey_of_a_wallet_signs_and_its_secret_is_never_shown() {
    let (stub, person) = (stub().await, Person::new());
    let seed = "e5be9a5092b81bca64be81d212e7f2f9eba183bb7a90954f7b76361f6edb5c0a";
    let dir = person.path().join(".bittensor/wallets/mine/hotkeys");
    fs::create_dir_all(&dir).expect("a wallet");
    let file = json!({ "ss58Address": ALICE, "secretSeed": format!("0x{seed}"), "secretPhrase": null });
    fs::write(dir.join("rig"), file.to_string()).expect("written");
    let output = person.types(&stub.url, "ticket --wallet mine --hotkey rig --json").await;
    assert_eq!(document(&output)["payload"]["hotkey"], ALICE);
    let shown = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(!shown.contains(seed), "{shown}");
    assert!(shown.contains("chmod 600"), "{shown}");
    let missing = person.types(&stub.url, "ticket --wallet mine").await;
    assert!(text(&missing.stderr).contains("this wallet has rig"), "{}", text(&missing.stderr));
}

#[tokio::test]
async fn a_secret_in_the_environment_signs_and_a_broken_one_is_not_repeated() {
    let (stub, person) = (stub().await, Person::new());
    let phrase = "bottom drive obey lake curtain smoke basket hold race lonely fit walk";
    let mut command = person.nave(&stub.url, &["hosts"]);
    let output =
        command.env("NAVE_HOTKEY_URI", format!("{phrase}//Alice")).output().await.expect("nave runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut command = person.nave(&stub.url, &["hosts"]);
    let output = command.env("NAVE_HOTKEY_URI", "bottom drive obey").output().await.expect("nave runs");
    let why = text(&output.stderr);
    assert!(
        output.status.code() == Some(1) && !why.contains("bottom") && why.contains("NAVE_HOTKEY_URI"),
        "{why}"
    );
}

#[tokio::test]
async fn an_encrypted_hotkey_says_how_to_get_a_plain_one() {
    let (stub, person) = (stub().await, Person::new());
    let path = person.path().join("locked");
    fs::write(&path, b"$NACL\x00\x01\x02").expect("written");
    let output = person.types(&stub.url, &format!("hosts --hotkey-file {}", path.display())).await;
    let why = text(&output.stderr);
    assert!(why.contains("it is encrypted") && why.contains("btcli wallet regen-hotkey"), "{why}");
    assert!(stub.seen().is_empty());
}
