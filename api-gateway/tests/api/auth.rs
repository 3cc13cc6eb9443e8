//! Keys, scopes and rates, for every call that the API describes.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::setup::{Market, refused};

/// Every described call: method, path with ids filled in, scope.
fn calls() -> Vec<(Method, String, Option<String>)> {
    let document: Value = serde_json::from_str(&nave_gateway::openapi()).expect("JSON");
    let ids = [("{job}", "job_"), ("{key}", "key_"), ("{host}", "host_"), ("{challenge}", "challenge_")]
        .map(|(name, id)| (name, format!("{id}{}", "0".repeat(32))));
    let mut calls = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        let filled = ids.iter().fold(path.replace("{epoch}", "1"), |path, (name, id)| path.replace(name, id));
        for (method, call) in item.as_object().expect("a path") {
            let scope = call["security"][0]["key"][0].as_str().map(str::to_owned);
            calls.push((method.to_uppercase().parse().expect("a method"), filled.clone(), scope));
        }
    }
    calls
}

fn with_body(call: RequestBuilder, method: &Method) -> RequestBuilder {
    if *method == Method::POST { call.json(&json!({})) } else { call }
}

#[tokio::test]
async fn every_call_but_those_for_everyone_needs_a_known_key_or_a_signature() {
    let market = Market::start().await;
    let (guarded, others): (Vec<_>, Vec<_>) = calls().into_iter().partition(|(_, _, scope)| scope.is_some());
    let mut open = Vec::new();
    for (method, path, _) in others {
        if path.starts_with("/v1/miner/") || path == "/v1/enrolments" {
            refused(with_body(market.anonymous(method.clone(), &path), &method), 401, "signature_missing")
                .await;
        } else {
            open.push(path);
        }
    }
    let zeros = "0".repeat(32);
    let verdicts = format!("/v1/hosts/host_{zeros}/verdicts");
    let one = format!("{verdicts}/challenge_{zeros}");
    let opening = format!("{one}/opening");
    let evidence = "/v1/epochs/1/evidence";
    assert_eq!(open, [evidence, "/v1/health", &verdicts, &one, &opening, "/v1/market", "/v1/params"]);
    for (method, path, _) in guarded {
        let call = || with_body(market.anonymous(method.clone(), &path), &method);
        refused(call(), 401, "token_missing").await;
        refused(call().bearer_auth(format!("nave_{}", "0".repeat(64))), 401, "token_unknown").await;
        refused(call().header("authorization", "Basic bmF2ZTpuYXZl"), 401, "token_missing").await;
    }
}

#[tokio::test]
async fn every_call_needs_exactly_the_scope_that_is_described() {
    let market = Market::start().await;
    for (method, path, scope) in calls() {
        let Some(scope) = scope else { continue };
        let others: Vec<&str> =
            nave_sdk::wire::rest::SCOPES.into_iter().filter(|other| *other != scope).collect();
        let call = || with_body(market.anonymous(method.clone(), &path), &method);
        let without = call().bearer_auth(market.key(market.customer, &others).await);
        let problem = refused(without, 403, "scope_missing").await;
        assert!(problem.detail.contains(&scope) && problem.suggestion.contains(&scope), "{problem:?}");
        let with = call().bearer_auth(market.key(market.customer, &[&scope]).await);
        let status = with.send().await.expect("an answer").status().as_u16();
        assert!(![401, 403, 500].contains(&status), "{method} {path}: {status}");
    }
}

#[tokio::test]
async fn a_refusal_says_how_to_identify() {
    let market = Market::start().await;
    let answer = market.anonymous(Method::GET, "/v1/jobs").send().await.expect("an answer");
    assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"nave\"");
}

#[tokio::test]
async fn a_revoked_key_works_no_more() {
    let market = Market::start().await;
    let keys = market.store.key_list(market.customer).await.expect("keys");
    market.store.key_revoke(market.customer, keys[0].key).await.expect("revoke");
    refused(market.get("/v1/jobs"), 401, "token_unknown").await;
}

#[tokio::test]
async fn a_key_that_calls_too_often_is_told_when_to_come_back() {
    let market = Market::start().await;
    let first = market.get("/v1/balance").send().await.expect("an answer");
    assert_eq!(first.headers()["ratelimit-policy"], "\"key\";q=200;w=4");
    assert!(first.headers()["ratelimit"].to_str().expect("text").starts_with("\"key\";r=199;"));
    let calls = (0..600).map(|_| market.get("/v1/balance").send());
    let answers = futures_util::future::join_all(calls).await;
    let refused = answers.into_iter().map(|answer| answer.expect("an answer"));
    let refused: Vec<_> = refused.filter(|answer| answer.status() == 429).collect();
    assert!(!refused.is_empty());
    assert_eq!(refused[0].headers()["retry-after"], "1");
    let other = market.key(market.customer, &["balance:read"]).await;
    let other = market.anonymous(Method::GET, "/v1/balance").bearer_auth(other).send().await;
    assert_eq!(other.expect("an answer").status(), 200, "another key is not slowed");
}
