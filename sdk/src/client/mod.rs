//! The customers' HTTP client: one typed method per call of [`crate::wire::rest`].
//!
//! Calls that may be repeated are, until [`Patience`] runs out: a control plane
//! that restarts in the middle of a job is waited for.

mod call;
mod error;
mod follow;
#[cfg(feature = "hotkey")]
mod miner;
mod retry;
mod settlement;
pub mod sse;
mod verdicts;

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use nave_domain::{
    Bytes as Size, JobId, KeyId, MicroUsd, MilliCpu, Millis, QuoteId, Timestamp,
    host::Trust,
    job::{GpuRequest, Isolation, JobRequest, JobState, TermWish},
    wish::Region,
};
use reqwest::{
    Response, Url,
    header::{AUTHORIZATION, HeaderValue, RETRY_AFTER},
};
use serde::de::DeserializeOwned;

#[cfg(feature = "hotkey")]
pub use self::miner::MinerClient;
use self::{call::Call, error::Repeat, retry::Tries};
pub use self::{
    error::Error,
    follow::{Follow, LogEvent},
    retry::Patience,
};
use crate::wire::{
    quote::{Quote, QuoteRequest},
    rest::{
        Balance, DeviceClass, Dispute, DisputeRequest, Epoch, Health, Host, Job, Key, KeyRequest, LedgerLine,
        Logs, NewKey, Offer, Page, Receipt,
    },
};

/// Largest JSON answer that is read into memory, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Largest error document that is read, in bytes.
const PROBLEM_BYTES_MAX: usize = 64 << 10;
/// Time in which a connection is made.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Time after which a silent stream counts as lost.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// Called with every error after which a call is sent again.
pub type Notice = Arc<dyn Fn(&Error) + Send + Sync>;

/// A customer's connection to a market. Clones share their connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    authorization: Option<HeaderValue>,
    patience: Patience,
    notice: Option<Notice>,
    #[cfg(feature = "hotkey")]
    signer: Option<Arc<miner::Signer>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("base", &error::place(&self.base)).finish_non_exhaustive()
    }
}

/// Which jobs to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobsQuery {
    /// Most jobs in one answer.
    pub limit: Option<u32>,
    /// `next` of the answer before.
    pub before: Option<String>,
    /// Only jobs in this state.
    pub state: Option<JobState>,
}

/// Which part of a log to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogsQuery {
    /// `cursor` of the answer before.
    pub after: Option<String>,
    /// Only the newest so many pieces.
    pub tail: Option<u32>,
    /// Only what was received from then on.
    pub since: Option<Timestamp>,
}

impl LogsQuery {
    fn apply(&self, call: Call) -> Call {
        call.query("after", self.after.as_deref()).query("tail", self.tail).query("since", self.since)
    }
}

/// Which offers to list; what is left out matters not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OffersQuery {
    /// GPUs that must be free.
    pub gpu: Option<GpuRequest>,
    /// CPU that must be free.
    pub milli_cpu: Option<MilliCpu>,
    /// Memory that must be free.
    pub memory: Option<Size>,
    /// Disk that must be free.
    pub disk: Option<Size>,
    /// Where.
    pub region: Option<Region>,
    /// On which term.
    pub term: Option<TermWish>,
    /// Of which trust classes; none of them stands for all.
    pub trust: BTreeSet<Trust>,
    /// What a job can have for itself.
    pub isolation: Option<Isolation>,
    /// Most that a GPU-hour may cost, or without GPUs an hour of what is asked for.
    pub max_price: Option<MicroUsd>,
}

