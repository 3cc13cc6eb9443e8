//! Hosts with GPUs: whole suites, windows, tests beside jobs, bans and appeals.

use std::collections::BTreeSet;

use nave_domain::{
    LeaseId, Millis,
    host::HostState,
    lease::Outcome,
    verdict::{Cause, Kind},
};
use nave_proof::{Challenge, Failure, Message, ProofReport, Reason, Task, software::Dishonesty};
use nave_rules::digest;
use nave_store::Appeal;
use nave_verifier::{
    Config, Means, Verifier,
    decide::{Ruling, Written},
};
use serde_json::json;

use crate::market::{Host, Market, config, look, open};

const NEVER: Millis = Millis(1 << 40);
const AT_ONCE: Millis = Millis::ZERO;
/// Nothing is tested again.
pub const NO_SOONER: Means = Means { retest: NEVER, probe: NEVER, window: NEVER };

/// Cores, memory and GPUs are what counts.
pub fn with_devices(means: Means) -> Config {
    Config { enforced: BTreeSet::from([Kind::Cpu, Kind::Memory, Kind::Devices]), means, ..config() }
}

fn verifier(market: &Market, means: Means) -> Verifier {
    Verifier::new(with_devices(means), market.store.clone())
}

fn honest<'a>(devices: &[&'a str]) -> Vec<(&'a str, Vec<Dishonesty>)> {
    devices.iter().map(|uuid| (*uuid, Vec::new())).collect()
}

/// A host with one honest GPU that takes jobs.
async fn ready(market: &Market, name: &str, device: &str) -> Host {
    let mut host = market.host_with_devices(name, &honest(&[device])).await;
    host.prove_all(&mut verifier(market, NO_SOONER)).await;
    assert_eq!(host.state().await, HostState::Ready, "{:?}", host.rulings().await);
    host
}

async fn last_cause(host: &Host) -> Cause {
    host.challenges().await.pop().expect("a challenge").cause
}

async fn finish(market: &Market, host: &Host, lease: LeaseId) {
    let outcome = Some(Outcome::Exited { code: 0 });
    market.store.lease_finished(host.id, lease, outcome, None).await.expect("finished");
}

#[tokio::test]
async fn a_host_with_gpus_takes_jobs_once_it_has_proven_all_of_them() {
    let market = open().await;
    let mut host = market.host_with_devices("alpha", &honest(&["SIM-1", "SIM-2"])).await;
    host.prove_all(&mut verifier(&market, NO_SOONER)).await;
    assert_eq!(host.codes().await, ["passed", "passed", "passed"], "{:?}", host.rulings().await);
    let kinds: Vec<Kind> = host.challenges().await.iter().map(|drawn| drawn.kind).collect();
    assert_eq!(kinds, [Kind::Cpu, Kind::Memory, Kind::Devices]);
    let row = host.row().await;
    let devices = row.proven.expect("it has proven its claims").devices.expect("devices, too");
    assert_eq!(devices.keys().collect::<Vec<_>>(), ["SIM-1", "SIM-2"]);
    assert_eq!(row.state, HostState::Ready);
}

#[tokio::test]
async fn another_gpu_or_none_is_another_machine_and_proves_everything_again() {
    let market = open().await;
    let mut host = ready(&market, "alpha", "SIM-1").await;
    host.inventory.devices[0].driver = "2".into();
    market.store.inventory_settle(host.id).await.expect("time passes");
    host.report().await;
    assert_eq!(host.state().await, HostState::Verifying);
    host.prove_all(&mut verifier(&market, NO_SOONER)).await;
    let again: Vec<(Kind, Cause)> =
        host.challenges().await.iter().skip(3).map(|drawn| (drawn.kind, drawn.cause)).collect();
    let expected = [Kind::Cpu, Kind::Memory, Kind::Devices].map(|kind| (kind, Cause::Identity));
    assert_eq!(again, expected);
    host.inventory.devices.clear();
    market.store.inventory_settle(host.id).await.expect("time passes");
    host.report().await;
    assert_eq!(host.state().await, HostState::Verifying);
}

#[tokio::test]
async fn hosts_that_proved_less_prove_it_all_once_more_is_wanted() {
    let market = open().await;
    let mut host = market.host_with_devices("alpha", &honest(&["SIM-1"])).await;
    host.prove_all(&mut market.verifier()).await;
    assert_eq!((host.codes().await.len(), host.row().await.proven.expect("proven").devices), (2, None));
    let mut strict = verifier(&market, NO_SOONER);
    look(&mut strict).await;
    assert_eq!((host.state().await, last_cause(&host).await), (HostState::Verifying, Cause::Operator));
    host.prove_all(&mut strict).await;
    assert!(host.row().await.proven.expect("proven").devices.is_some());
}

