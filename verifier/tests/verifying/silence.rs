//! Hosts that do not answer, and a control plane that cannot be reached.

use std::net::Ipv6Addr;

use nave_domain::{
    MicroUsd, Millis,
    host::{HostState, Term},
    rate::Rate,
};
use nave_store::{Departure, Joining};
use nave_verifier::{Config, Verifier};

use crate::market::{EFFORT, Host, Market, config, look, open};

const LONG: Millis = Millis(600_000);

#[tokio::test]
async fn a_host_that_never_fetches_its_challenge_is_refused() {
    let market = open().await;
    let mut verifier = market.verifier();
    let host = market.host("alpha", 1_000).await;
    look(&mut verifier).await;
    market.store.clock_advance(Millis(55_000)).await.expect("advance");
    look(&mut verifier).await;
    assert_eq!(host.last_code().await, "open");
    market.store.clock_advance(Millis(10_000)).await.expect("advance");
    look(&mut verifier).await;
    assert_eq!((host.state().await, host.last_code().await), (HostState::Refused, "too_late"));
}

#[tokio::test]
async fn a_host_that_never_answers_is_refused() {
    let market = open().await;
    let mut verifier = market.verifier();
    let host = market.host("alpha", 1_000).await;
    look(&mut verifier).await;
    let challenge = host.fetch().await.expect("a challenge").challenge;
    look(&mut verifier).await;
    assert_eq!(host.last_code().await, "open", "it has time to work");
    market.store.challenge_took(challenge, 0, LONG, LONG).await.expect("move time");
    look(&mut verifier).await;
    assert_eq!((host.state().await, host.last_code().await), (HostState::Refused, "too_late"));
}

#[tokio::test]
async fn a_host_that_commits_and_does_not_open_is_refused() {
    let market = open().await;
    let mut verifier = market.verifier();
    let mut host = market.host("alpha", 1_000).await;
    look(&mut verifier).await;
    host.work_within(EFFORT).await;
    look(&mut verifier).await;
    let challenge = host.fetch().await.expect("a challenge").challenge;
    market.store.challenge_took(challenge, 1, LONG, LONG).await.expect("move time");
    look(&mut verifier).await;
    assert_eq!((host.state().await, host.last_code().await), (HostState::Refused, "too_late"));
}

/// A new challenge is open, and nothing was counted.
async fn is_tested_anew(host: &Host) {
    assert_eq!(host.state().await, HostState::Verifying);
    assert_eq!(host.codes().await, ["void", "open"]);
    assert_eq!(host.row().await.reason, None);
}

#[tokio::test]
async fn nobody_fails_because_the_gateway_was_away() {
    let market = open().await;
    let mut verifier = market.verifier();
    let host = market.host("alpha", 1_000).await;
    look(&mut verifier).await;
    let challenge = host.fetch().await.expect("a challenge").challenge;
    market.store.challenge_took(challenge, 0, LONG, Millis(1_000)).await.expect("move time");
    look(&mut verifier).await;
    is_tested_anew(&host).await;
}

#[tokio::test]
async fn what_came_late_because_the_gateway_was_away_does_not_count_and_what_was_fast_all_the_same_does() {
    let market = open().await;
    let longer = Config { effort: Millis(2_000), ..config() };
    let mut verifier = Verifier::new(longer, market.store.clone());
    // A hundredth of a core, so that this is no work.
    let mut slow = market.host("slow", 10).await;
    let mut fast = market.host("fast", 10).await;
    look(&mut verifier).await;
    for (host, wall) in [(&mut slow, 10_000), (&mut fast, 3_000)] {
        let report = host.work().await;
        let up = Millis(wall - 2_000);
        market.store.challenge_took(report.challenge, 0, Millis(wall), up).await.expect("move time");
    }
    look(&mut verifier).await;
    for host in [&mut slow, &mut fast] {
        host.work().await;
    }
    look(&mut verifier).await;
    assert_eq!(fast.last_code().await, "passed");
    look(&mut verifier).await;
    is_tested_anew(&slow).await;
}

#[tokio::test]
async fn nobody_fails_because_the_verifier_was_away() {
    let market = open().await;
    let mut host = market.host("alpha", 1_000).await;
    look(&mut market.verifier()).await;
    host.work_within(EFFORT).await;
    // An hour without a verifier; hosts are heard all the while.
    market.store.clock_advance(Millis(3_600_000)).await.expect("advance");
    let mut verifier = market.verifier();
    look(&mut verifier).await;
    host.work().await;
    market.store.clock_advance(Millis(3_600_000)).await.expect("advance");
    look(&mut verifier).await;
    assert_eq!(host.last_code().await, "passed");
}

#[tokio::test]
async fn a_host_that_leaves_is_not_judged() {
    let market = open().await;
    let mut verifier = market.verifier();
    for (name, departure) in
        [("left", Departure::Leave), ("banned", Departure::Ban), ("drained", Departure::Drain)]
    {
        let host = market.host(name, 1_000).await;
        look(&mut verifier).await;
        let challenge = host.fetch().await.expect("a challenge").challenge;
        market.store.challenge_took(challenge, 0, LONG, LONG).await.expect("move time");
        market.store.host_depart(None, host.id, departure).await.expect("leave");
        look(&mut verifier).await;
        look(&mut verifier).await;
        assert_eq!(host.challenges().await.len(), 1, "{name} is not tested any more");
        assert_eq!(host.last_code().await, "void", "{name}");
    }
}

