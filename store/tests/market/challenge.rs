//! What is tested of hosts, and what comes of it.

use std::collections::BTreeSet;

use nave_domain::{
    ChallengeId, HostId, LeaseId, Millis,
    host::{HostState, Inventory},
    verdict::{Cause, Kind},
};
use nave_store::{Decision, Drawing, Joining, StoreError};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    enrol::wish,
    market::{Market, inventory, open},
};

/// A host that was heard and has proven nothing yet.
pub async fn claiming(market: &Market, n: u16) -> HostId {
    let joining = wish(n);
    market.store.host_join(&joining).await.expect("join");
    market.store.host_hear(joining.host, 1, 1, 0, &inventory()).await.expect("hear");
    joining.host
}

/// A challenge of one kind, as most are.
pub fn drawing<'a>(host: HostId, kind: Kind, body: &'a Value, claims: &'a Inventory) -> Drawing<'a> {
    let challenge = ChallengeId(Uuid::now_v7());
    let cause = Cause::Enrolment;
    Drawing { host, challenge, kind, cause, body, claims, shadow: false, window: None, lease: None }
}

pub async fn draw(market: &Market, host: HostId) -> ChallengeId {
    let id = ChallengeId(Uuid::now_v7());
    let drawn = market.store.challenge_give(host, id, Kind::Cpu, &json!({"of": "cpu"}), &inventory()).await;
    drawn.expect("draw");
    id
}

pub async fn state_of(market: &Market, host: HostId) -> HostState {
    market.store.host_spec(host).await.expect("spec").state
}

pub async fn due(market: &Market) -> Vec<HostId> {
    let due = market.store.hosts_to_test().await.expect("due");
    due.into_iter().filter(|due| due.open.is_empty()).map(|due| due.host).collect()
}

fn refused(pause: i64) -> Decision {
    Decision::Refused { code: "cpu_overclaimed".into(), message: "too slow".into(), pause: Millis(pause) }
}

async fn answer(market: &Market, host: HostId, challenge: ChallengeId, step: u32, value: Value) -> bool {
    market.store.challenge_answer(host, challenge, step, &value).await.expect("answer")
}

pub async fn advance(market: &Market, span: i64) {
    let query = "update control_clock set up_ms = up_ms + $1";
    sqlx::query(query).bind(span).execute(&market.sql).await.expect("advance");
}

#[tokio::test]
async fn a_host_that_has_proven_nothing_is_tested_and_takes_no_jobs_until_it_passed() {
    open(async |market| {
        let host = claiming(market, 1).await;
        assert_eq!((state_of(market, host).await, due(market).await), (HostState::Verifying, vec![host]));
        assert!(market.store.snapshot().await.expect("snapshot").hosts.is_empty());
        let challenge = draw(market, host).await;
        assert_eq!(due(market).await, []);
        let draw_again = async |kind| {
            let (body, claims) = (json!({}), inventory());
            let seen = market.store.host_generation(host).await.expect("generation");
            market
                .store
                .challenges_draw(&[(host, seen)], &[drawing(host, kind, &body, &claims)])
                .await
                .expect("draw")
        };
        assert_eq!(draw_again(Kind::Cpu).await, [], "one of a kind");
        assert_eq!(draw_again(Kind::Memory).await, [host], "another kind");
        assert_eq!(market.store.challenge_send(host).await.expect("send").len(), 2);
        let passed = json!({"passed": 1});
        market.store.challenge_decide(challenge, &passed, &Decision::Stays).await.expect("decide");
        assert_eq!(state_of(market, host).await, HostState::Verifying, "that is for the verifier to say");
        market.store.host_passed(host).await.expect("prove");
        assert_eq!(state_of(market, host).await, HostState::Ready);
        let again = market.store.challenge_decide(challenge, &json!({}), &refused(1)).await;
        assert!(matches!(again, Err(StoreError::Stale("challenge"))), "a verdict is final");
        assert_eq!(draw_again(Kind::Cpu).await, [], "there is nothing to test");
    })
    .await;
}

