//! What is signed, byte for byte, and Ed25519 (feature `sign`); hotkeys are in `crate::hotkey`.
//!
//! | What | Signed by | Bytes: lines joined by one line feed, none at the end |
//! |---|---|---|
//! | request | hotkey or agent key | `nave request 1`, market key, method, path with query, SHA-256 of the body, nonce, expiry |
//! | reply to an enrolment | market key | `nave reply 1`, signature of the request, status, SHA-256 of the body |
//! | ticket | hotkey | `nave ticket 1`, the payload as transmitted |
//! | release | release key | `nave release 1`, version, target, SHA-256, size |
//!
//! Keys, hashes, nonces and signatures are written in lowercase hexadecimal, times in
//! milliseconds since 1970. The first line keeps a signature for one purpose from
//! serving another. Hotkeys may also sign `<Bytes>`, these bytes, `</Bytes>`: wallets do.

use nave_domain::{Millis, Timestamp};
use serde::{Deserialize, Serialize};

pub use super::{
    keys::{Nonce, PublicKey, Sha256, Signature},
    ticket::signed_bytes as ticket_bytes,
};

/// Who signs: a hotkey as SS58 or an agent key.
pub const KEY_HEADER: &str = "nave-key";
/// A [`Nonce`].
pub const NONCE_HEADER: &str = "nave-nonce";
/// Until when the request may be carried out, in milliseconds since 1970.
pub const EXPIRY_HEADER: &str = "nave-expiry";
/// The [`Signature`] of a request.
pub const SIGNATURE_HEADER: &str = "nave-signature";
/// The market key's [`Signature`] of a reply.
pub const REPLY_SIGNATURE_HEADER: &str = "nave-reply-signature";
/// How far ahead an expiry may lie.
pub const EXPIRY_AHEAD_MAX: Millis = Millis(5 * 60_000);
/// The expiry a client chooses: room for clocks that differ.
pub const EXPIRY_AHEAD: Millis = Millis(2 * 60_000);

/// Longest value of [`KEY_HEADER`], in bytes.
const KEY_BYTES_MAX: usize = 64;

/// A request, as it is signed.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The market it is meant for.
    pub market: &'a PublicKey,
    /// `GET`, `POST`, …
    pub method: &'a str,
    /// Path and query as the API sees them, beginning with `/v1`.
    pub target: &'a str,
    /// SHA-256 of the body; of nothing where there is none.
    pub body: &'a Sha256,
}

impl Request<'_> {
    /// The bytes to sign.
    #[must_use]
    pub fn bytes(&self, nonce: &Nonce, expiry: Timestamp) -> Vec<u8> {
        let Self { market, method, target, body } = self;
        format!("nave request 1\n{market}\n{method}\n{target}\n{body}\n{nonce}\n{}", expiry.0).into_bytes()
    }
}

/// The bytes to sign of a reply.
#[must_use]
pub fn reply_bytes(request: &Signature, status: u16, body: &Sha256) -> Vec<u8> {
    format!("nave reply 1\n{request}\n{status}\n{body}").into_bytes()
}

/// The four headers of a signed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Who signs, as text.
    pub key: String,
    /// Used once.
    pub nonce: Nonce,
    /// Until when it counts.
    pub expiry: Timestamp,
    /// The signature.
    pub signature: Signature,
}

