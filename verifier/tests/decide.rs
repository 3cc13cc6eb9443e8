//! What is decided about hosts and challenges: rows and the time in, decisions out.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    Bytes, ChallengeId, HostId, MilliCpu, MilliGpu, Millis, Timestamp,
    fraction::{Division, Slice},
    host::{Device, HostState, Inventory, Proven as Claims, ProvenDevice, Runtime},
    verdict::{Cause, Kind},
};
use nave_proof::{
    Answer, Challenge, DeviceProven, Digest, EXPLANATION_MAX, Failure, Message, Nonce, Opening, Prover,
    Reason, Task, VERSION,
};
use nave_rules::{Gravity, gravity, may_be_a_jobs_doing};
use nave_store::{Decided, Decision, DueHost, Holder, Moment, OpenChallenge, StepRow};
use nave_verifier::{
    decide::{Next, Ruling, Standing, decide, waits_until},
    draw::{Due, Rules, due},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

const SILENT: Millis = Millis(60_000);
const EFFORT: Millis = Millis(2);

fn inventory(cores: i64) -> Inventory {
    Inventory {
        milli_cpu: MilliCpu(cores * 1_000),
        memory: Bytes(Bytes::MIB),
        disk: Bytes(Bytes::GIB),
        devices: Vec::new(),
        cpu_model: "a processor".into(),
        os: "test".into(),
        kernel: "test".into(),
        runtime: Runtime::Simulated,
        egress: Vec::new(),
        agent: "test".into(),
    }
}

fn moment(ms: i64) -> Moment {
    Moment { at: Timestamp(1_000_000 + ms), up: Millis(5_000 + ms) }
}

fn challenge(task: Task) -> Challenge {
    Challenge::new(ChallengeId(Uuid::from_u128(1)), HostId(Uuid::from_u128(2)), task, Nonce([3; 32]))
}

fn cpu() -> Task {
    Task::cpu(MilliCpu(1_000), EFFORT)
}

/// A challenge that was just drawn.
fn open(task: Task) -> OpenChallenge {
    let challenge = challenge(task);
    OpenChallenge {
        challenge: challenge.challenge,
        host: challenge.host,
        hotkey: "a miner".into(),
        host_state: HostState::Verifying,
        body: serde_json::to_value(&challenge).expect("JSON"),
        kind: Kind::Cpu,
        cause: Cause::Enrolment,
        shadow: false,
        lease: None,
        claims: inventory(1),
        drawn_at: moment(0).at,
        joined_at: moment(-1_000).at,
        steps: vec![StepRow { reveal: None, drawn_up: moment(0).up, sent: None, answer: None }],
        refusals: 0,
        was_in_doubt: false,
        beside_memory: false,
        now: moment(0),
    }
}

fn answered(mut open: OpenChallenge, answer: Value, took: i64) -> OpenChallenge {
    let step = open.steps.last_mut().expect("a step");
    (step.sent, step.answer) = (Some(open.now), Some((answer, Moment { at: open.now.at, up: open.now.up })));
    let (at, up) = (Timestamp(open.now.at.0 + took), Millis(open.now.up.0 + took));
    step.answer.as_mut().expect("an answer").1 = Moment { at, up };
    open.now = Moment { at, up };
    open
}

fn revealed(mut open: OpenChallenge, nonce: u8) -> OpenChallenge {
    let reveal = Some(Nonce([nonce; 32]).to_string());
    open.steps.push(StepRow { reveal, drawn_up: open.now.up, sent: None, answer: None });
    open
}

fn commitment() -> Value {
    json!(Message::Commitment(Digest([7; 32])))
}

/// The control clock stood still for some of the last step.
fn cut_off(mut open: OpenChallenge, span: i64) -> OpenChallenge {
    open.now.up.0 -= span;
    if let Some((_, received)) = open.steps.last_mut().and_then(|step| step.answer.as_mut()) {
        received.up.0 -= span;
    }
    open
}

fn reason(next: &Next) -> Option<Reason> {
    match next {
        Next::Rule(Ruling::Failed(failure)) => Some(failure.code),
        Next::Wait | Next::Reveal(_) | Next::Judge(_) | Next::Rule(Ruling::Passed(_) | Ruling::Void(_)) => {
            None
        }
    }
}

fn is_void(next: &Next) -> bool {
    matches!(next, Next::Rule(Ruling::Void(_)))
}

fn rules(enforced: &[Kind]) -> Rules {
    let shadow = BTreeSet::from([Kind::Storage]);
    Rules { enforced: enforced.iter().copied().collect(), shadow, effort: EFFORT }
}

/// A host in its suite that has shown this so far, claiming so many cores then.
fn suite(last: &[(Task, Ruling, i64)]) -> DueHost {
    let decided = |(task, ruling, cores): &(Task, Ruling, i64)| {
        let decided = Decided {
            body: json!(challenge(task.clone())),
            claims: inventory(*cores),
            verdict: json!(ruling),
        };
        (task.kind(), decided)
    };
    DueHost {
        host: HostId(Uuid::from_u128(2)),
        generation: 1,
        claims: inventory(2),
        proven: None,
        cause: None,
        window: None,
        open: BTreeSet::new(),
        last: last.iter().map(decided).collect(),
    }
}

/// What is drawn next where only cores and memory count.
fn next(host: &DueHost) -> Due {
    let shadow = BTreeSet::new();
    due(host, &Rules { shadow, ..rules(&[Kind::Cpu, Kind::Memory]) })
}

fn draws(kinds: &[Kind]) -> Due {
    Due::Draw(kinds.to_vec())
}

fn passed() -> Ruling {
    let proven =
        nave_proof::Proven::Cpu { milli_cpu: MilliCpu(2_000), steps_per_s: 1, elapsed_ms: Millis(1) };
    Ruling::Passed(proven)
}

fn failed() -> Ruling {
    Ruling::Failed(Failure { code: Reason::Aborted, message: "no".into() })
}

#[test]
fn computing_power_is_tested_first_and_memory_after_it_was_proven() {
    let (cpu, memory) =
        (Task::cpu(MilliCpu(2_000), EFFORT), Task::memory(Bytes(Bytes::MIB), MilliCpu(2_000)));
    let void = || Ruling::Void("the hub was away".into());
    assert_eq!(next(&suite(&[])), draws(&[Kind::Cpu]));
    for again in [failed(), void()] {
        assert_eq!(next(&suite(&[(cpu.clone(), again, 2)])), draws(&[Kind::Cpu]));
    }
    let first = (cpu, passed(), 2);
    assert_eq!(next(&suite(std::slice::from_ref(&first))), draws(&[Kind::Memory]));
    let last = [first.clone(), (memory.clone(), void(), 2)];
    assert_eq!(next(&suite(&last)), draws(&[Kind::Memory]), "what was proven before is");
    let done = Due::Done(Box::new(Claims::of(&inventory(2))));
    assert_eq!(next(&suite(&[first, (memory, passed(), 2)])), done);
}

#[test]
fn claims_that_changed_are_tested_from_the_start() {
    for cores in [1, 3] {
        let last = (Task::cpu(MilliCpu(cores * 1_000), EFFORT), passed(), cores);
        assert_eq!(next(&suite(&[last])), draws(&[Kind::Cpu]), "{cores}");
    }
    let mut other = suite(&[(Task::cpu(MilliCpu(2_000), EFFORT), passed(), 2)]);
    other.claims.os = "another".into();
    assert_eq!(next(&other), draws(&[Kind::Memory]), "what is not proven does not matter");
    other.claims.cpu_model = "another".into();
    assert_eq!(next(&other), draws(&[Kind::Cpu]), "another processor is another machine");
}

fn gpu(uuid: &str) -> Device {
    let (model, driver) = ("a GPU".to_owned(), "1".to_owned());
    let (uuid, vram) = (uuid.into(), Bytes(16 * Bytes::GIB));
    Device {
        uuid,
        model,
        vram,
        driver,
        simulated: false,
        division: nave_domain::fraction::Division::default(),
    }
}

/// A verdict on a kind whose content does not matter.
fn with(mut host: DueHost, kind: Kind, ruling: &Ruling) -> DueHost {
    let decided =
        Decided { body: json!(challenge(cpu())), claims: host.claims.clone(), verdict: json!(ruling) };
    host.last.insert(kind, decided);
    host
}

#[test]
fn a_transfer_keeps_no_suite_waiting() {
    let mut host = suite(&[]);
    host.open.insert(Kind::Transfer);
    assert_eq!(next(&host), draws(&[Kind::Cpu]));
}

#[test]
fn what_does_not_disturb_each_other_is_tested_at_the_same_time_and_the_rest_alone() {
    let all = rules(&[Kind::Cpu, Kind::Memory, Kind::Devices, Kind::Software]);
    let mut host = suite(&[]);
    host.claims.devices = vec![gpu("GPU-1")];
    assert_eq!(due(&host, &all), draws(&[Kind::Cpu]));
    host.open.insert(Kind::Cpu);
    assert_eq!(due(&host, &all), Due::Wait);
    host.open = BTreeSet::from([Kind::Devices]);
    assert_eq!(due(&host, &all), Due::Wait, "cores are tested while nothing else is");
    host.open.clear();
    host = with(with(host, Kind::Cpu, &passed()), Kind::Memory, &passed());
    let together = [Kind::Devices, Kind::Storage, Kind::Software];
    assert_eq!(due(&host, &all), draws(&together));
    host.open.insert(Kind::Storage);
    assert_eq!(due(&host, &all), draws(&[Kind::Devices, Kind::Software]));
    host.open.extend(together);
    assert_eq!(due(&host, &all), Due::Wait);
    host.open.clear();
    host = with(with(host, Kind::Devices, &passed()), Kind::Software, &passed());
    assert_eq!(due(&host, &all), draws(&[Kind::Storage]), "what refuses nobody is tested, too");
    host = with(host, Kind::Storage, &failed());
    let Due::Done(proven) = due(&host, &all) else { panic!("it failed what means nothing") };
    assert_eq!((proven.disk, proven.kernel.as_deref()), (None, Some("test")));
    assert!(
        proven.devices.is_some_and(|devices| devices["GPU-1"].class.is_none()),
        "nobody knows such a GPU"
    );
}

/// A host of eight GPUs that has so much of all else.
fn large(milli_cpu: i64, gib: i64) -> DueHost {
    let mut host = suite(&[]);
    host.claims.devices = (0..8).map(|slot| gpu(&format!("GPU-{slot}"))).collect();
    (host.claims.milli_cpu, host.claims.memory) = (MilliCpu(milli_cpu), Bytes(gib * Bytes::GIB));
    with(host, Kind::Cpu, &passed())
}

#[test]
fn gpus_are_filled_while_memory_is_tested_where_neither_keeps_the_other_from_anything() {
    let all = rules(&[Kind::Cpu, Kind::Memory, Kind::Devices, Kind::Storage, Kind::Software]);
    let beside = [Kind::Memory, Kind::Devices, Kind::Storage, Kind::Software];
    let host = large(192_000, 2_048);
    assert_eq!(due(&host, &all), draws(&beside));
    let alone = draws(&[Kind::Memory]);
    assert_eq!(due(&large(31_000, 2_048), &all), alone, "those who wait for GPUs would take its cores");
    assert_eq!(due(&large(192_000, 256), &all), alone, "there is no memory beside what is filled");
    let mut simulated = host.clone();
    simulated.claims.devices[0].simulated = true;
    let simulated = with(simulated, Kind::Cpu, &passed());
    assert_eq!(due(&simulated, &all), alone, "it computes on the very cores");
    let window = DueHost { cause: Some(Cause::Window), ..host };
    assert_eq!(due(&window, &all), alone, "in a window all begin at the same moment");
}

#[test]
fn full_gpus_go_on_once_nothing_else_needs_the_hosts_cores_and_memory() {
    let filled = answered(open(cpu()), commitment(), 10);
    assert_eq!(decide(&filled, SILENT), Next::Reveal(1));
    let beside = OpenChallenge { beside_memory: true, ..filled };
    assert_eq!(decide(&beside, SILENT), Next::Wait);
    assert!(waits_until(&beside, SILENT).is_some_and(|until| until > beside.now.up));
    let failed = Message::Failed(Failure { code: Reason::Aborted, message: "no memory".into() });
    let failed = OpenChallenge { beside_memory: true, ..answered(open(cpu()), json!(failed), 10) };
    assert!(matches!(decide(&failed, SILENT), Next::Rule(_)), "what has failed needs no waiting for");
}

#[test]
fn a_host_without_gpus_proves_that_it_has_none() {
    let all = rules(&[Kind::Cpu, Kind::Devices]);
    let host = with(with(suite(&[]), Kind::Cpu, &passed()), Kind::Storage, &passed());
    let Due::Done(proven) = due(&host, &all) else { panic!("there is nothing to test") };
    assert!(proven.covers(&host.claims));
    let mut grown = host.claims;
    grown.devices.push(gpu("GPU-1"));
    assert!(!proven.covers(&grown), "one that appears is another machine");
}

#[test]
fn in_a_window_only_gpus_are_tested_if_the_rest_is_proven() {
    let all = rules(&[Kind::Cpu, Kind::Memory, Kind::Devices]);
    let mut host = suite(&[]);
    host.claims.devices = vec![gpu("GPU-1")];
    host.cause = Some(Cause::Window);
    let proven = ProvenDevice::of(&gpu("GPU-1"), None);
    let devices = Some(BTreeMap::from([("GPU-1".to_owned(), proven)]));
    host.proven = Some(Claims { devices, kernel: Some("test".into()), ..Claims::of(&host.claims) });
    assert_eq!(due(&host, &all), draws(&[Kind::Devices]));
    let passed = with(host.clone(), Kind::Devices, &passed());
    assert_eq!(due(&passed, &all), Due::Done(Box::new(host.proven.clone().expect("proven"))));
    host.claims.milli_cpu = MilliCpu(3_000);
    assert_eq!(due(&host, &all), draws(&[Kind::Cpu]));
}

#[test]
fn a_host_has_time_to_fetch_and_to_answer_each_step() {
    let mut fresh = open(cpu());
    fresh.now = moment(SILENT.0);
    assert_eq!(decide(&fresh, SILENT), Next::Wait);
    fresh.now = moment(SILENT.0 + 1);
    assert_eq!(reason(&decide(&fresh, SILENT)), Some(Reason::TooLate));

    let patience = cpu().patience(0).0;
    fresh.steps[0].sent = Some(moment(0));
    fresh.now = moment(patience);
    assert_eq!(decide(&fresh, SILENT), Next::Wait);
    fresh.now = moment(patience + 1);
    assert_eq!(reason(&decide(&fresh, SILENT)), Some(Reason::TooLate));
    let late = answered(open(cpu()), commitment(), patience + 1);
    assert_eq!(reason(&decide(&late, SILENT)), Some(Reason::TooLate));
}

#[test]
fn a_commitment_gets_one_nonce_and_time_runs_again_when_that_is_sent() {
    let committed = answered(open(cpu()), commitment(), 5);
    assert_eq!(decide(&committed, SILENT), Next::Reveal(1));
    let mut revealed = revealed(committed, 9);
    assert_eq!(decide(&revealed, SILENT), Next::Wait);
    // However long the verifier was away: the host is asked only now.
    revealed.now = moment(SILENT.0);
    assert_eq!(decide(&revealed, SILENT), Next::Wait);
    revealed.now = moment(SILENT.0 + 6);
    assert_eq!(reason(&decide(&revealed, SILENT)), Some(Reason::TooLate), "silent after its commitment");
}

#[test]
fn time_in_which_hosts_could_not_reach_the_control_plane_is_not_counted_against_them() {
    let mut unsent = open(cpu());
    unsent.now = Moment { at: moment(10 * SILENT.0).at, up: moment(1_000).up };
    assert_eq!(decide(&unsent, SILENT), Next::Wait, "nobody can fetch a challenge then");

    let patience = cpu().patience(0).0;
    let mut unanswered = open(cpu());
    unanswered.steps[0].sent = Some(moment(0));
    unanswered.now = moment(patience + 2_000);
    assert!(is_void(&decide(&cut_off(unanswered.clone(), 1_501), SILENT)));
    assert_eq!(reason(&decide(&cut_off(unanswered, 1_500), SILENT)), Some(Reason::TooLate));

    let late = answered(open(cpu()), commitment(), patience + 2_000);
    assert!(is_void(&decide(&cut_off(late, 2_000), SILENT)));
    let in_time = answered(open(cpu()), commitment(), 2_000);
    assert_eq!(decide(&cut_off(in_time, 2_000), SILENT), Next::Reveal(1), "it was fast all the same");
    let gave_up = answered(open(cpu()), json!(Message::Failed(failure("no"))), 2_000);
    assert_eq!(reason(&decide(&cut_off(gave_up, 2_000), SILENT)), Some(Reason::Aborted));
}

#[test]
fn a_challenge_is_left_alone_until_its_host_has_had_its_time() {
    let waits = |open: &OpenChallenge| waits_until(open, SILENT).map(|up| up.0 - moment(0).up.0);
    let mut fresh = open(cpu());
    assert_eq!(waits(&fresh), Some(SILENT.0 + 1), "it may be silent for so long");
    fresh.now = moment(1_000);
    assert_eq!(waits(&fresh), Some(SILENT.0 + 1), "since it was drawn");
    fresh.steps[0].sent = Some(moment(400));
    let patience = cpu().patience(0).0;
    assert_eq!(waits(&fresh), Some(400 + patience + 1));
    fresh.now = moment(400 + patience + 1);
    assert_eq!(reason(&decide(&fresh, SILENT)), Some(Reason::TooLate), "and then its time is over");
    let committed = answered(open(cpu()), commitment(), 5);
    assert_eq!(waits(&committed), Some(5 + SILENT.0 + 1), "from when it is told the next nonce");
    let newer = OpenChallenge { body: json!({ "version": VERSION + 1 }), ..open(cpu()) };
    assert_eq!(waits(&newer), None);
}

#[test]
fn a_clock_that_was_set_back_proves_nothing() {
    let mut answered = answered(open(cpu()), commitment(), 5_000);
    let received = &mut answered.steps[0].answer.as_mut().expect("answered").1;
    received.at = Timestamp(received.at.0 - 5_000);
    assert!(is_void(&decide(&answered, SILENT)));
}

#[test]
fn a_host_that_leaves_or_joined_again_is_not_judged() {
    for state in HostState::ALL {
        let mut answered = answered(open(cpu()), json!("nonsense"), 5);
        answered.host_state = state;
        let next = decide(&answered, SILENT);
        let is_tested = match state {
            HostState::Verifying
            | HostState::Ready
            | HostState::Suspect
            | HostState::Refused
            | HostState::Draining => true,
            HostState::Enrolled | HostState::Gone | HostState::Banned => false,
        };
        assert_eq!(is_void(&next), !is_tested, "{state:?}: {next:?}");
    }
    let mut older = answered(open(cpu()), commitment(), 5);
    older.joined_at = moment(1).at;
    assert!(is_void(&decide(&older, SILENT)));
}

#[test]
fn who_stops_once_it_knows_what_to_show_is_mistrusted() {
    let revealed = revealed(answered(open(cpu()), commitment(), 5), 9);
    let said = |code| json!(Message::Failed(Failure { code, message: "no".into() }));
    for code in Reason::ALL {
        let gave_up = answered(revealed.clone(), said(code), 5);
        let Next::Rule(ruling) = decide(&gave_up, SILENT) else { panic!("a failure") };
        assert!(
            matches!(ruling.decision(&Standing::of(&gave_up, &BANS)), Decision::Mistrusted { .. }),
            "{code:?}"
        );
    }
    let mut silent = revealed.clone();
    assert_eq!(means(Reason::TooLate, &Standing::of(&silent, &BANS)), 'r', "it has not fetched it");
    silent.steps[1].sent = Some(silent.now);
    assert_eq!(means(Reason::TooLate, &Standing::of(&silent, &BANS)), 'm');
    let joined_again = OpenChallenge { joined_at: moment(1).at, ..silent.clone() };
    let left = OpenChallenge { host_state: HostState::Gone, ..silent.clone() };
    for away in [joined_again, left] {
        assert_eq!(reason(&decide(&away, SILENT)), Some(Reason::Aborted), "that is no way out: {away:?}");
        assert_eq!(means(Reason::Aborted, &Standing::of(&away, &BANS)), 'm');
    }
    let sent_away = OpenChallenge { host_state: HostState::Banned, ..silent.clone() };
    assert!(is_void(&decide(&sent_away, SILENT)), "it was not its own wish");
    let drained = OpenChallenge { host_state: HostState::Draining, ..silent.clone() };
    assert_eq!(decide(&drained, SILENT), Next::Wait, "it has time to show its work");
    let lease = Some(nave_domain::LeaseId(Uuid::from_u128(3)));
    let emptied = OpenChallenge { host_state: HostState::Gone, lease, ..silent };
    assert!(is_void(&decide(&emptied, SILENT)), "its last job has ended meanwhile");
    let early = answered(open(cpu()), said(Reason::DeviceBusy), 5);
    assert_eq!(means(Reason::DeviceBusy, &Standing::of(&early, &BANS)), 'r');
    let window = OpenChallenge { cause: Cause::Window, ..early };
    assert_eq!(means(Reason::DeviceBusy, &Standing::of(&window, &BANS)), 'm');
}

#[test]
fn what_is_shown_is_judged_wherever_the_host_is_by_then() {
    let shown = json!(Message::Opening(Opening::Inline(vec![1, 2])));
    let mut shown = answered(revealed(answered(open(cpu()), commitment(), 5), 9), shown, 5);
    shown.joined_at = moment(1).at;
    for state in HostState::ALL {
        shown.host_state = state;
        assert!(matches!(decide(&shown, SILENT), Next::Judge(_)), "{state:?}");
    }
}

fn failure(message: &str) -> Failure {
    Failure { code: Reason::Aborted, message: message.into() }
}

#[test]
fn a_host_that_gives_up_fails_with_its_reason_in_plain_words() {
    let said = format!("out of\nmemory\0{}€", "x".repeat(EXPLANATION_MAX - 15));
    let gave_up = answered(open(cpu()), json!(Message::Failed(failure(&said))), 5);
    let Next::Rule(Ruling::Failed(failure)) = decide(&gave_up, SILENT) else { panic!("a failure") };
    assert_eq!(failure.code, Reason::Aborted);
    assert_eq!(failure.message, format!("out of memory {}", "x".repeat(EXPLANATION_MAX - 15)));
}

#[test]
fn what_a_host_says_of_itself_is_never_more_than_trouble() {
    for code in Reason::ALL {
        let said = Failure { code, message: "no".into() };
        let next = decide(&answered(open(cpu()), json!(Message::Failed(said.clone())), 5), SILENT);
        let Next::Rule(Ruling::Failed(told)) = next else { panic!("a failure: {next:?}") };
        assert_eq!((gravity(told.code), told.message), (Gravity::Trouble, said.message));
        assert!(told.code == code || gravity(code) > Gravity::Trouble, "{code:?}");
    }
}

#[test]
fn an_answer_that_does_not_belong_there_is_malformed() {
    let opening = json!(Message::Opening(Opening::Inline(vec![1, 2])));
    for answer in [json!(null), json!({"commitment": "7"}), json!({"novel": 1}), opening] {
        let next = decide(&answered(open(cpu()), answer.clone(), 5), SILENT);
        assert_eq!(reason(&next), Some(Reason::EvidenceMalformed), "{answer}");
    }
    let twice = answered(revealed(answered(open(cpu()), commitment(), 5), 9), commitment(), 5);
    assert_eq!(reason(&decide(&twice, SILENT)), Some(Reason::EvidenceMalformed));
}

#[test]
fn a_claim_that_no_test_is_made_for_fails_and_a_challenge_of_other_versions_does_not() {
    for cores in [0, 5_000] {
        let next = decide(&open(Task::cpu(MilliCpu(cores * 1_000), EFFORT)), SILENT);
        assert_eq!(reason(&next), Some(Reason::Aborted), "{cores}");
    }
    let mut newer = open(cpu());
    newer.body = json!({ "version": VERSION + 1, "novel": true });
    assert_eq!(decide(&newer, SILENT), Next::Wait);
    for body in [json!({}), json!({ "version": 0 }), json!(challenge(Task::memory(Bytes(1), MilliCpu(1))))] {
        let mut other = OpenChallenge { body, ..open(cpu()) };
        other.host = HostId(Uuid::from_u128(99));
        assert!(is_void(&decide(&other, SILENT)));
    }
}

#[test]
fn what_an_honest_host_answers_passes_unless_it_took_too_long() {
    let mut host = Prover::new(&challenge(cpu()), 1).expect("a prover");
    let Answer::Commitment(root) = host.answer(&challenge(cpu())).expect("commit") else { panic!("a root") };
    let last = Challenge { reveals: vec![Nonce([9; 32])], ..challenge(cpu()) };
    let Answer::Opening(bytes) = host.answer(&last).expect("open") else { panic!("an opening") };
    let case = |took, away| {
        let first = cut_off(answered(open(cpu()), json!(Message::Commitment(root)), took), away);
        let opening = json!(Message::Opening(Opening::Inline(bytes.clone())));
        match decide(&answered(revealed(first, 9), opening, 5), SILENT) {
            Next::Judge(case) => case,
            next @ (Next::Wait | Next::Reveal(_) | Next::Rule(_)) => panic!("{next:?}"),
        }
    };
    let rule = |took, away| case(took, away).rule(Ok(bytes.clone()));
    assert_eq!(rule(EFFORT.0, 0).code(), "passed");
    assert_eq!(rule(10_000, 0).code(), "cpu_overclaimed");
    assert_eq!(rule(10_000, 2_000).code(), "void");
    assert_eq!(case(10_000, 2_000).rule(Err(failure("never stored"))).code(), "aborted");
    assert_eq!(case(EFFORT.0, 0).rule(Ok(bytes[1..].to_vec())).code(), "evidence_malformed");
    assert_eq!(rule(EFFORT.0, 0).decision(&standing(3)), Decision::Stays, "memory is still to be proven");
}

const BANS: [Millis; 2] = [Millis(1), Millis(6)];

fn standing(refusals: u32) -> Standing<'static> {
    Standing {
        refusals,
        was_in_doubt: false,
        knew: false,
        gave_up: false,
        shadow: false,
        beside_jobs: false,
        bans: &BANS,
        claims: &[],
    }
}

