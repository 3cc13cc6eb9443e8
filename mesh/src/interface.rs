use std::{net::Ipv6Addr, sync::Arc};

use nave_domain::mesh::{MTU_MAX, MeshKey, Prefix};
use wireguard_control::Backend as Implementation;

use crate::{
    Error, Name, Namespace, Peer, PrivateKey, Program, Seen,
    device::{Device, Wish, socket},
    guard, mtu,
    namespace::chosen,
    peer, program,
    supervisor::Supervisor,
};

/// What implements WireGuard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// The kernel if it can, else a process of ours.
    #[default]
    Any,
    /// The kernel.
    Kernel,
    /// A process of ours.
    Userspace,
}

/// How an interface should be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Unique on the machine, whatever the namespace.
    pub name: Name,
    /// Where the interface shall be; its UDP socket stays in the namespace of the
    /// thread that calls [`Interface::up`].
    pub namespace: Option<Namespace>,
    /// The interface's own address.
    pub address: Ipv6Addr,
    /// The market's addresses, all of which are reached through the interface.
    pub prefix: Prefix,
    /// In bytes; see [`crate::mtu::probe`].
    pub mtu: u16,
    /// The UDP port to listen on; 0 for any that is free, which then stays the same.
    pub port: u16,
    /// The interface's own key.
    pub private_key: PrivateKey,
    /// What implements it.
    pub backend: Backend,
    /// What serves it where the kernel does not.
    pub program: Program,
}

/// A WireGuard interface. What is asked of it is kept: when the process behind it
/// dies, another one serves it in the same way.
///
/// Dropped, an interface that a process serves is gone; one of the kernel stays.
pub struct Interface {
    device: Arc<Device>,
    supervisor: Option<Supervisor>,
}

impl Interface {
    /// Makes the interface, or takes over the kernel's of the same name.
    ///
    /// # Errors
    /// When it is not as it should be within some 20 seconds.
    pub fn up(options: Options) -> Result<Self, Error> {
        let Options { name, namespace, address, prefix, mtu, port, private_key, backend, program } = options;
        let backend = implementation(&name, namespace.as_ref(), backend)?;
        let wish = Wish::new(private_key, port, mtu);
        let device = Arc::new(Device::new(name, namespace, (address, prefix), backend, wish));
        let supervisor = match backend {
            Implementation::Kernel => {
                device.configure()?;
                None
            }
            Implementation::Userspace => Some(Supervisor::start(Arc::clone(&device), program)?),
        };
        Ok(Self { device, supervisor })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.device.name
    }

    /// Whether a process of ours serves it.
    #[must_use]
    pub fn is_userspace(&self) -> bool {
        self.supervisor.is_some()
    }

    /// The public key that belongs to its private key.
    #[must_use]
    pub fn public_key(&self) -> MeshKey {
        self.device.wish().private_key.public()
    }

