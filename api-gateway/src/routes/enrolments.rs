//! Enrolment: a ticket and the signature of an agent become a host.

use std::net::Ipv6Addr;

use axum::{
    Json,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode},
    middleware::Next,
    response::{IntoResponse, Response},
};
use nave_crash_point::crash_point;
use nave_domain::{
    HostId, Millis, Timestamp,
    mesh::{BadMeshKey, PREFIX_BITS, Prefix},
};
use nave_sdk::wire::{
    enrol::{
        BadTicket, Enrolment, EnrolmentRequest, MeshPlace, PublicKey, Signature, TICKET_LIFE_MAX, Ticket,
        TicketPayload,
    },
    sign::{REPLY_SIGNATURE_HEADER, SIGNATURE_HEADER},
};
use nave_store::{HubRow, Joined, Joining, StoreError};
use uuid::Uuid;

use crate::{
    app::App,
    error::ApiError,
    extract::{self, Nothing, Query},
    signed::Agent,
};

/// Longest silence of a host towards the hub, in seconds: NATs forget after thirty.
const KEEPALIVE_S: u16 = 15;
/// How far a miner's clock may be ahead of the market's.
const CLOCK_AHEAD: Millis = Millis(5 * 60_000);
/// Largest answer that is signed, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Makes the sender a host, on the terms of a ticket. The same wish again gets the same answer.
/// The market key signs every answer to a request that carries a signature.
#[utoipa::path(post, path = "/v1/enrolments", tag = "miners", operation_id = "enrolments_create",
    request_body = EnrolmentRequest, security(("agent" = [])),
    responses((status = 201, description = "The host's place in the market", body = Enrolment,
        headers(("nave-reply-signature" = String, description = "The market key's signature of this answer")))))]
pub(crate) async fn create(
    State(app): State<App>,
    Query(Nothing {}): Query<Nothing>,
    agent: Agent,
) -> Result<Response, ApiError> {
    let request: EnrolmentRequest = extract::parse(&agent.body)?;
    let ticket: Ticket = request.ticket.parse().map_err(bad_ticket)?;
    check_keys(&app, &agent, &request, &ticket)?;
    let terms = ticket.payload();
    let hub = hub(&app).await?;
    let joined = join(&app, &request, terms).await?;
    crash_point!("gateway.enrol.before_answer");
    let enrolment = Enrolment {
        host: joined.host,
        name: joined.name,
        mesh: place(&hub, joined.address)?,
        report_ms: app.config.report_ms,
    };
    Ok((StatusCode::CREATED, Json(enrolment)).into_response())
}

/// Every key must be the one it is said to be: the miner's, the market's and the agent's.
fn check_keys(app: &App, agent: &Agent, request: &EnrolmentRequest, ticket: &Ticket) -> Result<(), ApiError> {
    ticket.verify().map_err(bad_ticket)?;
    let terms = ticket.payload();
    if terms.market_key != app.config.market_key.public() {
        return Err(forbidden("market_other", "this ticket is for another market")
            .suggest("make a ticket for this market, or give this one to the market that it names"));
    }
    let named: [Option<PublicKey>; 2] = [Some(request.agent_key), terms.agent_key];
    if named.into_iter().flatten().any(|named| named != agent.key) {
        return Err(forbidden("agent_key_other", "this agent's key is not the one that is named")
            .suggest("make a ticket for this agent; `miner-agent key` prints its key"));
    }
    Ok(())
}

async fn join(app: &App, request: &EnrolmentRequest, terms: &TicketPayload) -> Result<Joined, ApiError> {
    let new = HostId(Uuid::now_v7());
    let (ticket, agent_key, mesh_key) =
        (terms.ticket.to_string(), request.agent_key.to_string(), request.mesh_key.to_string());
    let joining = Joining {
        ticket: &ticket,
        hotkey: &terms.hotkey,
        agent_key: &agent_key,
        mesh_key: &mesh_key,
        host: new,
        address: prefix(app).host(new),
        name: terms.name.as_deref(),
        rate: terms.rate,
        term: terms.term,
        region: terms.region.as_ref(),
        replaces: terms.replaces,
    };
    // A ticket that has expired since still gives its own agent the answer that was lost.
    if let Some(joined) = app.store.host_joined(&joining).await.map_err(not_joined)? {
        return Ok(joined);
    }
    check_life(terms, app.store.now().await?)?;
    request.inventory.check().map_err(|problem| {
        ApiError::refused("inventory_invalid", format!("inventory.{problem}")).suggest("correct the agent")
    })?;
    app.store.host_join(&joining).await.map_err(not_joined)
}

