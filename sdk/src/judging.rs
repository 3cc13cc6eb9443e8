//! Verdicts judged again from what the market publishes of them, by anyone.
//!
//! The judge is the verifier's own: a function of the challenge, the evidence, the times at which it
//! came and the rules, which are part of this program. Where the market had other rules than these, nobody can
//! tell here what those say. What rests on other hosts is not judged again either: whose a GPU is, and
//! which of two hosts was slow.

#[cfg(test)]
mod tests;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use nave_domain::{
    host::{devices_of, parts},
    verdict::Kind,
};
use nave_proof::{
    Challenge, Evidence, Failure, OPENING_MAX, Proven, Reason, Span, Task, VERSION, Verdict,
    judge as judge_evidence,
};
use nave_rules::{digest, told, weigh};

use crate::{
    explain,
    wire::verdict::{DeviceHolder, Exchange, OpeningState, Ruling, VerdictRecord},
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
    if let Some(Reason::TransferTooSlow | Reason::PortUnreachable) = code(ruling) {
        return untold(
            "it follows from the last transfers with several others, of which this is one at most",
        );
    }
    if let Some(again) = unanswered(record, test, ruling) {
        return again;
    }
    match evidence(record) {
        Ok((evidence, spans, complete)) => {
            let shown = judge_evidence(test, &evidence, &spans);
            // Times are weighed before openings, so what failed for its times needs none.
            match shown {
                Verdict::Failed(failure) if complete || is_of_times(failure.code) => {
                    compare(ruling, &Verdict::Failed(failure))
                }
                Verdict::Passed(proven) if complete => by_rules(record, test, ruling, proven),
                Verdict::Failed(_) | Verdict::Passed(_) => untold(no_opening(record.verdict.opening)),
            }
        }
        Err(why) => untold(why),
    }
}

/// A test that ended before its opening: it was none, or the host gave up or came too late.
fn unanswered(record: &VerdictRecord, test: &Challenge, ruling: &Ruling) -> Option<Again> {
    let knew = record.exchanges.get(test.task.commitments()).is_some_and(|last| last.sent_at.is_some());
    let is = |found: String, reason| {
        Some(match code(ruling) {
            Some(theirs) if Some(theirs) == reason => same(found),
            // Who leaves once it knows what it would have to show has failed.
            Some(Reason::Aborted) if knew => Again::Untold {
                why: "whether the host left the market or joined again meanwhile is not in the file".into(),
                found: Some(found),
            },
            Some(_) | None => differs(found),
        })
    };
    if let Err(why) = test.task.check() {
        return is(format!("what was claimed cannot be tested: {why} (aborted)"), Some(Reason::Aborted));
    }
    for (step, exchange) in record.exchanges.iter().enumerate() {
        let Some(sent) = exchange.sent_at else {
            return Some(untold(format!("the host never fetched step {step}, which no evidence can show")));
        };
        let took = exchange.answered_at.unwrap_or(record.verdict.decided_at).since(sent);
        let most = test.task.patience(step);
        if took > most {
            let found = format!("there was no answer to step {step} within {most}, but for {took}");
            return is(found, Some(Reason::TooLate));
        }
        if let Some(Failure { code, message }) = &exchange.gave_up {
            return is(
                format!("the host gave up by itself: {message} ({})", code.as_str()),
                Some(told(*code)),
            );
        }
        if exchange.answered_at.is_none() {
            let found = format!("step {step} was not answered within {took}, and had time until {most}");
            return is(found, None);
        }
    }
    None
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

fn no_opening(state: OpeningState) -> &'static str {
    match state {
        OpeningState::Kept => "the opening is not in the file",
        OpeningState::Forgotten => "the opening is not kept any more",
        OpeningState::Withheld => "what a host says of its software is for that host alone",
        OpeningState::Absent => "there is no opening",
    }
}