/// Why a request's signature does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadStamp {
    /// A header is missing.
    #[error("the header {0} is missing")]
    Missing(&'static str),
    /// A header is not what it should be.
    #[error("the header {0} cannot be read")]
    Malformed(&'static str),
    /// Its time has passed.
    #[error("the signature has expired; check the clocks of both machines")]
    Expired,
    /// It would count for too long.
    #[error("the signature expires more than five minutes from now; check the clocks of both machines")]
    TooLong,
    /// It does not fit.
    #[error("the signature does not fit key, market, method, path and body")]
    Signature,
}

impl Stamp {
    /// Reads the headers of a request; `header` gives the one value of a header.
    ///
    /// # Errors
    /// [`BadStamp`] that names the header.
    pub fn read<'a>(header: impl Fn(&'static str) -> Option<&'a str>) -> Result<Self, BadStamp> {
        let text = |name| header(name).ok_or(BadStamp::Missing(name));
        let key = text(KEY_HEADER)?;
        if key.is_empty()
            || key.len() > KEY_BYTES_MAX
            || !key.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            return Err(BadStamp::Malformed(KEY_HEADER));
        }
        Ok(Self {
            key: key.to_owned(),
            nonce: text(NONCE_HEADER)?.parse().map_err(|_| BadStamp::Malformed(NONCE_HEADER))?,
            expiry: unix_ms(text(EXPIRY_HEADER)?).ok_or(BadStamp::Malformed(EXPIRY_HEADER))?,
            signature: text(SIGNATURE_HEADER)?.parse().map_err(|_| BadStamp::Malformed(SIGNATURE_HEADER))?,
        })
    }

    /// The headers to send.
    #[must_use]
    pub fn headers(&self) -> [(&'static str, String); 4] {
        [
            (KEY_HEADER, self.key.clone()),
            (NONCE_HEADER, self.nonce.to_string()),
            (EXPIRY_HEADER, self.expiry.0.to_string()),
            (SIGNATURE_HEADER, self.signature.to_string()),
        ]
    }

    /// Refuses what has expired and what expires too late.
    ///
    /// # Errors
    /// [`BadStamp::Expired`], [`BadStamp::TooLong`].
    pub fn check_expiry(&self, now: Timestamp) -> Result<(), BadStamp> {
        if self.expiry <= now {
            return Err(BadStamp::Expired);
        }
        if self.expiry > now.after(EXPIRY_AHEAD_MAX) {
            return Err(BadStamp::TooLong);
        }
        Ok(())
    }

    /// The bytes that [`Stamp::signature`] covers.
    #[must_use]
    pub fn bytes(&self, request: &Request<'_>) -> Vec<u8> {
        request.bytes(&self.nonce, self.expiry)
    }
}

/// A time of at most 15 digits, without sign or leading zero: one text form only.
fn unix_ms(text: &str) -> Option<Timestamp> {
    let plain = text.len() <= 15 && text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    plain.then(|| text.parse().ok()).flatten().map(Timestamp)
}

/// A version of the agent, as the release key signs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Such as `0.2.0`: three numbers.
    pub version: String,
    /// What it runs on, such as `x86_64-linux`.
    pub target: String,
    /// SHA-256 of the program.
    pub sha256: Sha256,
    /// Its size in bytes.
    pub size: u64,
}

impl Release {
    /// Refuses texts that could make two releases sign the same.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        if self.number().is_none() {
            return Err("version: it is not three numbers such as 0.2.0".into());
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if self.target.is_empty() || self.target.len() > 64 || !self.target.bytes().all(plain) {
            return Err("target: it is not a platform such as x86_64-linux".into());
        }
        Ok(())
    }

    /// The version as numbers, to tell newer from older.
    #[must_use]
    pub fn number(&self) -> Option<[u32; 3]> {
        let mut parts = self.version.split('.').map(|part| {
            let plain =
                (part == "0" || !part.starts_with('0')) && part.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| part.parse().ok()).flatten()
        });
        let number = [parts.next()??, parts.next()??, parts.next()??];
        parts.next().is_none().then_some(number)
    }

    /// The bytes to sign.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let Self { version, target, sha256, size } = self;
        format!("nave release 1\n{version}\n{target}\n{sha256}\n{size}").into_bytes()
    }
}

/// A release with its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SignedRelease {
    /// What is signed.
    pub release: Release,
    /// The release key's signature.
    pub signature: Signature,
}

