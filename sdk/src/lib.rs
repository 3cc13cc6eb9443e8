//! What programs need to talk to a Nave market: [`wire`] types and, with the
//! feature `client`, a [`client`] for them.

#[cfg(feature = "client")]
pub mod client;
pub mod earnings;
pub mod explain;
#[cfg(feature = "hotkey")]
pub mod hotkey;
#[cfg(feature = "judge")]
pub mod judging;
pub mod wire;
