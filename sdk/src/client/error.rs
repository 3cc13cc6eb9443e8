//! What can go wrong between a customer and the API.

use std::{error::Error as _, time::Duration};

use reqwest::StatusCode;

use crate::wire::rest::Problem;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client cannot be used as it is configured.
    #[error("{0}")]
    Setup(String),
    /// The API refused, with a problem document.
    #[error("{}", problem.detail)]
    Problem {
        /// The document.
        problem: Box<Problem>,
        /// How long the API asks to wait.
        retry_after: Option<Duration>,
    },
    /// Something answered with an error that is not a problem document.
    #[error("{url} answered with status {status} and no problem document")]
    Status {
        /// What was called.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// No connection could be made; the call was never received.
    #[error("cannot connect to {url}")]
    Unreachable {
        /// What was called.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The connection broke or fell silent; the call may have been received.
    #[error("the connection to {url} was lost before the answer was complete")]
    Broken {
        /// What was called.
        url: String,
        /// Why; absent when the other side just ended it.
        source: Option<reqwest::Error>,
    },
    /// The answer cannot be understood.
    #[error("{url} gave an answer that cannot be understood: {detail}")]
    Malformed {
        /// What was called.
        url: String,
        /// What is wrong with it.
        detail: String,
    },
}

/// Whether a call may be sent again when its fate is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Sending it twice does the same as once.
    Safe,
    /// Only a call that was never received may be sent again.
    Unsafe,
}

impl Error {
    /// The stable, machine-readable code: the problem's, or one of `setup`,
    /// `bad_status`, `unreachable`, `connection_lost`, `bad_answer`.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Setup(_) => "setup",
            Self::Problem { problem, .. } => &problem.code,
            Self::Status { .. } => "bad_status",
            Self::Unreachable { .. } => "unreachable",
            Self::Broken { .. } => "connection_lost",
            Self::Malformed { .. } => "bad_answer",
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Setup(_) | Self::Malformed { .. } => false,
            Self::Problem { problem, .. } => problem.retryable,
            Self::Status { status, .. } => passes(*status),
            Self::Unreachable { .. } | Self::Broken { .. } => true,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn suggestion(&self) -> &str {
        match self {
            Self::Setup(_) => "correct the URL or the token",
            Self::Problem { problem, .. } => &problem.suggestion,
            Self::Status { .. } => "check that the URL is a Nave API and not a proxy in front of it",
            Self::Unreachable { .. } => "check the URL and that the control plane runs (nave up)",
            Self::Broken { .. } => "call again",
            Self::Malformed { .. } => {
                "check the URL, and that client and control plane have the same version"
            }
        }
    }

    /// The HTTP status, where there was an answer.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Problem { problem, .. } => Some(problem.status),
            Self::Status { status, .. } => Some(*status),
            Self::Setup(_) | Self::Unreachable { .. } | Self::Broken { .. } | Self::Malformed { .. } => None,
        }
    }

    /// The message with its cause, in one line.
    #[must_use]
    pub fn explain(&self) -> String {
        let mut cause = self.source();
        while let Some(deeper) = cause.and_then(std::error::Error::source) {
            cause = Some(deeper);
        }
        match cause {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }

    /// This error as a problem document; status 0 where nothing answered.
    #[must_use]
    pub fn problem(&self) -> Problem {
        if let Self::Problem { problem, .. } = self {
            return Problem::clone(problem);
        }
        let status = self.status().unwrap_or(0);
        let title = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        Problem {
            r#type: "about:blank".to_owned(),
            title: title.unwrap_or("No answer").to_owned(),
            status,
            detail: self.explain(),
            code: self.code().to_owned(),
            retryable: self.retryable(),
            suggestion: self.suggestion().to_owned(),
        }
    }

    /// Whether the client should send the call again by itself.
    pub(super) fn worth_another_try(&self, repeat: Repeat) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Broken { .. } => repeat == Repeat::Safe,
            Self::Problem { problem, .. } => repeat == Repeat::Safe && passes(problem.status),
            Self::Status { status, .. } => repeat == Repeat::Safe && passes(*status),
            Self::Setup(_) | Self::Malformed { .. } => false,
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Problem { retry_after, .. } => *retry_after,
            Self::Setup(_)
            | Self::Status { .. }
            | Self::Unreachable { .. }
            | Self::Broken { .. }
            | Self::Malformed { .. } => None,
        }
    }

    pub(super) fn transport(url: &reqwest::Url, source: reqwest::Error) -> Self {
        let (url, source) = (place(url), source.without_url());
        if source.is_connect() {
            return Self::Unreachable { url, source };
        }
        Self::Broken { url, source: Some(source) }
    }

    /// An answer of `status` with `body`, which should be a problem document.
    pub(super) fn answer(
        url: &reqwest::Url,
        status: u16,
        body: &[u8],
        retry_after: Option<Duration>,
    ) -> Self {
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => Self::Problem { problem: Box::new(Problem { status, ..problem }), retry_after },
            Err(_) => Self::Status { url: place(url), status },
        }
    }
}

/// Whether a status says that the same call may work in a moment.
fn passes(status: u16) -> bool {
    matches!(status, 429 | 502 | 503 | 504)
}

/// A URL as messages show it: without query and credentials.
pub(super) fn place(url: &reqwest::Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url() -> reqwest::Url {
        "http://user:secret@127.0.0.1:1/v1/jobs?token=secret".parse().expect("a URL")
    }

    const LOW: &str = r#"{"type":"about:blank","title":"Payment Required","status":402,
        "detail":"the hold of $0.50 exceeds the balance","code":"balance_too_low","retryable":false,
        "suggestion":"lower max_spend"}"#;

    #[test]
    fn a_problem_document_keeps_its_code_and_advice() {
        let error = Error::answer(&url(), 402, LOW.as_bytes(), None);
        assert_eq!(
            (error.code(), error.retryable(), error.suggestion()),
            ("balance_too_low", false, "lower max_spend")
        );
        assert_eq!(error.to_string(), "the hold of $0.50 exceeds the balance");
    }

    #[test]
    fn a_proxys_page_is_an_error_of_its_own_and_worth_another_try() {
        let error = Error::answer(&url(), 502, b"<html>", None);
        assert!(matches!(error, Error::Status { status: 502, .. }));
        assert!(error.worth_another_try(Repeat::Safe) && !error.worth_another_try(Repeat::Unsafe));
    }

    #[test]
    fn no_message_contains_credentials_or_a_query() {
        assert_eq!(place(&url()), "http://127.0.0.1:1/v1/jobs");
    }

    proptest! {
        #[test]
        fn foreign_answers_never_panic(
            status in 300..600_u16, body in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..400_usize,
        ) {
            let torn = LOW.get(..cut.min(LOW.len())).unwrap_or_default();
            for bytes in [body.as_slice(), torn.as_bytes()] {
                let error = Error::answer(&url(), status, bytes, None);
                prop_assert_eq!(error.problem().status, status);
            }
        }
    }
}
