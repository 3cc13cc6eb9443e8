//! SS58: a public key with a network's prefix and a checksum, in base 58.
//!
//! <https://docs.polkadot.com/polkadot-protocol/parachain-basics/accounts/#address-formats>

use blake2::{Blake2b512, Digest as _};

/// The prefix of addresses that are not bound to one network; Bittensor uses it.
const PREFIX: u8 = 42;

/// Text that is no address of a hotkey.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAddress {
    /// Not an address at all, or one of another length.
    #[error("this is no SS58 address of a 32-byte key, which begins with 5 and has 48 characters")]
    Malformed,
    /// A misspelt one.
    #[error("the checksum of this SS58 address is wrong; copy it again")]
    Checksum,
    /// One for another network.
    #[error("this SS58 address is for another network; the prefix must be 42, such addresses begin with 5")]
    Network,
}

/// The address of a public key.
#[must_use]
pub fn encode(key: &[u8; 32]) -> String {
    let body = [&[PREFIX], key.as_slice()].concat();
    bs58::encode([body.as_slice(), &checksum(&body)].concat()).into_string()
}

/// The public key of an address.
///
/// # Errors
/// [`BadAddress`].
pub fn decode(text: &str) -> Result<[u8; 32], BadAddress> {
    // The longest address of any network has 50 characters.
    if text.len() > 64 {
        return Err(BadAddress::Malformed);
    }
    let bytes = bs58::decode(text).into_vec().map_err(|_| BadAddress::Malformed)?;
    // Prefixes from 64 on take two bytes.
    let prefix = match bytes.first() {
        Some(0..64) => 1,
        Some(64..128) => 2,
        Some(_) | None => return Err(BadAddress::Malformed),
    };
    let (body, sum) = bytes.split_at_checked(prefix + 32).ok_or(BadAddress::Malformed)?;
    if sum.len() != 2 {
        return Err(BadAddress::Malformed);
    }
    if checksum(body) != sum {
        return Err(BadAddress::Checksum);
    }
    match body {
        [PREFIX, key @ ..] => key.try_into().map_err(|_| BadAddress::Malformed),
        _ => Err(BadAddress::Network),
    }
}

fn checksum(body: &[u8]) -> [u8; 2] {
    let hash = Blake2b512::new().chain_update(b"SS58PRE").chain_update(body).finalize();
    [hash[0], hash[1]]
}
