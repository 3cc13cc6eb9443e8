//! What programs need to talk to a Nave market: [`wire`] types and, with the
//! feature `client`, a [`client`] for them.

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "hotkey")]
pub mod hotkey;
pub mod wire;
