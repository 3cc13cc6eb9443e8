//! What the client promises to programs.

use std::time::{Duration, Instant};

use nave_domain::{JobId, Millis, job::JobRequest};
use nave_sdk::{
    client::{Client, Error, JobsQuery, LogEvent, LogsQuery, Patience},
    wire::rest::KeyRequest,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::stub::{JOB, Reply, Stub, end, job, log, nowhere};

fn quick(url: &str) -> Client {
    let patience = Patience {
        total: Duration::from_secs(20),
        first: Duration::from_millis(10),
        longest: Duration::from_millis(50),
    };
    Client::new(url, Some("nave_secret")).expect("a client").patience(patience)
}

fn id() -> JobId {
    JOB.parse().expect("a job id")
}

fn request() -> JobRequest {
    serde_json::from_value(json!({ "argv": ["true"] })).expect("a request")
}

fn health() -> Reply {
    Reply::json(&json!({ "status": "ok", "version": "0.1.0", "problems": [], "default_image": null }))
}

#[tokio::test]
async fn a_control_plane_that_starts_late_is_waited_for() {
    let address = nowhere().await;
    let client = quick(&format!("http://{address}"));
    let call = tokio::spawn(async move { client.health().await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let _stub = Stub::serve(TcpListener::bind(address).await.expect("the same port"), |_, _| health());
    assert_eq!(call.await.expect("no panic").expect("healthy").status, "ok");
}

#[tokio::test]
async fn a_submit_is_repeated_with_the_same_key_and_the_same_body() {
    let stub = Stub::start(|earlier, _| match earlier {
        0 => Reply::new(502, "text/html", "<h1>Bad Gateway</h1>"),
        1 => Reply::problem(503, "restarting"),
        _ => Reply { status: 201, ..Reply::json(&job("queued", None)) },
    })
    .await;
    let accepted = quick(&stub.url).submit(&request(), "key-1").await.expect("accepted at last");
    assert_eq!(accepted.job, id());
    let seen = stub.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|request| request.header("idempotency-key") == Some("key-1")));
    assert!(seen.iter().all(|request| request.body == seen[0].body && request.call() == "POST /v1/jobs"));
}

#[tokio::test]
async fn a_busy_server_is_given_the_time_it_asks_for() {
    let stub = Stub::start(|earlier, _| match earlier {
        0 => Reply::problem(429, "too_many_requests").with("retry-after", "1"),
        _ => health(),
    })
    .await;
    let began = Instant::now();
    quick(&stub.url).health().await.expect("healthy");
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn what_must_not_happen_twice_is_sent_once() {
    let stub = Stub::start(|_, _| Reply::problem(503, "restarting")).await;
    let wish = KeyRequest { label: "ci".into(), scopes: vec![] };
    let refused = quick(&stub.url).key_create(&wish).await.expect_err("refused");
    assert_eq!((refused.code(), stub.seen().len()), ("restarting", 1));
}

#[tokio::test]
async fn a_refusal_is_final_and_carries_code_and_advice() {
    let stub = Stub::start(|_, _| Reply::problem(402, "balance_too_low")).await;
    let error = quick(&stub.url).submit(&request(), "k").await.expect_err("refused");
    assert_eq!((error.code(), error.retryable(), error.status()), ("balance_too_low", false, Some(402)));
    assert_eq!(error.suggestion(), "do something else");
    assert_eq!(stub.seen().len(), 1);
}

#[tokio::test]
async fn patience_runs_out() {
    let stub = Stub::start(|_, _| Reply::problem(503, "restarting")).await;
    let patience = Patience { total: Duration::from_millis(300), ..Patience::default() };
    let began = Instant::now();
    let error = quick(&stub.url).patience(patience).balance().await.expect_err("still restarting");
    assert!(error.retryable() && began.elapsed() < Duration::from_secs(5));
    assert!(stub.seen().len() >= 2);
}

#[tokio::test]
async fn an_answer_of_another_kind_is_named_as_such() {
    let stub = Stub::start(|_, _| Reply::new(200, "text/html", "<h1>Welcome</h1>")).await;
    let error = quick(&stub.url).balance().await.expect_err("no balance");
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
}

#[tokio::test]
async fn the_token_goes_to_the_api_and_never_along_a_redirect() {
    let other = Stub::start(|_, _| health()).await;
    let target = other.url.clone();
    let stub = Stub::start(move |_, _| Reply::new(307, "text/plain", "").with("location", &target)).await;
    let error = quick(&stub.url).health().await.expect_err("no redirects");
    assert!(matches!(error, Error::Status { status: 307, .. }), "{error:?}");
    assert_eq!(stub.seen()[0].header("authorization"), Some("Bearer nave_secret"));
    assert_eq!(other.seen().len(), 0);
}

#[tokio::test]
async fn lists_and_waits_are_asked_for_in_the_query() {
    let stub = Stub::start(|_, seen| match seen.uri.path() {
        "/v1/jobs" => Reply::json(&json!({ "items": [job("queued", None)], "next": "c" })),
        _ => Reply::json(&job("succeeded", Some(0))),
    })
    .await;
    let client = quick(&stub.url);
    let query = JobsQuery { limit: Some(5), before: Some("b&c".into()), state: None };
    assert_eq!(client.jobs(&query).await.expect("a page").next.as_deref(), Some("c"));
    assert!(client.job_wait(id(), Millis(500)).await.expect("a job").state.is_final());
    let seen = stub.seen();
    assert_eq!(seen[0].query(), "limit=5&before=b%26c");
    assert_eq!(seen[1].query(), "wait_ms=500");
}

#[tokio::test]
async fn a_log_goes_on_after_its_last_event_when_the_connection_ends() {
    let stub = Stub::start(|earlier, _| match earlier {
        0 => Reply::events(&format!(
            "{}{}event: log\ndata: half",
            log(1, 1, "stdout", "a"),
            log(2, 1, "stdout", "b")
        )),
        1 => Reply::problem(503, "restarting"),
        _ => Reply::events(&format!(
            ": hello\n\n{}{}",
            log(3, 1, "stderr", "c"),
            end(&job("succeeded", Some(0)))
        )),
    })
    .await;
    let query = LogsQuery { tail: Some(9), ..LogsQuery::default() };
    let mut log = quick(&stub.url).follow(id(), query);
    let mut texts = Vec::new();
    while let Some(event) = log.next().await.expect("an event") {
        match event {
            LogEvent::Line(line) => texts.push(line.text),
            LogEvent::End(job) => assert!(job.state.is_final()),
        }
    }
    assert_eq!(texts, ["a", "b", "c"]);
    let seen = stub.seen();
    assert_eq!((seen[0].query(), seen[0].header("last-event-id")), ("follow=true&tail=9", None));
    assert_eq!((seen[2].query(), seen[2].header("last-event-id")), ("follow=true", Some("2")));
    assert_eq!(log.next().await.expect("nothing more"), None);
}

/// What a killed server leaves behind: half a chunk and a closed connection.
#[tokio::test]
async fn a_log_survives_a_server_that_is_killed_in_the_middle() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let first = log(1, 1, "stdout", "a");
    let killed = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await.expect("a request");
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let piece = format!("{head}{:x}\r\n{first}\r\nffff\r\nevent: lo", first.len());
        stream.write_all(piece.as_bytes()).await.expect("written");
        drop(stream);
        Stub::serve(listener, |_, _| Reply::events(&end(&job("failed", Some(3)))))
    });
    let mut log = quick(&url).follow(id(), LogsQuery::default());
    assert!(matches!(log.next().await, Ok(Some(LogEvent::Line(_)))));
    let Ok(Some(LogEvent::End(job))) = log.next().await else { panic!("no end") };
    assert_eq!(job.exit_code, Some(3));
    let seen = killed.await.expect("no panic").seen();
    assert_eq!(seen[0].header("last-event-id"), Some("1"));
}

