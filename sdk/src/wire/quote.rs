//! Quotes: placements that are held until they expire, and what would be chosen without one.

use nave_domain::{
    HostId, JobId, MicroUsd, Millis, QuoteId, Timestamp,
    fraction::Fraction,
    host::{Term, Trust},
    job::JobRequest,
    lease::ChosenFor,
    rate::{Rate, Size},
    wish::Region,
};
use serde::{Deserialize, Serialize};

use super::rest::Reason;

/// A wish for a quote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct QuoteRequest {
    /// What a job would ask for. A job that uses the quote asks for the same; its image, command,
    /// variables and retries may be others.
    pub request: JobRequest,
    /// For how long the place is held: 1 second to 5 minutes.
    #[serde(default = "default_hold")]
    pub hold_ms: Millis,
    /// Whether only the answer is wanted: nothing is held, and no balance is needed.
    #[serde(default)]
    pub dry_run: bool,
}

/// For how long a place is held unless told otherwise.
pub const HOLD_MS: Millis = Millis(60_000);
/// For how long at most.
pub const HOLD_MS_MAX: Millis = Millis(300_000);

fn default_hold() -> Millis {
    HOLD_MS
}

impl QuoteRequest {
    /// Refuses what nobody could answer.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        self.request.check().map_err(|bad| format!("request.{bad}"))?;
        if self.request.gang.is_some() {
            return Err("request.gang: a quote holds the place of one job".into());
        }
        if self.request.apart.is_some() {
            return Err("request.apart: a job on a quote has its place already".into());
        }
        if self.request.quote.is_some() {
            return Err("request.quote: a quote is not asked for on a quote".into());
        }
        if (1_000..=HOLD_MS_MAX.0).contains(&self.hold_ms.0) {
            return Ok(());
        }
        Err(format!("hold_ms: {} is not between 1000 and {}", self.hold_ms.0, HOLD_MS_MAX.0))
    }
}

/// Where a quote stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum QuoteState {
    /// The scheduler has not looked yet.
    Asked,
    /// The place is held; a job can use it.
    Held,
    /// A job has used it.
    Used,
    /// Its time is over.
    Expired,
    /// The place would be this one; nothing is held.
    DryRun,
    /// There is no place now.
    Refused,
    /// Nobody answered in time.
    Lapsed,
}

impl QuoteState {
    /// The name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Held => "held",
            Self::Used => "used",
            Self::Expired => "expired",
            Self::DryRun => "dry_run",
            Self::Refused => "refused",
            Self::Lapsed => "lapsed",
        }
    }
}

/// A quote as its customer sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Quote {
    /// Its id.
    pub quote: QuoteId,
    /// Where it stands.
    pub state: QuoteState,
    /// What a job would ask for, without its command and variables, which are not kept.
    pub request: JobRequest,
    /// When it was asked for.
    pub asked_at: Timestamp,
    /// Until when the place is held.
    pub expires_at: Option<Timestamp>,
    /// The place.
    pub place: Option<QuotedPlace>,
    /// Why there is none.
    pub reason: Option<Reason>,
    /// Hosts that were not chosen, best first.
    pub considered: Vec<ConsideredHost>,
    /// The job that has used it.
    pub job: Option<JobId>,
}

/// Where a job would run, and for what price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct QuotedPlace {
    /// The host.
    pub host: HostId,
    /// Its name.
    pub host_name: String,
    /// Where its owner says it is.
    pub region: Option<Region>,
    /// For how long it is offered.
    pub term: Term,
    /// What is known of it.
    pub trust: Trust,
    /// Why this one.
    pub reason: ChosenFor,
    /// GPUs, or a slice of one, by UUID.
    pub devices: Vec<String>,
    /// How much of its one GPU, where that is a share of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Fraction>,
    /// What would be leased.
    pub size: Size,
    /// Price in its parts.
    pub rate: Rate,
    /// Price per hour.
    pub hourly: MicroUsd,
    /// The longest run: its limit, or what the spend cap pays for.
    pub run_ms_max: Millis,
    /// What clouds ask for an hour of one of the GPUs; absent where nobody knows.
    pub baseline: Option<MicroUsd>,
    /// How much cheaper an hour of one of the GPUs is with the job's cores and memory; negative where it is dearer.
    pub saving: Option<MicroUsd>,
}

/// A host that was not chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConsideredHost {
    /// Which.
    pub host: HostId,
    /// Its name.
    pub host_name: String,
    /// What an hour would cost there.
    pub hourly: MicroUsd,
    /// Why not: `not_better`, `busy`, or what it lacks: `cpu`, `memory`, `disk`, `spec`, `egress`, `group`,
    /// `not_alone`, `max_price`, `region`, `term`, `trust`, `gpus`.
    pub code: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> QuoteRequest {
        serde_json::from_str(r#"{"request":{"argv":["true"]}}"#).expect("the smallest wish")
    }

    #[test]
    fn a_quote_is_held_for_a_minute_unless_told_otherwise() {
        assert_eq!((wish().hold_ms, wish().dry_run, wish().check()), (HOLD_MS, false, Ok(())));
    }

    #[test]
    fn what_nobody_could_answer_is_refused_with_its_field() {
        type Spoil = fn(&mut QuoteRequest);
        let cases: [(&str, Spoil); 4] = [
            ("request.resources.memory:", |wish| wish.request.resources.memory.0 = 1),
            ("request.gang:", |wish| (wish.request.group, wish.request.gang) = (Some("g".into()), Some(2))),
            ("hold_ms:", |wish| wish.hold_ms = Millis(300_001)),
            ("hold_ms:", |wish| wish.hold_ms = Millis(0)),
        ];
        for (field, spoil) in cases {
            let mut wish = wish();
            spoil(&mut wish);
            let problem = wish.check().expect_err(field);
            assert!(problem.starts_with(field), "{problem}");
        }
    }
}
