//! Where things are in a market's directory.

use std::{
    env, fs,
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::unistd::Uid;

/// A market's directory.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    pub fn new(chosen: Option<PathBuf>) -> Self {
        let root = chosen.unwrap_or_else(default_root);
        Self { root: std::path::absolute(&root).unwrap_or(root) }
    }

    /// Makes the directory. Others may pass through it, since Postgres runs under another
    /// account; what is in it keeps its own permissions.
    pub fn make(&self) -> io::Result<()> {
        fs::create_dir_all(&self.root)?;
        fs::set_permissions(&self.root, fs::Permissions::from_mode(0o711))?;
        for dir in [self.run(), self.log(), self.pids(), self.registry()] {
            make_dir(&dir, 0o700)?;
        }
        Ok(())
    }

    /// Makes the directories of a host. Jobs pass through the engine's.
    pub fn make_host(&self, host: u8) -> io::Result<()> {
        make_dir(&self.agent(host), 0o700)?;
        make_dir(&self.docker(host), 0o711)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }
    pub fn postgres(&self) -> PathBuf {
        self.root.join("postgres")
    }
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }
    pub fn pids(&self) -> PathBuf {
        self.root.join("run/pids")
    }
    pub fn lock(&self) -> PathBuf {
        self.root.join("run/lock")
    }
    pub fn status(&self) -> PathBuf {
        self.root.join("run/up.json")
    }
    /// There while the market may have made something on the machine outside of this directory.
    pub fn traces(&self) -> PathBuf {
        self.root.join("run/traces")
    }
    pub fn slot(&self) -> PathBuf {
        self.root.join("slot")
    }
    pub fn market_key(&self) -> PathBuf {
        self.root.join("market.key")
    }
    pub fn hub_key(&self) -> PathBuf {
        self.root.join("hub.key")
    }
    pub fn hotkey(&self) -> PathBuf {
        self.root.join("miner.hotkey")
    }
    /// Hosts count from 1.
    pub fn agent(&self, host: u8) -> PathBuf {
        self.root.join(numbered("agent", host))
    }
    /// What its agent simulates.
    pub fn simulated_devices(&self, host: u8) -> PathBuf {
        self.agent(host).join("simulated-devices.json")
    }
    pub fn docker(&self, host: u8) -> PathBuf {
        self.root.join(numbered("docker", host))
    }
    pub fn docker_socket(&self, host: u8) -> PathBuf {
        self.docker(host).join("docker.sock")
    }
    /// Where the local cloud is rented from.
    pub fn cloud(&self) -> PathBuf {
        self.root.join("cloud")
    }
    /// What the scheduler may rent.
    pub fn clouds(&self) -> PathBuf {
        self.root.join("clouds.toml")
    }
    /// Owns the hosts that are rented.
    pub fn cloud_hotkey(&self) -> PathBuf {
        self.root.join("cloud.hotkey")
    }
    pub fn registry(&self) -> PathBuf {
        self.root.join("registry")
    }
    pub fn chain(&self) -> PathBuf {
        self.root.join("local-chain")
    }
    pub fn identity(&self) -> PathBuf {
        self.root.join("local.json")
    }
}

fn default_root() -> PathBuf {
    if Uid::effective().is_root() {
        return PathBuf::from("/var/lib/nave");
    }
    let home = || env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
    env::var_os("XDG_DATA_HOME").map_or_else(|| home().join(".local/share"), PathBuf::from).join("nave")
}

/// A name that tells the things of one host from those of others.
pub fn numbered(name: &str, host: u8) -> String {
    if host == 1 { name.to_owned() } else { format!("{name}-{host}") }
}

fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
}

/// Writes a file beside its place and moves it there, readable by its owner only.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    // One that is there may be readable by others.
    drop(fs::remove_file(&fresh));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}
