//! What follows from verdicts: bans, whose a GPU is, appeals, and what is kept.

use std::collections::BTreeSet;

use nave_domain::{
    Bytes, ChallengeId, HostId, MilliGpu, Millis,
    fraction::Fraction,
    host::{HostState, Inventory, Proven},
    verdict::{Cause, Kind},
};
use nave_store::{Appeal, Decision, Drawing, Joining, StoreError};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    challenge::{advance, claiming, draw, due, state_of},
    enrol::wish,
    market::{Market, device, inventory, open},
};

const HOUR: i64 = 3_600_000;

pub fn banned() -> Decision {
    let spans = vec![Millis(HOUR), Millis(6 * HOUR)];
    Decision::Banned { code: "evidence_wrong".into(), message: "made up".into(), spans }
}

pub fn mistrusted() -> Decision {
    let pause = Millis(10_000);
    Decision::Mistrusted { code: "vram_missing".into(), message: "half of it".into(), pause }
}

pub fn failed() -> Value {
    json!({ "failed": { "code": "evidence_wrong", "message": "made up" } })
}

pub fn with_devices(uuids: &[&str]) -> Inventory {
    Inventory { devices: uuids.iter().map(|uuid| device(uuid)).collect(), ..inventory() }
}

/// A host of a miner that says it has these GPUs.
pub async fn host_of(market: &Market, n: u16, hotkey: &str, devices: &[&str]) -> HostId {
    let joining = Joining { hotkey, ..wish(n) };
    market.store.host_join(&joining).await.expect("join");
    hear(market, joining.host, 1, devices).await;
    joining.host
}

pub async fn hear(market: &Market, host: HostId, sequence: u64, devices: &[&str]) {
    market.store.host_hear(host, 1, sequence, 0, &with_devices(devices)).await.expect("hear");
}

/// Has a host fail a test of the GPUs that it claims, so that it is banned.
pub async fn ban(market: &Market, host: HostId, devices: &[&str]) -> ChallengeId {
    let id = ChallengeId(Uuid::now_v7());
    let claims = with_devices(devices);
    market.store.challenge_give(host, id, Kind::Devices, &json!({}), &claims).await.expect("draw");
    market.store.challenge_decide(id, &failed(), &banned()).await.expect("decide");
    id
}

pub async fn holds(market: &Market, host: HostId, devices: &[&str]) -> Result<(), StoreError> {
    let id = ChallengeId(Uuid::now_v7());
    let claims = with_devices(devices);
    market.store.challenge_give(host, id, Kind::Devices, &json!({}), &claims).await.expect("draw");
    let devices = devices.iter().map(|device| (*device).to_owned()).collect();
    market.store.challenge_decide(id, &json!({ "passed": {} }), &Decision::Holds { devices }).await
}

/// Whether one more failure of this host that is more than trouble is a ban; draws a test to see.
pub async fn is_in_doubt(market: &Market, host: HostId) -> bool {
    let challenge = draw(market, host).await;
    let doubt = market.store.challenge_get(challenge).await.expect("open").was_in_doubt;
    market
        .store
        .challenge_decide(challenge, &json!({ "void": "why" }), &Decision::Stays)
        .await
        .expect("decide");
    doubt
}

/// How long a refused host waits for its next test.
async fn wait(market: &Market, host: HostId) -> i64 {
    let up = market.store.clock_up().await.expect("clock").0;
    market.store.host_retry_up(host).await.expect("a row").expect("a pause").0 - up
}

#[tokio::test]
async fn each_ban_is_longer_than_the_one_before_and_then_the_host_may_try_again() {
    open(async |market| {
        let host = host_of(market, 1, "miner", &[]).await;
        for (n, hours) in (2..).zip([1, 6, 6]) {
            ban(market, host, &[]).await;
            assert_eq!(state_of(market, host).await, HostState::Refused);
            let left = wait(market, host).await;
            // The clock is read between two beats here, and at the last one there.
            assert!((hours * HOUR - 5_000..hours * HOUR + 1_500).contains(&left), "{left}");
            advance(market, hours * HOUR - 60_000).await;
            hear(market, host, 2 * n, &[]).await;
            assert_eq!(due(market).await, []);
            advance(market, 62_000).await;
            hear(market, host, 2 * n + 1, &[]).await;
            assert_eq!(due(market).await, [host]);
        }
        let told = market.store.host_spec(host).await.expect("spec").reason.expect("a reason").message;
        assert_eq!(told, "made up; it is banned for 6 h 0 m");
        let bans = market.store.bans_of_host(host).await.expect("bans");
        assert!(bans.len() == 3 && bans.iter().all(|ban| ban.left.is_none()), "{bans:?}");
    })
    .await;
}

