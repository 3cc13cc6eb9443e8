//! Events: what went wrong with a lease or a host, whose fault it was, and what shows that. Pure.
//!
//! An event is written down with what it tells of, and decided once, when what shows whose fault it was is there or can
//! not come any more. All times are the database's; how long anybody was silent is measured on the control clock.

mod contact;
pub mod xid;

use serde::{Deserialize, Serialize};

pub use contact::{Contact, Silence, Stretch, is_outage};

use crate::units::{Millis, Timestamp};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A lease began later than was promised.
    StartLate,
    /// A running lease was not heard of for a while.
    HeartbeatGap,
    /// The driver of a GPU reported an error.
    Xid,
    /// A host did not show again what it had proven.
    FailedRetest,
    /// The owner took a host out that had promised to stay.
    EarlyReclaim,
    /// A GPU did less beside its job than its class does.
    BelowBand,
    /// Hosts of several miners could not reach it.
    Unreachable,
    /// A lease was given up because its host had lost it or was not heard any more.
    HostLost,
}

impl EventKind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::StartLate,
        Self::HeartbeatGap,
        Self::Xid,
        Self::FailedRetest,
        Self::EarlyReclaim,
        Self::BelowBand,
        Self::Unreachable,
        Self::HostLost,
    ];

    /// The name in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StartLate => "start_late",
            Self::HeartbeatGap => "heartbeat_gap",
            Self::Xid => "xid",
            Self::FailedRetest => "failed_retest",
            Self::EarlyReclaim => "early_reclaim",
            Self::BelowBand => "below_band",
            Self::Unreachable => "unreachable",
            Self::HostLost => "host_lost",
        }
    }
}

/// Whose fault an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// The host's.
    Host,
    /// The market's own.
    Platform,
    /// The customer's.
    Customer,
}

impl Blame {
    /// The name in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Platform => "platform",
            Self::Customer => "customer",
        }
    }
}

/// What shows that an event is somebody's fault; without it nothing follows from the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ConfirmedBy {
    /// The host's own report, or its owner's signed request.
    Report,
    /// A test.
    Retest,
    /// That the host did not come back.
    Absence,
}

impl ConfirmedBy {
    /// The name in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Retest => "retest",
            Self::Absence => "absence",
        }
    }
}

/// What came of a host that had been silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resumed {
    /// The same process went on.
    Same,
    /// Its agent was another process.
    Agent,
    /// Its machine had restarted.
    Machine,
}

impl Resumed {
    /// The name in SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Agent => "agent",
            Self::Machine => "machine",
        }
    }
}

/// What events are decided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRules {
    /// A lease begins within this time.
    pub start_promise: Millis,
    /// Silence that is no gap yet.
    pub gap: Millis,
    /// A host that was lost is back within this time, or its absence confirms that.
    pub confirm: Millis,
    /// The part of all hosts, in millionths, that fall silent at once when it was the platform, which also is the part of
    /// miners of whose hosts such a part does …
    pub outage_ppm: i64,
    /// … and how many hosts there must be.
    pub outage_hosts: i64,
}

impl Default for EventRules {
    fn default() -> Self {
        Self {
            start_promise: Millis(300_000),
            gap: Millis(15_000),
            confirm: Millis(3_600_000),
            outage_ppm: 300_000,
            outage_hosts: 5,
        }
    }
}

/// What a lost lease rests on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    /// The host itself said that the lease is gone, for a reason of its own.
    pub is_told: bool,
    /// The lease had a share of a GPU, which others on it can take away from it.
    pub is_share: bool,
    /// It was sold as spot: its owner may take the host back.
    pub is_spot: bool,
    /// The operator had sent the host away before.
    pub is_sent_away: bool,
    /// Its owner had taken it out before; not who had it drained.
    pub has_left: bool,
    /// The first test that it has failed since it came back, but for verdicts that were taken back.
    pub failed: Option<Failure>,
    /// It has shown everything again since it came back.
    pub has_passed: bool,
}

/// Where a verdict stands that an event came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appealed {
    /// Nobody has objected.
    No,
    /// Its owner has, and it is not judged again yet.
    Open,
    /// It was taken back.
    Overturned,
    /// It stands.
    Upheld,
}

impl Appealed {
    /// Whether a verdict of this age stands; none while its owner can object, or has and waits.
    fn stands(self, age: Millis, confirm: Millis) -> Option<bool> {
        match self {
            Self::Overturned => Some(false),
            Self::Upheld => Some(true),
            Self::No => (age > confirm).then_some(true),
            Self::Open => (age.0 > confirm.0.saturating_mul(2)).then_some(true),
        }
    }
}

/// A test that a host failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// What became of the verdict.
    pub appealed: Appealed,
    /// How long ago it was reached, on the control clock.
    pub age: Millis,
}

