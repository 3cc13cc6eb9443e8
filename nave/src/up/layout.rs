//! Where things are in a market's directory.

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt,
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
        for dir in [self.run(), self.log(), self.pids(), self.agent(), self.registry(), self.docker()] {
            fs::create_dir_all(&dir)?;
            let mode = if dir == self.docker() { 0o711 } else { 0o700 };
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode))?;
        }
        Ok(())
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
    pub fn host_socket(&self) -> PathBuf {
        self.root.join("run/hosts.sock")
    }
    pub fn agent(&self) -> PathBuf {
        self.root.join("agent")
    }
    pub fn docker(&self) -> PathBuf {
        self.root.join("docker")
    }
    pub fn docker_socket(&self) -> PathBuf {
        self.root.join("docker/docker.sock")
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

/// Writes a file beside its place and moves it there, readable by its owner only.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, bytes)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, path)
}
