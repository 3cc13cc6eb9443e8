//! What a market on one machine starts with: its keys, its local customer, its local miner.

use std::{env, fs, path::PathBuf};

use anyhow::Context as _;
use nave_domain::CustomerId;
use nave_mesh::PrivateKey;
use nave_sdk::{
    hotkey::HotkeySecret,
    wire::{rest::SCOPES, sign::SecretKey},
};
use nave_store::Store;
use serde::{Deserialize, Serialize};

use super::layout::{Layout, write_whole};
use crate::{cli::UpArgs, keys};

/// The local customer; written once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Identity {
    /// Its token.
    pub token: String,
}

/// The secrets of a market on one machine.
#[derive(Debug)]
pub struct Keys {
    /// Identifies the market.
    pub market: SecretKey,
    /// Owns the local hosts.
    pub hotkey: HotkeySecret,
}

impl Keys {
    /// Those in the market's directory, made where there are none; the hub's too.
    ///
    /// # Errors
    /// When one cannot be read or written.
    pub fn ensure(layout: &Layout) -> anyhow::Result<Self> {
        PrivateKey::load_or_generate(&layout.hub_key())?;
        Ok(Self {
            market: keys::load_or_make(&layout.market_key())?,
            hotkey: keys::hotkey(&layout.hotkey())?,
        })
    }
}

#[derive(Serialize)]
struct ClientSettings<'a> {
    url: String,
    token: &'a str,
}

const CUSTOMER: &str = "local";
const MARKER: &str = "# Written by `naved up`, which replaces it; remove this line to keep your own.";

/// Makes the local customer, its key and its test credit, each once.
///
/// # Errors
/// When the database or the file system does not answer.
pub async fn found(store: &Store, layout: &Layout, args: &UpArgs) -> anyhow::Result<Identity> {
    let customer = store.customer_ensure(CUSTOMER).await?;
    let identity = identity(store, customer, layout).await?;
    store.credit(customer, "local test credit", args.credit).await?;
    Ok(identity)
}

async fn identity(store: &Store, customer: CustomerId, layout: &Layout) -> anyhow::Result<Identity> {
    let file = layout.identity();
    if let Ok(bytes) = fs::read(&file) {
        return serde_json::from_slice(&bytes).with_context(|| format!("read {}", file.display()));
    }
    let (_, token) = store.key_create(customer, "naved up", &SCOPES.map(str::to_owned)).await?;
    let identity = Identity { token };
    write_whole(&file, &serde_json::to_vec(&identity)?)
        .with_context(|| format!("write {}", file.display()))?;
    Ok(identity)
}

/// Tells the `nave` command where this market is, unless its user has said otherwise.
///
/// # Errors
/// When the configuration cannot be written.
pub fn configure_client(args: &UpArgs, identity: &Identity) -> anyhow::Result<Option<PathBuf>> {
    let dir = env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute())
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    let Some(dir) = dir else { return Ok(None) };
    let file = dir.join("nave/config.toml");
    let ours = match fs::read_to_string(&file) {
        Ok(text) => text.starts_with(MARKER),
        Err(_) => true,
    };
    if !ours {
        return Ok(None);
    }
    let settings = ClientSettings { url: format!("http://{}", args.api), token: &identity.token };
    let text = format!("{MARKER}\n{}", toml::to_string(&settings)?);
    fs::create_dir_all(dir.join("nave"))?;
    write_whole(&file, text.as_bytes()).with_context(|| format!("write {}", file.display()))?;
    Ok(Some(file))
}
