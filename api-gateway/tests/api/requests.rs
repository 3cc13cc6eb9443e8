//! Requests that nobody should send.

use reqwest::Method;
use serde_json::{Value, json};

use crate::setup::{Market, fresh, refused};

#[tokio::test]
async fn what_does_not_exist_is_a_problem_too() {
    let market = Market::start().await;
    refused(market.get("/v1/nothing"), 404, "route_not_found").await;
    refused(market.anonymous(Method::GET, "/"), 404, "route_not_found").await;
    let call = || market.anonymous(Method::PATCH, "/v1/jobs").bearer_auth(&market.token);
    refused(call(), 405, "method_not_allowed").await;
    let allow = call().send().await.expect("an answer").headers()["allow"].clone();
    assert!(allow.to_str().expect("text").contains("POST"), "{allow:?}");
}

#[tokio::test]
async fn a_body_that_is_no_job_is_refused_by_what_is_wrong_with_it() {
    let market = Market::start().await;
    let send = |body: &str| {
        let call = market.post("/v1/jobs").header("Idempotency-Key", fresh("key"));
        call.header("content-type", "application/json; charset=utf-8").body(body.to_owned())
    };
    for broken in ["", "{", "{\"argv\":[\"a\"]", "nave", "\u{fffd}"] {
        refused(send(broken), 400, "body_malformed").await;
    }
    let unknown = refused(send(r#"{"argv":["true"],"gpus":1}"#), 422, "body_invalid").await;
    assert!(unknown.detail.contains("gpus"), "{unknown:?}");
    for other in [
        "[]",
        "3",
        "{}",
        r#"{"argv":"true"}"#,
        r#"{"argv":["a"],"argv":["b"]}"#,
        r#"{"argv":["a"],"retries":300}"#,
    ] {
        refused(send(other), 422, "body_invalid").await;
    }
    let bad = refused(send(r#"{"argv":["true"],"env":{"A=B":""}}"#), 422, "request_invalid").await;
    assert!(bad.detail.starts_with("env:"), "{bad:?}");
    refused(send(r#"{"argv":["a\u0000b"]}"#), 422, "request_invalid").await;
}

#[tokio::test]
async fn a_job_asks_for_no_volume_no_right_and_no_device_by_its_path() {
    let market = Market::start().await;
    let send =
        |body: serde_json::Value| market.post("/v1/jobs").header("Idempotency-Key", fresh("key")).json(&body);
    for field in ["volumes", "mounts", "binds", "privileged", "devices", "user", "network", "entrypoint"] {
        let problem = refused(send(json!({"argv": ["true"], field: ["/:/host"]})), 422, "body_invalid").await;
        assert!(problem.detail.contains(field), "{problem:?}");
    }
    for name in ["A;B", "A B", "$(id)", "-e", "LD_PRELOAD\n", ""] {
        let problem =
            refused(send(json!({"argv": ["true"], "env": {name: ""}})), 422, "request_invalid").await;
        assert!(problem.detail.starts_with("env:"), "{problem:?}");
    }
    for group in ["../x", "a b", "$(id)", ""] {
        refused(send(json!({"argv": ["true"], "group": group})), 422, "request_invalid").await;
    }
    let text = json!({"argv": ["$(id)", "; true"], "env": {"A_1": "`id` $HOME"}, "max_spend": 0});
    assert_eq!(send(text).send().await.expect("an answer").status(), 201);
}

#[tokio::test]
async fn only_json_of_a_bounded_size_is_read() {
    let market = Market::start().await;
    let call = || market.post("/v1/jobs").header("Idempotency-Key", fresh("key"));
    refused(call().body("{}"), 415, "content_type_unsupported").await;
    refused(call().header("content-type", "text/plain").body("{}"), 415, "content_type_unsupported").await;
    let large = json!({"argv": ["x".repeat(1 << 20)]});
    refused(call().json(&large), 413, "body_too_large").await;
    let legal = json!({"argv": ["x".repeat(250_000)], "max_spend": 0});
    assert_eq!(call().json(&legal).send().await.expect("an answer").status(), 201);
}

#[tokio::test]
async fn ids_and_cursors_that_nobody_gave_out_are_refused() {
    let market = Market::start().await;
    for path in [
        "/v1/jobs/7",
        "/v1/jobs/host_00000000000000000000000000000001",
        "/v1/jobs/job_%00/logs",
        "/v1/epochs/x",
    ] {
        refused(market.get(path), 400, "path_invalid").await;
    }
    for path in [
        "/v1/jobs?before=job_7",
        "/v1/jobs?limit=0",
        "/v1/jobs?limit=201",
        "/v1/jobs?state=lost",
        "/v1/jobs?limit=a",
    ] {
        refused(market.get(path), 400, "query_invalid").await;
    }
    for path in ["/v1/ledger?before=-1", "/v1/ledger?before=+1", "/v1/ledger?before=99999999999999999999"] {
        refused(market.get(path), 400, "cursor_invalid").await;
    }
    let unknown = format!("/v1/jobs/job_{}", "1".repeat(32));
    for path in ["", "/logs", "/logs?follow=true", "/receipt", "/result"] {
        refused(market.get(&format!("{unknown}{path}")), 404, "job_not_found").await;
    }
    refused(market.get("/v1/epochs/9"), 404, "epoch_not_found").await;
}

#[tokio::test]
async fn an_unknown_query_parameter_is_refused_by_name_everywhere() {
    let market = Market::start().await;
    let job = market.submit().await.job;
    let document: Value = serde_json::from_str(&nave_gateway::openapi()).expect("JSON");
    for (path, item) in document["paths"].as_object().expect("paths") {
        if item["get"].is_null() {
            continue;
        }
        let path = path.replace("{job}", &job.to_string()).replace("{epoch}", "1");
        let path = path.replace("{host}", &format!("host_{}", "0".repeat(32)));
        let path = path.replace("{challenge}", &format!("challenge_{}", "0".repeat(32)));
        let path = path.replace("{quote}", &format!("quote_{}", "0".repeat(32)));
        let problem = refused(market.get(&format!("{path}?limti=3")), 400, "query_invalid").await;
        assert!(problem.detail.contains("limti"), "{path}: {problem:?}");
    }
}
