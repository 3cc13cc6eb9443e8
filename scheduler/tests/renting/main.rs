//! Machines that are rented from doubles of clouds, with their rows in a real Postgres.

mod prices;
mod boot;
mod role;
mod rows;
mod schedules;
