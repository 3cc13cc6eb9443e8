use std::{io, net::Ipv6Addr, path::Path};

use nave_domain::mesh::MeshKey;

/// Why the mesh is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a name that an interface or a namespace of ours may have.
    #[error("{0:?} is not the name of an interface or a namespace")]
    Name(String),
    /// What is read as a private key is none.
    #[error("{0} does not hold a WireGuard private key")]
    Key(String),
    /// Two peers have one public key.
    #[error("two peers have the public key {0}")]
    DuplicateKey(MeshKey),
    /// A peer has the public key of the interface itself.
    #[error("the public key {0} is the interface's own")]
    OwnKey(MeshKey),
    /// An address belongs to two peers, or to a peer and the interface.
    #[error("the address {0} belongs to two members of the mesh")]
    DuplicateAddress(Ipv6Addr),
    /// Another process serves an interface of this name.
    #[error("an interface {0} is already served by another process")]
    NameTaken(String),
    /// The userspace implementation does not come up.
    #[error("the tunnel of {name} does not come up: {reason}")]
    Tunnel {
        /// Of the interface.
        name: String,
        /// The last thing that went wrong.
        reason: String,
    },
    /// A program failed.
    #[error("{command}: {stderr}")]
    Program {
        /// The program and its arguments.
        command: String,
        /// What it said.
        stderr: String,
    },
    /// The operating system refused.
    #[error("{attempt}")]
    Io {
        /// What was attempted.
        attempt: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: what was attempted.
    pub(crate) fn io<E: Into<io::Error>>(attempt: impl Into<String>) -> impl FnOnce(E) -> Self {
        let attempt = attempt.into();
        move |source| Self::Io { attempt, source: source.into() }
    }

    /// For `map_err`: what was attempted with a file.
    pub(crate) fn file<E: Into<io::Error>>(verb: &str, path: &Path) -> impl FnOnce(E) -> Self {
        Self::io(format!("{verb} {}", path.display()))
    }
}
