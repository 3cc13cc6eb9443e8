//! The clouds' doubles against the adapters and the keeper: shapes, faults, and crashes.

mod faults;
mod local;
mod market;
mod schedules;
mod shapes;
