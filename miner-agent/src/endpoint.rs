//! The agent's side of the host protocol: four calls.

use std::{
    net::{IpAddr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use nave_domain::LeaseId;
use nave_mesh::Name;
use nave_sdk::wire::{
    host::{DOCUMENT_BYTES_MAX, HostReport, HostSpec, LogAck, PROTOCOL, ReportAck, ResultRef, Stream},
    rest::Problem,
    settlement::Earnings,
    sign::Release,
    verdict::HostVerdict,
};
use reqwest::{Client, RequestBuilder, Response, StatusCode, header, redirect};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::sync::watch;

/// Longest a long poll waits at the control plane.
pub const WAIT: Duration = Duration::from_secs(25);
/// Longest an answer may take beyond that.
const ANSWER: Duration = Duration::from_secs(15);
/// Longest a result may travel.
const UPLOAD: Duration = Duration::from_secs(300);
/// Silence after which a connection is asked whether it still is one.
const SILENCE: Duration = Duration::from_secs(5);
/// Code of the refusal of a host that was sent away or has left.
const UNKNOWN: &str = "host_unknown";
/// Most that is read of a refusal, in characters.
const REFUSAL_CHARS_MAX: usize = 300;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The control plane did not answer, or said that it cannot now: try again.
    #[error("the control plane does not answer")]
    Away(#[source] anyhow::Error),
    /// It refuses this call and would refuse it again.
    #[error("the control plane refused with {status}: {said}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The beginning of what it said.
        said: String,
    },
    /// It does not know this host, or not any more.
    #[error("the control plane does not know this host")]
    Unknown,
}

/// What a control plane answers that has a newer spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The spec.
    Spec(Box<HostSpec>),
    /// Something in another version of the protocol, which one.
    OtherProtocol(u64),
}

impl Wanted {
    /// Looks at the version before anything else, which other versions may write otherwise.
    fn read(bytes: &[u8]) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            protocol: u64,
        }
        match serde_json::from_slice::<Version>(bytes)?.protocol {
            version if version == u64::from(PROTOCOL) => {
                serde_json::from_slice(bytes).map(Box::new).map(Self::Spec)
            }
            version => Ok(Self::OtherProtocol(version)),
        }
    }
}

/// The control plane, seen from one host.
#[derive(Debug)]
pub struct ControlPlane {
    clients: watch::Sender<Client>,
    through: Option<(Name, Ipv6Addr)>,
    base: String,
}

