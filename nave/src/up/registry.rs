//! An image registry on loopback, for machines that reach no public one.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use super::{
    layout::{Layout, write_whole},
    program,
};

/// A registry on this machine's loopback.
#[derive(Debug, Clone)]
pub struct Registry {
    /// Where it listens, as it stands in image references.
    pub address: String,
}

impl Registry {
    /// Whether the market has had one: its images, perhaps the default one, name it for good.
    pub fn is_kept(layout: &Layout) -> bool {
        address_file(layout).exists()
    }

    /// Chooses its port, once for a market: image references contain it.
    ///
    /// # Errors
    /// When there is no free port or the choice cannot be written.
    pub fn prepare(layout: &Layout) -> anyhow::Result<Self> {
        let file = address_file(layout);
        let address = match std::fs::read_to_string(&file) {
            Ok(address) => address,
            Err(_) => {
                let address =
                    TcpListener::bind("127.0.0.1:0").context("find a free port")?.local_addr()?.to_string();
                write_whole(&file, address.as_bytes())?;
                address
            }
        };
        let config = config(&address, &layout.registry().join("data"));
        write_whole(&layout.registry().join("config.yml"), config.as_bytes())?;
        Ok(Self { address })
    }

    /// The command that runs it.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn command(layout: &Layout) -> anyhow::Result<Command> {
        let program = program::find("docker-registry")
            .context("docker-registry is not installed; run scripts/install")?;
        let mut command = Command::new(program);
        command.arg("serve").arg(layout.registry().join("config.yml"));
        Ok(command)
    }
}

fn address_file(layout: &Layout) -> PathBuf {
    layout.registry().join("address")
}

/// JSON is YAML, so that a path needs no quoting rules of its own.
fn config(address: &str, data: &Path) -> String {
    serde_json::json!({
        "version": "0.1",
        "log": { "level": "error", "accesslog": { "disabled": true } },
        "storage": { "filesystem": { "rootdirectory": data }, "delete": { "enabled": false } },
        "http": { "addr": address, "secret": "signs upload states, which never leave this machine" },
    })
    .to_string()
}
