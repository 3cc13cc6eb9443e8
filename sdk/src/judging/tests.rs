//! What is said of verdicts: the market's, and those that a market could make up.

use std::{collections::BTreeMap, time::Duration};

use nave_domain::{
    Bytes, ChallengeId, HostId, MilliCpu, MilliGpu, Timestamp,
    fraction::{Division, Slice},
    host::Device,
    verdict::Cause,
};
use nave_proof::{
    Answer, CpuTask, Digest, Findings, Nonce, Prover, Resources,
    findings::{Component, Preloaded, Trial},
    software::{SoftwareDevice, SoftwareModel, Turns, VirtualClock},
};
use nave_rules::{
    catalogue::Catalogue,
    size::{Purpose, size},
};

use super::*;
use crate::wire::verdict::HostVerdict;

fn host(number: u32) -> HostId {
    format!("host_{number:032}").parse().expect("an id")
}

fn challenge(task: Task) -> Challenge {
    let id: ChallengeId = format!("challenge_{:032}", 1).parse().expect("an id");
    Challenge::new(id, host(1), task, Nonce([1; 32]))
}

fn exchange(from: i64, took: i64, commitment: Option<Digest>) -> Exchange {
    Exchange {
        sent_at: Some(Timestamp(from)),
        answered_at: Some(Timestamp(from + took)),
        commitment,
        gave_up: None,
    }
}

/// What a market of today's rules publishes of a test that was answered so.
fn published(
    test: Challenge,
    claimed: Vec<Device>,
    exchanges: Vec<Exchange>,
    opening: Vec<u8>,
) -> VerdictRecord {
    let span = |exchange: &Exchange| {
        let (sent, received) = exchange.sent_at.zip(exchange.answered_at).expect("times");
        Span { sent, received }
    };
    let spans: Vec<Span> = exchanges.iter().map(span).collect();
    let commitments = exchanges.iter().filter_map(|exchange| exchange.commitment).collect();
    let evidence = Evidence { commitments, opening: opening.clone() };
    let ruling = match nave_rules::judge(&test, &claimed, &evidence, &spans) {
        Verdict::Passed(proven) => Ruling::Passed(Some(proven)),
        Verdict::Failed(failure) => Ruling::Failed(failure),
    };
    let verdict = HostVerdict {
        challenge: test.challenge,
        host: test.host,
        kind: test.task.kind(),
        cause: Cause::Enrolment,
        shadow: false,
        beside_job: false,
        drawn_at: Timestamp(900),
        decided_at: Timestamp(40_000_000),
        code: code(&ruling).map_or("passed", Reason::as_str).to_owned(),
        ruling: Some(ruling),
        classes: BTreeMap::new(),
        opening: OpeningState::Kept,
        appeal: None,
        ban: None,
        actions: Vec::new(),
    };
    VerdictRecord {
        verdict,
        test: Some(test),
        claimed,
        exchanges,
        rules: Some(digest()),
        holders: Vec::new(),
        opening: Some(STANDARD.encode(opening)),
    }
}

/// The record of the test of a host that has done the work of two cores within `took`.
fn tested(took: i64) -> VerdictRecord {
    let test = challenge(Task::Cpu(CpuTask { milli_cpu: MilliCpu(2_000), segments: 8, samples: 4 }));
    let mut prover = Prover::new(&test, 1).expect("a prover");
    let Ok(Answer::Commitment(commitment)) = prover.answer(&test) else { panic!("no commitment") };
    let test = Challenge { reveals: vec![Nonce([2; 32])], ..test };
    let Ok(Answer::Opening(opening)) = prover.answer(&test) else { panic!("no opening") };
    let exchanges = vec![exchange(1_000, took, Some(commitment)), exchange(20_000, took, None)];
    published(test, Vec::new(), exchanges, opening)
}

fn gpu(division: Division) -> Device {
    let uuid = format!("{}1", Device::SIMULATED);
    let (model, driver) = ("Nave Simulated".to_owned(), String::new());
    Device { uuid, model, vram: Bytes(64 * Bytes::MIB), driver, simulated: true, division }
}

/// The record of a whole test of a simulated GPU that does a part of what it is claimed to do.
fn examined(part: u64) -> VerdictRecord {
    examined_as(gpu(Division::Whole), part)
}

