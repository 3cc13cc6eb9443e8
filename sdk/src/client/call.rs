//! One call as data: what is sent, and whether it may be sent again.

use std::{fmt::Display, time::Duration};

use reqwest::Method;
use serde::Serialize;

use super::error::{Error, Repeat};

/// Time in which an ordinary call is answered.
const ANSWER_MAX: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: Vec<String>,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) body: Option<Vec<u8>>,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) repeat: Repeat,
    /// Longest time to the end of the answer; `None` for answers that stream.
    pub(super) answer_max: Option<Duration>,
}

impl Call {
    fn new(method: Method, path: &[&(dyn Display + Sync)], repeat: Repeat) -> Self {
        Self {
            method,
            path: path.iter().map(|part| part.to_string()).collect(),
            query: Vec::new(),
            body: None,
            headers: Vec::new(),
            repeat,
            answer_max: Some(ANSWER_MAX),
        }
    }

    pub(super) fn get(path: &[&(dyn Display + Sync)]) -> Self {
        Self::new(Method::GET, path, Repeat::Safe)
    }

    pub(super) fn post(path: &[&(dyn Display + Sync)], repeat: Repeat) -> Self {
        Self::new(Method::POST, path, repeat)
    }

    #[cfg(feature = "hotkey")]
    pub(super) fn patch(path: &[&(dyn Display + Sync)]) -> Self {
        Self::new(Method::PATCH, path, Repeat::Safe)
    }

    pub(super) fn delete(path: &[&(dyn Display + Sync)]) -> Self {
        Self::new(Method::DELETE, path, Repeat::Unsafe)
    }

    /// Adds a query parameter where there is a value.
    pub(super) fn query(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.query.extend(value.map(|value| (name, value.to_string())));
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(super) fn json(mut self, body: &impl Serialize) -> Result<Self, Error> {
        let bytes = serde_json::to_vec(body)
            .map_err(|error| Error::Setup(format!("the request cannot be written as JSON: {error}")))?;
        self.body = Some(bytes);
        Ok(self.header("content-type", "application/json"))
    }

    /// Allows `wait` on top of the usual time.
    pub(super) fn wait(mut self, wait: Duration) -> Self {
        self.answer_max = Some(ANSWER_MAX.saturating_add(wait));
        self
    }

    pub(super) fn streamed(mut self) -> Self {
        self.answer_max = None;
        self
    }

    pub(super) fn url(&self, base: &reqwest::Url) -> Result<reqwest::Url, Error> {
        let mut url = base.clone();
        url.path_segments_mut()
            .map_err(|()| Error::Setup(format!("{base} cannot be the URL of an API")))?
            .pop_if_empty()
            .push("v1")
            .extend(&self.path);
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_queries_are_escaped_and_a_prefix_is_kept() {
        let base = "https://example.org/nave/".parse().expect("a URL");
        let call = Call::get(&[&"keys", &"a/../b"]).query("after", Some("x&y")).query("tail", None::<u32>);
        let url = call.url(&base).expect("a URL");
        assert_eq!(url.as_str(), "https://example.org/nave/v1/keys/a%2F..%2Fb?after=x%26y");
    }
}
