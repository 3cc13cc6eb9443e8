//! Scheduling: the planner and the watch as pure functions, and the role on a real Postgres.

mod fractions;
mod looks;
mod planner;
mod properties;
mod role;
mod supply;
mod turns;
mod watch;
mod wishes;