fn examined_as(claim: Device, part: u64) -> VerdictRecord {
    let does = SoftwareModel {
        model: claim.model.clone(),
        vram: claim.vram,
        ops_per_s: (1 << 26) / part,
        bytes_per_s: 1 << 19,
        reads_per_s: 1 << 17,
        hashes_per_s: 1 << 19,
        return_bytes_per_s: 1 << 18,
        dishonesty: Vec::new(),
    };
    let catalogue = Catalogue::embedded().expect("the catalogue");
    let purpose = Purpose::Full { onboarding: false };
    let task = size(catalogue, std::slice::from_ref(&claim), Bytes(8 * Bytes::MIB), purpose);
    let mut test = challenge(task.expect("a test"));
    let (clock, turns) = (VirtualClock::default(), Turns::default());
    let pace = clock.clone();
    let resources = Resources::new(1).with_devices(move |_| {
        let device = SoftwareDevice::new(&does, pace.pace(), &turns);
        Ok(Box::new(device) as Box<dyn nave_proof::device::Device>)
    });
    let mut prover = Prover::new(&test, resources).expect("a prover");
    let mut exchanges = Vec::new();
    loop {
        let began = clock.pass(Duration::ZERO);
        let answer = prover.answer(&test).expect("an answer");
        let took = i64::try_from((clock.now() - began).as_millis()).expect("short").max(1);
        let number = i64::try_from(exchanges.len()).expect("few");
        let mut answered = |commitment| exchanges.push(exchange(1_000_000 * number, took, commitment));
        match answer {
            Answer::Commitment(commitment) => answered(Some(commitment)),
            Answer::Opening(opening) => {
                answered(None);
                return published(test, vec![claim], exchanges, opening);
            }
        }
        test.reveals.push(Nonce([10; 32]));
    }
}

/// The record of what a host with this container toolkit says of itself.
fn inspected(toolkit: &str) -> VerdictRecord {
    let test = challenge(Task::software());
    let findings = Findings {
        nonce: test.nonce,
        kernel: "6.8.0-51-generic".into(),
        architecture: "x86_64".into(),
        boot: Digest([2; 32]),
        driver: None,
        engine: None,
        toolkit: vec![Component { name: "nvidia-ctk".into(), version: toolkit.into() }],
        preloaded: Preloaded::default(),
        mounts: Vec::new(),
        mapped: Vec::new(),
        holders: Vec::new(),
        container: Trial::NotApplicable,
        gpus: Trial::NotApplicable,
    };
    let opening = serde_json::to_vec(&findings).expect("JSON");
    published(test, Vec::new(), vec![exchange(1_000, 1, None)], opening)
}

fn ruled(record: &mut VerdictRecord, code: Reason) {
    record.verdict.ruling = Some(Ruling::Failed(Failure { code, message: "so it says".into() }));
}

#[test]
fn what_a_host_has_proven_is_proven_to_everyone() {
    let record = tested(1);
    assert_eq!(record.verdict.code, "passed");
    let again = judge_again(&record);
    assert!(matches!(&again, Again::Same { found } if found.starts_with("passed: ")), "{again:?}");
}

#[test]
fn what_failed_for_its_times_needs_no_opening() {
    let mut record = tested(10_000);
    assert_eq!(record.verdict.code, "cpu_overclaimed");
    for opening in [record.opening.clone(), None] {
        record.opening = opening;
        let again = judge_again(&record);
        assert!(matches!(&again, Again::Same { found } if found.contains("(cpu_overclaimed)")), "{again:?}");
    }
}

#[test]
fn a_market_that_says_something_else_than_its_evidence_is_found_out() {
    let mut record = tested(1);
    ruled(&mut record, Reason::EvidenceWrong);
    assert!(matches!(judge_again(&record), Again::Differs { .. }));
    ruled(&mut record, Reason::TooLate);
    assert!(matches!(judge_again(&record), Again::Differs { .. }));
    let mut record = tested(1);
    if let Some(Ruling::Passed(Some(Proven::Cpu { milli_cpu, .. }))) = &mut record.verdict.ruling {
        *milli_cpu = MilliCpu(1_000_000);
    }
    assert!(matches!(judge_again(&record), Again::Differs { .. }));
    let mut record = tested(1);
    record.exchanges[0].commitment = Some(Digest([0; 32]));
    assert!(matches!(judge_again(&record), Again::Differs { .. }));
    let mut record = tested(1);
    if let Some(test) = &mut record.test {
        test.nonce = Nonce([9; 32]);
    }
    assert!(matches!(judge_again(&record), Again::Differs { .. }));
}

