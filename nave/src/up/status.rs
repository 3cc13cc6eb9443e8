//! What a running market says about itself, for scripts: `run/up.json`.

use std::{fs, path::PathBuf};

use nave_domain::HostId;
use serde::{Deserialize, Serialize};

use super::layout::{Layout, write_whole};

/// A running market.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Its supervisor, as [`super::part::Process`] writes it.
    pub supervisor: String,
    /// Its directory.
    pub data: PathBuf,
    /// Whether a job could be run.
    pub ready: bool,
    /// The customers' API.
    pub api: String,
    /// `docker` or `simulated`.
    pub runtime: String,
    /// The engine of the first local host, if it has one.
    pub docker_host: Option<String>,
    /// The local hosts.
    pub hosts: Vec<HostStatus>,
    /// The registry on loopback, if there is one.
    pub registry: Option<String>,
    /// What this machine cannot do, or the market could not when it came up, in sentences.
    pub limits: Vec<String>,
}

/// A local host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its id, once it has joined.
    pub id: Option<HostId>,
    /// Its name.
    pub name: String,
    /// Its network namespace; none where it is the machine itself.
    pub namespace: Option<String>,
    /// Directory of its agent.
    pub data: PathBuf,
    /// Its WireGuard interface.
    pub interface: String,
    /// Its engine, if it has one.
    pub docker_host: Option<String>,
}

impl Status {
    pub fn write(&self, layout: &Layout) -> anyhow::Result<()> {
        Ok(write_whole(&layout.status(), &serde_json::to_vec_pretty(self)?)?)
    }

    pub fn read(layout: &Layout) -> Option<Self> {
        serde_json::from_slice(&fs::read(layout.status()).ok()?).ok()
    }

    pub fn remove(layout: &Layout) -> PathBuf {
        let path = layout.status();
        // It may never have been written; either way it is not there now.
        drop(fs::remove_file(&path));
        path
    }
}
