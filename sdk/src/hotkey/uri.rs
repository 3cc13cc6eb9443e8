//! Secret URIs: `phrase//hard/soft///password`, as the substrate family writes keys.
//!
//! The phrase is a mnemonic of BIP-39 words, or `0x` and a seed in hexadecimal; left out, it
//! is the phrase of the public development keys, so that `//Alice` means the same everywhere.
//! Nothing at all is no key: an empty file or variable must not sign as somebody everybody is.

use std::num::NonZeroU32;

use bip39::{Language, Mnemonic};
use blake2::{Blake2b, Digest as _, digest::consts::U32};
use ring::pbkdf2;
use schnorrkel::{
    ExpansionMode, Keypair, MiniSecretKey, SecretKey,
    derive::{ChainCode, Derivation as _},
};
use zeroize::Zeroizing;

use super::HotkeySecret;

/// The phrase behind `//Alice`; everybody knows it.
const DEV_PHRASE: &str = "bottom drive obey lake curtain smoke basket hold race lonely fit walk";
/// How often the phrase is hashed.
const ROUNDS: NonZeroU32 = NonZeroU32::MIN.saturating_add(2047);

/// Text that is no secret URI. It never quotes the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadUri {
    /// There is nothing.
    #[error("there is nothing in it")]
    Empty,
    /// The words are not a mnemonic.
    #[error("the phrase is not a mnemonic of 12 to 24 English words with a right checksum")]
    Phrase,
    /// The seed is not one.
    #[error("the seed is not 0x and 64 hexadecimal digits")]
    Seed,
    /// The path is not one.
    #[error("the derivation path is not made of /soft and //hard parts")]
    Path,
}

/// Whether a URI stands for a development key, which is no secret.
#[must_use]
pub fn is_public(uri: &str) -> bool {
    uri.starts_with('/')
}

impl HotkeySecret {
    /// The key of a secret URI.
    ///
    /// # Errors
    /// [`BadUri`].
    pub fn from_uri(uri: &str) -> Result<Self, BadUri> {
        let (rest, password) = uri.split_once("///").unwrap_or((uri, ""));
        let (phrase, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if phrase.trim().is_empty() && path.is_empty() {
            return Err(BadUri::Empty);
        }
        let root = match (phrase.trim(), phrase.trim().strip_prefix("0x")) {
            ("", _) => of_phrase(DEV_PHRASE, password)?,
            (_, Some(seed)) => of_seed(seed)?,
            (phrase, None) => of_phrase(phrase, password)?,
        };
        let secret = junctions(path)?.into_iter().fold(expand(&root), |secret, junction| match junction {
            Junction::Hard(code) => expand(&secret.hard_derive_mini_secret_key(Some(ChainCode(code)), b"").0),
            Junction::Soft(code) => secret.derived_key_simple(ChainCode(code), b"").0,
        });
        Ok(Self { pair: Keypair::from(secret) })
    }
}

fn expand(mini: &MiniSecretKey) -> SecretKey {
    mini.expand(ExpansionMode::Ed25519)
}

fn of_seed(hex: &str) -> Result<MiniSecretKey, BadUri> {
    let bytes = Zeroizing::new(hex::decode(hex).map_err(|_| BadUri::Seed)?);
    MiniSecretKey::from_bytes(&bytes).map_err(|_| BadUri::Seed)
}

/// The seed of a mnemonic. Unlike BIP-39 it is made from the entropy, not from the words.
fn of_phrase(words: &str, password: &str) -> Result<MiniSecretKey, BadUri> {
    let mnemonic = Mnemonic::parse_in(Language::English, words).map_err(|_| BadUri::Phrase)?;
    let entropy = Zeroizing::new(mnemonic.to_entropy());
    let salt = Zeroizing::new(format!("mnemonic{password}"));
    let mut seed = Zeroizing::new([0; 64]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, ROUNDS, salt.as_bytes(), &entropy, seed.as_mut());
    MiniSecretKey::from_bytes(&seed[..32]).map_err(|_| BadUri::Phrase)
}

/// One step of a derivation.
#[derive(Debug, PartialEq, Eq)]
enum Junction {
    Hard([u8; 32]),
    Soft([u8; 32]),
}

fn junctions(path: &str) -> Result<Vec<Junction>, BadUri> {
    let mut found = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        let (hard, name) = match (rest.strip_prefix("//"), rest.strip_prefix('/')) {
            (Some(name), _) => (true, name),
            (None, Some(name)) => (false, name),
            (None, None) => return Err(BadUri::Path),
        };
        let (name, after) = name.split_at(name.find('/').unwrap_or(name.len()));
        if name.is_empty() {
            return Err(BadUri::Path);
        }
        let code = chain_code(name);
        found.push(if hard { Junction::Hard(code) } else { Junction::Soft(code) });
        rest = after;
    }
    Ok(found)
}