fn failed_by(code: Reason) -> Ruling {
    Ruling::Failed(Failure { code, message: "no".into() })
}

#[test]
fn each_pause_is_twice_the_one_before_up_to_an_hour() {
    let pause = |refusals| match failed().decision(&standing(refusals)) {
        Decision::Refused { pause, .. } => pause.0 / 1_000,
        decision @ (Decision::Stays
        | Decision::Holds { .. }
        | Decision::Shown
        | Decision::Strained
        | Decision::Doubted
        | Decision::Mistrusted { .. }
        | Decision::Banned { .. }) => {
            panic!("{decision:?}")
        }
    };
    assert_eq!([0, 1, 2, 8, 9, u32::MAX].map(pause), [10, 20, 40, 2_560, 3_600, 3_600]);
}

/// `r` for refused, `b` for banned, `d` for doubted, `s` for strained, `-` for nothing.
fn means(code: Reason, standing: &Standing<'_>) -> char {
    match failed_by(code).decision(standing) {
        Decision::Stays => '-',
        Decision::Strained => 's',
        Decision::Doubted => 'd',
        Decision::Refused { .. } => 'r',
        Decision::Mistrusted { .. } => 'm',
        Decision::Banned { .. } => 'b',
        decision @ (Decision::Holds { .. } | Decision::Shown) => panic!("it failed: {decision:?}"),
    }
}