#[tokio::test]
async fn two_hosts_do_not_show_the_same_gpu_even_one_after_the_other() {
    let market = open().await;
    let first = ready(&market, "first", "SIM-1").await;
    let mut second = market.host_with_devices("second", &honest(&["SIM-1"])).await;
    let mut verifier = verifier(&market, NO_SOONER);
    second.prove_all(&mut verifier).await;
    assert_eq!(second.state().await, HostState::Refused);
    let (code, message) = second.reason().await;
    assert_eq!(code, "device_elsewhere");
    assert!(message.starts_with(&format!("SIM-1 has belonged to {} since ", first.id)), "{message}");
    let written = second.challenges().await.pop().and_then(|drawn| drawn.verdict).expect("a verdict");
    assert_eq!((&written["rules"], &written["holders"][0]["host"]), (&json!(digest()), &json!(first.id)));
    look(&mut verifier).await;
    assert_eq!(first.state().await, HostState::Ready, "whose it is keeps it");
}

#[tokio::test]
async fn a_gpu_that_leaves_work_out_is_a_ban_that_no_appeal_lifts() {
    let market = open().await;
    let mut verifier = verifier(&market, NO_SOONER);
    let lazy = vec![("SIM-1", vec![Dishonesty::Skip { per_mille: 500 }])];
    let mut host = market.host_with_devices("alpha", &lazy).await;
    host.prove_all(&mut verifier).await;
    assert_eq!((host.state().await, host.last_code().await), (HostState::Refused, "evidence_wrong"));
    let bans = market.store.bans_of_host(host.id).await.expect("bans");
    assert!(bans.len() == 1 && bans[0].left.is_some_and(|left| left.0 > 3_500_000), "{bans:?}");
    market.store.clock_advance(Millis(60_000)).await.expect("advance");
    host.report().await;
    look(&mut verifier).await;
    assert_eq!(host.state().await, HostState::Refused);
    let challenge = host.challenges().await.pop().expect("a challenge").challenge;
    let asked = market.store.verdict_appeal("miner of alpha", challenge).await.expect("asked");
    assert_eq!(asked, Appeal::Taken);
    look(&mut verifier).await;
    let history = market.store.verdicts_of_host(host.id, None, 1).await.expect("verdicts");
    let again = history[0].appeal.clone().expect("an appeal").1.expect("judged");
    let again: Written = serde_json::from_value(again).expect("a verdict");
    assert_eq!(again.ruling.code(), "evidence_wrong");
    assert!(!history[0].ban.as_ref().expect("a ban").is_over);
    let mut honest = market.host_with_devices("beta", &honest(&["SIM-2"])).await;
    honest.prove_all(&mut verifier).await;
    assert_eq!(
        honest.state().await,
        HostState::Ready,
        "nobody else is troubled: {:?}",
        honest.rulings().await
    );
}

#[tokio::test]
async fn a_verdict_that_does_not_hold_is_taken_back_with_its_ban() {
    let market = open().await;
    let mut verifier = verifier(&market, NO_SOONER);
    let mut host = market.host_with_devices("alpha", &honest(&["SIM-1"])).await;
    // Everything but the judgement of its GPU, which an earlier judge gets wrong.
    host.prove_all(&mut market.verifier()).await;
    look(&mut verifier).await;
    let challenge = loop {
        look(&mut verifier).await;
        let Some(challenge) = host.fetch().await else { continue };
        let is_last = challenge.step() == challenge.task.commitments();
        host.answer(&challenge).await;
        if is_last && matches!(challenge.task, Task::Devices(_)) {
            break challenge.challenge;
        }
    };
    let wrong =
        Ruling::Failed(Failure { code: Reason::EvidenceWrong, message: "a slip of the judge".into() });
    let (code, message) = ("evidence_wrong".to_owned(), "a slip of the judge".to_owned());
    let decision = nave_store::Decision::Banned { code, message, spans: vec![NEVER] };
    market.store.challenge_decide(challenge, &json!(wrong), &decision).await.expect("decide");
    assert_eq!(host.state().await, HostState::Refused);
    market.store.verdict_appeal("miner of alpha", challenge).await.expect("asked");
    look(&mut verifier).await;
    host.report().await;
    host.prove_all(&mut verifier).await;
    assert_eq!(host.state().await, HostState::Ready, "{:?}", host.rulings().await);
    assert_eq!(last_cause(&host).await, Cause::Appeal);
    assert_eq!(market.store.bans_of_host(host.id).await.expect("bans"), []);
}

