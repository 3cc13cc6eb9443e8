//! The function whose repetition is the work of all proofs.
//!
//! A round multiplies 64 by 64 bits eight times and folds each 128-bit product to
//! half. Multipliers of this width are about equally fast, clock for clock, in all
//! server processors of the last decade, vector units and GPUs lack them, and one
//! state keeps a core's multiplier busy, so that running several at once gains
//! nothing. A hash with instructions of its own would be none of that; see
//! `docs/decisions/0014-first-proofs.md`.
//!
//! It is no cryptographic hash and need not be: what must be bound is bound by
//! SHA-256, this only has to take its time.

/// What a round works on: 64 bytes.
pub(crate) type State = [u64; 8];

/// The initial values of SHA-384, made odd.
const KEYS: State = [
    0xcbbb_9d5d_c105_9ed9,
    0x629a_292a_367c_d507,
    0x9159_015a_3070_dd17,
    0x152f_ecd8_f70e_5939,
    0x6733_2667_ffc0_0b31,
    0x8eb4_4a87_6858_1511,
    0xdb0c_2e0d_64f9_8fa7,
    0x47b5_481d_befa_4fa5,
];

/// The high half of the product, added without carry to the low one.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// One round: every word becomes a nonlinear function of four.
#[inline(always)]
pub(crate) fn round(state: &mut State) {
    let old = *state;
    for i in 0..8 {
        let (b, c, d) = (old[(i + 1) & 7], old[(i + 3) & 7], old[(i + 5) & 7]);
        let product = fold(old[i] ^ KEYS[i], b.rotate_left(29) ^ KEYS[(i + 3) & 7]);
        state[i] = product.wrapping_add(c) ^ d.rotate_left(17);
    }
}

/// `into ^= from`, word by word.
#[inline(always)]
pub(crate) fn add(into: &mut State, from: &[u64]) {
    for (word, other) in into.iter_mut().zip(from) {
        *word ^= other;
    }
}

/// A number below `count`, from all 64 bits of `word`.
#[inline(always)]
pub(crate) fn below(word: u64, count: u64) -> u64 {
    ((u128::from(word) * u128::from(count)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_the_input_reaches_every_word_in_three_rounds() {
        let from = |mut state: State| {
            (0..3).for_each(|_| round(&mut state));
            state
        };
        let base = from([7; 8]);
        for bit in 0..512 {
            let mut state = [7; 8];
            state[bit / 64] ^= 1 << (bit % 64);
            let changed = from(state);
            assert!(base.iter().zip(changed).all(|(a, b)| *a != b), "bit {bit}");
        }
    }
}