#[test]
fn silence_and_giving_up_are_told_from_times_and_words() {
    let mut record = tested(1);
    ruled(&mut record, Reason::TooLate);
    record.exchanges.truncate(1);
    record.exchanges[0].answered_at = None;
    record.verdict.decided_at = Timestamp(2_000);
    assert!(matches!(judge_again(&record), Again::Differs { .. }), "it had time left");
    record.verdict.decided_at = Timestamp(10_000_000);
    assert!(matches!(judge_again(&record), Again::Same { .. }));
    record.exchanges[0].sent_at = None;
    assert!(matches!(judge_again(&record), Again::Untold { .. }));
    let failure = Failure { code: Reason::MemoryUnavailable, message: "no memory".into() };
    (record.exchanges[0].sent_at, record.exchanges[0].answered_at) =
        (Some(Timestamp(1_000)), Some(Timestamp(1_500)));
    record.exchanges[0].gave_up = Some(failure);
    assert!(matches!(judge_again(&record), Again::Differs { .. }));
    ruled(&mut record, Reason::MemoryUnavailable);
    assert!(matches!(judge_again(&record), Again::Same { .. }));
}

#[test]
fn what_no_evidence_shows_is_not_guessed() {
    let mut record = tested(1);
    record.opening = None;
    assert!(matches!(judge_again(&record), Again::Untold { found: None, .. }));
    record.opening = Some("?".into());
    assert!(matches!(judge_again(&record), Again::Untold { .. }));
    record.verdict.ruling = Some(Ruling::Void("a clock was set".into()));
    assert!(matches!(judge_again(&record), Again::Untold { .. }));
    record.verdict.ruling = None;
    assert!(matches!(judge_again(&record), Again::Untold { .. }));
    let mut record = tested(1);
    record.exchanges[0].commitment = None;
    assert!(matches!(judge_again(&record), Again::Untold { .. }));
}

#[test]
fn a_host_that_gives_up_does_not_say_of_itself_that_it_cheats() {
    let mut record = tested(1);
    let failure = Failure { code: Reason::EvidenceWrong, message: "I cheat".into() };
    record.exchanges[0].gave_up = Some(failure);
    ruled(&mut record, Reason::Aborted);
    assert!(matches!(judge_again(&record), Again::Same { .. }));
    ruled(&mut record, Reason::EvidenceWrong);
    assert!(matches!(judge_again(&record), Again::Differs { .. }));
    record.exchanges[0].answered_at = Some(Timestamp(10_000_000));
    ruled(&mut record, Reason::TooLate);
    assert!(matches!(judge_again(&record), Again::Same { .. }), "whatever it said, it said it too late");
}

#[test]
fn that_a_host_left_or_joined_again_is_nothing_that_its_evidence_shows() {
    let mut record = tested(1);
    record.exchanges[1].answered_at = None;
    ruled(&mut record, Reason::Aborted);
    for decided_at in [20_001, 50_000_000] {
        record.verdict.decided_at = Timestamp(decided_at);
        assert!(matches!(judge_again(&record), Again::Untold { .. }), "it knew what it would have to show");
    }
    ruled(&mut record, Reason::EvidenceWrong);
    assert!(matches!(judge_again(&record), Again::Differs { .. }));
    record.exchanges.truncate(1);
    (record.exchanges[0].answered_at, record.verdict.decided_at) = (None, Timestamp(1_001));
    ruled(&mut record, Reason::Aborted);
    assert!(matches!(judge_again(&record), Again::Differs { .. }), "it knew nothing yet");
}

#[test]
fn what_a_gpu_is_follows_from_what_it_did_for_everyone() {
    let honest = examined(1);
    assert_eq!(honest.verdict.code, "passed");
    assert!(matches!(judge_again(&honest), Again::Same { .. }));
    let slow = examined(4);
    assert_eq!(slow.verdict.code, "device_mismatch");
    let again = judge_again(&slow);
    assert!(matches!(&again, Again::Same { found } if found.contains("(device_mismatch)")), "{again:?}");
}

#[test]
fn a_market_that_refuses_a_gpu_for_nothing_or_takes_one_that_is_slow_is_found_out() {
    let mut honest = examined(1);
    ruled(&mut honest, Reason::DeviceMismatch);
    assert!(matches!(judge_again(&honest), Again::Differs { .. }));
    let mut slow = examined(4);
    let Verdict::Passed(shown) = shown(&slow) else { panic!("its evidence holds") };
    slow.verdict.ruling = Some(Ruling::Passed(Some(shown)));
    let again = judge_again(&slow);
    assert!(matches!(&again, Again::Differs { found } if found.contains("(device_mismatch)")), "{again:?}");
}

/// What the evidence of a record shows for itself.
fn shown(record: &VerdictRecord) -> Verdict {
    let (evidence, spans, _) = evidence(record).expect("evidence");
    judge_evidence(record.test.as_ref().expect("a test"), &evidence, &spans)
}

