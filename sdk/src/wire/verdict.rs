//! What came of the tests of a host: for everyone, for its owner and for the host itself.
//!
//! | Call | Who may | Answer |
//! |---|---|---|
//! | `GET /v1/hosts/{host}/verdicts?limit&before` | everyone | [`Page`](super::rest::Page) of [`HostVerdict`], newest first |
//! | `GET /v1/hosts/{host}/verdicts/{challenge}` | everyone | [`VerdictRecord`]: the verdict with its evidence |
//! | `GET /v1/hosts/{host}/verdicts/{challenge}/opening` | everyone | the opening's bytes, while they are kept |
//! | `POST /v1/miner/hosts/{host}/verdicts/{challenge}/appeal` | hotkey | [`HostVerdict`]; the present judge judges again, once |
//! | `GET /host/v1/verdicts` | the host, in the mesh | list of [`HostVerdict`], the newest [`HOST_VERDICTS`] |
//!
//! A test is told of when it is over: what it asks is known to nobody before its host has
//! fetched it, and its time runs from then. What a host says of its software is for itself
//! and not for everyone.

use std::collections::BTreeMap;

use nave_domain::{
    ChallengeId, HostId, Millis, Timestamp,
    host::Device,
    verdict::{Cause, Kind},
};
use nave_proof::{Challenge, Digest, Failure, Proven};
use serde::{Deserialize, Serialize};

/// How many verdicts a host is told of itself.
pub const HOST_VERDICTS: u32 = 20;

/// What came of one test of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostVerdict {
    /// The challenge that it is on; ids sort by age.
    pub challenge: ChallengeId,
    /// Who was tested.
    pub host: HostId,
    /// What was tested.
    pub kind: Kind,
    /// Why.
    pub cause: Cause,
    /// Whether it means nothing for the host: a test that is being tried itself.
    pub shadow: bool,
    /// Whether the host was tested beside a job.
    pub beside_job: bool,
    /// When the challenge was drawn.
    pub drawn_at: Timestamp,
    /// When the verdict was reached.
    pub decided_at: Timestamp,
    /// What came of it, for programs: `passed`, `void`, or why the host failed.
    pub code: String,
    /// The same with what was measured or why; absent where this version cannot read it.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub ruling: Option<Ruling>,
    /// The classes that GPUs of this test have by now, by identifier; those without one are unrated.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub classes: BTreeMap<String, String>,
    /// Whether its opening can be fetched.
    pub opening: OpeningState,
    /// That its host's owner objected, and what came of it.
    pub appeal: Option<Appeal>,
    /// The ban that followed from it.
    pub ban: Option<VerdictBan>,
    /// What the owner can do about it now: `appeal`.
    pub actions: Vec<String>,
}

/// What came of a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ruling {
    /// The claim holds; with what was shown, unless that is for the host alone.
    Passed(Option<Proven>),
    /// It does not, or the host did not show it.
    Failed(Failure),
    /// The test says nothing about the host, and why; it does not count.
    Void(String),
}

/// Whether an opening can be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OpeningState {
    /// It can.
    Kept,
    /// It was removed, as openings are after a while.
    Forgotten,
    /// It says what software the host has, which is for the host alone.
    Withheld,
    /// The host sent none.
    Absent,
}

/// An owner's wish to have a verdict reached again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Appeal {
    /// Since when.
    pub at: Timestamp,
    /// What came of it; absent while it waits.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub ruling: Option<Ruling>,
}

/// A ban that followed from a verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VerdictBan {
    /// How long it is, while hosts can reach the control plane.
    pub span_ms: Millis,
    /// Whether it is over or was taken back.
    pub is_over: bool,
    /// By whom it was taken back: `appeal` or `operator`.
    pub lifted_by: Option<String>,
}

/// A verdict with all it was reached from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VerdictRecord {
    /// What came of it.
    pub verdict: HostVerdict,
    /// What the host was asked to do, with every nonce; absent where this version cannot read it.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub test: Option<Challenge>,
    /// The GPUs that the host claimed then. Which drivers they have is for the host alone, and empty here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
    pub claimed: Vec<Device>,
    /// What was sent and what came back, in order, on the verifier's clock.
    pub exchanges: Vec<Exchange>,
    /// The rules that it was judged by, as the SHA-256 of the catalogue of devices and the floors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub rules: Option<Digest>,
    /// Those of the GPUs that were shown which belonged to other hosts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<DeviceHolder>,
    /// The bytes of the opening in base64, where whoever keeps this document has put them in.
    /// The API serves them apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opening: Option<String>,
}

/// A GPU that belongs to another host than the one that was tested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeviceHolder {
    /// Its identifier.
    pub device: String,
    /// Whose it is.
    pub host: HostId,
    /// Since when: that host's test of it ended then.
    pub since: Timestamp,
}

/// One exchange of a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Exchange {
    /// When its nonce first left for the host.
    pub sent_at: Option<Timestamp>,
    /// When the answer was complete.
    pub answered_at: Option<Timestamp>,
    /// What the host committed to, hexadecimal, if that was its answer.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub commitment: Option<Digest>,
    /// Why the host gave up, if that was its answer.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub gave_up: Option<Failure>,
}

impl HostVerdict {
    /// Whether it counted against the host when it was reached.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        !matches!(self.code.as_str(), "passed" | "void")
    }
}
