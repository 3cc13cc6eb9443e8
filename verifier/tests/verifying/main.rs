//! The verifying role on a real Postgres, with hosts that prove honestly and hosts that do not.

mod cheating;
mod claims;
mod crowd;
mod devices;
mod disputes;
mod killed;
mod market;
mod sessions;
mod silence;
mod slices;
mod transfers;
