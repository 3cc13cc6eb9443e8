//! The store on a real Postgres: one module per aggregate, one database per test.
//!
//! Every test runs in [`market::open`], which audits the books when it is over.

mod apart;
mod baseline;
mod batch;
mod blob;
mod cancel;
mod challenge;
mod class_use;
mod clock;
mod cloud;
mod collateral;
mod dispute;
mod doubt;
mod enrol;
mod epoch;
mod event;
mod fence;
mod group;
mod held;
mod host;
mod key;
mod lease;
mod ledger;
mod log;
mod market;
mod mesh;
mod miner;
mod place;
mod quote;
mod release;
mod rent;
mod requeue;
mod resting;
mod schema;
mod settle;
mod standby;
mod storm;
mod submit;
mod transfer;
mod verdict;
mod wait;
