//! What verdicts rest on beside evidence: the classes of devices, and the floors of software and disks.
//!
//! Both are data that is checked in and part of the program. Everything here is a function of its
//! arguments, so whoever has what was shown reaches the same verdict: the verifier, and everyone else.

pub mod calibrate;
pub mod catalogue;
pub mod class;
pub mod floors;
mod judge;
pub mod shadow;
pub mod size;

pub use judge::{judge, judge_devices};
