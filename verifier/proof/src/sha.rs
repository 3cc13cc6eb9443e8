//! SHA-256 as devices compute it: block by block, from states that are computed once.

use std::sync::LazyLock;

use sha2::block_api::compress256;

use crate::Digest;

/// What SHA-256 starts from.
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
const BLOCK: usize = 64;

/// A block of a fill, or the state of a lane.
pub(crate) type Words = [u32; 8];

/// SHA-256 of a name in a block of its own: what the data that follows are hashed from.
pub(crate) struct Name(LazyLock<[u32; 8]>);

/// Two digests of a tree become one.
pub(crate) static TREE: Name = Name(LazyLock::new(|| after("nave proof tree")));
/// Sums of a product.
pub(crate) static GEMM: Name = Name(LazyLock::new(|| after("nave proof gemm")));
/// The end of a lane.
pub(crate) static LANE: Name = Name(LazyLock::new(|| after("nave proof lane")));
/// The end of a chunk in a pass.
pub(crate) static STREAM: Name = Name(LazyLock::new(|| after("nave proof stream")));

/// A chunk of a transfer.
pub(crate) static TRANSFER: Name = Name(LazyLock::new(|| after("nave proof transfer")));

fn after(name: &str) -> [u32; 8] {
    let (mut state, mut block) = (INITIAL, [0; BLOCK]);
    block[..name.len()].copy_from_slice(name.as_bytes());
    compress256(&mut state, &[block]);
    state
}

impl Name {
    /// `BH(name, data)`.
    pub(crate) fn hash(&self, data: &[u8]) -> Digest {
        let mut state = *self.0;
        let (blocks, rest) = data.as_chunks::<BLOCK>();
        compress256(&mut state, blocks);
        finish(&mut state, rest, BLOCK + data.len());
        Digest(bytes(&state))
    }

    /// `BH(name, left ‖ right)`.
    pub(crate) fn pair(&self, left: &Digest, right: &Digest) -> Digest {
        let mut both = [0; BLOCK];
        both[..32].copy_from_slice(&left.0);
        both[32..].copy_from_slice(&right.0);
        self.hash(&both)
    }

    /// `BH(name, words)`.
    pub(crate) fn words(&self, words: &[Words]) -> Digest {
        self.hash(
            words.as_flattened().iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>().as_slice(),
        )
    }
}

/// Takes in what is left of a message of `len` bytes, with its padding.
fn finish(state: &mut [u32; 8], rest: &[u8], len: usize) {
    let mut last = [[0; BLOCK]; 2];
    let flat = last.as_flattened_mut();
    flat[..rest.len()].copy_from_slice(rest);
    flat[rest.len()] = 0x80;
    let blocks = if rest.len() < BLOCK - 8 { 1 } else { 2 };
    flat[blocks * BLOCK - 8..blocks * BLOCK].copy_from_slice(&(len as u64 * 8).to_be_bytes());
    compress256(state, &last[..blocks]);
}

fn bytes(state: &[u32; 8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (chunk, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(state) {
        *chunk = word.to_be_bytes();
    }
    bytes
}

/// The words of a digest, as devices keep them.
pub(crate) fn words(digest: &[u8; 32]) -> Words {
    let (chunks, _) = digest.as_chunks::<4>();
    std::array::from_fn(|word| u32::from_le_bytes(chunks[word]))
}

/// A message that is a block with its padding.
fn padded<const LEN: usize>(message: &[u8; LEN]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..LEN].copy_from_slice(message);
    block[LEN] = 0x80;
    block[BLOCK - 8..].copy_from_slice(&(LEN as u64 * 8).to_be_bytes());
    block
}

/// SHA-256 of a message that is a block with its padding.
fn digest(block: &[u8; BLOCK]) -> [u8; 32] {
    let mut state = INITIAL;
    compress256(&mut state, std::slice::from_ref(block));
    bytes(&state)
}

/// SHA-256 of `seed ‖ number`.
fn numbered(seed: &Digest, number: u64) -> [u8; 32] {
    let mut message = [0; 40];
    message[..32].copy_from_slice(&seed.0);
    message[32..].copy_from_slice(&number.to_le_bytes());
    digest(&padded(&message))
}

/// The words of SHA-256 of `seed ‖ number`.
pub(crate) fn start(seed: &Digest, number: u64) -> Words {
    words(&numbered(seed, number))
}

/// Blocks of a fill, computed side by side: one compression waits for the one before, so that
/// a core has time for another chain meanwhile.
pub(crate) fn chains<const ABREAST: usize>(
    starts: [(&Digest, u64); ABREAST],
    depth: u32,
) -> [Words; ABREAST] {
    // Each chain has a message of its own: it would wait for the others' in a common one.
    let mut blocks = starts.map(|(seed, number)| padded(&numbered(seed, number)));
    for _ in 1..depth {
        for block in &mut blocks {
            let next = digest(block);
            block[..32].copy_from_slice(&next);
        }
    }
    blocks.map(|block| std::array::from_fn(|word| u32::from_le_bytes(block.as_chunks().0[word])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn it_is_the_hash_of_the_standard() {
        let mut state = INITIAL;
        finish(&mut state, b"abc", 3);
        let published = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex::encode(bytes(&state)), published);
    }

    #[test]
    fn a_block_is_as_many_hashes_as_the_fill_is_deep() {
        let seed = Digest([7; 32]);
        let mut digest: [u8; 32] = Sha256::digest([&seed.0[..], &99_u64.to_le_bytes()].concat()).into();
        assert_eq!(start(&seed, 99), words(&digest));
        for _ in 1..5 {
            digest = Sha256::digest(digest).into();
        }
        let [other, block, _] = chains([98, 99, 100].map(|number| (&seed, number)), 5);
        assert_eq!(block, words(&digest));
        assert_ne!(other, block);
    }

    proptest! {
        #[test]
        fn a_name_fills_a_block_of_its_own(data in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut message = b"nave proof gemm".to_vec();
            message.resize(64, 0);
            message.extend(&data);
            let whole: [u8; 32] = Sha256::digest(&message).into();
            prop_assert_eq!(GEMM.hash(&data).0, whole);
        }
    }
}
