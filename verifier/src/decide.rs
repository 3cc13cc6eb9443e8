//! What to do about a host that is to be tested, and about a challenge that is open. Pure.

use nave_domain::{
    MilliCpu, Millis,
    host::{Device, HostState, Inventory, devices_of},
    verdict::{Cause, Kind},
};
use nave_proof::{
    Challenge, Digest, EXPLANATION_MAX, Evidence, Failure, Message, Opening, Proven, Reason, Span, Task,
    VERSION, Verdict,
};
use nave_rules::{Gravity, gravity, judge, may_be_a_jobs_doing};
use nave_store::{Decision, Holder, Moment, OpenChallenge};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How far the control clock and the database's may come apart during a step. What is
/// more was time in which the host could not reach us, or a clock that was set.
const LAG_MS_MAX: i64 = 1_500;
/// Pause after a first failed proof, on the control clock; each further one doubles it.
const PAUSE: Millis = Millis(10_000);
/// Longest pause after a failed proof.
const PAUSE_MAX: Millis = Millis(3_600_000);

/// Why a challenge is void that cannot be read any more, or not as far as it goes.
pub const CANNOT_BE_JUDGED: &str = "no verifier reads this challenge any more, so it cannot be judged";

/// What is written down as the end of a challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ruling {
    /// The claim holds.
    Passed(Proven),
    /// It does not, or the host did not show it.
    Failed(Failure),
    /// The challenge says nothing about the host, and why; it does not count.
    Void(String),
}

/// A ruling as it is written down, with what it rests on beside the evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// What it says.
    #[serde(flatten)]
    pub ruling: Ruling,
    /// The rules of the verifier; none where it wrote them down before they had a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<Digest>,
    /// Which of the GPUs that were shown belong to other hosts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<Holder>,
}

/// What to do about an open challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing yet.
    Wait,
    /// Send the nonce of this step.
    Reveal(u32),
    /// Judge what came back.
    Judge(Box<Case>),
    /// End it.
    Rule(Ruling),
}

/// A challenge that was answered to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// What the host was asked to do, with all that was revealed.
    pub challenge: Challenge,
    /// What it claims.
    pub claims: Inventory,
    /// What it committed to.
    pub commitments: Vec<Digest>,
    /// Where its opening is.
    pub opening: Opening,
    /// How long each step took.
    pub spans: Vec<Span>,
    /// Whether hosts could not reach the control plane for some of that time.
    pub cut_off: bool,
}

fn read_challenge(body: &Value) -> Option<Challenge> {
    serde_json::from_value(body.clone()).ok().filter(|challenge: &Challenge| challenge.version == VERSION)
}

/// What to do about an open challenge now. Its host may be silent for `silent` on the
/// control clock before that is its answer.
#[must_use]
pub fn decide(open: &OpenChallenge, silent: Millis) -> Next {
    match is_elsewhere(open) {
        Some(why) => match decide_again(open, silent) {
            // Nobody leaves to evade the verdict on what is shown already, or would be next.
            Next::Judge(case) => Next::Judge(case),
            Next::Wait | Next::Reveal(_) | Next::Rule(_)
                if is_away(open) && knew(open) && open.lease.is_none() =>
            {
                fail(Reason::Aborted, format!("{why} when it was to show its work"))
            }
            Next::Wait | Next::Reveal(_) | Next::Rule(_) => void(why),
        },
        None => decide_again(open, silent),
    }
}

/// Until when on the control clock nothing can be done about a challenge, unless something comes: when the host has
/// had its time for what it is to do next. None where that is for another version to know.
#[must_use]
pub fn waits_until(open: &OpenChallenge, silent: Millis) -> Option<Millis> {
    let challenge = read_challenge(&open.body)?;
    let next = open.steps.iter().enumerate().find(|(_, step)| step.answer.is_none());
    let (from, span) = match next.map(|(number, step)| (number, step.sent, step.drawn_up)) {
        // It is told the next nonce now.
        None => (open.now.up, silent.0),
        Some((_, None, drawn_up)) => (drawn_up, silent.0),
        Some((number, Some(sent), _)) => {
            let left = challenge.task.patience(number).0.saturating_sub(open.now.at.since(sent.at).0);
            (open.now.up, left.max(0))
        }
    };
    Some(Millis(from.0.saturating_add(span).saturating_add(1)))
}

/// Whether its owner has taken the host out, or had it join again, since.
fn is_away(open: &OpenChallenge) -> bool {
    matches!(open.host_state, HostState::Enrolled | HostState::Gone) || open.drawn_at < open.joined_at
}

