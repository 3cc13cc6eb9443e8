//! The gateway as its users see it: real HTTP, a real Postgres, hosts that speak from
//! addresses of their own. One module per resource, as in the gateway itself.

mod auth;
mod balance;
mod cancel;
mod disputes;
mod enrol;
mod epochs;
mod health;
mod host_attacks;
mod host_life;
mod hosts;
mod images;
mod jobs;
mod keys;
mod logs;
mod miner;
mod offers;
mod openapi;
mod proofs;
mod quotes;
mod receipts;
mod requests;
mod serving;
mod setup;
mod signing;
mod verdicts;
