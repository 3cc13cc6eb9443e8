//! Named lines at which a process can be killed, to test that it may be killed there.
//!
//! A test puts a file named like a point into the directory that `NAVE_CRASH_POINTS` names.
//! The process that reaches the point next removes the file, which claims it, and is gone at
//! once, as by `kill -9`. Release builds have no such lines.

mod points;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::OnceLock,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub use points::POINTS;

/// Names the directory of the points that are armed.
pub const VARIABLE: &str = "NAVE_CRASH_POINTS";

/// Kills this process here if the point is armed. The name stands in [`POINTS`].
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {{
        const { assert!($crate::is_point($name), "add this crash point to POINTS") };
        $crate::reach($name);
    }};
}

/// Whether a name stands in [`POINTS`].
#[must_use]
pub const fn is_point(name: &str) -> bool {
    let mut at = 0;
    while at < POINTS.len() {
        if equal(POINTS[at].as_bytes(), name.as_bytes()) {
            return true;
        }
        at += 1;
    }
    false
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

/// What [`crash_point!`] does at its line.
pub fn reach(name: &str) {
    static ARMED: OnceLock<Option<PathBuf>> = OnceLock::new();
    if cfg!(debug_assertions)
        && let Some(dir) = ARMED.get_or_init(|| env::var_os(VARIABLE).map(PathBuf::from))
        && claim(dir, name)
    {
        die();
    }
}

/// Only one process gets to remove a file.
fn claim(dir: &Path, name: &str) -> bool {
    fs::remove_file(dir.join(name)).is_ok()
}

fn die() -> ! {
    let _ = kill(Pid::this(), Signal::SIGKILL);
    // Not reached: a process does not outlive its own SIGKILL.
    process::abort()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::Command};

    use super::*;

    const HERE: &str = "store.job_submit.before_commit";

    #[test]
    fn a_point_that_is_not_armed_is_passed() {
        crash_point!("store.job_submit.before_commit");
    }

    #[test]
    fn every_name_stands_once_and_says_role_deed_and_moment() {
        for (at, name) in POINTS.iter().enumerate() {
            assert!(is_point(name) && !POINTS[..at].contains(name), "{name}");
            assert_eq!(name.split('.').count(), 3, "{name}");
        }
        assert!(!is_point("store.job_submit"));
    }

    #[test]
    fn an_armed_point_kills_the_process_that_reaches_it_and_no_other() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(HERE), "").expect("arm");
        let again = |name| {
            let mut test = Command::new(env::current_exe().expect("this program"));
            test.args(["--exact", name]).env(VARIABLE, dir.path()).output().expect("run").status
        };
        let name = "tests::a_point_that_is_not_armed_is_passed";
        assert_eq!(again(name).signal(), Some(9));
        assert!(again(name).success(), "the point was claimed by the process before");
    }
}