#[tokio::test]
async fn a_step_counts_as_sent_once_and_as_answered_once() {
    open(async |market| {
        let (host, other) = (claiming(market, 1).await, claiming(market, 2).await);
        let challenge = draw(market, host).await;
        assert!(!answer(market, host, challenge, 0, json!("early")).await, "what was not sent has no answer");
        let sent = market.store.challenge_send(host).await.expect("send").remove(0);
        assert_eq!((sent.challenge, sent.reveals.len()), (challenge, 0));
        let steps = async || market.store.challenges_open().await.expect("open").remove(0).steps;
        let first = steps().await[0].sent.expect("sent");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        market.store.challenge_send(host).await.expect("send");
        assert_eq!(steps().await[0].sent, Some(first));
        assert!(!answer(market, other, challenge, 0, json!("foreign")).await);
        assert!(!answer(market, host, challenge, 1, json!("no such step")).await);
        assert!(answer(market, host, challenge, 0, json!("first")).await);
        assert!(!answer(market, host, challenge, 0, json!("second")).await);
        market.store.challenge_reveal(challenge, 1, "ab").await.expect("reveal");
        let again = market.store.challenge_reveal(challenge, 1, "cd").await;
        assert!(matches!(again, Err(StoreError::Stale("challenge"))), "a nonce is drawn once");
        assert!(!answer(market, host, challenge, 1, json!("guessed")).await);
        let sent = market.store.challenge_send(host).await.expect("send").remove(0);
        assert_eq!(sent.reveals, ["ab"]);
        assert!(answer(market, host, challenge, 1, json!("opened")).await);
        let steps = steps().await;
        assert_eq!(steps[0].answer.as_ref().map(|(value, _)| value), Some(&json!("first")));
        let (opened, at) = steps[1].answer.clone().expect("an answer");
        assert!(opened == json!("opened") && at.at >= steps[1].sent.expect("sent").at);
        market.store.challenge_decide(challenge, &json!({}), &Decision::Stays).await.expect("decide");
        assert_eq!(market.store.challenge_send(host).await.expect("none"), []);
        assert!(!answer(market, host, challenge, 1, json!("late")).await);
    })
    .await;
}

#[tokio::test]
async fn many_hosts_are_drawn_at_once_and_each_gets_all_its_challenges_or_none() {
    open(async |market| {
        let [one, busy, moved, many] = [
            claiming(market, 1).await,
            claiming(market, 2).await,
            claiming(market, 3).await,
            claiming(market, 4).await,
        ];
        market
            .store
            .challenge_give(busy, ChallengeId(Uuid::now_v7()), Kind::Memory, &json!({}), &inventory())
            .await
            .expect("draw");
        let mut seen = Vec::new();
        for host in [one, busy, moved, many] {
            let generation = market.store.host_generation(host).await.expect("generation");
            seen.push((host, generation - u64::from(host == moved)));
        }
        let (body, claims) = (json!({ "of": "sorts" }), inventory());
        let kinds = |host| [Kind::Cpu, Kind::Memory].map(|kind| drawing(host, kind, &body, &claims));
        let drawings: Vec<Drawing<'_>> = [many, moved, busy, one].into_iter().flat_map(kinds).collect();
        let drawn = market.store.challenges_draw(&seen, &drawings).await.expect("draw");
        assert_eq!(drawn, [one, many]);
        for (host, count) in [(one, 2), (busy, 1), (moved, 0), (many, 2)] {
            let sent = market.store.challenge_send(host).await.expect("send");
            assert_eq!(sent.len(), count);
            let generation = market.store.host_generation(host).await.expect("generation");
            let before = seen.iter().find(|(other, _)| *other == host).expect("one of them").1;
            assert_eq!(generation - before, u64::from(count != 1), "its spec is news");
        }
        assert_eq!(market.store.looks_due(Millis(i64::MAX)).await.expect("looks").len(), 5);
        let open = market.store.challenges_open().await.expect("open");
        assert!(open.iter().all(|open| open.steps.len() == 1 && open.cause == Cause::Enrolment));
    })
    .await;
}

/// As a verifier does that knows nothing of looks.
async fn forget_looks(market: &Market) {
    sqlx::query("delete from challenge_looks").execute(&market.sql).await.expect("forget");
}

#[tokio::test]
async fn challenges_of_verifiers_that_know_no_looks_are_looked_at_and_can_go() {
    open(async |market| {
        let host = claiming(market, 1).await;
        let looks = async || {
            let due = market.store.looks_due(Millis(i64::MAX)).await.expect("due");
            due.into_iter().map(|look| look.challenge).collect::<Vec<_>>()
        };
        let challenge = draw(market, host).await;
        forget_looks(market).await;
        market.store.looks_mend().await.expect("mend");
        assert_eq!(looks().await, [challenge]);
        let query = "update challenges set verdict = '{}', decided_at_ms = 0, sweep_at_ms = 0";
        sqlx::query(query).execute(&market.sql).await.expect("decide");
        market.store.host_depart(None, host, nave_store::Departure::Leave).await.expect("leave");
        let swept = market.store.evidence_sweep(9).await.expect("sweep");
        assert_eq!((swept.deleted, looks().await), (1, vec![]));
        let other = claiming(market, 2).await;
        draw(market, other).await;
        let query = "update challenges set verdict = '{}', decided_at_ms = now_ms()";
        sqlx::query(query).execute(&market.sql).await.expect("decide");
        market.store.looks_mend().await.expect("mend");
        assert_eq!(looks().await, []);
    })
    .await;
}

