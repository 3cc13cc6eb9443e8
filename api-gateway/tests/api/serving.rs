//! Listening, stopping and the control clock.

use std::{
    io,
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use nave_sdk::wire::rest::{Health, Job};
use reqwest::Method;

use crate::setup::{Host, Market, any_port, listen};

#[tokio::test]
async fn customers_are_served_while_hosts_cannot_be_listened_for_yet() {
    let tries = Arc::new(AtomicU32::new(0));
    let inside = TcpListener::bind(any_port()).expect("a port");
    let place = inside.local_addr().expect("an address");
    let counted = tries.clone();
    let bind = move || match counted.fetch_add(1, Ordering::Relaxed) {
        0 | 1 => Err(io::Error::from(io::ErrorKind::AddrNotAvailable)),
        _ => inside.try_clone(),
    };
    let mut market = Market::configured(|config| config.hosts = listen(place, bind)).await;
    assert_eq!(market.fetch::<Health>("/v1/health").await.status, "ok");
    // The gateway of these tests listens elsewhere: only the one in the configuration counts.
    market.hosts = place;
    market.host("h").await;
    assert!(tries.load(Ordering::Relaxed) > 2);
}

#[tokio::test]
async fn a_mesh_that_was_set_up_anew_is_listened_in_at_once() {
    let first = TcpListener::bind(any_port()).expect("a port");
    let place = first.local_addr().expect("an address");
    let next: Arc<Mutex<Option<TcpListener>>> = Arc::new(Mutex::new(Some(first)));
    let waiting = next.clone();
    let bind = move || {
        let next = waiting.lock().expect("no panic").take();
        next.ok_or_else(|| io::Error::from(io::ErrorKind::AddrInUse))
    };
    let mut market = Market::configured(|config| config.hosts = listen(place, bind)).await;
    market.hosts = place;
    let host = market.host("h").await;
    let second = TcpListener::bind(any_port()).expect("a port");
    let elsewhere = second.local_addr().expect("an address");
    *next.lock().expect("no panic") = Some(second);
    let (id, address) = (host.id, host.address);
    drop(host);
    market.hosts = elsewhere;
    let moved = Host::new(&market, id, address);
    assert!(moved.call(Method::GET, "/host/v1/spec").send().await.expect("an answer").status().is_success());
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
