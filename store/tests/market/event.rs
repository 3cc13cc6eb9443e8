//! What is written down when something goes wrong with a lease, and whose fault it turns out to be.

use nave_domain::{
    ChallengeId, CustomerId, HostId, JobId, LeaseId, Millis, Timestamp,
    event::{Blame, ConfirmedBy, EventKind, EventRules, decide, is_outage},
    job::JobRequest,
    lease::{Outcome, StopReason},
    verdict::{Cause, Kind},
};
use nave_store::{Decision, Departure, Drawing, EventRow, Heard, StoreError, XidRow};
use serde_json::json;
use uuid::Uuid;

use crate::{
    market::{EXITED, Market, inventory, open, request},
    verdict::{banned, failed},
};

const CONFIRM: i64 = 3_600_000;

/// Lets a host have been silent for `span`, as far as anybody knows.
async fn quiet(market: &Market, host: HostId, span: i64) {
    sqlx::query(
        "update hosts set heard_at_ms = heard_at_ms - $2, heard_up_ms = heard_up_ms - $2 where host_id = $1",
    )
    .bind(host.0)
    .bind(span)
    .execute(&market.sql)
    .await
    .expect("quiet");
}

/// Lets time pass, and decides what can be decided; says what is known of all events, the oldest first.
async fn settle(market: &Market, span: i64) -> Vec<EventRow> {
    market.store.clock_advance(Millis(span)).await.expect("time");
    let rules = EventRules::default();
    for event in market.store.events_pending(None, 100).await.expect("pending") {
        let outages = market.store.outages(event.since, rules.gap).await.expect("outages");
        if let Some(ruling) = decide(&outages.case(&event, &rules), &rules) {
            market.store.event_decide(event.row.event, &ruling, ruling.why, &[7; 64]).await.expect("decide");
        }
    }
    events(market).await
}

async fn events(market: &Market) -> Vec<EventRow> {
    let hosts: Vec<(Uuid, String)> =
        sqlx::query_as("select host_id, hotkey from hosts").fetch_all(&market.sql).await.expect("hosts");
    let mut events = Vec::new();
    for (host, hotkey) in hosts {
        events.extend(market.store.events_of_host(&hotkey, host.into(), None, 100).await.expect("events"));
    }
    events.sort_by_key(|event| event.at);
    events
}

/// What is decided about an event: nothing yet, or whose fault it was and what shows that.
fn fault(event: &EventRow) -> Option<(Blame, Option<ConfirmedBy>)> {
    event.decided.as_ref().map(|(decided, _)| (decided.blame, decided.confirmed_by))
}

fn hosts(by: ConfirmedBy) -> Option<(Blame, Option<ConfirmedBy>)> {
    Some((Blame::Host, Some(by)))
}

