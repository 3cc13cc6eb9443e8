//! What everything of a challenge is bound to.

use std::collections::BTreeSet;

use sha2::{Digest as _, Sha256};

use crate::{
    Challenge, Digest, Nonce,
    mix::{State, below},
};

/// SHA-256 over a name that no other use shares, and parts of fixed length.
pub(crate) fn hash(domain: &str, parts: &[&[u8]]) -> Digest {
    let mut hasher = Sha256::new();
    hasher.update([domain.len() as u8]);
    hasher.update(domain);
    parts.iter().for_each(|part| hasher.update(part));
    Digest(hasher.finalize().into())
}

/// 64 bytes that follow from `digest` and a number.
pub(crate) fn expand(domain: &str, digest: &Digest, number: u64) -> State {
    let half = |which: u8| hash(domain, &[&digest.0, &number.to_le_bytes(), &[which]]).0;
    words(&[half(0), half(1)].concat())
}

fn words(bytes: &[u8]) -> State {
    let mut state = [0; 8];
    for (word, chunk) in state.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    state
}

/// The digest of a state.
pub(crate) fn seal(domain: &str, binding: &Digest, number: u64, state: &State) -> Digest {
    let mut bytes = [0; 64];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(state) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    hash(domain, &[&binding.0, &number.to_le_bytes(), &bytes])
}

/// What the work of a challenge starts from: no other challenge, host, size or nonce has it.
pub(crate) fn binding(challenge: &Challenge) -> Digest {
    // Its JSON has all of a test's sizes, in an order that does not change.
    let task = serde_json::to_vec(&challenge.task).unwrap_or_default();
    let (id, host) = (challenge.challenge.0.as_bytes(), challenge.host.0.as_bytes());
    let beacon = challenge.beacon.as_ref().map_or(&[][..], |beacon| &beacon.0);
    let parts =
        [&challenge.version.to_le_bytes(), &id[..], host, &challenge.nonce.0, &[beacon.len() as u8], beacon];
    let work = hash("nave proof task", &[&task]);
    hash("nave proof challenge", &[&parts.concat(), &work.0])
}

/// What comes after a commitment and the nonce it was answered with.
pub(crate) fn revealed(before: &Digest, commitment: &Digest, reveal: &Nonce) -> Digest {
    hash("nave proof reveal", &[&before.0, &commitment.0, &reveal.0])
}

/// `count` different numbers below `total`, or all there are.
pub(crate) fn draw(seed: &Digest, count: u32, total: u64) -> Vec<u64> {
    if u64::from(count) >= total {
        return (0..total).collect();
    }
    let mut drawn = BTreeSet::new();
    for number in 0_u64.. {
        if drawn.len() >= count as usize {
            break;
        }
        drawn.insert(below(expand("nave proof sample", seed, number)[0], total));
    }
    drawn.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawing_has_the_size_it_should_have_and_no_number_twice() {
        let seed = Digest([3; 32]);
        assert_eq!(draw(&seed, 9, 5), vec![0, 1, 2, 3, 4]);
        let drawn = draw(&seed, 99, 100);
        assert_eq!(drawn.len(), 99);
        assert!(drawn.windows(2).all(|pair| pair[0] < pair[1]) && drawn[98] < 100);
    }
}
