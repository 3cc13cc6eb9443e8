//! Output: pages, places in it, and following it.

use std::time::Duration;

use nave_domain::{JobId, LeaseId, Timestamp};
use nave_sdk::wire::{
    host::{Exit, LeaseReport},
    rest::{Job, LogLine, Logs},
};
use tokio::time::timeout;

use crate::setup::{Host, Market, refused};

/// An event of a followed log.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Event {
    kind: String,
    id: Option<String>,
    data: String,
}

/// A followed log, read as bytes arrive.
struct Stream {
    response: reqwest::Response,
    buffer: String,
}

impl Stream {
    async fn open(market: &Market, job: JobId, query: &str, last: Option<&str>) -> Self {
        let mut call = market.get(&format!("/v1/jobs/{job}/logs?follow=true{query}"));
        if let Some(last) = last {
            call = call.header("Last-Event-ID", last);
        }
        let response = call.send().await.expect("an answer");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, buffer: String::new() }
    }

    /// The next event; `None` when the stream ends.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.buffer.clone().split_once("\n\n") {
                self.buffer = rest.to_owned();
                if event.starts_with(':') {
                    continue;
                }
                return Some(parse(event));
            }
            let piece = timeout(Duration::from_secs(20), self.response.chunk()).await.expect("in time");
            self.buffer.push_str(std::str::from_utf8(&piece.expect("a stream")?).expect("text"));
        }
    }

    async fn rest(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

fn parse(text: &str) -> Event {
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
    };
    Event { kind: field("event").expect("a kind"), id: field("id"), data: field("data").expect("data") }
}

fn text(event: &Event) -> String {
    serde_json::from_str::<LogLine>(&event.data).expect("a line").text
}

async fn finish(host: &mut Host<'_>, lease: LeaseId) {
    host.report(&[(lease, LeaseReport::Finished { exit: Exit::Code { code: 0 }, result: None })]).await;
}

/// A finished job that wrote four pieces to one stream and one to the other, cut inside characters.
async fn written(market: &Market) -> Job {
    let mut host = market.host("h").await;
    let (job, lease) = market.placed(&host).await;
    let bytes = "a€b😀c".as_bytes();
    host.log(lease, "stdout", 0, &bytes[..2]).await;
    host.log(lease, "stderr", 0, b"oops").await;
    host.log(lease, "stdout", 2, &bytes[2..7]).await;
    host.log(lease, "stdout", 7, &bytes[7..]).await;
    host.log(lease, "stdout", 10, b"\xf0\x9f").await;
    finish(&mut host, lease).await;
    job
}

fn texts(logs: &Logs) -> Vec<&str> {
    logs.lines.iter().map(|line| line.text.as_str()).collect()
}

#[tokio::test]
async fn characters_cut_in_two_arrive_whole_and_broken_ones_at_the_end() {
    let market = Market::start().await;
    let job = written(&market).await.job;
    let logs: Logs = market.fetch(&format!("/v1/jobs/{job}/logs")).await;
    assert_eq!(texts(&logs), ["a", "oops", "€b", "😀c", "\u{fffd}"]);
    assert!(logs.complete);
    let more: Logs = market.fetch(&format!("/v1/jobs/{job}/logs?after={}", logs.cursor)).await;
    assert_eq!((more.lines.len(), more.complete, more.cursor), (0, true, logs.cursor));
}

#[tokio::test]
async fn a_followed_log_breaks_off_anywhere_and_goes_on_without_loss_or_repetition() {
    let market = Market::start().await;
    let job = written(&market).await.job;
    let whole = Stream::open(&market, job, "", None).await.rest().await;
    let said: Vec<String> = whole[..whole.len() - 1].iter().map(text).collect();
    assert_eq!(said, ["a", "oops", "€b", "😀c", "\u{fffd}"]);
    assert_eq!(whole.last().map(|event| event.kind.as_str()), Some("end"));
    for (index, event) in whole[..whole.len() - 1].iter().enumerate() {
        let rest = Stream::open(&market, job, "", event.id.as_deref()).await.rest().await;
        assert_eq!(rest, whole[index + 1..], "after {:?}", event.id);
        let page: Logs =
            market.fetch(&format!("/v1/jobs/{job}/logs?after={}", event.id.as_deref().expect("an id"))).await;
        let expected: Vec<String> = whole[index + 1..whole.len() - 1].iter().map(text).collect();
        assert_eq!(texts(&page), expected);
    }
}

