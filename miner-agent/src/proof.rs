//! What to do about a challenge: a pure function of what the spec asks and what the
//! prover has said.
//!
//! The spec carries the whole challenge, which grows; the prover gets it each time it
//! has; the newest answer stays in the reports until the spec shows the next step.
//! A new agent knows nothing of an earlier one's prover and has the work done anew.

use nave_domain::ChallengeId;
use nave_sdk::wire::proof::{Challenge, EXPLANATION_MAX, Failure, Message, ProofReport, Reason};

/// What to do with the prover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// End the one that runs.
    End,
    /// Start one for this challenge.
    Begin(Challenge),
    /// Tell the one that runs that the challenge has grown.
    Feed(Challenge),
}

/// The proof under way, if any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proof {
    wanted: Option<Challenge>,
    answer: Option<ProofReport>,
    /// The prover has ended.
    ended: bool,
}

impl Proof {
    /// Takes in what the newest spec asks.
    pub fn want(&mut self, challenge: Option<&Challenge>) -> Vec<Order> {
        let before = self.wanted.take();
        self.wanted = challenge.cloned();
        match (before, challenge) {
            (None, None) => Vec::new(),
            (Some(_), None) => {
                *self = Self::default();
                vec![Order::End]
            }
            (None, Some(new)) => vec![Order::Begin(new.clone())],
            (Some(old), Some(new)) if old.challenge != new.challenge => {
                *self = Self { wanted: Some(new.clone()), ..Self::default() };
                vec![Order::End, Order::Begin(new.clone())]
            }
            (Some(old), Some(new)) if old.step() >= new.step() => Vec::new(),
            (Some(_), Some(_)) if self.ended => {
                self.fail("the prover has ended before all was answered");
                Vec::new()
            }
            (Some(_), Some(new)) => vec![Order::Feed(new.clone())],
        }
    }

    /// Takes in an answer of the prover. One of another challenge, or an older one, is dropped.
    pub fn answer(&mut self, answer: ProofReport) {
        let fits =
            self.step().is_some_and(|(challenge, step)| (answer.challenge, answer.step) == (challenge, step));
        if fits && self.report().is_none() {
            self.answer = Some(answer);
        }
    }

    /// The prover has ended, for this reason. What is not answered will not be.
    pub fn ended(&mut self, why: &str) {
        self.ended = true;
        if self.report().is_none() {
            self.fail(why);
        }
    }

    /// What reports say: the answer to the present step.
    #[must_use]
    pub fn report(&self) -> Option<&ProofReport> {
        let (challenge, step) = self.step()?;
        self.answer.as_ref().filter(|answer| answer.challenge == challenge && answer.step == step)
    }

    /// The challenge and the step that wait for an answer, or have one.
    #[must_use]
    pub fn step(&self) -> Option<(ChallengeId, u32)> {
        let wanted = self.wanted.as_ref()?;
        Some((wanted.challenge, u32::try_from(wanted.step()).unwrap_or(u32::MAX)))
    }

    fn fail(&mut self, why: &str) {
        let Some((challenge, step)) = self.step() else { return };
        let mut end = why.len().min(EXPLANATION_MAX);
        while !why.is_char_boundary(end) {
            end -= 1;
        }
        let failure = Failure { code: Reason::Aborted, message: why[..end].to_owned() };
        self.answer = Some(ProofReport { challenge, step, message: Message::Failed(failure) });
    }
}

#[cfg(test)]
mod tests {
    use nave_domain::{HostId, MilliCpu};
    use nave_sdk::wire::proof::{CpuTask, Digest, Nonce, Task};

    use super::*;

    fn challenge(id: u8, reveals: u8) -> Challenge {
        let host: HostId = format!("host_{:032x}", 1).parse().expect("an id");
        Challenge {
            version: nave_sdk::wire::proof::VERSION,
            challenge: format!("challenge_{id:032x}").parse().expect("an id"),
            host,
            task: Task::Cpu(CpuTask { milli_cpu: MilliCpu(1_000), segments: 8, samples: 2 }),
            nonce: Nonce([id; 32]),
            beacon: None,
            reveals: (0..reveals).map(|n| Nonce([n; 32])).collect(),
        }
    }

    fn answer(id: u8, step: u32) -> ProofReport {
        let challenge = challenge(id, 0).challenge;
        ProofReport { challenge, step, message: Message::Commitment(Digest([id; 32])) }
    }

    fn begun(id: u8, reveals: u8) -> Proof {
        let mut proof = Proof::default();
        assert_eq!(proof.want(Some(&challenge(id, reveals))), [Order::Begin(challenge(id, reveals))]);
        proof
    }

    #[test]
    fn an_answer_stays_until_the_next_step_is_shown() {
        let mut proof = begun(1, 0);
        assert_eq!(proof.want(Some(&challenge(1, 0))), []);
        assert_eq!(proof.report(), None);
        proof.answer(answer(1, 0));
        assert_eq!(proof.report(), Some(&answer(1, 0)));
        assert_eq!(proof.want(Some(&challenge(1, 1))), [Order::Feed(challenge(1, 1))]);
        assert_eq!(proof.report(), None);
        proof.answer(answer(1, 1));
        assert_eq!(proof.report(), Some(&answer(1, 1)));
    }

    #[test]
    fn another_challenge_or_none_ends_the_prover() {
        let mut proof = begun(1, 0);
        proof.answer(answer(1, 0));
        assert_eq!(proof.want(Some(&challenge(2, 0))), [Order::End, Order::Begin(challenge(2, 0))]);
        assert_eq!(proof.report(), None);
        assert_eq!(proof.want(None), [Order::End]);
        assert_eq!(proof.report(), None);
        assert_eq!(proof.want(None), []);
    }

    #[test]
    fn a_prover_that_died_is_a_failure_of_the_step_that_waits() {
        let mut proof = begun(1, 0);
        proof.ended("it was killed");
        let failed =
            |proof: &Proof| matches!(proof.report(), Some(ProofReport { message: Message::Failed(_), .. }));
        assert!(failed(&proof));
        let mut later = begun(1, 0);
        later.answer(answer(1, 0));
        later.ended("it was killed");
        assert_eq!(later.report(), Some(&answer(1, 0)), "what was answered counts");
        assert_eq!(later.want(Some(&challenge(1, 1))), []);
        assert!(failed(&later));
    }

    #[test]
    fn a_new_agent_has_the_work_done_anew_and_answers_the_present_step_only() {
        let mut proof = begun(1, 1);
        proof.answer(answer(1, 0));
        assert_eq!(proof.report(), None);
        proof.answer(answer(1, 1));
        assert_eq!(proof.report(), Some(&answer(1, 1)));
    }

    #[test]
    fn the_first_answer_counts_and_one_of_another_challenge_does_not() {
        let mut proof = begun(1, 0);
        proof.answer(answer(2, 0));
        assert_eq!(proof.report(), None);
        proof.answer(answer(1, 0));
        let other = ProofReport { message: Message::Commitment(Digest([9; 32])), ..answer(1, 0) };
        proof.answer(other);
        assert_eq!(proof.report(), Some(&answer(1, 0)));
    }
}