#[tokio::test]
async fn a_free_host_is_tested_again_at_times_that_nobody_can_foresee() {
    let market = open().await;
    let mut host = ready(&market, "alpha", "SIM-1").await;
    let mut verifier = verifier(&market, Means { retest: AT_ONCE, ..NO_SOONER });
    for _ in 0..2 {
        look(&mut verifier).await;
    }
    assert_eq!((host.state().await, last_cause(&host).await), (HostState::Verifying, Cause::Random));
    // Whoever is tested all the time is ready between two tests only.
    host.prove_all(&mut self::verifier(&market, NO_SOONER)).await;
    let kinds: Vec<Kind> = host.challenges().await.iter().skip(3).map(|drawn| drawn.kind).collect();
    assert_eq!(kinds, [Kind::Cpu, Kind::Memory, Kind::Devices]);
}

#[tokio::test]
async fn in_a_window_all_gpus_are_tested_at_once_with_what_nobody_knew_before() {
    let market = open().await;
    let (mut free, mut busy) = (ready(&market, "free", "SIM-1").await, ready(&market, "busy", "SIM-2").await);
    let bare = market.host("bare", 1_000).await;
    busy.lease("SIM-2").await;
    for host in [&mut free, &mut busy] {
        host.report().await;
    }
    // The test at the start of its lease is over by then.
    busy.prove_all(&mut self::verifier(&market, NO_SOONER)).await;
    market.store.window_come().await.expect("its time comes");
    let mut verifier = verifier(&market, NO_SOONER);
    for _ in 0..3 {
        look(&mut verifier).await;
    }
    let drawn = async |host: &Host| {
        let drawn = host.challenges().await.pop().expect("a challenge");
        assert_eq!((drawn.kind, drawn.cause), (Kind::Devices, Cause::Window));
        serde_json::from_value::<Challenge>(drawn.body).expect("a challenge")
    };
    let (first, second) = (drawn(&free).await, drawn(&busy).await);
    assert!(first.beacon.is_some() && first.beacon == second.beacon && first.nonce != second.nonce);
    assert_eq!(
        (first.task.commitments() > 1, second.task.commitments()),
        (true, 1),
        "a job goes on beside a small one"
    );
    assert!(bare.challenges().await.iter().all(|drawn| drawn.kind != Kind::Devices));
    assert_eq!((free.state().await, busy.state().await), (HostState::Verifying, HostState::Ready));
    for host in [&mut free, &mut busy] {
        host.prove_all(&mut verifier).await;
        assert_eq!((host.state().await, host.last_code().await), (HostState::Ready, "passed"));
    }
    assert_eq!(free.challenges().await.len(), 4, "the rest of what it proved stands");
}

#[tokio::test]
async fn who_waits_in_a_window_shows_nothing() {
    let market = open().await;
    let mut host = ready(&market, "alpha", "SIM-1").await;
    let mut verifier = verifier(&market, NO_SOONER);
    for bans in [0, 1] {
        market.store.window_come().await.expect("its time comes");
        for _ in 0..3 {
            look(&mut verifier).await;
        }
        assert_eq!(last_cause(&host).await, Cause::Window);
        market.store.clock_advance(Millis(6_000)).await.expect("advance");
        look(&mut verifier).await;
        assert_eq!((host.state().await, host.last_code().await), (HostState::Refused, "too_late"));
        assert_eq!(market.store.bans_of_host(host.id).await.expect("bans").len(), bans);
        if bans == 0 {
            // Everything is tested then, and that it passes makes nobody forget the window.
            market.store.clock_advance(Millis(60_000)).await.expect("advance");
            host.report().await;
            host.prove_all(&mut verifier).await;
            assert_eq!((host.state().await, last_cause(&host).await), (HostState::Ready, Cause::Enrolment));
        }
    }
}