/// The only event there is, after some time.
async fn only(market: &Market, span: i64) -> EventRow {
    let mut all = settle(market, span).await;
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

/// The first event of a lease, which is its loss, after some time.
async fn lost_after(market: &Market, lease: LeaseId, span: i64) -> EventRow {
    let all = settle(market, span).await;
    let lost = all.into_iter().find(|event| event.lease == Some(lease)).expect("lost");
    assert_eq!(lost.kind, EventKind::HostLost);
    lost
}

async fn hear_again(market: &Market, host: HostId, session: u64, boot: Option<&str>) {
    let heard = Heard { session, sequence: 1_000, seen_generation: 0, boot };
    market.store.host_report(host, heard, &inventory()).await.expect("heard");
}

/// A host with a job, both silent for a minute, and the lease given up.
async fn lose(market: &Market, name: &str, customer: CustomerId) -> (HostId, LeaseId) {
    let host = market.host(name).await;
    let (_, lease) = market.run(customer, host, &request()).await;
    quiet(market, host, 60_000).await;
    market.store.lease_lost_silent(host, lease, Millis(10_000)).await.expect("lost");
    (host, lease)
}

/// Has a host fail or pass a test of which nobody knew before.
async fn test(
    market: &Market,
    host: HostId,
    cause: Cause,
    lease: Option<LeaseId>,
    code: Option<&str>,
) -> ChallengeId {
    let challenge = ChallengeId(Uuid::now_v7());
    let (body, claims) = (json!({}), inventory());
    let drawing = Drawing {
        host,
        challenge,
        kind: Kind::Devices,
        cause,
        body: &body,
        claims: &claims,
        shadow: false,
        window: None,
        lease,
    };
    market.store.challenge_draw(&drawing).await.expect("draw");
    let verdict = match code {
        Some(code) => json!({ "failed": { "code": code, "message": "why" } }),
        None => json!({ "passed": {} }),
    };
    market.store.challenge_decide(challenge, &verdict, &Decision::Stays).await.expect("decide");
    challenge
}

/// Has a host take jobs again that is to be tested, and took none meanwhile.
async fn tested(market: &Market, host: HostId) {
    let offered = market.store.snapshot().await.expect("snapshot").hosts;
    assert!(!offered.contains_key(&host), "it takes nothing before it is tested");
    let begun = sqlx::query(
        "update hosts set state = 'ready', suite_cause = null
         where host_id = $1 and state = 'verifying' and suite_cause = 'random'",
    );
    assert_eq!(begun.bind(host.0).execute(&market.sql).await.expect("tested").rows_affected(), 1);
}

#[tokio::test]
async fn a_lease_that_begins_late_loses_what_is_beyond_the_promise() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("slow").await;
        let request = JobRequest { image: Some("usual@sha256:0".into()), ..request() };
        let other = market.host("quick").await;
        let (_, quick) = market.run(customer, other, &request).await;
        market.finish(other, quick, EXITED).await;
        let (job, lease) = begin_late(market, customer, host, &request).await;
        let late = only(market, 15_000).await;
        assert_eq!(
            (late.kind, late.lease, fault(&late)),
            (EventKind::StartLate, Some(lease), hosts(ConfirmedBy::Report))
        );
        assert!((100_000..110_000).contains(&late.lost.length().0), "{late:?}");
        let of_job = market.store.events_of_jobs(&[job]).await.expect("events");
        assert_eq!(of_job[&lease], [late], "its customer sees the same");
    })
    .await;
}

/// Has a lease begin a hundred seconds later than was promised.
async fn begin_late(
    market: &Market,
    customer: CustomerId,
    host: HostId,
    request: &JobRequest,
) -> (JobId, LeaseId) {
    let job = market.submit(customer, request).await;
    let lease = market.place(job, host).await;
    market.elapse(lease, 400_000).await;
    market.store.lease_started(host, lease).await.expect("started");
    market.finish(host, lease, EXITED).await;
    (job, lease)
}

#[tokio::test]
async fn a_late_start_is_confirmed_only_where_the_image_is_not_why() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("slow").await;
        let request = JobRequest { image: Some("huge@sha256:1".into()), ..request() };
        let (_, first) = begin_late(market, customer, host, &request).await;
        let (_, second) = begin_late(market, customer, host, &request).await;
        let all = settle(market, 15_000).await;
        let all: Vec<_> = all.iter().map(|event| (event.lease, fault(event))).collect();
        let on_record = Some((Blame::Host, None));
        assert_eq!(all, [(Some(first), on_record), (Some(second), on_record)]);
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_begins_in_time_and_is_heard_of_has_no_events() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("good").await;
        let (_, lease) = market.run(customer, host, &request()).await;
        for _ in 0..5 {
            market.use_up(host, lease, 14_000).await;
        }
        market.finish(host, lease, EXITED).await;
        assert_eq!(settle(market, CONFIRM).await, []);
    })
    .await;
}

