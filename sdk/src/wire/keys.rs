//! Public keys, signatures and random ids, as they are written in documents.
//!
//! Each has exactly one text form, lowercase and of fixed length, so that two texts
//! are equal when what they say is.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Text that is not a key, signature or id of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {form}")]
pub struct BadText {
    what: &'static str,
    form: &'static str,
}

macro_rules! fixed {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal, $form:literal, $write:path, $read:path) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&$write(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = BadText;

            fn from_str(text: &str) -> Result<Self, BadText> {
                let bytes: Option<[u8; $len]> = $read(text).and_then(|bytes| bytes.try_into().ok());
                bytes.map(Self).ok_or(BadText { what: $what, form: $form })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

fixed!(
    /// An Ed25519 public key: a market's, a release key's or an agent's.
    PublicKey, 32, "a public key", "64 lowercase hexadecimal digits", hex::encode, unhex
);
fixed!(
    /// A signature, Ed25519 or sr25519.
    Signature, 64, "a signature", "128 lowercase hexadecimal digits", hex::encode, unhex
);
fixed!(
    /// A number that a signed request uses once.
    Nonce, 16, "a nonce", "32 lowercase hexadecimal digits", hex::encode, unhex
);
fixed!(
    /// The random id of a ticket.
    TicketId, 16, "a ticket's id", "32 lowercase hexadecimal digits", hex::encode, unhex
);
fixed!(
    /// A SHA-256.
    Sha256, 32, "a SHA-256", "64 lowercase hexadecimal digits", hex::encode, unhex
);
fn unhex(text: &str) -> Option<Vec<u8>> {
    let plain = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    // Longer texts cannot be any of these and are not worth the memory.
    (text.len() <= 128 && text.bytes().all(plain)).then(|| hex::decode(text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_has_one_text_form_only() {
        let key = PublicKey([0xab; 32]);
        assert_eq!(key.to_string().parse(), Ok(key));
        assert!(key.to_string().to_uppercase().parse::<PublicKey>().is_err());
        assert!(format!("{key}00").parse::<PublicKey>().is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,140}", hex in "[0-9a-fA-F]{0,140}") {
            for text in [&text, &hex] {
                let _ = text.parse::<PublicKey>();
                if let Ok(signature) = text.parse::<Signature>() {
                    prop_assert_eq!(&signature.to_string(), text);
                }
            }
        }
    }
}
