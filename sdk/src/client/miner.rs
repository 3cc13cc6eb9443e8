//! What miners ask of a market: the calls of [`crate::wire::enrol`], signed by a hotkey.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use nave_domain::{ChallengeId, HostId, MicroUsd, Timestamp};
use reqwest::{RequestBuilder, Url};

use super::{Client, call::Call, error::Error, error::Repeat};
use crate::{
    hotkey::HotkeySecret,
    wire::{
        enrol::{HostPatch, Market, MinerHost},
        event::ServiceEvent,
        rest::Page,
        settlement::{self, CallRequest, Collateral, Earnings, LeaseEarnings},
        sign::{EXPIRY_AHEAD, Nonce, PublicKey, Request, random, sha256},
        verdict::HostVerdict,
    },
};

/// Who signs, and for which market.
#[derive(Debug)]
pub(super) struct Signer {
    market: PublicKey,
    secret: Arc<HotkeySecret>,
}

/// A miner's connection to a market. Clones share their connections.
#[derive(Debug, Clone)]
pub struct MinerClient {
    client: Client,
}

impl Client {
    /// What identifies the market. Nobody signs this: compare the key with one you know.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn market(&self) -> Result<Market, Error> {
        self.fetch(Call::get(&[&"market"])).await
    }

    /// This connection for the owner of a hotkey. What it signs counts at `market` only.
    #[must_use]
    pub fn miner(mut self, market: PublicKey, secret: Arc<HotkeySecret>) -> MinerClient {
        self.authorization = None;
        self.signer = Some(Arc::new(Signer { market, secret }));
        MinerClient { client: self }
    }

    /// `request` with a signature, where this client signs. Every try gets one of its own:
    /// a nonce counts once, also when the answer was lost.
    pub(super) fn signed(
        &self,
        call: &Call,
        url: &Url,
        mut request: RequestBuilder,
    ) -> Result<RequestBuilder, Error> {
        let Some(signer) = &self.signer else { return Ok(request) };
        let nonce = random().map(Nonce).map_err(|error| Error::Setup(error.to_string()))?;
        let body = sha256(call.body.as_deref().unwrap_or_default());
        let target = target(&self.base, url);
        let signed =
            Request { market: &signer.market, method: call.method.as_str(), target: &target, body: &body };
        for (name, value) in signer.secret.stamp(&signed, nonce, now().after(EXPIRY_AHEAD)).headers() {
            request = request.header(name, value);
        }
        Ok(request)
    }
}

/// Path and query as the API sees them: a proxy in front takes its own prefix off.
fn target(base: &Url, url: &Url) -> String {
    let path = url.path().strip_prefix(base.path().trim_end_matches('/')).unwrap_or(url.path());
    url.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"))
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

impl MinerClient {
    /// The hotkey's hosts.
    ///
    /// # Errors
    /// [`Error`], here as below.
    pub async fn hosts(&self) -> Result<Vec<MinerHost>, Error> {
        self.client.fetch(Call::get(&[&"miner", &"hosts"])).await
    }

    /// One host.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn host(&self, host: HostId) -> Result<MinerHost, Error> {
        self.client.fetch(Call::get(&[&"miner", &"hosts", &host])).await
    }

    /// Changes a host.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn change(&self, host: HostId, patch: &HostPatch) -> Result<MinerHost, Error> {
        self.client.fetch(Call::patch(&[&"miner", &"hosts", &host]).json(patch)?).await
    }

    /// Takes a host out once its jobs are done.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn drain(&self, host: HostId) -> Result<MinerHost, Error> {
        self.client.fetch(Call::post(&[&"miner", &"hosts", &host, &"drain"], Repeat::Safe)).await
    }

    /// Takes a host out now; its jobs are placed anew. One that has left stays so: the call is repeated.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn leave(&self, host: HostId) -> Result<MinerHost, Error> {
        self.client.fetch(Call::post(&[&"miner", &"hosts", &host, &"leave"], Repeat::Safe)).await
    }

    /// What went wrong with a host and its leases, the newest first.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn events(&self, host: HostId) -> Result<Page<ServiceEvent>, Error> {
        self.client.fetch(Call::get(&[&"miner", &"hosts", &host, &"events"])).await
    }

    /// Has a verdict reached again, once. Asking again shows what came of it: the call is repeated.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn appeal(&self, host: HostId, verdict: ChallengeId) -> Result<HostVerdict, Error> {
        let path: [&(dyn std::fmt::Display + Sync); 6] =
            [&"miner", &"hosts", &host, &"verdicts", &verdict, &"appeal"];
        self.client.fetch(Call::post(&path, Repeat::Safe)).await
    }

    /// What came of the hotkey in each epoch, the newest first.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn earnings(&self, limit: Option<u32>, before: Option<i64>) -> Result<Page<Earnings>, Error> {
        let call = Call::get(&[&"miner", &"earnings"]);
        self.client.fetch(call.query("limit", limit).query("before", before)).await
    }

    /// What came of each of its leases in an epoch.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn earnings_of(
        &self,
        epoch: i64,
        limit: Option<u32>,
        after: Option<&str>,
    ) -> Result<Page<LeaseEarnings>, Error> {
        let call = Call::get(&[&"miner", &"earnings", &epoch]);
        self.client.fetch(call.query("limit", limit).query("after", after)).await
    }

    /// Its collateral, and as what that lets its hosts sell.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn collateral(&self) -> Result<Collateral, Error> {
        self.client.fetch(Call::get(&[&"miner", &"collateral"])).await
    }

    /// Calls collateral back.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn collateral_call(&self, amount: MicroUsd) -> Result<settlement::Call, Error> {
        let call = Call::post(&[&"miner", &"collateral", &"call"], Repeat::Unsafe);
        self.client.fetch(call.json(&CallRequest { amount })?).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_prefix_is_not_signed() {
        for base in ["https://example.org/nave/", "https://example.org/nave", "https://example.org"] {
            let base: Url = base.parse().expect("a URL");
            let url = Call::get(&[&"miner", &"hosts"]).query("limit", Some(1)).url(&base).expect("a URL");
            assert_eq!(target(&base, &url), "/v1/miner/hosts?limit=1");
        }
    }
}
