//! What came of the tests of hosts: open to everyone, appealed by their owners.

use nave_domain::{
    ChallengeId, HostId, MilliCpu, Millis,
    host::Device,
    verdict::{Cause, Kind},
};
use nave_sdk::wire::{
    proof::{Challenge, CpuTask, Digest, Message, Nonce, Opening, ProofReport, SoftwareTask, Task},
    rest::Page,
    sign::sha256,
    verdict::{HostVerdict, OpeningState, Ruling, VerdictRecord},
};
use nave_store::{Decision, Drawing};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    setup::{Host, Market, inventory, read, refused},
    signing::{Enrolled, Owner},
};

async fn draw(market: &Market, host: HostId, task: Task, shadow: bool) -> Challenge {
    let id = ChallengeId(Uuid::now_v7());
    let kind = task.kind();
    let nonce = Nonce([1; 32]);
    let challenge = Challenge::new(id, host, task, nonce);
    let body = serde_json::to_value(&challenge).expect("JSON");
    let claims = inventory();
    let drawing = Drawing {
        host,
        challenge: id,
        kind,
        cause: Cause::Random,
        body: &body,
        claims: &claims,
        shadow,
        window: None,
        lease: None,
    };
    market.store.challenge_draw(&drawing).await.expect("a challenge");
    challenge
}

fn cpu() -> Task {
    Task::Cpu(CpuTask { milli_cpu: MilliCpu(8_000), segments: 64, samples: 4 })
}

async fn answer(host: &mut Host<'_>, challenge: ChallengeId, step: u32, message: Message) {
    host.spec(0, 0).await.expect("a spec");
    let mut report = host.next_report(&[]);
    report.proofs.insert(challenge, ProofReport { challenge, step, message });
    host.send(&report).await;
}

/// A test of computing power that is answered to its end.
async fn answered(market: &Market, host: &mut Host<'_>, opening: Opening) -> ChallengeId {
    let id = draw(market, host.id, cpu(), false).await.challenge;
    answer(host, id, 0, Message::Commitment(Digest([5; 32]))).await;
    market.store.challenge_reveal(id, 1, &"02".repeat(32)).await.expect("a reveal");
    answer(host, id, 1, Message::Opening(opening)).await;
    id
}

fn failed() -> Value {
    json!({ "failed": { "code": "cpu_overclaimed", "message": "claims 8 cores, proved 1.9 cores in 2.100 s" } })
}

async fn refuse(market: &Market, challenge: ChallengeId) {
    let (code, message) = ("cpu_overclaimed".to_owned(), "too slow".to_owned());
    let decision = Decision::Refused { code, message, pause: Millis(1_000) };
    market.store.challenge_decide(challenge, &failed(), &decision).await.expect("a verdict");
}

async fn open<T: serde::de::DeserializeOwned>(market: &Market, path: &str) -> T {
    read(market.anonymous(Method::GET, path).send().await.expect("an answer")).await
}

async fn heard<'a>(owner: &Owner, market: &'a Market) -> Enrolled<'a> {
    let mut enrolled = owner.enrol(market, |_| {}).await;
    enrolled.host.report(&[]).await;
    enrolled
}

#[tokio::test]
async fn everyone_sees_what_a_host_was_asked_what_it_answered_and_what_came_of_it() {
    let market = Market::start().await;
    let mut enrolled = heard(&Owner::new(), &market).await;
    let host = enrolled.id();
    let bytes = vec![7; 3_000];
    let id = answered(&market, &mut enrolled.host, Opening::Inline(bytes.clone())).await;
    refuse(&market, id).await;
    let list: Page<HostVerdict> = open(&market, &format!("/v1/hosts/{host}/verdicts")).await;
    let [verdict] = &list.items[..] else { panic!("{list:?}") };
    assert_eq!((verdict.challenge, verdict.kind, verdict.cause), (id, Kind::Cpu, Cause::Random));
    assert_eq!((verdict.code.as_str(), verdict.opening), ("cpu_overclaimed", OpeningState::Kept));
    assert_eq!(serde_json::to_value(&verdict.ruling).expect("JSON"), failed());
    assert_eq!(verdict.actions, ["appeal"]);
    let path = format!("/v1/hosts/{host}/verdicts/{id}");
    let record: VerdictRecord = open(&market, &path).await;
    assert_eq!(&record.verdict, verdict);
    assert_eq!(record.test.expect("a challenge").reveals, [Nonce([2; 32])]);
    let [committed, opened] = &record.exchanges[..] else { panic!("{:?}", record.exchanges) };
    assert_eq!((committed.commitment, opened.commitment), (Some(Digest([5; 32])), None));
    assert!(committed.answered_at >= committed.sent_at && opened.answered_at.is_some());
    let opening = market.anonymous(Method::GET, &format!("{path}/opening")).send().await.expect("an answer");
    assert_eq!(opening.headers()["content-type"], "application/octet-stream");
    assert_eq!(opening.bytes().await.expect("bytes"), bytes);
}

