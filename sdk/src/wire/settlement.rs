//! What epochs come to: parameters, evidence, and what miners earn.
//!
//! | Call | Who | Answer |
//! |---|---|---|
//! | `GET /v1/params` | everyone | [`Parameters`] |
//! | `GET /v1/epochs/{epoch}/evidence` | everyone | the epoch's bundle, packed with gzip; 409 before its weights are revealed, 410 when it is not kept any more |
//! | `GET /v1/miner/earnings?limit&before` | hotkey | [`Page`](super::rest::Page) of [`Earnings`], the newest epoch first |
//! | `GET /v1/miner/earnings/{epoch}?limit&after` | hotkey | [`Page`](super::rest::Page) of [`LeaseEarnings`] |
//! | `GET /v1/miner/collateral` | hotkey | [`Collateral`] |
//! | `POST /v1/miner/collateral/call` | hotkey | [`Call`], 201 |
//!
//! Hosts ask for the newest [`Earnings`] of their miner with `GET /host/v1/earnings`.

use nave_domain::{EventId, HostId, LeaseId, MicroUsd, Millis, Timestamp, host::Term};
use nave_settlement::evidence::Pay;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// How many epochs a host is told of.
pub const HOST_EARNINGS: i64 = 24;

/// Whether a version of the parameters holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Holds {
    /// Not yet.
    Announced,
    /// Now.
    Now,
    /// Not any more, or it never did.
    Past,
}

/// The parameters of a market.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Parameters {
    /// The open epoch.
    pub epoch: i64,
    /// Every version, the newest first.
    pub versions: Vec<ParametersVersion>,
}

/// A version of the parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ParametersVersion {
    /// Counted from 1.
    pub version: i64,
    /// The epoch from which on it holds, until a later one does.
    pub effective_epoch: i64,
    /// When it was announced.
    pub announced_at: Timestamp,
    /// Whether it holds.
    pub holds: Holds,
    /// The document, as it is in bundles; `docs/settlement.md` says what is in it.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub document: Value,
}

/// What came of a miner in an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Earnings {
    /// The epoch.
    pub epoch: i64,
    /// When it closed.
    pub closed_at: Timestamp,
    /// The miner's line in the bundle; `docs/settlement.md` says what is in it.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub pay: Pay,
}

/// What came of one lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeaseEarnings {
    /// Which.
    pub lease: LeaseId,
    /// On which host.
    pub host: HostId,
    /// How long it ran.
    pub used_ms: Millis,
    /// What its customer has paid, before anything came back.
    pub charged: MicroUsd,
    /// How it ended.
    pub outcome: String,
    /// The part of what was promised that was kept, in millionths.
    pub adherence_ppm: i32,
    /// Confirmed breaches of its host.
    pub breaches: i32,
    /// What the miner earned by it in weights.
    pub earned: MicroUsd,
    /// What is paid for it above what clouds ask, in cash.
    pub bid: MicroUsd,
    /// What went back to its customer.
    pub credit: MicroUsd,
    /// What its breaches cost the miner.
    pub penalty: MicroUsd,
    /// Why it earned nothing whatever happened: customer and miner count as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub related: Option<String>,
    /// What went wrong, and whose fault it was.
    pub events: Vec<LeaseEvent>,
}

/// Something that went wrong with a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeaseEvent {
    /// Its id, as in the bundle.
    pub event: EventId,
    /// What happened.
    pub kind: String,
    /// Whose fault it was: `host`, `platform` or `customer`.
    pub blame: String,
    /// What shows that; without it nothing follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_by: Option<String>,
    /// From when time was lost.
    pub from_at: Timestamp,
    /// Until when.
    pub until_at: Timestamp,
    /// In words.
    pub detail: String,
}

/// A miner's collateral, and as what it lets hosts sell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Collateral {
    /// What is there, less what penalties took.
    pub balance: MicroUsd,
    /// What was called back and is not paid, the oldest first.
    pub called: Vec<Call>,
    /// As what each host is sold.
    pub offers: Vec<Sold>,
}

/// Collateral that is called back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Call {
    /// Which call.
    pub call: Uuid,
    /// How much; it backs no offer any more.
    pub amount: MicroUsd,
    /// Before then it is not paid.
    pub due_at: Timestamp,
}

/// How much collateral to call back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CallRequest {
    /// In micro-USD.
    pub amount: MicroUsd,
}

/// As what a host is sold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Sold {
    /// The host.
    pub host: HostId,
    /// As what its owner offers it.
    pub offered: Term,
    /// Why it is sold as spot all the same: `probation`, `demoted` or `collateral`; left out where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spot_because: Option<String>,
}
