//! The text of a ticket: `nave1.<base64url of the payload>.<signature in hexadecimal>`.

use std::{fmt, str::FromStr};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};

use super::{
    enrol::{TICKET_BYTES_MAX, TicketPayload},
    keys::Signature,
};

/// What every ticket of this kind begins with.
const KIND: &str = "nave1";

/// A ticket: what its owner allows, and the owner's signature below it.
///
/// A value of this type has the right shape and plausible fields. Whether the hotkey
/// signed it, only `verify` says (feature `hotkey`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    payload: TicketPayload,
    bytes: Vec<u8>,
    signature: Signature,
}

/// Why a text is no ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTicket {
    /// Something else, or a piece of one.
    #[error("this is not a complete ticket; it begins with {KIND}. and ends with 128 hexadecimal digits")]
    Shape,
    /// Another kind of ticket.
    #[error("this ticket is of another version; upgrade")]
    Version,
    /// What it says cannot be used.
    #[error("the ticket cannot be used: {0}")]
    Payload(String),
    /// Its hotkey did not sign it.
    #[error("the ticket is not signed by its hotkey; make a new one with `nave miner ticket`")]
    Signature,
}

impl Ticket {
    /// Puts a ticket together. `bytes` are the payload as it was signed.
    ///
    /// # Errors
    /// [`BadTicket`] as for parsing.
    pub fn new(bytes: Vec<u8>, signature: Signature) -> Result<Self, BadTicket> {
        let payload: TicketPayload =
            serde_json::from_slice(&bytes).map_err(|error| BadTicket::Payload(error.to_string()))?;
        payload.check().map_err(BadTicket::Payload)?;
        Ok(Self { payload, bytes, signature })
    }

    /// What it allows.
    #[must_use]
    pub fn payload(&self) -> &TicketPayload {
        &self.payload
    }

    /// The payload exactly as it was transmitted.
    #[must_use]
    pub fn payload_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The hotkey's signature.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The bytes below which the signature stands.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        signed_bytes(&self.bytes)
    }
}

/// The bytes that the signature of a ticket with `payload` covers.
#[must_use]
pub fn signed_bytes(payload: &[u8]) -> Vec<u8> {
    [b"nave ticket 1\n", payload].concat()
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KIND}.{}.{}", BASE64_URL_SAFE_NO_PAD.encode(&self.bytes), self.signature)
    }
}

impl FromStr for Ticket {
    type Err = BadTicket;

    fn from_str(text: &str) -> Result<Self, BadTicket> {
        if text.len() > TICKET_BYTES_MAX {
            return Err(BadTicket::Shape);
        }
        let mut parts = text.split('.');
        let (Some(kind), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(BadTicket::Shape);
        };
        match kind.strip_prefix("nave") {
            Some("1") => {}
            Some(other) if !other.is_empty() && other.bytes().all(|byte| byte.is_ascii_digit()) => {
                return Err(BadTicket::Version);
            }
            Some(_) | None => return Err(BadTicket::Shape),
        }
        let signature = signature.parse().map_err(|_| BadTicket::Shape)?;
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(payload).map_err(|_| BadTicket::Shape)?;
        Self::new(bytes, signature)
    }
}