impl OffersQuery {
    fn apply(&self, call: Call) -> Call {
        let gpu = self.gpu.as_ref();
        let models = gpu.map(|gpu| gpu.models.join(",")).filter(|models| !models.is_empty());
        let trust: Vec<&str> = self.trust.iter().map(|class| class.as_str()).collect();
        call.query("gpus", gpu.map(|gpu| gpu.count))
            .query("vram", gpu.map(|gpu| gpu.vram.0).filter(|vram| *vram > 0))
            .query("vram_max", gpu.and_then(|gpu| gpu.vram_max).map(|most| most.0))
            .query("models", models)
            .query("share", gpu.and_then(|gpu| gpu.share))
            .query("milli_cpu", self.milli_cpu.map(|amount| amount.0))
            .query("memory", self.memory.map(|amount| amount.0))
            .query("disk", self.disk.map(|amount| amount.0))
            .query("region", self.region.as_ref())
            .query("term", self.term.map(TermWish::as_str))
            .query("trust", (!trust.is_empty()).then(|| trust.join(",")))
            .query("isolation", self.isolation.map(Isolation::as_str))
            .query("max_price", self.max_price.map(|price| price.0))
    }
}

/// The bytes of a result archive, as they arrive.
#[derive(Debug)]
pub struct Download {
    response: Response,
}

impl Download {
    /// Size of the archive in bytes, where the server states it.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Broken`] when the connection ends early; fetch the result again.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        chunk(&mut self.response).await
    }
}

impl Client {
    /// A client of the API at `url`, such as `http://127.0.0.1:8080`, that
    /// identifies itself with `token`.
    ///
    /// # Errors
    /// [`Error::Setup`] when URL, token or the machine's TLS roots cannot be used.
    pub fn new(url: &str, token: Option<&str>) -> Result<Self, Error> {
        // An error here means that a provider is installed already, which will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let base = base_url(url)?;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("nave/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_MAX);
        if base.scheme() == "http" {
            // Without TLS no roots are needed, and a small machine may have none to load.
            builder = builder.tls_certs_only([]);
        }
        let http = builder
            .build()
            .map_err(|error| Error::Setup(format!("cannot prepare an HTTP client: {error:?}")))?;
        let authorization = token.map(bearer).transpose()?;
        Ok(Self {
            http,
            base,
            authorization,
            patience: Patience::default(),
            notice: None,
            #[cfg(feature = "hotkey")]
            signer: None,
        })
    }

    /// This client with another patience.
    #[must_use]
    pub fn patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// This client with `notice` called before every repetition.
    #[must_use]
    pub fn on_retry(mut self, notice: Notice) -> Self {
        self.notice = Some(notice);
        self
    }

    /// Whether the control plane works.
    ///
    /// # Errors
    /// Every variant of [`Error`], here as below.
    pub async fn health(&self) -> Result<Health, Error> {
        self.fetch(Call::get(&[&"health"])).await
    }