/// As [`decide`], wherever the host is by now: for a verdict that is to be reached again.
#[must_use]
pub fn decide_again(open: &OpenChallenge, silent: Millis) -> Next {
    match with_reveals(open) {
        Some(challenge) => match challenge.task.check() {
            Ok(()) => follow(open, challenge, silent),
            Err(why) => {
                fail(Reason::Aborted, format!("{} cannot be tested: {why}", claimed(&challenge.task)))
            }
        },
        // A newer verifier, which runs beside this one, will know what to do.
        None if is_newer(open) => Next::Wait,
        None => void(CANNOT_BE_JUDGED),
    }
}

/// Whether a challenge is of a newer verifier, which runs beside this one.
#[must_use]
pub fn is_newer(open: &OpenChallenge) -> bool {
    open.body.get("version").and_then(Value::as_u64) > Some(u64::from(VERSION))
}

/// Why the host is not the one that is tested, if it is not.
fn is_elsewhere(open: &OpenChallenge) -> Option<&'static str> {
    match open.host_state {
        HostState::Gone | HostState::Banned => Some("the host left the market"),
        HostState::Enrolled => Some("the host joined again"),
        HostState::Verifying
        | HostState::Ready
        | HostState::Suspect
        | HostState::Refused
        | HostState::Draining => (open.drawn_at < open.joined_at).then_some("the host joined again"),
    }
}

/// The challenge with the nonces that rows have for it.
fn with_reveals(open: &OpenChallenge) -> Option<Challenge> {
    let challenge = read_challenge(&open.body)?;
    let is_its_own = challenge.challenge == open.challenge && challenge.host == open.host;
    let (first, later) = open.steps.split_first()?;
    let reveals = later.iter().map(|step| step.reveal.as_ref()?.parse().ok());
    let reveals = reveals.collect::<Option<Vec<_>>>()?;
    let in_order = first.reveal.is_none() && reveals.len() <= challenge.task.commitments();
    (is_its_own && in_order).then_some(Challenge { reveals, ..challenge })
}

/// Goes through the steps up to the first that lacks something.
fn follow(open: &OpenChallenge, challenge: Challenge, silent: Millis) -> Next {
    let (mut commitments, mut spans, mut cut_off) = (Vec::new(), Vec::new(), false);
    for (number, step) in open.steps.iter().enumerate() {
        let Some(sent) = step.sent else { return unsent(open, step.drawn_up, silent) };
        let until = step.answer.as_ref().map_or(open.now, |(_, received)| *received);
        let lag = lag_ms(sent, until);
        if lag < -LAG_MS_MAX {
            return void("the clock was set back meanwhile");
        }
        cut_off |= lag > LAG_MS_MAX;
        let (took, most) = (until.at.since(sent.at), challenge.task.patience(number));
        if took > most {
            let message = format!("no answer to step {number} within {most}");
            return Next::Rule(excuse(Failure { code: Reason::TooLate, message }, cut_off));
        }
        let Some((answer, _)) = &step.answer else { return Next::Wait };
        spans.push(Span { sent: sent.at, received: until.at });
        let is_last = number == challenge.task.commitments();
        match serde_json::from_value::<Message>(answer.clone()) {
            Ok(Message::Commitment(commitment)) if !is_last => commitments.push(commitment),
            Ok(Message::Opening(opening)) if is_last => {
                let claims = open.claims.clone();
                return Next::Judge(Box::new(Case {
                    challenge,
                    claims,
                    commitments,
                    opening,
                    spans,
                    cut_off,
                }));
            }
            Ok(Message::Failed(failure)) => return Next::Rule(excuse(told(failure), cut_off)),
            Ok(Message::Commitment(_) | Message::Opening(_)) => {
                let message = format!("step {number} was answered with what belongs to another step");
                return fail(Reason::EvidenceMalformed, message);
            }
            Err(_) => {
                let message = format!("the answer to step {number} cannot be read");
                return fail(Reason::EvidenceMalformed, message);
            }
        }
    }
    // GPUs are full until then: what they do next needs the host's cores and memory, too.
    if open.beside_memory {
        return Next::Wait;
    }
    Next::Reveal(u32::try_from(open.steps.len()).unwrap_or(u32::MAX))
}

/// A step that the host has not fetched: while the control plane is away, nobody can.
fn unsent(open: &OpenChallenge, drawn_up: Millis, silent: Millis) -> Next {
    if open.now.up.0.saturating_sub(drawn_up.0) <= silent.0 {
        return Next::Wait;
    }
    fail(Reason::TooLate, format!("the host was silent for more than {silent} while it was tested"))
}

