//! Machines that are rented from doubles of clouds, with their rows in a real Postgres.

mod boot;
mod offers;
mod prices;
mod role;
mod rows;
mod schedules;
