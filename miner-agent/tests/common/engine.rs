//! A Docker Engine of a test's own, which gives containers GPUs that were made up.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::Duration,
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The GPU that the NVML made for tests lists.
pub const GPU: &str = "GPU-e0e0e0e0-e0e0-e0e0-e0e0-e0e0e0e0e000";
/// Its program that gives GPUs to containers, where it has one.
const HOOK: &str = "nvidia-container-runtime-hook";

/// The table that an agent with this prefix loads; it is gone with this.
pub struct Table(pub &'static str);

impl Drop for Table {
    fn drop(&mut self) {
        let table = format!("nave_{}", self.0);
        // An agent that never came so far has none.
        let _ = Command::new("nft").args(["delete", "table", "inet", &table]).output();
    }
}

/// An engine that ends with this.
pub struct Engine {
    dir: TempDir,
    child: Child,
}

impl Engine {
    /// Starts one, which can give GPUs to containers or cannot.
    pub fn start(gives_gpus: bool) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).expect("a directory");
        if gives_gpus {
            let hook = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/doubles").join(HOOK);
            symlink(hook, bin.join(HOOK)).expect("a link");
        }
        let path = |name: &str| dir.path().join(name);
        let child = Command::new("dockerd")
            .env(
                "PATH",
                format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()),
            )
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("pid"))
            .arg(format!("--host=unix://{}", path("socket").display()))
            .args(["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none"])
            .stderr(File::create(path("log")).expect("a file"))
            .spawn()
            .expect("dockerd is missing: scripts/install installs it (Debian's package docker.io)");
        let engine = Self { dir, child };
        engine.give(&[], &[]);
        for _ in 0..400 {
            if std::os::unix::net::UnixStream::connect(engine.socket()).is_ok() {
                return engine;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("{}", fs::read_to_string(engine.dir.path().join("log")).unwrap_or_default());
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Says what containers with GPUs get: device files, each with the number of another, and libraries.
    pub fn give(&self, files: &[(&str, (u32, u32))], libraries: &[&Path]) {
        let files: serde_json::Map<String, Value> =
            files.iter().map(|(name, number)| ((*name).to_owned(), json!(number))).collect();
        let given = json!({ "uuid": GPU, "files": files, "libraries": libraries });
        fs::write(self.dir.path().join("hook.json"), given.to_string()).expect("written");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
        // What it leaves mounted keeps its directory from going.
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
        let mut left: Vec<&Path> = points.filter(|point| point.starts_with(self.dir.path())).collect();
        left.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
        for point in left {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
}

/// An NVML that lists [`GPU`], and a library that is called as CUDA's, in this directory.
pub fn libraries(dir: &Path) -> [PathBuf; 2] {
    let nvml = Path::new(env!("CARGO_MANIFEST_DIR")).join("prover/kernels/emulation/nvml.cpp");
    let (cuda, [made_nvml, made_cuda]) =
        (dir.join("cuda.cpp"), ["libnvidia-ml.so.1", "libcuda.so.1"].map(|name| dir.join(name)));
    fs::write(&cuda, "extern \"C\" int cuInit(unsigned) { return 0; }\n").expect("written");
    for (source, library) in [(&nvml, &made_nvml), (&cuda, &made_cuda)] {
        // Nothing but the C library is in every process.
        let mut compiler = Command::new("g++");
        compiler.args(["-std=c++17", "-shared", "-fPIC", "-static-libgcc", "-static-libstdc++"]);
        let done = compiler.arg(source).arg("-o").arg(library).status();
        assert!(done.expect("g++ is missing: scripts/install installs it (Debian's package g++)").success());
    }
    [made_nvml, made_cuda]
}