#[tokio::test]
async fn a_gap_is_the_hosts_when_it_was_there_or_its_agent_was_restarted() {
    open(async |market| {
        let customer = market.customer("ada").await;
        for (name, silent, session, expected) in [
            ("there", false, 1, hosts(ConfirmedBy::Report)),
            ("restarted", true, 2, hosts(ConfirmedBy::Report)),
            ("silent", true, 1, Some((Blame::Host, None))),
        ] {
            let host = market.host(name).await;
            let (_, lease) = market.run(customer, host, &request()).await;
            if silent {
                quiet(market, host, 60_000).await;
            }
            market.elapse(lease, 60_000).await;
            hear_again(market, host, session, None).await;
            market.store.leases_heard(host, &[lease]).await.expect("heard");
            let all = settle(market, 15_000).await;
            let gap = all.iter().find(|event| event.host == host).expect("a gap");
            assert_eq!((gap.kind, fault(gap)), (EventKind::HeartbeatGap, expected), "{name}");
            assert!((45_000..50_000).contains(&gap.lost.length().0), "{gap:?}");
            market.finish(host, lease, EXITED).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_gap_while_nobody_could_reach_us_is_the_platforms() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("good").await;
        let (_, lease) = market.run(customer, host, &request()).await;
        sqlx::query("update control_clock set beat_at_ms = now_ms() - 55000")
            .execute(&market.sql)
            .await
            .expect("away");
        market.store.clock_beat().await.expect("back");
        market.elapse(lease, 60_000).await;
        market.store.leases_heard(host, &[lease]).await.expect("heard");
        assert_eq!(fault(&only(market, 15_000).await), Some((Blame::Platform, None)));
        market.finish(host, lease, EXITED).await;
    })
    .await;
}

#[tokio::test]
async fn a_lost_host_that_does_not_come_back_is_confirmed_by_its_absence() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let (_, lease) = lose(market, "away", customer).await;
        let lost = only(market, 60_000).await;
        assert_eq!((lost.kind, lost.lease, fault(&lost)), (EventKind::HostLost, Some(lease), None));
        assert_eq!(fault(&only(market, CONFIRM).await), hosts(ConfirmedBy::Absence));
    })
    .await;
}

#[tokio::test]
async fn a_lost_host_that_comes_back_is_tested_and_its_test_decides() {
    open(async |market| {
        let customer = market.customer("ada").await;
        for (name, code, expected) in [
            ("fails", Some("vram_missing"), hosts(ConfirmedBy::Retest)),
            ("passes", None, Some((Blame::Host, None))),
        ] {
            let (host, lease) = lose(market, name, customer).await;
            hear_again(market, host, 1, None).await;
            assert_eq!(fault(&lost_after(market, lease, 60_000).await), None, "it is to be tested first");
            tested(market, host).await;
            test(market, host, Cause::Random, None, code).await;
            let decided = fault(&lost_after(market, lease, 1_000).await);
            assert_eq!(decided, expected.filter(|_| code.is_none()), "{name}: its owner may object");
            assert_eq!(fault(&lost_after(market, lease, CONFIRM).await), expected, "{name}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_lost_host_whose_machine_restarted_or_that_says_the_lease_is_gone_is_confirmed() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("restarts").await;
        hear_again(market, host, 1, Some("before")).await;
        let (_, lease) = market.run(customer, host, &request()).await;
        quiet(market, host, 60_000).await;
        market.store.lease_lost_silent(host, lease, Millis(10_000)).await.expect("lost");
        hear_again(market, host, 2, Some("after")).await;
        assert_eq!(fault(&only(market, 15_000).await), hosts(ConfirmedBy::Report));
        let (forgets, gone) = lose(market, "forgets", customer).await;
        hear_again(market, forgets, 1, None).await;
        market.store.leases_gone(host, &[gone]).await.expect("told");
        assert_eq!(fault(&lost_after(market, gone, 15_000).await), None, "another host says so");
        market.store.leases_gone(forgets, &[gone]).await.expect("told");
        assert_eq!(fault(&lost_after(market, gone, 15_000).await), hosts(ConfirmedBy::Report));
        // One that says so at once.
        let tells = market.host("tells").await;
        let (_, lease) = market.run(customer, tells, &request()).await;
        market.store.lease_lost_told(tells, lease).await.expect("told");
        assert_eq!(fault(&lost_after(market, lease, 15_000).await), hosts(ConfirmedBy::Report));
    })
    .await;
}

#[tokio::test]
async fn a_verdict_that_is_taken_back_confirms_no_loss() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let (host, lease) = lose(market, "right", customer).await;
        hear_again(market, host, 1, None).await;
        let wrong = test(market, host, Cause::Random, None, Some("vram_missing")).await;
        market.store.verdict_appeal("hotkey of right", wrong).await.expect("appeal");
        assert_eq!(
            fault(&lost_after(market, lease, CONFIRM + 1_000).await),
            None,
            "it is not judged again yet"
        );
        market.store.appeal_decide(wrong, &json!({ "passed": {} }), true).await.expect("right");
        assert_eq!(fault(&lost_after(market, lease, CONFIRM).await), Some((Blame::Host, None)));
    })
    .await;
}

