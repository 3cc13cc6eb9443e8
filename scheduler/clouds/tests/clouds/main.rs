//! The clouds' doubles against the adapters and the keeper: shapes, faults, crashes, and what strangers send.

mod faults;
mod foreign;
mod market;
mod schedules;
mod shapes;
