//! Agents that enrol and miners, as far as the gateway can tell.

use std::net::IpAddr;

use nave_domain::{HostId, MicroUsd, Millis, Timestamp, host::Term, mesh::MeshKey, rate::Rate};
use nave_sdk::{
    hotkey::HotkeySecret,
    wire::{
        enrol::{Enrolment, EnrolmentRequest, PublicKey, Signature, Ticket, TicketId, TicketPayload},
        sign::{EXPIRY_AHEAD, Nonce, REPLY_SIGNATURE_HEADER, Request, SecretKey, Stamp, random, sha256},
    },
};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;

use crate::setup::{Host, Market, inventory, market_key, refused};

pub const RATE: Rate =
    Rate { gpu_hour: MicroUsd(2_000_000), vcpu_hour: MicroUsd(36_000_000), gib_hour: MicroUsd(0) };

/// The owner of a hotkey.
pub struct Owner {
    pub secret: HotkeySecret,
}

/// An agent before it belongs to a market.
pub struct Newcomer {
    pub key: SecretKey,
    pub mesh_key: MeshKey,
}

impl Owner {
    pub fn new() -> Self {
        let seed = random().expect("randomness");
        Self { secret: HotkeySecret::from_seed(&seed).expect("a key") }
    }

    /// What a usual ticket allows.
    pub async fn terms(&self, market: &Market) -> TicketPayload {
        TicketPayload {
            url: market.base.clone(),
            market_key: market_key().public(),
            release_key: None,
            hotkey: String::new(),
            ticket: TicketId(random().expect("randomness")),
            expires_at: now(market).await.after(Millis(3_600_000)),
            name: None,
            rate: RATE,
            term: Term::OnDemand,
            region: None,
            agent_key: None,
            replaces: None,
        }
    }

    pub fn sign(&self, terms: TicketPayload) -> Ticket {
        self.secret.ticket(terms).expect("a ticket")
    }

    pub async fn ticket(&self, market: &Market) -> Ticket {
        self.sign(self.terms(market).await)
    }

    pub async fn call(&self, market: &Market, method: Method, path: &str, body: &[u8]) -> RequestBuilder {
        let expiry = now(market).await.after(EXPIRY_AHEAD);
        signed(market, method, path, body, |request, nonce| self.secret.stamp(request, nonce, expiry))
    }

    /// Enrols a host and returns it with its place.
    pub async fn enrol<'a>(
        &self,
        market: &'a Market,
        change: impl FnOnce(&mut TicketPayload),
    ) -> Enrolled<'a> {
        let mut terms = self.terms(market).await;
        change(&mut terms);
        let (agent, ticket) = (Newcomer::new(), self.sign(terms));
        let place = agent.enrolled(market, &ticket).await;
        Enrolled::new(market, agent, place).await
    }
}

/// Any key; a real one has the highest bit clear.
pub fn fresh_mesh_key() -> MeshKey {
    let mut bytes: [u8; 32] = random().expect("randomness");
    bytes[31] &= 0x3f;
    MeshKey::new(bytes).expect("a key")
}

impl Newcomer {
    pub fn new() -> Self {
        let mesh_key = fresh_mesh_key();
        Self { key: SecretKey::generate().expect("a key"), mesh_key }
    }

    pub fn wish(&self, ticket: &Ticket) -> EnrolmentRequest {
        EnrolmentRequest {
            ticket: ticket.to_string(),
            agent_key: self.key.public(),
            mesh_key: self.mesh_key,
            inventory: inventory(),
        }
    }

    pub async fn stamp(&self, market: &Market, body: &[u8]) -> Stamp {
        let request = Request {
            market: &market_key().public(),
            method: "POST",
            target: "/v1/enrolments",
            body: &sha256(body),
        };
        self.key.stamp(&request, nonce(), now(market).await.after(EXPIRY_AHEAD))
    }

    /// A signed request with this body.
    pub async fn post(&self, market: &Market, body: Vec<u8>) -> RequestBuilder {
        let stamp = self.stamp(market, &body).await;
        stamped(market.anonymous(Method::POST, "/v1/enrolments"), &stamp).body(body)
    }

    pub async fn enrol(&self, market: &Market, ticket: &Ticket) -> RequestBuilder {
        self.post(market, json(&self.wish(ticket))).await
    }

    /// The answer to an enrolment that must succeed and be signed by the market.
    pub async fn enrolled(&self, market: &Market, ticket: &Ticket) -> Enrolment {
        let body = json(&self.wish(ticket));
        let stamp = self.stamp(market, &body).await;
        let call = stamped(market.anonymous(Method::POST, "/v1/enrolments"), &stamp).body(body);
        let (status, answer) = verified(call, &stamp.signature, &market_key().public()).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        serde_json::from_value(answer).expect("an enrolment")
    }

    pub async fn refused(&self, market: &Market, ticket: &Ticket, status: u16, code: &str) {
        refused(self.enrol(market, ticket).await, status, code).await;
    }
}

/// A host that came by a ticket. It speaks from an address of this machine.
pub struct Enrolled<'a> {
    pub agent: Newcomer,
    pub place: Enrolment,
    pub host: Host<'a>,
}

impl<'a> Enrolled<'a> {
    pub async fn new(market: &'a Market, agent: Newcomer, place: Enrolment) -> Self {
        let address = crate::setup::fresh_address();
        market.store.host_move(place.host, address).await.expect("an address");
        Self { agent, host: Host::new(market, place.host, address), place }
    }

    pub fn id(&self) -> HostId {
        self.place.host
    }

    pub fn address(&self) -> IpAddr {
        self.host.address
    }
}

pub fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON")
}

pub fn nonce() -> Nonce {
    Nonce(random().expect("randomness"))
}

pub async fn now(market: &Market) -> Timestamp {
    market.store.now().await.expect("the time")
}

pub fn stamped(call: RequestBuilder, stamp: &Stamp) -> RequestBuilder {
    stamp.headers().into_iter().fold(call, |call, (name, value)| call.header(name, value))
}

/// A call that `sign` signs.
pub fn signed(
    market: &Market,
    method: Method,
    path: &str,
    body: &[u8],
    sign: impl FnOnce(&Request<'_>, Nonce) -> Stamp,
) -> RequestBuilder {
    let request = Request {
        market: &market_key().public(),
        method: method.as_str(),
        target: path,
        body: &sha256(body),
    };
    let stamp = sign(&request, nonce());
    stamped(market.anonymous(method.clone(), path), &stamp).body(body.to_vec())
}

/// Status and document of an answer whose signature is the market's.
pub async fn verified(call: RequestBuilder, asked: &Signature, market: &PublicKey) -> (StatusCode, Value) {
    let answer = call.send().await.expect("an answer");
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = answer.bytes().await.expect("a body");
    let signature = headers.get(REPLY_SIGNATURE_HEADER).expect("a signature").to_str().expect("text");
    let signature = signature.parse().expect("a signature");
    market.verify_reply(asked, status.as_u16(), &body, &signature).expect("the market's signature");
    // Nothing but this answer fits the signature.
    assert!(market.verify_reply(asked, 418, &body, &signature).is_err());
    let mut tampered = body.to_vec();
    tampered[0] ^= 1;
    assert!(market.verify_reply(asked, status.as_u16(), &tampered, &signature).is_err());
    (status, serde_json::from_slice(&body).expect("JSON"))
}
