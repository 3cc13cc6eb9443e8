//! The host protocol, from a job's placement to its receipt.

use std::time::{Duration, Instant};

use nave_domain::{
    MicroUsd, Millis,
    event::EventKind,
    host::HostState,
    job::JobState,
    lease::{LeaseState, Outcome},
    ledger::PostingKind,
};
use nave_sdk::wire::{
    host::{Exit, LOG_BYTES_MAX, LOG_CHUNK_BYTES_MAX, LeaseReport, LogAck, ResultRef},
    rest::{Job, Logs, Receipt},
};
use reqwest::Method;
use sha2::{Digest, Sha256};

use crate::setup::{IMAGE, Market, read, refused};

fn code(code: i32) -> Exit {
    Exit::Code { code }
}

#[tokio::test]
async fn a_job_runs_from_its_placement_to_its_receipt() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let job = market.submit().await;
    let before = host.spec(0, 0).await.expect("a spec");
    assert_eq!(
        (before.state, before.fence_ms, before.report_ms),
        (HostState::Ready, Millis(45_000), Millis(5_000))
    );

    let (spec, lease) = tokio::join!(host.spec(before.generation, 20_000), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        market.place(job.job, host.id).await
    });
    let spec = spec.expect("a newer spec");
    assert!(spec.generation > before.generation);
    let order = &spec.leases[&lease];
    assert_eq!((order.job, order.attempt, order.image.as_str(), order.stop), (job.job, 1, IMAGE, None));
    assert_eq!(order.argv, ["true"]);

    host.generation = spec.generation;
    host.report(&[(lease, LeaseReport::Preparing)]).await;
    host.report(&[(lease, LeaseReport::Running)]).await;
    let running: Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
    assert_eq!((running.state, running.attempts[0].state), (JobState::Running, LeaseState::Running));
    tokio::time::sleep(Duration::from_millis(120)).await;
    host.report(&[(lease, LeaseReport::Running)]).await;

    host.log(lease, "stdout", 0, b"hello\n").await;
    host.report(&[(lease, LeaseReport::Exited { exit: code(0) })]).await;
    let archive = b"a tar archive".to_vec();
    let sha256 = hex::encode(Sha256::digest(&archive));
    let stored = host.call(Method::PUT, &format!("/host/v1/blobs/{sha256}")).body(archive.clone());
    assert_eq!(stored.send().await.expect("an answer").status(), 204);
    let result = Some(ResultRef { sha256, size: 13, truncated: false });
    let ack = host.report(&[(lease, LeaseReport::Finished { exit: code(0), result: result.clone() })]).await;
    assert!(ack.generation > spec.generation, "the closed lease left the spec");
    assert_eq!(host.spec(spec.generation, 0).await.expect("a spec").leases.len(), 0);
    host.report(&[(lease, LeaseReport::Finished { exit: code(1), result })]).await;

    let done: Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
    assert_eq!((done.state, done.exit_code, done.has_result), (JobState::Succeeded, Some(0), true));
    assert!(!done.result_truncated);
    assert_eq!(done.attempts[0].outcome, Some(Outcome::Exited { code: 0 }), "a later word changes nothing");
    let fetched = market.get(&format!("/v1/jobs/{}/result", job.job)).send().await.expect("an answer");
    assert_eq!(fetched.headers()["content-type"], "application/x-tar");
    assert_eq!(fetched.headers()["content-length"], "13");
    assert_eq!(fetched.bytes().await.expect("bytes"), archive);
    receipt_agrees_with_the_ledger(&market, &done).await;
}

