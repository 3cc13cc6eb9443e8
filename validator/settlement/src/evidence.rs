//! What a bundle holds: the evidence of an epoch and what comes of it.
//!
//! Field names are those of `docs/settlement.md`, and stand in the order of the canonical form. Unless a line says
//! otherwise, numbers are from 0 to 2⁶³ − 1, money is in micro-USD, and times are milliseconds since 1970.

pub use nave_domain::event::{Blame, ConfirmedBy as Confirmation, EventKind as Kind};
use nave_domain::host::Term;
use serde::{Deserialize, Serialize};

use crate::params::Params;

/// The format of the bundles that this crate reads and writes.
pub const FORMAT: i64 = 1;

/// Which epoch of which market, and what there is to share out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Name of the chain that gets the weights.
    pub chain: String,
    /// Its end.
    pub closed_ms: i64,
    /// Value of what miners were emitted during this epoch.
    pub emission: i64,
    /// Where that value is from.
    pub emission_source: String,
    /// The same of epochs before, oldest first: at most `smoothing` − 1.
    pub emissions: Vec<i64>,
    /// Its number.
    pub epoch: i64,
    /// [`FORMAT`].
    pub format: i64,
    /// The market key, in hexadecimal.
    pub market: String,
    /// Its begin.
    pub opened_ms: i64,
    /// Hotkey of what nobody earned.
    pub sink: String,
}

/// A class of devices during the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Baseline of one GPU-hour, where one is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<i64>,
    /// When it was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline_at_ms: Option<i64>,
    /// Where it is from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline_source: Option<String>,
    /// Its name.
    pub class: String,
    /// Devices that were seen, once for each look.
    pub devices: i64,
    /// Thousandths of them that were leased then.
    pub leased_milli: i64,
}

/// A miner: what the epoch before left, and what was so in this one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Miner {
    /// Whether it was banned at any moment of the epoch.
    pub banned: bool,
    /// What it is owed, or owes where it is negative.
    pub carry: i64,
    /// Its collateral.
    pub collateral: i64,
    /// `[day, device_ms, breaches]` in the order of days, which count from 1970.
    pub days: Vec<[i64; 3]>,
    /// Until when its hosts sell as spot; 0: never.
    pub demoted_until_ms: i64,
    /// Its name on the chain.
    pub hotkey: String,
    /// Its verified hosts when the epoch closed.
    pub verified_hosts: i64,
    /// Standby that has not vested whole: `[from_ms, until_ms, amount, vested]`.
    pub vesting: Vec<[i64; 4]>,
    /// Its weight in the epoch before.
    pub weight: u16,
}

/// A verdict of the epoch. Pay does not follow from it; it is why hosts are verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// When it was reached.
    pub at_ms: i64,
    /// Of which host.
    pub host: String,
    /// Whose host.
    pub hotkey: String,
    /// Whether the host passed.
    pub passed: bool,
    /// Why it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it was asked to show.
    pub task: String,
    /// Its id.
    pub verdict: String,
}

/// An event of the service, signed with the market key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// When it was noted.
    pub at_ms: i64,
    /// Who it is put down to.
    pub blame: Blame,
    /// What shows it; absent where nothing does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmed_by: Option<Confirmation>,
    /// What was seen.
    pub detail: String,
    /// Its id.
    pub event: String,
    /// Since when time was lost.
    pub from_ms: i64,
    /// Of which host.
    pub host: String,
    /// Whose host.
    pub hotkey: String,
    /// What happened.
    pub kind: Kind,
    /// Which lease it concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// Ed25519 of the market key over [`Event::signed_bytes`], in hexadecimal.
    pub signature: String,
    /// Until when time was lost.
    pub until_ms: i64,
}

impl Event {
    /// Whether its miner answers for it.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.confirmed_by.is_some() && self.blame == Blame::Host
    }

    /// Whether it is a breach once it is confirmed; other kinds lose time only.
    #[must_use]
    pub fn is_breach(&self) -> bool {
        match self.kind {
            Kind::StartLate | Kind::HeartbeatGap => false,
            Kind::Xid
            | Kind::FailedRetest
            | Kind::EarlyReclaim
            | Kind::BelowBand
            | Kind::Unreachable
            | Kind::HostLost => true,
        }
    }

    /// What its signature covers.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut body = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = body.as_object_mut() {
            fields.remove("signature");
        }
        format!("nave event 1\n{body}").into_bytes()
    }

    /// Signs it with the market key.
    pub fn sign(&mut self, key: impl FnOnce(&[u8]) -> [u8; 64]) {
        self.signature = hex::encode(key(&self.signed_bytes()));
    }
}