#[tokio::test]
async fn who_was_banned_is_not_tested_under_another_name_and_others_are() {
    open(async |market| {
        let old = host_of(market, 1, "cheater", &[]).await;
        market.store.host_passed(old).await.expect("prove");
        let spare = host_of(market, 7, "cheater", &[]).await;
        let beside = host_of(market, 8, "cheater", &[]).await;
        let (body, claims) = (json!({}), inventory());
        let seen = market.store.host_generation(beside).await.expect("generation");
        let begun = crate::challenge::drawing(beside, Kind::Cpu, &body, &claims);
        market.store.challenges_draw(&[(beside, seen)], &[begun]).await.expect("draw");
        let host = host_of(market, 2, "cheater", &["GPU-1", "GPU-2"]).await;
        holds(market, host, &["GPU-1", "GPU-2"]).await.expect("its own");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        // A name that was once to show something and never did, and one that has shown it long ago.
        let drawn = host_of(market, 9, "cheater", &[]).await;
        let once = draw(market, drawn).await;
        let silence =
            Decision::Refused { code: "too_late".into(), message: "silent".into(), pause: Millis(1_000) };
        market.store.challenge_decide(once, &failed(), &silence).await.expect("decide");
        let silent = host_of(market, 10, "cheater", &[]).await;
        market.store.host_passed(silent).await.expect("prove");
        advance(market, 600_001).await;
        for heard in [old, beside, drawn] {
            hear(market, heard, 2, &[]).await;
        }
        ban(market, host, &["GPU-1", "GPU-2"]).await;
        let again = Joining { hotkey: "cheater", replaces: Some(host), ..wish(3) };
        market.store.host_join(&again).await.expect("join again");
        hear(market, host, 1, &[]).await;
        let newcomer = host_of(market, 4, "cheater", &[]).await;
        let accomplice = host_of(market, 5, "another", &["GPU-2"]).await;
        let stranger = host_of(market, 6, "another", &["GPU-3"]).await;
        assert_eq!(due(market).await, [stranger], "what has nothing to do with it");
        assert_eq!(state_of(market, old).await, HostState::Ready, "it had proven itself before");
        assert_eq!(state_of(market, beside).await, HostState::Verifying, "it is being tested, too");
        let count = async |host| market.store.bans_of_host(host).await.expect("bans").len();
        assert_eq!((count(old).await, count(beside).await), (0, 0));
        assert_eq!((count(drawn).await, count(silent).await), (1, 1), "nobody knows where they have been");
        for refused in [host, newcomer, spare, accomplice] {
            assert_eq!(state_of(market, refused).await, HostState::Refused);
            assert!(wait(market, refused).await > HOUR - 10_000);
            let reason = market.store.host_spec(refused).await.expect("spec").reason.expect("a reason");
            assert_eq!(reason.code, "evidence_wrong");
            assert_eq!(reason.message, "a ban counts against it: made up");
        }
        // Saying something else is no way out.
        market.settle(newcomer).await;
        let less = Inventory { milli_cpu: nave_domain::MilliCpu(1_000), ..inventory() };
        market.store.host_hear(newcomer, 1, 2, 0, &less).await.expect("hear");
        advance(market, 60_000).await;
        market.store.host_hear(newcomer, 1, 3, 0, &less).await.expect("hear");
        assert!(!due(market).await.contains(&newcomer));
        // A second ban counts the first one, whoever it was.
        let id = draw(market, accomplice).await;
        market.store.challenge_decide(id, &failed(), &banned()).await.expect("decide");
        assert!(wait(market, accomplice).await > 5 * HOUR);
        market.store.host_retest(newcomer).await.expect("the operator's word");
        assert!(due(market).await.contains(&newcomer));
    })
    .await;
}

#[tokio::test]
async fn nobody_has_the_gpus_of_others_banned_by_claiming_them() {
    open(async |market| {
        let honest = host_of(market, 1, "honest", &["GPU-1"]).await;
        holds(market, honest, &["GPU-1"]).await.expect("its own");
        let cheater = host_of(market, 2, "cheater", &["GPU-1"]).await;
        ban(market, cheater, &["GPU-1"]).await;
        assert_eq!(due(market).await, [honest]);
    })
    .await;
}

#[tokio::test]
async fn a_ban_takes_nobodys_gpus_along_that_its_host_has_only_claimed() {
    open(async |market| {
        for n in 1..=5 {
            let throwaway = host_of(market, n, &format!("throwaway {n}"), &["GPU-1"]).await;
            ban(market, throwaway, &["GPU-1"]).await;
        }
        let victim = host_of(market, 6, "victim", &["GPU-1"]).await;
        assert_eq!(due(market).await, [victim], "nobody has proven its GPU before");
        holds(market, victim, &["GPU-1"]).await.expect("its own");
        // What it fails without its GPUs is nothing to those.
        let cpu = draw(market, victim).await;
        market.store.challenge_decide(cpu, &failed(), &banned()).await.expect("decide");
        let buyer = host_of(market, 7, "buyer", &["GPU-1"]).await;
        assert_eq!(due(market).await, [buyer]);
    })
    .await;
}

#[tokio::test]
async fn a_machine_that_its_owner_installs_anew_gets_its_gpus_back_soon() {
    open(async |market| {
        let old = host_of(market, 1, "miner", &["GPU-1"]).await;
        holds(market, old, &["GPU-1"]).await.expect("its own");
        let wanted = ["GPU-1".to_owned()];
        let new = host_of(market, 2, "miner", &["GPU-1"]).await;
        let stranger = host_of(market, 3, "stranger", &["GPU-1"]).await;
        assert_eq!(market.store.device_holders(new, &wanted).await.expect("holders").len(), 1);
        advance(market, 40_000).await;
        assert_eq!(market.store.device_holders(stranger, &wanted).await.expect("holders").len(), 1);
        assert_eq!(market.store.device_holders(new, &wanted).await.expect("holders"), []);
        hear(market, new, 2, &["GPU-1"]).await;
        holds(market, new, &["GPU-1"]).await.expect("handed over");
        assert_eq!(market.store.device_holders(old, &wanted).await.expect("holders")[0].host, new);
    })
    .await;
}

#[tokio::test]
async fn a_gpu_belongs_to_the_host_that_proved_it_first_as_long_as_that_is_there() {
    open(async |market| {
        let (first, second) = (
            host_of(market, 1, "a", &["GPU-1", "GPU-2"]).await,
            host_of(market, 2, "b", &["GPU-2", "GPU-3"]).await,
        );
        holds(market, first, &["GPU-1", "GPU-2"]).await.expect("nobody has them");
        let refused = holds(market, second, &["GPU-2", "GPU-3"]).await;
        assert!(matches!(refused, Err(StoreError::Stale("device"))), "{refused:?}");
        let wanted = ["GPU-2".to_owned(), "GPU-3".to_owned()];
        let holders = market.store.device_holders(second, &wanted).await.expect("holders");
        assert!(
            holders.len() == 1 && holders[0].host == first && holders[0].device == "GPU-2",
            "{holders:?}"
        );
        let open = market.store.challenges_open().await.expect("open").remove(0);
        assert_eq!(open.host, second, "nothing was written down");
        // Given away.
        market.settle(first).await;
        hear(market, first, 2, &["GPU-1"]).await;
        assert_eq!(market.store.device_holders(second, &wanted).await.expect("holders"), []);
        market.settle(first).await;
        hear(market, first, 3, &["GPU-1", "GPU-2"]).await;
        assert_eq!(market.store.device_holders(second, &wanted).await.expect("holders").len(), 1);
        // Silent for long.
        advance(market, HOUR).await;
        hear(market, second, 2, &["GPU-2", "GPU-3"]).await;
        let decision = Decision::Holds { devices: wanted.to_vec() };
        market
            .store
            .challenge_decide(open.challenge, &json!({ "passed": {} }), &decision)
            .await
            .expect("hold");
        hear(market, first, 4, &["GPU-1", "GPU-2"]).await;
        let holders = market.store.device_holders(first, &wanted).await.expect("holders");
        assert!(holders.len() == 2 && holders[0].host == second, "who was away has lost them");
        // Gone.
        let departure = nave_store::Departure::Leave;
        market.store.host_depart(None, second, departure).await.expect("leave");
        assert_eq!(market.store.device_holders(first, &wanted).await.expect("holders"), []);
    })
    .await;
}

