//! The boot clock: it counts through suspension and starts anew with the machine.

use std::path::Path;

use anyhow::Context as _;
use nave_domain::Millis;
use nix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine started, suspended time included.
///
/// # Panics
/// Never on Linux 2.6.39 or later, which has this clock.
#[must_use]
pub fn now() -> Millis {
    let at = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has a boot clock");
    Millis(at.tv_sec().saturating_mul(1_000).saturating_add(at.tv_nsec() / 1_000_000))
}

/// Names this run of the kernel; times of another run mean nothing in this one.
///
/// # Errors
/// When /proc is not mounted.
pub fn boot_id() -> anyhow::Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).context("read the boot id from /proc")?;
    Ok(text.trim().to_owned())
}