#[test]
fn only_what_is_no_accident_is_a_ban() {
    let first = standing(0);
    let again = Standing { was_in_doubt: true, ..standing(1) };
    let beside = Standing { beside_jobs: true, ..first };
    let shadow = Standing { shadow: true, ..again };
    for code in Reason::ALL {
        let now = [first, again, beside, shadow].map(|standing| means(code, &standing));
        let expected = match gravity(code) {
            Gravity::Trouble if may_be_a_jobs_doing(code) => ['r', 'r', 's', '-'],
            Gravity::Trouble => ['r', 'r', 'd', '-'],
            Gravity::Doubt => ['m', 'b', '-', '-'],
            Gravity::Cheating => ['b', 'b', 'b', '-'],
        };
        assert_eq!(now, expected, "{code:?}");
    }
    let after_trouble = OpenChallenge { refusals: 3, ..open(cpu()) };
    assert_eq!(means(Reason::VramMissing, &Standing::of(&after_trouble, &BANS)), 'm');
    let after_doubt = OpenChallenge { was_in_doubt: true, ..after_trouble };
    assert_eq!(means(Reason::VramMissing, &Standing::of(&after_doubt, &BANS)), 'b');
    assert_eq!(gravity(Reason::EvidenceWrong), Gravity::Cheating);
    assert_eq!(gravity(Reason::TooLate), Gravity::Trouble);
    for code in [Reason::SoftwareOutdated, Reason::DriverTampered] {
        assert_eq!(gravity(code), Gravity::Trouble, "nobody is banned for what they say of themselves");
    }
    assert_eq!(gravity(Reason::VramMissing), Gravity::Doubt);
}