fn check_life(terms: &TicketPayload, now: Timestamp) -> Result<(), ApiError> {
    if terms.expires_at <= now {
        return Err(forbidden("ticket_expired", "this ticket has expired").suggest("make a new one"));
    }
    if terms.expires_at > now.after(TICKET_LIFE_MAX).after(CLOCK_AHEAD) {
        return Err(ApiError::refused("ticket_malformed", "this ticket lives for longer than a ticket may")
            .suggest("make one that expires within a week"));
    }
    Ok(())
}

fn forbidden(code: &'static str, detail: &str) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, code, detail)
}

fn bad_ticket(bad: BadTicket) -> ApiError {
    let detail = bad.to_string();
    match bad {
        BadTicket::Signature => {
            forbidden("ticket_invalid", &detail).suggest("make a new one and copy all of it")
        }
        BadTicket::Shape | BadTicket::Version | BadTicket::Payload(_) => {
            ApiError::refused("ticket_malformed", detail).suggest("copy all of the ticket, or make a new one")
        }
    }
}

fn not_joined(error: StoreError) -> ApiError {
    let conflict = |code, detail: &str| ApiError::new(StatusCode::CONFLICT, code, detail);
    match &error {
        StoreError::Constraint(name) => match name.as_str() {
            "tickets_pkey" => conflict("ticket_used", "this ticket was used before, with other keys")
                .suggest("make a new ticket; each works once"),
            "mesh_keys_pkey" => conflict("mesh_key_taken", "this mesh key is or was another host's")
                .suggest("make a new mesh key"),
            "hosts_name" => conflict("host_name_taken", "another host of this miner has this name")
                .suggest("make a ticket with another name, or one that replaces that host"),
            _ => error.into(),
        },
        StoreError::Stale(_) => conflict("host_leaving", "this host is leaving or has left")
            .suggest("make a ticket for a new host"),
        StoreError::NotFound(_) => {
            ApiError::new(StatusCode::NOT_FOUND, "host_not_found", "this miner has no host to be replaced")
                .suggest("make a ticket for a new host, or name one of this miner's")
        }
        StoreError::KeyReused
        | StoreError::BalanceTooLow
        | StoreError::TooMany(_)
        | StoreError::Quote(_)
        | StoreError::Corrupt(_)
        | StoreError::Overflow(_)
        | StoreError::Migrate(_)
        | StoreError::Database(_) => error.into(),
    }
}

fn prefix(app: &App) -> Prefix {
    Prefix::of_market(&app.config.market_key.public().0)
}

async fn hub(app: &App) -> Result<HubRow, ApiError> {
    let hub = app.store.hub().await?;
    hub.ok_or_else(|| ApiError::unavailable("hub_unknown", "the hub of the mesh has not come up yet"))
}

fn place(hub: &HubRow, address: Ipv6Addr) -> Result<MeshPlace, ApiError> {
    Ok(MeshPlace {
        address,
        prefix: PREFIX_BITS,
        hub_address: hub.address,
        hub_key: hub.key.parse().map_err(|error: BadMeshKey| ApiError::internal(error.to_string()))?,
        hub_endpoints: hub.endpoints.clone(),
        port: hub.port,
        keepalive_s: KEEPALIVE_S,
    })
}

/// Signs whatever is answered, so that nobody between can answer in the market's place.
/// Where the request's signature cannot be read there is nothing to bind an answer to.
pub(crate) async fn sign_answer(State(app): State<App>, request: Request, next: Next) -> Response {
    let asked: Option<Signature> =
        request.headers().get(SIGNATURE_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
    let response = next.run(request).await;
    let Some(asked) = asked else { return response };
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, ANSWER_BYTES_MAX).await else {
        return ApiError::internal("an answer is too large to be signed").into_response();
    };
    let signature = app.config.market_key.sign_reply(&asked, parts.status.as_u16(), &bytes).to_string();
    if let Ok(signature) = HeaderValue::from_str(&signature) {
        parts.headers.insert(HeaderName::from_static(REPLY_SIGNATURE_HEADER), signature);
    }
    Response::from_parts(parts, Body::from(bytes))
}
