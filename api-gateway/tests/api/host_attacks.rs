//! Hosts that lie, or speak for others.

use futures_util::{StreamExt as _, stream};
use nave_domain::{JobId, MicroUsd, job::JobState, lease::Outcome};
use nave_sdk::wire::{
    host::{
        BLOB_BYTES_MAX, Exit, LOG_CHUNK_BYTES_MAX, LeaseReport, PROOFS_MAX, PROTOCOL, ResultRef, XIDS_MAX,
    },
    rest::{Job, Logs},
};
use reqwest::{Body, Method, RequestBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::setup::{Host, Market, fresh_address, refused};

fn report(host: &Host<'_>) -> RequestBuilder {
    host.call(Method::POST, "/host/v1/report")
}

async fn state(market: &Market, job: JobId) -> JobState {
    market.fetch::<Job>(&format!("/v1/jobs/{job}")).await.state
}

#[tokio::test]
async fn an_address_that_belongs_to_no_host_is_refused() {
    let market = Market::start().await;
    let host = market.host("h").await;
    let calls = [
        (Method::GET, "/host/v1/spec"),
        (Method::POST, "/host/v1/report"),
        (Method::POST, &*format!("/host/v1/leases/lease_{}/logs/stdout?offset=0", "0".repeat(32))),
        (Method::PUT, &*format!("/host/v1/blobs/{}", "0".repeat(64))),
        (Method::GET, "/host/v1/releases/0.2.0/x86_64-linux"),
    ];
    let stranger = Host::new(&market, host.id, fresh_address());
    for (method, path) in calls {
        // Saying who one is does not help: nothing but the address counts.
        let call = stranger.call(method, path).header("x-nave-host", host.id.to_string());
        let problem = refused(call, 403, "host_unknown").await;
        assert!(problem.suggestion.contains("enrol again"), "{problem:?}");
    }
}

#[tokio::test]
async fn customers_and_hosts_do_not_reach_each_others_calls() {
    let market = Market::start().await;
    let host = market.host("h").await;
    refused(market.get("/host/v1/spec"), 404, "route_not_found").await;
    refused(host.call(Method::GET, "/v1/jobs").bearer_auth(&market.token), 404, "route_not_found").await;
}

#[tokio::test]
async fn a_host_touches_no_lease_but_its_own() {
    let market = Market::start().await;
    let mut honest = market.host("honest").await;
    let mut thief = market.host("thief").await;
    let (job, lease) = market.placed(&honest).await;
    let lies = [
        LeaseReport::Running,
        LeaseReport::Preparing,
        LeaseReport::Exited { exit: Exit::Killed },
        LeaseReport::Finished { exit: Exit::Code { code: 0 }, result: None },
    ];
    for lie in lies {
        thief.report(&[(lease, lie)]).await;
        assert_eq!(state(&market, job.job).await, JobState::Placed);
    }
    let path = format!("/host/v1/leases/{lease}/logs/stdout?offset=0");
    refused(thief.call(Method::POST, &path).body("forged"), 404, "lease_not_found").await;
    assert!(thief.spec(0, 0).await.expect("a spec").leases.is_empty());
    honest.report(&[(lease, LeaseReport::Finished { exit: Exit::Code { code: 0 }, result: None })]).await;
    refused(honest.call(Method::POST, &path).body("late"), 404, "lease_not_found").await;
    assert_eq!(market.fetch::<Logs>(&format!("/v1/jobs/{}/logs", job.job)).await.lines, []);
}

#[tokio::test]
async fn a_report_that_was_overtaken_changes_nothing() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let (job, lease) = market.placed(&host).await;
    let early = host.next_report(&[(lease, LeaseReport::Preparing)]);
    let finished = LeaseReport::Finished { exit: Exit::Code { code: 9 }, result: None };
    let mut forged = host.next_report(&[(lease, finished)]);
    host.report(&[(lease, LeaseReport::Running)]).await;
    host.send(&early).await;
    assert_eq!(state(&market, job.job).await, JobState::Running);
    host.send(&forged).await;
    assert_eq!(state(&market, job.job).await, JobState::Running);
    (forged.session, forged.sequence) = (host.session - 1, u64::MAX);
    host.send(&forged).await;
    assert_eq!(state(&market, job.job).await, JobState::Running, "an earlier process is not believed");
    host.session = u64::MAX;
    host.sequence = 0;
    host.report(&[(lease, LeaseReport::Exited { exit: Exit::Code { code: 0 } })]).await;
    let job: Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
    assert!(job.attempts[0].ended_at.is_some(), "a new process of the agent begins anew");
}