impl ControlPlane {
    /// Prepares calls to the control plane at `base`, such as `http://[fd00::1]:7461`.
    /// With `through`, nothing leaves by any other interface. Nothing is sent yet.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn new(base: &str, through: Option<(Name, Ipv6Addr)>) -> anyhow::Result<Self> {
        let clients = watch::Sender::new(Self::connect(through.as_ref())?);
        Ok(Self { clients, through, base: base.trim_end_matches('/').to_owned() })
    }

    /// The interface was made anew: what was connected through the old one never will be
    /// again. Calls under way fail as if the control plane had been away.
    pub fn reconnect(&self) {
        match Self::connect(self.through.as_ref()) {
            Ok(client) => drop(self.clients.send_replace(client)),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "old connections have to time out"),
        }
    }

    fn client(&self) -> Client {
        self.clients.borrow().clone()
    }

    fn connect(through: Option<&(Name, Ipv6Addr)>) -> anyhow::Result<Client> {
        // Behind a tunnel that is made anew, connections are never refused, only silent.
        let builder = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .pool_max_idle_per_host(2)
            .connect_timeout(ANSWER)
            .tcp_keepalive(SILENCE)
            .tcp_keepalive_interval(SILENCE)
            .tcp_keepalive_retries(2)
            .tcp_user_timeout(ANSWER);
        let builder = match through {
            Some((interface, own)) => builder.interface(interface.as_str()).local_address(IpAddr::V6(*own)),
            None => builder,
        };
        builder.build().context("build the HTTP client")
    }

    /// The spec, as soon as its generation exceeds `after`; `None` when it did not in time.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn spec(&self, after: u64) -> Result<Option<Wanted>, CallError> {
        let url = format!("{}/host/v1/spec?after={after}&wait_ms={}", self.base, WAIT.as_millis());
        let answer = self.send(self.client().get(url).timeout(WAIT + ANSWER)).await?;
        match answer.status() {
            StatusCode::NO_CONTENT => Ok(None),
            _ => {
                let bytes = limited(answer).await.map_err(CallError::Away)?;
                Wanted::read(&bytes).context("read the spec").map(Some).map_err(CallError::Away)
            }
        }
    }

    /// Tells what this host observes.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn report(&self, report: &HostReport) -> Result<ReportAck, CallError> {
        let url = format!("{}/host/v1/report", self.base);
        read(self.send(self.client().post(url).timeout(ANSWER).json(report)).await?).await
    }

    /// What came of this host's tests, the newest first.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn verdicts(&self) -> Result<Vec<HostVerdict>, CallError> {
        let url = format!("{}/host/v1/verdicts", self.base);
        read(self.send(self.client().get(url).timeout(ANSWER)).await?).await
    }

    /// What this host's miner earned in the newest epochs, the newest first.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn earnings(&self) -> Result<Vec<Earnings>, CallError> {
        let url = format!("{}/host/v1/earnings", self.base);
        read(self.send(self.client().get(url).timeout(ANSWER)).await?).await
    }

    /// Appends to a log at `offset`; without bytes it asks where to go on.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn log(
        &self,
        lease: LeaseId,
        stream: Stream,
        offset: u64,
        bytes: Bytes,
    ) -> Result<LogAck, CallError> {
        let url = format!("{}/host/v1/leases/{lease}/logs/{}?offset={offset}", self.base, stream.as_str());
        let request = self.client().post(url).timeout(ANSWER);
        let request = request.header(header::CONTENT_TYPE, "application/octet-stream").body(bytes);
        read(self.send(request).await?).await
    }

    /// Stores a result archive under its hash.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn blob(&self, archive: &Path, result: &ResultRef) -> Result<(), CallError> {
        let opened = tokio::fs::File::open(archive).await.context("open the result archive");
        let file = opened.map_err(CallError::Away)?;
        let url = format!("{}/host/v1/blobs/{}", self.base, result.sha256);
        let request = self.client().put(url).timeout(UPLOAD).header(header::CONTENT_LENGTH, result.size);
        self.send(request.header(header::CONTENT_TYPE, "application/x-tar").body(file)).await?;
        Ok(())
    }

    /// Stores bytes under their hash.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn blob_bytes(&self, sha256: &str, bytes: Bytes) -> Result<(), CallError> {
        let url = format!("{}/host/v1/blobs/{sha256}", self.base);
        let request = self.client().put(url).timeout(UPLOAD).body(bytes);
        self.send(request.header(header::CONTENT_TYPE, "application/octet-stream")).await?;
        Ok(())
    }

    /// The program of a release. Its bytes are whatever comes: their hash must be checked.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn release(&self, release: &Release) -> Result<Response, CallError> {
        let url = format!("{}/host/v1/releases/{}/{}", self.base, release.version, release.target);
        self.send(self.client().get(url).timeout(UPLOAD)).await
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, CallError> {
        let mut anew = self.clients.subscribe();
        let answer = tokio::select! {
            answer = request.send() => answer.map_err(|error| CallError::Away(error.into()))?,
            _ = anew.changed() => return Err(CallError::Away(anyhow::anyhow!("the way to it was made anew"))),
        };
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let said = limited(answer).await.unwrap_or_default();
        let problem: Option<Problem> = serde_json::from_slice(&said).ok();
        if status == StatusCode::FORBIDDEN && problem.is_some_and(|problem| problem.code == UNKNOWN) {
            return Err(CallError::Unknown);
        }
        let said: String = String::from_utf8_lossy(&said).chars().take(REFUSAL_CHARS_MAX).collect();
        let later = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
        if status.is_client_error() && !later {
            return Err(CallError::Refused { status: status.as_u16(), said });
        }
        Err(CallError::Away(anyhow::anyhow!("it answered {status}: {said}")))
    }
}

async fn read<T: DeserializeOwned>(answer: Response) -> Result<T, CallError> {
    let bytes = limited(answer).await.map_err(CallError::Away)?;
    serde_json::from_slice(&bytes).context("read the answer").map_err(CallError::Away)
}

async fn limited(mut answer: Response) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        anyhow::ensure!(bytes.len() + piece.len() <= DOCUMENT_BYTES_MAX, "the answer is too long");
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_of_the_protocol_is_known_by_name_whatever_else_it_says() {
        let foreign = br#"{"protocol": 4, "leases": "somewhere else"}"#;
        assert_eq!(Wanted::read(foreign).expect("a version"), Wanted::OtherProtocol(4));
        let broken = format!(r#"{{"protocol": {PROTOCOL}, "leases": "somewhere else"}}"#);
        assert!(Wanted::read(broken.as_bytes()).is_err() && Wanted::read(b"{}").is_err());
    }
}
