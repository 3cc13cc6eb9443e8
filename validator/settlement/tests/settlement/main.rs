//! Settlement, seen from outside.

mod bundles;
mod golden;
mod properties;
mod python;
