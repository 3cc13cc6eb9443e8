//! The host's side: from a challenge to evidence.

use std::sync::Arc;

use crate::{
    Challenge, CpuTask, DeviceTask, Digest, Failure, MemoryTask, Reason, StorageTask, Task, VERSION, cpu,
    device::Device,
    devices::prove::{Devices, Open},
    memory::{self, Fill},
    merkle::Tree,
    storage::prove::{self as storage, Disk, Stored},
    transcript::{binding, revealed},
};

/// What a host has for its proofs.
pub struct Resources {
    threads: usize,
    open: Arc<Open>,
    disk: Arc<storage::Open>,
}

impl Resources {
    /// As many threads for filling and reading memory, and no devices.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        let none = |_: &DeviceTask| {
            let message = "there are no devices here".into();
            Err(Failure { code: Reason::DeviceUnavailable, message })
        };
        let no_disk = |_: &StorageTask| Err(aborted("there is no disk here"));
        Self { threads, open: Arc::new(none), disk: Arc::new(no_disk) }
    }

    /// With a disk, on which `open` makes a file for a task.
    #[must_use]
    pub fn with_disk(
        self,
        open: impl Fn(&StorageTask) -> Result<Box<dyn Disk>, Failure> + Send + Sync + 'static,
    ) -> Self {
        Self { disk: Arc::new(open), ..self }
    }

    /// With devices, which `open` opens by the names in their tasks. Each gets a thread of its own, in
    /// which it is opened, used and dropped.
    #[must_use]
    pub fn with_devices(
        self,
        open: impl Fn(&DeviceTask) -> Result<Box<dyn Device>, Failure> + Send + Sync + 'static,
    ) -> Self {
        Self { open: Arc::new(open), ..self }
    }
}

impl From<usize> for Resources {
    fn from(threads: usize) -> Self {
        Self::new(threads)
    }
}

/// The work for one challenge, as far as it is done.
pub struct Prover {
    /// As it was when it was last answered.
    challenge: Challenge,
    /// What the work starts from, then what each reveal made of it.
    bindings: Vec<Digest>,
    work: Box<dyn Work>,
    last: Option<Answer>,
}

/// The host's side of one kind of test.
pub(crate) trait Work: Send {
    /// Does the next step. `bindings` has what the work starts from, then what each reveal made of it: as
    /// many as there were steps, with this one.
    fn go_on(&mut self, bindings: &[Digest]) -> Result<Done, Failure>;
}

/// What comes of a step.
pub(crate) enum Done {
    /// What the host commits to.
    Commitment(Digest),
    /// The opening, after the digest that it is bound to.
    Opening(Vec<u8>),
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
    /// Gets ready for a challenge, with what the host has for it.
    ///
    /// # Errors
    /// A version that is not known here, or a size that no honest verifier draws.
    pub fn new(challenge: &Challenge, resources: impl Into<Resources>) -> Result<Self, Failure> {
        if challenge.version != VERSION {
            let message = format!("knows version {VERSION} of the proofs, not {}", challenge.version);
            return Err(Failure { code: Reason::VersionUnknown, message });
        }
        challenge.task.check().map_err(|why| aborted(&why))?;
        let challenge = Challenge { reveals: Vec::new(), ..challenge.clone() };
        let work = work(&challenge.task, &resources.into())?;
        Ok(Self { bindings: vec![binding(&challenge)], challenge, work, last: None })
    }

    /// Answers the last step of the challenge as it is now. The same step again has the same answer.
    ///
    /// # Errors
    /// What keeps the host from doing the work, or a challenge that is not the one before with
    /// one reveal more. After an error there is no answer to anything else.
    pub fn answer(&mut self, challenge: &Challenge) -> Result<Answer, Failure> {
        if let Some(last) = self.last.as_ref().filter(|_| *challenge == self.challenge) {
            return Ok(last.clone());
        }
        match (&self.last, challenge.reveals.split_last()) {
            (None, None) if *challenge == self.challenge => {}
            (Some(Answer::Commitment(commitment)), Some((reveal, before)))
                if self.is_extended_by(challenge, before) =>
            {
                let latest = self.bindings.last().unwrap_or(&self.bindings[0]);
                let seed = revealed(latest, commitment, reveal);
                self.bindings.push(seed);
            }
            (None | Some(_), _) => return Err(aborted("the challenge does not go on from where it was")),
        }
        let answer = self.go_on().inspect_err(|_| self.work = Box::new(Gone))?;
        self.challenge = challenge.clone();
        self.last = Some(answer.clone());
        Ok(answer)
    }

