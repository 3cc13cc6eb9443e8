//! Jobs: what a customer asks for, its limits and its states.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use crate::wish::{GpuRequest, Isolation, TermWish};
use crate::{
    QuoteId,
    host::Trust,
    lease::Outcome,
    rate::Size,
    units::{Bytes, MicroUsd, MilliCpu, MilliGpu, Millis},
    wish::{Region, is_usual_trust, usual_trust},
};

/// What a customer asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// Container image; a tag is pinned to its digest when the job is accepted.
    /// Left out, the market's default image runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The command as an argument vector; it is never joined into a shell line.
    pub argv: Vec<String>,
    /// Environment variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What the job occupies while it runs.
    #[serde(default)]
    pub resources: Resources,
    /// Which addresses it may reach.
    #[serde(default)]
    pub egress: Egress,
    /// Its customer's jobs of the same group reach one another, on whatever hosts they are,
    /// and nobody else's do: 1 to 64 characters of `A-Z a-z 0-9 . _ -`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its customer's jobs with the same number are never placed with one miner: replicas whose
    /// results are compared. Hosts are not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apart: Option<Uuid>,
    /// Of how many jobs of its group it is one that start together or not at all: 2 to 64. One that
    /// must run again starts alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gang: Option<u8>,
    /// What of a host it has for itself.
    #[serde(default, skip_serializing_if = "Isolation::is_default")]
    pub isolation: Isolation,
    /// Where its host is, such as `eu`: its owner's claim, or a cloud's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
    /// For how long its host is offered.
    #[serde(default, skip_serializing_if = "TermWish::is_default")]
    pub term: TermWish,
    /// What is known of its host. Unless told otherwise a GPU that nobody can rate will not do.
    #[serde(default = "usual_trust", skip_serializing_if = "is_usual_trust")]
    pub trust: BTreeSet<Trust>,
    /// The most that an hour may cost for each GPU of the job, its cores and memory included; without GPUs, for
    /// the whole job. Left out, GPUs of miners cost no more than clouds ask for such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_price: Option<MicroUsd>,
    /// How long it will run, as its customer thinks; it bounds nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_ms: Option<Millis>,
    /// The quote to run it on, at whose price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quote: Option<QuoteId>,
    /// How long it may queue, start and run.
    #[serde(default)]
    pub limits: Limits,
    /// How often a command that exits with a code other than 0 is tried again.
    #[serde(default)]
    pub retries: u8,
    /// The most the job may cost over all its attempts; held when it is accepted.
    #[serde(default = "default_max_spend")]
    pub max_spend: MicroUsd,
}

fn default_max_spend() -> MicroUsd {
    MicroUsd(500_000)
}

/// Capacity a job occupies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// GPUs; none for a job that computes on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuRequest>,
    /// Thousandths of a virtual CPU.
    pub milli_cpu: MilliCpu,
    /// Memory in bytes; the job is ended when it uses more.
    pub memory: Bytes,
    /// Space of the working directory in bytes.
    pub disk: Bytes,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            gpu: None,
            milli_cpu: MilliCpu(1_000),
            memory: Bytes(512 * Bytes::MIB),
            disk: Bytes(Bytes::GIB),
        }
    }
}

impl Resources {
    /// What of this is priced. GPUs are leased whole.
    #[must_use]
    pub fn size(&self) -> Size {
        let gpus = self.gpu.as_ref().map_or(0, |gpu| i64::from(gpu.count));
        Size { milli_gpu: MilliGpu(gpus * 1_000), milli_cpu: self.milli_cpu, memory: self.memory }
    }
}

/// Which addresses a job may reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// Public unicast addresses only: never the host, the mesh, other tenants,
    /// private ranges or metadata addresses.
    #[default]
    Public,
    /// Nothing but its own loopback, and its group where it has one.
    None,
}