#[cfg(feature = "sign")]
mod ed25519;
#[cfg(feature = "sign")]
pub use self::ed25519::{BadSignature, KeyError, SecretKey, random, sha256};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp(1_790_000_000_000);

    fn stamp(expiry: Timestamp) -> Stamp {
        Stamp { key: "5Alice".into(), nonce: Nonce([1; 16]), expiry, signature: Signature([2; 64]) }
    }

    fn read(headers: &[(&'static str, String)]) -> Result<Stamp, BadStamp> {
        Stamp::read(|name| headers.iter().find(|(given, _)| *given == name).map(|(_, value)| value.as_str()))
    }

    #[test]
    fn the_signed_bytes_of_a_request_are_these() {
        let (market, body) = (PublicKey([0xab; 32]), Sha256([0xcd; 32]));
        let request =
            Request { market: &market, method: "GET", target: "/v1/miner/hosts?limit=1", body: &body };
        let expected = format!(
            "nave request 1\n{}\nGET\n/v1/miner/hosts?limit=1\n{}\n{}\n1790000000000",
            "ab".repeat(32),
            "cd".repeat(32),
            "01".repeat(16)
        );
        assert_eq!(stamp(NOW).bytes(&request), expected.as_bytes());
        let reply = format!("nave reply 1\n{}\n201\n{}", "02".repeat(64), "cd".repeat(32));
        assert_eq!(reply_bytes(&Signature([2; 64]), 201, &body), reply.as_bytes());
    }

    #[test]
    fn headers_are_read_as_they_are_written_and_a_missing_one_is_named() {
        let headers = stamp(NOW).headers();
        assert_eq!(read(&headers), Ok(stamp(NOW)));
        for (at, (name, _)) in headers.iter().enumerate() {
            let mut fewer = headers.to_vec();
            fewer.remove(at);
            assert_eq!(read(&fewer), Err(BadStamp::Missing(name)));
        }
    }

    #[test]
    fn a_signature_counts_for_five_minutes_at_most() {
        let expiring = |ms: i64| stamp(NOW.after(Millis(ms))).check_expiry(NOW);
        assert_eq!(
            (expiring(1), expiring(EXPIRY_AHEAD.0), expiring(EXPIRY_AHEAD_MAX.0)),
            (Ok(()), Ok(()), Ok(()))
        );
        assert_eq!((expiring(0), expiring(-1)), (Err(BadStamp::Expired), Err(BadStamp::Expired)));
        assert_eq!(expiring(EXPIRY_AHEAD_MAX.0 + 1), Err(BadStamp::TooLong));
    }

    fn release(version: &str, target: &str) -> Release {
        Release { version: version.into(), target: target.into(), sha256: Sha256([1; 32]), size: 7 }
    }

    #[test]
    fn a_release_has_three_numbers_and_no_line_breaks() {
        assert_eq!(release("0.12.3", "x86_64-linux").check(), Ok(()));
        for version in
            ["", "1", "1.2", "1.2.3.4", "1.2.3-rc", "01.2.3", "1.2.3\n", "1..3", "+1.2.3", "1.2.9999999999"]
        {
            assert!(release(version, "x86_64-linux").check().is_err(), "{version}");
        }
        assert!(release("1.2.3", "x86\n64").check().is_err());
        assert!(release("0.10.0", "x").number() > release("0.9.9", "x").number());
    }

    #[test]
    fn the_signed_bytes_of_a_release_are_these() {
        let expected = format!("nave release 1\n0.2.0\nx86_64-linux\n{}\n7", "01".repeat(32));
        assert_eq!(release("0.2.0", "x86_64-linux").bytes(), expected.as_bytes());
    }

    proptest! {
        #[test]
        fn no_header_makes_the_reader_panic(at in 0..4_usize, value in "\\PC{0,140}", digits in "[0-9]{0,30}") {
            for value in [value, digits] {
                let mut headers = stamp(NOW).headers();
                headers[at].1 = value;
                if let Ok(stamp) = read(&headers) {
                    // What is read has one form only: no two texts mean the same.
                    prop_assert_eq!(stamp.headers(), headers);
                }
            }
        }
    }
}
