//! What stands in for a GPU's driver and for MPS.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nave_domain::{
    Bytes, MilliGpu,
    fraction::{Fraction, Share, Tenant},
};
use nave_miner_agent::share::{Held, MARK, mps::Means};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use uuid::Uuid;

/// The one device. An engine has nothing to give for it, and everything else is as for others.
pub const DEVICE: &str = "SIM-1";

/// Programs in a directory of their own, which say there what they were told.
pub struct Doubles {
    dir: PathBuf,
}

impl Doubles {
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("a directory");
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/doubles");
        for program in ["mps-control", "nave-prover"] {
            symlink(own.join(program), dir.join(program)).expect("a link");
        }
        let doubles = Self { dir: dir.to_owned() };
        fs::write(doubles.dir.join("said"), "").expect("written");
        fs::write(
            doubles.dir.join("devices"),
            format!(r#"{{"devices":[{{"uuid":"{DEVICE}","model":"any","vram":{},"driver":"1","simulated":true}}]}}"#, 80_i64 << 30),
        )
        .expect("written");
        doubles.hold(&[]);
        doubles
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn means(&self) -> Means {
        let launcher = env!("CARGO_BIN_EXE_miner-agent").into();
        let (control, prover) = (self.path("mps-control"), self.path("nave-prover"));
        let silence_max = Duration::from_secs(1);
        Means { control, launcher, prover, wanted: true, user: 4_242, silence_max }
    }

    /// What was said to the programs, and by them, since this was asked last.
    pub fn said(&self) -> Vec<String> {
        let said = fs::read_to_string(self.path("said")).expect("readable");
        fs::write(self.path("said"), "").expect("written");
        said.lines().filter(|line| !line.starts_with("get_")).map(str::to_owned).collect()
    }

    /// Whether this is in what was said since [`Self::said`].
    pub fn has_said(&self, what: &str) -> bool {
        fs::read_to_string(self.path("said")).expect("readable").contains(what)
    }

    /// Has the driver say from now on that these processes hold that much.
    pub fn hold(&self, held: &[(u32, i64)]) {
        let held = held.iter().map(|(pid, bytes)| Held {
            device: DEVICE.into(),
            pid: *pid,
            bytes: bytes.unsigned_abs(),
        });
        let line = serde_json::json!({ "holders": held.collect::<Vec<_>>() });
        // At once, since it is read all the time.
        fs::write(self.path("holders.next"), format!("{line}\n")).expect("written");
        fs::rename(self.path("holders.next"), self.path("holders")).expect("renamed");
    }

    /// The processes of daemons below `data`.
    pub fn processes(data: &Path) -> Vec<Pid> {
        let prefix = [MARK, "=", &data.to_string_lossy()].concat();
        let entries = fs::read_dir("/proc").expect("processes").flatten();
        let found = entries.filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let text = String::from_utf8_lossy(&environment).into_owned();
            text.split('\0').any(|variable| variable.starts_with(&prefix)).then_some(Pid::from_raw(pid))
        });
        found.collect()
    }

    /// Kills the processes of daemons below `data`, and waits a while until they are gone.
    pub fn kill_all(data: &Path) {
        for _ in 0..500 {
            let left = Self::processes(data);
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = kill(pid, Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends what a failed test has left below `data`.
    pub fn clear(data: &Path) {
        Self::kill_all(data);
        for entry in fs::read_dir(data.join("mps")).into_iter().flatten().flatten() {
            let _ = umount2(&entry.path().join("shm"), MntFlags::MNT_DETACH);
        }
    }
}

/// A share of 125 thousandths and so much memory.
pub fn share(tenant: u128, gib: i64) -> Share {
    let fraction = Fraction { milli: MilliGpu(125), vram: Bytes(gib * Bytes::GIB) };
    Share { fraction, tenant: Tenant(Uuid::from_u128(tenant)) }
}