#[tokio::test]
async fn a_challenge_is_looked_at_when_something_came_or_its_time_is_over() {
    open(async |market| {
        let host = claiming(market, 1).await;
        let now = async || market.store.clock_now().await.expect("clock").up;
        let due = async || market.store.looks_due(now().await).await.expect("due");
        let challenge = draw(market, host).await;
        let put_off = async |span| {
            let looks = due().await;
            assert!(looks.len() == 1 && looks[0].challenge == challenge, "{looks:?}");
            let later = Millis(now().await.0 + span);
            market.store.looks_defer(&[(looks[0], later)]).await.expect("put off");
            looks[0]
        };
        let drawn = put_off(60_000).await;
        assert_eq!(due().await, []);
        market.store.challenge_send(host).await.expect("send");
        put_off(60_000).await;
        market.store.challenge_send(host).await.expect("send");
        assert_eq!(due().await, [], "it was sent before");
        assert!(answer(market, host, challenge, 0, json!("first")).await);
        market.store.looks_defer(&[(drawn, Millis(1 << 40))]).await.expect("nothing");
        put_off(60_000).await;
        assert!(!answer(market, host, challenge, 0, json!("again")).await);
        assert_eq!(due().await, []);
        advance(market, 61_000).await;
        put_off(60_000).await;
        market.store.host_depart(None, host, nave_store::Departure::Leave).await.expect("leave");
        put_off(60_000).await;
        market.store.look_now(challenge).await.expect("look");
        assert_eq!(due().await.len(), 1);
        market.store.challenge_decide(challenge, &json!({}), &Decision::Stays).await.expect("decide");
        assert_eq!(market.store.looks_due(Millis(i64::MAX)).await.expect("due"), []);
    })
    .await;
}

#[tokio::test]
async fn gpus_that_were_filled_beside_memory_go_on_once_that_has_its_verdict() {
    open(async |market| {
        let host = claiming(market, 1).await;
        let (body, claims) = (json!({}), inventory());
        let kinds = [Kind::Memory, Kind::Devices, Kind::Storage];
        let drawings = kinds.map(|kind| drawing(host, kind, &body, &claims));
        let seen = market.store.host_generation(host).await.expect("generation");
        market.store.challenges_draw(&[(host, seen)], &drawings).await.expect("draw");
        let ids = drawings.map(|drawing| drawing.challenge);
        let held = async || {
            let open = market.store.challenges_undecided(&ids).await.expect("open");
            open.iter().map(|open| (open.kind, open.beside_memory)).collect::<Vec<_>>()
        };
        assert_eq!(held().await, [(Kind::Memory, false), (Kind::Devices, true), (Kind::Storage, false)]);
        let due = async || {
            let now = market.store.clock_now().await.expect("clock").up;
            market.store.looks_due(now).await.expect("due")
        };
        let later: Vec<_> = due().await.into_iter().map(|look| (look, Millis(1 << 40))).collect();
        market.store.looks_defer(&later).await.expect("put off");
        assert_eq!((later.len(), due().await.len()), (3, 0));
        market.store.challenge_decide(ids[0], &json!({}), &Decision::Stays).await.expect("decide");
        assert_eq!(held().await, [(Kind::Devices, false), (Kind::Storage, false)]);
        let looks: Vec<ChallengeId> = due().await.into_iter().map(|look| look.challenge).collect();
        assert_eq!(looks, ids[1..], "what waited is looked at");
    })
    .await;
}

