//! A WireGuard device and the link that belongs to it, brought in line with a wish.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use nave_domain::mesh::{MeshKey, Prefix};
use wireguard_control::{Backend, Device as Found, DeviceUpdate, InterfaceName};

use crate::{
    Error, Name, Namespace, Peer, PrivateKey, Seen,
    namespace::{chosen, within},
    peer::{self, Change, Peers},
    program,
};

/// Where nobody listens: what is sent there only makes WireGuard shake hands.
const DISCARD_PORT: u16 = 9;

pub(crate) struct Device {
    pub name: Name,
    pub namespace: Option<Namespace>,
    pub address: Ipv6Addr,
    pub prefix: Prefix,
    pub backend: Backend,
    wish: Mutex<Wish>,
}

/// What the device should be. It outlives the process that serves the device.
pub(crate) struct Wish {
    pub private_key: PrivateKey,
    /// Zero until the first bind has chosen one.
    pub port: u16,
    pub mtu: u16,
    pub peers: Peers,
    /// Where peers were last heard.
    heard: BTreeMap<MeshKey, SocketAddr>,
    /// Whether the device is there and all of the above was applied to it.
    pub ready: bool,
}

impl Wish {
    pub fn new(private_key: PrivateKey, port: u16, mtu: u16) -> Self {
        Self { private_key, port, mtu, peers: Peers::new(), heard: BTreeMap::new(), ready: false }
    }

    fn endpoint(&self, peer: &Peer) -> Option<SocketAddr> {
        self.heard.get(&peer.key).copied().or(peer.endpoint)
    }
}

impl Device {
    pub fn new(
        name: Name,
        namespace: Option<Namespace>,
        (address, prefix): (Ipv6Addr, Prefix),
        backend: Backend,
        wish: Wish,
    ) -> Self {
        Self { name, namespace, address, prefix, backend, wish: Mutex::new(wish) }
    }

    pub fn wish(&self) -> MutexGuard<'_, Wish> {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings link and device in line with the wish. A device of the kernel may have
    /// peers already, and keeps them until others are asked for.
    pub fn configure(&self) -> Result<(), Error> {
        let mut wish = self.wish();
        self.link(wish.mtu)?;
        let mut update =
            DeviceUpdate::new().set_private_key(wish.private_key.raw()).set_listen_port(wish.port);
        if self.backend == Backend::Userspace {
            update = update.replace_peers();
            for peer in wish.peers.values() {
                update = update.add_peer(peer::config(peer, wish.endpoint(peer)));
            }
        }
        self.apply(update)?;
        if wish.port == 0 {
            wish.port = self.found()?.listen_port.unwrap_or(0);
        }
        wish.ready = true;
        self.knock(&wish, wish.peers.values());
        Ok(())
    }

    /// Addresses, routes and state of the link; doing it twice does nothing.
    fn link(&self, mtu: u16) -> Result<(), Error> {
        let name = self.name.as_str();
        self.set_mtu(mtu)?;
        // Nobody is found on this link by asking around, so it needs no address for that.
        self.ip(&["link", "set", "dev", name, "addrgenmode", "none"])?;
        let switch = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
        within(self.namespace.as_ref(), || fs::write(&switch, "0"))?
            .map_err(Error::io(format!("write {switch}")))?;
        self.ip(&["link", "set", "dev", name, "up"])?;
        self.ip(&["-6", "address", "replace", &format!("{}/128", self.address), "dev", name, "nodad"])?;
        self.ip(&["-6", "route", "replace", &self.prefix.to_string(), "dev", name])?;
        Ok(())
    }

    pub fn set_mtu(&self, mtu: u16) -> Result<(), Error> {
        self.ip(&["link", "set", "dev", self.name.as_str(), "mtu", &mtu.to_string()])?;
        Ok(())
    }

    fn ip(&self, args: &[&str]) -> Result<String, Error> {
        program::run("ip", &[&chosen(self.namespace.as_ref()), args].concat())
    }

