//! The life of a lease: what is metered, what is charged, and never more.

use nave_domain::{
    Bytes, MicroUsd, MilliCpu, Millis,
    job::JobState,
    lease::{LeaseState, Outcome, StopReason},
    ledger::PostingKind,
    rate::{Rate, charge},
};
use nave_store::ResultRow;

use crate::market::{EXITED, Market, assert_about, hash, inventory, open, request};

async fn charge_all(market: &Market) {
    for due in market.store.charges_due().await.expect("due") {
        market.store.lease_charge(due).await.expect("charge");
    }
}

#[tokio::test]
async fn a_job_that_ran_is_charged_exactly_and_gets_the_rest_back() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let odd = Rate { gpu_hour: MicroUsd(7), vcpu_hour: MicroUsd(1_234_567), gib_hour: MicroUsd(765_433) };
        let host = market.host_with("alpha", odd, &inventory()).await;
        let mut wanted = request();
        wanted.resources.milli_cpu = MilliCpu(1_337);
        wanted.resources.memory = Bytes(3 * Bytes::GIB + 12_345);
        let (job, lease) = market.run(customer, host, &wanted).await;
        for span in [1_777, 2_999, 9_001] {
            market.use_up(host, lease, span).await;
            charge_all(market).await;
        }
        market.elapse(lease, 3_333).await;
        market.store.lease_exited(host, lease).await.expect("exited");
        market.finish(host, lease, EXITED).await;

        let (row, attempt) = (market.job(customer, job).await, market.attempt(job).await);
        assert_eq!((row.state, row.exit_code), (JobState::Succeeded, Some(0)));
        assert_eq!((attempt.state, attempt.outcome), (LeaseState::Closed, Some(EXITED)));
        assert_about(attempt.used, 17_110);
        let due = charge(attempt.size, attempt.used, odd).expect("in range");
        assert_eq!((attempt.charged, row.charged), (due, due), "roundings do not add up");
        assert_eq!(market.money(customer).await, (10_000_000 - due.0, 0));
    })
    .await;
}

#[tokio::test]
async fn a_receipts_lines_are_the_ledgers_and_add_up() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        for span in [1_000, 2_000] {
            market.use_up(host, lease, span).await;
            charge_all(market).await;
        }
        charge_all(market).await;
        market.finish(host, lease, EXITED).await;
        let lines = market.store.ledger_of_job(job).await.expect("lines");
        let sum = |kind| lines.iter().filter(|line| line.kind == kind).map(|line| line.amount.0).sum::<i64>();
        let row = market.job(customer, job).await;
        assert_eq!(sum(PostingKind::Charge), row.charged.0);
        assert_eq!(sum(PostingKind::Hold), sum(PostingKind::Charge) + sum(PostingKind::Release));
        assert_eq!(lines.first().map(|line| line.kind), Some(PostingKind::Hold));
        assert_eq!(lines.last().map(|line| line.kind), Some(PostingKind::Release));
        let mut of_customer = market.store.ledger_list(customer, None, 100).await.expect("lines");
        of_customer.reverse();
        assert_eq!(of_customer[0].kind, PostingKind::Credit);
        assert_eq!(of_customer[1..], lines);
    })
    .await;
}

#[tokio::test]
async fn nothing_is_charged_before_the_host_says_that_the_command_runs() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let job = market.submit(customer, &request()).await;
        let lease = market.place(job, host).await;
        market.use_up(host, lease, 9_000).await;
        assert_eq!(market.attempt(job).await.used, Millis::ZERO);
        market.finish(host, lease, EXITED).await;
        assert_eq!(market.job(customer, job).await.charged, MicroUsd::ZERO);
    })
    .await;
}

#[tokio::test]
async fn nothing_is_charged_after_the_command_has_ended() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        market.store.lease_exited(host, lease).await.expect("exited");
        let used = market.attempt(job).await.used;
        market.use_up(host, lease, 9_000).await;
        market.elapse(lease, 9_000).await;
        market.store.lease_exited(host, lease).await.expect("exited again");
        market.store.lease_started(host, lease).await.expect("a late start");
        market.finish(host, lease, EXITED).await;
        assert_eq!(market.attempt(job).await.used, used);
    })
    .await;
}