async fn receipt_agrees_with_the_ledger(market: &Market, job: &Job) {
    let receipt: Receipt = market.fetch(&format!("/v1/jobs/{}/receipt", job.job)).await;
    let rows = market.store.ledger_of_job(job.job).await.expect("the ledger");
    assert_eq!(receipt.lines.len(), rows.len());
    for (line, row) in receipt.lines.iter().zip(&rows) {
        assert_eq!(
            (line.kind, line.amount, &line.from, &line.to),
            (row.kind, row.amount, &row.from, &row.to)
        );
    }
    let kinds: Vec<PostingKind> = rows.iter().map(|row| row.kind).collect();
    assert_eq!(kinds, [PostingKind::Hold, PostingKind::Charge, PostingKind::Release]);
    // 36 dollars an hour are 10 micro-USD a millisecond.
    assert_eq!(receipt.total, MicroUsd(receipt.attempts[0].attempt.used_ms.0 * 10));
    assert!(receipt.total >= MicroUsd(1_200) && receipt.total == job.charged);
    assert_eq!((receipt.held, receipt.attempts[0].attempt.charged), (MicroUsd(0), job.charged));
    market.assert_books_balance().await;
}

#[tokio::test]
async fn files_left_out_of_a_result_are_told_to_the_customer() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let (job, lease) = market.placed(&host).await;
    let sha256 = hex::encode(Sha256::digest(b"a part"));
    let stored = host.call(Method::PUT, &format!("/host/v1/blobs/{sha256}")).body("a part");
    assert_eq!(stored.send().await.expect("an answer").status(), 204);
    let result = Some(ResultRef { sha256, size: 6, truncated: true });
    host.report(&[(lease, LeaseReport::Finished { exit: code(0), result })]).await;
    let done: Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
    assert_eq!((done.state, done.has_result, done.result_truncated), (JobState::Succeeded, true, true));
}

#[tokio::test]
async fn a_command_that_ends_between_two_reports_has_started_and_ended() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let (job, lease) = market.placed(&host).await;
    host.report(&[(lease, LeaseReport::Exited { exit: code(3) })]).await;
    host.report(&[(lease, LeaseReport::Exited { exit: code(3) })]).await;
    host.report(&[(lease, LeaseReport::Finished { exit: code(3), result: None })]).await;
    let job: Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
    assert_eq!((job.state, job.exit_code), (JobState::Failed, Some(3)));
    assert_eq!(job.reason.map(|reason| reason.code).as_deref(), Some("exited"));
    assert!(job.attempts[0].started_at.is_some() && job.attempts[0].ended_at.is_some());
    refused(market.get(&format!("/v1/jobs/{}/result", job.job)), 404, "no_result").await;
}

#[tokio::test]
async fn a_spec_is_answered_at_once_when_it_is_newer_and_with_nothing_when_it_is_not() {
    let market = Market::start().await;
    let host = market.host("h").await;
    let spec = host.spec(0, 30_000).await.expect("a spec");
    assert_eq!((spec.host, spec.leases.len()), (host.id, 0));
    let began = Instant::now();
    assert_eq!(host.spec(spec.generation, 300).await, None);
    assert!((300..3_000).contains(&began.elapsed().as_millis()));
    refused(host.call(Method::GET, "/host/v1/spec?after=0&wait_ms=99999999"), 400, "query_invalid").await;
}

#[tokio::test]
async fn what_a_log_call_overlaps_is_dropped_and_what_it_misses_is_asked_for() {
    let market = Market::start().await;
    let host = market.host("h").await;
    let (job, lease) = market.placed(&host).await;
    let at = |next_offset| LogAck { next_offset, full: false };
    assert_eq!(host.log(lease, "stdout", 0, b"abc").await, at(3));
    assert_eq!(host.log(lease, "stdout", 0, b"abc").await, at(3), "a repetition");
    assert_eq!(host.log(lease, "stdout", 1, b"bcde").await, at(5), "an overlap");
    assert_eq!(host.log(lease, "stdout", 9, b"x").await, at(5), "a gap");
    assert_eq!(host.log(lease, "stdout", 0, b"").await, at(5), "a question");
    assert_eq!(host.log(lease, "stderr", 0, b"E").await, at(1), "the other stream");
    let logs: Logs = market.fetch(&format!("/v1/jobs/{}/logs", job.job)).await;
    let texts: Vec<&str> = logs.lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!((texts, logs.complete), (vec!["abc", "de", "E"], false));
}

