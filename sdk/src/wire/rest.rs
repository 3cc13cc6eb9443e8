//! The customers' REST API under `/v1`.
//!
//! | Call | Scope | Answer |
//! |---|---|---|
//! | `POST /v1/jobs` (header `Idempotency-Key`) | `jobs:write` | [`Job`], 201; 200 when the key was used for the same request |
//! | `GET /v1/jobs?limit&before&state` | `jobs:read` | [`Page`] of [`Job`] |
//! | `GET /v1/jobs/{job}?wait_ms` | `jobs:read` | [`Job`]; with `wait_ms` as soon as it is final |
//! | `POST /v1/jobs/{job}/cancel` | `jobs:write` | [`Job`] |
//! | `POST /v1/jobs/{job}/dispute` | `jobs:write` | [`Dispute`], 201; 200 when it was on record before |
//! | `GET /v1/jobs/{job}/logs?after&tail&since&follow` | `jobs:read` | [`Logs`], or with `follow=true` server-sent events |
//! | `GET /v1/jobs/{job}/result` | `jobs:read` | tar archive of the result files |
//! | `GET /v1/jobs/{job}/receipt` | `jobs:read` | [`Receipt`] |
//! | `GET /v1/offers?gpus&vram&models&region&term&trust…` | `jobs:read` | list of [`Offer`] |
//! | `POST /v1/quotes` (header `Idempotency-Key`) | `jobs:write` | [`super::quote::Quote`], 201; 200 when the key was used for the same request |
//! | `GET /v1/quotes/{quote}` | `jobs:read` | [`super::quote::Quote`] |
//! | `GET /v1/hosts` | `hosts:read` | list of [`Host`] |
//! | `GET /v1/balance` | `balance:read` | [`Balance`] |
//! | `GET /v1/ledger?limit&before` | `balance:read` | [`Page`] of [`LedgerLine`] |
//! | `GET /v1/keys`, `POST /v1/keys`, `DELETE /v1/keys/{key}` | `keys:write` | list of [`Key`], [`NewKey`], 204 |
//! | `GET /v1/epochs?limit`, `GET /v1/epochs/{epoch}` | `jobs:read` | list of [`Epoch`], [`Epoch`] |
//! | `GET /v1/health` | none | [`Health`] |
//!
//! Calls of hosts that join and of miners are in [`super::enrol`], those about verdicts in [`super::verdict`].
//!
//! Log events of a followed log: `event: log`, `id:` a cursor for `Last-Event-ID`,
//! `data:` a [`LogLine`]; at the end `event: end` with the [`Job`].

use std::collections::BTreeMap;

use nave_domain::{
    Bytes, ChallengeId, CustomerId, HostId, JobId, KeyId, LeaseId, MicroUsd, MilliGpu, Millis, Timestamp,
    dispute::DisputeState,
    epoch::EpochState,
    host::{HostState, Inventory, Term, Trust},
    job::{Isolation, JobRequest, JobState},
    lease::{ChosenFor, LeaseState, Outcome},
    ledger::PostingKind,
    rate::{Rate, Size},
    wish::Region,
};
use serde::{Deserialize, Serialize};

use super::{enrol::StateReason, event::ServiceEvent, host::Stream};