#[tokio::test]
async fn tests_beside_leases_are_drawn_together_and_none_of_them_twice() {
    open(async |market| {
        let claims = crate::verdict::with_devices(&["GPU-1"]);
        let customer = market.customer("c").await;
        let mut leases = Vec::new();
        for name in ["busy", "tested", "free"] {
            let host = market.host_with(name, crate::market::RATE, &claims).await;
            let (_, lease) = market.run(customer, host, &crate::market::request()).await;
            leases.push((host, lease));
        }
        let up = leases.iter().map(|(_, lease)| (*lease, Millis(7))).collect::<Vec<_>>();
        market.store.leases_probe_at(&up).await.expect("set");
        let body = json!({});
        let of = |cause| {
            let one = |(host, lease): &(HostId, LeaseId)| Drawing {
                cause,
                lease: Some(*lease),
                ..drawing(*host, Kind::Devices, &body, &claims)
            };
            leases.iter().map(one).collect::<Vec<_>>()
        };
        let start = of(Cause::LeaseStart);
        market.store.challenge_draw(&start[0]).await.expect("draw");
        market.store.challenge_draw(&start[1]).await.expect("draw");
        let passed = json!({ "passed": 1 });
        market.store.challenge_decide(start[1].challenge, &passed, &Decision::Stays).await.expect("decide");
        let [busy, tested, free] = [0, 1, 2].map(|number| leases[number].0);
        let drawn = market.store.challenges_draw_beside(&of(Cause::LeaseStart)).await.expect("draw");
        assert_eq!(drawn, [free], "one is being tested, the other was");
        let watch = market.store.hosts_watched(&BTreeSet::new()).await.expect("watch");
        assert!(
            watch.hosts.iter().all(|host| host.leases[0].start_probed && host.leases[0].probe_up.is_none())
        );
        let drawn = market.store.challenges_draw_beside(&of(Cause::Lease)).await.expect("draw");
        assert_eq!(drawn, [tested]);
        market.store.challenge_decide(start[0].challenge, &passed, &Decision::Stays).await.expect("decide");
        assert_eq!(market.store.challenges_draw_beside(&of(Cause::Lease)).await.expect("draw"), [busy]);
    })
    .await;
}

#[tokio::test]
async fn a_host_that_joins_again_or_is_emptied_is_looked_at() {
    open(async |market| {
        let due = async || {
            let now = market.store.clock_now().await.expect("clock").up;
            let looks = market.store.looks_due(now).await.expect("due");
            let later = looks.iter().map(|look| (*look, Millis(1 << 40))).collect::<Vec<_>>();
            market.store.looks_defer(&later).await.expect("put off");
            looks.len()
        };
        let host = claiming(market, 1).await;
        draw(market, host).await;
        assert_eq!((due().await, due().await), (1, 0));
        let again = Joining { replaces: Some(host), ..wish(2) };
        market.store.host_join(&again).await.expect("join again");
        assert_eq!(due().await, 1);
        let busy = market.host("busy").await;
        let customer = market.customer("c").await;
        let (_, lease) = market.run(customer, busy, &crate::market::request()).await;
        draw(market, busy).await;
        market.store.host_depart(None, busy, nave_store::Departure::Drain).await.expect("drain");
        due().await;
        market.finish(busy, lease, crate::market::EXITED).await;
        assert_eq!((state_of(market, busy).await, due().await), (HostState::Gone, 1));
    })
    .await;
}

#[tokio::test]
async fn a_refused_host_is_tested_again_after_its_pause_if_it_is_there() {
    open(async |market| {
        let host = claiming(market, 1).await;
        for n in 1..3 {
            let challenge = draw(market, host).await;
            market.store.challenge_decide(challenge, &json!({}), &refused(60_000)).await.expect("decide");
            let row = &market.store.host_list().await.expect("hosts")[0];
            assert_eq!(
                (row.state, row.reason.as_ref().expect("why").code.as_str()),
                (HostState::Refused, "cpu_overclaimed")
            );
            assert_eq!(
                market.store.host_spec(host).await.expect("spec").reason,
                row.reason,
                "it is told why"
            );
            assert_eq!(due(market).await, []);
            advance(market, 61_000).await;
            assert_eq!(due(market).await, [], "it is not there");
            market.store.host_hear(host, 1, 10 + n, 0, &inventory()).await.expect("hear");
            assert_eq!(due(market).await, [host]);
        }
        let challenge = draw(market, host).await;
        let open = market.store.challenges_open().await.expect("open");
        assert_eq!(
            (open[0].challenge, open[0].refusals),
            (challenge, 2),
            "pauses grow with what failed in a row"
        );
        market.store.challenge_decide(challenge, &json!({}), &Decision::Stays).await.expect("decide");
        market.store.host_passed(host).await.expect("prove");
        let row = &market.store.host_list().await.expect("hosts")[0];
        assert_eq!((row.state, &row.reason), (HostState::Ready, &None));
    })
    .await;
}