#[test]
fn gpus_that_are_shown_belong_to_the_host_unless_they_are_anothers() {
    let shown = |uuid: &str| DeviceProven {
        uuid: uuid.into(),
        ops_per_s: None,
        vram: None,
        hashes_per_s: None,
        reads_per_s: None,
        bytes_per_s: None,
        return_bytes_per_s: None,
    };
    let ruling = Ruling::Passed(nave_proof::Proven::Devices(vec![shown("GPU-1"), shown("GPU-2")]));
    let holds = Decision::Holds { devices: vec!["GPU-1".into(), "GPU-2".into()] };
    let whole = [gpu("GPU-1"), gpu("GPU-2")];
    assert_eq!(ruling.decision(&Standing { claims: &whole, ..standing(0) }), holds);
    let slice = Slice { uuid: "MIG-1".into(), profile: "1g".into(), milli: MilliGpu(500), vram: Bytes(1) };
    let cut = Device { division: Division::Slices(vec![slice]), ..gpu("GPU-1") };
    let slices = Ruling::Passed(nave_proof::Proven::Devices(vec![shown("MIG-1"), shown("GPU-2")]));
    assert_eq!(slices.decision(&Standing { claims: &[cut, gpu("GPU-2")], ..standing(0) }), holds);
    let beside = Standing { beside_jobs: true, ..standing(0) };
    assert_eq!(ruling.decision(&beside), Decision::Shown);
    let host = HostId(Uuid::from_u128(7));
    let holder = Holder { device: "GPU-2".into(), host, since: Timestamp(0) };
    assert_eq!(ruling.clone().written(vec![]).ruling, ruling);
    let written = ruling.written(vec![holder]);
    let read = serde_json::from_value(json!(written)).expect("what was written down");
    assert_eq!(written, read);
    let Ruling::Failed(failure) = written.ruling else { panic!("it is another's") };
    assert_eq!(failure.code, Reason::DeviceElsewhere);
    assert_eq!(failure.message, format!("GPU-2 has belonged to {host} since 1970-01-01T00:00:00Z"));
}

