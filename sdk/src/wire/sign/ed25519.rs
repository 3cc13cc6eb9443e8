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
