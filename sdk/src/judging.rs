//! Verdicts judged again from what the market publishes of them, by anyone.
//!
//! The judge is the verifier's own: a function of the challenge, the evidence and the times at
//! which it came. What is not in the evidence cannot be judged again here: whose a GPU is, what
//! is known of its class, and which software has a flaw.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use nave_domain::Millis;
use nave_proof::{
    Challenge, Evidence, Failure, OPENING_MAX, Proven, Reason, Span, VERSION, Verdict,
    judge as judge_evidence,
};

use crate::{
    explain,
    wire::verdict::{Exchange, OpeningState, Ruling, VerdictRecord},
};

/// What judging again has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Again {
    /// The same ruling.
    Same {
        /// What was found, for people.
        found: String,
    },
    /// Another one.
    Differs {
        /// What was found, for people.
        found: String,
    },
    /// What is published does not decide it.
    Untold {
        /// Why not, for people.
        why: String,
        /// What the evidence shows for itself, if that can be judged.
        found: Option<String>,
    },
}

fn same(found: impl Into<String>) -> Again {
    Again::Same { found: found.into() }
}

fn differs(found: impl Into<String>) -> Again {
    Again::Differs { found: found.into() }
}

fn untold(why: impl Into<String>) -> Again {
    Again::Untold { why: why.into(), found: None }
}

/// Reaches the verdict of `record` again.
#[must_use]
pub fn judge_again(record: &VerdictRecord) -> Again {
    let (Some(ruling), Some(test)) = (&record.verdict.ruling, &record.test) else {
        return untold("this program does not read its challenge or its ruling");
    };
    if test.version != VERSION {
        return untold(format!(
            "it is of version {} of the proofs; this program judges {VERSION}",
            test.version
        ));
    }
    if test.challenge != record.verdict.challenge || test.host != record.verdict.host {
        return differs("the challenge is for another host or verdict");
    }
    if let Ruling::Void(_) = ruling {
        return untold("the market says that the test counts neither for nor against the host");
    }
    if let Some(again) = unanswered(record, test, ruling) {
        return again;
    }
    match evidence(record) {
        Ok((evidence, spans, complete)) => {
            compare(ruling, &judge_evidence(test, &evidence, &spans), complete, record.verdict.opening)
        }
        Err(why) => untold(why),
    }
}

/// A test that ended before its opening: the host gave up, or came too late.
fn unanswered(record: &VerdictRecord, test: &Challenge, ruling: &Ruling) -> Option<Again> {
    for (step, exchange) in record.exchanges.iter().enumerate() {
        if let Some(failure) = &exchange.gave_up {
            let found =
                format!("the host gave up by itself: {} ({})", failure.message, failure.code.as_str());
            return Some(if code(ruling) == Some(failure.code) { same(found) } else { differs(found) });
        }
        let Some(sent) = exchange.sent_at else {
            return Some(untold(format!("the host never fetched step {step}, which no evidence can show")));
        };
        let took = exchange.answered_at.unwrap_or(record.verdict.decided_at).since(sent);
        let most = test.task.patience(step);
        if took > most {
            return Some(late(step, took, most, ruling));
        }
        if exchange.answered_at.is_none() {
            let found = format!("step {step} was not answered within {took}, and had time until {most}");
            return Some(differs(found));
        }
    }
    None
}

fn late(step: usize, took: Millis, most: Millis, ruling: &Ruling) -> Again {
    let found = format!("there was no answer to step {step} within {most}, but for {took}");
    if code(ruling) == Some(Reason::TooLate) { same(found) } else { differs(found) }
}

fn code(ruling: &Ruling) -> Option<Reason> {
    match ruling {
        Ruling::Failed(failure) => Some(failure.code),
        Ruling::Passed(_) | Ruling::Void(_) => None,
    }
}

/// What came back, when, and whether the opening is there.
fn evidence(record: &VerdictRecord) -> Result<(Evidence, Vec<Span>, bool), String> {
    let span = |exchange: &Exchange| Some(Span { sent: exchange.sent_at?, received: exchange.answered_at? });
    let spans: Vec<Span> = record.exchanges.iter().filter_map(span).collect();
    let commitments: Vec<_> = record.exchanges.iter().filter_map(|exchange| exchange.commitment).collect();
    if record.test.as_ref().is_none_or(|test| commitments.len() != test.task.commitments()) {
        return Err("a step was answered with what belongs to another one or cannot be read".into());
    }
    let opening = record.opening.as_deref().map(decode).transpose()?;
    let complete = opening.is_some();
    Ok((Evidence { commitments, opening: opening.unwrap_or_default() }, spans, complete))
}

fn decode(text: &str) -> Result<Vec<u8>, String> {
    if text.len() > OPENING_MAX.div_ceil(3) * 4 {
        return Err("the opening is longer than any".into());
    }
    STANDARD.decode(text).map_err(|_| "the opening is not base64".into())
}