#[test]
fn a_ruling_reads_like_a_verdict() {
    assert_eq!(json!(failed()), json!({ "failed": { "code": "aborted", "message": "no" } }));
    assert_eq!(json!(Ruling::Void("why".into())), json!({ "void": "why" }));
    assert_eq!(json!(failed()), json!(nave_proof::Verdict::Failed(failure("no"))));
}

proptest! {
    /// Neither do the same rows ever mean two things, nor does what a host writes break anything.
    #[test]
    fn whatever_stands_in_rows_there_is_one_decision(
        texts in proptest::collection::vec(".{0,20}", 0..4), times in proptest::collection::vec(any::<i64>(), 12),
    ) {
        let mut any = open(cpu());
        for (text, times) in texts.iter().zip(times.chunks_exact(4)) {
            let sent = Moment { at: Timestamp(times[0]), up: Millis(times[1]) };
            let received = Moment { at: Timestamp(times[2]), up: Millis(times[3]) };
            let answer = serde_json::from_str(text).unwrap_or(json!({ "commitment": text }));
            let step = StepRow { reveal: Some(text.clone()), drawn_up: sent.up, sent: Some(sent), answer: None };
            any.steps.push(StepRow { answer: Some((answer, received)), ..step });
        }
        any.steps[0].sent = Some(moment(0));
        prop_assert_eq!(decide(&any, SILENT), decide(&any.clone(), SILENT));
    }
}
