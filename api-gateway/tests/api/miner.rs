//! Hosts as their owners keep them.

use std::time::{Duration, Instant};

use nave_domain::{
    MicroUsd,
    event::EventKind,
    host::{HostState, Term},
    lease::Outcome,
    rate::Rate,
};
use nave_sdk::wire::{
    enrol::MinerHost,
    event::ServiceEvent,
    host::{Exit, LeaseReport},
    rest::{Host as ListedHost, Job, Offer, Page},
};
use nave_store::Departure;
use reqwest::Method;
use serde_json::json;

use crate::{
    setup::{Host, Market, RATE, fresh_address, read, refused},
    signing::{Enrolled, Newcomer, Owner, json},
};

impl Owner {
    async fn fetch(&self, market: &Market, host: &Enrolled<'_>) -> MinerHost {
        let path = format!("/v1/miner/hosts/{}", host.id());
        read(self.call(market, Method::GET, &path, b"").await.send().await.expect("an answer")).await
    }

    async fn list(&self, market: &Market) -> Vec<MinerHost> {
        read(self.call(market, Method::GET, "/v1/miner/hosts", b"").await.send().await.expect("an answer"))
            .await
    }

    async fn patch(&self, market: &Market, host: &Enrolled<'_>, body: &serde_json::Value) -> MinerHost {
        let path = format!("/v1/miner/hosts/{}", host.id());
        let call = self.call(market, Method::PATCH, &path, &json(body)).await;
        read(call.send().await.expect("an answer")).await
    }

    async fn tell(&self, market: &Market, host: &Enrolled<'_>, what: &str) -> MinerHost {
        let path = format!("/v1/miner/hosts/{}/{what}", host.id());
        read(self.call(market, Method::POST, &path, b"").await.send().await.expect("an answer")).await
    }
}

/// A host that takes jobs: it has proven what it claims.
async fn ready<'a>(owner: &Owner, market: &'a Market) -> Enrolled<'a> {
    let mut enrolled = owner.enrol(market, |_| {}).await;
    enrolled.host.report(&[]).await;
    market.store.host_passed(enrolled.id()).await.expect("it has proven its claims");
    enrolled
}

fn finished() -> LeaseReport {
    LeaseReport::Finished { exit: Exit::Code { code: 0 }, result: None }
}

#[tokio::test]
async fn owners_see_what_went_wrong_with_their_own_hosts() {
    let market = Market::start().await;
    let (owner, other) = (Owner::new(), Owner::new());
    let mut mine = ready(&owner, &market).await;
    let (_, lost) = market.placed(&mine.host).await;
    mine.host.report(&[(lost, LeaseReport::Running)]).await;
    mine.host.report(&[(lost, LeaseReport::Preparing)]).await;
    let path = format!("/v1/miner/hosts/{}/events", mine.id());
    let call = owner.call(&market, Method::GET, &path, b"").await;
    let page: Page<ServiceEvent> = read(call.send().await.expect("an answer")).await;
    let kinds: Vec<_> = page.items.iter().map(|event| (event.kind, event.host, event.lease)).collect();
    assert_eq!(kinds, [(EventKind::HostLost, mine.id(), Some(lost))]);
    refused(other.call(&market, Method::GET, &path, b"").await, 404, "host_not_found").await;
}

#[tokio::test]
async fn owners_see_their_own_hosts_and_nobody_elses() {
    let market = Market::start().await;
    let (owner, other) = (Owner::new(), Owner::new());
    let mine = owner.enrol(&market, |terms| terms.name = Some("mine".to_owned())).await;
    other.enrol(&market, |terms| terms.name = Some("theirs".to_owned())).await;
    let listed = owner.list(&market).await;
    assert_eq!(listed.iter().map(|host| host.name.as_str()).collect::<Vec<_>>(), ["mine"]);
    assert_eq!(owner.fetch(&market, &mine).await, listed[0]);
    assert_eq!(listed[0].actions, ["pause", "price", "term", "region", "drain", "leave"]);
    let path = format!("/v1/miner/hosts/{}", mine.id());
    refused(other.call(&market, Method::GET, &path, b"").await, 404, "host_not_found").await;
    let body = json(&json!({"paused": true}));
    refused(other.call(&market, Method::PATCH, &path, &body).await, 404, "host_not_found").await;
    for what in ["drain", "leave"] {
        let path = format!("{path}/{what}");
        refused(other.call(&market, Method::POST, &path, b"").await, 404, "host_not_found").await;
    }
    assert_eq!(owner.fetch(&market, &mine).await.state, HostState::Enrolled);
    let no_host = "/v1/miner/hosts/host_7";
    refused(owner.call(&market, Method::GET, no_host, b"").await, 400, "path_invalid").await;
}

