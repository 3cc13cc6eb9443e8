//! Challenges and releases in specs, answers and next keys in reports.

use nave_domain::{Bytes, ChallengeId, HostId, MilliCpu, host::Inventory, verdict::Kind};
use nave_sdk::wire::proof::{
    Challenge, CpuTask, Digest, EXPLANATION_MAX, Failure, INLINE_MAX, Message, Nonce, OPENING_MAX, Opening,
    ProofReport, Reason, Task,
};
use nave_sdk::wire::{
    host::PROTOCOL,
    sign::{Release, SecretKey, SignedRelease, sha256},
};
use nave_store::{Decision, Moment, NewRelease, StepRow};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    setup::{Host, Market, inventory, read, refused},
    signing::fresh_mesh_key,
};

/// A host that claims more than it has proven.
async fn claiming<'a>(market: &'a Market, name: &str) -> Host<'a> {
    let mut host = market.host(name).await;
    host.inventory = Inventory { cpu_model: "unproven".to_owned(), ..inventory() };
    // A host's inventory settles for a second before it may change again.
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    host.report(&[]).await;
    host
}

async fn draw(market: &Market, host: HostId) -> Challenge {
    let task = CpuTask { milli_cpu: MilliCpu(8_000), segments: 64, samples: 4 };
    draw_task(market, host, Task::Cpu(task)).await
}

async fn draw_task(market: &Market, host: HostId, task: Task) -> Challenge {
    let kind = task.kind();
    let challenge = Challenge::new(ChallengeId(Uuid::now_v7()), host, task, Nonce([1; 32]));
    let body = serde_json::to_value(&challenge).expect("JSON");
    let given = market.store.challenge_give(host, challenge.challenge, kind, &body, &inventory()).await;
    given.expect("a challenge");
    challenge
}

async fn steps(market: &Market, challenge: ChallengeId) -> Vec<StepRow> {
    let open = market.store.challenges_open().await.expect("challenges");
    open.into_iter().find(|open| open.challenge == challenge).expect("it is open").steps
}

async fn answers(market: &Market, challenge: ChallengeId) -> Vec<Option<Message>> {
    let read = |(value, _): (Value, Moment)| serde_json::from_value(value).expect("a message");
    steps(market, challenge).await.into_iter().map(|step| step.answer.map(read)).collect()
}

async fn answer(host: &mut Host<'_>, challenge: ChallengeId, step: u32, message: Message) {
    let mut report = host.next_report(&[]);
    report.proofs.insert(challenge, ProofReport { challenge, step, message });
    host.send(&report).await;
}

fn commitment(byte: u8) -> Message {
    Message::Commitment(Digest([byte; 32]))
}

#[tokio::test]
async fn a_challenge_counts_as_sent_when_it_is_first_delivered() {
    let market = Market::start().await;
    let host = claiming(&market, "h").await;
    let drawn = draw(&market, host.id).await;
    assert_eq!(steps(&market, drawn.challenge).await[0].sent, None);
    let spec = host.spec(0, 0).await.expect("a spec");
    assert_eq!(spec.challenges.get(&drawn.challenge), Some(&drawn));
    let first = steps(&market, drawn.challenge).await[0].sent.expect("it was sent");
    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    host.spec(0, 0).await.expect("a spec");
    assert_eq!(steps(&market, drawn.challenge).await[0].sent, Some(first));

    let mut host = host;
    answer(&mut host, drawn.challenge, 0, commitment(1)).await;
    market.store.challenge_reveal(drawn.challenge, 1, &"02".repeat(32)).await.expect("a reveal");
    assert_eq!(steps(&market, drawn.challenge).await[1].sent, None);
    let revealed = host.spec(spec.generation, 0).await.expect("a newer spec").challenges;
    let grown = Challenge { reveals: vec![Nonce([2; 32])], ..drawn.clone() };
    assert_eq!(revealed.get(&drawn.challenge), Some(&grown));
    let sent = steps(&market, drawn.challenge).await;
    assert_eq!(sent[0].sent, Some(first));
    assert!(sent[1].sent.expect("it was sent").at > first.at);
}

