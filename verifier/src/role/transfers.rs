//! Transfers between hosts: two have a part in each, so it is drawn and settled in ways of its own.

use anyhow::Context as _;
use nave_domain::{
    HostId,
    verdict::{Cause, Kind},
};
use nave_proof::{Nonce, Task};
use nave_rules::floors::Floors;
use nave_store::{Drawing, LinkedHost, OpenChallenge, Store};

use super::{Verifier, challenge, is_news, nonce, passable, random};
use crate::{
    decide::Ruling,
    schedule::next,
    transfer::{self, Fetch},
};

/// The step whose reveal is what the source made its bytes of.
const KEY: u32 = 2;

impl Verifier {
    /// Has hosts fetch from one another, where it is time.
    pub(super) async fn plan_transfers(&self) -> anyhow::Result<()> {
        if !self.rules().has(Kind::Transfer) {
            return Ok(());
        }
        let hosts = self.store.hosts_linked().await.context("load hosts that reach one another")?;
        let due: Vec<HostId> = hosts.iter().filter(|host| host.is_due).map(|host| host.host).collect();
        if due.is_empty() || hosts.len() < 2 {
            return Ok(());
        }
        let recent = self.store.transfers_of(&due).await.context("load recent transfers")?;
        let mut drawn = Ok(());
        let mut draw = || number().map_err(|error| drawn = Err(error)).unwrap_or(0);
        let fetches = transfer::plan(&hosts, &recent, &mut draw);
        drawn?;
        for fetch in fetches {
            passable(self.begin_transfer(&hosts, fetch).await)?;
        }
        Ok(())
    }

    async fn begin_transfer(&self, hosts: &[LinkedHost], fetch: Fetch) -> anyhow::Result<()> {
        let find = |host: HostId| hosts.iter().find(|linked| linked.host == host);
        let Some((host, source)) = find(fetch.host).zip(find(fetch.source)) else { return Ok(()) };
        let challenge =
            challenge(host.host, Task::transfer(source.address, transfer::port(number()?)), None)?;
        let body = serde_json::to_value(&challenge).context("write a challenge as JSON")?;
        let drawing = Drawing {
            host: host.host,
            challenge: challenge.challenge,
            kind: Kind::Transfer,
            cause: Cause::Random,
            body: &body,
            claims: &host.claims,
            shadow: self.rules().is_shadow(Kind::Transfer),
            window: None,
            lease: None,
        };
        let up = next(self.store.clock_up().await?, self.config.transfer, number()?);
        let drawn = self.store.transfer_draw(&drawing, source.host, &nonce()?.to_string(), up).await;
        if is_news(drawn).context("draw a transfer")? {
            let (host, source) = (host.host, source.host);
            tracing::info!(host.id = %host, source.id = %source, challenge.id = %challenge.challenge, "a host fetches from another");
        }
        Ok(())
    }
}

fn number() -> anyhow::Result<u64> {
    random().map(u64::from_le_bytes)
}

/// The nonce of a step: a fresh one, unless it is what was given to the source of a transfer before.
pub(super) async fn reveal(store: &Store, open: &OpenChallenge, step: u32) -> anyhow::Result<Nonce> {
    if open.kind != Kind::Transfer || step != KEY {
        return nonce();
    }
    let key = store.transfer_key(open.challenge).await.context("load the key of a transfer")?;
    key.parse().context("read the key of a transfer")
}

/// What is written down of a ruling: of one on a transfer, what others say together with it.
pub(super) async fn settle(store: &Store, open: &OpenChallenge, ruling: Ruling) -> anyhow::Result<Ruling> {
    if open.kind != Kind::Transfer {
        return Ok(ruling);
    }
    let measured = transfer::measured(&ruling);
    store.transfer_measured(open.challenge, measured).await.context("write down what came")?;
    let hosts = store.hosts_linked().await.context("load hosts that reach one another")?;
    let recent = store.transfers_of(&[open.host]).await.context("load recent transfers")?;
    let least = Floors::embedded().map_or(0, Floors::transfer_bytes_per_s);
    Ok(transfer::settle(ruling, open.host, &hosts, &recent, least))
}