#[tokio::test]
async fn a_host_that_keeps_quiet_about_a_lease_it_began_has_lost_it() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let (job, lease) = market.placed(&host).await;
    host.generation = host.spec(0, 0).await.expect("a spec").generation;
    host.report(&[]).await;
    assert_eq!(state(&market, job.job).await, JobState::Placed, "what was not begun may still come");
    host.report(&[(lease, LeaseReport::Running)]).await;
    host.report(&[(lease, LeaseReport::Unseen)]).await;
    assert_eq!(state(&market, job.job).await, JobState::Running, "not seen is not lost");
    let newest = std::mem::replace(&mut host.generation, 0);
    host.report(&[]).await;
    assert_eq!(state(&market, job.job).await, JobState::Running, "who has not seen the spec knows nothing");
    host.generation = newest;
    host.report(&[]).await;
    let lost: Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
    assert_eq!((lost.state, lost.attempts[0].outcome.clone()), (JobState::Queued, Some(Outcome::HostLost)));
    assert_eq!(lost.charged, MicroUsd::ZERO);
    market.assert_books_balance().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn reports_that_come_all_at_once_leave_the_newest_state() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    for _ in 0..5 {
        let (job, lease) = market.placed(&host).await;
        let phase = |n| if n < 12 { LeaseReport::Preparing } else { LeaseReport::Running };
        let reports: Vec<_> = (0..16).map(|n| host.next_report(&[(lease, phase(n))])).collect();
        futures_util::future::join_all(reports.iter().map(|report| host.send(report))).await;
        assert_eq!(state(&market, job.job).await, JobState::Running);
        host.report(&[(lease, LeaseReport::Finished { exit: Exit::Code { code: 0 }, result: None })]).await;
        assert_eq!(state(&market, job.job).await, JobState::Succeeded);
    }
}

#[tokio::test]
async fn another_version_of_the_protocol_is_refused_by_name() {
    let market = Market::start().await;
    let host = market.host("h").await;
    let body = json!({"protocol": PROTOCOL + 1, "something": "else"});
    let problem = refused(report(&host).json(&body), 426, "protocol_unsupported").await;
    assert!(problem.detail.contains(&format!("version {PROTOCOL}")), "{problem:?}");
}

fn challenge(n: usize) -> String {
    format!("challenge_{n:032x}")
}

#[tokio::test]
async fn a_report_that_no_agent_would_write_is_refused_and_the_host_lives_on() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let good = serde_json::to_value(host.next_report(&[])).expect("JSON");
    let with = |path: &str, value: Value| {
        let mut bad = good.clone();
        *bad.pointer_mut(path).expect("a field") = value;
        bad
    };
    refused(report(&host).body("{"), 400, "body_malformed").await;
    refused(report(&host).json(&json!([])), 422, "body_invalid").await;
    for (path, value) in [
        ("/sequence", json!(-1)),
        ("/inventory", json!(null)),
        ("/leases", json!({"lease_7": {"phase": "running"}})),
    ] {
        refused(report(&host).json(&with(path, value)), 422, "body_invalid").await;
    }
    let device = json!({"uuid": "a", "model": "b", "vram": 1, "driver": "c"});
    let simulated = json!({"uuid": "GPU-1", "model": "b", "vram": 1, "driver": "c", "simulated": true});
    let wrong = [
        ("/inventory/devices", json!([simulated])),
        ("/inventory/memory", json!(-1)),
        ("/inventory/milli_cpu", json!(i64::MAX)),
        ("/inventory/os", json!("\u{0}")),
        ("/inventory/kernel", json!("x".repeat(300))),
        ("/inventory/devices", json!([device, device])),
    ];
    for (path, value) in wrong {
        let problem = refused(report(&host).json(&with(path, value)), 422, "inventory_invalid").await;
        assert!(problem.detail.starts_with("inventory."), "{problem:?}");
    }
    let proof = json!({"challenge": challenge(1), "step": 0, "message": {"commitment": "0".repeat(64)}});
    let mut foreign = good.clone();
    foreign["proofs"] = json!({challenge(2): proof});
    refused(report(&host).json(&foreign), 422, "proofs_invalid").await;
    let mut many = good.clone();
    let proofs = (0..=PROOFS_MAX).map(|n| {
        let mut proof = proof.clone();
        proof["challenge"] = json!(challenge(n));
        (challenge(n), proof)
    });
    many["proofs"] = Value::Object(proofs.collect());
    refused(report(&host).json(&many), 422, "proofs_invalid").await;
    let mut errors = good.clone();
    errors["xids"] = json!([{"code": 79, "device": "a"}]);
    refused(report(&host).json(&errors), 422, "xids_invalid").await;
    errors["inventory"]["devices"] = json!([device]);
    errors["xids"] = json!(vec![json!({"code": 79, "device": "a"}); XIDS_MAX + 1]);
    refused(report(&host).json(&errors), 422, "xids_invalid").await;
    let large = with("/inventory/os", json!("x".repeat(5 << 20)));
    refused(report(&host).json(&large), 413, "body_too_large").await;
    host.report(&[]).await;
}