#[tokio::test]
async fn a_followed_log_comes_as_it_is_written_over_all_attempts() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let job = market.submit().await.job;
    let mut stream = Stream::open(&market, job, "", None).await;
    let lease = market.place(job, host.id).await;
    host.report(&[(lease, LeaseReport::Running)]).await;
    host.log(lease, "stdout", 0, b"one").await;
    assert_eq!(text(&stream.next().await.expect("a line")), "one");
    host.report(&[(lease, LeaseReport::Preparing)]).await;
    let lease = market.place(job, host.id).await;
    host.log(lease, "stderr", 0, b"two").await;
    let line: LogLine = serde_json::from_str(&stream.next().await.expect("a line").data).expect("a line");
    assert_eq!((line.attempt, line.text.as_str()), (2, "two"));
    finish(&mut host, lease).await;
    let end = stream.next().await.expect("the end");
    assert_eq!(end.kind, "end");
    let ended: Job = serde_json::from_str(&end.data).expect("a job");
    assert_eq!(ended, market.fetch::<Job>(&format!("/v1/jobs/{job}")).await);
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn a_job_that_never_ran_ends_its_log() {
    let market = Market::start().await;
    let job = market.submit().await.job;
    let mut stream = Stream::open(&market, job, "", None).await;
    market.store.job_cancel(market.customer, job).await.expect("cancel");
    assert_eq!(stream.next().await.map(|event| event.kind).as_deref(), Some("end"));
}

#[tokio::test]
async fn tail_since_and_after_choose_where_a_log_begins() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let (job, lease) = market.placed(&host).await;
    let job = job.job;
    for n in 0..5_u64 {
        host.log(lease, "stdout", n, n.to_string().as_bytes()).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let read = |query: &str| {
        let path = format!("/v1/jobs/{job}/logs?{query}");
        let market = &market;
        async move { market.fetch::<Logs>(&path).await }
    };
    let whole = read("").await;
    assert_eq!((texts(&whole), whole.complete), (vec!["0", "1", "2", "3", "4"], false));
    assert_eq!(texts(&read("tail=2").await), ["3", "4"]);
    assert_eq!(texts(&read("tail=0").await), Vec::<&str>::new());
    assert_eq!(texts(&read("tail=99").await), ["0", "1", "2", "3", "4"]);
    let since: Timestamp = whole.lines[2].at;
    assert_eq!(texts(&read(&format!("since={since}")).await), ["2", "3", "4"]);
    assert_eq!(texts(&read(&format!("since={since}&tail=1")).await), ["4"]);
    let after = read("tail=0").await.cursor;
    host.log(lease, "stdout", 5, b"5").await;
    assert_eq!(texts(&read(&format!("after={after}")).await), ["5"]);
    let mut stream = Stream::open(&market, job, "&tail=1", None).await;
    assert_eq!(text(&stream.next().await.expect("a line")), "5");
    finish(&mut host, lease).await;
}

#[tokio::test]
async fn a_long_log_comes_in_pages_of_bounded_size() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let (job, lease) = market.placed(&host).await;
    let piece = vec![b'x'; 200_000];
    for n in 0..12 {
        host.log(lease, "stdout", n * 200_000, &piece).await;
    }
    finish(&mut host, lease).await;
    let (mut bytes, mut after, mut pages) = (0, "0".to_owned(), 0);
    loop {
        let page: Logs = market.fetch(&format!("/v1/jobs/{}/logs?after={after}", job.job)).await;
        let size: usize = page.lines.iter().map(|line| line.text.len()).sum();
        assert!(size < 2_500_000, "{size}");
        bytes += size;
        pages += 1;
        after = page.cursor;
        if page.complete {
            break;
        }
    }
    assert!(bytes == 2_400_000 && pages > 1, "{bytes} bytes in {pages} pages");
}

#[tokio::test]
async fn cursors_that_nobody_gave_out_are_refused() {
    let market = Market::start().await;
    let job = market.submit().await.job;
    for cursor in ["", "-1", "1.", "1.x", "1.300", "99999999999999999999", "0x1"] {
        refused(market.get(&format!("/v1/jobs/{job}/logs?after={cursor}")), 400, "cursor_invalid").await;
        let follow = market.get(&format!("/v1/jobs/{job}/logs?follow=true")).header("Last-Event-ID", cursor);
        refused(follow, 400, "cursor_invalid").await;
    }
    refused(market.get(&format!("/v1/jobs/{job}/logs?since=yesterday")), 400, "query_invalid").await;
}
