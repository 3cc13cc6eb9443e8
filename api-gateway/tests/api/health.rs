//! Health.

use nave_sdk::wire::rest::Health;
use nave_store::Store;
use reqwest::Method;

use crate::setup::{IMAGE, Market, read, refused};

#[tokio::test]
async fn health_needs_no_key_and_names_the_default_image() {
    let market = Market::start().await;
    let answer = market.anonymous(Method::GET, "/v1/health").send().await.expect("an answer");
    let health: Health = read(answer).await;
    assert_eq!((health.status.as_str(), health.default_image.as_deref()), ("ok", Some(IMAGE)));
    assert_eq!((health.version.as_str(), health.problems.len()), (env!("CARGO_PKG_VERSION"), 0));
}

#[tokio::test]
async fn without_its_database_the_gateway_says_so_and_tells_nothing_else() {
    let store = Store::connect("postgres://nave@localhost/none?host=%2Fnonexistent").await.expect("a URL");
    let market = Market::over(store, |_| {}).await.with_token("nave_any".to_owned());
    let answer = market.anonymous(Method::GET, "/v1/health").send().await.expect("an answer");
    let health: Health = read(answer).await;
    assert_eq!((health.status.as_str(), health.problems.len()), ("degraded", 1));
    let problem = refused(market.get("/v1/balance"), 503, "database_unavailable").await;
    assert!(problem.retryable && !problem.detail.contains("nonexistent"), "{problem:?}");
}
