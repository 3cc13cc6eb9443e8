//! Images: how a tag becomes a digest, and what the gateway never connects to.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use axum::{Router, extract::Path, http::StatusCode, routing::get};
use nave_sdk::wire::rest::Job;
use serde_json::json;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::setup::{IMAGE, Market, fresh, read, refused};

const DIGEST: &str = "sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945";

/// A registry with one image, `team/tool:1`.
struct Registry {
    address: String,
    asked: Arc<AtomicU32>,
    serving: JoinHandle<()>,
}

impl Registry {
    async fn start() -> Self {
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        let manifest = move |Path((name, tag)): Path<(String, String)>| {
            count.fetch_add(1, Ordering::Relaxed);
            let known = name == "tool" && tag == "1";
            let status = if known { StatusCode::OK } else { StatusCode::NOT_FOUND };
            let missing = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown","detail":{}}]}"#;
            let digest = if known { vec![("docker-content-digest", DIGEST)] } else { Vec::new() };
            let headers: axum::http::HeaderMap = digest
                .into_iter()
                .map(|(name, value)| {
                    (axum::http::HeaderName::from_static(name), axum::http::HeaderValue::from_static(value))
                })
                .collect();
            std::future::ready((status, headers, missing))
        };
        let app = Router::new()
            .route("/v2/", get(|| async {}))
            .route("/v2/team/{name}/manifests/{tag}", get(manifest));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let serving = tokio::spawn(async move { drop(axum::serve(listener, app).await) });
        Self { address, asked, serving }
    }
}

async fn market_with(registry: &Registry) -> Market {
    let address = registry.address.clone();
    Market::configured(|config| config.insecure_registries.push(address)).await
}

fn submission(market: &Market, image: &str) -> reqwest::RequestBuilder {
    market.submission(&fresh("key"), &json!({"argv": ["true"], "image": image, "max_spend": 0}))
}

#[tokio::test]
async fn a_tag_is_pinned_to_the_digest_that_its_registry_names() {
    let registry = Registry::start().await;
    let market = market_with(&registry).await;
    let image = format!("{}/team/tool:1", registry.address);
    for _ in 0..2 {
        let job: Job = read(submission(&market, &image).send().await.expect("an answer")).await;
        assert_eq!(job.request.image, Some(format!("{}/team/tool@{DIGEST}", registry.address)));
    }
    assert_eq!(registry.asked.load(Ordering::Relaxed), 1, "the second time it is remembered");
}

#[tokio::test]
async fn the_default_image_is_pinned_like_any_other() {
    let registry = Registry::start().await;
    let market = market_with(&registry).await;
    let image = format!("{}/team/tool:1", registry.address);
    market.store.default_image_set(&image).await.expect("set the default image");
    let body = json!({"argv": ["true"], "max_spend": 0});
    let job: Job = read(market.submission(&fresh("key"), &body).send().await.expect("an answer")).await;
    assert_eq!(job.request.image, Some(format!("{}/team/tool@{DIGEST}", registry.address)));
}

#[tokio::test]
async fn a_replayed_request_needs_no_registry() {
    let registry = Registry::start().await;
    let market = market_with(&registry).await;
    let body = json!({"argv": ["true"], "image": format!("{}/team/tool:1", registry.address)});
    let first: Job = read(market.submission("key", &body).send().await.expect("an answer")).await;
    registry.serving.abort();
    let again = market.submission("key", &body).send().await.expect("an answer");
    assert_eq!(again.status(), 200);
    assert_eq!(read::<Job>(again).await.job, first.job);
}

#[tokio::test]
async fn a_tag_that_does_not_exist_is_said_not_to() {
    let registry = Registry::start().await;
    let market = market_with(&registry).await;
    let image = format!("{}/team/tool:2", registry.address);
    let problem = refused(submission(&market, &image), 422, "image_not_found").await;
    assert!(!problem.retryable);
}

#[tokio::test]
async fn a_registry_that_is_down_is_worth_another_try() {
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let market = Market::configured(|config| config.insecure_registries.push(closed.to_string())).await;
    let problem =
        refused(submission(&market, &format!("{closed}/team/tool:1")), 422, "registry_unreachable").await;
    assert!(problem.retryable && !problem.detail.contains("http://"), "{problem:?}");
}

#[tokio::test]
async fn the_gateway_connects_to_listed_registries_only() {
    let registry = Registry::start().await;
    let market = Market::start().await;
    let places = [
        registry.address.as_str(),
        "169.254.169.254",
        "localhost",
        "metadata.internal:80",
        "docker.io.evil.example",
    ];
    for place in places {
        let problem =
            refused(submission(&market, &format!("{place}/team/tool:1")), 422, "registry_not_allowed").await;
        assert!(problem.suggestion.contains("docker.io"), "{problem:?}");
    }
    assert_eq!(registry.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_digest_is_taken_as_it_is_and_nonsense_is_not_taken() {
    let market = Market::start().await;
    let job: Job = read(submission(&market, IMAGE).send().await.expect("an answer")).await;
    assert_eq!(job.request.image.as_deref(), Some(IMAGE));
    for image in ["", "UPPER/case:1", "a@sha256:12", "http://docker.io/a:1", "-rm"] {
        refused(submission(&market, image), 422, "image_invalid").await;
    }
    for image in ["a b", "a\0b"] {
        refused(submission(&market, image), 422, "request_invalid").await;
    }
}
