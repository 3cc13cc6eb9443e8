//! The adapters against the doubles over HTTP: every call, what an answer may not contain, and what a
//! connection can do.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request as Received,
    response::Response,
};
use nave_clouds::{
    adapters::open,
    baseline::CloudQuote,
    error::Kind,
    http::{Method, Network, Request, Transport as _},
    provider::{Availability, Cloud, Launch, MachineId, MachineState, Provider},
    secret::Secret,
    testing::{Double, Fault, Faults, KEY},
};
use nave_domain::{MicroUsd, Millis, region::Area};
use tokio::{net::TcpListener, task::JoinHandle};
use uuid::Uuid;

use crate::market::{BEGIN, Market, owner, settings};

/// A server that is gone with its test.
struct Served {
    url: String,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(app: Router) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("serve") });
    Served { url, task }
}

/// The double of a cloud as it would be reached.
async fn answer(double: Arc<Mutex<Double>>, received: Received) -> Response {
    let (parts, body) = received.into_parts();
    let body = to_bytes(body, 1 << 20).await.expect("a body");
    let auth = ["x-api-key", "api_key", "authorization"].into_iter().find_map(|name| {
        let value = parts.headers.get(name)?.to_str().ok()?;
        Some((name, Secret::new(value)))
    });
    let body = (!body.is_empty()).then(|| Secret::new(String::from_utf8_lossy(&body)));
    let request = Request { method: parts.method, url: parts.uri.to_string(), auth, body };
    let answered = double.lock().expect("nobody panicked").answer(&request);
    let Ok(reply) = answered else {
        // It holds the connection and says nothing.
        return std::future::pending().await;
    };
    let mut response = Response::builder().status(reply.status);
    if let Some(Millis(after)) = reply.retry_after {
        response = response.header("retry-after", after / 1_000);
    }
    response.body(Body::from(reply.body)).expect("a response")
}

async fn reached(market: &Market) -> (Served, Box<dyn Provider>) {
    let double = market.double.clone();
    let served = serve(Router::new().fallback(move |received| answer(double.clone(), received))).await;
    let network = Network::with_patience(Duration::from_secs(2)).expect("a client");
    let provider = open(market.cloud, settings(&served.url), Arc::new(network));
    (served, provider)
}

fn market(cloud: Cloud) -> Market {
    Market::new(cloud, 11, Faults::default())
}

#[tokio::test]
async fn each_adapter_makes_its_five_calls_in_its_clouds_shapes() {
    for cloud in Cloud::ALL {
        let market = market(cloud);
        let (_served, provider) = reached(&market).await;
        let offers = provider.list_offers(BEGIN).await.expect("offers");
        let is_it = |offer: &&nave_clouds::CloudOffer| {
            (&offer.id, &offer.region) == (&market.offer.0, &market.offer.1)
        };
        let offer = offers.iter().find(is_it).expect("the one that can be had").clone();
        assert_eq!((offer.price, offer.devices), (MicroUsd(2_000_000), 1), "{cloud}");
        assert!(
            offer.class.is_some_and(|class| ["h100-sxm", "h100-pcie", "l40s"].contains(&class)),
            "{cloud}: {offer:?}"
        );
        assert!(matches!(offer.availability, Availability::Available(_)), "{cloud}");

        let tag = owner().tag(MachineId(Uuid::from_u128(5)));
        let launch = Launch {
            tag: tag.clone(),
            offer,
            boot: Secret::new("#!/bin/sh\njoin"),
            dead_man: BEGIN.after(Millis(7_200_000)),
            price_max: MicroUsd(2_000_000),
        };
        let id = provider.launch(&launch, BEGIN).await.expect("launched");
        market.pass(200);
        let machine = provider.get(&id).await.expect("asked").expect("there");
        assert_eq!(
            (machine.id.clone(), machine.state, machine.name),
            (id.clone(), MachineState::Running, tag.to_string())
        );
        let all = provider.list_ours().await.expect("listed");
        assert_eq!(all.len(), 3, "{cloud}: others are listed, too");
        let ours = all.iter().find(|machine| machine.id == id).expect("listed");
        assert_eq!(ours.price, Some(MicroUsd(2_000_000)), "{cloud}");

        provider.delete(&id).await.expect("deleted");
        market.pass(100);
        assert_eq!(provider.get(&id).await.expect("asked"), None, "{cloud}");
        assert_eq!(provider.list_ours().await.expect("listed").len(), 2, "{cloud}");
        assert!(provider.delete(&id).await.is_err(), "{cloud}");
        let double = market.double();
        assert!(double.site.wrongs.is_empty(), "{cloud}: {:?}", double.site.wrongs);
    }
}