/// What happened, with what belongs to it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// See [`EventKind::StartLate`].
    StartLate {
        /// Whether other leases of its image have begun in time lately: its size is not why.
        is_usual: bool,
    },
    /// See [`EventKind::HeartbeatGap`].
    HeartbeatGap,
    /// An error of this number; see [`EventKind::Xid`].
    Xid(u32),
    /// A verdict of the kinds failed re-test, below the band or unreachable.
    Failed {
        /// What became of it.
        appealed: Appealed,
        /// Whether the host was too late, which silence explains.
        is_late: bool,
        /// Whether what the customer ran may be why.
        is_doubtful: bool,
    },
    /// See [`EventKind::EarlyReclaim`].
    EarlyReclaim,
    /// See [`EventKind::HostLost`].
    HostLost(Loss),
}

/// An event that is to be decided, with what is known.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// What happened.
    pub happened: Happened,
    /// From when things count that may explain it: when a lease was placed, was last heard of, a test was drawn.
    pub since: Timestamp,
    /// The time that may be lost.
    pub lost: Stretch,
    /// How long ago it was written down, on the control clock.
    pub age: Millis,
    /// The silences of its host.
    pub silences: &'a [Silence],
    /// When the control clock stood still.
    pub pauses: &'a [Stretch],
    /// Whether one of those silences was everyone's.
    pub is_outage: bool,
}

/// What is written down as the end of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRuling {
    /// Whose fault it was.
    pub blame: Blame,
    /// What shows that; without it nothing follows.
    pub confirmed_by: Option<ConfirmedBy>,
    /// The time that was lost.
    pub lost: Stretch,
    /// Why, for people.
    pub why: &'static str,
}

/// Whose fault an event was; none while that is not known yet. It always is some time after the event: twice the time in
/// which a host that was lost is to be back, and as long again after a test that it failed by then.
#[must_use]
pub fn decide(case: &Case<'_>, rules: &EventRules) -> Option<EventRuling> {
    match case.happened {
        Happened::StartLate { is_usual } => case.start_late(is_usual, rules),
        Happened::HeartbeatGap => case.heartbeat_gap(rules),
        Happened::Xid(code) => Some(case.xid(code)),
        Happened::Failed { is_doubtful: true, .. } => {
            Some(case.hosts(None, "the job may be why; the host is tested once it is free"))
        }
        Happened::Failed { appealed, is_late, is_doubtful: false } => case.failed(appealed, is_late, rules),
        Happened::EarlyReclaim => {
            Some(case.hosts(Some(ConfirmedBy::Report), "its owner took it out while it had the lease"))
        }
        Happened::HostLost(loss) => case.host_lost(loss, rules),
    }
}