#[tokio::test]
async fn a_host_that_claims_more_is_tested_again_and_one_that_claims_less_is_not() {
    open(async |market| {
        let host = claiming(market, 1).await;
        market.store.host_passed(host).await.expect("prove");
        let mut sequence = 10;
        let mut hear = async |claims: Inventory| {
            market.settle(host).await;
            sequence += 1;
            market.store.host_hear(host, 1, sequence, 0, &claims).await.expect("hear");
            state_of(market, host).await
        };
        let with = |milli_cpu| Inventory { milli_cpu: nave_domain::MilliCpu(milli_cpu), ..inventory() };
        assert_eq!(hear(with(4_000)).await, HostState::Ready);
        assert_eq!(hear(inventory()).await, HostState::Ready);
        assert_eq!(hear(with(9_000)).await, HostState::Verifying);
        assert_eq!(hear(inventory()).await, HostState::Ready, "its word taken back");
        let moved = Inventory { cpu_model: "another".into(), ..inventory() };
        assert_eq!(hear(moved).await, HostState::Verifying);
    })
    .await;
}

#[tokio::test]
async fn a_verdict_on_the_old_machine_says_nothing_about_the_new_one() {
    open(async |market| {
        let host = claiming(market, 1).await;
        let challenge = draw(market, host).await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        let again = Joining { replaces: Some(host), ..wish(2) };
        market.store.host_join(&again).await.expect("join again");
        market.store.host_hear(host, 1, 1, 0, &inventory()).await.expect("hear");
        market.store.challenge_decide(challenge, &json!({}), &refused(60_000)).await.expect("decide");
        assert_eq!(state_of(market, host).await, HostState::Verifying);
        assert_eq!(due(market).await, [host]);
        let due = market.store.hosts_to_test().await.expect("due").remove(0);
        assert!(due.last.is_empty(), "{due:?}");
    })
    .await;
}

#[tokio::test]
async fn only_the_operator_has_a_proven_host_tested_again() {
    open(async |market| {
        let host = market.host("a").await;
        assert_eq!(due(market).await, []);
        market.store.host_retest(host).await.expect("retest");
        assert_eq!((state_of(market, host).await, due(market).await), (HostState::Verifying, vec![host]));
    })
    .await;
}

#[tokio::test]
async fn a_refused_host_is_tested_sooner_when_it_claims_clearly_less_and_not_when_it_says_something_else() {
    open(async |market| {
        let host = claiming(market, 1).await;
        let challenge = draw(market, host).await;
        market.store.challenge_decide(challenge, &json!({}), &refused(600_000)).await.expect("decide");
        let mut claims = inventory();
        let mut sequence = 1;
        let mut say = async |claims: &Inventory| {
            sequence += 1;
            let settled = "update hosts set inventory_at_ms = 0";
            sqlx::query(settled).execute(&market.sql).await.expect("settle");
            market.store.host_hear(host, 1, sequence, 0, claims).await.expect("hear");
            let (retry, up) = (market.store.host_retry_up(host).await, market.store.clock_up().await);
            retry.expect("a row").expect("a pause").0 - up.expect("clock").0
        };
        claims.os = "another".into();
        assert!(say(&claims).await > 500_000, "a text is no claim");
        claims.cpu_model = "another".into();
        assert!(say(&claims).await > 500_000, "nor is it less on another processor");
        claims.memory.0 -= 1;
        assert!(say(&claims).await > 500_000, "a byte corrects nothing");
        claims.memory.0 *= 4;
        assert!(say(&claims).await > 500_000);
        claims.memory.0 /= 4;
        assert!(say(&claims).await > 500_000, "back from more is not less");
        claims.milli_cpu.0 /= 2;
        assert!(say(&claims).await < 10_000);
    })
    .await;
}

#[tokio::test]
async fn many_challenges_are_no_leave_to_fill_the_disk() {
    open(async |market| {
        let host = claiming(market, 1).await;
        for _ in 0..100 {
            let challenge = draw(market, host).await;
            market.store.challenge_decide(challenge, &json!({}), &Decision::Stays).await.expect("decide");
        }
        draw(market, host).await;
        let mut granted = 0;
        for n in 0..200 {
            let name = crate::market::hash(&format!("blob {n}"));
            let claim = market.store.blob_claim(host, name, 5).await.expect("claim");
            granted += usize::from(claim == nave_store::BlobClaim::Granted);
        }
        assert_eq!(granted, 192);
    })
    .await;
}
