//! An HTTP server that answers as a test tells it and remembers what it was asked.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, Method, Response, Uri},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a text header"))
    }

    /// Method and path, as `GET /v1/jobs`.
    pub fn call(&self) -> String {
        format!("{} {}", self.method, self.uri.path())
    }

    pub fn query(&self) -> &str {
        self.uri.query().unwrap_or_default()
    }
}

/// What to answer.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: vec![("content-type", content_type.to_owned())], body: body.into() }
    }

    pub fn json(value: &Value) -> Self {
        Self::new(200, "application/json", value.to_string())
    }

    pub fn events(text: &str) -> Self {
        Self::new(200, "text/event-stream", text)
    }

    pub fn problem(status: u16, code: &str) -> Self {
        let body = json!({
            "type": "about:blank", "title": "Refused", "status": status, "detail": format!("{code} happened"),
            "code": code, "retryable": status >= 500, "suggestion": "do something else"
        });
        Self::new(status, "application/problem+json", body.to_string())
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    fn into_response(self) -> Response<Body> {
        let mut response = Response::builder().status(self.status);
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        response.body(Body::from(self.body)).expect("a response")
    }
}

/// A running stub; ends with the test's runtime.
pub struct Stub {
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Stub {
    /// Answers with `answer`, which gets the number of earlier requests.
    pub async fn start(answer: impl Fn(usize, &Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(TcpListener::bind("127.0.0.1:0").await.expect("a port"), answer)
    }

    pub fn serve(
        listener: TcpListener,
        answer: impl Fn(usize, &Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (record, answer) = (Arc::clone(&seen), Arc::new(answer));
        let handler = move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
            let (record, answer) = (Arc::clone(&record), Arc::clone(&answer));
            async move {
                let request = Seen { method, uri, headers, body };
                let earlier = {
                    let mut record = record.lock().expect("the record");
                    record.push(request.clone());
                    record.len() - 1
                };
                answer(earlier, &request).into_response()
            }
        };
        let router = Router::new().fallback(handler);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, seen }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("the record").clone()
    }
}

/// An address where nobody listens.
pub async fn nowhere() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address")
}

pub const JOB: &str = "job_00000000000000000000000000000001";

/// A job in `state`, placed once on a host named `local-1`.
pub fn job(state: &str, exit_code: Option<i32>) -> Value {
    let outcome = exit_code.map(|code| json!({ "kind": "exited", "code": code }));
    json!({
        "job": JOB, "state": state, "request": { "argv": ["true"] }, "created_at": "2026-09-21T14:12:20Z",
        "finished_at": null, "exit_code": exit_code, "reason": null, "charged": 123, "has_result": false,
        "result_truncated": false, "actions": [], "attempts": [attempt(1, "local-1", &json!(outcome))]
    })
}

pub fn attempt(number: u32, host: &str, outcome: &Value) -> Value {
    json!({
        "lease": "lease_00000000000000000000000000000001", "attempt": number,
        "host": "host_00000000000000000000000000000001", "host_name": host, "state": "running",
        "reason": "only_fit", "hourly": 1, "baseline": null, "saving": null, "placed_at": "2026-09-21T14:12:20Z", "started_at": null, "ended_at": null, "events": [],
        "used_ms": 3_100, "charged": 123, "outcome": outcome
    })
}

/// A log event as the API writes it.
pub fn log(id: u32, attempt: u32, stream: &str, text: &str) -> String {
    let line = json!({ "at": "2026-09-21T14:12:21Z", "attempt": attempt, "stream": stream, "text": text });
    format!("event: log\nid: {id}\ndata: {line}\n\n")
}

pub fn end(job: &Value) -> String {
    format!("event: end\ndata: {job}\n\n")
}
