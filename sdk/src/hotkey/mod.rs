//! Hotkeys: sr25519 keys of the substrate family, as miners have them (feature `hotkey`).
//!
//! Signatures are Schnorr signatures over Ristretto255 with the context `substrate`,
//! as schnorrkel makes them.

#[cfg(feature = "wallet")]
pub mod keyfile;
pub mod ss58;
#[cfg(feature = "wallet")]
pub mod uri;

use std::{fmt, str::FromStr};

use nave_domain::Timestamp;
use schnorrkel::{Keypair, MiniSecretKey, signing_context};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use self::ss58::BadAddress;
use crate::wire::{
    enrol::TicketPayload,
    sign::{BadSignature, BadStamp, KEY_HEADER, Nonce, Request, Signature, Stamp},
    ticket::{self, BadTicket, Ticket},
};

/// What all signatures of the substrate family are made under.
const CONTEXT: &[u8] = b"substrate";

/// A hotkey's public part; as text an SS58 address with prefix 42.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hotkey(pub [u8; 32]);

impl fmt::Display for Hotkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&ss58::encode(&self.0))
    }
}

impl fmt::Debug for Hotkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hotkey({self})")
    }
}

impl FromStr for Hotkey {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        ss58::decode(text).map(Self)
    }
}

impl Serialize for Hotkey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hotkey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Hotkey {
    /// Checks a signature of `message`, or of `message` as wallets wrap it.
    ///
    /// # Errors
    /// [`BadSignature`].
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        let key = schnorrkel::PublicKey::from_bytes(&self.0).map_err(|_| BadSignature)?;
        let signature = schnorrkel::Signature::from_bytes(&signature.0).map_err(|_| BadSignature)?;
        let wrapped = [b"<Bytes>", message, b"</Bytes>"].concat();
        let fits = |message: &[u8]| key.verify_simple(CONTEXT, message, &signature).is_ok();
        if fits(message) || fits(&wrapped) { Ok(()) } else { Err(BadSignature) }
    }
}

/// A hotkey with its secret. It is never written anywhere.
pub struct HotkeySecret {
    pair: Keypair,
}

impl fmt::Debug for HotkeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HotkeySecret").field("hotkey", &self.hotkey()).finish_non_exhaustive()
    }
}

impl HotkeySecret {
    /// The key with this seed (a mini secret key, expanded as Ed25519 does).
    ///
    /// # Errors
    /// [`BadSignature`] never in practice: any 32 bytes are a seed.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, BadSignature> {
        let mini = MiniSecretKey::from_bytes(seed).map_err(|_| BadSignature)?;
        Ok(Self { pair: mini.expand_to_keypair(schnorrkel::ExpansionMode::Ed25519) })
    }

    /// The public part.
    #[must_use]
    pub fn hotkey(&self) -> Hotkey {
        Hotkey(self.pair.public.to_bytes())
    }

    /// Signs `message`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.pair.sign(signing_context(CONTEXT).bytes(message)).to_bytes())
    }

    /// Signs a request; the headers are [`Stamp::headers`].
    #[must_use]
    pub fn stamp(&self, request: &Request<'_>, nonce: Nonce, expiry: Timestamp) -> Stamp {
        let signature = self.sign(&request.bytes(&nonce, expiry));
        Stamp { key: self.hotkey().to_string(), nonce, expiry, signature }
    }

    /// Makes a ticket; its `hotkey` becomes this one.
    ///
    /// # Errors
    /// [`BadTicket`] for a payload that no market accepts.
    pub fn ticket(&self, payload: TicketPayload) -> Result<Ticket, BadTicket> {
        let payload = TicketPayload { hotkey: self.hotkey().to_string(), ..payload };
        let bytes = serde_json::to_vec(&payload).map_err(|error| BadTicket::Payload(error.to_string()))?;
        let signature = self.sign(&ticket::signed_bytes(&bytes));
        Ticket::new(bytes, signature)
    }
}

impl Stamp {
    /// The hotkey that signed `request`. Expiry and nonce are checked elsewhere.
    ///
    /// # Errors
    /// [`BadStamp`].
    pub fn verify_hotkey(&self, request: &Request<'_>) -> Result<Hotkey, BadStamp> {
        let key: Hotkey = self.key.parse().map_err(|_| BadStamp::Malformed(KEY_HEADER))?;
        key.verify(&self.bytes(request), &self.signature).map_err(|_| BadStamp::Signature)?;
        Ok(key)
    }
}

impl Ticket {
    /// The hotkey that signed this ticket. Expiry and market are checked elsewhere.
    ///
    /// # Errors
    /// [`BadTicket`].
    pub fn verify(&self) -> Result<Hotkey, BadTicket> {
        let read = self.payload().hotkey.parse();
        let hotkey: Hotkey =
            read.map_err(|error: BadAddress| BadTicket::Payload(format!("hotkey: {error}")))?;
        hotkey.verify(&self.signed_bytes(), self.signature()).map_err(|_| BadTicket::Signature)?;
        Ok(hotkey)
    }
}

#[cfg(all(test, feature = "wallet"))]
mod tests;