#[tokio::test]
async fn two_hosts_that_prove_one_gpu_at_the_same_moment_do_not_both_get_it() {
    open(async |market| {
        let hosts = [host_of(market, 1, "a", &["GPU-1"]).await, host_of(market, 2, "b", &["GPU-1"]).await];
        let (one, other) =
            tokio::join!(holds(market, hosts[0], &["GPU-1"]), holds(market, hosts[1], &["GPU-1"]));
        assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
    })
    .await;
}

#[tokio::test]
async fn who_is_right_about_a_verdict_is_tested_again_and_asks_once() {
    open(async |market| {
        let host = host_of(market, 1, "miner", &["GPU-1"]).await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        let challenge = ban(market, host, &["GPU-1"]).await;
        let other = host_of(market, 2, "miner", &[]).await;
        assert_eq!(due(market).await, []);
        let appeal = async |hotkey: &str| market.store.verdict_appeal(hotkey, challenge).await;
        assert!(matches!(appeal("another").await, Err(StoreError::NotFound("verdict"))));
        assert_eq!(appeal("miner").await.expect("asked"), Appeal::Taken);
        assert_eq!(appeal("miner").await.expect("asked"), Appeal::Again);
        let asked = market.store.challenges_appealed(9).await.expect("appeals");
        assert_eq!((asked.len(), asked[0].challenge), (1, challenge));
        let passed = json!({ "passed": {} });
        market.store.appeal_decide(challenge, &passed, true).await.expect("decide");
        let twice = market.store.appeal_decide(challenge, &failed(), false).await;
        assert!(matches!(twice, Err(StoreError::Stale("challenge"))), "{twice:?}");
        assert_eq!(market.store.challenges_appealed(9).await.expect("appeals"), []);
        for host in [host, other] {
            market.store.host_hear(host, 1, 9, 0, &inventory()).await.expect("hear");
        }
        assert_eq!(due(market).await, [host, other]);
        let history = market.store.verdicts_of_host(host, None, 10).await.expect("verdicts");
        assert_eq!(history[0].appeal.as_ref().expect("an appeal").1, Some(passed));
        let ban = history[0].ban.as_ref().expect("a ban");
        assert_eq!((ban.is_over, ban.lifted_by.as_deref()), (true, Some("appeal")));
        assert_eq!(market.store.bans_of_host(host).await.expect("bans"), [], "it makes no other one longer");
    })
    .await;
}

#[tokio::test]
async fn who_is_wrong_about_a_verdict_stays_banned_and_only_failures_are_judged_again() {
    open(async |market| {
        let host = host_of(market, 1, "miner", &[]).await;
        let challenge = ban(market, host, &[]).await;
        market.store.verdict_appeal("miner", challenge).await.expect("asked");
        market.store.appeal_decide(challenge, &failed(), false).await.expect("decide");
        advance(market, HOUR / 2).await;
        hear(market, host, 2, &[]).await;
        assert_eq!(due(market).await, []);
        let passed = draw(market, host).await;
        assert_eq!(market.store.verdict_appeal("miner", passed).await.expect("asked"), Appeal::NotFailed);
        market
            .store
            .challenge_decide(passed, &json!({ "passed": 1 }), &Decision::Stays)
            .await
            .expect("decide");
        assert_eq!(market.store.verdict_appeal("miner", passed).await.expect("asked"), Appeal::NotFailed);
    })
    .await;
}

#[tokio::test]
async fn who_joins_again_waits_as_long_and_is_trusted_as_little_as_before() {
    open(async |market| {
        let host = host_of(market, 1, "miner", &[]).await;
        for n in 2..4 {
            let challenge = draw(market, host).await;
            market.store.challenge_decide(challenge, &failed(), &mistrusted()).await.expect("decide");
            advance(market, 20_000).await;
            hear(market, host, n, &[]).await;
            assert_eq!(due(market).await, [host]);
        }
        let challenge = draw(market, host).await;
        let pause = Millis(600_000);
        let refused = Decision::Refused { code: "too_late".into(), message: "silent".into(), pause };
        market.store.challenge_decide(challenge, &failed(), &refused).await.expect("decide");
        let before = wait(market, host).await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        let again = Joining { hotkey: "miner", replaces: Some(host), ..wish(2) };
        market.store.host_join(&again).await.expect("join again");
        hear(market, host, 1, &[]).await;
        assert_eq!((wait(market, host).await, due(market).await), (before, Vec::new()));
        let next = draw(market, host).await;
        let seen = market.store.challenge_get(next).await.expect("open");
        assert_eq!((seen.refusals, seen.was_in_doubt), (3, true));
        market.store.challenge_decide(next, &failed(), &banned()).await.expect("decide");
        let left = wait(market, host).await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        let once_more = Joining { hotkey: "miner", replaces: Some(host), ..wish(3) };
        market.store.host_join(&once_more).await.expect("join again");
        hear(market, host, 1, &[]).await;
        assert_eq!(due(market).await, []);
        assert!((left - 2_000..=left).contains(&wait(market, host).await), "its ban");
        assert_eq!(market.store.bans_of_host(host).await.expect("bans").len(), 1);
    })
    .await;
}

