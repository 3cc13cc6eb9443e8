//! Hosts that join with a ticket, and those that must not.

use nave_domain::{
    HostId, Millis,
    host::{HostState, Term},
    mesh::Prefix,
};
use nave_sdk::wire::{
    enrol::{Market as MarketDocument, REQUEST_BYTES_MAX, Signature, Ticket},
    sign::{EXPIRY_AHEAD_MAX, Request, SecretKey, Stamp, random, sha256},
};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    setup::{Market, hub, market_key, read, refused},
    signing::{Enrolled, Newcomer, Owner, json, nonce, now, stamped, verified},
};

#[tokio::test]
async fn the_market_says_who_it_is_and_where_hosts_meet_it() {
    let market = Market::start().await;
    let answer = market.anonymous(Method::GET, "/v1/market").send().await.expect("an answer");
    let document: MarketDocument = read(answer).await;
    assert_eq!((document.market_key, document.release_key), (market_key().public(), None));
    assert_eq!(document.hub.expect("a hub").endpoints, hub().endpoints);
}

#[tokio::test]
async fn a_ticket_makes_a_host_with_a_place_in_the_mesh() {
    let market = Market::start().await;
    let (owner, agent) = (Owner::new(), Newcomer::new());
    let mut terms = owner.terms(&market).await;
    (terms.name, terms.term) = (Some("rack-1".to_owned()), Term::Spot);
    let place = agent.enrolled(&market, &owner.sign(terms.clone())).await;
    let prefix = Prefix::of_market(&market_key().public().0);
    assert_eq!((place.name.as_str(), place.mesh.address), ("rack-1", prefix.host(place.host)));
    assert_eq!((place.mesh.hub_address, place.mesh.port, place.mesh.prefix), (prefix.hub(), 7461, 48));
    let peers = market.store.mesh_peers().await.expect("peers");
    assert_eq!(peers.len(), 1);
    assert_eq!((peers[0].host, peers[0].address), (place.host, place.mesh.address));
    assert_eq!(peers[0].key, agent.mesh_key.to_string());
    let hosts = market.store.hosts_of_miner(&owner.secret.hotkey().to_string()).await.expect("hosts");
    assert_eq!((hosts[0].rate, hosts[0].term, hosts[0].state), (terms.rate, Term::Spot, HostState::Enrolled));
}