/// Three separate time limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest wait for a host, over all attempts, in milliseconds.
    pub queue_ms: Millis,
    /// Longest time from placement to a running container, image pull included.
    pub start_ms: Millis,
    /// Longest run of one attempt.
    pub run_ms: Millis,
}

impl Limits {
    /// Longest time for which an attempt occupies a host.
    #[must_use]
    pub fn longest(&self) -> Millis {
        Millis(self.start_ms.0.saturating_add(self.run_ms.0))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { queue_ms: Millis(3_600_000), start_ms: Millis(600_000), run_ms: Millis(3_600_000) }
    }
}

/// Why a request cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BadRequest {
    /// The field at fault, as in the JSON.
    pub field: &'static str,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

/// Largest sum of the bytes of `argv` and `env`; Linux passes at most 2 MiB.
pub const ARGUMENT_BYTES_MAX: usize = 256 * 1024;
/// Longest reference to an image, in bytes: twice what registries know as a name, and a digest.
pub const IMAGE_BYTES_MAX: usize = 640;
/// Smallest memory limit; below it a container does not start reliably.
pub const MEMORY_MIN: Bytes = Bytes(16 * Bytes::MIB);
/// Smallest working directory: what a file system needs for itself and a little more.
pub const DISK_MIN: Bytes = Bytes(16 * Bytes::MIB);
/// Longest name of a group, in bytes.
pub const GROUP_BYTES_MAX: usize = 64;
/// Most open leases of one group: each knows the addresses of all others.
pub const GROUP_LEASES_MAX: u32 = 64;
/// Most jobs that are kept apart from one another.
pub const APART_JOBS_MAX: u32 = 16;
/// Longest of the three time limits: 30 days.
pub const LIMIT_MAX: Millis = Millis(30 * 86_400_000);

impl JobRequest {
    /// The request for a command and nothing else.
    #[must_use]
    pub fn of(argv: Vec<String>) -> Self {
        Self {
            image: None,
            argv,
            env: BTreeMap::new(),
            resources: Resources::default(),
            egress: Egress::default(),
            group: None,
            apart: None,
            gang: None,
            isolation: Isolation::default(),
            region: None,
            term: TermWish::default(),
            trust: usual_trust(),
            max_price: None,
            expected_ms: None,
            quote: None,
            limits: Limits::default(),
            retries: 0,
            max_spend: default_max_spend(),
        }
    }

    /// What of it decides where it runs and for what price: all but what runs there.
    #[must_use]
    pub fn placing(&self) -> Self {
        Self { image: None, argv: Vec::new(), env: BTreeMap::new(), retries: 0, quote: None, ..self.clone() }
    }

    /// How long it will run: as its customer thinks, or else a quarter of the longest run.
    #[must_use]
    pub fn expected(&self) -> Millis {
        self.expected_ms.unwrap_or(Millis(self.limits.run_ms.0 / 4))
    }

    /// Refuses what no host could ever run.
    ///
    /// # Errors
    /// [`BadRequest`] naming the first field at fault.
    pub fn check(&self) -> Result<(), BadRequest> {
        self.check_image()?;
        self.check_command()?;
        self.check_resources()?;
        self.check_group()?;
        self.check_place()?;
        let limits = [
            ("limits.queue_ms", self.limits.queue_ms),
            ("limits.start_ms", self.limits.start_ms),
            ("limits.run_ms", self.limits.run_ms),
        ];
        for (field, limit) in limits {
            within(field, limit.0, 1, LIMIT_MAX.0)?;
        }
        within("retries", i64::from(self.retries), 0, 10)?;
        within("max_spend", self.max_spend.0, 0, 1_000_000_000_000)
    }