impl Case<'_> {
    fn ruled(&self, blame: Blame, confirmed_by: Option<ConfirmedBy>, why: &'static str) -> EventRuling {
        EventRuling { blame, confirmed_by, lost: self.lost, why }
    }

    fn hosts(&self, confirmed_by: Option<ConfirmedBy>, why: &'static str) -> EventRuling {
        self.ruled(Blame::Host, confirmed_by, why)
    }

    fn platforms(&self) -> EventRuling {
        let why = match self.is_outage {
            true => "many hosts fell silent at once",
            false => "hosts could not reach the control plane meanwhile",
        };
        self.ruled(Blame::Platform, None, why)
    }

    /// From when its causes count until it was over.
    fn whole(&self) -> Stretch {
        Stretch { from: self.since, until: self.lost.until }
    }

    fn paused(&self) -> Millis {
        Millis(self.pauses.iter().map(|pause| pause.shared(self.whole()).0).sum())
    }

    fn was_silent(&self) -> bool {
        self.silences.iter().any(|one| one.stretch.touches(self.whole()))
    }

    /// For how long its host was silent and went on as it was, other than while nobody could be heard.
    fn silent(&self) -> Millis {
        let as_it_was = self.silences.iter().filter(|one| !one.has_restarted());
        let counted = as_it_was.map(|one| {
            let silent = one.stretch.and(self.whole());
            silent.length().0 - self.pauses.iter().map(|pause| pause.shared(silent).0).sum::<i64>()
        });
        Millis(counted.sum())
    }

    /// Whether its host is silent since then.
    fn is_away(&self) -> bool {
        self.silences.iter().any(|one| one.resumed.is_none() && one.stretch.touches(self.whole()))
    }

    /// Whether its agent or its machine was restarted meanwhile.
    fn has_restarted(&self) -> bool {
        self.silences.iter().any(|one| one.stretch.touches(self.whole()) && one.has_restarted())
    }

    /// What of its time hosts could have reached the control plane in, beyond `allowed`; and beyond another gap where
    /// they could not for a while, since they come back one after the other.
    fn excess(&self, allowed: Millis, gap: Millis) -> i64 {
        let paused = self.paused().0;
        self.whole().length().0 - allowed.0 - paused - if paused > 0 { gap.0 } else { 0 }
    }

    /// The last part of the time it took.
    fn last(&self, span: i64) -> Stretch {
        Stretch { from: Timestamp(self.lost.until.0.saturating_sub(span)), until: self.lost.until }
    }

    fn start_late(&self, is_usual: bool, rules: &EventRules) -> Option<EventRuling> {
        // By then all who fell silent with it are seen.
        if self.age < rules.gap {
            return None;
        }
        let excess = self.excess(rules.start_promise, rules.gap);
        if self.is_outage || excess <= 0 {
            return Some(self.platforms());
        }
        let lost = excess - self.silent().0;
        if lost <= 0 {
            return Some(self.hosts(None, "the host was silent meanwhile and says nothing of the lease"));
        }
        if !is_usual {
            return Some(
                self.hosts(None, "no lease of this image has begun in time lately; the image may be why"),
            );
        }
        let why = if self.has_restarted() {
            "its agent or its machine was restarted"
        } else {
            "the host was there and had not begun it"
        };
        Some(EventRuling { lost: self.last(lost), ..self.hosts(Some(ConfirmedBy::Report), why) })
    }

    fn heartbeat_gap(&self, rules: &EventRules) -> Option<EventRuling> {
        if self.age < rules.gap || (self.is_away() && !self.is_outage && self.age <= rules.confirm) {
            return None;
        }
        let excess = self.excess(rules.gap, rules.gap);
        if self.is_outage || excess <= 0 {
            return Some(self.platforms());
        }
        let lost = self.last(excess);
        let ruling = if !self.was_silent() {
            self.hosts(Some(ConfirmedBy::Report), "the host was there and did not say that the command runs")
        } else if self.has_restarted() {
            self.hosts(Some(ConfirmedBy::Report), "its agent or its machine was restarted")
        } else {
            self.hosts(None, "the host was silent, and nothing shows why")
        };
        Some(EventRuling { lost, ..ruling })
    }

    fn xid(&self, code: u32) -> EventRuling {
        let told = Some(ConfirmedBy::Report);
        match xid::fault(code) {
            xid::Fault::Application => self.ruled(Blame::Customer, told, "what ran on the GPU caused it"),
            xid::Fault::Hardware => self.hosts(told, "the GPU or its driver failed"),
            xid::Fault::Harmless => self.hosts(None, "nothing was lost by it"),
        }
    }

    fn failed(&self, appealed: Appealed, is_late: bool, rules: &EventRules) -> Option<EventRuling> {
        Some(match appealed.stands(self.age, rules.confirm)? {
            false => self.hosts(None, "the verdict was taken back on appeal"),
            true if is_late && self.is_outage => self.platforms(),
            true => self.hosts(Some(ConfirmedBy::Retest), "a test shows it"),
        })
    }

    fn host_lost(&self, loss: Loss, rules: &EventRules) -> Option<EventRuling> {
        if loss.is_sent_away {
            return Some(self.ruled(Blame::Platform, None, "the operator sent the host away"));
        }
        if self.age < rules.gap {
            return None;
        }
        if self.is_outage || (self.paused().0 > 0 && self.excess(rules.gap, rules.gap) <= 0) {
            return Some(self.platforms());
        }
        if loss.has_left && loss.is_spot {
            return Some(self.hosts(None, "its owner took it out, which may be done to a spot lease"));
        }
        if loss.has_left {
            return Some(
                self.hosts(Some(ConfirmedBy::Report), "its owner took it out before the lease had ended"),
            );
        }
        if loss.is_told && loss.is_share && !self.has_restarted() {
            return Some(self.hosts(None, "what else ran on its GPU may be why"));
        }
        if loss.is_told {
            return Some(
                self.hosts(Some(ConfirmedBy::Report), "the host says itself that the lease is gone"),
            );
        }
        let Some(silence) = self.silences.iter().find(|one| one.stretch.touches(self.whole())) else {
            return self.came_back(loss, rules);
        };
        match silence.resumed {
            None if self.age > rules.confirm => {
                Some(self.hosts(Some(ConfirmedBy::Absence), "the host did not come back"))
            }
            None => None,
            Some(Resumed::Machine) => {
                Some(self.hosts(Some(ConfirmedBy::Report), "its machine had restarted when it came back"))
            }
            Some(Resumed::Same | Resumed::Agent) => self.came_back(loss, rules),
        }
    }

    fn came_back(&self, loss: Loss, rules: &EventRules) -> Option<EventRuling> {
        if let Some(Failure { appealed, age }) = loss.failed
            && appealed.stands(age, rules.confirm)?
        {
            return Some(self.hosts(Some(ConfirmedBy::Retest), "it failed its test when it came back"));
        }
        if loss.has_passed {
            Some(self.hosts(None, "it came back as it was and passed its test"))
        } else if self.age.0 > rules.confirm.0.saturating_mul(2) {
            Some(self.hosts(None, "it came back as it was and could not be tested"))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests;
