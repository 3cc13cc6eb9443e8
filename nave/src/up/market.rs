//! What a market on one machine starts with: its local customer and its local host.

use std::{env, fs, path::PathBuf};

use anyhow::Context as _;
use nave_domain::{CustomerId, HostId, rate::Rate};
use nave_sdk::wire::rest::SCOPES;
use nave_store::{NewHost, Store};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::layout::{Layout, write_whole};
use crate::cli::UpArgs;

/// Who the local customer and the local host are; written once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Identity {
    /// The local host.
    pub host: HostId,
    /// The local customer's token.
    pub token: String,
}

#[derive(Serialize)]
struct ClientSettings<'a> {
    url: String,
    token: &'a str,
}

const CUSTOMER: &str = "local";
const HOTKEY: &str = "local-miner";
const MARKER: &str = "# Written by `naved up`, which replaces it; remove this line to keep your own.";

/// Makes the local customer, its key, its test credit and its host, each once.
///
/// # Errors
/// When the database or the file system does not answer.
pub async fn found(store: &Store, layout: &Layout, args: &UpArgs) -> anyhow::Result<Identity> {
    let customer = store.customer_ensure(CUSTOMER).await?;
    let identity = identity(store, customer, layout).await?;
    store.credit(customer, "local test credit", args.credit).await?;
    let rate = Rate {
        gpu_hour: args.price.price_gpu,
        vcpu_hour: args.price.price_cpu,
        gib_hour: args.price.price_memory,
    };
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let name = name.unwrap_or_else(|| "localhost".into());
    store.host_enrol(&NewHost { host: identity.host, name: &name, hotkey: HOTKEY, rate }).await?;
    Ok(identity)
}

async fn identity(store: &Store, customer: CustomerId, layout: &Layout) -> anyhow::Result<Identity> {
    let file = layout.identity();
    if let Ok(bytes) = fs::read(&file) {
        return serde_json::from_slice(&bytes).with_context(|| format!("read {}", file.display()));
    }
    let (_, token) = store.key_create(customer, "naved up", &SCOPES.map(str::to_owned)).await?;
    let identity = Identity { host: Uuid::now_v7().into(), token };
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
