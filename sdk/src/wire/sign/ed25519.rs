//! Ed25519 (RFC 8032), as ring does it.

use std::fmt;

use nave_domain::Timestamp;
use ring::{
    digest,
    rand::{SecureRandom as _, SystemRandom},
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};

use super::{BadStamp, Nonce, PublicKey, Request, Sha256, Signature, SignedRelease, Stamp, reply_bytes};

/// A signature that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not fit")]
pub struct BadSignature;

/// No key can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    NoRandomness,
    /// This is no secret key.
    #[error("a secret key is 64 lowercase hexadecimal digits")]
    Malformed,
}

/// Random bytes, fit for keys.
///
/// # Errors
/// [`KeyError::NoRandomness`].
pub fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| KeyError::NoRandomness)?;
    Ok(bytes)
}

/// The SHA-256 of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Sha256 {
    let mut hash = Sha256([0; 32]);
    hash.0.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

/// An Ed25519 secret key: a market's, a release key or an agent's.
pub struct SecretKey {
    seed: [u8; 32],
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").field("public", &self.public).finish_non_exhaustive()
    }
}

impl SecretKey {
    /// A new one.
    ///
    /// # Errors
    /// [`KeyError::NoRandomness`].
    pub fn generate() -> Result<Self, KeyError> {
        Self::from_seed(random()?)
    }

    /// The key with this seed.
    ///
    /// # Errors
    /// [`KeyError::Malformed`].
    pub fn from_seed(seed: [u8; 32]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| KeyError::Malformed)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| KeyError::Malformed)?;
        Ok(Self { seed, pair, public: PublicKey(public) })
    }

    /// Reads [`SecretKey::reveal`]; a line break at the end is fine.
    ///
    /// # Errors
    /// [`KeyError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let seed: Sha256 = text.trim_end().parse().map_err(|_| KeyError::Malformed)?;
        Self::from_seed(seed.0)
    }

    /// The seed as text, for the file that keeps it and for nothing else.
    #[must_use]
    pub fn reveal(&self) -> String {
        hex::encode(self.seed)
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs `message`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Signature {
        let mut signature = Signature([0; 64]);
        signature.0.copy_from_slice(self.pair.sign(message).as_ref());
        signature
    }

    /// Signs a request; the headers are [`Stamp::headers`].
    #[must_use]
    pub fn stamp(&self, request: &Request<'_>, nonce: Nonce, expiry: Timestamp) -> Stamp {
        let signature = self.sign(&request.bytes(&nonce, expiry));
        Stamp { key: self.public.to_string(), nonce, expiry, signature }
    }

    /// Signs the reply to the request that carries `request` as its signature.
    #[must_use]
    pub fn sign_reply(&self, request: &Signature, status: u16, body: &[u8]) -> Signature {
        self.sign(&reply_bytes(request, status, &sha256(body)))
    }
}

impl PublicKey {
    /// Checks a signature of `message`.
    ///
    /// # Errors
    /// [`BadSignature`].
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, &signature.0).map_err(|_| BadSignature)
    }

    /// Checks the signature of a reply.
    ///
    /// # Errors
    /// [`BadSignature`].
    pub fn verify_reply(
        &self,
        request: &Signature,
        status: u16,
        body: &[u8],
        signature: &Signature,
    ) -> Result<(), BadSignature> {
        self.verify(&reply_bytes(request, status, &sha256(body)), signature)
    }
}

impl Stamp {
    /// The agent key that signed `request`. Expiry and nonce are checked elsewhere.
    ///
    /// # Errors
    /// [`BadStamp`].
    pub fn verify_agent(&self, request: &Request<'_>) -> Result<PublicKey, BadStamp> {
        let key: PublicKey = self.key.parse().map_err(|_| BadStamp::Malformed(super::KEY_HEADER))?;
        key.verify(&self.bytes(request), &self.signature).map_err(|_| BadStamp::Signature)?;
        Ok(key)
    }
}

impl SignedRelease {
    /// Checks that `key` signed it.
    ///
    /// # Errors
    /// [`BadSignature`], also where the release's fields are not as they should be.
    pub fn verify(&self, key: &PublicKey) -> Result<(), BadSignature> {
        self.release.check().map_err(|_| BadSignature)?;
        key.verify(&self.release.bytes(), &self.signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SecretKey {
        SecretKey::from_seed([7; 32]).expect("a key")
    }

    /// RFC 8032, section 7.1, test 2.
    #[test]
    fn keys_and_signatures_are_those_of_the_standard() {
        let seed = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb";
        let key = SecretKey::parse(&format!("{seed}\n")).expect("a key");
        assert_eq!(key.reveal(), seed);
        let public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
        assert_eq!(key.public().to_string(), public);
        let signature = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
                         085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
        assert_eq!(key.sign(&[0x72]).to_string(), signature);
        assert_eq!(key.public().verify(&[0x72], &key.sign(&[0x72])), Ok(()));
    }

    #[test]
    fn a_reply_fits_its_request_status_and_body_only() {
        let (asked, other) = (Signature([1; 64]), Signature([2; 64]));
        let signature = key().sign_reply(&asked, 200, b"{}");
        let check = |asked, status, body: &[u8]| key().public().verify_reply(asked, status, body, &signature);
        assert_eq!(check(&asked, 200, b"{}"), Ok(()));
        for refused in [check(&other, 200, b"{}"), check(&asked, 409, b"{}"), check(&asked, 200, b"{ }")] {
            assert_eq!(refused, Err(BadSignature));
        }
        let stranger = SecretKey::generate().expect("a key").public();
        assert_eq!(stranger.verify_reply(&asked, 200, b"{}", &signature), Err(BadSignature));
    }

    #[test]
    fn an_agents_request_names_its_key() {
        let (market, body) = (PublicKey([1; 32]), sha256(b"{}"));
        let request = Request { market: &market, method: "POST", target: "/v1/enrolments", body: &body };
        let stamp = key().stamp(&request, Nonce([3; 16]), Timestamp(1));
        assert_eq!(stamp.verify_agent(&request), Ok(key().public()));
        let forged = Stamp { key: SecretKey::generate().expect("a key").public().to_string(), ..stamp };
        assert_eq!(forged.verify_agent(&request), Err(BadStamp::Signature));
    }

    #[test]
    fn a_release_signed_by_another_key_is_refused() {
        let release = super::super::Release {
            version: "0.2.0".into(),
            target: "x86_64-linux".into(),
            sha256: sha256(b"agent"),
            size: 5,
        };
        let signed = SignedRelease { signature: key().sign(&release.bytes()), release };
        assert_eq!(signed.verify(&key().public()), Ok(()));
        assert_eq!(signed.verify(&SecretKey::generate().expect("a key").public()), Err(BadSignature));
        let mut newer = signed;
        newer.release.version = "0.3.0".into();
        assert_eq!(newer.verify(&key().public()), Err(BadSignature));
    }

    #[test]
    fn a_debug_text_never_shows_the_secret() {
        assert!(!format!("{:?}", key()).contains(&key().reveal()));
    }
}
