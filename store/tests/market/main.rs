//! The store on a real Postgres: one module per aggregate, one database per test.
//!
//! Every test runs in [`market::open`], which audits the books when it is over.

mod blob;
mod cancel;
mod clock;
mod epoch;
mod fence;
mod group;
mod host;
mod key;
mod lease;
mod ledger;
mod log;
mod market;
mod place;
mod requeue;
mod storm;
mod submit;
mod wait;
