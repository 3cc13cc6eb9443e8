//! What to tell a person about a job that goes on.

use nave_domain::job::JobState;
use nave_sdk::wire::rest::Job;

use super::table::clean;

/// Turns views of one job into remarks, each made once.
#[derive(Debug, Default)]
pub struct Progress {
    last: Option<(JobState, usize, Option<String>)>,
    attempts_told: usize,
}

/// Something to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// Whether it matters to those who read a record later, not only to who watches.
    pub lasting: bool,
    /// What to say.
    pub text: String,
}

impl Progress {
    /// How many attempts are known.
    #[must_use]
    pub fn attempts(&self) -> usize {
        self.attempts_told
    }

    /// What `job` tells that was not known.
    pub fn see(&mut self, job: &Job) -> Vec<Remark> {
        let view = (job.state, job.attempts.len(), job.reason.as_ref().map(|reason| reason.code.clone()));
        if self.last.as_ref() == Some(&view) {
            return Vec::new();
        }
        self.last = Some(view);
        let mut remarks = self.new_attempts(job);
        remarks.extend(standing(job).map(|text| Remark { lasting: is_stuck(job), text }));
        remarks
    }

    fn new_attempts(&mut self, job: &Job) -> Vec<Remark> {
        let told = self.attempts_told;
        self.attempts_told = told.max(job.attempts.len());
        let retried = job.attempts.iter().skip(told.max(1));
        retried
            .map(|attempt| {
                let text = format!("attempt {} on {}", attempt.attempt, clean(&attempt.host_name));
                Remark { lasting: true, text }
            })
            .collect()
    }
}

/// Whether it waits for what waiting alone does not bring: who sees no progress must know.
fn is_stuck(job: &Job) -> bool {
    let code = job.reason.as_ref().map(|reason| reason.code.as_str());
    job.state == JobState::Queued && matches!(code, Some("no_hosts" | "no_host_fits"))
}

fn standing(job: &Job) -> Option<String> {
    let host = job.attempts.last().map_or_else(String::new, |attempt| clean(&attempt.host_name));
    match job.state {
        JobState::Queued => Some(match &job.reason {
            Some(reason) => format!("{} queued: {}", job.job, clean(&reason.message)),
            None => format!("{} queued", job.job),
        }),
        JobState::Placed => Some(format!("{} placed on {host}", job.job)),
        JobState::Running => Some(format!("{} running on {host}", job.job)),
        JobState::Cancelling => Some(format!("{} cancelling", job.job)),
        JobState::Succeeded | JobState::Failed | JobState::Cancelled => None,
    }
}

#[cfg(test)]
mod tests {
    use nave_sdk::wire::rest::Reason;

    use super::{super::golden, *};

    fn texts(remarks: &[Remark]) -> Vec<&str> {
        remarks.iter().map(|remark| remark.text.as_str()).collect()
    }

    #[test]
    fn every_step_is_told_once() {
        let (mut progress, mut job) = (Progress::default(), golden::jobs().remove(0));
        job.attempts.clear();
        job.state = JobState::Queued;
        assert_eq!(progress.see(&job).len(), 1);
        assert_eq!(progress.see(&job), []);
    }

    #[test]
    fn a_wait_for_a_host_that_does_not_exist_is_for_the_record() {
        let (mut progress, mut job) = (Progress::default(), golden::jobs().remove(0));
        job.state = JobState::Queued;
        let mut told = |code: &str| {
            job.reason = Some(Reason { code: code.into(), message: "why".into() });
            progress.see(&job).pop().expect("a remark").lasting
        };
        assert!(!told("waiting_for_capacity"));
        assert!(told("no_host_fits"));
    }

    #[test]
    fn a_further_attempt_is_marked_for_the_record_and_names_its_host() {
        let (mut progress, mut job) = (Progress::default(), golden::jobs().remove(0));
        job.state = JobState::Running;
        job.attempts.truncate(1);
        assert!(progress.see(&job).iter().all(|remark| !remark.lasting));
        let second = nave_sdk::wire::rest::Attempt {
            attempt: 2,
            host_name: "b\u{1b}".into(),
            ..job.attempts[0].clone()
        };
        job.attempts.push(second);
        let remarks = progress.see(&job);
        assert!(remarks[0].lasting);
        assert_eq!(texts(&remarks)[0], "attempt 2 on b?");
    }
}
