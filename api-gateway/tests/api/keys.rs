//! API keys.

use nave_sdk::wire::rest::{Key, NewKey};
use reqwest::Method;
use serde_json::json;

use crate::setup::{Market, read, refused};

#[tokio::test]
async fn a_new_key_works_is_listed_without_its_token_and_can_be_ended() {
    let market = Market::start().await;
    let body = json!({"label": "laptop", "scopes": ["jobs:read", "balance:read", "jobs:read"]});
    let answer = market.post("/v1/keys").json(&body).send().await.expect("an answer");
    assert_eq!(answer.status(), 201);
    let made: NewKey = read(answer).await;
    assert!(made.token.starts_with("nave_") && made.token.len() == 69);
    assert_eq!(made.key.scopes, ["balance:read", "jobs:read"]);
    let listed: Vec<Key> = market.fetch("/v1/keys").await;
    assert_eq!(listed.last(), Some(&made.key));
    let path = format!("/v1/keys/{}", made.key.key);
    for _ in 0..2 {
        let ended = market.anonymous(Method::DELETE, &path).bearer_auth(&market.token).send().await;
        assert_eq!(ended.expect("an answer").status(), 204);
    }
    let call = market.anonymous(Method::GET, "/v1/balance").bearer_auth(&made.token);
    refused(call, 401, "token_unknown").await;
}

#[tokio::test]
async fn a_key_cannot_make_one_that_may_do_more_than_itself() {
    let market = Market::start().await;
    let token = market.key(market.customer, &["keys:write"]).await;
    let market = market.with_token(token);
    let body = json!({"label": "more", "scopes": ["keys:write", "jobs:write"]});
    let problem = refused(market.post("/v1/keys").json(&body), 403, "scope_missing").await;
    assert!(problem.detail.contains("jobs:write"), "{problem:?}");
}

#[tokio::test]
async fn a_key_has_a_label_and_known_scopes() {
    let market = Market::start().await;
    let long = "x".repeat(101);
    for (label, scopes) in [
        ("", vec!["jobs:read"]),
        ("a\u{0}", vec!["jobs:read"]),
        (&long, vec!["jobs:read"]),
        ("a", vec![]),
        ("a", vec!["root"]),
    ] {
        let body = json!({"label": label, "scopes": scopes});
        refused(market.post("/v1/keys").json(&body), 422, "request_invalid").await;
    }
}

#[tokio::test]
async fn another_customers_key_cannot_be_ended_or_seen() {
    let market = Market::start().await;
    let (bob, _) = market.customer("bob").await;
    let his = market.store.key_list(bob).await.expect("keys")[0].key;
    let call = market.anonymous(Method::DELETE, &format!("/v1/keys/{his}")).bearer_auth(&market.token);
    refused(call, 404, "key_not_found").await;
    let listed: Vec<Key> = market.fetch("/v1/keys").await;
    assert!(listed.iter().all(|key| key.key != his));
}

#[tokio::test]
async fn a_customer_has_a_bounded_number_of_keys() {
    let market = Market::start().await;
    for _ in 1..100 {
        market.key(market.customer, &["jobs:read"]).await;
    }
    let body = json!({"label": "one more", "scopes": ["jobs:read"]});
    refused(market.post("/v1/keys").json(&body), 409, "too_many_keys").await;
}
