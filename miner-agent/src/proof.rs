//! What to do about challenges: a pure function of what the spec asks and what those who
//! answer have said.
//!
//! The spec carries each challenge as a whole, which grows; whoever answers it gets it each
//! time it has; the newest answer stays in the reports until the spec shows the next step.
//! Several are under way at once, each on its own: the end of one prover is nothing to the others.
//! A new agent knows nothing of an earlier one's provers and has the work done anew.

use std::collections::BTreeMap;

use nave_domain::ChallengeId;
use nave_sdk::wire::proof::{Challenge, EXPLANATION_MAX, Failure, Kind, Message, ProofReport, Reason};

/// What to do with those who answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// End whoever answers this challenge.
    End(ChallengeId),
    /// Start a prover for this challenge.
    Begin(Challenge),
    /// Let the agent itself answer this challenge.
    Inspect(Challenge),
    /// Tell whoever answers this challenge that it has grown.
    Feed(Challenge),
}

/// The proofs under way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proofs(BTreeMap<ChallengeId, Proof>);

/// A proof under way.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Proof {
    wanted: Challenge,
    answer: Option<ProofReport>,
    /// Whoever answered has ended.
    ended: bool,
}

impl Proofs {
    /// Takes in what the newest spec asks.
    pub fn want(&mut self, challenges: &BTreeMap<ChallengeId, Challenge>) -> Vec<Order> {
        let gone = self.0.keys().filter(|id| !challenges.contains_key(id)).copied();
        let mut orders: Vec<Order> = gone.map(Order::End).collect();
        self.0.retain(|id, _| challenges.contains_key(id));
        for (id, challenge) in challenges {
            match self.0.get_mut(id) {
                Some(proof) => orders.extend(proof.grow(challenge)),
                None => {
                    self.0.insert(*id, Proof { wanted: challenge.clone(), answer: None, ended: false });
                    orders.push(begin(challenge.clone()));
                }
            }
        }
        orders
    }

    /// Takes in an answer to a challenge. One to another step than the present is dropped.
    pub fn answer(&mut self, answer: ProofReport) {
        let Some(proof) = self.0.get_mut(&answer.challenge) else { return };
        if answer.step == proof.step() && proof.report().is_none() {
            proof.answer = Some(answer);
        }
    }

    /// Whoever answered this challenge has ended, for this reason. What is not answered will not be.
    pub fn ended(&mut self, challenge: ChallengeId, why: &str) {
        let Some(proof) = self.0.get_mut(&challenge) else { return };
        proof.ended = true;
        if proof.report().is_none() {
            proof.fail(why);
        }
    }

    /// What reports say: the answers to the present steps.
    #[must_use]
    pub fn reports(&self) -> BTreeMap<ChallengeId, ProofReport> {
        self.0.iter().filter_map(|(id, proof)| Some((*id, proof.report()?.clone()))).collect()
    }

    /// The step of each challenge that waits for an answer, or has one.
    pub fn steps(&self) -> impl Iterator<Item = (ChallengeId, Kind, u32)> {
        self.0.iter().map(|(id, proof)| (*id, proof.wanted.task.kind(), proof.step()))
    }
}

/// Provers compute; what is installed, mounted and connected the agent sees itself.
fn begin(challenge: Challenge) -> Order {
    match challenge.task.kind() {
        Kind::Cpu | Kind::Memory | Kind::Devices | Kind::Storage => Order::Begin(challenge),
        Kind::Software | Kind::Transfer => Order::Inspect(challenge),
    }
}

impl Proof {
    /// What to do now that its challenge stands like this.
    fn grow(&mut self, challenge: &Challenge) -> Option<Order> {
        if self.wanted.step() >= challenge.step() {
            return None;
        }
        self.wanted = challenge.clone();
        if self.ended {
            self.fail("whoever answered has ended before all was answered");
            return None;
        }
        Some(Order::Feed(challenge.clone()))
    }

    fn step(&self) -> u32 {
        u32::try_from(self.wanted.step()).unwrap_or(u32::MAX)
    }

    /// The answer to the present step.
    fn report(&self) -> Option<&ProofReport> {
        self.answer.as_ref().filter(|answer| answer.step == self.step())
    }

    fn fail(&mut self, why: &str) {
        let mut end = why.len().min(EXPLANATION_MAX);
        while !why.is_char_boundary(end) {
            end -= 1;
        }
        let failure = Failure { code: Reason::Aborted, message: why[..end].to_owned() };
        let (challenge, step) = (self.wanted.challenge, self.step());
        self.answer = Some(ProofReport { challenge, step, message: Message::Failed(failure) });
    }
}

#[cfg(test)]
mod tests {
    use nave_domain::{HostId, MilliCpu, Millis};
    use nave_sdk::wire::proof::{CpuTask, Digest, Nonce, SoftwareTask, Task};

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

    fn asked(challenges: &[Challenge]) -> BTreeMap<ChallengeId, Challenge> {
        challenges.iter().map(|challenge| (challenge.challenge, challenge.clone())).collect()
    }

