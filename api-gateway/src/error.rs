//! The one error of the API: every refusal leaves as a problem document of RFC 9457.

use std::borrow::Cow;

use axum::{
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use nave_domain::Overflow;
use nave_sdk::wire::rest::Problem;
use nave_store::{QuoteFault, StoreError};

/// Why a call was not done.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: Cow<'static, str>,
    detail: String,
    suggestion: Cow<'static, str>,
    retryable: bool,
    retry_after_s: Option<u64>,
    /// For the log only; customers never see it.
    cause: Option<String>,
}

impl ApiError {
    pub(crate) fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code: code.into(),
            detail: detail.into(),
            suggestion: Cow::Borrowed("correct the request"),
            retryable: false,
            retry_after_s: None,
            cause: None,
        }
    }

    /// A request that is understood and cannot be accepted.
    pub(crate) fn refused(code: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }

    /// A fault of the gateway itself; `cause` goes to the log.
    pub(crate) fn internal(cause: impl Into<String>) -> Self {
        let mut error = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the gateway could not carry out the request; the fault is on its side and was logged",
        )
        .suggest("report it to the market's operator");
        error.cause = Some(cause.into());
        error
    }

    /// Something the gateway needs does not answer now.
    pub(crate) fn unavailable(code: &'static str, detail: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).suggest("try again in a moment").retry_in(1)
    }

    pub(crate) fn suggest(mut self, suggestion: impl Into<Cow<'static, str>>) -> Self {
        self.suggestion = suggestion.into();
        self
    }

    /// The same request may succeed later.
    pub(crate) fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// The same request may succeed after so many seconds.
    pub(crate) fn retry_in(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self.retryable()
    }

    pub(crate) fn with_cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    pub(crate) fn log(&self) {
        let cause = self.cause.as_deref().unwrap_or_default();
        let (status, code) = (self.status.as_u16(), self.code.as_ref());
        if self.status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(http.status = status, code, cause, "a request failed: {}", self.detail);
        } else {
            tracing::debug!(http.status = status, code, cause, "a request was refused: {}", self.detail);
        }
    }

    fn problem(&self) -> Problem {
        Problem {
            r#type: "about:blank".to_owned(),
            title: self.status.canonical_reason().unwrap_or("Unknown").to_owned(),
            status: self.status.as_u16(),
            detail: self.detail.clone(),
            code: self.code.clone().into_owned(),
            retryable: self.retryable,
            suggestion: self.suggestion.clone().into_owned(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.log();
        let body = serde_json::to_vec(&self.problem()).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"nave\""));
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::NotFound(what) => {
                Self::new(StatusCode::NOT_FOUND, format!("{what}_not_found"), message)
                    .suggest("check the id; other customers' things are not found either")
            }
            StoreError::Stale(what) => Self::new(StatusCode::CONFLICT, format!("{what}_changed"), message)
                .suggest("look again, then repeat")
                .retryable(),
            StoreError::KeyReused => Self::refused("idempotency_key_reused", message)
                .suggest("use a new Idempotency-Key for a new request, or repeat the first one unchanged"),
            StoreError::BalanceTooLow => Self::new(StatusCode::PAYMENT_REQUIRED, "balance_too_low", message)
                .suggest("lower max_spend, wait for open jobs to end, or add credit"),
            StoreError::TooMany(_) => Self::new(StatusCode::CONFLICT, "too_many", message)
                .suggest("use another number for further ones"),
            StoreError::Quote(fault) => quote_fault(&fault, message),
            StoreError::Constraint(_) => Self::new(StatusCode::CONFLICT, "conflict", message)
                .suggest("look at the current state, then decide anew"),
            StoreError::Database(source) => {
                Self::unavailable("database_unavailable", "the market's database does not answer")
                    .with_cause(source.to_string())
            }
            StoreError::Corrupt(_) | StoreError::Overflow(_) | StoreError::Migrate(_) => {
                Self::internal(message)
            }
        }
    }
}

fn quote_fault(fault: &QuoteFault, message: String) -> ApiError {
    let (status, code, suggestion) = match fault {
        QuoteFault::Expired => (StatusCode::CONFLICT, "quote_expired", "ask for another quote"),
        QuoteFault::Used(_) => (StatusCode::CONFLICT, "quote_used", "ask for another quote"),
        QuoteFault::Empty => (StatusCode::CONFLICT, "quote_empty", "ask for a quote without dry_run"),
        QuoteFault::Void => {
            (StatusCode::CONFLICT, "quote_void", "try again in a moment, or ask for another quote")
        }
        QuoteFault::Differs(_) => (
            StatusCode::UNPROCESSABLE_ENTITY,
            "quote_differs",
            "send the request of the quote; only image, argv, env and retries may be others",
        ),
        QuoteFault::TooMany => {
            (StatusCode::CONFLICT, "too_many_quotes", "use one of them, or wait until one expires")
        }
        QuoteFault::TooOften => {
            (StatusCode::TOO_MANY_REQUESTS, "quotes_too_often", "wait a minute, then ask again")
        }
    };
    let error = ApiError::new(status, code, message).suggest(suggestion);
    match fault {
        // A host that is silent for a moment takes jobs again soon, and its quote is still there.
        QuoteFault::Void => error.retry_in(1),
        QuoteFault::TooOften => error.retry_in(60),
        QuoteFault::Expired
        | QuoteFault::Used(_)
        | QuoteFault::Empty
        | QuoteFault::Differs(_)
        | QuoteFault::TooMany => error,
    }
}

impl From<Overflow> for ApiError {
    fn from(error: Overflow) -> Self {
        Self::internal(error.to_string())
    }
}