#[tokio::test]
async fn nothing_is_charged_after_the_control_plane_decided_to_stop_it() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        market.elapse(lease, 5_000).await;
        market.store.lease_stop(host, lease, StopReason::RunTimeout).await.expect("stop");
        let used = market.attempt(job).await.used;
        assert_about(used, 5_000);
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        market.store.leases_heard(host, &[lease]).await.expect("heard");
        market.store.lease_finished(host, lease, None, None).await.expect("finished");
        let attempt = market.attempt(job).await;
        assert!(attempt.used.0 - used.0 < 200, "{:?} after {used:?}", attempt.used);
        assert_eq!(attempt.outcome, Some(Outcome::RunTimeout));
        let row = market.job(customer, job).await;
        assert_eq!(row.state, JobState::Failed);
        assert_eq!(row.reason.map(|(code, _)| code), Some("run_timeout".into()));
        assert_eq!(row.charged.0, attempt.used.0, "what it ran is charged");
    })
    .await;
}

#[tokio::test]
async fn a_gap_between_reports_is_charged_for_ten_seconds_at_most() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        market.use_up(host, lease, 60_000).await;
        assert_eq!(market.attempt(job).await.used, Millis(10_000));
        market.elapse(lease, 60_000).await;
        market.store.lease_exited(host, lease).await.expect("exited");
        assert_eq!(market.attempt(job).await.used, Millis(20_000));
        market.finish(host, lease, EXITED).await;
        assert_eq!(market.job(customer, job).await.charged, MicroUsd(20_000));
    })
    .await;
}

#[tokio::test]
async fn an_exit_told_late_earns_the_gap_at_most_and_one_told_at_once_what_it_ran() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let hosts = [market.host("honest").await, market.host("late").await];
        let mut jobs = Vec::new();
        // Both commands end after two seconds; one host keeps it to itself for ten minutes.
        for (host, until_told) in hosts.into_iter().zip([2_000, 600_000]) {
            let (job, lease) = market.run(customer, host, &request()).await;
            market.elapse(lease, until_told).await;
            market.store.lease_exited(host, lease).await.expect("exited");
            market.elapse(lease, 600_000).await;
            market.finish(host, lease, EXITED).await;
            jobs.push(job);
        }
        let [honest, late] = [market.attempt(jobs[0]).await, market.attempt(jobs[1]).await];
        assert_about(honest.used, 2_000);
        assert_eq!(late.used, Millis(10_000));
        assert_eq!(market.job(customer, jobs[1]).await.charged, MicroUsd(10_000));
    })
    .await;
}

#[tokio::test]
async fn a_host_that_keeps_saying_running_is_paid_until_the_jobs_limit_and_no_longer() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let mut bounded = request();
        bounded.limits.run_ms = Millis(60_000);
        let (job, lease) = market.run(customer, host, &bounded).await;
        for _ in 0..20 {
            market.use_up(host, lease, 9_000).await;
        }
        market.finish(host, lease, EXITED).await;
        assert_eq!(market.attempt(job).await.used, Millis(60_000));
        assert_eq!(market.job(customer, job).await.charged, MicroUsd(60_000));
    })
    .await;
}

#[tokio::test]
async fn use_never_exceeds_the_longest_run() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let mut short = request();
        short.limits.run_ms = Millis(5_000);
        let (job, lease) = market.run(customer, host, &short).await;
        market.use_up(host, lease, 4_000).await;
        market.use_up(host, lease, 9_000).await;
        market.use_up(host, lease, 9_000).await;
        market.finish(host, lease, EXITED).await;
        let attempt = market.attempt(job).await;
        assert_eq!((attempt.used, attempt.charged), (Millis(5_000), MicroUsd(5_000)));
    })
    .await;
}