#[tokio::test]
async fn an_answer_counts_once_for_the_step_that_was_sent_and_for_its_own_challenge() {
    let market = Market::start().await;
    let (mut host, mut other) = (claiming(&market, "a").await, claiming(&market, "b").await);
    let (mine, theirs) = (draw(&market, host.id).await.challenge, draw(&market, other.id).await.challenge);
    answer(&mut host, mine, 0, commitment(1)).await;
    assert_eq!(answers(&market, mine).await, [None], "what was not sent cannot be answered");
    host.spec(0, 0).await.expect("a spec");
    other.spec(0, 0).await.expect("a spec");
    answer(&mut other, mine, 0, commitment(6)).await;
    answer(&mut host, theirs, 0, commitment(6)).await;
    answer(&mut host, mine, 1, commitment(6)).await;
    answer(&mut host, mine, u32::MAX, commitment(6)).await;
    assert_eq!((answers(&market, mine).await, answers(&market, theirs).await), (vec![None], vec![None]));
    for byte in [1, 2] {
        answer(&mut host, mine, 0, commitment(byte)).await;
        assert_eq!(answers(&market, mine).await, [Some(commitment(1))]);
    }
    market.store.challenge_reveal(mine, 1, &"02".repeat(32)).await.expect("a reveal");
    answer(&mut host, mine, 1, commitment(6)).await;
    assert_eq!(answers(&market, mine).await[1], None, "the nonce has not left yet");
    host.spec(0, 0).await.expect("a spec");
    let opening = Message::Opening(Opening::Inline(vec![7; INLINE_MAX]));
    answer(&mut host, mine, 0, commitment(6)).await;
    answer(&mut host, mine, 1, opening.clone()).await;
    assert_eq!(answers(&market, mine).await, [Some(commitment(1)), Some(opening)]);
    let refusal = Decision::Refused {
        code: "cpu_overclaimed".to_owned(),
        message: "too slow".to_owned(),
        pause: nave_domain::Millis(1_000),
    };
    market.store.challenge_decide(mine, &json!({}), &refusal).await.expect("a verdict");
    answer(&mut host, mine, 1, commitment(9)).await;
    let spec = host.spec(0, 0).await.expect("a spec");
    assert_eq!((spec.state, spec.challenges.len()), (nave_domain::host::HostState::Refused, 0));
    let told = spec.reason.expect("the host is told why");
    assert_eq!((told.code.as_str(), told.message.as_str()), ("cpu_overclaimed", "too slow"));
    let listed: Vec<nave_sdk::wire::rest::Host> = market.fetch("/v1/hosts").await;
    assert_eq!(listed[0].reason.as_ref(), Some(&told), "its owner is told the same");
}

#[tokio::test]
async fn several_challenges_are_answered_at_once_each_in_its_own_time() {
    let market = Market::start().await;
    let mut host = claiming(&market, "h").await;
    let cpu = draw(&market, host.id).await;
    let first = host.spec(0, 0).await.expect("a spec");
    let memory = draw_task(&market, host.id, Task::memory(Bytes(1 << 30), MilliCpu(8_000))).await;
    let both = host.spec(first.generation, 0).await.expect("a newer spec").challenges;
    assert_eq!(both.into_values().collect::<Vec<_>>(), [cpu.clone(), memory.clone()]);
    let sent = [cpu.challenge, memory.challenge].map(|id| steps(&market, id));
    let [earlier, later] = futures_util::future::join_all(sent).await.try_into().expect("two");
    assert!(earlier[0].sent.expect("it was sent").at < later[0].sent.expect("it was sent").at);

    let mut report = host.next_report(&[]);
    for (challenge, byte) in [(cpu.challenge, 1), (memory.challenge, 2)] {
        report.proofs.insert(challenge, ProofReport { challenge, step: 0, message: commitment(byte) });
    }
    host.send(&report).await;
    assert_eq!(answers(&market, cpu.challenge).await, [Some(commitment(1))]);
    assert_eq!(answers(&market, memory.challenge).await, [Some(commitment(2))]);
    market.store.challenge_reveal(memory.challenge, 1, &"02".repeat(32)).await.expect("a reveal");
    let grown = host.spec(0, 0).await.expect("a spec").challenges;
    assert_eq!((grown[&cpu.challenge].step(), grown[&memory.challenge].step()), (0, 1));
    let passed = json!({"void": "a test"});
    market.store.challenge_decide(cpu.challenge, &passed, &Decision::Stays).await.expect("a verdict");
    let left = host.spec(0, 0).await.expect("a spec").challenges;
    assert_eq!(left.keys().collect::<Vec<_>>(), [&memory.challenge], "the other one goes on");
}

#[tokio::test]
async fn an_opening_that_is_a_blob_counts_when_the_blob_is_there() {
    let market = Market::start().await;
    let mut host = claiming(&market, "h").await;
    let bytes = vec![3; 100_000];
    let hash = sha256(&bytes);
    let put = |host: &Host<'_>| host.call(Method::PUT, &format!("/host/v1/blobs/{hash}")).body(bytes.clone());
    refused(put(&host), 403, "nothing_open").await;
    let drawn = draw(&market, host.id).await.challenge;
    host.spec(0, 0).await.expect("a spec");
    let opening = |size| Message::Opening(Opening::Blob { sha256: Digest(hash.0), size });
    answer(&mut host, drawn, 0, opening(100_000)).await;
    assert_eq!(answers(&market, drawn).await, [None], "its bytes have not come");
    assert_eq!(put(&host).send().await.expect("an answer").status(), 204);
    answer(&mut host, drawn, 0, opening(99_999)).await;
    assert_eq!(answers(&market, drawn).await, [None], "it is not what is stored");
    answer(&mut host, drawn, 0, opening(100_000)).await;
    assert_eq!(answers(&market, drawn).await, [Some(opening(100_000))]);
}