    /// Submits a job. The same key with the same request gives the same job.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn submit(&self, request: &JobRequest, idempotency_key: &str) -> Result<Job, Error> {
        let call = Call::post(&[&"jobs"], Repeat::Safe).header("idempotency-key", idempotency_key);
        self.fetch(call.json(request)?).await
    }

    /// Jobs, newest first.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn jobs(&self, query: &JobsQuery) -> Result<Page<Job>, Error> {
        let call = Call::get(&[&"jobs"])
            .query("limit", query.limit)
            .query("before", query.before.as_deref())
            .query("state", query.state.map(JobState::as_str));
        self.fetch(call).await
    }

    /// One job.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn job(&self, job: JobId) -> Result<Job, Error> {
        self.fetch(Call::get(&[&"jobs", &job])).await
    }

    /// One job as soon as it is final, or as it stands after `wait`.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn job_wait(&self, job: JobId, wait: Millis) -> Result<Job, Error> {
        let span = Duration::from_millis(u64::try_from(wait.0).unwrap_or(0));
        self.fetch(Call::get(&[&"jobs", &job]).query("wait_ms", Some(wait.0)).wait(span)).await
    }

    /// Cancels a job. Cancelling it again changes nothing, so the call is repeated.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn cancel(&self, job: JobId) -> Result<Job, Error> {
        self.fetch(Call::post(&[&"jobs", &job, &"cancel"], Repeat::Safe)).await
    }

    /// Says that a result is wrong. The same again changes nothing, so the call is repeated.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn dispute(&self, job: JobId, request: &DisputeRequest) -> Result<Dispute, Error> {
        self.fetch(Call::post(&[&"jobs", &job, &"dispute"], Repeat::Safe).json(request)?).await
    }

    /// The log of a job so far.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn logs(&self, job: JobId, query: &LogsQuery) -> Result<Logs, Error> {
        self.fetch(query.apply(Call::get(&[&"jobs", &job, &"logs"]))).await
    }

    /// The log of a job from `query` on, as it is written.
    #[must_use]
    pub fn follow(&self, job: JobId, query: LogsQuery) -> Follow {
        Follow::new(self.clone(), job, query)
    }

    /// The archive of a job's result files.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn result(&self, job: JobId) -> Result<Download, Error> {
        let response = self.open(Call::get(&[&"jobs", &job, &"result"]).streamed()).await?;
        Ok(Download { response })
    }

    /// What a job cost and why.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn receipt(&self, job: JobId) -> Result<Receipt, Error> {
        self.fetch(Call::get(&[&"jobs", &job, &"receipt"])).await
    }

    /// Capacity that can be rented now, cheapest first.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn offers(&self, query: &OffersQuery) -> Result<Vec<Offer>, Error> {
        self.fetch(query.apply(Call::get(&[&"offers"]))).await
    }

    /// Classes of devices, with what clouds ask for them and how much of them is leased.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn classes(&self) -> Result<Vec<DeviceClass>, Error> {
        self.fetch(Call::get(&[&"classes"])).await
    }

    /// Asks for a quote. The same key with the same wish gives the same quote.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn quote(&self, wish: &QuoteRequest, idempotency_key: &str) -> Result<Quote, Error> {
        let call = Call::post(&[&"quotes"], Repeat::Safe).header("idempotency-key", idempotency_key);
        self.fetch(call.json(wish)?).await
    }

    /// One quote.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn quoted(&self, quote: QuoteId) -> Result<Quote, Error> {
        self.fetch(Call::get(&[&"quotes", &quote])).await
    }

    /// Gives a quote back before it expires. The same again changes nothing, so the call is repeated.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn release(&self, quote: QuoteId) -> Result<Quote, Error> {
        self.fetch(Call::post(&[&"quotes", &quote, &"release"], Repeat::Safe)).await
    }

    /// Every host.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn hosts(&self) -> Result<Vec<Host>, Error> {
        self.fetch(Call::get(&[&"hosts"])).await
    }

    /// The customer's money.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn balance(&self) -> Result<Balance, Error> {
        self.fetch(Call::get(&[&"balance"])).await
    }

    /// The customer's ledger, newest first.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn ledger(&self, limit: Option<u32>, before: Option<&str>) -> Result<Page<LedgerLine>, Error> {
        self.fetch(Call::get(&[&"ledger"]).query("limit", limit).query("before", before)).await
    }

    /// The customer's API keys.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn keys(&self) -> Result<Vec<Key>, Error> {
        self.fetch(Call::get(&[&"keys"])).await
    }

    /// Makes an API key. Its token is in this answer and nowhere else.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn key_create(&self, request: &KeyRequest) -> Result<NewKey, Error> {
        self.fetch(Call::post(&[&"keys"], Repeat::Unsafe).json(request)?).await
    }

    /// Ends an API key.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn key_revoke(&self, key: KeyId) -> Result<(), Error> {
        self.fetch_bytes(Call::delete(&[&"keys", &key])).await.map(|_| ())
    }

    /// Epochs, newest first.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn epochs(&self, limit: Option<u32>) -> Result<Vec<Epoch>, Error> {
        self.fetch(Call::get(&[&"epochs"]).query("limit", limit)).await
    }

    /// One epoch.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn epoch(&self, epoch: i64) -> Result<Epoch, Error> {
        self.fetch(Call::get(&[&"epochs", &epoch])).await
    }

    async fn fetch<T: DeserializeOwned>(&self, call: Call) -> Result<T, Error> {
        let url = call.url(&self.base)?;
        let bytes = self.fetch_bytes(call).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::Malformed { url: error::place(&url), detail: error.to_string() })
    }

    async fn fetch_bytes(&self, call: Call) -> Result<Vec<u8>, Error> {
        let mut tries = Tries::new(self.patience);
        loop {
            let answer = match self.open_once(&call).await {
                Ok(mut response) => body(&mut response, ANSWER_BYTES_MAX).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(bytes) => return Ok(bytes),
                Err(error) => self.pause(&mut tries, error, call.repeat).await?,
            }
        }
    }

    /// The answer to `call` once it has begun with success.
    async fn open(&self, call: Call) -> Result<Response, Error> {
        let mut tries = Tries::new(self.patience);
        loop {
            match self.open_once(&call).await {
                Ok(response) => return Ok(response),
                Err(error) => self.pause(&mut tries, error, call.repeat).await?,
            }
        }
    }

    async fn open_once(&self, call: &Call) -> Result<Response, Error> {
        let url = call.url(&self.base)?;
        let request = self.request(call, url.clone());
        #[cfg(feature = "hotkey")]
        let request = self.signed(call, &url, request)?;
        let sent = request.send();
        // A stream has no end to time, but its beginning must come.
        let sent = tokio::time::timeout(call.answer_max.unwrap_or(SILENCE_MAX), sent);
        let mut response = match sent.await {
            Ok(sent) => sent.map_err(|error| Error::transport(&url, error))?,
            Err(_) => return Err(Error::Broken { url: error::place(&url), source: None }),
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let (status, retry_after) = (response.status().as_u16(), retry_after(&response));
        let bytes = body(&mut response, PROBLEM_BYTES_MAX).await.unwrap_or_default();
        Err(Error::answer(&url, status, &bytes, retry_after))
    }

    fn request(&self, call: &Call, url: Url) -> reqwest::RequestBuilder {
        let mut request = self.http.request(call.method.clone(), url);
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if let Some(limit) = call.answer_max {
            request = request.timeout(limit);
        }
        match &call.body {
            Some(body) => request.body(body.clone()),
            None => request,
        }
    }

    /// Waits before the next try, or gives `error` back when there should be none.
    async fn pause(&self, tries: &mut Tries, error: Error, repeat: Repeat) -> Result<(), Error> {
        if !error.worth_another_try(repeat) {
            return Err(error);
        }
        let Some(wait) = tries.next_wait(error.retry_after()) else {
            return Err(error);
        };
        if let Some(notice) = &self.notice {
            notice(&error);
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

fn base_url(text: &str) -> Result<Url, Error> {
    let url: Url = text.parse().map_err(|error| Error::Setup(format!("{text:?} is not a URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(Error::Setup(format!("{text:?} is not an http or https URL")));
    }
    Ok(url)
}

fn bearer(token: &str) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| Error::Setup("the token contains characters that no token has".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

async fn chunk(response: &mut Response) -> Result<Option<Bytes>, Error> {
    let url = response.url().clone();
    match tokio::time::timeout(SILENCE_MAX, response.chunk()).await {
        Ok(chunk) => chunk.map_err(|error| Error::transport(&url, error)),
        Err(_) => Err(Error::Broken { url: error::place(&url), source: None }),
    }
}

async fn body(response: &mut Response, bytes_max: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(piece) = chunk(response).await? {
        if bytes.len() + piece.len() > bytes_max {
            let detail = format!("it is longer than {bytes_max} bytes");
            return Err(Error::Malformed { url: error::place(response.url()), detail });
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}