#[tokio::test]
async fn doubt_about_a_host_that_left_is_doubt_about_all_that_its_miner_has() {
    open(async |market| {
        let before = host_of(market, 1, "miner", &[]).await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        let host = host_of(market, 2, "miner", &[]).await;
        let challenge = draw(market, host).await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        market.store.host_depart(None, host, nave_store::Departure::Leave).await.expect("leave");
        // It is back under another name before anybody has noticed.
        let quick = host_of(market, 3, "miner", &[]).await;
        market.store.challenge_decide(challenge, &failed(), &mistrusted()).await.expect("decide");
        let later = host_of(market, 4, "miner", &[]).await;
        let stranger = host_of(market, 5, "another", &[]).await;
        for (host, expected) in [(before, true), (quick, true), (later, true), (stranger, false)] {
            assert_eq!(is_in_doubt(market, host).await, expected);
        }
        // One that proves itself makes up for one that left.
        market.store.host_passed(quick).await.expect("prove");
        for host in [before, quick, later] {
            assert!(!is_in_doubt(market, host).await);
        }
    })
    .await;
}

#[tokio::test]
async fn an_appeal_takes_back_what_followed_from_its_own_verdict_and_no_other_of_the_same_reason() {
    open(async |market| {
        let host = host_of(market, 1, "miner", &[]).await;
        let fail = async |sequence| {
            let challenge = draw(market, host).await;
            market.store.challenge_decide(challenge, &failed(), &mistrusted()).await.expect("decide");
            if sequence == 2 {
                advance(market, 20_000).await;
                hear(market, host, sequence, &[]).await;
                assert_eq!(due(market).await, [host]);
            }
            challenge
        };
        let (first, second) = (fail(2).await, fail(3).await);
        let appeal = async |challenge| {
            market.store.verdict_appeal("miner", challenge).await.expect("asked");
            let passed = json!({ "passed": {} });
            market.store.appeal_decide(challenge, &passed, true).await.expect("decide");
            hear(market, host, 4, &[]).await;
            due(market).await
        };
        let standing = async || {
            let challenge = draw(market, host).await;
            let seen = market.store.challenge_get(challenge).await.expect("open");
            market
                .store
                .challenge_decide(challenge, &json!({ "void": "why" }), &Decision::Stays)
                .await
                .expect("void");
            (seen.refusals, seen.was_in_doubt)
        };
        assert_eq!(appeal(first).await, [], "it is the second that it waits for");
        assert_eq!((wait(market, host).await > 5_000, standing().await), (true, (2, true)));
        assert_eq!(appeal(second).await, [host]);
        assert_eq!(standing().await, (1, false));
    })
    .await;
}