#[tokio::test]
async fn offers_that_cannot_be_had_are_no_quotes_and_those_that_cannot_be_read_are_left_out() {
    for cloud in Cloud::ALL {
        let market = market(cloud);
        let offers = market.provider().list_offers(BEGIN).await.expect("offers");
        let quotes: Vec<_> = offers.iter().filter_map(CloudQuote::of).collect();
        if cloud == Cloud::Vast {
            assert_eq!(
                (offers.is_empty(), quotes),
                (false, Vec::new()),
                "what strangers ask is no price of a cloud"
            );
            continue;
        }
        assert!(
            !quotes.is_empty() && quotes.iter().all(|quote| quote.price == MicroUsd(2_000_000)),
            "{cloud}"
        );
        assert!(offers.iter().all(|offer| offer.fetched_at == BEGIN && !offer.raw.is_empty()), "{cloud}");
        let somewhere = [Some(Area::NorthAmerica), Some(Area::Europe)].contains(&quotes[0].area);
        assert!(somewhere || cloud == Cloud::Runpod, "{cloud}: {:?}", quotes[0]);
    }
}

#[tokio::test]
async fn a_cloud_that_says_nothing_is_not_waited_for() {
    let market = market(Cloud::Lambda);
    let (_served, provider) = reached(&market).await;
    market.double().site.faults.silent = 1_000;
    assert_eq!(provider.list_ours().await.expect_err("silent").kind, Kind::TimedOut);
}

#[tokio::test]
async fn a_cloud_that_cannot_be_reached_has_heard_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    for cloud in Cloud::ALL {
        let network = Network::with_patience(Duration::from_secs(5)).expect("a client");
        let provider = open(cloud, settings(&url), Arc::new(network));
        assert_eq!(provider.list_ours().await.expect_err("nobody there").kind, Kind::NotSent, "{cloud}");
    }
}

#[tokio::test]
async fn how_long_a_cloud_wants_to_be_left_alone_is_heard() {
    let market = market(Cloud::Runpod);
    let (_served, provider) = reached(&market).await;
    market.double().site.faults.rate_limited = 1_000;
    let Kind::RateLimited { after } = provider.list_ours().await.expect_err("too many").kind else {
        panic!("it said so")
    };
    assert!((Millis(1_000)..=Millis(45_000)).contains(&after));
}

#[tokio::test]
async fn an_error_that_repeats_our_key_or_our_script_does_not_carry_it_further() {
    async fn echo(received: Received) -> Response {
        let key =
            received.headers().get("x-api-key").cloned().map(|key| key.to_str().expect("text").to_owned());
        let text =
            format!("{{\"error_code\":\"bad {}\",\"error\":\"bad key {}\"}}", KEY, key.unwrap_or_default());
        Response::builder().status(400).body(Body::from(text)).expect("a response")
    }
    let served = serve(Router::new().fallback(echo)).await;
    let provider = open(Cloud::Shadeform, settings(&served.url), Arc::new(Network::new().expect("a client")));
    let error = provider.list_ours().await.expect_err("refused");
    assert!(!format!("{error:?}").contains(KEY), "{error:?}");
    assert!(error.message.contains("[hidden]"));
}

#[tokio::test]
async fn an_answer_without_an_end_is_not_read_to_its_end_and_no_redirect_is_followed() {
    async fn much(received: Received) -> Response {
        if received.uri().path().starts_with("/much") {
            return Response::new(Body::from(vec![b' '; 9 << 20]));
        }
        Response::builder().status(302).header("location", "/much").body(Body::empty()).expect("a response")
    }
    let served = serve(Router::new().fallback(much)).await;
    let network = Network::new().expect("a client");
    let request = |path: &str| Request {
        method: Method::GET,
        url: format!("{}{path}", served.url),
        auth: None,
        body: None,
    };
    assert!(network.send(request("/much")).await.is_err());
    assert_eq!(network.send(request("/")).await.expect("answered").status, 302);
}

#[tokio::test]
async fn massed_computes_passwords_are_nowhere() {
    let market = market(Cloud::Massed);
    let machines = market.provider().list_ours().await.expect("listed");
    assert_eq!(machines.len(), 2);
    assert!(!format!("{machines:?}").contains("123456"));
}

#[tokio::test]
async fn verda_begins_a_session_again_when_it_is_over_and_launches_once() {
    let market = market(Cloud::Verda);
    let provider = market.provider();
    provider.list_ours().await.expect("listed");
    let before = market.double().seen.iter().filter(|line| line.contains("/oauth2/token")).count();
    assert_eq!(before, 1 + 1, "one for choosing an offer, one now");
    provider.list_ours().await.expect("listed");
    assert_eq!(market.double().seen.iter().filter(|line| line.contains("/oauth2/token")).count(), before);
    market.double().site.script.push((Fault::Unauthorised, false));
    let offers = provider.list_offers(BEGIN).await.expect("offers");
    let launch = Launch {
        tag: owner().tag(MachineId(Uuid::from_u128(6))),
        offer: offers[0].clone(),
        boot: Secret::new("join"),
        dead_man: BEGIN.after(Millis(7_200_000)),
        price_max: MicroUsd(2_000_000),
    };
    provider.launch(&launch, BEGIN).await.expect("launched in a new session");
    assert_eq!(market.double().site.launches.values().sum::<u32>(), 1);
}