#[tokio::test]
async fn a_long_opening_is_served_too_and_a_host_has_no_verdicts_of_others() {
    let market = Market::start().await;
    let owner = Owner::new();
    let (mut one, other) = (heard(&owner, &market).await, heard(&owner, &market).await);
    let bytes = vec![3; 100_000];
    let hash = sha256(&bytes);
    // A blob is taken of who has something open.
    let id = draw(&market, one.id(), cpu(), false).await.challenge;
    let put = one.host.call(Method::PUT, &format!("/host/v1/blobs/{hash}")).body(bytes.clone());
    assert_eq!(put.send().await.expect("an answer").status(), 204);
    answer(&mut one.host, id, 0, Message::Opening(Opening::Blob { sha256: Digest(hash.0), size: 100_000 }))
        .await;
    refuse(&market, id).await;
    let (mine, theirs) = (one.id(), other.id());
    let opening = market.anonymous(Method::GET, &format!("/v1/hosts/{mine}/verdicts/{id}/opening"));
    assert_eq!(opening.send().await.expect("an answer").bytes().await.expect("bytes"), bytes);
    for path in
        [format!("/v1/hosts/{theirs}/verdicts/{id}"), format!("/v1/hosts/{theirs}/verdicts/{id}/opening")]
    {
        refused(market.anonymous(Method::GET, &path), 404, "verdict_not_found").await;
    }
    let none: Page<HostVerdict> = open(&market, &format!("/v1/hosts/{theirs}/verdicts")).await;
    assert_eq!(none.items, []);
    let unknown = HostId(Uuid::max());
    refused(market.anonymous(Method::GET, &format!("/v1/hosts/{unknown}/verdicts")), 404, "host_not_found")
        .await;
}

#[tokio::test]
async fn a_test_that_is_not_over_is_told_to_nobody_before_its_host_fetches_it() {
    let market = Market::start().await;
    let enrolled = heard(&Owner::new(), &market).await;
    let (host, id) = (enrolled.id(), draw(&market, enrolled.id(), cpu(), false).await.challenge);
    let list: Page<HostVerdict> = open(&market, &format!("/v1/hosts/{host}/verdicts")).await;
    assert_eq!(list.items, []);
    for path in [format!("/v1/hosts/{host}/verdicts/{id}"), format!("/v1/hosts/{host}/verdicts/{id}/opening")]
    {
        refused(market.anonymous(Method::GET, &path), 404, "verdict_not_found").await;
    }
}

#[tokio::test]
async fn what_a_host_says_of_its_software_is_for_itself_alone() {
    let market = Market::start().await;
    let mut enrolled = heard(&Owner::new(), &market).await;
    let host = enrolled.id();
    let task = Task::Software(SoftwareTask { patience_ms: Millis(60_000) });
    let id = draw(&market, host, task, true).await.challenge;
    answer(&mut enrolled.host, id, 0, Message::Opening(Opening::Inline(b"{}".to_vec()))).await;
    let found = json!({
        "nonce": "01".repeat(32), "kernel": "6.1.0-secret", "architecture": "x86_64", "boot": "02".repeat(32),
        "toolkit": [], "preloaded": { "everywhere": [], "environment": [] }, "mounts": [], "mapped": [],
        "holders": [], "container": "works", "gpus": "not_applicable"
    });
    let passed = json!({ "passed": { "software": found } });
    market.store.challenge_decide(id, &passed, &Decision::Stays).await.expect("a verdict");
    let path = format!("/v1/hosts/{host}/verdicts/{id}");
    let record: VerdictRecord = open(&market, &path).await;
    assert_eq!((record.verdict.shadow, record.verdict.opening), (true, OpeningState::Withheld));
    assert_eq!(record.verdict.ruling, Some(Ruling::Passed(None)));
    refused(market.anonymous(Method::GET, &format!("{path}/opening")), 404, "opening_withheld").await;
    let own = enrolled.host.call(Method::GET, "/host/v1/verdicts").send().await.expect("an answer");
    let own: Vec<HostVerdict> = read(own).await;
    assert!(serde_json::to_string(&own).expect("JSON").contains("6.1.0-secret"));
}

