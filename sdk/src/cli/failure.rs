//! What the command says and returns when it cannot do what was asked.

use std::fmt;

use nave_sdk::{client::Error, wire::rest::Problem};

/// Exit codes that are not the job's own.
pub mod exit {
    /// Something went wrong.
    pub const ERROR: u8 = 1;
    /// The command line makes no sense.
    pub const USAGE: u8 = 2;
    /// The job failed and left no exit code.
    pub const FAILED: u8 = 100;
    /// The job is not finished.
    pub const UNFINISHED: u8 = 101;
    /// There is no such job.
    pub const NOT_FOUND: u8 = 102;
    /// The job was cancelled.
    pub const CANCELLED: u8 = 103;
    /// The job used up what it may cost.
    pub const SPEND_CAP: u8 = 104;
    /// A verdict that was judged again came out otherwise.
    pub const DIFFERS: u8 = 105;
    /// What is published of a verdict does not decide it.
    pub const UNTOLD: u8 = 106;
    /// Replicas of a job came back with different results.
    pub const REPLICAS_DIFFER: u8 = 107;
}

/// Something that was attempted and did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What was attempted, to follow "could not".
    pub attempted: String,
    /// Why not.
    pub problem: Box<Problem>,
    /// What the command exits with.
    pub code: u8,
}

impl Failure {
    /// The API refused or could not be asked.
    #[must_use]
    pub fn api(attempted: &str, error: &Error) -> Self {
        // Only the API itself knows what does not exist; a wrong URL is another matter.
        let missing = matches!(error, Error::Problem { problem, .. } if problem.status == 404);
        let code = if missing { exit::NOT_FOUND } else { exit::ERROR };
        let mut problem = error.problem();
        if problem.status == 401 {
            // The API speaks of headers, which are this command's business.
            problem.suggestion =
                "set NAVE_TOKEN or `token` in the configuration; `nave doctor` says where that is".to_owned();
        }
        Self { attempted: attempted.to_owned(), problem: Box::new(problem), code }
    }

    /// [`Failure::api`] for `map_err`.
    pub fn when(attempted: &str) -> impl FnOnce(Error) -> Self {
        move |error| Self::api(attempted, &error)
    }

    /// Something on this machine stands in the way.
    #[must_use]
    pub fn local(attempted: &str, detail: &str, suggestion: &str) -> Self {
        let problem = Problem {
            r#type: "about:blank".to_owned(),
            title: "Not done".to_owned(),
            status: 0,
            detail: detail.to_owned(),
            code: "local_error".to_owned(),
            retryable: false,
            suggestion: suggestion.to_owned(),
        };
        Self { attempted: attempted.to_owned(), problem: Box::new(problem), code: exit::ERROR }
    }

    /// This failure under another problem code.
    #[must_use]
    pub fn named(mut self, code: &str) -> Self {
        code.clone_into(&mut self.problem.code);
        self
    }

    /// This failure with another exit code.
    #[must_use]
    pub fn exiting(mut self, code: u8) -> Self {
        self.code = code;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not {}: {}", self.attempted, self.problem.detail)?;
        match self.problem.suggestion.as_str() {
            "" => Ok(()),
            suggestion => write!(f, "\ntry: {suggestion}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_was_attempted_why_not_and_what_to_try() {
        let failure = Failure::local("read x", "no such file", "make one");
        assert_eq!(failure.to_string(), "could not read x: no such file\ntry: make one");
        assert_eq!(failure.code, exit::ERROR);
    }

    #[test]
    fn what_the_api_does_not_know_exits_with_its_own_code() {
        let wrong_url = Error::Status { url: String::new(), status: 404 };
        assert_eq!(Failure::api("show it", &wrong_url).code, exit::ERROR);
        let problem = Box::new(Problem { status: 404, ..wrong_url.problem() });
        let missing = Error::Problem { problem, retry_after: None };
        assert_eq!(Failure::api("show it", &missing).code, exit::NOT_FOUND);
    }
}