#[tokio::test]
async fn a_stream_is_kept_up_to_its_bound() {
    let market = Market::start().await;
    let host = market.host("h").await;
    let (job, lease) = market.placed(&host).await;
    let piece = vec![b'x'; LOG_CHUNK_BYTES_MAX];
    let mut ack = LogAck { next_offset: 0, full: false };
    while !ack.full {
        ack = host.log(lease, "stdout", ack.next_offset, &piece).await;
    }
    assert_eq!(ack.next_offset, LOG_BYTES_MAX);
    assert_eq!(host.log(lease, "stdout", LOG_BYTES_MAX, b"more").await, ack);
    let logs: Logs = market.fetch(&format!("/v1/jobs/{}/logs?tail=2", job.job)).await;
    let lengths: Vec<usize> = logs.lines.iter().map(|line| line.text.len()).collect();
    assert_eq!(lengths[0], LOG_CHUNK_BYTES_MAX);
    assert!(logs.lines[1].text.contains("16 MiB"), "what is dropped is said so, once");
}

#[tokio::test]
async fn a_lease_that_its_host_has_lost_is_tried_again_elsewhere() {
    let market = Market::start().await;
    let mut first = market.host("first").await;
    let mut second = market.host("second").await;
    let (job, lost) = market.placed(&first).await;
    first.report(&[(lost, LeaseReport::Running)]).await;
    first.report(&[(lost, LeaseReport::Preparing)]).await;
    let again = market.place(job.job, second.id).await;
    let finished = LeaseReport::Finished { exit: code(0), result: None };
    first.report(&[(lost, finished.clone())]).await;
    first.report(&[(again, finished.clone())]).await;
    let open: Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
    assert_eq!(open.state, JobState::Placed, "neither an old nor a foreign attempt is believed");
    second.report(&[(again, finished)]).await;
    let done: Job = read(market.get(&format!("/v1/jobs/{}", job.job)).send().await.expect("an answer")).await;
    assert_eq!((done.state, done.attempts.len()), (JobState::Succeeded, 2));
    let [event] = done.attempts[0].events.as_slice() else { panic!("{:?}", done.attempts[0].events) };
    assert_eq!((event.kind, event.lease, &event.decision), (EventKind::HostLost, Some(lost), &None));
    assert_eq!(done.attempts[1].events, []);
    market.assert_books_balance().await;
}

#[tokio::test]
async fn jobs_of_a_group_learn_their_addresses_in_the_mesh() {
    let market = Market::start().await;
    let host = market.host("h").await;
    let alone = market.submit().await;
    let alone = market.place(alone.job, host.id).await;
    let mut pair = Vec::new();
    for _ in 0..2 {
        let request = serde_json::json!({"argv": ["true"], "group": "g"});
        let answer = market.submission(&format!("pair-{}", pair.len()), &request).send().await;
        let job: Job = read(answer.expect("an answer")).await;
        assert_eq!(job.request.group.as_deref(), Some("g"));
        pair.push((job.job, market.place(job.job, host.id).await));
    }
    let spec = host.spec(0, 0).await.expect("a spec");
    let order = |lease| &spec.leases[&lease];
    assert_eq!((order(alone).address, order(alone).peers.len()), (None, 0));
    let [(first_job, first), (second_job, second)] = pair[..] else { panic!("two") };
    let (one, other) =
        (order(first).address.expect("an address"), order(second).address.expect("an address"));
    assert!(one != other && one.segments()[3] == 2 && one.segments()[..4] == other.segments()[..4]);
    assert_eq!(order(first).peers, [(second_job, other)].into());
    assert_eq!(order(second).peers, [(first_job, one)].into());
}
