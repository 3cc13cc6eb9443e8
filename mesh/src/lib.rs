//! The mesh: WireGuard interfaces of hub and hosts, and what guards them.
//!
//! Everything here blocks and belongs on a thread that may block. Nothing here
//! knows markets, hosts or leases: callers say which peers, addresses and pairs
//! there should be, and each call brings the machine in line with that.
//!
//! A hub makes its interface like this; a host leaves the namespace out:
//!
//! ```no_run
//! use nave_mesh::{Backend, Interface, Namespace, Options, Peer, PrivateKey, Program};
//! # fn main() -> Result<(), nave_mesh::Error> {
//! # let (prefix, peers): (nave_domain::mesh::Prefix, Vec<Peer>) = (todo(), vec![]);
//! # fn todo<T>() -> T { panic!() }
//! let key = PrivateKey::load_or_generate("mesh.key".as_ref())?;
//! let room = Namespace::ensure("nave_hub")?;
//! let hub = Interface::up(Options {
//!     name: "nave_hub".parse()?,
//!     namespace: Some(room.clone()),
//!     address: prefix.hub(),
//!     prefix,
//!     mtu: nave_domain::mesh::MTU_MAX,
//!     port: 51820,
//!     private_key: key,
//!     backend: Backend::Any,
//!     program: Program::this(),
//! })?;
//! hub.set_peers(&peers)?;
//! nave_mesh::guard::hub(hub.name(), &room, &[])?;
//! let listener = room.enter(|| std::net::TcpListener::bind((prefix.hub(), 7000)))?;
//! # let _ = listener;
//! # Ok(())
//! # }
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