#[tokio::test]
async fn the_spend_cap_is_never_exceeded_even_by_a_wrong_plan() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let mut capped = request();
        capped.max_spend = MicroUsd(3_000);
        let job = market.submit(customer, &capped).await;
        let mut placement = market.placement(job, host).await;
        assert_eq!((placement.run_max, placement.capped_by_spend), (Millis(3_000), true));
        placement.run_max = Millis(3_600_000);
        let lease = market.store.job_place(&placement).await.expect("place");
        market.store.lease_started(host, lease).await.expect("started");
        for _ in 0..3 {
            market.use_up(host, lease, 2_000).await;
            charge_all(market).await;
        }
        market.store.lease_stop(host, lease, StopReason::SpendCap).await.expect("stop");
        market.store.lease_finished(host, lease, None, None).await.expect("finished");
        let row = market.job(customer, job).await;
        assert_eq!((row.state, row.charged), (JobState::Failed, MicroUsd(3_000)));
        assert_eq!(row.reason.map(|(code, _)| code), Some("spend_cap".into()));
        assert_eq!(market.money(customer).await, (10_000_000 - 3_000, 0));
    })
    .await;
}

#[tokio::test]
async fn reports_that_come_again_change_nothing() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        let running = market.state().await;
        market.store.lease_started(host, lease).await.expect("started again");
        assert_eq!(market.state().await, running);
        market.store.lease_exited(host, lease).await.expect("exited");
        let draining = market.state().await;
        market.store.lease_exited(host, lease).await.expect("exited again");
        assert_eq!(market.state().await, draining);
        assert_eq!(market.job(customer, job).await.state, JobState::Running);
        market.finish(host, lease, EXITED).await;
        let closed = market.state().await;
        market.finish(host, lease, EXITED).await;
        assert_eq!(market.state().await, closed);
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_never_started_in_time_is_not_charged_and_fails_the_job() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let job = market.submit(customer, &request()).await;
        let lease = market.place(job, host).await;
        market.store.lease_stop(host, lease, StopReason::StartTimeout).await.expect("stop");
        let order = market.store.host_spec(host).await.expect("spec").orders.remove(&lease);
        assert_eq!(order.and_then(|order| order.stop), Some(StopReason::StartTimeout));
        market.store.lease_finished(host, lease, None, None).await.expect("finished");
        let row = market.job(customer, job).await;
        assert_eq!((row.state, row.charged), (JobState::Failed, MicroUsd::ZERO));
        assert_eq!(row.reason.map(|(code, _)| code), Some("start_timeout".into()));
    })
    .await;
}

#[tokio::test]
async fn a_stop_grows_the_generation_and_the_first_reason_stays() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (_, lease) = market.run(customer, host, &request()).await;
        let before = market.store.host_generation(host).await.expect("generation");
        market.store.lease_stop(host, lease, StopReason::SpendCap).await.expect("stop");
        let spec = market.store.host_spec(host).await.expect("spec");
        assert!(spec.generation > before);
        market.store.lease_stop(host, lease, StopReason::RunTimeout).await.expect("stop again");
        let spec = market.store.host_spec(host).await.expect("spec");
        assert_eq!(spec.orders[&lease].stop, Some(StopReason::SpendCap));
        market.store.lease_finished(host, lease, None, None).await.expect("finished");
        let spec = market.store.host_spec(host).await.expect("spec");
        assert!(spec.orders.is_empty(), "a closed lease leaves the spec");
    })
    .await;
}

fn truncated(sha256: [u8; 32]) -> ResultRow {
    ResultRow { sha256, truncated: true }
}

#[tokio::test]
async fn a_result_counts_when_its_bytes_are_here() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let here = hash("here");
        market.store.blob_put(here, b"here").await.expect("put");
        for (promised, kept) in [(here, Some(here.to_vec())), (hash("missing"), None)] {
            let (job, lease) = market.run(customer, host, &request()).await;
            market
                .store
                .lease_finished(host, lease, Some(EXITED), Some(truncated(promised)))
                .await
                .expect("finished");
            let row = market.job(customer, job).await;
            assert_eq!((row.result_truncated, row.result), (kept.is_some(), kept));
        }
    })
    .await;
}

