//! Hosts that fetch from one another, and who is to blame when nothing comes.

use std::{collections::BTreeSet, net::Ipv6Addr};

use nave_domain::{
    ChallengeId, HostId, Millis,
    host::HostState,
    verdict::{Cause, Kind},
};
use nave_proof::{
    Challenge, Failure, Message, Nonce, Opening, ProofReport, Proven, Reason, Task, VERSION,
    transfer::{Content, Fetched, PIECE, reached},
};
use nave_store::Drawing;
use nave_verifier::{Config, Verifier, decide::Ruling};
use uuid::Uuid;

use crate::market::{Host, Market, config, look, open};

const NEVER: Millis = Millis(1 << 50);

/// Hosts with an address that take jobs.
async fn ready<const COUNT: usize>(market: &Market) -> Vec<Host> {
    let mut hosts = Vec::new();
    for n in 1..=u16::try_from(COUNT).expect("few") {
        let mut host = market.host(&format!("host {n}"), 1_000).await;
        host.prove_all(&mut market.verifier()).await;
        let address = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, n);
        market.store.host_move(host.id, address.into()).await.expect("an address");
        hosts.push(host);
    }
    hosts
}

fn verifier(market: &Market, more: Config) -> Verifier {
    Verifier::new(more, market.store.clone())
}

fn in_shadow() -> Config {
    Config { shadow: BTreeSet::from([Kind::Transfer]), transfer: NEVER, ..config() }
}

async fn transfer_of(host: &Host) -> Option<Challenge> {
    let all = host.fetch_all().await;
    all.into_iter().find(|challenge| matches!(challenge.task, Task::Transfer(_)))
}

async fn say(host: &Host, challenge: &Challenge, message: Message) {
    let step = u32::try_from(challenge.step()).expect("small");
    assert!(host.send(&ProofReport { challenge: challenge.challenge, step, message }).await);
    let took = Millis(1_000);
    host.store.challenge_took(challenge.challenge, step, took, took).await.expect("move time");
}

async fn give_up(host: &Host, challenge: &Challenge) {
    tell(host, challenge, Reason::Aborted).await;
}

async fn tell(host: &Host, challenge: &Challenge, code: Reason) {
    let failure = Failure { code, message: "nobody answered".into() };
    say(host, challenge, Message::Failed(failure)).await;
}

/// Who is to serve in a transfer, and with which key.
async fn source(hosts: &[Host], challenge: &Challenge) -> (HostId, Nonce) {
    for host in hosts {
        let served = host.store.transfers_served(host.id).await.expect("rows");
        if let Some(row) = served.iter().find(|row| row.challenge == challenge.challenge) {
            return (host.id, row.key.parse().expect("a key"));
        }
    }
    panic!("nobody serves {challenge:?}");
}

/// Fetches all that a source with this key sends, in a second.
async fn fetch(host: &Host, verifier: &mut Verifier, key: Nonce) {
    let challenge = transfer_of(host).await.expect("a transfer");
    let Task::Transfer(task) = &challenge.task else { panic!("{challenge:?}") };
    say(host, &challenge, Message::Commitment(reached(&challenge))).await;
    look(verifier).await;
    let challenge = transfer_of(host).await.expect("a transfer");
    let content = Content::of(&key, challenge.reveals.last().expect("a request"));
    let (mut fetched, mut chunk) = (Fetched::default(), vec![0; PIECE]);
    for number in 0..task.bytes / PIECE as u64 {
        content.chunk(number, &mut chunk);
        fetched.take(&chunk);
    }
    say(host, &challenge, Message::Commitment(fetched.commitment().expect("chunks"))).await;
    look(verifier).await;
    let challenge = transfer_of(host).await.expect("a transfer");
    let opening = fetched.opening(&challenge, task).expect("an opening");
    say(host, &challenge, Message::Opening(Opening::Inline(opening))).await;
    look(verifier).await;
}

/// The host that fetches first.
async fn first(hosts: &[Host]) -> (&Host, Challenge) {
    for host in hosts {
        if let Some(challenge) = transfer_of(host).await {
            return (host, challenge);
        }
    }
    panic!("nobody fetches");
}

#[tokio::test]
async fn what_came_is_recorded_and_the_host_takes_jobs_meanwhile() {
    let market = open().await;
    let hosts = ready::<2>(&market).await;
    let mut verifier = verifier(&market, in_shadow());
    look(&mut verifier).await;
    let (host, challenge) = first(&hosts).await;
    let (source, key) = source(&hosts, &challenge).await;
    assert_ne!(source, host.id);
    assert_eq!(host.state().await, HostState::Ready);
    fetch(host, &mut verifier, key).await;
    let rulings = host.rulings().await;
    let Some(Some(Ruling::Passed(Proven::Transfer { bytes, bytes_per_s, .. }))) = rulings.last() else {
        panic!("{rulings:?}")
    };
    assert_eq!((*bytes, *bytes_per_s), (16 << 20, 16 << 20));
    let said = market.store.transfers_of(&[source]).await.expect("rows");
    // The next one may have begun.
    assert_eq!(said.iter().find_map(|said| said.measured.bytes_per_s), Some(16 << 20), "of both");
}

