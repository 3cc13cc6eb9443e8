//! The host's side: from a challenge to evidence.

use crate::{
    Challenge, Digest, Failure, Reason, Task, VERSION, cpu,
    memory::{self, Fill},
    merkle::Tree,
    transcript::{binding, revealed},
};

/// The work for one challenge, as far as it is done.
pub struct Prover {
    /// As it was when it was last answered.
    challenge: Challenge,
    threads: usize,
    /// What the work starts from, then what each reveal made of it.
    bindings: Vec<Digest>,
    work: Work,
    last: Option<Answer>,
}

enum Work {
    None,
    Chains(Tree),
    Filled(Fill),
    /// The fill stays where it is until the end, so that hosts cannot pass it on.
    Lanes(Tree, #[expect(dead_code, reason = "it is there to take up memory")] Fill),
}

/// What is answered to a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Fixed before the next reveal is known.
    Commitment(Digest),
    /// What the last reveal chose, as bytes.
    Opening(Vec<u8>),
}

impl Prover {
    /// Gets ready for a challenge; memory will be filled and read by `threads` threads.
    ///
    /// # Errors
    /// A version that is not known here, or a size that no honest verifier draws.
    pub fn new(challenge: &Challenge, threads: usize) -> Result<Self, Failure> {
        if challenge.version != VERSION {
            let message = format!("knows version {VERSION} of the proofs, not {}", challenge.version);
            return Err(Failure { code: Reason::VersionUnknown, message });
        }
        challenge.task.check().map_err(|why| aborted(&why))?;
        let challenge = Challenge { reveals: Vec::new(), ..challenge.clone() };
        let bindings = vec![binding(&challenge)];
        Ok(Self { challenge, threads, bindings, work: Work::None, last: None })
    }

    /// Answers the last step of the challenge as it is now. The same step again has the same answer.
    ///
    /// # Errors
    /// What keeps the host from doing the work, or a challenge that is not the one before with
    /// one reveal more.
    pub fn answer(&mut self, challenge: &Challenge) -> Result<Answer, Failure> {
        if let Some(last) = self.last.as_ref().filter(|_| *challenge == self.challenge) {
            return Ok(last.clone());
        }
        let answer = match (&self.last, challenge.reveals.split_last()) {
            (None, None) if *challenge == self.challenge => self.begin()?,
            (Some(Answer::Commitment(commitment)), Some((reveal, before)))
                if self.is_extended_by(challenge, before) =>
            {
                let latest = self.bindings.last().unwrap_or(&self.bindings[0]);
                let seed = revealed(latest, commitment, reveal);
                self.bindings.push(seed);
                self.go_on(&seed)?
            }
            (None | Some(_), _) => return Err(aborted("the challenge does not go on from where it was")),
        };
        self.challenge = challenge.clone();
        self.last = Some(answer.clone());
        Ok(answer)
    }

    fn is_extended_by(&self, challenge: &Challenge, before: &[crate::Nonce]) -> bool {
        *before == self.challenge.reveals
            && Challenge { reveals: before.to_vec(), ..challenge.clone() } == self.challenge
    }

    fn begin(&mut self) -> Result<Answer, Failure> {
        let binding = self.bindings[0];
        let (work, commitment) = match &self.challenge.task {
            Task::Cpu(task) => {
                let tree = cpu::prove(task, &binding)?;
                let root = tree.root();
                (Work::Chains(tree), root)
            }
            Task::Memory(task) => {
                let fill = Fill::new(task, &binding, self.threads)?;
                (Work::Filled(fill), Some(memory::filled(&binding)))
            }
            Task::Devices(_) | Task::Storage(_) | Task::Software(_) | Task::Transfer(_) => {
                return Err(aborted("this kind of work is not done here"));
            }
        };
        self.work = work;
        commitment.map(Answer::Commitment).ok_or_else(|| aborted("there was nothing to do"))
    }

    fn go_on(&mut self, seed: &Digest) -> Result<Answer, Failure> {
        let digests = match (&self.challenge.task, std::mem::replace(&mut self.work, Work::None)) {
            (Task::Cpu(task), Work::Chains(tree)) => cpu::open(task, &tree, &self.bindings[0], seed),
            (Task::Memory(task), Work::Filled(fill)) => {
                let tree = fill.read(task, seed, self.threads)?;
                let root = tree.root().ok_or_else(|| aborted("there was nothing to read"))?;
                self.work = Work::Lanes(tree, fill);
                return Ok(Answer::Commitment(root));
            }
            (Task::Memory(task), Work::Lanes(tree, _)) => memory::open(task, &tree, seed),
            (Task::Cpu(_), Work::None | Work::Filled(_) | Work::Lanes(..))
            | (Task::Memory(_), Work::None | Work::Chains(_))
            | (Task::Devices(_) | Task::Storage(_) | Task::Software(_) | Task::Transfer(_), _) => {
                return Err(aborted("the work for this step is gone"));
            }
        };
        Ok(Answer::Opening([*seed].iter().chain(&digests).flat_map(|digest| digest.0).collect()))
    }
}

fn aborted(message: &str) -> Failure {
    Failure { code: Reason::Aborted, message: message.into() }
}