fn compare(ruling: &Ruling, again: &Verdict, complete: bool, opening: OpeningState) -> Again {
    // Times are weighed before openings, so what failed for its times needs none.
    if !complete && !matches!(again, Verdict::Failed(failure) if is_of_times(failure.code)) {
        return untold(match opening {
            OpeningState::Kept => "the opening is not in the file",
            OpeningState::Forgotten => "the opening is not kept any more",
            OpeningState::Withheld => "what a host says of its software is for that host alone",
            OpeningState::Absent => "there is no opening",
        });
    }
    match (ruling, again) {
        (Ruling::Passed(Some(theirs)), Verdict::Passed(ours)) if theirs == ours => same(passed(ours)),
        (Ruling::Passed(None), Verdict::Passed(ours)) => same(passed(ours)),
        (Ruling::Failed(theirs), Verdict::Failed(ours)) if theirs.code == ours.code => same(failed(ours)),
        (Ruling::Failed(theirs), Verdict::Passed(ours)) if !is_of_evidence(theirs.code) => Again::Untold {
            why: "the evidence holds; the market refuses it by what is not in it: the classes it knows, its floors for \
                  software and disks, and whose GPUs these are"
                .into(),
            found: Some(passed(ours)),
        },
        (Ruling::Passed(_) | Ruling::Failed(_) | Ruling::Void(_), Verdict::Passed(ours)) => differs(passed(ours)),
        (Ruling::Passed(_) | Ruling::Failed(_) | Ruling::Void(_), Verdict::Failed(ours)) => differs(failed(ours)),
    }
}

fn passed(proven: &Proven) -> String {
    format!("passed: {}", explain::shown(proven))
}

fn failed(failure: &Failure) -> String {
    format!("{} ({})", failure.message, failure.code.as_str())
}

/// Whether the judge of evidence finds it from how long the host took alone.
fn is_of_times(code: Reason) -> bool {
    matches!(code, Reason::CpuOverclaimed | Reason::MemoryMissing | Reason::TooLate)
}

/// Whether the judge of evidence is the only one who finds it.
fn is_of_evidence(code: Reason) -> bool {
    match code {
        Reason::CpuOverclaimed
        | Reason::MemoryMissing
        | Reason::MemoryUnavailable
        | Reason::EvidenceWrong
        | Reason::EvidenceMalformed
        | Reason::BindingWrong
        | Reason::TooLate
        | Reason::Aborted
        | Reason::VersionUnknown => true,
        Reason::DeviceUnavailable
        | Reason::DeviceMismatch
        | Reason::DeviceElsewhere
        | Reason::DeviceBusy
        | Reason::VramMissing
        | Reason::ReturnTooSlow
        | Reason::DiskMissing
        | Reason::DiskTooSlow
        | Reason::SoftwareOutdated
        | Reason::DriverTampered
        | Reason::RuntimeBroken
        | Reason::TransferTooSlow
        | Reason::PortUnreachable => false,
    }
}

#[cfg(test)]
mod tests {
    use nave_domain::{ChallengeId, HostId, MilliCpu, Timestamp, verdict::Cause};
    use nave_proof::{Answer, CpuTask, Digest, Nonce, Prover, Task};

    use super::*;
    use crate::wire::verdict::HostVerdict;

    /// The record of the test of a host that has done the work of two cores within `took`.
    fn tested(took: i64) -> VerdictRecord {
        let challenge: ChallengeId = format!("challenge_{:032}", 1).parse().expect("an id");
        let host: HostId = format!("host_{:032}", 1).parse().expect("an id");
        let task = Task::Cpu(CpuTask { milli_cpu: MilliCpu(2_000), segments: 8, samples: 4 });
        let nonce = Nonce([1; 32]);
        let test =
            Challenge { version: VERSION, challenge, host, task, nonce, beacon: None, reveals: Vec::new() };
        let mut prover = Prover::new(&test, 1).expect("a prover");
        let Ok(Answer::Commitment(commitment)) = prover.answer(&test) else { panic!("no commitment") };
        let test = Challenge { reveals: vec![Nonce([2; 32])], ..test };
        let Ok(Answer::Opening(opening)) = prover.answer(&test) else { panic!("no opening") };
        let exchange = |from: i64, commitment: Option<Digest>| Exchange {
            sent_at: Some(Timestamp(from)),
            answered_at: Some(Timestamp(from + took)),
            commitment,
            gave_up: None,
        };
        let exchanges = vec![exchange(1_000, Some(commitment)), exchange(20_000, None)];
        let spans = [1_000, 20_000].map(|at| Span { sent: Timestamp(at), received: Timestamp(at + took) });
        let evidence = Evidence { commitments: vec![commitment], opening: opening.clone() };
        let ruling = match judge_evidence(&test, &evidence, &spans) {
            Verdict::Passed(proven) => Ruling::Passed(Some(proven)),
            Verdict::Failed(failure) => Ruling::Failed(failure),
        };
        let code = code(&ruling).map_or("passed", Reason::as_str).to_owned();
        let verdict = HostVerdict {
            challenge,
            host,
            kind: test.task.kind(),
            cause: Cause::Enrolment,
            shadow: false,
            beside_job: false,
            drawn_at: Timestamp(900),
            decided_at: Timestamp(40_000),
            code,
            ruling: Some(ruling),
            classes: std::collections::BTreeMap::new(),
            opening: OpeningState::Kept,
            appeal: None,
            ban: None,
            actions: Vec::new(),
        };
        VerdictRecord { verdict, test: Some(test), exchanges, opening: Some(STANDARD.encode(opening)) }
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
            assert!(
                matches!(&again, Again::Same { found } if found.contains("(cpu_overclaimed)")),
                "{again:?}"
            );
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
        record.exchanges[0].gave_up = Some(failure);
        assert!(matches!(judge_again(&record), Again::Differs { .. }));
        ruled(&mut record, Reason::MemoryUnavailable);
        assert!(matches!(judge_again(&record), Again::Same { .. }));
    }

    #[test]
    fn what_no_evidence_shows_is_not_guessed() {
        let mut record = tested(1);
        ruled(&mut record, Reason::DeviceElsewhere);
        let again = judge_again(&record);
        assert!(matches!(&again, Again::Untold { found: Some(found), .. } if found.starts_with("passed")));
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
}