#[tokio::test]
async fn an_agents_key_and_a_customers_key_are_no_hotkeys() {
    let market = Market::start().await;
    refused(market.get("/v1/miner/hosts"), 401, "signature_missing").await;
    let agent = Newcomer::new();
    let stamp = agent.stamp(&market, b"").await;
    let call = crate::signing::stamped(market.anonymous(Method::GET, "/v1/miner/hosts"), &stamp);
    refused(call, 401, "signature_malformed").await;
}

#[tokio::test]
async fn a_signed_call_counts_once_and_for_its_own_path_only() {
    let market = Market::start().await;
    let owner = Owner::new();
    let host = ready(&owner, &market).await;
    let path = format!("/v1/miner/hosts/{}", host.id());
    let call = owner.call(&market, Method::GET, &path, b"").await;
    let replay = call.try_clone().expect("a copy");
    assert!(call.send().await.expect("an answer").status().is_success());
    refused(replay, 409, "nonce_used").await;
    // A signature for looking is none for leaving.
    let looking = owner.call(&market, Method::GET, &path, b"").await.build().expect("a request");
    let leaving = market.anonymous(Method::POST, &format!("{path}/leave")).headers(looking.headers().clone());
    refused(leaving, 401, "signature_invalid").await;
    assert_eq!(owner.fetch(&market, &host).await.state, HostState::Ready);
}

#[tokio::test]
async fn a_paused_host_offers_nothing_and_goes_on_with_what_it_has() {
    let market = Market::start().await;
    let owner = Owner::new();
    let mut host = ready(&owner, &market).await;
    let (job, lease) = market.placed(&host.host).await;
    host.host.report(&[(lease, LeaseReport::Running)]).await;
    assert_eq!(market.fetch::<Vec<Offer>>("/v1/offers").await.len(), 1);
    let paused = owner.patch(&market, &host, &json!({"paused": true})).await;
    assert!(paused.paused && paused.actions.contains(&"resume".to_owned()));
    assert_eq!(market.fetch::<Vec<Offer>>("/v1/offers").await, []);
    let listed: Vec<ListedHost> = market.fetch("/v1/hosts").await;
    assert!(listed[0].paused && listed[0].state == HostState::Ready);
    host.host.report(&[(lease, finished())]).await;
    let done: Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
    assert_eq!(done.attempts[0].outcome, Some(Outcome::Exited { code: 0 }));
    assert!(!owner.patch(&market, &host, &json!({"paused": false})).await.paused);
    assert_eq!(market.fetch::<Vec<Offer>>("/v1/offers").await.len(), 1);
}

#[tokio::test]
async fn a_new_price_is_for_new_leases() {
    let market = Market::start().await;
    let owner = Owner::new();
    let host = ready(&owner, &market).await;
    let (job, _) = market.placed(&host.host).await;
    let before: Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
    let rate = Rate { vcpu_hour: MicroUsd(1), ..RATE };
    let patched = owner.patch(&market, &host, &json!({"rate": rate, "term": "spot"})).await;
    assert_eq!((patched.rate, patched.term), (rate, Term::Spot));
    let offers: Vec<Offer> = market.fetch("/v1/offers").await;
    assert_eq!((offers[0].rate, offers[0].term), (rate, Term::Spot));
    let after: Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
    assert_eq!(after.attempts[0].hourly, before.attempts[0].hourly);
}

#[tokio::test]
async fn a_change_of_nothing_or_beyond_reason_is_refused() {
    let market = Market::start().await;
    let owner = Owner::new();
    let host = owner.enrol(&market, |_| {}).await;
    let path = format!("/v1/miner/hosts/{}", host.id());
    let dear = json!({"rate": {"gpu_hour": i64::MAX, "vcpu_hour": 0, "gib_hour": 0}});
    let wrong = [
        (json!({}), 422, "request_invalid"),
        (dear, 422, "request_invalid"),
        (json!({"state": "ready"}), 422, "body_invalid"),
    ];
    for (body, status, code) in wrong {
        refused(owner.call(&market, Method::PATCH, &path, &json(&body)).await, status, code).await;
    }
    refused(owner.call(&market, Method::PATCH, &path, b"{").await, 400, "body_malformed").await;
}

