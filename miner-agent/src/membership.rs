//! Who this host is: its keys, and its place in a market.
//!
//! | File below `agent/` | What it holds |
//! |---|---|
//! | `agent.key` | the agent's Ed25519 key; it outlives enrolments |
//! | `mesh.key` | the WireGuard key in use |
//! | `mesh-next.key` | the one that will replace it, while they are being changed |
//! | `mesh-TICKET.key` | the one an enrolment begins with, until the enrolment is there |
//! | `enrolment.json` | the [`Membership`] |

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use nave_crash_point::crash_point;
use nave_mesh::PrivateKey;
use nave_sdk::wire::{
    enrol::{Enrolment, PublicKey, TicketId},
    sign::SecretKey,
};
use serde::{Deserialize, Serialize};

use crate::files::{self, Keep};

/// A host's place in a market, and what its ticket said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The ticket that was used.
    pub ticket: TicketId,
    /// Base URL of the market's API.
    pub url: String,
    /// The key that identifies the market.
    pub market_key: PublicKey,
    /// The key that signs upgrades; without it there are none.
    pub release_key: Option<PublicKey>,
    /// The miner, as the ticket names it.
    pub hotkey: String,
    /// What the market answered.
    pub place: Enrolment,
}

/// Where an agent keeps what it knows, below its data directory.
#[must_use]
pub fn dir(data: &Path) -> PathBuf {
    data.join("agent")
}

impl Membership {
    /// The membership below `data`, where there is one.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn find(data: &Path) -> anyhow::Result<Option<Self>> {
        files::read_json(&dir(data).join("enrolment.json"))
    }

    /// The membership below `data`.
    ///
    /// # Errors
    /// When there is none; the message names the fix.
    pub fn load(data: &Path) -> anyhow::Result<Self> {
        let fix = || {
            format!(
                "this machine has not joined a market: run `miner-agent enrol TICKET --data {}`",
                data.display()
            )
        };
        Self::find(data)?.with_context(fix)
    }

    /// Writes it down and makes the key it was made with the one in use.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, data: &Path) -> anyhow::Result<()> {
        files::ensure_dir(&dir(data))?;
        files::write_json(&dir(data).join("enrolment.json"), self, Keep::Power)?;
        crash_point!("agent.enrol.before_settle");
        self.settle_keys(data)
    }

    /// Finishes what a killed [`Self::save`] left.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn settle_keys(&self, data: &Path) -> anyhow::Result<()> {
        let (dir, first) = (dir(data), joining_path(data, &self.ticket));
        if !first.exists() {
            return Ok(());
        }
        // A key that was to replace the one of an earlier enrolment.
        files::remove(&dir.join("mesh-next.key"))?;
        files::rename(&first, &dir.join("mesh.key"), Keep::Power)?;
        for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let ticket = name.strip_prefix("mesh-").and_then(|rest| rest.strip_suffix(".key"));
            if ticket.is_some_and(|ticket| ticket.parse::<TicketId>().is_ok()) {
                files::remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// The agent's own key, made where there is none.
///
/// # Errors
/// When the disk refuses or the file holds something else.
pub fn agent_key(data: &Path) -> anyhow::Result<SecretKey> {
    let path = dir(data).join("agent.key");
    if let Ok(text) = fs::read_to_string(&path) {
        return SecretKey::parse(&text).with_context(|| format!("read {}", path.display()));
    }
    files::ensure_dir(&dir(data))?;
    let key = SecretKey::generate().context("make the agent's key")?;
    files::replace(&path, format!("{}\n", key.reveal()).as_bytes(), Keep::Power)?;
    Ok(key)
}

/// The mesh key with which to use a ticket, made where there is none.
///
/// # Errors
/// When the disk refuses or the file holds something else.
pub fn joining_key(data: &Path, ticket: &TicketId) -> anyhow::Result<PrivateKey> {
    Ok(PrivateKey::load_or_generate(&joining_path(data, ticket))?)
}

fn joining_path(data: &Path, ticket: &TicketId) -> PathBuf {
    dir(data).join(format!("mesh-{ticket}.key"))
}