/// How much longer a stretch was on the database's clock than on the control clock.
fn lag_ms(from: Moment, to: Moment) -> i64 {
    let wall = to.at.0.saturating_sub(from.at.0);
    wall.saturating_sub(to.up.0.saturating_sub(from.up.0))
}

fn void(why: &str) -> Next {
    Next::Rule(Ruling::Void(why.to_owned()))
}

fn fail(code: Reason, message: String) -> Next {
    Next::Rule(Ruling::Failed(Failure { code, message }))
}

/// A failure that may come from the time in which hosts could not reach us does not count.
fn excuse(failure: Failure, cut_off: bool) -> Ruling {
    let of_time = match failure.code {
        Reason::CpuOverclaimed
        | Reason::MemoryMissing
        | Reason::TooLate
        | Reason::DeviceMismatch
        | Reason::DeviceThrottled
        | Reason::VramMissing
        | Reason::ReturnTooSlow
        | Reason::DiskTooSlow
        | Reason::TransferTooSlow
        | Reason::PortUnreachable => true,
        Reason::MemoryUnavailable
        | Reason::EvidenceWrong
        | Reason::EvidenceMalformed
        | Reason::BindingWrong
        | Reason::Aborted
        | Reason::VersionUnknown
        | Reason::DeviceUnavailable
        | Reason::DeviceElsewhere
        | Reason::DeviceBusy
        | Reason::DiskMissing
        | Reason::SoftwareOutdated
        | Reason::DriverTampered
        | Reason::RuntimeBroken => false,
    };
    match cut_off && of_time {
        true => Ruling::Void("hosts could not reach the control plane meanwhile".into()),
        false => Ruling::Failed(failure),
    }
}

/// What a host says of itself.
fn told(failure: Failure) -> Failure {
    readable(Failure { code: nave_rules::told(failure.code), ..failure })
}

/// What a host says about its failure, short enough to keep and without what Postgres does not store.
fn readable(failure: Failure) -> Failure {
    let plain = failure.message.replace(char::is_control, " ");
    let end = (0..=EXPLANATION_MAX.min(plain.len())).rev().find(|end| plain.is_char_boundary(*end));
    Failure { message: plain[..end.unwrap_or(0)].to_owned(), ..failure }
}

fn claimed(task: &Task) -> String {
    match task {
        Task::Cpu(task) => format!("a claim of {} thousandths of a core", task.milli_cpu.0),
        Task::Memory(task) => {
            let MilliCpu(milli) = task.milli_cpu;
            format!("a claim of {} with {milli} thousandths of a core", task.memory)
        }
        Task::Devices(task) => format!("a claim of {} devices", task.devices.len()),
        Task::Storage(task) => format!("a claim of {} of disk", task.disk),
        Task::Software(_) => "the software".into(),
        Task::Transfer(task) => format!("a transfer from {}", task.source),
    }
}

impl Case {
    /// What comes of it; `opening` has the bytes, or why there are none.
    #[must_use]
    pub fn rule(&self, opening: Result<Vec<u8>, Failure>) -> Ruling {
        let judged = opening.map(|opening| {
            let evidence = Evidence { commitments: self.commitments.clone(), opening };
            judge(&self.challenge, &self.claims.devices, &evidence, &self.spans)
        });
        match judged {
            Ok(Verdict::Passed(proven)) => Ruling::Passed(proven),
            Ok(Verdict::Failed(failure)) | Err(failure) => excuse(failure, self.cut_off),
        }
    }
}

/// What a ruling is about, beside the evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing<'a> {
    /// Failed proofs of the host in a row.
    pub refusals: u32,
    /// Whether what it failed last, but for trouble, was in doubt, and nothing was proven since.
    pub was_in_doubt: bool,
    /// Whether it was tested when all were, or knew what it would have to show.
    pub knew: bool,
    /// Whether it gave up, for whatever reason it names.
    pub gave_up: bool,
    /// Whether it means nothing for the host.
    pub shadow: bool,
    /// Whether the host had jobs to do meanwhile.
    pub beside_jobs: bool,
    /// How long bans are: the first one, the next, and so on.
    pub bans: &'a [Millis],
    /// The GPUs that the host claims.
    pub claims: &'a [Device],
}

impl<'a> Standing<'a> {
    /// Where the host of a challenge stands.
    #[must_use]
    pub fn of(open: &'a OpenChallenge, bans: &'a [Millis]) -> Self {
        Self {
            refusals: open.refusals,
            was_in_doubt: open.was_in_doubt,
            knew: knew(open),
            gave_up: gave_up(open) || is_away(open),
            shadow: open.shadow,
            beside_jobs: open.lease.is_some(),
            bans,
            claims: &open.claims.devices,
        }
    }
}