#[tokio::test]
async fn a_source_that_sends_something_else_or_nothing_brings_its_partner_into_no_trouble() {
    let market = open().await;
    let hosts = ready::<2>(&market).await;
    let enforced = BTreeSet::from([Kind::Cpu, Kind::Memory, Kind::Transfer]);
    let mut verifier = verifier(&market, Config { enforced, transfer: Millis(0), ..in_shadow() });
    for round in 0..4 {
        look(&mut verifier).await;
        let (host, challenge) = first(&hosts).await;
        match round % 2 {
            0 => fetch(host, &mut verifier, Nonce([1; 32])).await,
            _ => {
                give_up(host, &challenge).await;
                look(&mut verifier).await;
            }
        }
        let drawn = host.challenges().await;
        let drawn = drawn.iter().find(|drawn| drawn.challenge == challenge.challenge).expect("it");
        let verdict = drawn.verdict.clone().expect("a verdict");
        assert!(verdict["void"].as_str().is_some_and(|why| why.contains("whose fault")), "{verdict}");
        assert_eq!(host.state().await, HostState::Ready);
    }
}

#[tokio::test]
async fn a_host_with_which_no_transfer_succeeds_is_refused_where_that_counts_and_its_partners_are_not() {
    let market = open().await;
    let mut hosts = ready::<4>(&market).await;
    let enforced = BTreeSet::from([Kind::Cpu, Kind::Memory, Kind::Transfer]);
    let mut verifier = verifier(&market, Config { enforced, transfer: Millis(0), ..in_shadow() });
    let silent = hosts[0].id;
    for _ in 0..40 {
        for host in &mut hosts {
            host.report().await;
        }
        look(&mut verifier).await;
        for host in &hosts {
            let Some(challenge) = transfer_of(host).await.filter(|challenge| challenge.step() == 0) else {
                continue;
            };
            let (source, key) = source(&hosts, &challenge).await;
            match silent == source || silent == host.id {
                true => give_up(host, &challenge).await,
                false => fetch(host, &mut verifier, key).await,
            }
        }
        if hosts[0].state().await == HostState::Refused {
            break;
        }
    }
    let (code, message) = hosts[0].reason().await;
    assert_eq!(code, "transfer_too_slow", "{message}");
    assert!(message.contains("3 other hosts"), "{message}");
    for host in &hosts[1..] {
        assert_eq!(host.state().await, HostState::Ready);
    }
}

/// Has a host fetch from another in a test that counts.
async fn draw(market: &Market, host: &Host, source: &Host) -> Nonce {
    let address = market.store.hosts_linked().await.expect("hosts");
    let address = address.iter().find(|linked| linked.host == source.id).expect("a host").address;
    let challenge = Challenge {
        version: VERSION,
        challenge: ChallengeId(Uuid::now_v7()),
        host: host.id,
        task: Task::transfer(address, 20_000),
        nonce: Nonce([1; 32]),
        beacon: None,
        reveals: Vec::new(),
    };
    let body = serde_json::to_value(&challenge).expect("JSON");
    let drawing = Drawing {
        host: host.id,
        challenge: challenge.challenge,
        kind: Kind::Transfer,
        cause: Cause::Random,
        body: &body,
        claims: &host.inventory,
        shadow: false,
        window: None,
        lease: None,
    };
    let key = Nonce([7; 32]);
    market.store.transfer_draw(&drawing, source.id, &key.to_string(), NEVER).await.expect("drawn");
    key
}

#[tokio::test]
async fn a_host_that_nobody_connects_to_is_found_from_two_miners_and_who_tried_is_not_blamed() {
    let market = open().await;
    let hosts = ready::<3>(&market).await;
    let (closed, mut verifier) = (&hosts[0], market.verifier());
    for host in &hosts[1..] {
        // One vantage point says nothing.
        let key = draw(&market, closed, host).await;
        fetch(closed, &mut verifier, key).await;
        assert_eq!((closed.last_code().await, closed.state().await), ("passed", HostState::Ready));
        draw(&market, host, closed).await;
        tell(host, &transfer_of(host).await.expect("a transfer"), Reason::PortUnreachable).await;
        look(&mut verifier).await;
        assert_eq!((host.last_code().await, host.state().await), ("void", HostState::Ready));
    }
    let key = draw(&market, closed, &hosts[1]).await;
    fetch(closed, &mut verifier, key).await;
    assert_eq!(closed.state().await, HostState::Refused);
    assert_eq!(closed.reason().await.0, "port_unreachable");
    for host in &hosts[1..] {
        assert_eq!(host.state().await, HostState::Ready);
    }
}