#[tokio::test]
async fn a_host_that_comes_back_after_its_absence_counted_is_tested_too() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let (host, _) = lose(market, "late", customer).await;
        assert_eq!(fault(&only(market, CONFIRM + 1_000).await), hosts(ConfirmedBy::Absence));
        hear_again(market, host, 1, None).await;
        tested(market, host).await;
        let idle = market.host("idle").await;
        quiet(market, idle, 60_000).await;
        hear_again(market, idle, 1, None).await;
        let offered = market.store.snapshot().await.expect("snapshot").hosts;
        assert!(offered.contains_key(&idle), "it has lost nothing");
    })
    .await;
}

#[tokio::test]
async fn a_host_that_was_away_for_too_long_keeps_its_obligations_anew() {
    open(async |market| {
        let host = market.host("away").await;
        oblige(market).await;
        let since = async || obliged(market, host).await;
        quiet(market, host, CONFIRM - 10_000).await;
        hear_again(market, host, 1, None).await;
        assert_eq!(since().await, 1, "it was back in time");
        quiet(market, host, CONFIRM + 1_000).await;
        hear_again(market, host, 2, None).await;
        let heard: i64 =
            sqlx::query_scalar("select heard_at_ms from hosts").fetch_one(&market.sql).await.expect("heard");
        assert!((heard - 10_000..=heard).contains(&since().await), "since it is back");
    })
    .await;
}

#[tokio::test]
async fn a_host_that_comes_and_goes_keeps_its_obligations_anew() {
    open(async |market| {
        let host = market.host("flaps").await;
        oblige(market).await;
        for session in 1..=7 {
            quiet(market, host, 500_000).await;
            hear_again(market, host, session, None).await;
        }
        assert_eq!(obliged(market, host).await, 1, "it was there for most of the time");
        quiet(market, host, 500_000).await;
        hear_again(market, host, 8, None).await;
        let since = obliged(market, host).await;
        assert!(since > 1, "in a day it was away for too long");
        quiet(market, host, 500_000).await;
        hear_again(market, host, 9, None).await;
        assert_eq!(obliged(market, host).await, since, "what was counted counts no more");
    })
    .await;
}

#[tokio::test]
async fn an_outage_costs_nobody_their_obligations() {
    for (silent, changed, is_everyones) in [
        (5, "", true),
        (4, "", false),
        (5, ", hotkey = 'one'", false),
        (5, ", proven = case when name <> 'silent 1' then proven end", false),
    ] {
        open(async |market| {
            let host = market.host("silent").await;
            let mut away = vec![host];
            for n in 1..silent {
                away.push(market.host(&format!("silent {n}")).await);
            }
            market.host("heard").await;
            oblige(market).await;
            let change = format!("update hosts set enrolled_at_ms = 0 {changed} where name <> 'heard'");
            sqlx::query(sqlx::AssertSqlSafe(change)).execute(&market.sql).await.expect("change");
            for host in &away {
                quiet(market, *host, CONFIRM + 60_000).await;
            }
            let rules = EventRules::default();
            let outages = market.store.outages(Timestamp(0), rules.gap).await.expect("outages");
            let fell = outages.contacts[&host].heard;
            assert_eq!(is_outage(outages.contacts.values(), fell, &rules), is_everyones);
            hear_again(market, away[1], 1, None).await;
            hear_again(market, host, 1, None).await;
            assert_eq!(obliged(market, host).await == 1, is_everyones, "of {silent}{changed}");
        })
        .await;
    }
}

/// Has all hosts keep their obligations since long ago.
async fn oblige(market: &Market) {
    sqlx::query("update hosts set obliged_since_ms = 1").execute(&market.sql).await.expect("long since");
}

