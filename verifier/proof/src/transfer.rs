//! Transfers: bytes from another host, which only that one can make.
//!
//! The source has a key, and the host that fetches connects to it first and commits to that. The
//! reveal that follows is what it asks the source with: the bytes are the key stream of both, so
//! none of them can have come before. The last reveal is the source's key, from which
//! the judge makes the chunks that it looks at.
//!
//! What comes of it is measured and not proven. Hosts that help one another can pass the key
//! on and send nothing, and the way goes through the hub: a rate says what two hosts and that
//! way have done, at least.

use std::collections::BTreeMap;

use crate::{
    Challenge, Digest, Nonce, TransferTask, chacha,
    merkle::{self, Tree},
    sha::TRANSFER,
    sizes::CHUNK,
    transcript::{binding, draw, hash, revealed},
};

/// Bytes that are made, sent and hashed together.
pub const PIECE: usize = CHUNK as usize;

/// What a source sends to who asks with `request`.
#[derive(Debug, Clone)]
pub struct Content(Digest);

impl Content {
    /// That of a key and a request.
    #[must_use]
    pub fn of(key: &Nonce, request: &Nonce) -> Self {
        Self(hash("nave proof transfer key", &[&key.0, &request.0]))
    }

    /// Makes a chunk; `chunk` has [`PIECE`] bytes.
    pub fn chunk(&self, number: u64, chunk: &mut [u8]) {
        chacha::fill(&self.0, number, chunk);
    }
}

/// What has come of a transfer: enough of it to show that it came.
#[derive(Debug, Clone, Default)]
pub struct Fetched(Vec<Digest>);

impl Fetched {
    /// Takes in the next chunk, of [`PIECE`] bytes.
    pub fn take(&mut self, chunk: &[u8]) {
        self.0.push(TRANSFER.hash(chunk));
    }

    /// What the host commits to: the root over all chunks. There is none where nothing came.
    #[must_use]
    pub fn commitment(&self) -> Option<Digest> {
        Tree::over(self.0.clone()).root()
    }

    /// The opening that the last reveal of the challenge asks for; there is none before.
    #[must_use]
    pub fn opening(&self, challenge: &Challenge, task: &TransferTask) -> Option<Vec<u8>> {
        let [request, key] = challenge.reveals.as_slice() else { return None };
        let tree = Tree::over(self.0.clone());
        let first = binding(challenge);
        let asked = revealed(&first, &reached_of(&first), request);
        let seed = revealed(&asked, &tree.root()?, key);
        let proof = tree.proof(chosen(task, &seed));
        Some([seed].iter().chain(&proof).flat_map(|digest| digest.0).collect())
    }
}

/// The commitment that says that the source was reached.
#[must_use]
pub fn reached(challenge: &Challenge) -> Digest {
    reached_of(&binding(challenge))
}

pub(crate) fn reached_of(binding: &Digest) -> Digest {
    hash("nave proof reached", &[&binding.0])
}

/// Chunks of the whole transfer.
fn chunks(task: &TransferTask) -> u64 {
    task.bytes / CHUNK
}

/// The chunks that `seed` chooses.
fn chosen(task: &TransferTask, seed: &Digest) -> Vec<u64> {
    draw(seed, task.samples, chunks(task))
}

/// How many digests an opening has.
pub(crate) fn opening_len(task: &TransferTask, seed: &Digest) -> usize {
    merkle::proof_len(chosen(task, seed), chunks(task))
}

/// Whether what was committed to is what the source has to send.
pub(crate) fn check(
    task: &TransferTask,
    content: &Content,
    seed: &Digest,
    commitment: &Digest,
    opening: &[Digest],
) -> Result<(), String> {
    let mut bytes = vec![0; PIECE];
    let mut leaf = |number| {
        content.chunk(number, &mut bytes);
        (number, TRANSFER.hash(&bytes))
    };
    let leaves: BTreeMap<u64, Digest> = chosen(task, seed).into_iter().map(&mut leaf).collect();
    match merkle::root(leaves, chunks(task), opening) {
        Some(root) if root == *commitment => Ok(()),
        Some(_) | None => Err("what came is not what the other host had to send".into()),
    }
}