    /// The UDP port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.device.wish().port
    }

    /// The process that serves it now, where one does.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        self.supervisor.as_ref().and_then(Supervisor::process)
    }

    /// How often it has come up; more than once when its process had to be replaced.
    #[must_use]
    pub fn starts(&self) -> u64 {
        self.supervisor.as_ref().map_or(1, Supervisor::starts)
    }

    /// Makes these its peers, all of them and no others. Unchanged ones keep their
    /// sessions; removed ones are cut off when this returns.
    ///
    /// # Errors
    /// When two of them share a key or an address, and then nothing changes; or when
    /// the device does not take them: then a process that serves it is replaced by one
    /// that begins with exactly these peers.
    pub fn set_peers(&self, peers: &[Peer]) -> Result<(), Error> {
        let peers = peer::checked(peers, self.public_key(), self.device.address)?;
        self.or_restart(self.device.set_peers(peers))
    }

    /// The peers as the device sees them.
    ///
    /// # Errors
    /// When the device does not answer, as while its process is being replaced.
    pub fn peers(&self) -> Result<Vec<Seen>, Error> {
        let mut wish = self.device.wish();
        self.device.seen(&mut wish)
    }

    /// Speaks with another key from now on, to peers that have to know it.
    ///
    /// Where a process serves the interface it is replaced, which takes a moment and
    /// leaves connections intact: gotatun rebinds its socket for a new key, and now and
    /// then loses against its own tasks that still hold the old one.
    ///
    /// # Errors
    /// When the device does not take it, or is not there again in time.
    pub fn set_private_key(&self, key: &PrivateKey) -> Result<(), Error> {
        self.device.wish().private_key = key.clone();
        match &self.supervisor {
            Some(supervisor) => supervisor.replace(self.device.name.as_str()),
            None => self.device.set_private_key(),
        }
    }

    /// Forgets the sessions with all peers and shakes hands anew, which is quicker than
    /// to wait until WireGuard notices that the other side has forgotten them.
    ///
    /// # Errors
    /// As [`Self::set_peers`] when the device does not take it.
    pub fn renew(&self) -> Result<(), Error> {
        self.or_restart(self.device.renew())
    }

    /// Changes the MTU.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), Error> {
        let mut wish = self.device.wish();
        wish.mtu = mtu;
        if wish.ready { self.device.set_mtu(mtu) } else { Ok(()) }
    }

    /// Finds the largest MTU with which `peer` can be reached and sets it; the old one
    /// stays where nothing comes back, and then this returns `None`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn find_mtu(&self, peer: Ipv6Addr) -> Result<Option<u16>, Error> {
        let before = self.device.wish().mtu;
        self.set_mtu(MTU_MAX)?;
        let found = mtu::probe(self.device.namespace.as_ref(), self.device.address, peer);
        let now = found.as_ref().ok().copied().flatten().unwrap_or(before);
        self.set_mtu(now)?;
        found
    }

    /// Takes the interface and its guard away. The namespace stays.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn down(self) -> Result<(), Error> {
        drop(self.supervisor);
        remove(&self.device.name, self.device.namespace.as_ref())
    }

    fn or_restart(&self, outcome: Result<(), Error>) -> Result<(), Error> {
        if let (Err(_), Some(supervisor)) = (&outcome, &self.supervisor) {
            supervisor.restart();
        }
        outcome
    }
}

/// Takes away what a killed process may have left: the interface, its guard, and the
/// namespace where one is given. Nothing being there is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn clean_up(name: &Name, namespace: Option<&Namespace>) -> Result<(), Error> {
    if namespace.is_none_or(|namespace| namespace.path().exists()) {
        remove(name, namespace)?;
    }
    namespace.map_or(Ok(()), Namespace::delete)
}

fn remove(name: &Name, namespace: Option<&Namespace>) -> Result<(), Error> {
    guard::remove(name, namespace)?;
    if link_exists(name, namespace) {
        program::run("ip", &[&chosen(namespace), &["link", "delete", "dev", name.as_str()][..]].concat())?;
    }
    if std::os::unix::net::UnixStream::connect(socket(name)).is_err() {
        let _ = std::fs::remove_file(socket(name));
    }
    Ok(())
}

fn link_exists(name: &Name, namespace: Option<&Namespace>) -> bool {
    let show = ["link", "show", "dev", name.as_str()];
    program::run("ip", &[&chosen(namespace), &show[..]].concat()).is_ok()
}

/// What will implement the interface; one of the kernel is there afterwards.
fn implementation(
    name: &Name,
    namespace: Option<&Namespace>,
    asked: Backend,
) -> Result<Implementation, Error> {
    match asked {
        Backend::Userspace => Ok(Implementation::Userspace),
        Backend::Kernel => ensure_kernel_link(name, namespace).map(|()| Implementation::Kernel),
        Backend::Any => match ensure_kernel_link(name, namespace) {
            Ok(()) => Ok(Implementation::Kernel),
            Err(error) => {
                tracing::info!(interface = %name, %error, "the kernel has no WireGuard; a process serves it");
                Ok(Implementation::Userspace)
            }
        },
    }
}

/// The kernel's sockets stay in the namespace an interface is made in, so it is made
/// here and moved.
fn ensure_kernel_link(name: &Name, namespace: Option<&Namespace>) -> Result<(), Error> {
    let is_wireguard = |namespace: Option<&Namespace>| {
        let show = ["-details", "link", "show", "dev", name.as_str()];
        let shown = program::run("ip", &[&chosen(namespace), &show[..]].concat());
        shown.is_ok_and(|text| text.split_whitespace().any(|word| word == "wireguard"))
    };
    if is_wireguard(namespace) {
        return Ok(());
    }
    // One that is here and not there was not moved because its maker was killed.
    if !is_wireguard(None) {
        program::run("ip", &["link", "add", "dev", name.as_str(), "type", "wireguard"])?;
    }
    if let Some(namespace) = namespace {
        program::run("ip", &["link", "set", "dev", name.as_str(), "netns", namespace.name()])?;
    }
    Ok(())
}