#[tokio::test]
async fn a_log_that_does_not_exist_is_not_asked_for_again() {
    let stub = Stub::start(|_, _| Reply::problem(404, "job_not_found")).await;
    let error = quick(&stub.url).follow(id(), LogsQuery::default()).next().await.expect_err("no such job");
    assert_eq!((error.code(), stub.seen().len()), ("job_not_found", 1));
}

#[tokio::test]
async fn a_result_arrives_as_it_was_sent() {
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let sent = bytes.clone();
    let stub = Stub::start(move |_, _| Reply::new(200, "application/x-tar", sent.clone())).await;
    let mut download = quick(&stub.url).result(id()).await.expect("a result");
    let mut received = Vec::new();
    while let Some(piece) = download.chunk().await.expect("a piece") {
        received.extend_from_slice(&piece);
    }
    assert_eq!(received, bytes);
}

#[test]
fn what_cannot_be_a_url_or_a_token_is_refused_before_anything_is_sent() {
    for url in ["", "example.org", "ftp://example.org", "file:///etc/passwd"] {
        assert!(matches!(Client::new(url, None), Err(Error::Setup(_))), "{url}");
    }
    let error = Client::new("http://localhost", Some("secret\nx")).expect_err("a line break");
    assert!(!error.to_string().contains("secret"));
}
