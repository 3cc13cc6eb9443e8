//! ChaCha with 8 rounds, as Bernstein laid it out: a counter and a stream of 64 bits each.

use chacha20::{
    ChaCha8,
    cipher::{KeyIvInit as _, StreamCipher as _},
};

use crate::Digest;

/// The bytes of a key's stream, from the first.
///
/// The layout of RFC 8439, which is built on, has a counter of 32 bits. Up to 256 GiB it is the same when the
/// first word of what the RFC calls the nonce is the counter's upper half, 0.
pub(crate) struct KeyStream(ChaCha8);

impl KeyStream {
    pub(crate) fn new(key: &Digest, stream: u64) -> Self {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&stream.to_le_bytes());
        Self(ChaCha8::new(&key.0.into(), &nonce.into()))
    }

    /// The next bytes.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        self.0.write_keystream(bytes);
    }
}

/// Fills `bytes` with the beginning of a key's stream.
pub(crate) fn fill(key: &Digest, stream: u64, bytes: &mut [u8]) {
    KeyStream::new(key, stream).fill(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

    use super::*;

    #[test]
    fn it_is_what_others_publish_for_a_key_of_zeros() {
        let mut bytes = [0; 64];
        fill(&Digest([0; 32]), 0, &mut bytes);
        // draft-strombergson-chacha-test-vectors-01, TC1, 8 rounds, key of 256 bits.
        let published = "3e00ef2f895f40d67f5bb8e81f09a5a12c840ec3ce9a7f3b181be188ef711a1e\
                         984ce172b9216f419f445367456d5619314a42a3da86b001387bfdb80e0cfe42";
        assert_eq!(hex::encode(bytes), published);
    }

    proptest! {
        #[test]
        fn another_implementation_gives_the_same_bytes(key: [u8; 32], stream: u64, len in 0_usize..2000) {
            let (mut ours, mut theirs) = (vec![0; len], vec![0; len]);
            fill(&Digest(key), stream, &mut ours);
            let mut other = rand_chacha::ChaCha8Rng::from_seed(key);
            other.set_stream(stream);
            other.fill_bytes(&mut theirs);
            prop_assert_eq!(&ours, &theirs);
            let mut pieces = KeyStream::new(&Digest(key), stream);
            ours.fill(0);
            ours.chunks_mut(100).for_each(|piece| pieces.fill(piece));
            prop_assert_eq!(ours, theirs);
        }
    }
}