#[tokio::test]
async fn a_log_call_is_bounded_and_names_a_stream_that_exists() {
    let market = Market::start().await;
    let host = market.host("h").await;
    let (_, lease) = market.placed(&host).await;
    let call = |stream: &str, query: &str| {
        host.call(Method::POST, &format!("/host/v1/leases/{lease}/logs/{stream}{query}"))
    };
    refused(call("stdin", "?offset=0"), 400, "path_invalid").await;
    for query in ["", "?offset=-1", "?offset=0&more=1", "?offset=18446744073709551615"] {
        refused(call("stdout", query), 400, "query_invalid").await;
    }
    let large = vec![0; LOG_CHUNK_BYTES_MAX + 1];
    refused(call("stdout", "?offset=0").body(large), 413, "body_too_large").await;
}

#[tokio::test]
async fn a_blob_is_what_its_name_says_of_bounded_size_and_from_a_host_with_work() {
    let market = Market::start().await;
    let host = market.host("h").await;
    let put =
        |name: &str, body: Vec<u8>| host.call(Method::PUT, &format!("/host/v1/blobs/{name}")).body(body);
    let name = hex::encode(Sha256::digest(b"bytes"));
    refused(put(&name, b"bytes".to_vec()), 403, "nothing_open").await;
    market.placed(&host).await;
    refused(put(&name, b"other bytes".to_vec()), 422, "hash_differs").await;
    refused(put("xyz", Vec::new()), 400, "path_invalid").await;
    refused(put(&name[..62], Vec::new()), 400, "path_invalid").await;
    for _ in 0..2 {
        let stored = put(&name, b"bytes".to_vec()).send().await.expect("an answer");
        assert_eq!(stored.status(), 204);
    }
    let largest = vec![7; BLOB_BYTES_MAX];
    let stored = put(&hex::encode(Sha256::digest(&largest)), largest).send().await.expect("an answer");
    assert_eq!(stored.status(), 204);
    refused(put(&name, vec![7; BLOB_BYTES_MAX + 1]), 413, "body_too_large").await;
    let third = hex::encode(Sha256::digest(b"third"));
    refused(put(&third, b"third".to_vec()), 429, "blobs_full").await;
    market.placed(&host).await;
    let stored = put(&third, b"third".to_vec()).send().await.expect("an answer");
    assert_eq!(stored.status(), 204, "another lease has room for another result");
}

#[tokio::test]
async fn a_result_that_was_never_stored_is_no_result() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    for sha256 in ["0".repeat(64), "nonsense".to_owned()] {
        let (job, lease) = market.placed(&host).await;
        let result = Some(ResultRef { sha256, size: 1, truncated: false });
        host.report(&[(lease, LeaseReport::Finished { exit: Exit::Code { code: 0 }, result })]).await;
        let job: Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
        assert_eq!((job.state, job.has_result), (JobState::Succeeded, false));
    }
}

#[tokio::test]
async fn a_host_that_sends_blobs_slowly_leaves_turns_to_others() {
    let market = Market::start().await;
    let (slow, other) = (market.host("slow").await, market.host("other").await);
    let body = b"bytes";
    let path = format!("/host/v1/blobs/{}", hex::encode(Sha256::digest(body)));
    market.placed(&slow).await;
    market.placed(&other).await;
    let endless = || Body::wrap_stream(stream::pending::<Result<Vec<u8>, std::convert::Infallible>>());
    let held: Vec<_> =
        (0..6).map(|_| tokio::spawn(slow.call(Method::PUT, &path).body(endless()).send())).collect();
    // All but two are sent away at once.
    let refused = stream::iter(held).buffer_unordered(6).take(4).collect::<Vec<_>>().await;
    for answer in refused {
        assert_eq!(answer.expect("a task").expect("an answer").status(), 503);
    }
    let stored = other.call(Method::PUT, &path).body(body.to_vec()).send().await.expect("an answer");
    assert_eq!(stored.status(), 204);
}
