//! How clouds are reached: bounded in time and size, without redirects, and without a secret in any error.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use nave_domain::Millis;
use reqwest::header::RETRY_AFTER;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use reqwest::Method;

use crate::{
    error::{CloudError, Kind, of_status, of_words},
    secret::{self, Secret},
};

const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The longest that a call may take: whoever launches must not wait longer than a listing needs to settle.
const CALL_MAX: Duration = Duration::from_secs(60);
/// The largest answer that is read, in bytes.
const ANSWER_MAX: usize = 8 << 20;
/// How long a cloud is left alone that asks for it and does not say how long.
const PAUSE: Millis = Millis(60_000);
/// The longest that a cloud can have itself left alone.
const PAUSE_MAX: i64 = 3_600;

/// What carries requests: a network, or in tests the cloud itself.
pub trait Transport: Send + Sync {
    /// Sends a request and reads the whole answer.
    fn send(&self, request: Request) -> Sent<'_>;
}

/// What becomes of a request.
pub type Sent<'a> = Pin<Box<dyn Future<Output = Result<Reply, Broken>> + Send + 'a>>;

/// One request to a cloud.
#[derive(Debug, Clone)]
pub struct Request {
    /// How.
    pub method: Method,
    /// Where to.
    pub url: String,
    /// The header that identifies us.
    pub auth: Option<(&'static str, Secret)>,
    /// The body, as JSON.
    pub body: Option<Secret>,
}

/// What a cloud answered.
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// How long it wants not to be asked.
    pub retry_after: Option<Millis>,
    /// The body, at most as long as is read.
    pub body: Vec<u8>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reply {{ status: {}, {} bytes }}", self.status, self.body.len())
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The cloud could not be reached: it has heard nothing.
    NotSent,
    /// Nobody knows what it has heard.
    Unknown,
}

/// The network.
pub struct Network {
    client: reqwest::Client,
}

impl Network {
    /// Ready to reach clouds; `call_max` is the longest that one call may take.
    ///
    /// # Errors
    /// When this machine's TLS roots cannot be used.
    pub fn new() -> Result<Self, reqwest::Error> {
        Self::with_patience(CALL_MAX)
    }

    /// As [`Network::new`], with another bound of a call.
    ///
    /// # Errors
    /// As there.
    pub fn with_patience(call_max: Duration) -> Result<Self, reqwest::Error> {
        // An error here means that a provider is installed already, which will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .user_agent(concat!("nave/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_MAX)
            .timeout(call_max)
            .build()?;
        Ok(Self { client })
    }

    async fn exchange(&self, request: Request) -> Result<Reply, Broken> {
        let broken = |error: reqwest::Error| {
            let unsent = error.is_connect() || error.is_builder();
            if unsent { Broken::NotSent } else { Broken::Unknown }
        };
        let mut builder = self.client.request(request.method, request.url);
        if let Some((name, value)) = &request.auth {
            builder = builder.header(*name, value.reveal());
        }
        if let Some(body) = &request.body {
            builder = builder.header("content-type", "application/json").body(body.reveal().to_owned());
        }
        let mut response = builder.send().await.map_err(broken)?;
        let retry_after =
            response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(pause);
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|_| Broken::Unknown)? {
            if body.len() + piece.len() > ANSWER_MAX {
                return Err(Broken::Unknown);
            }
            body.extend_from_slice(&piece);
        }
        Ok(Reply { status: response.status().as_u16(), retry_after, body })
    }
}

impl Transport for Network {
    fn send(&self, request: Request) -> Sent<'_> {
        Box::pin(self.exchange(request))
    }
}

/// What a `Retry-After` asks for; dates are not worth a clock.
fn pause(text: &str) -> Millis {
    text.trim().parse::<i64>().map_or(PAUSE, |seconds| Millis(seconds.clamp(1, PAUSE_MAX) * 1_000))
}

/// One cloud's API: where it is, how we identify ourselves, what must not be repeated.
pub struct Api {
    base: String,
    auth: Option<(&'static str, Secret)>,
    secrets: Vec<Secret>,
    transport: Arc<dyn Transport>,
}

impl Api {
    /// The API at `base`; `auth` is the header that identifies us.
    #[must_use]
    pub fn new(
        base: &str,
        auth: Option<(&'static str, Secret)>,
        key: &Secret,
        transport: Arc<dyn Transport>,
    ) -> Self {
        Self { base: base.trim_end_matches('/').to_owned(), auth, secrets: vec![key.clone()], transport }
    }

    /// Reads something.
    ///
    /// # Errors
    /// Whatever the cloud said instead.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CloudError> {
        read(&self.send(Method::GET, path, None).await?)
    }

    /// Asks for something that changes no number of machines, or for less of them.
    ///
    /// # Errors
    /// Whatever the cloud said instead.
    pub async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Result<Reply, CloudError> {
        self.send_as(self.auth.clone(), method, path, body).await
    }