macro_rules! wire {
    ($($(#[$doc:meta])* pub struct $name:ident { $($fields:tt)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub struct $name { $($fields)* }
    )*};
}

wire! {
/// A job as its customer sees it.
pub struct Job {
    /// Its id.
    pub job: JobId,
    /// Where it stands.
    pub state: JobState,
    /// What was asked for, with the image pinned to its digest.
    pub request: JobRequest,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it reached a final state.
    pub finished_at: Option<Timestamp>,
    /// The exit code of the attempt that settled it.
    pub exit_code: Option<i32>,
    /// Why it failed or what it waits for, in one sentence.
    pub reason: Option<Reason>,
    /// What it has cost so far.
    pub charged: MicroUsd,
    /// Every attempt, oldest first, with its host, price and outcome.
    pub attempts: Vec<Attempt>,
    /// Whether result files can be fetched.
    pub has_result: bool,
    /// Whether files were left out of the result, of which 32 MiB and 65536 files and directories come back at most.
    pub result_truncated: bool,
    /// What can be done with it now: `cancel`, `logs`, `result`, `receipt`, `dispute`.
    pub actions: Vec<String>,
    /// That its customer says a result of it is wrong, by attempt, and what came of that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disputes: Vec<Dispute>,
}

/// A customer's word that the result of an attempt is wrong: its host is tested again, in whole.
pub struct Dispute {
    /// Which attempt.
    pub attempt: u32,
    /// The host that it ran on.
    pub host: HostId,
    /// What is wrong, as the customer says; its host is not told.
    pub reason: String,
    /// Since when.
    pub opened_at: Timestamp,
    /// Where it stands.
    pub state: DisputeState,
    /// When it was known what came of it.
    pub decided_at: Option<Timestamp>,
    /// The verdict that says so, at `/v1/hosts/{host}/verdicts/{verdict}`: the failed one, or the last of
    /// those that were passed.
    pub verdict: Option<ChallengeId>,
}

/// A reason for a state.
pub struct Reason {
    /// Stable and machine-readable, such as `no_host_fits`.
    pub code: String,
    /// One sentence for a person, with what to do.
    pub message: String,
}

/// One attempt of a job.
pub struct Attempt {
    /// Its lease.
    pub lease: LeaseId,
    /// Counted from 1.
    pub attempt: u32,
    /// The host it was placed on.
    pub host: HostId,
    /// The host's name.
    pub host_name: String,
    /// Where it stands.
    pub state: LeaseState,
    /// Why this host was chosen.
    #[serde(default)]
    pub reason: ChosenFor,
    /// Its price per hour.
    pub hourly: MicroUsd,
    /// What clouds asked for an hour of one of its GPUs then; absent where nobody knows.
    #[serde(default)]
    pub baseline: Option<MicroUsd>,
    /// How much cheaper an hour of one of its GPUs was with the cores and memory it had; negative where it was
    /// dearer.
    #[serde(default)]
    pub saving: Option<MicroUsd>,
    /// When the scheduler chose the host.
    pub placed_at: Timestamp,
    /// When the control plane heard that the command runs.
    pub started_at: Option<Timestamp>,
    /// When the control plane heard that it has ended.
    pub ended_at: Option<Timestamp>,
    /// Time charged.
    pub used_ms: Millis,
    /// What this attempt cost, refunds taken off.
    pub charged: MicroUsd,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// What went wrong with it, oldest first, and whose fault that was.
    #[serde(default)]
    pub events: Vec<ServiceEvent>,
}

/// Logs of a job so far.
pub struct Logs {
    /// Pieces in the order they came.
    pub lines: Vec<LogLine>,
    /// Pass as `after` to continue.
    pub cursor: String,
    /// Whether the job is final and nothing more will come.
    pub complete: bool,
}

/// A piece of output. It need not end with a line break.
pub struct LogLine {
    /// When the control plane received it.
    pub at: Timestamp,
    /// Which attempt wrote it.
    pub attempt: u32,
    /// Where it was written.
    pub stream: Stream,
    /// The text; bytes that are not UTF-8 are replaced by U+FFFD.
    pub text: String,
}

/// What a job cost and why. Its lines equal the ledger's.
pub struct Receipt {
    /// The job.
    pub job: JobId,
    /// Who pays.
    pub customer: CustomerId,
    /// Where it stands; once that is final, lines can only be added for what comes back.
    pub state: JobState,
    /// The image that ran, with its digest.
    pub image: String,
    /// Every attempt with its host and metered time.
    pub attempts: Vec<Metered>,
    /// Every ledger posting for this job, in order.
    pub lines: Vec<LedgerLine>,
    /// Charges less refunds. What came back because a host broke a promise is in the lines.
    pub total: MicroUsd,
    /// What is still set aside.
    pub held: MicroUsd,
    /// What the reader must know about the trust in these hosts.
    pub notice: String,
}

/// One attempt in a receipt.
pub struct Metered {
    /// The attempt.
    pub attempt: Attempt,
    /// What was leased.
    pub size: Size,
    /// The rate it was leased at.
    pub rate: Rate,
    /// GPUs, by UUID.
    pub devices: Vec<String>,
    /// Who owns the host.
    pub hotkey: String,
    /// What runs the host's jobs: `docker` or `simulated`.
    pub runtime: String,
    /// What was known of the host when it was chosen.
    pub trust: Trust,
}

/// A line of the ledger, as it touches one customer.
pub struct LedgerLine {
    /// When it was posted.
    pub at: Timestamp,
    /// What for.
    pub kind: PostingKind,
    /// The job, if for one.
    pub job: Option<JobId>,
    /// Account the money left.
    pub from: String,
    /// Account it arrived at.
    pub to: String,
    /// How much.
    pub amount: MicroUsd,
}

/// A customer's money.
pub struct Balance {
    /// Whose.
    pub customer: CustomerId,
    /// What can be spent.
    pub available: MicroUsd,
    /// What is set aside for open jobs.
    pub held: MicroUsd,
}

/// A class of devices: what clouds ask for it, and how much of it is leased.
pub struct DeviceClass {
    /// Its name.
    pub class: String,
    /// What clouds ask for an hour of one of them, that for anywhere first; empty where nobody knows.
    pub baselines: Vec<Baseline>,
    /// Thousandths of miners' devices that were leased in the epoch that ended last, or else in this one; absent
    /// where there are none.
    pub utilisation: Option<i64>,
}

/// What clouds ask for an hour of one device of a class, the machine around it included.
pub struct Baseline {
    /// The part of the world, such as `europe`; absent for anywhere without a baseline of its own.
    #[serde(default)]
    pub region: Option<String>,
    /// micro-USD.
    pub gpu_hour: MicroUsd,
    /// Whether it is from a list of prices that somebody read once. No cloud was asked: it is no market price.
    pub listed: bool,
    /// Which clouds it was made from, or where the list is from.
    pub source: String,
    /// When the newest of that was fetched, or read.
    pub fetched_at: Timestamp,
}

/// Capacity that can be rented now: of a host without GPUs, of its GPUs of one kind, or of fractions of them.
pub struct Offer {
    /// The host.
    pub host: HostId,
    /// Its name.
    pub host_name: String,
    /// The GPUs; absent where the host has none.
    #[serde(default)]
    pub devices: Option<DeviceGroup>,
    /// What is offered of one of them, where that is not all of it.
    #[serde(default)]
    pub fraction: Option<OfferedFraction>,
    /// Free capacity.
    pub free: Capacity,
    /// Whole capacity.
    pub total: Capacity,
    /// Price in its parts.
    pub rate: Rate,
    /// For how long it is offered.
    #[serde(default)]
    pub term: Term,
    /// Where its owner says it is.
    #[serde(default)]
    pub region: Option<Region>,
    /// The most that a job can have for itself now.
    #[serde(default)]
    pub isolation: Isolation,
    /// What is known of the host.
    pub trust: Trust,
    /// What clouds ask for an hour of one of the GPUs; absent where nobody knows.
    #[serde(default)]
    pub baseline: Option<MicroUsd>,
    /// How much cheaper an hour of one of the GPUs is here with its part of all cores and memory; negative where it
    /// is dearer.
    #[serde(default)]
    pub saving: Option<MicroUsd>,
    /// `docker` or `simulated`.
    pub runtime: String,
}

/// Fractions of GPUs that are alike. A slice may be next to those of others; a share is only ever next to your own.
pub struct OfferedFraction {
    /// How the vendor calls a slice, which the hardware keeps apart, such as `1g.10gb`; absent of a share.
    pub profile: Option<String>,
    /// Thousandths of a GPU's computing.
    pub share: MilliGpu,
    /// Memory.
    pub vram: Bytes,
    /// Thousandths of a GPU that are paid for: the larger of its computing and its memory.
    pub paid: MilliGpu,
    /// How many you can have.
    pub free: u32,
    /// How many there are.
    pub total: u32,
    /// Price per hour of one of them, in place of that of a GPU.
    pub gpu_hour: MicroUsd,
    /// What clouds ask for as much of a GPU; absent where nobody knows.
    pub baseline: Option<MicroUsd>,
    /// How much cheaper it is here with its part of all cores and memory; negative where it is dearer.
    pub saving: Option<MicroUsd>,
}

/// GPUs of a host that are alike.
pub struct DeviceGroup {
    /// What they are called; behind simulated ones stands `(simulated)`.
    pub model: String,
    /// Their class by what they have shown; absent where they are unrated.
    pub class: Option<String>,
    /// Memory of each.
    pub vram: Bytes,
    /// How many are free.
    pub free: u32,
    /// How many there are.
    pub total: u32,
}

/// Capacity in numbers.
pub struct Capacity {
    /// GPUs by model name; behind that of simulated ones stands `(simulated)`.
    pub gpus: BTreeMap<String, u32>,
    /// Thousandths of a virtual CPU.
    pub milli_cpu: i64,
    /// Memory.
    pub memory: Bytes,
    /// Space for working directories.
    pub disk: Bytes,
}

/// A host.
pub struct Host {
    /// Its id.
    pub host: HostId,
    /// Its name.
    pub name: String,
    /// Who owns it.
    pub hotkey: String,
    /// Where it stands.
    pub state: HostState,
    /// Why it takes no jobs, or fewer, where that needs saying.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<StateReason>,
    /// Whether its owner wants it to get no new jobs for now.
    #[serde(default)]
    pub paused: bool,
    /// For how long it is offered.
    #[serde(default)]
    pub term: Term,
    /// Where its owner says it is.
    #[serde(default)]
    pub region: Option<Region>,
    /// What is known of it.
    pub trust: Trust,
    /// What it says it has; absent before its first report.
    pub inventory: Option<Inventory>,
    /// Its price.
    pub rate: Rate,
    /// When it was last heard.
    pub heard_at: Option<Timestamp>,
    /// Number of open leases.
    pub leases: u32,
}

/// An API key without its secret.
pub struct Key {
    /// Its id.
    pub key: KeyId,
    /// What its owner calls it.
    pub label: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A new API key. The token is shown this once and stored only as a hash.
pub struct NewKey {
    /// The key.
    pub key: Key,
    /// `nave_` and 64 hexadecimal digits; goes into `Authorization: Bearer`.
    pub token: String,
}

/// An epoch and its weights.
pub struct Epoch {
    /// Counted from 1.
    pub epoch: i64,
    /// Where it stands.
    pub state: EpochState,
    /// When it began.
    pub opened_at: Timestamp,
    /// When its deliveries were fixed.
    pub closed_at: Option<Timestamp>,
    /// Time and value delivered, by miner hotkey; empty until the weights are revealed.
    pub delivered: BTreeMap<String, Delivered>,
    /// Weight by miner hotkey; sums to 65535. Empty until they are revealed.
    pub weights: BTreeMap<String, u16>,
    /// The chain the weights go to, such as `local`.
    pub chain: String,
    /// Its evidence, once it is settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
}

/// What there is of an epoch's evidence.
pub struct Evidence {
    /// SHA-256 of the bundle's last line, which goes to the chain with the weights.
    pub head: String,
    /// Lines of the bundle.
    pub lines: i64,
    /// Bytes of the bundle, packed.
    pub bytes: i64,
    /// Whether it can be fetched, as far as it is kept: once the chain shows the weights.
    pub is_revealed: bool,
}

/// What one miner delivered in an epoch.
pub struct Delivered {
    /// Time of all leases.
    pub used_ms: Millis,
    /// What customers have paid for it.
    pub value: MicroUsd,
}

/// Whether the control plane works.
pub struct Health {
    /// `ok` or `degraded`.
    pub status: String,
    /// Version of the control plane.
    pub version: String,
    /// What is wrong, if anything.
    pub problems: Vec<String>,
    /// The image a job gets that names none; a tag is pinned when the job is accepted.
    pub default_image: Option<String>,
}

/// An error, as RFC 9457 describes it (`application/problem+json`).
pub struct Problem {
    /// `about:blank`; the code tells problems apart.
    pub r#type: String,
    /// The HTTP status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was attempted and what stopped it.
    pub detail: String,
    /// Stable and machine-readable, such as `balance_too_low`.
    pub code: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// What to do about it.
    pub suggestion: String,
}
}

/// A piece of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Page<T> {
    /// The items, newest first.
    pub items: Vec<T>,
    /// Pass as `before` for the next piece; absent at the end.
    pub next: Option<String>,
}

/// A wish to put on record that a result is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DisputeRequest {
    /// What is wrong with it: 1 to 500 bytes.
    pub reason: String,
    /// Which attempt; left out, the last one that has a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
}

/// A wish for a new key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct KeyRequest {
    /// What to call it.
    pub label: String,
    /// What it may do; see [`SCOPES`].
    pub scopes: Vec<String>,
}

/// Every scope a key can have.
pub const SCOPES: [&str; 5] = ["jobs:read", "jobs:write", "balance:read", "hosts:read", "keys:write"];
/// Longest `Idempotency-Key`, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 200;
/// Longest wait of one `wait_ms`.
pub const WAIT_MS_MAX: Millis = Millis(60_000);