async fn obliged(market: &Market, host: HostId) -> i64 {
    let since = sqlx::query_scalar("select obliged_since_ms from hosts where host_id = $1").bind(host.0);
    since.fetch_one(&market.sql).await.expect("obliged")
}

#[tokio::test]
async fn a_machine_that_restarts_under_a_lease_lets_it_down_and_a_command_that_is_killed_shows_nothing() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("restarts").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        market.use_up(host, lease, 5_000).await;
        market.finish(host, lease, Outcome::HostLost).await;
        let lost = only(market, 15_000).await;
        assert_eq!(
            (lost.kind, lost.lease, fault(&lost)),
            (EventKind::HostLost, Some(lease), hosts(ConfirmedBy::Report))
        );
        assert_eq!(market.job(customer, job).await.charged.0, 0, "nobody pays for it");
        let (_, stopped) = market.run(customer, host, &request()).await;
        market.store.lease_stop(host, stopped, StopReason::Cancelled).await.expect("stop");
        market.finish(host, stopped, Outcome::HostLost).await;
        let (job, killed) = market.run(customer, host, &request()).await;
        market.use_up(host, killed, 5_000).await;
        market.finish(host, killed, Outcome::Killed).await;
        assert_eq!(only(market, CONFIRM).await.lease, Some(lease));
        assert!(market.job(customer, job).await.charged.0 > 0, "its command may have ended itself");
    })
    .await;
}

#[tokio::test]
async fn events_are_written_by_the_parameters_that_hold() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("slow").await;
        let body = json!({ "version": 1, "effective_epoch": 0, "announced_ms": 0, "gap_ms": 90_000, "start_promise_ms": 450_000 });
        sqlx::query("insert into parameters (body) values ($1)")
            .bind(body)
            .execute(&market.sql)
            .await
            .expect("announced");
        let (_, late) = begin_late(market, customer, host, &request()).await;
        let (_, lease) = market.run(customer, host, &request()).await;
        market.use_up(host, lease, 80_000).await;
        assert_eq!(events(market).await, [], "not late, and no gap: {late}");
        market.use_up(host, lease, 100_000).await;
        let gap = only(market, 0).await;
        assert!((10_000..15_000).contains(&gap.lost.length().0), "{gap:?}");
        market.finish(host, lease, EXITED).await;
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_comes_and_goes_writes_few_gaps() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("flaps").await;
        let (_, lease) = market.run(customer, host, &request()).await;
        for _ in 0..15 {
            market.use_up(host, lease, 20_000).await;
        }
        assert_eq!(events(market).await.len(), 10);
        sqlx::query("update events set at_ms = at_ms - 3600000").execute(&market.sql).await.expect("older");
        market.use_up(host, lease, 20_000).await;
        assert_eq!(events(market).await.len(), 11, "an hour later they count again");
        market.finish(host, lease, EXITED).await;
    })
    .await;
}

/// Has a host, which was heard of a minute ago, come back and say that it fenced its lease meanwhile.
async fn fence(market: &Market, host: HostId, lease: LeaseId) {
    quiet(market, host, 60_000).await;
    market.elapse(lease, 60_000).await;
    hear_again(market, host, 1, None).await;
    market.store.lease_exited(host, lease).await.expect("exited");
    market.store.lease_finished(host, lease, None, None).await.expect("fenced");
}