#[tokio::test]
async fn a_window_that_no_verifier_was_there_for_is_soon_followed_by_another_and_harms_nobody() {
    let market = open().await;
    let mut drawn = ready(&market, "drawn", "SIM-1").await;
    let missed = ready(&market, "missed", "SIM-2").await;
    let watch = async || market.store.hosts_watched(&BTreeSet::new()).await.expect("watch");
    let mut first = verifier(&market, NO_SOONER);
    look(&mut first).await;
    market.store.window_come().await.expect("its time comes");
    look(&mut first).await;
    drop(first);
    // One was to be tested, and no more, when the verifier died.
    let seen = market.store.host_generation(drawn.id).await.expect("generation");
    market.store.suite_begin(drawn.id, seen, Cause::Window).await.expect("begin");
    market.store.windows_age(Millis(31_000)).await.expect("half a minute passes");
    assert!(watch().await.missed.is_some());
    let mut second = verifier(&market, NO_SOONER);
    drawn.prove_all(&mut second).await;
    assert_eq!((drawn.state().await, drawn.last_code().await), (HostState::Ready, "passed"));
    assert_eq!((missed.state().await, missed.challenges().await.len()), (HostState::Ready, 3));
    let (_, opens) = watch().await.ahead.expect("another window");
    let now = market.store.clock_now().await.expect("clock").up;
    assert!(opens.0 - now.0 < 60_000 * 45, "soon: {}", opens.0 - now.0);
    assert_eq!(watch().await.missed, None, "one takes its place");
    for host in [&drawn, &missed] {
        assert_eq!(market.store.bans_of_host(host.id).await.expect("bans"), []);
    }
    market.store.window_come().await.expect("its time comes");
    for _ in 0..3 {
        look(&mut second).await;
    }
    assert_eq!(last_cause(&missed).await, Cause::Window);
    market.store.windows_age(Millis(31_000)).await.expect("half a minute passes");
    assert_eq!(watch().await.missed, None, "everyone was drawn into it");
}

/// What a host with a job answers to the small test of its GPU.
async fn probed(host: &Host, verifier: &mut Verifier, code: Reason) {
    look(verifier).await;
    let challenge = host.fetch().await.expect("a challenge");
    let failure = Failure { code, message: "no".into() };
    let report = ProofReport { challenge: challenge.challenge, step: 0, message: Message::Failed(failure) };
    assert!(host.send(&report).await);
    look(verifier).await;
}

#[tokio::test]
async fn leased_gpus_are_tested_from_the_start_to_the_end_of_the_lease() {
    let market = open().await;
    let mut host = ready(&market, "alpha", "SIM-1").await;
    let lease = host.lease("SIM-1").await;
    let mut verifier = verifier(&market, Means { probe: AT_ONCE, ..NO_SOONER });
    let mut causes = Vec::new();
    for n in 0..5 {
        host.report().await;
        look(&mut verifier).await;
        if let Some(challenge) = host.fetch().await {
            causes.extend(challenge.reveals.is_empty().then_some(last_cause(&host).await));
            host.answer(&challenge).await;
        }
        if n == 3 {
            finish(&market, &host, lease).await;
        }
    }
    for _ in 0..4 {
        host.report().await;
        look(&mut verifier).await;
        for challenge in host.fetch_all().await {
            host.answer(&challenge).await;
        }
    }
    assert_eq!(causes[..2], [Cause::LeaseStart, Cause::Lease]);
    assert_eq!(last_cause(&host).await, Cause::LeaseEnd);
    assert!(host.codes().await.iter().all(|code| *code == "passed"), "{:?}", host.rulings().await);
    assert_eq!(host.state().await, HostState::Ready);
}

#[tokio::test]
async fn a_gpu_that_is_shared_is_left_out_of_a_test_that_the_other_one_passes() {
    let market = open().await;
    let mut host = market.host_with_devices("alpha", &honest(&["SIM-1", "SIM-2"])).await;
    host.prove_all(&mut verifier(&market, NO_SOONER)).await;
    host.share("SIM-1").await;
    host.lease("SIM-2").await;
    host.report().await;
    let mut verifier = verifier(&market, NO_SOONER);
    look(&mut verifier).await;
    let challenge = host.fetch().await.expect("a test beside the lease that began");
    let Task::Devices(task) = &challenge.task else { panic!("{:?}", challenge.task) };
    assert_eq!(task.devices.iter().map(|device| device.uuid.as_str()).collect::<Vec<_>>(), ["SIM-2"]);
    for _ in 0..4 {
        for challenge in host.fetch_all().await {
            host.answer(&challenge).await;
        }
        look(&mut verifier).await;
    }
    assert_eq!((last_cause(&host).await, host.last_code().await), (Cause::LeaseStart, "passed"));
    assert_eq!(host.state().await, HostState::Ready);
}

