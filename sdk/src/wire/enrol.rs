//! How hosts join a market and how their owners keep them: tickets, enrolment and
//! the miners' part of the API.
//!
//! | Call | Signed by | Answer |
//! |---|---|---|
//! | `GET /v1/market` | nobody | [`Market`] |
//! | `POST /v1/enrolments`, an [`EnrolmentRequest`] | agent key | [`Enrolment`], signed by the market key |
//! | `GET /v1/miner/hosts` | hotkey | list of [`MinerHost`], the hotkey's own |
//! | `GET /v1/miner/hosts/{host}` | hotkey | [`MinerHost`] |
//! | `PATCH /v1/miner/hosts/{host}`, a [`HostPatch`] | hotkey | [`MinerHost`] |
//! | `POST /v1/miner/hosts/{host}/drain` | hotkey | [`MinerHost`]; takes no new jobs, leaves after the last |
//! | `POST /v1/miner/hosts/{host}/leave` | hotkey | [`MinerHost`]; leaves now, its jobs are placed anew |
//!
//! How requests and replies are signed is in [`super::sign`]; how verdicts are appealed, in [`super::verdict`].

use std::net::Ipv6Addr;

use nave_domain::{
    HostId, Millis, Timestamp,
    host::{HostState, Inventory, Proven, Term, Trust},
    mesh::MeshKey,
    rate::{GpuPrice, Rate},
    wish::Region,
};
use serde::{Deserialize, Serialize};

use super::rest::Capacity;
pub use super::{
    keys::{BadText, PublicKey, Sha256, Signature, TicketId},
    ticket::{BadTicket, Ticket},
};

/// Longest life of a ticket.
pub const TICKET_LIFE_MAX: Millis = Millis(7 * 24 * 3_600_000);
/// Longest text of a ticket, in bytes.
pub const TICKET_BYTES_MAX: usize = 4096;
/// Largest body of an enrolment or of a miner's request, in bytes.
pub const REQUEST_BYTES_MAX: usize = 256 << 10;
/// Longest URL of a market, in bytes.
pub const URL_BYTES_MAX: usize = 512;
/// Longest name of a host, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest hotkey as text, in bytes; SS58 with a prefix of one byte has 47 or 48.
pub const HOTKEY_BYTES_MAX: usize = 64;
/// Largest part of a rate: a thousand dollars per hour.
pub const RATE_PART_MAX: i64 = 1_000_000_000;
/// Most endpoints a hub announces.
pub const ENDPOINTS_MAX: usize = 8;

/// What the owner of a hotkey allows with a ticket: one host, on these terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TicketPayload {
    /// Base URL of the market's API.
    pub url: String,
    /// The key that identifies the market. The agent believes no other.
    pub market_key: PublicKey,
    /// The key that signs upgrades of the agent; without it the agent takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_key: Option<PublicKey>,
    /// The miner, as SS58; the ticket is signed by it.
    pub hotkey: String,
    /// Random; makes the ticket one of its kind.
    pub ticket: TicketId,
    /// Until when it can be used, in milliseconds since 1970.
    #[serde(with = "unix_ms")]
    #[cfg_attr(feature = "openapi", schema(value_type = i64))]
    pub expires_at: Timestamp,
    /// What to call the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the host costs.
    pub rate: Rate,
    /// For how long it is offered.
    pub term: Term,
    /// Where it is, such as `eu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
    /// The one agent that may use the ticket; without it the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_key: Option<PublicKey>,
    /// The host that enrols again, on other hardware or without its keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<HostId>,
}

impl TicketPayload {
    /// Refuses what no market accepts. Expiry and signature are checked elsewhere.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        check_url(&self.url)?;
        if self.hotkey.is_empty() || self.hotkey.len() > HOTKEY_BYTES_MAX {
            return Err("hotkey: it is no SS58 address".into());
        }
        self.name.as_deref().map_or(Ok(()), check_name)?;
        check_rate(&self.rate)
    }
}

/// Refuses what is not the base URL of an API.
///
/// # Errors
/// A sentence that names the field.
pub fn check_url(url: &str) -> Result<(), String> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or_default();
    // No name and password, which tickets would spread, no query and nothing that needs quoting.
    let odd = |byte: u8| !byte.is_ascii_graphic() || b"@?#\"'\\`<>".contains(&byte);
    if rest.is_empty() || rest.starts_with('/') || url.len() > URL_BYTES_MAX || url.bytes().any(odd) {
        return Err(format!(
            "url: it is not an http or https URL of at most {URL_BYTES_MAX} bytes without a password or query"
        ));
    }
    Ok(())
}