/// A challenge that is answered with an opening and judged.
async fn judged(market: &Market, host: HostId, verdict: &Value) -> ChallengeId {
    let challenge = draw(market, host).await;
    market.store.challenge_send(host).await.expect("send");
    let commitment = json!({ "commitment": "ab" });
    assert!(market.store.challenge_answer(host, challenge, 0, &commitment).await.expect("answer"));
    market.store.challenge_reveal(challenge, 1, "cd").await.expect("reveal");
    market.store.challenge_send(host).await.expect("send");
    let bytes = challenge.0.as_bytes().to_vec();
    let sha256 = crate::market::hash(&challenge.to_string());
    market.store.blob_put(sha256, &bytes).await.expect("store");
    let opening = json!({ "opening": { "blob": { "sha256": hex(&sha256), "size": 16 } } });
    assert!(market.store.challenge_answer(host, challenge, 1, &opening).await.expect("answer"));
    market.store.challenge_decide(challenge, verdict, &Decision::Stays).await.expect("decide");
    challenge
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_history_shows_what_was_asked_what_came_back_when_and_what_came_of_it() {
    open(async |market| {
        let host = claiming(market, 1).await;
        let first = judged(market, host, &json!({ "passed": { "of": "sorts" } })).await;
        let claims = inventory();
        let body = json!({ "novel": true });
        let drawing = Drawing {
            host,
            challenge: ChallengeId(Uuid::now_v7()),
            kind: Kind::Software,
            cause: Cause::Random,
            body: &body,
            claims: &claims,
            shadow: true,
            window: None,
            lease: None,
        };
        market.store.challenge_draw(&drawing).await.expect("draw");
        let history = market.store.verdicts_of_host(host, None, 10).await.expect("verdicts");
        let [newest, oldest] = &history[..] else { panic!("{history:?}") };
        assert_eq!((newest.kind, newest.cause, newest.shadow), (Kind::Software, Cause::Random, true));
        assert_eq!((&newest.code, &newest.verdict, newest.exchanges.len()), (&None, &None, 1));
        assert_eq!((oldest.challenge, oldest.code.as_deref()), (first, Some("passed")));
        assert_eq!(oldest.verdict.as_ref().expect("a verdict").0, json!({ "passed": { "of": "sorts" } }));
        let [sent, opened] = &oldest.exchanges[..] else { panic!("{oldest:?}") };
        assert_eq!((sent.commitment.as_deref(), opened.reveal.as_deref()), (Some("ab"), Some("cd")));
        assert!(opened.blob.is_some() && !opened.is_inline && opened.answered_at >= opened.sent_at);
        let kept = market.store.challenge_get(first).await.expect("it is kept");
        assert!(kept.steps.len() == 2 && kept.steps[1].answer.is_some(), "{kept:?}");
        let page = market.store.verdicts_of_host(host, Some(newest.challenge), 10).await.expect("verdicts");
        assert_eq!(page.len(), 1);
        assert_eq!(market.store.verdicts_of_host(host, None, 1).await.expect("verdicts").len(), 1);
    })
    .await;
}

/// Lets days pass since all that was decided, after which everything is seen again.
async fn age(market: &Market, days: i64) {
    let query = "update challenges set decided_at_ms = decided_at_ms - $1 * 86400000, sweep_at_ms = 0";
    sqlx::query(query).bind(days).execute(&market.sql).await.expect("age");
    let query = "update blobs set stored_at_ms = stored_at_ms - $1 * 86400000";
    sqlx::query(query).bind(days).execute(&market.sql).await.expect("age");
}

/// Of how many challenges the openings went, and how many went as a whole.
async fn sweep(market: &Market) -> (usize, usize) {
    let swept = market.store.evidence_sweep(1_000).await.expect("sweep");
    (swept.forgotten, swept.deleted)
}

async fn listed(market: &Market, host: HostId) -> Vec<ChallengeId> {
    let history = market.store.verdicts_of_host(host, None, 200).await.expect("verdicts");
    history.into_iter().map(|row| row.challenge).collect()
}

#[tokio::test]
async fn evidence_is_kept_as_long_as_somebody_may_want_to_judge_it_again() {
    open(async |market| {
        let host = claiming(market, 1).await;
        let (passed, wrong) = (json!({ "passed": 1 }), failed());
        let mut challenges = Vec::new();
        for verdict in [&passed, &wrong, &passed, &passed, &passed] {
            challenges.push(judged(market, host, verdict).await);
        }
        let seen = async |limit| market.store.evidence_sweep(limit).await.expect("sweep").seen;
        assert_eq!(seen(10).await, 0, "it is fresh");
        age(market, 0).await;
        assert_eq!((seen(2).await, sweep(market).await), (2, (0, 0)), "as much as was allowed");
        age(market, 2).await;
        assert_eq!(sweep(market).await, (2, 0));
        assert_eq!(seen(10).await, 0, "nothing is seen again before it may go");
        let kept = async || {
            let history = market.store.verdicts_of_host(host, None, 10).await.expect("verdicts");
            let kept = history.into_iter().filter(|row| row.forgotten_at.is_none());
            kept.map(|row| row.challenge).collect::<Vec<_>>()
        };
        let last = [challenges[4], challenges[3], challenges[1]];
        assert_eq!(kept().await, last, "the last ones, and what failed");
        assert_eq!(market.store.blobs_forget().await.expect("forget"), 2);
        age(market, 30).await;
        assert_eq!(sweep(market).await, (1, 0));
        assert_eq!(market.store.blobs_forget().await.expect("forget"), 1);
        let hotkey = market.store.host_list().await.expect("hosts")[0].hotkey.clone();
        let late = market.store.verdict_appeal(&hotkey, challenges[1]).await.expect("asked");
        assert_eq!(late, Appeal::Forgotten);
    })
    .await;
}

#[tokio::test]
async fn of_old_challenges_the_last_twenty_of_each_kind_are_kept_and_those_that_failed_for_longer() {
    open(async |market| {
        let host = claiming(market, 1).await;
        let mut challenges = vec![judged(market, host, &failed()).await];
        for _ in 0..22 {
            challenges.push(judged(market, host, &json!({ "passed": 1 })).await);
        }
        age(market, 29).await;
        assert_eq!(sweep(market).await, (20, 0), "two of its kind and the one that failed are kept");
        age(market, 2).await;
        assert_eq!(sweep(market).await, (1, 2));
        challenges.drain(1..3);
        challenges.reverse();
        assert_eq!(listed(market, host).await, challenges);
        age(market, 148).await;
        assert_eq!(sweep(market).await, (0, 0));
        age(market, 2).await;
        assert_eq!(sweep(market).await, (0, 1));
        let rows = "select (select count(*) from challenges) * 1000 + (select count(*) from challenge_steps)";
        let rows: i64 = sqlx::query_scalar(rows).fetch_one(&market.sql).await.expect("count");
        assert_eq!(rows, 20_040, "with their exchanges");
        // Nobody asks after the last ones of a host that has left.
        market.store.host_depart(None, host, nave_store::Departure::Leave).await.expect("leave");
        age(market, 0).await;
        assert_eq!(sweep(market).await, (0, 20));
        assert_eq!(listed(market, host).await, []);
    })
    .await;
}

#[tokio::test]
async fn nothing_goes_that_something_rests_on_and_no_decision_changes_with_what_goes() {
    open(async |market| {
        let leave = async |host| {
            market.store.host_depart(None, host, nave_store::Departure::Leave).await.expect("leave");
        };
        let banned = host_of(market, 1, "cheater", &[]).await;
        let ban = ban(market, banned, &[]).await;
        leave(banned).await;
        let doubted = host_of(market, 2, "doubtful", &[]).await;
        let doubt = draw(market, doubted).await;
        market.store.challenge_decide(doubt, &failed(), &mistrusted()).await.expect("decide");
        leave(doubted).await;
        let refused = host_of(market, 3, "miner", &[]).await;
        let refusal = draw(market, refused).await;
        market.store.challenge_decide(refusal, &failed(), &mistrusted()).await.expect("decide");
        let appellant = host_of(market, 4, "appellant", &[]).await;
        let appeal = draw(market, appellant).await;
        market.store.challenge_decide(appeal, &failed(), &Decision::Stays).await.expect("decide");
        market.store.verdict_appeal("appellant", appeal).await.expect("asked");
        leave(appellant).await;
        age(market, 400).await;
        assert_eq!(sweep(market).await, (2, 0), "openings of those who left, and of no open appeal");
        for (host, kept) in [(banned, ban), (doubted, doubt), (refused, refusal), (appellant, appeal)] {
            assert_eq!(listed(market, host).await, [kept]);
        }
        let newcomer = host_of(market, 5, "cheater", &[]).await;
        assert!(!due(market).await.contains(&newcomer));
        let other = host_of(market, 6, "doubtful", &[]).await;
        assert!(is_in_doubt(market, other).await);

        // Long afterwards, and once the appeal was heard.
        advance(market, 91 * 24 * HOUR).await;
        hear(market, newcomer, 2, &[]).await;
        assert!(due(market).await.contains(&newcomer));
        market.store.appeal_decide(appeal, &failed(), false).await.expect("decide");
        for proven in [newcomer, other] {
            market.store.host_passed(proven).await.expect("prove");
        }
        age(market, 1).await;
        assert_eq!(sweep(market).await, (0, 3), "one is refused to this day");
        assert_eq!(listed(market, refused).await, [refusal]);
        assert_eq!(market.store.bans_of_host(banned).await.expect("bans"), []);
        let next = draw(market, refused).await;
        let seen = market.store.challenge_get(next).await.expect("open");
        assert_eq!((seen.refusals, seen.was_in_doubt), (1, false), "no doubt counts for ever");
    })
    .await;
}

#[tokio::test]
async fn the_first_test_of_a_lease_is_known_as_long_as_that_is_open() {
    open(async |market| {
        let claims = with_devices(&["GPU-1"]);
        let host = market.host_with("a", crate::market::RATE, &claims).await;
        let customer = market.customer("c").await;
        let (_, lease) = market.run(customer, host, &crate::market::request()).await;
        let (body, passed) = (json!({}), json!({ "passed": 1 }));
        let mut drawing = crate::challenge::drawing(host, Kind::Devices, &body, &claims);
        (drawing.cause, drawing.lease) = (Cause::LeaseStart, Some(lease));
        market.store.challenge_draw(&drawing).await.expect("draw");
        market.store.challenge_decide(drawing.challenge, &passed, &Decision::Stays).await.expect("decide");
        for _ in 0..20 {
            (drawing.cause, drawing.challenge) = (Cause::Lease, ChallengeId(Uuid::now_v7()));
            market.store.challenge_draw(&drawing).await.expect("draw");
            market
                .store
                .challenge_decide(drawing.challenge, &passed, &Decision::Stays)
                .await
                .expect("decide");
        }
        age(market, 31).await;
        assert_eq!(sweep(market).await.1, 0);
        assert!(
            market.store.hosts_watched(&BTreeSet::new()).await.expect("watch").hosts[0].leases[0]
                .start_probed
        );
        market.finish(host, lease, crate::market::EXITED).await;
        age(market, 0).await;
        assert_eq!(sweep(market).await.1, 1);
    })
    .await;
}

#[tokio::test]
async fn what_gpus_showed_when_they_were_free_is_kept_while_they_are_tested_beside_jobs() {
    open(async |market| {
        let claims = with_devices(&["GPU-1"]);
        let host = market.host_with("a", crate::market::RATE, &claims).await;
        let customer = market.customer("c").await;
        let (_, lease) = market.run(customer, host, &crate::market::request()).await;
        let (body, free, beside) =
            (json!({}), json!({ "passed": "free" }), json!({ "passed": "beside a job" }));
        let mut drawing = crate::challenge::drawing(host, Kind::Devices, &body, &claims);
        market.store.challenge_draw(&drawing).await.expect("draw");
        market.store.challenge_decide(drawing.challenge, &free, &Decision::Stays).await.expect("decide");
        for _ in 0..20 {
            drawing.challenge = ChallengeId(Uuid::now_v7());
            (drawing.cause, drawing.lease) = (Cause::Lease, Some(lease));
            market.store.challenge_draw(&drawing).await.expect("draw");
            market
                .store
                .challenge_decide(drawing.challenge, &beside, &Decision::Shown)
                .await
                .expect("decide");
        }
        age(market, 31).await;
        assert_eq!(sweep(market).await.1, 0);
        let other = market.host("b").await;
        let passed = market.store.devices_passed(&[host, other]).await.expect("rows");
        assert_eq!(passed, [(host, free)].into());
    })
    .await;
}

#[tokio::test]
async fn a_host_that_is_to_prove_its_claims_again_takes_no_jobs_whatever_it_says() {
    open(async |market| {
        let host = market.host("a").await;
        let seen = market.store.host_generation(host).await.expect("generation");
        let stale = market.store.suite_begin(host, seen - 1, Cause::Random).await;
        assert!(matches!(stale, Err(StoreError::Stale("host"))));
        market.store.suite_begin(host, seen, Cause::Random).await.expect("begin");
        market.hear(host).await;
        assert_eq!(
            state_of(market, host).await,
            HostState::Verifying,
            "what it proved before does not count now"
        );
        let due = market.store.hosts_to_test().await.expect("due").remove(0);
        assert!(due.cause == Some(Cause::Random) && due.proven.is_some() && due.last.is_empty(), "{due:?}");
        market.store.host_passed(host).await.expect("prove");
        market.hear(host).await;
        assert_eq!(state_of(market, host).await, HostState::Ready);
        // Doubts do the same, and leave its job alone.
        let customer = market.customer("c").await;
        let (_, lease) = market.run(customer, host, &crate::market::request()).await;
        let id = ChallengeId(Uuid::now_v7());
        let (body, claims) = (json!({}), inventory());
        let (kind, cause, lease) = (Kind::Devices, Cause::Lease, Some(lease));
        let drawing = Drawing {
            host,
            challenge: id,
            kind,
            cause,
            body: &body,
            claims: &claims,
            shadow: false,
            window: None,
            lease,
        };
        market.store.challenge_draw(&drawing).await.expect("beside its job");
        market.store.challenge_decide(id, &failed(), &Decision::Doubted).await.expect("decide");
        market.hear(host).await;
        assert_eq!(state_of(market, host).await, HostState::Verifying);
        assert_eq!(market.store.hosts_to_test().await.expect("due"), [], "not while it has a job");
        market.finish(host, lease.expect("a lease"), crate::market::EXITED).await;
        let due = market.store.hosts_to_test().await.expect("due");
        assert!(due.len() == 1 && due[0].last.is_empty(), "a test beside a job is part of no suite: {due:?}");
    })
    .await;
}

#[tokio::test]
async fn hosts_about_which_nothing_is_to_be_decided_are_not_looked_at() {
    open(async |market| {
        let host = market.host_with("a", crate::market::RATE, &with_devices(&["GPU-1"])).await;
        let watched = async |wanted: &[Kind]| {
            let wanted = wanted.iter().copied().collect();
            !market.store.hosts_watched(&wanted).await.expect("watch").hosts.is_empty()
        };
        assert!(watched(&[]).await, "its time is not set");
        market.store.host_retest_at(host, Millis(HOUR)).await.expect("set");
        assert!(!watched(&[Kind::Cpu]).await);
        assert!(watched(&[Kind::Cpu, Kind::Devices]).await, "it has not proven its GPUs");
        let customer = market.customer("c").await;
        let (_, lease) = market.run(customer, host, &crate::market::request()).await;
        assert!(watched(&[]).await, "it has a lease");
        market.finish(host, lease, crate::market::EXITED).await;
        assert!(!watched(&[]).await);
        let window = Uuid::now_v7();
        market.store.window_plan(window, Millis(5)).await.expect("plan");
        market.store.window_open(window, &"be".repeat(32)).await.expect("open");
        assert!(watched(&[]).await, "it has a part in the window");
        market.store.windows_age(Millis(31_000)).await.expect("half a minute passes");
        assert!(!watched(&[]).await);
        advance(market, HOUR).await;
        assert!(watched(&[]).await, "its time has come");
    })
    .await;
}

#[tokio::test]
async fn a_window_opens_once_and_draws_each_host_once() {
    open(async |market| {
        let host = market.host("a").await;
        let watch = async || market.store.hosts_watched(&BTreeSet::new()).await.expect("watch");
        let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
        market.store.window_plan(first, Millis(5)).await.expect("plan");
        market.store.window_plan(second, Millis(6)).await.expect("another verifier, at the same time");
        assert_eq!((watch().await.ahead, watch().await.opened), (Some((first, Millis(5))), None));
        let beacon = "be".repeat(32);
        market.store.window_open(first, &beacon).await.expect("open");
        let twice = market.store.window_open(first, "00").await;
        assert!(matches!(twice, Err(StoreError::Stale("window"))));
        let seen = watch().await;
        assert_eq!((seen.ahead, seen.opened.expect("it is open").beacon), (None, beacon));
        assert!(!seen.hosts[0].in_window && seen.hosts[0].is_heard && seen.hosts[0].retest_up.is_none());
        let (body, claims) = (json!({}), inventory());
        let drawing = |cause| Drawing {
            host,
            challenge: ChallengeId(Uuid::now_v7()),
            kind: Kind::Devices,
            cause,
            body: &body,
            claims: &claims,
            shadow: false,
            window: Some(first),
            lease: None,
        };
        let drawn = drawing(Cause::Window);
        market.store.challenge_draw(&drawn).await.expect("draw");
        let passed = json!({ "passed": 1 });
        market.store.challenge_decide(drawn.challenge, &passed, &Decision::Stays).await.expect("decide");
        let again = market.store.challenge_draw(&drawing(Cause::Window)).await;
        assert!(matches!(again, Err(StoreError::Stale("host"))), "{again:?}");
        assert!(watch().await.hosts[0].in_window);
        market.store.host_retest_at(host, Millis(77)).await.expect("set");
        market.store.host_retest_at(host, Millis(78)).await.expect("set");
        assert_eq!(watch().await.hosts[0].retest_up, Some(Millis(77)), "a moment is drawn once");
    })
    .await;
}

#[tokio::test]
async fn a_host_that_was_not_tested_while_its_window_was_open_is_tested_on_its_own() {
    open(async |market| {
        let (tested, late) = (market.host("tested").await, market.host("late").await);
        let window = Uuid::now_v7();
        market.store.window_plan(window, Millis(5)).await.expect("plan");
        market.store.window_open(window, &"be".repeat(32)).await.expect("open");
        for host in [tested, late] {
            let seen = market.store.host_generation(host).await.expect("generation");
            market.store.suite_begin(host, seen, Cause::Window).await.expect("begin");
        }
        let due = async || {
            let due = market.store.hosts_to_test().await.expect("due");
            due.into_iter().map(|due| (due.host, due.cause, due.window.is_some())).collect::<Vec<_>>()
        };
        let in_window = Some(Cause::Window);
        assert_eq!(due().await, [(tested, in_window, true), (late, in_window, true)]);
        let (body, claims) = (json!({}), inventory());
        let drawing = crate::challenge::drawing(tested, Kind::Devices, &body, &claims);
        let drawing = Drawing { window: Some(window), cause: Cause::Window, ..drawing };
        market.store.challenge_draw(&drawing).await.expect("draw");
        let passed = json!({ "passed": {} });
        market.store.challenge_decide(drawing.challenge, &passed, &Decision::Stays).await.expect("decide");
        market.store.windows_age(Millis(31_000)).await.expect("half a minute passes");
        assert_eq!(due().await, [(tested, in_window, false), (late, Some(Cause::Random), false)]);
    })
    .await;
}

#[tokio::test]
async fn many_appeals_of_one_miner_leave_turns_to_others() {
    open(async |market| {
        let mut asked = Vec::new();
        for (n, hotkey) in [(1, "many"), (2, "few")] {
            let host = host_of(market, n, hotkey, &[]).await;
            for _ in 0..if hotkey == "many" { 5 } else { 2 } {
                let challenge = draw(market, host).await;
                market.store.challenge_decide(challenge, &failed(), &Decision::Stays).await.expect("decide");
                market.store.verdict_appeal(hotkey, challenge).await.expect("asked");
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                asked.push(challenge);
            }
        }
        let heard = market.store.challenges_appealed(4).await.expect("appeals");
        let heard: Vec<ChallengeId> = heard.into_iter().map(|open| open.challenge).collect();
        assert_eq!(heard, [asked[0], asked[1], asked[5], asked[6]], "two of each");
    })
    .await;
}

#[tokio::test]
async fn a_host_that_drains_is_tested_beside_its_leases_and_not_otherwise() {
    open(async |market| {
        let claims = with_devices(&["GPU-1"]);
        let host = market.host_with("a", crate::market::RATE, &claims).await;
        let customer = market.customer("c").await;
        let (_, lease) = market.run(customer, host, &crate::market::request()).await;
        market.store.host_depart(None, host, nave_store::Departure::Drain).await.expect("drain");
        let watched = market.store.hosts_watched(&BTreeSet::new()).await.expect("watch").hosts;
        assert!(watched.len() == 1 && watched[0].leases.len() == 1, "{watched:?}");
        let body = json!({});
        let mut drawing = crate::challenge::drawing(host, Kind::Devices, &body, &claims);
        let refused = market.store.challenge_draw(&drawing).await;
        assert!(matches!(refused, Err(StoreError::Stale("host"))), "{refused:?}");
        (drawing.cause, drawing.lease) = (Cause::LeaseStart, Some(lease));
        market.store.challenge_draw(&drawing).await.expect("draw");
        market.store.challenge_decide(drawing.challenge, &failed(), &banned()).await.expect("decide");
        assert_eq!(market.store.bans_of_host(host).await.expect("bans").len(), 1, "leaving is no way out");
        assert_eq!(state_of(market, host).await, HostState::Draining);
    })
    .await;
}

#[tokio::test]
async fn a_lease_of_gpus_is_watched_from_its_start_to_shortly_after_its_end() {
    open(async |market| {
        let claims = with_devices(&["GPU-1"]);
        let host = market.host_with("a", crate::market::RATE, &claims).await;
        let customer = market.customer("c").await;
        let job = market.submit(customer, &crate::market::request()).await;
        let mut placement = market.placement(job, host).await;
        placement.devices = vec!["GPU-1".into()];
        let lease = market.store.job_place(&placement).await.expect("place");
        let watched = async || {
            market.store.hosts_watched(&BTreeSet::new()).await.expect("watch").hosts.remove(0).leases
        };
        assert!(!watched().await[0].was_started);
        market.store.lease_started(host, lease).await.expect("started");
        market.store.leases_probe_at(&[(lease, Millis(7))]).await.expect("set");
        let seen = watched().await.remove(0);
        assert!(seen.was_started && !seen.start_probed && !seen.is_share, "{seen:?}");
        assert_eq!(seen.devices, ["GPU-1"]);
        assert_eq!(seen.probe_up, Some(Millis(7)));
        let body = json!({});
        let probe = async |cause, verdict: &Value| {
            let challenge = ChallengeId(Uuid::now_v7());
            let (kind, lease, claims) = (Kind::Devices, Some(lease), &claims);
            let body = &body;
            let drawing =
                Drawing { host, challenge, kind, cause, body, claims, shadow: false, window: None, lease };
            market.store.challenge_draw(&drawing).await?;
            market.store.challenge_decide(challenge, verdict, &Decision::Stays).await
        };
        let passed = json!({ "passed": 1 });
        probe(Cause::LeaseStart, &passed).await.expect("draw");
        assert!(probe(Cause::LeaseStart, &passed).await.is_err(), "a lease begins once");
        let seen = watched().await.remove(0);
        assert!(seen.start_probed && seen.probe_up.is_none(), "the next moment is drawn anew: {seen:?}");
        for _ in 0..2 {
            probe(Cause::Lease, &passed).await.expect("draw");
        }
        market.finish(host, lease, crate::market::EXITED).await;
        let seen = watched().await.remove(0);
        assert!(seen.state == nave_domain::lease::LeaseState::Closed && !seen.end_probed, "{seen:?}");
        probe(Cause::LeaseEnd, &passed).await.expect("draw");
        assert!(watched().await[0].end_probed);
        market.elapse(lease, 400_000).await;
        let query = "update leases set closed_at_ms = closed_at_ms - 400000";
        sqlx::query(query).execute(&market.sql).await.expect("age");
        assert_eq!(watched().await, []);
    })
    .await;
}

#[tokio::test]
async fn a_gpu_counts_as_shared_until_its_daemon_has_had_time_to_end_and_its_host_is_tested_after() {
    open(async |market| {
        let host = market.host_with("a", crate::market::RATE, &with_devices(&["GPU-1"])).await;
        let customer = market.customer("c").await;
        let job = market.submit(customer, &crate::market::request()).await;
        let mut placement = market.placement(job, host).await;
        placement.devices = vec!["GPU-1".into()];
        placement.share = Some(Fraction { milli: MilliGpu(250), vram: Bytes(Bytes::GIB) });
        placement.size.milli_gpu = MilliGpu(250);
        let lease = market.store.job_place(&placement).await.expect("place");
        let seen =
            async || market.store.hosts_watched(&BTreeSet::new()).await.expect("watch").hosts.remove(0);
        assert!(seen().await.leases[0].is_share);
        market.store.hosts_hidden(&[host]).await.expect("remembered");
        let since = seen().await.strained_up;
        assert!(since.is_some());
        market.store.hosts_hidden(&[host]).await.expect("remembered");
        assert_eq!(seen().await.strained_up, since, "since when it is so");
        market.store.lease_started(host, lease).await.expect("started");
        market.finish(host, lease, crate::market::EXITED).await;
        assert!(seen().await.leases[0].is_share, "its daemon may be there yet");
        let query = "update leases set closed_at_ms = closed_at_ms - 20000";
        sqlx::query(query).execute(&market.sql).await.expect("age");
        assert!(!seen().await.leases[0].is_share);
    })
    .await;
}

#[tokio::test]
async fn gpus_that_were_proven_are_the_same_ones_with_the_same_name_and_driver() {
    let claims = with_devices(&["GPU-1", "GPU-2"]);
    let proven = |uuid: &str| (uuid.to_owned(), nave_domain::host::ProvenDevice::of(&device(uuid), None));
    let devices = Some([proven("GPU-1"), proven("GPU-2")].into());
    let proven = Proven { devices, kernel: Some("test".into()), ..Proven::of(&claims) };
    assert!(proven.covers(&claims));
    assert!(!proven.covers(&with_devices(&["GPU-1"])), "fewer");
    assert!(!proven.covers(&with_devices(&["GPU-1", "GPU-3"])), "others");
    let mut other = claims.clone();
    other.devices[1].driver = "another".into();
    assert!(!proven.covers(&other));
    other = claims.clone();
    other.devices[1].vram.0 += 1;
    assert!(!proven.covers(&other));
    other = claims.clone();
    other.devices[1].model = "better".into();
    assert!(!proven.covers(&other));
    other = Inventory { kernel: "another".into(), ..claims };
    assert!(!proven.covers(&other));
    other.kernel = "test".into();
    assert!(
        Proven { devices: None, ..proven }.covers(&Inventory { devices: Vec::new(), ..other }),
        "untested"
    );
}