    /// Applies other peers, and to unchanged ones nothing.
    pub fn set_peers(&self, peers: Peers) -> Result<(), Error> {
        let mut wish = self.wish();
        let before = std::mem::replace(&mut wish.peers, peers);
        let Wish { peers: now, heard, .. } = &mut *wish;
        heard.retain(|key, _| {
            let asked = |peers: &Peers| peers.get(key).map(|peer| peer.endpoint);
            asked(now).is_some() && asked(now) == asked(&before)
        });
        if !wish.ready {
            return Ok(());
        }
        let seen = self.seen(&mut wish)?;
        let change = Change::between(&seen, &before, &wish.peers);
        if change.is_empty() {
            return Ok(());
        }
        let mut update = DeviceUpdate::new();
        for key in change.remove {
            update = update.add_peer(peer::removal(key));
        }
        for peer in &change.set {
            update = update.add_peer(peer::config(peer, wish.endpoint(peer)));
        }
        self.apply(update)?;
        self.knock(&wish, change.set.iter());
        Ok(())
    }

    /// Applies the key of the wish to a device of the kernel.
    pub fn set_private_key(&self) -> Result<(), Error> {
        self.apply(DeviceUpdate::new().set_private_key(self.wish().private_key.raw()))
    }

    /// Begins anew with every peer.
    pub fn renew(&self) -> Result<(), Error> {
        let mut wish = self.wish();
        if !wish.ready {
            return Ok(());
        }
        // Where peers are now is not forgotten with their sessions.
        self.seen(&mut wish)?;
        self.apply(DeviceUpdate::new().replace_peers())?;
        let mut update = DeviceUpdate::new();
        for peer in wish.peers.values() {
            update = update.add_peer(peer::config(peer, wish.endpoint(peer)));
        }
        self.apply(update)?;
        self.knock(&wish, wish.peers.values());
        Ok(())
    }

    /// The peers of the device, and where they are is remembered.
    pub fn seen(&self, wish: &mut Wish) -> Result<Vec<Seen>, Error> {
        let seen: Vec<Seen> = self.found()?.peers.into_iter().filter_map(Seen::of).collect();
        for peer in seen.iter().filter(|peer| peer.handshake.is_some() && wish.peers.contains_key(&peer.key))
        {
            if let Some(endpoint) = peer.endpoint {
                wish.heard.insert(peer.key, endpoint);
            }
        }
        Ok(seen)
    }

    /// Sends something to peers whose place is known, so that the first packet that
    /// matters finds a session.
    fn knock<'a>(&self, wish: &Wish, peers: impl Iterator<Item = &'a Peer>) {
        let reached = peers.filter(|peer| wish.endpoint(peer).is_some());
        let addresses: Vec<Ipv6Addr> = reached.filter_map(|peer| peer.addresses.first().copied()).collect();
        let knocked = within(self.namespace.as_ref(), || {
            let socket = UdpSocket::bind((self.address, 0))?;
            for address in addresses {
                socket.send_to(&[], (address, DISCARD_PORT))?;
            }
            Ok::<(), std::io::Error>(())
        });
        if !matches!(knocked, Ok(Ok(()))) {
            // Then the first packet that matters does it.
            tracing::debug!(interface = %self.name, ?knocked, "could not knock");
        }
    }

    pub fn found(&self) -> Result<Found, Error> {
        let name = self.wireguard_name()?;
        self.inside(|| Found::get(&name, self.backend))?
            .map_err(Error::io(format!("ask the device {} how it is", self.name)))
    }

    fn apply(&self, update: DeviceUpdate) -> Result<(), Error> {
        let name = self.wireguard_name()?;
        if self.backend == Backend::Userspace {
            // Where nobody answers, the library would start a program of its own choice.
            let socket = socket(&self.name);
            UnixStream::connect(&socket).map_err(Error::file("connect to", &socket))?;
        }
        self.inside(|| update.apply(&name, self.backend))?
            .map_err(Error::io(format!("configure the device {}", self.name)))
    }

    /// Devices of the kernel are found in their namespaces, others by their sockets.
    fn inside<T: Send>(&self, call: impl FnOnce() -> T + Send) -> Result<T, Error> {
        match self.backend {
            Backend::Kernel => within(self.namespace.as_ref(), call),
            Backend::Userspace => Ok(call()),
        }
    }

    fn wireguard_name(&self) -> Result<InterfaceName, Error> {
        self.name.as_str().parse().map_err(|_| Error::Name(self.name.to_string()))
    }
}

/// The socket through which a userspace device is configured.
pub(crate) fn socket(name: &Name) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{name}.sock"))
}