/// Refuses what is not the name of a host: letters, digits, dots, dashes, underscores.
///
/// # Errors
/// A sentence that names the field.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && name.len() <= NAME_BYTES_MAX && name.bytes().all(plain) {
        return Ok(());
    }
    Err(format!(
        "name: it must begin with a letter or digit and have at most {NAME_BYTES_MAX} letters, digits, dots, \
         dashes and underscores"
    ))
}

/// Refuses a rate below zero or beyond [`RATE_PART_MAX`].
///
/// # Errors
/// A sentence that names the field.
pub fn check_rate(rate: &Rate) -> Result<(), String> {
    let parts = [("gpu_hour", rate.gpu_hour), ("vcpu_hour", rate.vcpu_hour), ("gib_hour", rate.gib_hour)];
    match parts.iter().find(|(_, part)| !(0..=RATE_PART_MAX).contains(&part.0)) {
        Some((field, part)) => Err(format!("rate.{field}: {part} an hour is not between $0 and $1000")),
        None => Ok(()),
    }
}

/// A wish to join, signed by the agent key it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct EnrolmentRequest {
    /// The ticket's text; see [`Ticket`].
    pub ticket: String,
    /// The agent's key; equal to the one that signs the request.
    pub agent_key: PublicKey,
    /// The host's WireGuard public key.
    pub mesh_key: MeshKey,
    /// What the host says it has.
    pub inventory: Inventory,
}

impl EnrolmentRequest {
    /// Reads the ticket and refuses what no market accepts.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<Ticket, String> {
        self.inventory.check().map_err(|error| format!("inventory.{error}"))?;
        self.ticket.parse().map_err(|error| format!("ticket: {error}"))
    }
}

/// A host's place in the market. The same for every repetition of the same wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Enrolment {
    /// Its id.
    pub host: HostId,
    /// Its name.
    pub name: String,
    /// How it reaches the control plane.
    pub mesh: MeshPlace,
    /// Longest time between two reports.
    pub report_ms: Millis,
}

/// A host's place in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MeshPlace {
    /// The host's address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: Ipv6Addr,
    /// Leading bits that all addresses of this mesh share: 48.
    pub prefix: u8,
    /// Where the control plane answers inside the mesh.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub hub_address: Ipv6Addr,
    /// The hub's WireGuard public key.
    pub hub_key: MeshKey,
    /// Where the hub's UDP socket can be reached, as `address:port` or `name:port`; try all.
    pub hub_endpoints: Vec<String>,
    /// TCP port of the host protocol at `hub_address`.
    pub port: u16,
    /// Longest silence towards the hub, in seconds, so that NATs keep the way open.
    pub keepalive_s: u16,
}

/// What identifies a market and where its hosts meet it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Market {
    /// The key that identifies the market; tickets pin it.
    pub market_key: PublicKey,
    /// The key that signs upgrades of agents, where there are any; tickets pin it too.
    pub release_key: Option<PublicKey>,
    /// Where hosts join the mesh; absent while the market takes no hosts.
    pub hub: Option<Hub>,
    /// Version of the control plane.
    pub version: String,
}

/// The control plane's end of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Hub {
    /// Its WireGuard public key.
    pub key: MeshKey,
    /// Where its UDP socket can be reached; at most [`ENDPOINTS_MAX`].
    pub endpoints: Vec<String>,
}

/// A host as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MinerHost {
    /// Its id.
    pub host: HostId,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: HostState,
    /// Why it stands there, where that needs saying.
    pub reason: Option<StateReason>,
    /// Whether its owner wants it to get no new jobs for now.
    pub paused: bool,
    /// Its price.
    pub rate: Rate,
    /// How the price of its GPUs is set.
    #[serde(default)]
    pub gpu_price: GpuPrice,
    /// For how long it is offered.
    pub term: Term,
    /// Where you say it is.
    #[serde(default)]
    pub region: Option<Region>,
    /// What is known of it.
    pub trust: Trust,
    /// What it says it has; absent before its first report.
    pub inventory: Option<InventorySummary>,
    /// What it has proven.
    pub proven: Option<Proven>,
    /// Its address in the mesh.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub mesh_address: Option<Ipv6Addr>,
    /// When it was last heard.
    pub heard_at: Option<Timestamp>,
    /// Number of open leases.
    pub leases: u32,
    /// When it joined, the last time.
    pub enrolled_at: Option<Timestamp>,
    /// What can be done with it now: `pause`, `resume`, `price`, `term`, `region`, `drain`, `leave`.
    pub actions: Vec<String>,
}

/// A reason for a host's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StateReason {
    /// Stable and machine-readable, such as `cpu_below_claim`.
    pub code: String,
    /// One sentence for a person, with what to do.
    pub message: String,
    /// Since when.
    pub since: Timestamp,
}