#[tokio::test]
async fn a_draining_host_gets_no_jobs_and_leaves_with_its_last_lease() {
    let market = Market::start().await;
    let owner = Owner::new();
    let mut host = ready(&owner, &market).await;
    let (_, lease) = market.placed(&host.host).await;
    host.host.report(&[(lease, LeaseReport::Running)]).await;
    for _ in 0..2 {
        let draining = owner.tell(&market, &host, "drain").await;
        assert_eq!((draining.state, draining.leases), (HostState::Draining, 1));
        assert_eq!(draining.reason.expect("a reason").code, "drained");
        assert_eq!(draining.actions, ["leave"]);
    }
    assert!(!market.store.snapshot().await.expect("a snapshot").hosts.contains_key(&host.id()));
    host.host.report(&[(lease, finished())]).await;
    let gone = owner.fetch(&market, &host).await;
    assert_eq!((gone.state, gone.actions.len()), (HostState::Gone, 0));
    refused(host.host.call(Method::GET, "/host/v1/spec"), 403, "host_unknown").await;
    assert_eq!(owner.tell(&market, &host, "drain").await.state, HostState::Gone, "as was asked");
    assert_eq!(market.store.mesh_peers().await.expect("peers"), []);
    assert_eq!(market.fetch::<Vec<ListedHost>>("/v1/hosts").await, []);
}

#[tokio::test]
async fn an_idle_host_that_drains_or_leaves_is_gone_at_once() {
    let market = Market::start().await;
    let owner = Owner::new();
    for what in ["drain", "leave"] {
        let host = ready(&owner, &market).await;
        assert_eq!(owner.tell(&market, &host, what).await.state, HostState::Gone);
        assert_eq!(owner.tell(&market, &host, "leave").await.state, HostState::Gone, "again is no fault");
        refused(host.host.call(Method::GET, "/host/v1/spec"), 403, "host_unknown").await;
        let path = format!("/v1/miner/hosts/{}", host.id());
        let body = json(&json!({"paused": true}));
        refused(owner.call(&market, Method::PATCH, &path, &body).await, 409, "host_left").await;
        let mut terms = owner.terms(&market).await;
        terms.replaces = Some(host.id());
        Newcomer::new().refused(&market, &owner.sign(terms), 409, "host_leaving").await;
    }
}

#[tokio::test]
async fn a_host_that_is_sent_away_is_told_so_while_it_waits_and_ever_after() {
    let market = Market::start().await;
    let owner = Owner::new();
    let mut host = ready(&owner, &market).await;
    let generation = host.host.spec(0, 0).await.expect("a spec").generation;
    let late = host.host.next_report(&[]);
    let wait = host.host.call(Method::GET, &format!("/host/v1/spec?after={generation}&wait_ms=60000"));
    let waiting = tokio::spawn(wait.send());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    market.store.host_depart(None, host.id(), Departure::Ban).await.expect("a ban");
    let answer = waiting.await.expect("no panic").expect("an answer");
    assert_eq!(answer.status(), 403);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    refused(host.host.call(Method::POST, "/host/v1/report").json(&late), 403, "host_unknown").await;
    let path = format!("/v1/miner/hosts/{}/drain", host.id());
    refused(owner.call(&market, Method::POST, &path, b"").await, 409, "host_left").await;
    assert_eq!(owner.fetch(&market, &host).await.reason.expect("a reason").code, "banned");
}

#[tokio::test]
async fn the_host_at_an_address_is_the_one_that_has_it_now() {
    let market = Market::start().await;
    let owner = Owner::new();
    let [a, b] = [ready(&owner, &market).await, ready(&owner, &market).await];
    let elsewhere = fresh_address();
    market.store.host_move(a.id(), elsewhere).await.expect("a move");
    refused(a.host.call(Method::GET, "/host/v1/spec"), 403, "host_unknown").await;
    assert_eq!(Host::new(&market, a.id(), elsewhere).spec(0, 0).await.expect("a spec").host, a.id());
    // Whatever it says of itself, it is who has the address it comes from.
    assert_eq!(Host::new(&market, a.id(), b.address()).spec(0, 0).await.expect("a spec").host, b.id());
}