/// A lease that has closed and whose events are decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// Baseline of one GPU-hour when it was placed, where one was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<i64>,
    /// What the customer paid, refunds taken off.
    pub charged: i64,
    /// The class of its GPUs; absent without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// When it closed.
    pub closed_ms: i64,
    /// Who paid.
    pub customer: String,
    /// Price of one GiB-hour of memory.
    pub gib_hour: i64,
    /// Price of one GPU-hour.
    pub gpu_hour: i64,
    /// Where it ran.
    pub host: String,
    /// Whose host that is.
    pub hotkey: String,
    /// The job that it was an attempt of.
    pub job: String,
    /// Its id.
    pub lease: String,
    /// Bytes of memory.
    pub memory: i64,
    /// Thousandths of a vCPU.
    pub milli_cpu: i64,
    /// Thousandths of a GPU.
    pub milli_gpu: i64,
    /// How it ended.
    pub outcome: String,
    /// When it was placed.
    pub placed_ms: i64,
    /// Why customer and miner count as one; absent where they do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub related: Option<String>,
    /// What was promised.
    pub term: Term,
    /// How long it was used.
    pub used_ms: i64,
    /// Price of one vCPU-hour.
    pub vcpu_hour: i64,
}

/// Idle devices of a class on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Idle {
    /// Their class.
    pub class: String,
    /// How long they were idle and verified in this epoch, all together.
    pub device_ms: i64,
    /// The host's price of one GPU-hour.
    pub gpu_hour: i64,
    /// Which host.
    pub host: String,
    /// Whose host.
    pub hotkey: String,
    /// Since when it kept its obligations.
    pub obliged_since_ms: i64,
}

/// What comes of a miner: its pay, and the state that it takes into the next epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pay {
    /// What customers bid above the baseline.
    pub bids: i64,
    /// Lower bound of its rate of breaches per device-hour, in ppm.
    pub bound_ppm: i64,
    /// Its breaches of this epoch, as they count for demotion.
    pub breaches: i64,
    /// What it is owed from now on, or owes where it is negative.
    pub carry: i64,
    /// Paid in cash: bids, and used pay that the emission does not cover.
    pub cash: i64,
    /// Its collateral from now on.
    pub collateral: i64,
    /// `[day, device_ms, breaches]` in the order of days.
    pub days: Vec<[i64; 3]>,
    /// Until when its hosts sell as spot; 0: never.
    pub demoted_until_ms: i64,
    /// Standby that it lost before it vested.
    pub forfeited: i64,
    /// Vested standby that the emission has room for.
    pub granted: i64,
    /// Its name on the chain.
    pub hotkey: String,
    /// What its breaches cost.
    pub penalty: i64,
    /// The part of the penalty that its collateral paid.
    pub penalty_collateral: i64,
    /// The part of the penalty that its balance paid.
    pub penalty_held: i64,
    /// What the weights of the epoch before turned into.
    pub realised: i64,
    /// Standby of this epoch, which begins to vest.
    pub standby: i64,
    /// Pay for use.
    pub used: i64,
    /// Standby that vested in this epoch, less what went into a debt.
    pub vested: i64,
    /// Standby that has not vested whole: `[from_ms, until_ms, amount, vested]`.
    pub vesting: Vec<[i64; 4]>,
    /// Its weight.
    pub weight: u16,
}

/// Sums over all miners, and the weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Paid in cash.
    pub cash: i64,
    /// What customers get back.
    pub credits: i64,
    /// Vested standby that the emission had room for.
    pub granted: i64,
    /// Value that nobody earned.
    pub sink: i64,
    /// The emission's value, averaged.
    pub smoothed: i64,
    /// Pay for use.
    pub used: i64,
    /// Standby that vested.
    pub vested: i64,
    /// Who gets which weight, in the order of hotkeys; none is zero.
    pub weights: Vec<(String, u16)>,
}

/// The end of a bundle, signed with the market key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// The epoch.
    pub epoch: i64,
    /// The lines before this one.
    pub lines: i64,
    /// The market key, in hexadecimal.
    pub market: String,
    /// Ed25519 of the market key, in hexadecimal.
    pub signature: String,
}

/// The body of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The first line.
    Header(Header),
    /// The second one.
    Params(Params),
    /// A class of devices.
    Class(Class),
    /// A miner before this epoch.
    Miner(Miner),
    /// A verdict.
    Verdict(Verdict),
    /// An event of the service.
    Event(Event),
    /// A lease that is settled.
    Lease(Lease),
    /// Idle devices.
    Idle(Idle),
    /// A miner after this epoch.
    Pay(Pay),
    /// The sums.
    Result(Totals),
    /// The last line.
    Seal(Seal),
}