    fn go_on(&mut self) -> Result<Answer, Failure> {
        match self.work.go_on(&self.bindings)? {
            Done::Commitment(commitment) => Ok(Answer::Commitment(commitment)),
            Done::Opening(bytes) => {
                let seed = self.bindings.last().ok_or_else(gone)?;
                Ok(Answer::Opening([&seed.0, &bytes[..]].concat()))
            }
        }
    }

    fn is_extended_by(&self, challenge: &Challenge, before: &[crate::Nonce]) -> bool {
        *before == self.challenge.reveals
            && Challenge { reveals: before.to_vec(), ..challenge.clone() } == self.challenge
    }
}

/// The work that a task asks for.
fn work(task: &Task, resources: &Resources) -> Result<Box<dyn Work>, Failure> {
    match task {
        Task::Cpu(task) => Ok(Box::new(Chains { task: task.clone(), tree: None })),
        Task::Memory(task) => {
            Ok(Box::new(Filled { task: task.clone(), threads: resources.threads, fill: None, tree: None }))
        }
        Task::Devices(task) => Ok(Box::new(Devices::new(task, &resources.open)?)),
        Task::Storage(task) => Ok(Box::new(Stored::new(task, &resources.disk))),
        Task::Software(_) | Task::Transfer(_) => Err(aborted("this kind of work is not done here")),
    }
}

/// Work that failed.
struct Gone;

impl Work for Gone {
    fn go_on(&mut self, _: &[Digest]) -> Result<Done, Failure> {
        Err(gone())
    }
}

/// Chains of sequential work.
struct Chains {
    task: CpuTask,
    tree: Option<Tree>,
}

impl Work for Chains {
    fn go_on(&mut self, bindings: &[Digest]) -> Result<Done, Failure> {
        match (bindings, &self.tree) {
            ([binding], _) => committed(self.tree.insert(cpu::prove(&self.task, binding)?)),
            ([binding, seed], Some(tree)) => Ok(opening(&cpu::open(&self.task, tree, binding, seed))),
            _ => Err(gone()),
        }
    }
}

/// Memory that is filled, then read.
struct Filled {
    task: MemoryTask,
    threads: usize,
    /// It stays where it is until the end, so that hosts cannot pass it on.
    fill: Option<Fill>,
    tree: Option<Tree>,
}

impl Work for Filled {
    fn go_on(&mut self, bindings: &[Digest]) -> Result<Done, Failure> {
        match (bindings, &self.fill, &self.tree) {
            ([binding], ..) => {
                self.fill = Some(Fill::new(&self.task, binding, self.threads)?);
                Ok(Done::Commitment(memory::filled(binding)))
            }
            ([_, seed], Some(fill), _) => {
                committed(self.tree.insert(fill.read(&self.task, seed, self.threads)?))
            }
            ([_, _, seed], Some(_), Some(tree)) => Ok(opening(&memory::open(&self.task, tree, seed))),
            _ => Err(gone()),
        }
    }
}

pub(crate) fn committed(tree: &Tree) -> Result<Done, Failure> {
    tree.root().map(Done::Commitment).ok_or_else(|| aborted("there was nothing to do"))
}

pub(crate) fn opening(digests: &[Digest]) -> Done {
    Done::Opening(digests.iter().flat_map(|digest| digest.0).collect())
}

pub(crate) fn aborted(message: &str) -> Failure {
    Failure { code: Reason::Aborted, message: message.into() }
}

pub(crate) fn gone() -> Failure {
    aborted("the work for this step is gone")
}
