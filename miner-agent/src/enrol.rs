//! Joins a market: one signed request, one signed answer, and nothing in between
//! that a killed process would have to begin anew.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use nave_crash_point::crash_point;
use nave_domain::{Timestamp, host::Inventory, mesh::Prefix};
use nave_sdk::wire::{
    enrol::{Enrolment, EnrolmentRequest, Signature, Ticket, TicketPayload},
    keys::Nonce,
    rest::Problem,
    sign::{EXPIRY_AHEAD, REPLY_SIGNATURE_HEADER, Request, SecretKey, Stamp, random, sha256},
};
use reqwest::{Client, StatusCode, header, redirect};

use crate::{
    backoff::Backoff,
    membership::{self, Membership},
    state,
};

/// Where hosts join, below the URL of a market.
const TARGET: &str = "/v1/enrolments";
/// Longest that one answer may take.
const ANSWER: Duration = Duration::from_secs(15);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Why a host did not join.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The market refuses, or something here stands in the way.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
    /// Something on this machine does not work.
    #[error("{0:#}")]
    Machine(#[from] anyhow::Error),
}

impl EnrolError {
    /// As a problem document, for people and programs alike.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Refused(problem) => (**problem).clone(),
            Self::Machine(error) => {
                problem("local_error", format!("{error:#}"), "correct that and run the same command again")
            }
        }
    }
}

fn refused(code: &str, detail: impl Into<String>, suggestion: &str) -> EnrolError {
    EnrolError::Refused(Box::new(problem(code, detail, suggestion)))
}

fn problem(code: &str, detail: impl Into<String>, suggestion: &str) -> Problem {
    Problem {
        r#type: "about:blank".to_owned(),
        title: "Not done".to_owned(),
        status: 0,
        detail: detail.into(),
        code: code.to_owned(),
        retryable: false,
        suggestion: suggestion.to_owned(),
    }
}

/// A wish to join.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// Where the agent keeps what it knows.
    pub data: &'a Path,
    /// Text of the ticket.
    pub ticket: &'a str,
    /// How long to wait for a market that does not answer.
    pub wait: Duration,
    /// Gives up another host that this machine was.
    pub replace: bool,
}

/// Joins the market that a ticket names; `inventory` is only asked for when it is needed.
/// Killed at any line and called again with the same ticket, it is the same host.
///
/// # Errors
/// [`EnrolError`].
pub async fn enrol(
    wish: &Wish<'_>,
    inventory: impl AsyncFnOnce() -> Inventory,
) -> Result<Membership, EnrolError> {
    let ticket: Ticket = wish.ticket.trim().parse().map_err(|error| {
        let detail = format!("the ticket cannot be read: {error}");
        refused("ticket_malformed", detail, "copy the whole text that `nave miner ticket` printed")
    })?;
    let payload = ticket.payload();
    if let Some(member) = known(wish, payload)? {
        member.settle_keys(wish.data)?;
        return Ok(member);
    }
    let _lock = state::lock(wish.data)?;
    let agent = membership::agent_key(wish.data)?;
    if payload.agent_key.is_some_and(|bound| bound != agent.public()) {
        return Err(refused(
            "ticket_bound",
            "the ticket is meant for another agent than this machine's",
            "have a ticket made for the key that `miner-agent key` prints, or one without a key",
        ));
    }
    let mesh = membership::joining_key(wish.data, &payload.ticket)?;
    crash_point!("agent.enrol.after_keys");
    let request = EnrolmentRequest {
        ticket: ticket.to_string(),
        agent_key: agent.public(),
        mesh_key: mesh.public(),
        inventory: inventory().await,
    };
    let body = serde_json::to_vec(&request).context("write the request as JSON")?;
    let place = ask(wish, payload, &agent, &body).await?;
    let member = Membership {
        ticket: payload.ticket,
        url: payload.url.clone(),
        market_key: payload.market_key,
        release_key: payload.release_key,
        hotkey: payload.hotkey.clone(),
        place,
    };
    crash_point!("agent.enrol.before_save");
    member.save(wish.data)?;
    Ok(member)
}

/// The membership that is there already, where the ticket is the one it was made with.
fn known(wish: &Wish<'_>, payload: &TicketPayload) -> Result<Option<Membership>, EnrolError> {
    let Some(member) = Membership::find(wish.data)? else { return Ok(None) };
    if member.ticket == payload.ticket {
        return Ok(Some(member));
    }
    if wish.replace || payload.replaces == Some(member.place.host) {
        return Ok(None);
    }
    let (host, url) = (member.place.host, member.url);
    Err(refused(
        "already_enrolled",
        format!("this machine is {host} of the market at {url} already"),
        "to give that host up, end its jobs with `miner-agent remove-all` and add --replace; to be a host \
         of both markets, use another --data and another --mesh-interface",
    ))
}

