//! Doubles of the clouds, and a ledger in memory. A double answers in its cloud's shapes and with its
//! faults, and keeps the truth: which machines there are, and what they have cost.

mod book;
mod fuse;
mod numbers;
mod shapes;
mod site;
mod wire;

pub use book::{Book, Journal};
pub use fuse::Fuse;
pub use numbers::Numbers;
pub use site::{Fault, Faults, Lie, Real, Site};
pub use wire::{Double, KEY, Wire};