/// An inventory in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InventorySummary {
    /// What it offers to jobs.
    pub capacity: Capacity,
    /// Processor model.
    pub cpu_model: String,
    /// Operating system.
    pub os: String,
    /// `docker` or `simulated`.
    pub runtime: String,
    /// Version of the agent.
    pub agent_version: String,
}

/// What an owner changes about a host; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct HostPatch {
    /// The price of leases from now on; open ones keep theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// How the price of its GPUs is set from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_price: Option<GpuPrice>,
    /// For how long it is offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<Term>,
    /// Where it is, such as `eu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
    /// Whether it gets no new jobs for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
}

impl HostPatch {
    /// Refuses a change of nothing and a rate out of range.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        if *self == Self::default() {
            return Err("rate, gpu_price, term, region or paused: at least one must be given".into());
        }
        if let Some(GpuPrice::BelowBaseline { percent, floor }) = self.gpu_price {
            if percent > GpuPrice::PERCENT_MAX {
                return Err(format!("gpu_price.percent: {percent} is more than {}", GpuPrice::PERCENT_MAX));
            }
            check_rate(&Rate { gpu_hour: floor, ..Rate::default() })
                .map_err(|problem| problem.replacen("rate.gpu_hour", "gpu_price.floor", 1))?;
        }
        self.rate.as_ref().map_or(Ok(()), check_rate)
    }
}

/// A time as milliseconds since 1970.
mod unix_ms {
    use nave_domain::Timestamp;
    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    // The signature is what the derive calls.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub fn serialize<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        at.0.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        i64::deserialize(deserializer).map(Timestamp)
    }
}

#[cfg(test)]
mod tests {
    use nave_domain::MicroUsd;

    use super::*;

    #[test]
    fn an_unknown_field_of_a_change_is_refused_and_so_is_a_change_of_nothing() {
        let read = |text: &str| serde_json::from_str::<HostPatch>(text);
        assert!(read(r#"{"paused":true,"state":"ready"}"#).is_err());
        assert!(read("{}").expect("a document").check().is_err());
        let paused = HostPatch { paused: Some(true), ..HostPatch::default() };
        assert_eq!(read(r#"{"paused":true}"#).expect("a document"), paused);
        assert_eq!(
            (paused.check(), serde_json::to_string(&paused).ok()),
            (Ok(()), Some(r#"{"paused":true}"#.into()))
        );
    }

    #[test]
    fn a_price_that_follows_clouds_is_below_them_and_has_a_floor_that_is_a_price() {
        let check = |percent, floor| {
            let gpu_price = Some(GpuPrice::BelowBaseline { percent, floor: MicroUsd(floor) });
            HostPatch { gpu_price, ..HostPatch::default() }.check()
        };
        assert_eq!((check(0, 0), check(99, RATE_PART_MAX)), (Ok(()), Ok(())));
        assert!(check(100, 0).is_err_and(|problem| problem.starts_with("gpu_price.percent")));
        assert!(check(1, -1).is_err_and(|problem| problem.starts_with("gpu_price.floor")));
        let text = r#"{"gpu_price":{"below_baseline":{"percent":10,"floor":800000}}}"#;
        let patch: HostPatch = serde_json::from_str(text).expect("a document");
        assert_eq!(serde_json::to_string(&patch).expect("a document"), text);
    }

    #[test]
    fn a_rate_is_never_negative_nor_absurd() {
        let rate = |micros| Rate { vcpu_hour: MicroUsd(micros), ..Rate::default() };
        assert!(check_rate(&rate(0)).is_ok() && check_rate(&rate(RATE_PART_MAX)).is_ok());
        for micros in [-1, RATE_PART_MAX + 1, i64::MIN, i64::MAX] {
            assert!(check_rate(&rate(micros)).is_err_and(|message| message.starts_with("rate.vcpu_hour")));
        }
    }

    #[test]
    fn a_url_names_an_api_and_carries_no_password() {
        for url in ["https://market.example", "http://127.0.0.1:8080/nave/", "http://[fd00::1]:80"] {
            assert_eq!(check_url(url), Ok(()), "{url}");
        }
        for url in
            ["", "https://", "http:///x", "ftp://x", "https://a:b@x", "https://x?a=b", "https://x y", "x"]
        {
            assert!(check_url(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_name_is_fit_for_a_command_line() {
        for name in ["a", "gpu-1.rack_2", "0", &"x".repeat(NAME_BYTES_MAX)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in ["", "-y", ".x", "a b", "a/b", "\u{e9}", "a\n", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