    fn check_image(&self) -> Result<(), BadRequest> {
        let fits = |image: &String| {
            image.len() <= IMAGE_BYTES_MAX && image.bytes().all(|byte| byte.is_ascii_graphic())
        };
        match &self.image {
            Some(image) if !fits(image) => {
                let problem = format!("a reference of at most {IMAGE_BYTES_MAX} visible ASCII characters");
                Err(refuse("image", &problem))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn check_group(&self) -> Result<(), BadRequest> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        match &self.group {
            Some(name) if name.is_empty() || name.len() > GROUP_BYTES_MAX || !name.bytes().all(fits) => {
                let problem = format!("a name of 1 to {GROUP_BYTES_MAX} characters of A-Z a-z 0-9 . _ -");
                Err(refuse("group", &problem))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn check_place(&self) -> Result<(), BadRequest> {
        if let Some(gang) = self.gang {
            within("gang", i64::from(gang), 2, i64::from(GROUP_LEASES_MAX))?;
            if self.group.is_none() {
                return Err(refuse("gang", "a gang is part of a group; name it in group"));
            }
            if self.quote.is_some() {
                return Err(refuse("gang", "a quote holds the place of one job; leave quote or gang out"));
            }
        }
        if self.apart.is_some() && (self.gang.is_some() || self.quote.is_some()) {
            return Err(refuse("apart", "a job of a gang or on a quote is kept apart from none"));
        }
        if self.trust.is_empty() {
            return Err(refuse("trust", "name at least one of verified, attested, cloud and unrated"));
        }
        if let Some(most) = self.max_price {
            within("max_price", most.0, 0, 1_000_000_000_000)?;
        }
        self.expected_ms.map_or(Ok(()), |span| within("expected_ms", span.0, 1, LIMIT_MAX.0))
    }

    fn check_command(&self) -> Result<(), BadRequest> {
        if self.argv.first().is_none_or(String::is_empty) {
            return Err(refuse("argv", "name a command to run"));
        }
        let arguments: usize = self.argv.iter().map(|arg| arg.len() + 1).sum();
        let variables: usize = self.env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        if arguments + variables > ARGUMENT_BYTES_MAX {
            return Err(refuse("argv", "argv and env together exceed 256 KiB"));
        }
        if self.argv.iter().any(|arg| arg.contains('\0')) {
            return Err(refuse("argv", "an argument contains a NUL byte"));
        }
        if self.env.values().any(|value| value.contains('\0')) {
            return Err(refuse("env", "a value contains a NUL byte"));
        }
        match self.env.keys().find(|name| !is_variable_name(name)) {
            Some(name) => {
                Err(refuse("env", &format!("{name:?} is not a variable name: letters, digits and _")))
            }
            None => Ok(()),
        }
    }

    fn check_resources(&self) -> Result<(), BadRequest> {
        let wanted = &self.resources;
        within("resources.milli_cpu", wanted.milli_cpu.0, 10, 1_024_000)?;
        within("resources.memory", wanted.memory.0, MEMORY_MIN.0, 1 << 46)?;
        within("resources.disk", wanted.disk.0, DISK_MIN.0, 1 << 46)?;
        wanted.gpu.as_ref().map_or(Ok(()), GpuRequest::check)
    }
}

fn is_variable_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn within(field: &'static str, value: i64, min: i64, max: i64) -> Result<(), BadRequest> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(refuse(field, &format!("{value} is not between {min} and {max}")))
}

fn refuse(field: &'static str, problem: &str) -> BadRequest {
    BadRequest { field, problem: problem.to_owned() }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for a host.
    Queued,
    /// A host was chosen and prepares the container.
    Placed,
    /// Its command runs.
    Running,
    /// Its customer cancelled it; the host has not confirmed yet.
    Cancelling,
    /// The command exited with code 0.
    Succeeded,
    /// The command failed or a limit ended it.
    Failed,
    /// Its customer ended it.
    Cancelled,
}

impl JobState {
    /// All states, in the order of a job's life.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Placed,
        Self::Running,
        Self::Cancelling,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Whether nothing can change any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The name in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Placed => "placed",
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What can happen to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobEvent {
    /// The scheduler chose a host.
    Place,
    /// The host says the command runs.
    Start,
    /// The customer cancels.
    Cancel,
    /// An attempt ended and the job is done.
    Succeed,
    /// An attempt or the wait ended and the job cannot succeed.
    Fail,
    /// An attempt ended and another one follows.
    Requeue,
}

impl JobEvent {
    /// All events.
    pub const ALL: [Self; 6] =
        [Self::Place, Self::Start, Self::Cancel, Self::Succeed, Self::Fail, Self::Requeue];
}

/// A job's state after `event`; `None` where the event is illegal.
#[must_use]
pub fn next(state: JobState, event: JobEvent) -> Option<JobState> {
    use JobEvent as E;
    use JobState as S;
    match (state, event) {
        (S::Queued, E::Place) => Some(S::Placed),
        (S::Queued, E::Cancel) => Some(S::Cancelled),
        (S::Placed, E::Start) => Some(S::Running),
        (S::Placed | S::Running, E::Cancel) | (S::Cancelling, E::Start | E::Cancel) => Some(S::Cancelling),
        (S::Placed | S::Running, E::Succeed) => Some(S::Succeeded),
        (S::Queued | S::Placed | S::Running, E::Fail) => Some(S::Failed),
        (S::Placed | S::Running, E::Requeue) => Some(S::Queued),
        (S::Cancelling, E::Succeed | E::Fail | E::Requeue) => Some(S::Cancelled),
        (S::Queued, E::Start | E::Succeed | E::Requeue)
        | (S::Placed | S::Running | S::Cancelling, E::Place)
        | (S::Running, E::Start)
        | (S::Succeeded | S::Failed | S::Cancelled, _) => None,
    }
}

/// How many attempts of a job ended, and through whose fault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tries {
    /// Attempts that ended through the job's own command.
    pub command: u32,
    /// Attempts that ended through the host or the network.
    pub host: u32,
}

/// Attempts that may end through hosts before the job fails. With the pauses between
/// them a job outlasts half a minute in which its only host cannot start anything.
pub const HOST_TRIES_MAX: u32 = 6;

/// What an attempt's end means for its job, given the tries including that one.
#[must_use]
pub fn after(outcome: &Outcome, tries: Tries, retries: u8) -> JobEvent {
    match outcome {
        Outcome::Exited { code: 0 } => JobEvent::Succeed,
        Outcome::Exited { .. } | Outcome::OutOfMemory | Outcome::OutOfGpuMemory { .. }
            if tries.command <= u32::from(retries) =>
        {
            JobEvent::Requeue
        }
        Outcome::HostLost | Outcome::StartFailed { .. } | Outcome::Killed if tries.host < HOST_TRIES_MAX => {
            JobEvent::Requeue
        }
        Outcome::Preempted => JobEvent::Requeue,
        Outcome::Exited { .. }
        | Outcome::OutOfMemory
        | Outcome::OutOfGpuMemory { .. }
        | Outcome::HostLost
        | Outcome::StartFailed { .. }
        | Outcome::Killed
        | Outcome::StartTimeout
        | Outcome::RunTimeout
        | Outcome::SpendCap
        | Outcome::Cancelled => JobEvent::Fail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> JobRequest {
        serde_json::from_str(r#"{"argv":["true"]}"#).expect("the smallest request")
    }

    #[test]
    fn the_smallest_request_names_only_a_command() {
        assert_eq!(request().check(), Ok(()));
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let error = serde_json::from_str::<JobRequest>(r#"{"argv":["true"],"gpus":1}"#).expect_err("unknown");
        assert!(error.to_string().contains("gpus"), "{error}");
    }

    #[test]
    fn what_no_host_could_run_is_refused_with_its_field() {
        type Spoil = fn(&mut JobRequest);
        fn gpu(r: &mut JobRequest) -> &mut GpuRequest {
            r.resources.gpu.get_or_insert_default()
        }
        let cases: [(&str, Spoil); 21] = [
            ("image", |r| r.image = Some("a\0b".into())),
            ("image", |r| r.image = Some("x".repeat(IMAGE_BYTES_MAX + 1))),
            ("argv", |r| r.argv.clear()),
            ("argv", |r| r.argv = vec!["a\0b".into()]),
            ("argv", |r| r.argv = vec!["x".repeat(ARGUMENT_BYTES_MAX)]),
            ("env", |r| drop(r.env.insert("A=B".into(), String::new()))),
            ("resources.memory", |r| r.resources.memory = Bytes(1)),
            ("limits.run_ms", |r| r.limits.run_ms = Millis(0)),
            ("retries", |r| r.retries = 11),
            ("resources.gpu.count", |r| gpu(r).count = 0),
            ("resources.gpu.vram_max", |r| {
                (gpu(r).vram, gpu(r).vram_max) = (Bytes(2 << 30), Some(Bytes(1 << 30)));
            }),
            ("resources.gpu.share", |r| gpu(r).share = Some(1_001)),
            ("resources.gpu.models", |r| gpu(r).models = vec!["nvidia".into()]),
            ("resources.gpu.models", |r| gpu(r).models = vec!["H100\0".into()]),
            ("resources.gpu.models", |r| gpu(r).models = vec!["H100".into(); 17]),
            ("gang", |r| r.gang = Some(2)),
            ("gang", |r| (r.group, r.gang) = (Some("g".into()), Some(1))),
            ("apart", |r| (r.apart, r.quote) = (Some(Uuid::nil()), Some(QuoteId(Uuid::nil())))),
            ("trust", |r| r.trust.clear()),
            ("max_price", |r| r.max_price = Some(MicroUsd(-1))),
            ("expected_ms", |r| r.expected_ms = Some(Millis(0))),
        ];
        for (field, spoil) in cases {
            let mut request = request();
            spoil(&mut request);
            assert_eq!(request.check().expect_err(field).field, field);
        }
    }

    #[test]
    fn a_group_is_a_short_plain_name() {
        for (name, fine) in [
            ("a", true),
            ("Run.7_b-2", true),
            ("", false),
            ("two words", false),
            ("a/b", false),
            ("\u{e4}", false),
            ("line\n", false),
            (&"x".repeat(64), true),
            (&"x".repeat(65), false),
        ] {
            let request = JobRequest { group: Some(name.to_owned()), ..request() };
            assert_eq!(
                request.check().map_err(|error| error.field),
                if fine { Ok(()) } else { Err("group") }
            );
        }
    }

    #[test]
    fn what_was_not_asked_for_is_not_written() {
        let written = serde_json::to_value(request()).expect("JSON");
        let names: Vec<&String> = written.as_object().expect("an object").keys().collect();
        assert_eq!(names, ["argv", "egress", "env", "limits", "max_spend", "resources", "retries"]);
        assert_eq!(request(), JobRequest::of(vec!["true".into()]));
    }

    #[test]
    fn gpus_are_asked_for_by_what_matters_and_nothing_else() {
        let read = |text: &str| serde_json::from_str::<GpuRequest>(text);
        assert_eq!(read("{}").expect("one of any kind"), GpuRequest::default());
        let h100 = read(r#"{"models":["H100"],"count":2}"#).expect("two of a model");
        assert_eq!(h100, GpuRequest { count: 2, models: vec!["H100".into()], ..GpuRequest::default() });
        assert!(read(r#"{"model":"H100"}"#).is_err(), "no such field");
    }

    #[test]
    fn a_command_is_retried_as_often_as_asked_and_a_lost_host_five_times() {
        let failed = Outcome::Exited { code: 3 };
        assert_eq!(after(&failed, Tries { command: 1, host: 0 }, 1), JobEvent::Requeue);
        assert_eq!(after(&failed, Tries { command: 2, host: 0 }, 1), JobEvent::Fail);
        assert_eq!(after(&Outcome::HostLost, Tries { command: 0, host: 5 }, 0), JobEvent::Requeue);
        assert_eq!(after(&Outcome::HostLost, Tries { command: 0, host: 6 }, 0), JobEvent::Fail);
    }
}
