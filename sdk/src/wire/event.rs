//! What went wrong with leases and hosts, as their customers and miners see it.
//!
//! | Call | Signed by | Answer |
//! |---|---|---|
//! | `GET /v1/miner/hosts/{host}/events?limit&before` | the host's hotkey | [`Page`](super::rest::Page) of [`ServiceEvent`] |
//!
//! A customer finds those of a lease in its attempt. Once an event is decided, it stands as it is in the bundle of its epoch.

use nave_domain::{
    EventId, HostId, LeaseId, Timestamp,
    event::{Blame, ConfirmedBy, EventKind},
};
use serde::{Deserialize, Serialize};

/// Something that went wrong, and whose fault it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServiceEvent {
    /// Its id.
    pub event: EventId,
    /// When it was written down.
    pub at: Timestamp,
    /// What happened.
    pub kind: EventKind,
    /// The host.
    pub host: HostId,
    /// The lease, if one suffered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseId>,
    /// From when time was lost.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// What happened, and once it is decided why it was decided so, for people.
    pub detail: String,
    /// What was decided; absent while it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<EventDecision>,
}

/// Whose fault an event was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventDecision {
    /// When that was decided.
    pub at: Timestamp,
    /// Whose fault it was.
    pub blame: Blame,
    /// What shows that; absent where nothing does, and then nothing follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_by: Option<ConfirmedBy>,
    /// Ed25519 of the market key, hexadecimal, over the event as its bundle has it.
    pub signature: String,
}

impl ServiceEvent {
    /// Whether its miner answers for it.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.decision
            .as_ref()
            .is_some_and(|decision| decision.blame == Blame::Host && decision.confirmed_by.is_some())
    }
}