#[tokio::test]
async fn leases_that_were_fenced_while_nobody_could_reach_us_are_the_platforms() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("good").await;
        let (_, lease) = market.run(customer, host, &request()).await;
        sqlx::query("update control_clock set beat_at_ms = now_ms() - 55000")
            .execute(&market.sql)
            .await
            .expect("away");
        market.store.clock_beat().await.expect("back");
        fence(market, host, lease).await;
        let all = settle(market, 15_000).await;
        let all: Vec<_> = all.iter().map(|event| (event.kind, fault(event))).collect();
        let platform = Some((Blame::Platform, None));
        assert_eq!(all, [(EventKind::HeartbeatGap, platform), (EventKind::HostLost, platform)]);
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_its_host_alone_fenced_is_judged_by_the_hosts_test() {
    open(async |market| {
        let customer = market.customer("ada").await;
        for (name, code, expected) in [
            ("fails", Some("vram_missing"), hosts(ConfirmedBy::Retest)),
            ("passes", None, Some((Blame::Host, None))),
        ] {
            let host = market.host(name).await;
            let (_, lease) = market.run(customer, host, &request()).await;
            fence(market, host, lease).await;
            let find = async |span| {
                let all = settle(market, span).await;
                let lost = |event: &EventRow| (event.kind, event.lease) == (EventKind::HostLost, Some(lease));
                all.into_iter().find(lost).expect("lost")
            };
            assert_eq!(fault(&find(60_000).await), None, "it is to be tested first");
            tested(market, host).await;
            test(market, host, Cause::Random, None, code).await;
            assert_eq!(fault(&find(CONFIRM + 1_000).await), expected, "{name}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_lease_whose_results_never_came_is_on_record_only() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("slow").await;
        let (_, lease) = market.run(customer, host, &request()).await;
        market.store.lease_exited(host, lease).await.expect("exited");
        market.store.lease_lost(host, lease).await.expect("given up");
        assert_eq!(fault(&only(market, CONFIRM).await), None, "it may still say why");
        assert_eq!(fault(&only(market, CONFIRM + 1_000).await), Some((Blame::Host, None)));
    })
    .await;
}

#[tokio::test]
async fn a_share_that_is_gone_may_be_another_customers_doing() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("shared").await;
        let (_, lease) = market.run(customer, host, &request()).await;
        sqlx::query(
            "update leases set devices = '{GPU-1}', milli_gpu = 500, share_milli = 500, share_vram = 1 where lease_id = $1",
        )
        .bind(lease.0)
        .execute(&market.sql)
        .await
        .expect("a share");
        market.store.lease_lost_told(host, lease).await.expect("told");
        assert_eq!(fault(&only(market, 15_000).await), Some((Blame::Host, None)));
    })
    .await;
}

#[tokio::test]
async fn hosts_that_fall_silent_at_once_are_not_to_blame() {
    fall_silent(11, "", Some((Blame::Platform, None))).await;
}

#[tokio::test]
async fn hosts_that_were_never_ready_make_no_outage_and_hide_none() {
    fall_silent(
        20,
        ", proven = case when name like 'silent%' then proven end",
        Some((Blame::Platform, None)),
    )
    .await;
    fall_silent(5, ", proven = case when name <> 'silent 0' then proven end", None).await;
}

#[tokio::test]
async fn the_hosts_of_one_miner_make_no_outage() {
    fall_silent(5, ", hotkey = case when name like 'silent%' then 'one' else hotkey end", None).await;
}

/// Five hosts fall silent at once and lose a lease each, and `heard` others do not, after all were changed: then that is decided.
async fn fall_silent(heard: usize, change: &str, expected: Option<(Blame, Option<ConfirmedBy>)>) {
    open(async |market| {
        let customer = market.customer("ada").await;
        let mut silent = Vec::new();
        for n in 0..5 {
            let host = market.host(&format!("silent {n}")).await;
            silent.push((host, market.run(customer, host, &request()).await.1));
        }
        for n in 0..heard {
            market.host(&format!("heard {n}")).await;
        }
        // They have all been there for a while.
        let change = format!("update hosts set enrolled_at_ms = 0 {change}");
        sqlx::query(sqlx::AssertSqlSafe(change)).execute(&market.sql).await.expect("change");
        for (host, _) in &silent {
            quiet(market, *host, 60_000).await;
        }
        for (host, lease) in &silent {
            market.store.lease_lost_silent(*host, *lease, Millis(10_000)).await.expect("lost");
        }
        let all = settle(market, 15_000).await;
        assert!(all.len() == 5 && all.iter().all(|event| fault(event) == expected), "{all:?}");
    })
    .await;
}