#[tokio::test]
async fn what_fails_beside_a_job_is_on_record_and_the_job_goes_on() {
    let market = open().await;
    for (code, told) in [
        (Reason::DeviceElsewhere, Reason::DeviceElsewhere),
        (Reason::DeviceBusy, Reason::DeviceBusy),
        (Reason::DeviceMismatch, Reason::Aborted),
        (Reason::EvidenceWrong, Reason::Aborted),
    ] {
        let uuid = format!("SIM-{}", code.as_str());
        let mut host = ready(&market, code.as_str(), &uuid).await;
        let lease = host.lease(&uuid).await;
        host.report().await;
        let mut verifier = verifier(&market, NO_SOONER);
        probed(&host, &mut verifier, code).await;
        let is_out = told == Reason::DeviceElsewhere;
        let state = if is_out { HostState::Verifying } else { HostState::Ready };
        assert_eq!((host.state().await, host.last_code().await), (state, told.as_str()), "{code:?}");
        assert_eq!(market.store.bans_of_host(host.id).await.expect("bans"), [], "it only says so");
        assert!(market.store.host_spec(host.id).await.expect("spec").orders[&lease].stop.is_none());
        finish(&market, &host, lease).await;
    }
}

#[tokio::test]
async fn a_host_whose_customer_keeps_its_gpu_busy_takes_jobs_until_the_third_time_in_a_row() {
    let market = open().await;
    let mut host = ready(&market, "alpha", "SIM-1").await;
    let lease = host.lease("SIM-1").await;
    let mut verifier = verifier(&market, Means { probe: AT_ONCE, ..NO_SOONER });
    let mut fail = async |host: &mut Host, state| {
        host.report().await;
        while host.fetch().await.is_none() {
            look(&mut verifier).await;
        }
        probed(host, &mut verifier, Reason::DeviceBusy).await;
        assert_eq!((host.state().await, host.last_code().await), (state, "device_busy"));
    };
    fail(&mut host, HostState::Ready).await;
    fail(&mut host, HostState::Ready).await;
    // Once it shows its GPU, what was before is forgotten.
    host.prove_all(&mut self::verifier(&market, Means { probe: AT_ONCE, ..NO_SOONER })).await;
    assert_eq!(host.last_code().await, "passed");
    fail(&mut host, HostState::Ready).await;
    fail(&mut host, HostState::Ready).await;
    fail(&mut host, HostState::Verifying).await;
    finish(&market, &host, lease).await;
    host.prove_all(&mut self::verifier(&market, NO_SOONER)).await;
    assert_eq!(host.state().await, HostState::Ready, "{:?}", host.rulings().await);
    assert!(
        !market.store.challenge_get(host.challenges().await[0].challenge).await.expect("one").was_in_doubt
    );
}

#[tokio::test]
async fn who_could_not_show_its_gpu_beside_a_job_does_so_as_soon_as_that_has_ended() {
    let market = open().await;
    let mut host = ready(&market, "alpha", "SIM-1").await;
    let lease = host.lease("SIM-1").await;
    host.report().await;
    let mut verifier = verifier(&market, NO_SOONER);
    probed(&host, &mut verifier, Reason::DeviceBusy).await;
    assert_eq!(host.state().await, HostState::Ready);
    finish(&market, &host, lease).await;
    assert_eq!(host.state().await, HostState::Verifying, "before any other job could be placed");
    host.prove_all(&mut verifier).await;
    let causes: Vec<Cause> = host.challenges().await.iter().rev().take(3).map(|drawn| drawn.cause).collect();
    assert_eq!(causes, [Cause::Random; 3]);
}

#[tokio::test]
async fn a_host_that_drains_is_tested_beside_the_jobs_it_still_has() {
    let market = open().await;
    let mut host = ready(&market, "alpha", "SIM-1").await;
    let lease = host.lease("SIM-1").await;
    market.store.host_depart(None, host.id, nave_store::Departure::Drain).await.expect("drain");
    let mut verifier = verifier(&market, Means { probe: AT_ONCE, ..NO_SOONER });
    let mut causes = Vec::new();
    for _ in 0..6 {
        host.report().await;
        look(&mut verifier).await;
        if let Some(challenge) = host.fetch().await {
            causes.extend(challenge.reveals.is_empty().then_some(last_cause(&host).await));
            host.answer(&challenge).await;
        }
    }
    assert_eq!(causes[..2], [Cause::LeaseStart, Cause::Lease]);
    assert_eq!(host.state().await, HostState::Draining);
    finish(&market, &host, lease).await;
    let spec = market.store.host_spec(host.id).await.expect("a spec");
    assert_eq!(spec.state, HostState::Gone, "with its last job");
}
