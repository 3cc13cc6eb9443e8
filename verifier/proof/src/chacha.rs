//! ChaCha with 8 rounds, as Bernstein laid it out: a counter and a stream of 64 bits each.

use chacha20::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};

use crate::Digest;

/// Fills `bytes` with the beginning of a key's stream.
pub(crate) fn fill(key: &Digest, stream: u64, bytes: &mut [u8]) {
    let mut key_stream = ChaCha8Rng::from_seed(key.0);
    key_stream.set_stream(stream);
    key_stream.fill_bytes(bytes);
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
            prop_assert_eq!(ours, theirs);
        }
    }
}