    /// As [`Api::send`], identified otherwise.
    ///
    /// # Errors
    /// Whatever the cloud said instead.
    pub async fn send_as(
        &self,
        auth: Option<(&'static str, Secret)>,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Reply, CloudError> {
        let mut hidden: Vec<Secret> = auth.iter().map(|(_, secret)| secret.clone()).collect();
        hidden.extend(self.secrets.iter().cloned());
        let sent = body.as_ref().map(secret::long_texts).unwrap_or_default();
        let reply = self.exchange(auth, method, path, body).await?;
        if (200..300).contains(&reply.status) {
            return Ok(reply);
        }
        Err(fault(&reply, |text| secret::without_parts(&secret::without(text, &hidden), &sent)))
    }

    async fn exchange(
        &self,
        auth: Option<(&'static str, Secret)>,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Reply, CloudError> {
        let body = body.map(|body| Secret::new(body.to_string()));
        let request = Request { method, url: format!("{}{path}", self.base), auth, body };
        self.transport.send(request).await.map_err(|broken| match broken {
            Broken::NotSent => CloudError::new(Kind::NotSent, "connect", "the cloud cannot be reached"),
            Broken::Unknown => CloudError::new(Kind::TimedOut, "timeout", "no answer in time"),
        })
    }
}

/// The error in a reply that is one; `hide` takes every secret out of a text.
fn fault(reply: &Reply, hide: impl Fn(&str) -> String) -> CloudError {
    let text = String::from_utf8_lossy(&reply.body);
    let (code, message) = said(&text);
    let kind = match reply.status {
        429 => Kind::RateLimited { after: reply.retry_after.unwrap_or(PAUSE) },
        // A machine of that name is there already: the launch before this one may have been ours.
        409 if code.contains("already_exist") => Kind::Unavailable,
        status => of_status(status),
    };
    let code = if code.is_empty() { reply.status.to_string() } else { code };
    CloudError::new(kind, hide(&code), &hide(&message))
}

/// What an error of a launch means, in words or in its status: some clouds say the reason only in text.
///
/// A cloud that failed may have launched the machine, whatever it says.
#[must_use]
pub fn of_launch(mut error: CloudError) -> CloudError {
    if matches!(error.kind, Kind::Refused | Kind::NotFound | Kind::Unauthorised | Kind::NoBalance) {
        let words = of_words(&error.code).or_else(|| of_words(&error.message));
        error.kind = words.unwrap_or(error.kind);
    }
    error
}

/// What a call comes to that may find nothing.
///
/// # Errors
/// All but that there is nothing.
pub fn if_found<T>(answer: Result<T, CloudError>) -> Result<Option<T>, CloudError> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a reply as JSON.
///
/// # Errors
/// [`Kind::Malformed`], with the place and not with what stands there.
pub fn read<T: DeserializeOwned>(reply: &Reply) -> Result<T, CloudError> {
    serde_json::from_slice(&reply.body).map_err(|error| {
        malformed(&format!("line {} column {}: {:?}", error.line(), error.column(), error.classify()))
    })
}

/// An answer that nobody can read.
#[must_use]
pub fn malformed(what: &str) -> CloudError {
    CloudError::new(Kind::Malformed, "malformed", what)
}

/// Code and explanation in an error, in whichever of the clouds' shapes it has.
fn said(text: &str) -> (String, String) {
    let value = serde_json::from_str::<Value>(text).unwrap_or_else(|_| json!({ "message": text }));
    let inner = value.get("error").filter(|error| error.is_object()).unwrap_or(&value);
    let first = |names: &[&str]| {
        let found = names.iter().find_map(|name| inner.get(name).and_then(Value::as_str));
        found.unwrap_or_default().to_owned()
    };
    (
        first(&["error_code", "error_reason", "code", "error", "title"]),
        first(&["message", "msg", "detail", "error", "title"]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clouds_errors_are_read() {
        let cases = [
            (r#"{"error_code":"OUT_OF_STOCK","error":"gone"}"#, "OUT_OF_STOCK", "gone"),
            (r#"{"error":{"code":"global/quota-exceeded","message":"m"}}"#, "global/quota-exceeded", "m"),
            (r#"{"status":false,"message":"m","error_reason":"bad_request"}"#, "bad_request", "m"),
            (r#"{"title":"Not Found","status":404,"detail":"d"}"#, "Not Found", "d"),
            (r#"{"success":false,"error":"no_such_ask","msg":"m"}"#, "no_such_ask", "m"),
            (r#"{"code":"insufficient_funds","message":"m"}"#, "insufficient_funds", "m"),
            ("<html>502</html>", "", "<html>502</html>"),
        ];
        for (text, code, message) in cases {
            assert_eq!(said(text), (code.to_owned(), message.to_owned()));
        }
    }

    #[test]
    fn a_pause_is_what_was_asked_for_within_bounds() {
        assert_eq!(pause("12"), Millis(12_000));
        assert_eq!(pause("999999999"), Millis(3_600_000));
        assert_eq!(pause("0"), Millis(1_000));
        assert_eq!(pause("Wed, 21 Oct 2026 07:28:00 GMT"), PAUSE);
    }

    #[test]
    fn words_say_why_a_launch_was_refused_and_never_that_a_broken_cloud_did_nothing() {
        let error = |kind, message: &str| of_launch(CloudError::new(kind, "x", message)).kind;
        assert_eq!(error(Kind::Refused, "Not enough stock"), Kind::OutOfStock);
        assert_eq!(error(Kind::Refused, "Insufficient balance to create the resource"), Kind::NoBalance);
        assert_eq!(error(Kind::Refused, "bad name"), Kind::Refused);
        assert_eq!(error(Kind::Unavailable, "out of stock"), Kind::Unavailable);
    }
}
