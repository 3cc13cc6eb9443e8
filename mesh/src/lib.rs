//! The mesh: WireGuard interfaces of hub and hosts, and what guards them.
//!
//! Everything here blocks and belongs on a thread that may block. Nothing here
//! knows markets, hosts or leases: callers say which peers, addresses and pairs
//! there should be, and each call brings the machine in line with that.
//!
//! A hub makes its interface like this; a host leaves the namespace out:
//!
//! ```no_run
//! use std::net::TcpListener;
//!
//! use nave_domain::mesh::{MTU_MAX, Prefix};
//! use nave_mesh::{Backend, Error, Interface, Namespace, Options, Peer, PrivateKey, Program, guard};
//!
//! fn hub(prefix: Prefix, peers: &[Peer]) -> Result<(Interface, std::io::Result<TcpListener>), Error> {
//!     let room = Namespace::ensure("nave_hub")?;
//!     let hub = Interface::up(Options {
//!         name: "nave_hub".parse()?,
//!         namespace: Some(room.clone()),
//!         address: prefix.hub(),
//!         prefix,
//!         mtu: MTU_MAX,
//!         port: 51820,
//!         private_key: PrivateKey::load_or_generate("mesh.key".as_ref())?,
//!         backend: Backend::Any,
//!         program: Program::this(),
//!     })?;
//!     guard::hub(hub.name(), &room, &[])?;
//!     hub.set_peers(peers)?;
//!     let listener = room.enter(|| TcpListener::bind((prefix.hub(), 7000)))?;
//!     Ok((hub, listener))
//! }
//! ```
//!
//! A program that calls [`Interface::up`] has a hidden subcommand
//! `tunnel NAME [NAMESPACE]` that does nothing but call [`tunnel::run`].

mod device;
mod error;
pub mod guard;
mod interface;
mod key;
pub mod mtu;
mod name;
mod namespace;
mod peer;
mod program;
mod supervisor;
pub mod tunnel;

pub use error::Error;
pub use interface::{Backend, Interface, Options, clean_up};
pub use key::PrivateKey;
pub use name::Name;
pub use namespace::Namespace;
pub use peer::{Peer, Seen};
pub use supervisor::Program;