#[tokio::test]
async fn what_a_host_says_about_its_failure_is_bounded() {
    let market = Market::start().await;
    let mut host = claiming(&market, "h").await;
    let drawn = draw(&market, host.id).await.challenge;
    host.spec(0, 0).await.expect("a spec");
    let message = format!("\0{}", "x".repeat(5_000));
    answer(&mut host, drawn, 0, Message::Failed(Failure { code: Reason::Aborted, message })).await;
    let [Some(Message::Failed(kept))] = &answers(&market, drawn).await[..] else { panic!("no failure") };
    assert!(kept.message.len() <= EXPLANATION_MAX + 2 && !kept.message.contains('\0'));
}

#[tokio::test]
async fn a_challenge_of_another_version_holds_up_no_spec() {
    let market = Market::start().await;
    let host = claiming(&market, "h").await;
    let id = ChallengeId(Uuid::now_v7());
    let (kind, body) = (Kind::Cpu, json!({"of": "tomorrow"}));
    market.store.challenge_give(host.id, id, kind, &body, &inventory()).await.expect("drawn");
    assert_eq!(host.spec(0, 0).await.expect("a spec").challenges.len(), 0);
}

#[tokio::test]
async fn a_next_mesh_key_is_kept_for_the_hub_and_confirmed_by_the_spec() {
    let market = Market::start().await;
    let (mut host, mut other) = (market.host("a").await, market.host("b").await);
    let before = host.spec(0, 0).await.expect("a spec");
    let key = fresh_mesh_key();
    for _ in 0..2 {
        let mut report = host.next_report(&[]);
        report.mesh_key_next = Some(key);
        host.send(&report).await;
    }
    assert_eq!(host.spec(0, 0).await.expect("a spec").mesh.key, before.mesh.key);
    let mut thief = other.next_report(&[]);
    thief.mesh_key_next = Some(key);
    let call = other.call(Method::POST, "/host/v1/report").json(&thief);
    refused(call, 409, "mesh_key_taken").await;
    market.store.mesh_key_adopt(host.id, &key.to_string()).await.expect("adopted");
    let after = host.spec(before.generation, 0).await.expect("a newer spec");
    assert_eq!(after.mesh.key, key);
    // Its old key is never anybody else's.
    let mut thief = other.next_report(&[]);
    thief.mesh_key_next = Some(key);
    refused(other.call(Method::POST, "/host/v1/report").json(&thief), 409, "mesh_key_taken").await;
}

async fn publish(market: &Market, key: &SecretKey, version: &str, bytes: &[u8]) -> SignedRelease {
    let release = Release {
        version: version.to_owned(),
        target: "x86_64-linux".to_owned(),
        sha256: sha256(bytes),
        size: bytes.len() as u64,
    };
    let signature = key.sign(&release.bytes());
    let new = NewRelease {
        version,
        target: &release.target,
        manifest: &serde_json::to_value(&release).expect("JSON"),
        signature: &signature.to_string(),
        bytes,
    };
    market.store.release_publish(&new).await.expect("published");
    SignedRelease { release, signature }
}

#[tokio::test]
async fn a_host_is_offered_the_newest_release_that_the_release_key_signed() {
    let key = SecretKey::generate().expect("a key");
    let public = key.public();
    let market = Market::configured(|config| config.release_key = Some(public)).await;
    let mut host = market.host("h").await;
    host.inventory = Inventory { agent: "0.9.0".to_owned(), ..inventory() };
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    host.report(&[]).await;
    let before = host.spec(0, 0).await.expect("a spec");
    assert_eq!(before.release, None);
    publish(&market, &key, "0.9.1", b"old").await;
    let newest = publish(&market, &key, "0.10.0", b"agent").await;
    let after = host.spec(before.generation, 0).await.expect("a newer spec");
    assert_eq!((after.release, after.protocol), (Some(newest), PROTOCOL));
    let call = host.call(Method::GET, "/host/v1/releases/0.10.0/x86_64-linux");
    assert_eq!(call.send().await.expect("an answer").bytes().await.expect("bytes"), "agent");
    let unknown = host.call(Method::GET, "/host/v1/releases/9.9.9/x86_64-linux");
    refused(unknown, 404, "release_not_found").await;
    let market_document: nave_sdk::wire::enrol::Market =
        read(market.anonymous(Method::GET, "/v1/market").send().await.expect("an answer")).await;
    assert_eq!(market_document.release_key, Some(public));
    publish(&market, &SecretKey::generate().expect("a key"), "0.11.0", b"forged").await;
    assert_eq!(host.spec(0, 0).await.expect("a spec").release, None, "what nobody signed is not offered");
}

#[tokio::test]
async fn a_host_with_nothing_but_a_challenge_stores_what_an_opening_can_be_and_no_more() {
    let market = Market::start().await;
    let host = claiming(&market, "h").await;
    draw(&market, host.id).await;
    let put =
        |bytes: Vec<u8>| host.call(Method::PUT, &format!("/host/v1/blobs/{}", sha256(&bytes))).body(bytes);
    refused(put(vec![7; OPENING_MAX + 1]), 413, "body_too_large").await;
    assert_eq!(put(vec![7; OPENING_MAX]).send().await.expect("an answer").status(), 204);
}