    fn answer(id: u8, step: u32) -> ProofReport {
        let challenge = challenge(id, 0).challenge;
        ProofReport { challenge, step, message: Message::Commitment(Digest([id; 32])) }
    }

    fn begun(id: u8, reveals: u8) -> Proofs {
        let mut proofs = Proofs::default();
        let first = challenge(id, reveals);
        assert_eq!(proofs.want(&asked(std::slice::from_ref(&first))), [Order::Begin(first)]);
        proofs
    }

    fn report(proofs: &Proofs, id: u8) -> Option<ProofReport> {
        proofs.reports().get(&challenge(id, 0).challenge).cloned()
    }

    fn failed(proofs: &Proofs, id: u8) -> bool {
        matches!(report(proofs, id), Some(ProofReport { message: Message::Failed(_), .. }))
    }

    #[test]
    fn an_answer_stays_until_the_next_step_is_shown() {
        let mut proofs = begun(1, 0);
        assert_eq!(proofs.want(&asked(&[challenge(1, 0)])), []);
        assert_eq!(report(&proofs, 1), None);
        proofs.answer(answer(1, 0));
        assert_eq!(report(&proofs, 1), Some(answer(1, 0)));
        assert_eq!(proofs.want(&asked(&[challenge(1, 1)])), [Order::Feed(challenge(1, 1))]);
        assert_eq!(report(&proofs, 1), None);
        proofs.answer(answer(1, 1));
        assert_eq!(report(&proofs, 1), Some(answer(1, 1)));
    }

    #[test]
    fn another_challenge_or_none_ends_the_prover() {
        let mut proofs = begun(1, 0);
        proofs.answer(answer(1, 0));
        let first = challenge(1, 0).challenge;
        let orders = proofs.want(&asked(&[challenge(2, 0)]));
        assert_eq!(orders, [Order::End(first), Order::Begin(challenge(2, 0))]);
        assert_eq!(proofs.reports(), BTreeMap::new());
        assert_eq!(proofs.want(&asked(&[])), [Order::End(challenge(2, 0).challenge)]);
        assert_eq!(proofs.want(&asked(&[])), []);
    }

    #[test]
    fn several_challenges_are_answered_side_by_side() {
        let mut proofs = begun(1, 0);
        let both = asked(&[challenge(1, 0), challenge(2, 0)]);
        assert_eq!(proofs.want(&both), [Order::Begin(challenge(2, 0))]);
        proofs.answer(answer(2, 0));
        proofs.answer(answer(1, 0));
        assert_eq!(proofs.reports().into_values().collect::<Vec<_>>(), [answer(1, 0), answer(2, 0)]);
        let grown = asked(&[challenge(1, 0), challenge(2, 1)]);
        assert_eq!(proofs.want(&grown), [Order::Feed(challenge(2, 1))]);
        assert_eq!(proofs.reports().into_values().collect::<Vec<_>>(), [answer(1, 0)]);
    }

    #[test]
    fn a_prover_that_died_is_a_failure_of_its_own_challenge_only() {
        let mut proofs = begun(1, 0);
        proofs.want(&asked(&[challenge(1, 0), challenge(2, 0)]));
        proofs.ended(challenge(1, 0).challenge, "it was killed");
        assert!(failed(&proofs, 1) && report(&proofs, 2).is_none());
        proofs.answer(answer(2, 0));
        assert_eq!(report(&proofs, 2), Some(answer(2, 0)));
    }

    #[test]
    fn a_prover_that_died_is_a_failure_of_the_step_that_waits() {
        let mut later = begun(1, 0);
        later.answer(answer(1, 0));
        later.ended(challenge(1, 0).challenge, "it was killed");
        assert_eq!(report(&later, 1), Some(answer(1, 0)), "what was answered counts");
        assert_eq!(later.want(&asked(&[challenge(1, 1)])), []);
        assert!(failed(&later, 1));
    }

    #[test]
    fn a_new_agent_has_the_work_done_anew_and_answers_the_present_step_only() {
        let mut proofs = begun(1, 1);
        proofs.answer(answer(1, 0));
        assert_eq!(report(&proofs, 1), None);
        proofs.answer(answer(1, 1));
        assert_eq!(report(&proofs, 1), Some(answer(1, 1)));
    }

    #[test]
    fn the_first_answer_counts_and_one_of_another_challenge_does_not() {
        let mut proofs = begun(1, 0);
        proofs.answer(answer(2, 0));
        assert_eq!(proofs.reports(), BTreeMap::new());
        proofs.answer(answer(1, 0));
        let other = ProofReport { message: Message::Commitment(Digest([9; 32])), ..answer(1, 0) };
        proofs.answer(other);
        assert_eq!(report(&proofs, 1), Some(answer(1, 0)));
    }

    #[test]
    fn what_no_prover_can_know_the_agent_answers_itself() {
        let task = Task::Software(SoftwareTask { patience_ms: Millis(1_000) });
        let software = Challenge { task, ..challenge(3, 0) };
        let mut proofs = Proofs::default();
        assert_eq!(proofs.want(&asked(std::slice::from_ref(&software))), [Order::Inspect(software)]);
    }
}
