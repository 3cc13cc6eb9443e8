//! Whether a command heeds SIGTERM.
//!
//! The first process of a container is the first of its PID namespace, and the kernel drops
//! every signal to it that it does not catch. Waiting a grace for one that was dropped is
//! waiting for nothing.

use std::fs;

/// SIGTERM's bit in a signal mask.
const SIGTERM_BIT: u64 = 1 << 14;

/// Whether a process catches SIGTERM, as far as the kernel can say; yes in doubt.
#[must_use]
pub fn is_caught_by(pid: i64) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status")).map_or(true, |status| is_caught_in(&status))
}

fn is_caught_in(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_none_or(|mask| mask & SIGTERM_BIT != 0)
}

#[cfg(test)]
mod tests {
    use super::is_caught_in;

    #[test]
    fn the_kernels_mask_tells_and_doubt_means_yes() {
        assert!(!is_caught_in("Name:\tsleep\nSigCgt:\t0000000000000000\nCapInh:\t0\n"));
        assert!(!is_caught_in("SigCgt:\t0000000000000002\n"), "only SIGINT");
        assert!(is_caught_in("SigCgt:\t0000000000004002\n"));
        assert!(is_caught_in("SigCgt:\tx\n") && is_caught_in(""));
    }
}