/// What the rules say of what the evidence shows, beside what the market says.
fn by_rules(record: &VerdictRecord, test: &Challenge, ruling: &Ruling, proven: Proven) -> Again {
    let found = passed(&proven);
    let rests_on_more = match ruling {
        Ruling::Passed(theirs) => theirs.as_ref().is_none_or(|theirs| *theirs == proven),
        Ruling::Failed(failure) => is_of_rules(failure.code) || failure.code == Reason::DeviceElsewhere,
        Ruling::Void(_) => false,
    };
    if !rests_on_more {
        return differs(found);
    }
    let because = |why: String| Again::Untold { why, found: Some(found.clone()) };
    if rests_on_rules(test.task.kind()) && record.rules != Some(digest()) {
        let theirs = record.rules.map_or("rules that it does not name".to_owned(), |rules| rules.to_string());
        return because(format!(
            "the evidence holds, and the market judged it by other rules: by {theirs}, where this program has {}",
            digest()
        ));
    }
    if let Some(device) = unclaimed(record, test) {
        return because(format!("the evidence holds; what was claimed of {device} is not in the file"));
    }
    match (code(ruling), weigh(&test.task, &record.claimed, proven)) {
        (Some(Reason::DeviceElsewhere), Verdict::Passed(_)) => elsewhere(record, test, found),
        (_, again) => compare(ruling, &again),
    }
}

/// Whether it is the catalogue or the floors that refuse a host for it.
fn is_of_rules(code: Reason) -> bool {
    match code {
        Reason::DeviceMismatch
        | Reason::DeviceThrottled
        | Reason::DeviceBusy
        | Reason::VramMissing
        | Reason::ReturnTooSlow
        | Reason::DiskTooSlow
        | Reason::SoftwareOutdated
        | Reason::DriverTampered
        | Reason::RuntimeBroken => true,
        Reason::CpuOverclaimed
        | Reason::MemoryMissing
        | Reason::MemoryUnavailable
        | Reason::EvidenceWrong
        | Reason::EvidenceMalformed
        | Reason::BindingWrong
        | Reason::TooLate
        | Reason::Aborted
        | Reason::VersionUnknown
        | Reason::DeviceUnavailable
        | Reason::DeviceElsewhere
        | Reason::DiskMissing
        | Reason::TransferTooSlow
        | Reason::PortUnreachable => false,
    }
}

/// Whether verdicts on such a test rest on the catalogue or the floors.
fn rests_on_rules(kind: Kind) -> bool {
    match kind {
        Kind::Devices | Kind::Storage | Kind::Software => true,
        Kind::Cpu | Kind::Memory | Kind::Transfer => false,
    }
}

/// A GPU that was tested and of which the file does not say what it was claimed to be.
fn unclaimed<'a>(record: &VerdictRecord, test: &'a Challenge) -> Option<&'a str> {
    let Task::Devices(task) = &test.task else { return None };
    let claimed = parts(&record.claimed);
    let is_claimed = |uuid: &str| claimed.iter().any(|claim| claim.uuid == uuid);
    task.devices.iter().map(|device| device.uuid.as_str()).find(|uuid| !is_claimed(uuid))
}

/// A ruling that a GPU belongs to another host rests on what that has proven, and on when it was last
/// heard. Neither can be reached again here; what the market says of it must fit the rest all the same.
fn elsewhere(record: &VerdictRecord, test: &Challenge, found: String) -> Again {
    let Some(holder) = record.holders.first() else {
        return Again::Untold {
            why: "the market does not say whose GPUs these are".into(),
            found: Some(found),
        };
    };
    let DeviceHolder { device, host, since } = holder;
    let Task::Devices(task) = &test.task else { return differs(found) };
    let tested: Vec<String> = task.devices.iter().map(|tested| tested.uuid.clone()).collect();
    let is_tested = devices_of(&record.claimed, &tested).contains(device);
    if !is_tested || *host == test.host || *since > record.verdict.decided_at {
        return differs(format!(
            "{found}; that {device} has belonged to {host} since {since} does not fit that"
        ));
    }
    let why = format!(
        "the evidence holds and the rules refuse nothing, and that {device} has belonged to {host} since {since} fits \
         both. Whether it has is not in the file: see the test of GPUs that ended then in `nave hosts verdicts {host}`"
    );
    Again::Untold { why, found: Some(found) }
}

fn compare(ruling: &Ruling, again: &Verdict) -> Again {
    match (ruling, again) {
        (Ruling::Passed(Some(theirs)), Verdict::Passed(ours)) if theirs == ours => same(passed(ours)),
        (Ruling::Passed(None), Verdict::Passed(ours)) => same(passed(ours)),
        (Ruling::Failed(theirs), Verdict::Failed(ours)) if theirs.code == ours.code => same(failed(ours)),
        (Ruling::Passed(_) | Ruling::Failed(_) | Ruling::Void(_), Verdict::Passed(ours)) => {
            differs(passed(ours))
        }
        (Ruling::Passed(_) | Ruling::Failed(_) | Ruling::Void(_), Verdict::Failed(ours)) => {
            differs(failed(ours))
        }
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
