//! Listening, stopping and the control clock.

use std::{
    os::unix::{fs::PermissionsExt, net::UnixListener},
    time::{Duration, Instant},
};

use nave_gateway::{Config, Gateway};
use nave_sdk::wire::rest::Job;

use crate::setup::Market;

#[tokio::test]
async fn only_this_user_may_open_the_hosts_socket() {
    let market = Market::start().await;
    let mode = std::fs::metadata(&market.socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("hosts.sock");
    drop(UnixListener::bind(&socket).expect("a socket"));
    let store = nave_store::testing::store().await;
    let config = Config::new("127.0.0.1:0".parse().expect("an address"), socket);
    let first = Gateway::bind(config.clone(), store.clone()).await.expect("over what was left");
    let second = Gateway::bind(config.clone(), store.clone()).await.err().expect("a refusal");
    assert!(format!("{second:#}").contains("another gateway"), "{second:#}");
    drop(first);
    std::fs::remove_file(&config.host_socket).expect("remove");
    std::fs::write(&config.host_socket, "precious").expect("write");
    assert!(Gateway::bind(config.clone(), store).await.is_err(), "what is no socket is not replaced");
    assert_eq!(std::fs::read(&config.host_socket).expect("read"), b"precious");
}

#[tokio::test]
async fn the_control_clock_advances_while_the_gateway_serves() {
    let mut market = Market::start().await;
    let before = market.store.clock_up().await.expect("the clock");
    tokio::time::sleep(Duration::from_millis(1_600)).await;
    market.stop().await;
    let passed = market.store.clock_up().await.expect("the clock").minus(before).expect("in range").0;
    assert!((900..3_000).contains(&passed), "{passed}");
    let stopped = market.store.clock_up().await.expect("the clock");
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(market.store.clock_up().await.expect("the clock"), stopped);
}

#[tokio::test]
async fn whoever_waits_is_answered_when_the_gateway_stops() {
    let mut market = Market::start().await;
    let job = market.submit().await.job;
    let host = market.host("h").await;
    let generation = host.spec(0, 0).await.expect("a spec").generation;
    let job = market.get(&format!("/v1/jobs/{job}?wait_ms=60000"));
    let log = market.get(&format!("/v1/jobs/job_{}/logs", "0".repeat(32)));
    let spec = host.call(reqwest::Method::GET, &format!("/host/v1/spec?after={generation}&wait_ms=60000"));
    drop(log);
    let waits = tokio::spawn(async move { tokio::join!(job.send(), spec.send()) });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    market.stop().await;
    let (job, spec) = waits.await.expect("no panic");
    assert_eq!(spec.expect("an answer").status(), 204);
    let job: Job = crate::setup::read(job.expect("an answer")).await;
    assert_eq!(job.actions, ["cancel", "logs", "receipt"]);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}