#[tokio::test]
async fn the_result_is_that_of_the_attempt_that_settled_the_job() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let first = hash("first");
        market.store.blob_put(first, b"first").await.expect("put");
        let mut stubborn = request();
        stubborn.retries = 1;
        let (job, lease) = market.run(customer, host, &stubborn).await;
        let failed = Some(Outcome::Exited { code: 1 });
        market.store.lease_finished(host, lease, failed, Some(truncated(first))).await.expect("finished");
        let lease = market.place(job, host).await;
        market.finish(host, lease, EXITED).await;
        let row = market.job(customer, job).await;
        assert_eq!((row.state, row.result, row.result_truncated), (JobState::Succeeded, None, false));
    })
    .await;
}

#[tokio::test]
async fn an_open_lease_is_watched_with_its_limits() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let mut limited = request();
        limited.limits.start_ms = Millis(7_000);
        limited.max_spend = MicroUsd(2_000);
        let (job, lease) = market.run(customer, host, &limited).await;
        let open = market.store.leases_open().await.expect("open");
        let [watched] = open.as_slice() else { panic!("one open lease: {open:?}") };
        assert_eq!((watched.lease, watched.job, watched.host), (lease, job, host));
        assert_eq!(watched.state, LeaseState::Running);
        assert_eq!(watched.limits, limited.limits);
        assert_eq!((watched.run_max, watched.capped_by_spend), (Millis(2_000), true));
        assert!(watched.in_state < Millis(3_000), "{:?} since it started", watched.in_state);
        market.finish(host, lease, EXITED).await;
        assert_eq!(market.store.leases_open().await.expect("open"), []);
    })
    .await;
}

#[tokio::test]
async fn limits_stand_still_while_the_control_plane_is_away() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let job = market.submit(customer, &request()).await;
        let lease = market.place(job, host).await;
        let in_state = async || {
            let open = market.store.leases_open().await.expect("open");
            (open[0].state, open[0].in_state.0)
        };
        let sleep = async |hours: i64| {
            market.elapse(lease, hours * 3_600_000).await;
            sqlx::query("update control_clock set beat_at_ms = beat_at_ms - $1")
                .bind(hours * 3_600_000)
                .execute(&market.sql)
                .await
                .expect("a night without a gateway");
        };
        sleep(8).await;
        let (state, placed) = in_state().await;
        assert!(state == LeaseState::Placed && placed < 3_000, "{placed} ms of its start limit are gone");
        sqlx::query("update control_clock set up_ms = up_ms + 60000").execute(&market.sql).await.expect("up");
        assert!((60_000..65_000).contains(&in_state().await.1), "time in which it could be heard counts");
        market.store.lease_started(host, lease).await.expect("started");
        let (state, running) = in_state().await;
        assert!(state == LeaseState::Running && running < 3_000, "a run counts from its start: {running}");
        sleep(8).await;
        assert!(in_state().await.1 < 3_000, "the job had no chance to run in that time");
        market.store.lease_started(host, lease).await.expect("started again");
        sqlx::query("update control_clock set up_ms = up_ms + 60000").execute(&market.sql).await.expect("up");
        market.store.lease_started(host, lease).await.expect("and again");
        assert!(in_state().await.1 >= 60_000, "a repeated report does not begin it anew");
        market.finish(host, lease, EXITED).await;
    })
    .await;
}

#[tokio::test]
async fn an_unreadable_request_does_not_hide_the_leases_of_others() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (strange, first) = market.run(customer, host, &request()).await;
        let (_, second) = market.run(customer, host, &request()).await;
        let set = "update jobs set request = jsonb_set(request, '{limits}', $2) where job_id = $1";
        let limits = serde_json::to_value(request().limits).expect("serialise");
        let write = async |limits: serde_json::Value| {
            sqlx::query(set).bind(strange.0).bind(limits).execute(&market.sql).await.expect("write");
        };
        write(serde_json::json!({"later": 1})).await;
        let watched: Vec<_> =
            market.store.leases_open().await.expect("open").iter().map(|lease| lease.lease).collect();
        assert_eq!(watched, [second]);
        write(limits).await;
        market.finish(host, first, EXITED).await;
        market.finish(host, second, EXITED).await;
    })
    .await;
}