/// Asks until the market answers.
async fn ask(
    wish: &Wish<'_>,
    payload: &TicketPayload,
    agent: &SecretKey,
    body: &[u8],
) -> Result<Enrolment, EnrolError> {
    let url = payload.url.trim_end_matches('/');
    let client = Client::builder().connect_timeout(ANSWER).timeout(ANSWER);
    let client = client.redirect(redirect::Policy::none()).build().context("build the HTTP client")?;
    let (begun, mut backoff) = (Instant::now(), Backoff::default());
    loop {
        let why = match attempt(&client, url, payload, agent, body).await? {
            Answer::Place(place) => {
                check_place(&place, payload)?;
                return Ok(*place);
            }
            Answer::NotNow(why) => why,
        };
        if begun.elapsed() >= wish.wait {
            let detail = format!("the market at {url} does not answer: {why}");
            let fix = "check that this machine reaches that URL, then run the same command again: the ticket \
                       is still good";
            return Err(refused("market_unreachable", detail, fix));
        }
        tracing::warn!(url, reason = why, "no answer yet; trying again");
        backoff.wait().await;
    }
}

enum Answer {
    Place(Box<Enrolment>),
    /// Why not; it may be different in a moment.
    NotNow(String),
}

async fn attempt(
    client: &Client,
    url: &str,
    payload: &TicketPayload,
    agent: &SecretKey,
    body: &[u8],
) -> Result<Answer, EnrolError> {
    let nonce = Nonce(random().context("draw a nonce")?);
    let hash = sha256(body);
    let request = Request { market: &payload.market_key, method: "POST", target: TARGET, body: &hash };
    let stamp = agent.stamp(&request, nonce, now().after(EXPIRY_AHEAD));
    let mut post = client.post(format!("{url}{TARGET}")).header(header::CONTENT_TYPE, "application/json");
    for (name, value) in stamp.headers() {
        post = post.header(name, value);
    }
    let mut answer = match post.body(body.to_vec()).send().await {
        Ok(answer) => answer,
        Err(error) => return Ok(Answer::NotNow(format!("{:#}", anyhow::Error::new(error)))),
    };
    let status = answer.status();
    let later = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
    if later || status.is_server_error() {
        return Ok(Answer::NotNow(format!("it answered {status}")));
    }
    let signature = answer.headers().get(REPLY_SIGNATURE_HEADER);
    let signature = signature.and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    let mut read = Vec::new();
    loop {
        match answer.chunk().await {
            Ok(Some(piece)) if read.len() + piece.len() <= ANSWER_BYTES_MAX => read.extend_from_slice(&piece),
            Ok(Some(_)) => return Err(stranger(url, status)),
            Ok(None) => break,
            Err(error) => return Ok(Answer::NotNow(format!("{:#}", anyhow::Error::new(error)))),
        }
    }
    believe(url, payload, &stamp, status, signature, &read)
}

/// Reads an answer, if the market that the ticket names has signed it for this request.
fn believe(
    url: &str,
    payload: &TicketPayload,
    stamp: &Stamp,
    status: StatusCode,
    signature: Option<Signature>,
    body: &[u8],
) -> Result<Answer, EnrolError> {
    let signature = signature.ok_or_else(|| stranger(url, status))?;
    let verified = payload.market_key.verify_reply(&stamp.signature, status.as_u16(), body, &signature);
    verified.map_err(|_| stranger(url, status))?;
    if status.is_success() {
        let place = serde_json::from_slice(body).context("read the market's answer")?;
        return Ok(Answer::Place(Box::new(place)));
    }
    let problem: Problem = serde_json::from_slice(body).context("read the market's refusal")?;
    if problem.retryable {
        return Ok(Answer::NotNow(problem.detail));
    }
    Err(EnrolError::Refused(Box::new(problem)))
}

fn stranger(url: &str, status: StatusCode) -> EnrolError {
    refused(
        "reply_not_signed",
        format!(
            "something at {url} answered {status} without the signature of the market that the ticket names; \
             nothing of it is believed"
        ),
        "check the URL with who made the ticket; a proxy that changes answers must be left out",
    )
}

/// What is signed can still be wrong: addresses follow from the market's key.
fn check_place(place: &Enrolment, payload: &TicketPayload) -> Result<(), EnrolError> {
    let prefix = Prefix::of_market(&payload.market_key.0);
    let mesh = &place.mesh;
    let fits = prefix.contains(mesh.address)
        && mesh.hub_address == prefix.hub()
        && mesh.address != mesh.hub_address
        && mesh.prefix == nave_domain::mesh::PREFIX_BITS;
    if fits {
        return Ok(());
    }
    let detail = format!("the market gave this host the address {}, which is none of its own", mesh.address);
    Err(refused("place_wrong", detail, "tell the market's operator"))
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