#[tokio::test]
async fn an_error_of_the_driver_counts_once_and_is_whose_the_catalogue_says() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("broken").await;
        let job = market.submit(customer, &request()).await;
        let mut placement = market.placement(job, host).await;
        placement.devices = vec!["GPU-1".into()];
        let lease = market.store.job_place(&placement).await.expect("place");
        market.store.lease_started(host, lease).await.expect("started");
        for device in ["GPU-1", "GPU-2"] {
            sqlx::query("insert into device_claims (device, host_id, since_ms) values ($1, $2, now_ms())")
                .bind(device)
                .bind(host.0)
                .execute(&market.sql)
                .await
                .expect("proven");
        }
        let xid = |code, device: &str| XidRow { code, device: device.into(), parts: vec![device.into()] };
        let said = [
            xid(79, "GPU-1"),
            xid(48, "GPU-1"),
            xid(31, "GPU-1"),
            xid(13, "GPU-2"),
            xid(95, "GPU-2"),
            xid(63, "GPU-2"),
            xid(79, "GPU-invented"),
        ];
        for _ in 0..2 {
            market.store.xids_take(host, &said).await.expect("xids");
        }
        let all = settle(market, 0).await;
        let mut all: Vec<_> = all.iter().map(|event| (event.lease, fault(event))).collect();
        all.sort();
        let report = Some(ConfirmedBy::Report);
        let expected = [
            (None, Some((Blame::Host, report))),
            (Some(lease), Some((Blame::Host, report))),
            (Some(lease), Some((Blame::Customer, report))),
        ];
        assert_eq!(all, expected);
        market.finish(host, lease, EXITED).await;
        market.store.xids_take(host, &[xid(74, "GPU-1")]).await.expect("xids");
        assert_eq!(events(market).await.last().and_then(|event| event.lease), None, "that lease is over");
        let known = events(market).await.len();
        market.store.host_depart(None, host, Departure::Ban).await.expect("banned");
        market.store.xids_take(host, &[xid(79, "GPU-2")]).await.expect("xids");
        assert_eq!(events(market).await.len(), known, "it is nobody's any more");
    })
    .await;
}

#[tokio::test]
async fn a_failed_test_counts_for_every_lease_unless_it_is_taken_back() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("fails").await;
        let (_, a) = market.run(customer, host, &request()).await;
        let (_, b) = market.run(customer, host, &request()).await;
        test(market, host, Cause::Lease, Some(a), Some("device_mismatch")).await;
        let below = only(market, CONFIRM - 60_000).await;
        assert_eq!(
            (below.kind, below.lease, fault(&below)),
            (EventKind::BelowBand, Some(a), None),
            "its owner may object"
        );
        assert_eq!(fault(&only(market, 61_000).await), hosts(ConfirmedBy::Retest));
        let wrong = test(market, host, Cause::Lease, Some(a), Some("evidence_wrong")).await;
        let all = settle(market, 1_000).await;
        let mut leases: Vec<_> = all[1..].iter().map(|event| (event.kind, event.lease)).collect();
        leases.sort();
        let mut expected = [a, b].map(|lease| (EventKind::FailedRetest, Some(lease)));
        expected.sort();
        assert_eq!(leases, expected);
        market.store.verdict_appeal("hotkey of fails", wrong).await.expect("appeal");
        assert_eq!(settle(market, CONFIRM).await.iter().filter(|event| event.decided.is_none()).count(), 2);
        market.store.appeal_decide(wrong, &json!({ "passed": {} }), true).await.expect("right");
        let all = settle(market, 0).await;
        assert!(all[1..].iter().all(|event| fault(event) == Some((Blame::Host, None))), "{all:?}");
        market.finish(host, a, EXITED).await;
        market.finish(host, b, EXITED).await;
    })
    .await;
}

#[tokio::test]
async fn who_fails_to_join_or_has_failed_already_lets_nobody_down() {
    open(async |market| {
        let host = market.host("new").await;
        test(market, host, Cause::Enrolment, None, Some("vram_missing")).await;
        let challenge = ChallengeId(Uuid::now_v7());
        market
            .store
            .challenge_give(host, challenge, Kind::Cpu, &json!({}), &inventory())
            .await
            .expect("draw");
        market.store.challenge_decide(challenge, &failed(), &banned()).await.expect("decide");
        assert_eq!(settle(market, 0).await, []);
    })
    .await;
}

