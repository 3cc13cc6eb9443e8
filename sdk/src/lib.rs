//! What programs need to talk to a Nave market.

pub mod wire;