/// A part of a path as SCALE writes it, hashed where that is too long: numbers as 64 bits,
/// texts behind their length.
fn chain_code(name: &str) -> [u8; 32] {
    let bytes = match name.parse::<u64>() {
        Ok(number) => number.to_le_bytes().to_vec(),
        Err(_) => [&compact(name.len()), name.as_bytes()].concat(),
    };
    let mut code = [0; 32];
    match code.get_mut(..bytes.len()) {
        Some(begin) => begin.copy_from_slice(&bytes),
        None => code.copy_from_slice(&Blake2b::<U32>::digest(&bytes)),
    }
    code
}

/// A length in SCALE's compact form. Paths are short: beyond 2³⁰ it would be cut off.
fn compact(len: usize) -> Vec<u8> {
    let len = u32::try_from(len).unwrap_or(u32::MAX >> 2);
    match len {
        0..0x40 => vec![(len as u8) << 2],
        0x40..0x4000 => ((len as u16) << 2 | 1).to_le_bytes().to_vec(),
        _ => (len << 2 | 2).to_le_bytes().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(uri: &str) -> String {
        HotkeySecret::from_uri(uri).expect("a URI").hotkey().to_string()
    }

    /// The development keys as Substrate's documentation and `subkey inspect` list them.
    #[test]
    fn the_development_keys_are_those_everybody_knows() {
        let known = [
            (DEV_PHRASE, "5DfhGyQdFobKM8NsWvEeAKk5EQQgYe9AydgJ7rMB6E1EqRzV"),
            ("//Alice", "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"),
            ("//Bob", "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty"),
            ("//Charlie", "5FLSigC9HGRKVhB9FiEo4Y3koPsNmBmLJbpXg2mp1hXcS59Y"),
            ("//Alice//stash", "5GNJqTPyNqANBkUVMN1LPPrxXnFouWXoe2wNSmmEoLctxiZY"),
        ];
        for (uri, expected) in known {
            assert_eq!(address(uri), expected, "{uri}");
        }
    }

    /// From the tests of `@polkadot/wasm-crypto`: seed, chain code `foo`, derived key.
    #[test]
    fn soft_and_hard_derivation_agree_with_other_implementations() {
        let seed = "0xfac7959dbfe72f052e5a0c3c8d6530f202b02fd8f9f5ca3580ec8deb7797479e";
        let soft = HotkeySecret::from_uri(&format!("{seed}/foo")).expect("a URI").hotkey();
        assert_eq!(hex::encode(soft.0), "40b9675df90efa6069ff623b0fdfcf706cd47ca7452a5056c7ad58194d23440a");
        assert_eq!(chain_code("foo")[..4], [0x0c, b'f', b'o', b'o']);
        assert_eq!(address(seed), address(DEV_PHRASE));
        assert_eq!(address(&format!("{seed}//Alice")), address("//Alice"));
        assert_eq!(address(&format!("{DEV_PHRASE}//Alice")), address("//Alice"));
    }

    #[test]
    fn a_password_and_a_number_give_other_keys() {
        let keys = ["//Alice", "//Alice///secret", "//0", "//1", "/0", "//00"].map(address);
        let different: std::collections::BTreeSet<_> = keys.iter().collect();
        // The numbers 0 and 00 are the same number.
        assert_eq!(different.len(), 5);
    }

    #[test]
    fn a_misspelt_phrase_is_refused_and_never_quoted() {
        let typo = DEV_PHRASE.replace("walk", "wall");
        let error = HotkeySecret::from_uri(&typo).expect_err("a wrong checksum");
        assert_eq!(error, BadUri::Phrase);
        assert!(!error.to_string().contains("bottom"));
        assert_eq!(HotkeySecret::from_uri("0x12").expect_err("short"), BadUri::Seed);
        assert_eq!(HotkeySecret::from_uri("//Alice/").expect_err("a hole"), BadUri::Path);
    }

    #[test]
    fn nothing_is_no_key() {
        for uri in ["", "  ", "\n", "///", "///password"] {
            assert_eq!(HotkeySecret::from_uri(uri).expect_err("nothing"), BadUri::Empty, "{uri:?}");
        }
    }

    #[test]
    fn long_names_are_measured_and_hashed_as_scale_does() {
        assert_eq!(
            (compact(0x3f), compact(0x40), compact(0x4000)),
            (vec![0xfc], vec![1, 1], vec![2, 0, 1, 0])
        );
        assert_ne!(chain_code(&"x".repeat(31))[..2], chain_code(&"x".repeat(32))[..2]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,80}", path in "(/{1,3}[a-z0-9é]{0,70}){0,3}") {
            let _ = HotkeySecret::from_uri(&text);
            let _ = HotkeySecret::from_uri(&path);
        }
    }
}