#[tokio::test]
async fn who_leaves_once_it_knows_its_samples_has_failed_and_its_miners_next_host_is_in_doubt() {
    let market = open().await;
    let mut verifier = market.verifier();
    let mut host = market.host_of("miner", "first", 1_000).await;
    look(&mut verifier).await;
    host.work_within(EFFORT).await;
    look(&mut verifier).await;
    assert_eq!(host.fetch().await.expect("a challenge").step(), 1, "it knows what to show");
    market.store.host_depart(None, host.id, Departure::Leave).await.expect("leave");
    let mut next = market.host_of("miner", "second", 1_000).await;
    look(&mut verifier).await;
    let ruling = host.rulings().await.remove(0).expect("a ruling");
    let told = "the host left the market when it was to show its work";
    assert_eq!(
        ruling,
        nave_verifier::decide::Ruling::Failed(nave_proof::Failure {
            code: nave_proof::Reason::Aborted,
            message: told.into(),
        })
    );
    // The second time is no accident.
    look(&mut verifier).await;
    next.work_within(EFFORT).await;
    look(&mut verifier).await;
    next.fetch().await.expect("a challenge");
    market.store.host_depart(None, next.id, Departure::Drain).await.expect("drain what is free: leave");
    look(&mut verifier).await;
    assert_eq!(market.store.bans_of_host(next.id).await.expect("bans").len(), 1);
    let third = market.host_of("miner", "third", 1_000).await;
    look(&mut verifier).await;
    assert_eq!(third.state().await, HostState::Refused);
}

async fn rejoin(market: &Market, host: &Host) {
    // What happens within one millisecond happens at the same time.
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let joining = Joining {
        ticket: "a ticket",
        hotkey: "miner of alpha",
        agent_key: "an agent",
        mesh_key: "a key",
        host: host.id,
        address: Ipv6Addr::LOCALHOST,
        name: Some("alpha"),
        rate: Rate { gpu_hour: MicroUsd::ZERO, vcpu_hour: MicroUsd::ZERO, gib_hour: MicroUsd::ZERO },
        term: Term::OnDemand,
        region: None,
        replaces: Some(host.id),
    };
    market.store.host_join(&joining).await.expect("join again");
}

#[tokio::test]
async fn what_a_machine_proved_is_not_true_of_the_one_that_takes_its_place() {
    let market = open().await;
    let mut verifier = market.verifier();
    let mut host = market.host("alpha", 1_000).await;
    host.pass_cpu(&mut verifier).await;
    look(&mut verifier).await;
    rejoin(&market, &host).await;
    host.report().await;
    assert_eq!(host.state().await, HostState::Verifying);
    look(&mut verifier).await;
    look(&mut verifier).await;
    assert_eq!(host.codes().await, ["passed", "void", "open"]);
    assert!(host.challenges().await[2].body["task"].get("cpu").is_some(), "it starts with its cores");
}

#[tokio::test]
async fn a_verdict_that_is_late_means_nothing_for_another_machine() {
    let market = open().await;
    let mut verifier = market.verifier();
    let host = market.host("alpha", 1_000).await;
    look(&mut verifier).await;
    let challenge = host.challenges().await.pop().expect("a challenge").challenge;
    // It was judged before the host joined again, and is written down afterwards.
    rejoin(&market, &host).await;
    let verdict = serde_json::json!({ "failed": { "code": "evidence_wrong", "message": "wrong" } });
    let (code, message) = ("evidence_wrong".to_owned(), "wrong".to_owned());
    let banned = nave_store::Decision::Banned { code, message, spans: vec![LONG] };
    market.store.challenge_decide(challenge, &verdict, &banned).await.expect("decide");
    assert_eq!(host.row().await.state, HostState::Enrolled);
    assert_eq!(
        market.store.bans_of_host(host.id).await.expect("bans").len(),
        1,
        "joining again is no way out"
    );
}

#[tokio::test]
async fn an_appeal_is_heard_as_of_its_verdict_and_what_nobody_reads_is_not_taken_back() {
    let market = open().await;
    let mut verifier = market.verifier();
    let host = market.host("alpha", 1_000).await;
    look(&mut verifier).await;
    let challenge = host.fetch().await.expect("a challenge").challenge;
    // Its verdict comes long before its patience ends, so nothing that is kept says that it failed.
    let verdict = serde_json::json!({ "failed": { "code": "evidence_wrong", "message": "wrong" } });
    let (code, message) = ("evidence_wrong".to_owned(), "wrong".to_owned());
    let banned = nave_store::Decision::Banned { code, message, spans: vec![LONG] };
    market.store.challenge_decide(challenge, &verdict, &banned).await.expect("decide");
    market.store.verdict_appeal("miner of alpha", challenge).await.expect("asked");
    market.store.clock_advance(LONG).await.expect("advance");
    let asked = market.store.challenges_appealed(9).await.expect("appeals").remove(0);
    let now = market.store.clock_up().await.expect("clock");
    assert!(now.0 - asked.now.up.0 > LONG.0 - 10_000, "as of its verdict");
    look(&mut verifier).await;
    let history = market.store.verdicts_of_host(host.id, None, 1).await.expect("verdicts");
    let heard = history[0].appeal.clone().expect("an appeal").1.expect("heard");
    assert!(
        heard
            .get("void")
            .is_some_and(|why| why.as_str().is_some_and(|why| why.ends_with("cannot be judged"))),
        "{heard}"
    );
    assert_eq!(history[0].ban.as_ref().expect("a ban").lifted_by, None);
    assert_eq!(host.state().await, HostState::Refused);
}
