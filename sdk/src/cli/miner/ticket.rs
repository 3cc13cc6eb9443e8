//! `nave miner ticket`.

use nave_domain::Timestamp;
use nave_sdk::wire::{
    enrol::{TicketId, TicketPayload},
    sign::{PublicKey, random},
};
use serde::Serialize;

use super::{
    super::{Context, failure::Failure, output, output::now},
    Caller,
    args::{RATE, TicketArgs},
};

/// What to type on the host.
const NEXT: &str = "miner-agent enrol TICKET";

/// A ticket with all that it says.
#[derive(Debug, Serialize)]
struct Made {
    /// What to hand over.
    ticket: String,
    /// Until when.
    expires_at: Timestamp,
    /// What it says.
    payload: TicketPayload,
    /// What to type on the host.
    next: &'static str,
}

/// Makes a ticket and prints it.
pub async fn ticket(cx: &Context, caller: &Caller, args: TicketArgs) -> Result<(), Failure> {
    let attempted = "make a ticket";
    let replaces = match &args.replaces {
        Some(host) => Some(caller.host(host).await?),
        None => None,
    };
    let id = random().map_err(|error| Failure::local(attempted, &error.to_string(), ""))?;
    let payload = TicketPayload {
        url: caller.url.clone(),
        market_key: caller.market.market_key,
        release_key: caller.market.release_key,
        hotkey: caller.secret.hotkey().to_string(),
        ticket: TicketId(id),
        expires_at: now().after(args.expires),
        name: args.name,
        rate: args.price.over(replaces.as_ref().map_or(RATE, |host| host.rate)),
        term: args.term.or(replaces.as_ref().map(|host| host.term)).unwrap_or_default(),
        region: args.region.or(replaces.as_ref().and_then(|host| host.region.clone())),
        agent_key: args.agent,
        replaces: replaces.as_ref().map(|host| host.host),
    };
    let signed = caller
        .secret
        .ticket(payload)
        .map_err(|error| Failure::local(attempted, &error.to_string(), "correct the option"))?;
    let payload = signed.payload().clone();
    let made = Made { ticket: signed.to_string(), expires_at: payload.expires_at, payload, next: NEXT };
    tell(&made, caller);
    if cx.global.json { output::print_json(&made) } else { output::print(&format!("{}\n", made.ticket)) }
}

/// What to do with it, on stderr.
fn tell(made: &Made, caller: &Caller) {
    if is_local(&made.payload.url) {
        output::say(&format!(
            "{} is this machine itself: for a host elsewhere give --url an address it can reach",
            made.payload.url
        ));
    }
    if caller.market.hub.is_none() {
        output::say("this market takes no hosts at present; its operator has to open its mesh");
    }
    let once = match made.payload.agent_key {
        Some(key) => format!("it works once, for the agent with the key {}", short(&key)),
        None => "it works once".to_owned(),
    };
    output::say(&format!("next, on the host, as root: {NEXT}"));
    output::say(&format!("{once}, until {}; then see: nave miner hosts", made.expires_at));
}

fn short(key: &PublicKey) -> String {
    format!("{}...", key.to_string().chars().take(8).collect::<String>())
}

/// Whether nobody else can reach this URL.
fn is_local(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    ["localhost", "127.", "[::1]"].iter().any(|local| host.starts_with(local))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_only_this_machine_reaches_is_recognised() {
        assert!(["http://127.0.0.1:8080", "http://localhost/x", "https://[::1]:1"].into_iter().all(is_local));
        assert!(!["https://market.example", "http://10.0.0.1:8080"].into_iter().any(is_local));
    }
}
