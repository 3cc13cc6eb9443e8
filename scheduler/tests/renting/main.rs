//! Machines that are rented from doubles of clouds, with their rows in a real Postgres.

mod rows;
mod schedules;