#[tokio::test]
async fn an_agent_that_repeats_its_wish_gets_the_same_answer_and_no_second_host() {
    let market = Market::start().await;
    let (owner, agent) = (Owner::new(), Newcomer::new());
    let mut terms = owner.terms(&market).await;
    terms.expires_at = now(&market).await.after(Millis(2_000));
    let ticket = owner.sign(terms);
    let first = agent.enrolled(&market, &ticket).await;
    let again = futures_util::future::join_all((0..8).map(|_| agent.enrolled(&market, &ticket))).await;
    assert!(again.iter().all(|place| *place == first));
    tokio::time::sleep(std::time::Duration::from_millis(2_100)).await;
    assert_eq!(
        agent.enrolled(&market, &ticket).await,
        first,
        "the answer was lost, the ticket has expired since"
    );
    assert_eq!(market.store.mesh_peers().await.expect("peers").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn wishes_that_come_all_at_once_make_one_host() {
    let market = Market::start().await;
    let (owner, agent) = (Owner::new(), Newcomer::new());
    let ticket = owner.ticket(&market).await;
    let places = futures_util::future::join_all((0..16).map(|_| agent.enrolled(&market, &ticket))).await;
    assert!(places.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(market.store.mesh_peers().await.expect("peers").len(), 1);
}

#[tokio::test]
async fn a_stolen_ticket_is_refused_once_it_was_used() {
    let market = Market::start().await;
    let (owner, agent, thief) = (Owner::new(), Newcomer::new(), Newcomer::new());
    let ticket = owner.ticket(&market).await;
    agent.enrolled(&market, &ticket).await;
    thief.refused(&market, &ticket, 409, "ticket_used").await;
    // Nor may the agent itself come with another mesh key, or the thief claim to be the agent.
    let other = Newcomer { key: SecretKey::parse(&agent.key.reveal()).expect("a key"), ..Newcomer::new() };
    other.refused(&market, &ticket, 409, "ticket_used").await;
    let claimed = agent.wish(&ticket);
    refused(thief.post(&market, json(&claimed)).await, 403, "agent_key_other").await;
}

#[tokio::test]
async fn a_ticket_for_one_agent_serves_no_other() {
    let market = Market::start().await;
    let (owner, agent, thief) = (Owner::new(), Newcomer::new(), Newcomer::new());
    let mut terms = owner.terms(&market).await;
    terms.agent_key = Some(agent.key.public());
    let ticket = owner.sign(terms);
    thief.refused(&market, &ticket, 403, "agent_key_other").await;
    agent.enrolled(&market, &ticket).await;
}

#[tokio::test]
async fn a_ticket_that_its_hotkey_did_not_sign_is_refused() {
    let market = Market::start().await;
    let (owner, forger, agent) = (Owner::new(), Owner::new(), Newcomer::new());
    let mut terms = owner.terms(&market).await;
    terms.hotkey = owner.secret.hotkey().to_string();
    let bytes = json(&terms);
    let forged = forger.secret.sign(&nave_sdk::wire::ticket::signed_bytes(&bytes));
    let forged = Ticket::new(bytes, forged).expect("a ticket");
    agent.refused(&market, &forged, 403, "ticket_invalid").await;
    // The same with one field of an honest ticket changed.
    let honest = owner.sign(terms);
    let mut cheaper = honest.payload().clone();
    cheaper.rate.vcpu_hour = nave_domain::MicroUsd(1);
    let cheaper = Ticket::new(json(&cheaper), *honest.signature()).expect("a ticket");
    agent.refused(&market, &cheaper, 403, "ticket_invalid").await;
    agent.enrolled(&market, &honest).await;
}

#[tokio::test]
async fn a_ticket_of_another_time_or_market_is_refused() {
    let market = Market::start().await;
    let (owner, agent) = (Owner::new(), Newcomer::new());
    let terms = owner.terms(&market).await;
    let at = now(&market).await;
    let expiring = |ms| {
        let mut terms = terms.clone();
        terms.expires_at = at.after(Millis(ms));
        owner.sign(terms)
    };
    agent.refused(&market, &expiring(-1), 403, "ticket_expired").await;
    agent.refused(&market, &expiring(30 * 24 * 3_600_000), 422, "ticket_malformed").await;
    let mut other = terms.clone();
    other.market_key = SecretKey::generate().expect("a key").public();
    agent.refused(&market, &owner.sign(other), 403, "market_other").await;
    let mut wish = agent.wish(&owner.sign(terms));
    wish.ticket.truncate(200);
    refused(agent.post(&market, json(&wish)).await, 422, "ticket_malformed").await;
}

fn post(market: &Market, stamp: &Stamp, body: Vec<u8>) -> RequestBuilder {
    stamped(market.anonymous(Method::POST, "/v1/enrolments"), stamp).body(body)
}

#[tokio::test]
async fn a_request_that_is_replayed_or_altered_is_refused() {
    let market = Market::start().await;
    let (owner, agent) = (Owner::new(), Newcomer::new());
    let body = json(&agent.wish(&owner.ticket(&market).await));
    let stamp = agent.stamp(&market, &body).await;
    let altered = [&body[..], b" "].concat();
    refused(post(&market, &stamp, altered), 401, "signature_invalid").await;
    let elsewhere = market.anonymous(Method::POST, "/v1/enrolments?a=1");
    refused(stamped(elsewhere, &stamp).body(body.clone()), 400, "query_invalid").await;
    let path = format!("/v1/miner/hosts/{}/drain", HostId(Uuid::nil()));
    let other = stamped(market.anonymous(Method::POST, &path), &stamp).body(body.clone());
    refused(other, 401, "signature_malformed").await;
    let answer = post(&market, &stamp, body.clone()).send().await.expect("an answer");
    assert_eq!(answer.status(), 201, "what was altered has not used the nonce up");
    refused(post(&market, &stamp, body.clone()), 409, "nonce_used").await;
    let renamed = Stamp { nonce: nonce(), ..stamp.clone() };
    refused(post(&market, &renamed, body.clone()), 401, "signature_invalid").await;
    let longer = Stamp { expiry: stamp.expiry.after(Millis(1)), ..stamp };
    refused(post(&market, &longer, body), 401, "signature_invalid").await;
}

#[tokio::test]
async fn a_signature_for_another_market_or_of_another_time_is_refused() {
    let market = Market::start().await;
    let (owner, agent) = (Owner::new(), Newcomer::new());
    let body = json(&agent.wish(&owner.ticket(&market).await));
    let at = now(&market).await;
    let stamp = |key: &SecretKey, expiry| {
        let request =
            Request { market: &key.public(), method: "POST", target: "/v1/enrolments", body: &sha256(&body) };
        agent.key.stamp(&request, nonce(), expiry)
    };
    let other = stamp(&SecretKey::generate().expect("a key"), at.after(Millis(60_000)));
    refused(post(&market, &other, body.clone()), 401, "signature_invalid").await;
    for ahead in [-1, EXPIRY_AHEAD_MAX.0 + 60_000] {
        let skewed = stamp(&market_key(), at.after(Millis(ahead)));
        let problem = refused(post(&market, &skewed, body.clone()), 401, "signature_expired").await;
        assert!(problem.suggestion.contains("clock"), "{problem:?}");
    }
}

#[tokio::test]
async fn headers_are_there_once_and_readable() {
    let market = Market::start().await;
    let agent = Newcomer::new();
    let headers = agent.stamp(&market, b"{}").await.headers();
    let with = |headers: &[(&'static str, String)]| {
        let call = market.anonymous(Method::POST, "/v1/enrolments").body("{}");
        headers.iter().fold(call, |call, (name, value)| call.header(*name, value))
    };
    for at in 0..headers.len() {
        let mut fewer = headers.to_vec();
        fewer.remove(at);
        refused(with(&fewer), 401, "signature_missing").await;
        let mut twice = headers.to_vec();
        twice.push(headers[at].clone());
        refused(with(&twice), 401, "signature_malformed").await;
        let mut odd = headers.to_vec();
        odd[at].1 = "\u{e9}".to_owned();
        refused(with(&odd), 401, "signature_malformed").await;
    }
}

#[tokio::test]
async fn refusals_are_signed_by_the_market_too() {
    let market = Market::start().await;
    let agent = Newcomer::new();
    let body = b"{}".to_vec();
    let stamp = agent.stamp(&market, &body).await;
    let (status, problem) =
        verified(post(&market, &stamp, body), &stamp.signature, &market_key().public()).await;
    assert_eq!((status.as_u16(), &problem["code"]), (422, &json!("body_invalid")));
    let forged = Stamp { signature: Signature([7; 64]), ..stamp };
    let call = post(&market, &forged, b"{}".to_vec());
    let (status, problem) = verified(call, &forged.signature, &market_key().public()).await;
    assert_eq!((status.as_u16(), &problem["code"]), (401, &json!("signature_invalid")));
}

#[tokio::test]
async fn two_hosts_never_share_a_mesh_key_or_a_name() {
    let market = Market::start().await;
    let (owner, rival) = (Owner::new(), Owner::new());
    let mut terms = owner.terms(&market).await;
    terms.name = Some("a".to_owned());
    let first = Newcomer::new();
    first.enrolled(&market, &owner.sign(terms.clone())).await;
    let copy = Newcomer { mesh_key: first.mesh_key, ..Newcomer::new() };
    copy.refused(&market, &rival.ticket(&market).await, 409, "mesh_key_taken").await;
    terms.ticket.0 = random().expect("randomness");
    Newcomer::new().refused(&market, &owner.sign(terms.clone()), 409, "host_name_taken").await;
    // What was refused has used no ticket up, and another miner may use the name.
    terms.name = Some("b".to_owned());
    Newcomer::new().enrolled(&market, &owner.sign(terms)).await;
    let mut terms = rival.terms(&market).await;
    terms.name = Some("a".to_owned());
    Newcomer::new().enrolled(&market, &rival.sign(terms)).await;
    assert_eq!(market.store.mesh_peers().await.expect("peers").len(), 3);
}

#[tokio::test]
async fn an_inventory_that_no_machine_has_is_refused() {
    let market = Market::start().await;
    let (owner, agent) = (Owner::new(), Newcomer::new());
    let ticket = owner.ticket(&market).await;
    let mut wish = agent.wish(&ticket);
    wish.inventory.memory = nave_domain::Bytes(-1);
    refused(agent.post(&market, json(&wish)).await, 422, "inventory_invalid").await;
    agent.enrolled(&market, &ticket).await;
}

#[tokio::test]
async fn enrolment_waits_for_the_hub_without_using_the_ticket() {
    let store = nave_store::testing::store().await;
    let market = Market::over(store, |_| {}).await;
    let (owner, agent) = (Owner::new(), Newcomer::new());
    let ticket = owner.ticket(&market).await;
    agent.refused(&market, &ticket, 503, "hub_unknown").await;
    market.store.hub_set(&hub()).await.expect("a hub");
    agent.enrolled(&market, &ticket).await;
}

#[tokio::test]
async fn a_host_that_enrols_again_has_its_place_and_nothing_of_what_it_had_proven() {
    let market = Market::start().await;
    let owner = Owner::new();
    let mut old = owner.enrol(&market, |_| {}).await;
    prove(&market, &mut old).await;
    let (job, lease) = market.placed(&old.host).await;
    old.host.report(&[(lease, nave_sdk::wire::host::LeaseReport::Running)]).await;
    let id = old.id();
    market.store.host_move(id, old.place.mesh.address.into()).await.expect("its own address");
    let mut terms = owner.terms(&market).await;
    terms.replaces = Some(id);
    let (ticket, agent) = (owner.sign(terms.clone()), Newcomer::new());
    let place = agent.enrolled(&market, &ticket).await;
    assert_eq!((place.host, &place.name), (id, &old.place.name));
    let row = &market.store.hosts_of_miner(&owner.secret.hotkey().to_string()).await.expect("hosts")[0];
    assert_eq!((row.state, &row.proven, &row.inventory), (HostState::Enrolled, &None, &None));
    let peers = market.store.mesh_peers().await.expect("peers");
    assert_eq!(
        (peers.len(), &peers[0].key),
        (1, &agent.mesh_key.to_string()),
        "the old key is let in no more"
    );
    old.agent.refused(&market, &ticket, 409, "ticket_used").await;

    // The new agent has none of the old containers and says so.
    let mut new = Enrolled::new(&market, agent, place).await;
    new.host.generation = new.host.spec(0, 0).await.expect("a spec").generation;
    new.host.report(&[]).await;
    let job: nave_sdk::wire::rest::Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
    assert_eq!(job.state, nave_domain::job::JobState::Queued);

    let stranger = Owner::new();
    let mut stolen = stranger.terms(&market).await;
    stolen.replaces = Some(id);
    Newcomer::new().refused(&market, &stranger.sign(stolen), 404, "host_not_found").await;
    market.assert_books_balance().await;
}

/// Lets a host pass for one that has proven what it claims.
async fn prove(market: &Market, enrolled: &mut Enrolled<'_>) {
    enrolled.host.report(&[]).await;
    market.store.host_passed(enrolled.id()).await.expect("it has proven its claims");
}

#[tokio::test]
async fn the_old_agent_of_a_host_that_enrolled_again_is_out() {
    let market = Market::start().await;
    let owner = Owner::new();
    let (old, mut terms) = (Newcomer::new(), owner.terms(&market).await);
    let first = owner.sign(terms.clone());
    let place = old.enrolled(&market, &first).await;
    terms.ticket.0 = random().expect("randomness");
    terms.replaces = Some(place.host);
    Newcomer::new().enrolled(&market, &owner.sign(terms)).await;
    old.refused(&market, &first, 409, "ticket_used").await;
}

#[tokio::test]
async fn one_address_cannot_flood_the_market_with_wishes() {
    let market = Market::start().await;
    let agent = Newcomer::new();
    let mut slowed = 0;
    for _ in 0..80 {
        let answer = agent.post(&market, b"{}".to_vec()).await.send().await.expect("an answer");
        slowed += u32::from(answer.status() == 429);
    }
    assert!(slowed > 0);
    let health = market.anonymous(Method::GET, "/v1/health").send().await.expect("an answer");
    assert!(health.status().is_success(), "others are served");
}

#[tokio::test]
async fn a_huge_wish_is_refused() {
    let market = Market::start().await;
    let agent = Newcomer::new();
    let large = vec![b' '; REQUEST_BYTES_MAX + 1];
    refused(agent.post(&market, large).await, 413, "body_too_large").await;
}

/// Bodies and headers that no agent writes: the gateway refuses each with a document and lives on.
#[tokio::test]
async fn foreign_wishes_never_end_in_a_fault() {
    use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

    let (owner, agent) = (Owner::new(), Newcomer::new());
    let mut market = Market::start().await;
    let whole = json(&agent.wish(&owner.ticket(&market).await));
    let mut runner = TestRunner::deterministic();
    let spliced = (0..whole.len(), proptest::collection::vec(any::<u8>(), 0..40), any::<bool>());
    let odd = "[ -~]{0,140}";
    for round in 0..120_u32 {
        // A fresh gateway has forgotten how often it was called.
        if round % 50 == 49 {
            market = Market::start().await;
        }
        let (at, bytes, cut) = spliced.new_tree(&mut runner).expect("a tree").current();
        let mut body = whole.clone();
        if cut {
            body.truncate(at);
        }
        let end = body.len().min(at + bytes.len());
        body.splice(at.min(end)..end, bytes);
        let stamp = agent.stamp(&market, &body).await;
        let mut headers = stamp.headers().to_vec();
        if round % 3 == 0 {
            let value = odd.new_tree(&mut runner).expect("a tree").current();
            headers[(round / 3 % 4) as usize].1 = value;
        }
        let call = market.anonymous(Method::POST, "/v1/enrolments").body(body);
        let call = headers.iter().fold(call, |call, (name, value)| call.header(*name, value));
        let answer = call.send().await.expect("an answer");
        let status = answer.status();
        let document: Value = answer.json().await.expect("a document");
        assert!(status.is_client_error() || status == 201, "{status} {document}");
    }
}