/// Whether the host was tested when all were, or knew what it would have to show.
fn knew(open: &OpenChallenge) -> bool {
    open.cause == Cause::Window || knows_its_samples(open)
}

/// Whether the last nonce was handed to the host: it knows then what it would have to show. In
/// a transfer the other host has a part in what comes.
fn knows_its_samples(open: &OpenChallenge) -> bool {
    let last = read_challenge(&open.body).map_or(0, |challenge| challenge.task.commitments());
    let is_sent = open.steps.get(last).is_some_and(|step| step.sent.is_some());
    last > 0 && is_sent && open.kind != Kind::Transfer
}

fn gave_up(open: &OpenChallenge) -> bool {
    let answer = open.steps.last().and_then(|step| step.answer.as_ref());
    let answer = answer.and_then(|(answer, _)| serde_json::from_value::<Message>(answer.clone()).ok());
    matches!(answer, Some(Message::Failed(_)))
}

/// How bad a failure is, where the host stands: who stops once it knows what it would have to
/// show, or when everyone is tested, picks its tests.
fn weight(code: Reason, of: &Standing<'_>) -> Gravity {
    let stopped = of.gave_up || code == Reason::TooLate;
    match stopped && of.knew && !of.beside_jobs {
        true => gravity(code).max(Gravity::Doubt),
        false => gravity(code),
    }
}

impl Ruling {
    /// For programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Passed(_) => "passed",
            Self::Failed(failure) => failure.code.as_str(),
            Self::Void(_) => "void",
        }
    }

    /// What is written down, where others hold some of the GPUs that were shown.
    #[must_use]
    pub fn written(self, holders: Vec<Holder>) -> Written {
        let ruling = match (self, holders.first()) {
            (Self::Passed(_), Some(holder)) => {
                let Holder { device, host, since } = holder;
                let message = format!("{device} has belonged to {host} since {since}");
                Self::Failed(Failure { code: Reason::DeviceElsewhere, message })
            }
            (ruling, _) => ruling,
        };
        Written { ruling, rules: Some(nave_rules::digest()), holders }
    }

    /// Those of these GPUs that were shown, or of which a slice was: whose slices are somewhere is there itself.
    #[must_use]
    pub fn devices(&self, claims: &[Device]) -> Vec<String> {
        match self {
            Self::Passed(Proven::Devices(shown)) => {
                let shown: Vec<String> = shown.iter().map(|device| device.uuid.clone()).collect();
                devices_of(claims, &shown)
            }
            Self::Passed(
                Proven::Cpu { .. }
                | Proven::Memory { .. }
                | Proven::Storage { .. }
                | Proven::Software(_)
                | Proven::Transfer { .. },
            )
            | Self::Failed(_)
            | Self::Void(_) => Vec::new(),
        }
    }

    /// What it means for the host. One kind of claim alone proves nothing yet.
    #[must_use]
    pub fn decision(&self, of: &Standing<'_>) -> Decision {
        match self {
            Self::Failed(failure) if !of.shadow => failed(failure, of),
            Self::Passed(_) if !of.shadow && of.beside_jobs => Decision::Shown,
            Self::Passed(_) if !of.shadow => match self.devices(of.claims) {
                devices if devices.is_empty() => Decision::Stays,
                devices => Decision::Holds { devices },
            },
            Self::Passed(_) | Self::Failed(_) | Self::Void(_) => Decision::Stays,
        }
    }
}

fn failed(failure: &Failure, of: &Standing<'_>) -> Decision {
    let (code, message) = (failure.code.as_str().to_owned(), failure.message.clone());
    match weight(failure.code, of) {
        Gravity::Cheating => Decision::Banned { code, message, spans: of.bans.to_vec() },
        // It is on record; the job goes on, and so does the host.
        Gravity::Doubt if of.beside_jobs => Decision::Stays,
        Gravity::Trouble if of.beside_jobs && may_be_a_jobs_doing(failure.code) => Decision::Strained,
        Gravity::Trouble if of.beside_jobs => Decision::Doubted,
        Gravity::Doubt if of.was_in_doubt => Decision::Banned { code, message, spans: of.bans.to_vec() },
        Gravity::Doubt => Decision::Mistrusted { code, message, pause: pause(of.refusals) },
        Gravity::Trouble => Decision::Refused { code, message, pause: pause(of.refusals) },
    }
}

/// How long a host waits until it is tested again.
fn pause(refusals: u32) -> Millis {
    Millis((PAUSE.0 << refusals.min(16)).min(PAUSE_MAX.0))
}
