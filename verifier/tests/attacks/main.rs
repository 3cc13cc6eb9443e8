//! Attacks on proofs of GPUs and of software, each beside an honest host, as
//! `docs/security/attacks.md` counts them.

#[path = "../verifying/market.rs"]
#[allow(dead_code, reason = "each of the tests uses its own part")]
mod market;

mod paced;
mod profiles;
mod software;
mod times;
mod trusted;