#[tokio::test]
async fn a_verdict_tells_what_it_rests_on_beside_its_evidence() {
    let market = Market::start().await;
    let (mut enrolled, holder) = (heard(&Owner::new(), &market).await, HostId(Uuid::max()));
    let host = enrolled.id();
    let id = answered(&market, &mut enrolled.host, Opening::Inline(vec![7; 64])).await;
    let since = "2026-09-21T14:12:20Z";
    let (code, message) = ("device_elsewhere", format!("GPU-1 has belonged to {holder} since {since}"));
    let written = json!({
        "failed": { "code": code, "message": message }, "rules": "0a".repeat(32),
        "holders": [{ "device": "GPU-1", "host": holder, "since": since }]
    });
    let decision = Decision::Refused { code: code.into(), message, pause: Millis(1_000) };
    market.store.challenge_decide(id, &written, &decision).await.expect("a verdict");
    let record: VerdictRecord = open(&market, &format!("/v1/hosts/{host}/verdicts/{id}")).await;
    assert_eq!(record.verdict.code, code);
    assert_eq!(
        record.verdict.ruling.map(|ruling| json!(ruling)["failed"].clone()),
        Some(written["failed"].clone())
    );
    assert_eq!(record.rules, Some(Digest([10; 32])));
    assert_eq!(json!(record.holders), written["holders"]);
    let claimed: Vec<Device> = inventory().devices;
    assert!(!claimed.is_empty() && claimed.iter().any(|device| !device.driver.is_empty()));
    let published = claimed.into_iter().map(|device| Device { driver: String::new(), ..device });
    assert_eq!(record.claimed, published.collect::<Vec<_>>(), "drivers are for the host alone");
}

#[tokio::test]
async fn lists_of_verdicts_have_pages() {
    let market = Market::start().await;
    let enrolled = heard(&Owner::new(), &market).await;
    let host = enrolled.id();
    let mut drawn = Vec::new();
    for _ in 0..3 {
        let id = draw(&market, host, cpu(), true).await.challenge;
        let void = json!({ "void": "a test" });
        market.store.challenge_decide(id, &void, &Decision::Stays).await.expect("a verdict");
        drawn.insert(0, id);
    }
    let path = format!("/v1/hosts/{host}/verdicts?limit=2");
    let first: Page<HostVerdict> = open(&market, &path).await;
    assert_eq!(first.items.iter().map(|verdict| verdict.challenge).collect::<Vec<_>>(), drawn[..2]);
    let before = first.next.expect("another page");
    let rest: Page<HostVerdict> = open(&market, &format!("{path}&before={before}")).await;
    assert_eq!((rest.items.len(), rest.items[0].challenge, rest.next), (1, drawn[2], None));
    refused(market.anonymous(Method::GET, &format!("{path}&state=x")), 400, "query_invalid").await;
}

#[tokio::test]
async fn nobody_gets_more_than_twenty_verdicts_at_once() {
    let market = Market::start().await;
    let host = heard(&Owner::new(), &market).await.id();
    for _ in 0..21 {
        let id = draw(&market, host, cpu(), true).await.challenge;
        let void = json!({ "void": "a test" });
        market.store.challenge_decide(id, &void, &Decision::Stays).await.expect("a verdict");
    }
    for limit in ["", "?limit=50", "?limit=200"] {
        let path = format!("/v1/hosts/{host}/verdicts{limit}");
        let page: Page<HostVerdict> = open(&market, &path).await;
        assert_eq!((page.items.len(), page.next.is_some()), (20, true), "{limit}");
    }
}

#[tokio::test]
async fn an_owner_appeals_once_and_sees_what_came_of_it() {
    let market = Market::start().await;
    let (owner, other) = (Owner::new(), Owner::new());
    let mut enrolled = heard(&owner, &market).await;
    let host = enrolled.id();
    let id = answered(&market, &mut enrolled.host, Opening::Inline(vec![7; 64])).await;
    refuse(&market, id).await;
    let path = format!("/v1/miner/hosts/{host}/verdicts/{id}/appeal");
    refused(market.anonymous(Method::POST, &path), 401, "signature_missing").await;
    refused(other.call(&market, Method::POST, &path, b"").await, 404, "verdict_not_found").await;
    let appeal = async || -> HostVerdict {
        read(owner.call(&market, Method::POST, &path, b"").await.send().await.expect("an answer")).await
    };
    let waits = appeal().await;
    assert_eq!((waits.appeal.expect("an appeal").ruling, waits.actions.len()), (None, 0));
    let void = json!({ "void": "the judge was wrong" });
    market.store.appeal_decide(id, &void, true).await.expect("decided");
    let came = appeal().await.appeal.expect("an appeal").ruling;
    assert_eq!(came, Some(Ruling::Void("the judge was wrong".into())));
    let passed = draw(&market, host, cpu(), true).await.challenge;
    market.store.challenge_decide(passed, &void, &Decision::Stays).await.expect("a verdict");
    let path = format!("/v1/miner/hosts/{host}/verdicts/{passed}/appeal");
    refused(owner.call(&market, Method::POST, &path, b"").await, 409, "verdict_not_failed").await;
}