#[tokio::test]
async fn an_owner_who_takes_a_host_out_breaks_its_promise_once() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("leaves").await;
        let (_, lease) = market.run(customer, host, &request()).await;
        market.store.host_depart(Some("hotkey of leaves"), host, Departure::Leave).await.expect("left");
        quiet(market, host, 60_000).await;
        market.store.lease_lost_silent(host, lease, Millis(10_000)).await.expect("lost");
        let reclaimed = only(market, 0).await;
        assert_eq!(
            (reclaimed.kind, fault(&reclaimed)),
            (EventKind::EarlyReclaim, hosts(ConfirmedBy::Report))
        );
        let banned = market.host("sent away").await;
        let (_, lease) = market.run(customer, banned, &request()).await;
        market.store.host_depart(None, banned, Departure::Ban).await.expect("banned");
        quiet(market, banned, 60_000).await;
        market.store.lease_lost_silent(banned, lease, Millis(10_000)).await.expect("lost");
        let all = settle(market, 0).await;
        assert_eq!((all[1].kind, fault(&all[1])), (EventKind::HostLost, Some((Blame::Platform, None))));
    })
    .await;
}

#[tokio::test]
async fn an_owner_may_take_a_host_back_from_spot_leases_and_nobody_is_excused_afterwards() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("spot").await;
        let (_, lease) = market.run(customer, host, &request()).await;
        sqlx::query("update leases set term = 'spot' where lease_id = $1")
            .bind(lease.0)
            .execute(&market.sql)
            .await
            .expect("spot");
        market.store.host_depart(Some("hotkey of spot"), host, Departure::Leave).await.expect("left");
        quiet(market, host, 60_000).await;
        market.store.lease_lost_silent(host, lease, Millis(10_000)).await.expect("lost");
        assert_eq!(fault(&only(market, 15_000).await), Some((Blame::Host, None)));
        for (name, departure) in [("banned", Departure::Ban), ("leaves", Departure::Leave)] {
            let (host, lease) = lose(market, name, customer).await;
            market.store.host_depart(None, host, departure).await.expect("departed");
            assert_eq!(fault(&lost_after(market, lease, 60_000).await), None, "{name} too late");
            assert_eq!(fault(&lost_after(market, lease, CONFIRM).await), hosts(ConfirmedBy::Absence));
        }
    })
    .await;
}

#[tokio::test]
async fn an_owner_who_drains_a_host_has_not_taken_it_out() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("drains").await;
        let (_, lease) = market.run(customer, host, &request()).await;
        market.store.host_depart(Some("hotkey of drains"), host, Departure::Drain).await.expect("drains");
        quiet(market, host, 60_000).await;
        market.store.lease_lost_silent(host, lease, Millis(10_000)).await.expect("lost");
        let left = market.store.host_depart(Some("hotkey of drains"), host, Departure::Leave).await;
        assert!(matches!(left, Err(StoreError::Stale("host"))), "that was its last lease: it is gone");
        assert_eq!(fault(&only(market, 60_000).await), None, "silence alone shows nothing");
        assert_eq!(fault(&only(market, CONFIRM).await), hosts(ConfirmedBy::Absence));
    })
    .await;
}

#[tokio::test]
async fn what_was_decided_stands_and_is_the_owners_to_see() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let (host, lease) = lose(market, "away", customer).await;
        market.store.lease_lost(host, lease).await.expect("again");
        let lost = only(market, CONFIRM + 1_000).await;
        let changed =
            sqlx::query("update events set blame = 'platform' where event_id = $1").bind(lost.event.0);
        let refused = StoreError::from(changed.execute(&market.sql).await.expect_err("refused"));
        assert!(matches!(refused, StoreError::Constraint(name) if name == "events_stand"));
        let foreign = market.store.events_of_host("somebody", host, None, 10).await;
        assert!(matches!(foreign, Err(StoreError::NotFound("host"))));
        let older = market.store.events_of_host("hotkey of away", host, Some(lost.event), 10).await;
        assert_eq!(older.expect("events"), []);
    })
    .await;
}