#[test]
fn which_software_has_a_flaw_is_the_same_for_everyone() {
    let sound = inspected("1.19.1");
    assert_eq!(sound.verdict.code, "passed");
    assert!(matches!(judge_again(&sound), Again::Same { .. }));
    let mut flawed = inspected("1.16.1");
    assert_eq!(flawed.verdict.code, "software_outdated");
    assert!(matches!(judge_again(&flawed), Again::Same { .. }));
    flawed.verdict.ruling = Some(Ruling::Passed(None));
    assert!(matches!(judge_again(&flawed), Again::Differs { .. }));
}

#[test]
fn what_was_judged_by_other_rules_is_not_judged_again_by_these() {
    for rules in [None, Some(Digest([7; 32]))] {
        for mut record in [examined(1), examined(4), inspected("1.16.1")] {
            record.rules = rules;
            let again = judge_again(&record);
            let Again::Untold { why, found: Some(_) } = &again else { panic!("{again:?}") };
            assert!(why.contains("judged it by other rules") && why.contains(&digest().to_string()), "{why}");
        }
        let record = VerdictRecord { rules, ..tested(1) };
        assert!(matches!(judge_again(&record), Again::Same { .. }), "no rule says anything of cores");
        let mut forged = VerdictRecord { rules, ..examined(1) };
        forged.exchanges[0].commitment = Some(Digest([0; 32]));
        assert!(matches!(judge_again(&forged), Again::Differs { .. }), "nor of evidence that is wrong");
        let mut framed = VerdictRecord { rules, ..examined(1) };
        framed.verdict.kind = Kind::Cpu;
        ruled(&mut framed, Reason::EvidenceWrong);
        assert!(matches!(judge_again(&framed), Again::Differs { .. }), "or is said to be");
    }
}

#[test]
fn a_gpu_of_which_nobody_says_what_was_claimed_is_not_rated() {
    let record = VerdictRecord { claimed: Vec::new(), ..examined(4) };
    assert!(matches!(judge_again(&record), Again::Untold { .. }));
}

#[test]
fn whose_a_gpu_is_cannot_be_told_but_must_fit_what_can() {
    let device = format!("{}1", Device::SIMULATED);
    let elsewhere = |device: &str, number, since| {
        let mut record = examined(1);
        ruled(&mut record, Reason::DeviceElsewhere);
        record.holders =
            vec![DeviceHolder { device: device.into(), host: host(number), since: Timestamp(since) }];
        judge_again(&record)
    };
    let again = elsewhere(&device, 2, 500);
    let Again::Untold { why, found: Some(found) } = &again else { panic!("{again:?}") };
    assert!(found.starts_with("passed: ") && why.contains(&host(2).to_string()), "{again:?}");
    for again in [elsewhere(&device, 1, 500), elsewhere(&device, 2, 50_000_000), elsewhere("SIM-2", 2, 500)] {
        assert!(matches!(&again, Again::Differs { found } if found.contains("does not fit")), "{again:?}");
    }
    let mut record = examined(1);
    ruled(&mut record, Reason::DeviceElsewhere);
    assert!(matches!(judge_again(&record), Again::Untold { .. }));
    let mut slow = examined(4);
    ruled(&mut slow, Reason::DeviceElsewhere);
    assert!(matches!(judge_again(&slow), Again::Differs { .. }), "it is refused for what it did");
}

#[test]
fn a_test_of_slices_is_judged_again_from_what_was_claimed_of_their_gpu() {
    let slice = |number: u8| Slice {
        uuid: format!("{}1-{number}", Device::SIMULATED),
        profile: "1g.16mb".into(),
        milli: MilliGpu(250),
        vram: Bytes(16 * Bytes::MIB),
    };
    let record = || examined_as(gpu(Division::Slices(vec![slice(0), slice(1)])), 1);
    let again = judge_again(&record());
    assert!(matches!(again, Again::Same { .. }), "{again:?}");
    let mut elsewhere = record();
    ruled(&mut elsewhere, Reason::DeviceElsewhere);
    let device = gpu(Division::Whole).uuid;
    elsewhere.holders = vec![DeviceHolder { device, host: host(2), since: Timestamp(500) }];
    let again = judge_again(&elsewhere);
    assert!(matches!(again, Again::Untold { .. }), "its slices are of that GPU: {again:?}");
}

#[test]
fn one_transfer_does_not_say_which_host_is_slow() {
    let mut record = tested(10_000);
    ruled(&mut record, Reason::TransferTooSlow);
    assert!(matches!(judge_again(&record), Again::Untold { .. }));
}
