//! A router between a hub and hosts, each with a namespace of its own.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nave_domain::{
    HostId,
    mesh::{MTU_MAX, Prefix},
};
use nave_mesh::{Backend, Interface, Namespace, Options, Peer, PrivateKey, Program, clean_up};
use nix::unistd::{Uid, getpid};
use uuid::Uuid;

/// Longer than anything here should take, on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long one waits for what should not come.
pub const SILENCE: Duration = Duration::from_millis(700);
pub const HUB_PORT: u16 = 51820;
const ECHO_PORT: u16 = 7;

/// Whether namespaces can be made; says so where they cannot.
pub fn can_run() -> bool {
    let can = Uid::effective().is_root();
    if !can {
        eprintln!("SKIPPED: network namespaces need root");
    }
    can
}

fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn unique(kind: &str) -> String {
    format!("{kind}{}_{}", getpid(), number())
}

/// The test program itself as the program of a tunnel; see `tunnel_process` in `main.rs`.
pub fn program() -> Program {
    Program::new("/proc/self/exe", ["tunnel_process", "--exact", "--ignored", "--nocapture"])
}

pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().expect("started");
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until something is so.
pub fn eventually(what: &str, so: impl FnMut() -> bool) {
    assert!(within(PATIENCE, so), "waited in vain: {what}");
}

fn within(patience: Duration, mut so: impl FnMut() -> bool) -> bool {
    let since = Instant::now();
    loop {
        if so() {
            return true;
        }
        if since.elapsed() > patience {
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// A namespace that is taken away with everything in it.
pub struct Room(pub Namespace);

impl Room {
    pub fn new(kind: &str) -> Self {
        Self(Namespace::ensure(&unique(kind)).expect("a namespace"))
    }

    pub fn ip(&self, args: &[&str]) -> String {
        run("ip", &[&["-n", self.0.name()], args].concat())
    }

    pub fn nft(&self, rules: &str) {
        self.0
            .enter(|| {
                let mut nft =
                    Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
                nft.stdin.take().expect("piped").write_all(rules.as_bytes()).expect("written");
                assert!(nft.wait().expect("waited").success(), "{rules}");
            })
            .expect("entered");
    }

    pub fn inside<T: Send>(&self, call: impl FnOnce() -> T + Send) -> T {
        self.0.enter(call).expect("entered")
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = self.0.delete();
    }
}

/// An interface, the namespace of its sockets, and the one it is in.
pub struct Member {
    interface: Option<Interface>,
    pub key: PrivateKey,
    pub address: Ipv6Addr,
    pub underlay: Room,
    pub room: Option<Room>,
}

impl Member {
    fn new(lab: &Lab, kind: &str, address: Ipv6Addr, port: u16, room: Option<Room>) -> Self {
        let underlay = lab.plug(kind);
        let key = PrivateKey::generate();
        let options = Options {
            name: unique(kind).parse().expect("a name"),
            namespace: room.as_ref().map(|room| room.0.clone()),
            address,
            prefix: lab.prefix,
            mtu: MTU_MAX,
            port,
            private_key: key.clone(),
            backend: Backend::Any,
            program: program(),
        };
        let interface = underlay.inside(|| Interface::up(options)).expect("an interface");
        Self { interface: Some(interface), key, address, underlay, room }
    }

    /// Calls the interface from where its owner would.
    pub fn act<T: Send>(&self, call: impl FnOnce(&Interface) -> T + Send) -> T {
        let interface = self.interface.as_ref().expect("an interface");
        self.underlay.inside(|| call(interface))
    }

    pub fn take(&mut self) -> Interface {
        self.interface.take().expect("an interface")
    }

    /// The namespace in which the interface is.
    pub fn home(&self) -> &Room {
        self.room.as_ref().unwrap_or(&self.underlay)
    }

    pub fn link(&self) -> String {
        self.act(|interface| interface.name().to_string())
    }

    pub fn kill(&self) {
        let process = self.act(Interface::process).expect("a process");
        run("kill", &["-KILL", &process.to_string()]);
    }

    /// This member as others know it.
    pub fn peer(&self) -> Peer {
        Peer {
            key: self.key.public(),
            addresses: BTreeSet::from([self.address]),
            endpoint: None,
            keepalive_s: None,
        }
    }

    /// Shakes hands with a hub that knows this host.
    pub fn join(&self, hub: &Self) {
        self.act(|interface| interface.set_peers(&[hub_peer(hub)])).expect("peers");
    }

    /// Whether an echo comes back, tried until it does or patience ends.
    pub fn reaches(&self, from: Ipv6Addr, to: Ipv6Addr) -> bool {
        self.echo(from, to, PATIENCE)
    }

    pub fn cannot_reach(&self, from: Ipv6Addr, to: Ipv6Addr) -> bool {
        !self.echo(from, to, SILENCE)
    }

    fn echo(&self, from: Ipv6Addr, to: Ipv6Addr, patience: Duration) -> bool {
        self.home().inside(|| {
            let mut socket = None;
            within(patience, || {
                // While a tunnel is replaced there is no such address.
                let Ok(bound) = socket.take().map_or_else(|| UdpSocket::bind((from, 0)), Ok) else {
                    return false;
                };
                bound.set_read_timeout(Some(Duration::from_millis(150))).expect("a timeout");
                let sent = bound.send_to(b"echo", (to, ECHO_PORT));
                let back = sent.is_ok() && bound.recv(&mut [0; 16]).is_ok();
                socket = Some(bound);
                back
            })
        })
    }

    /// Answers echoes to its address, and counts them.
    pub fn answer(&self) -> &'static AtomicU32 {
        self.answer_at(self.address)
    }

    /// Answers echoes to an address in the member's namespace, and counts them.
    pub fn answer_at(&self, address: Ipv6Addr) -> &'static AtomicU32 {
        let counter: &'static AtomicU32 = Box::leak(Box::default());
        let socket = self.home().inside(|| UdpSocket::bind((address, ECHO_PORT))).expect("bound");
        thread::spawn(move || {
            let mut message = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut message) {
                counter.fetch_add(1, Ordering::Relaxed);
                let _ = socket.send_to(&message[..length], from);
            }
        });
        counter
    }

    /// Echoes every byte over TCP.
    pub fn answer_tcp(&self, port: u16) {
        let listener = self.home().inside(|| TcpListener::bind((self.address, port))).expect("bound");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let (mut from, mut to) = (&stream, &stream);
                    let _ = std::io::copy(&mut from, &mut to);
                });
            }
        });
    }

    /// Whether a TCP connection can be made.
    pub fn connects(&self, to: SocketAddr) -> bool {
        self.home().inside(|| TcpStream::connect_timeout(&to, SILENCE)).is_ok()
    }

    /// A TCP connection that stands.
    pub fn stream(&self, to: SocketAddr) -> TcpStream {
        self.home().inside(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("a connection")
    }

    /// Whether a byte comes back over a connection.
    pub fn echoes(&self, mut stream: &TcpStream) -> bool {
        stream.set_read_timeout(Some(SILENCE)).expect("a timeout");
        stream.write_all(b"!").is_ok() && stream.read_exact(&mut [0]).is_ok()
    }

    /// Sends bytes over TCP and expects them back.
    pub fn transfers(&self, to: SocketAddr, length: usize) -> bool {
        let exchange = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let sent: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let mut writer = stream.try_clone()?;
            thread::scope(|scope| {
                scope.spawn(|| writer.write_all(&sent));
                let mut received = vec![0; length];
                stream.read_exact(&mut received)?;
                Ok(received == sent)
            })
        };
        self.home().inside(exchange).unwrap_or(false)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let Some(interface) = self.interface.take() else { return };
        let name = interface.name().clone();
        drop(interface);
        let home = self.room.as_ref().map(|room| room.0.clone());
        self.underlay.inside(|| {
            let _ = clean_up(&name, home.as_ref());
        });
    }
}

/// The router and the addresses of the market.
pub struct Lab {
    pub router: Room,
    pub prefix: Prefix,
    plugged: AtomicU32,
}

impl Lab {
    pub fn new() -> Self {
        let router = Room::new("r");
        router.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).expect("forwarding");
        let mut market = [0; 32];
        market[..4].copy_from_slice(&getpid().as_raw().to_be_bytes());
        Self { router, prefix: Prefix::of_market(&market), plugged: AtomicU32::new(1) }
    }

    /// A namespace whose only way out is the router; its address is `10.9.n.2`.
    fn plug(&self, kind: &str) -> Room {
        let n = self.plugged.fetch_add(1, Ordering::Relaxed);
        let room = Room::new(&format!("u{kind}"));
        let port = format!("p{n}");
        self.router.ip(&[
            "link",
            "add",
            &port,
            "type",
            "veth",
            "peer",
            "name",
            "up0",
            "netns",
            room.0.name(),
        ]);
        self.router.ip(&["addr", "add", &format!("10.9.{n}.1/24"), "dev", &port]);
        self.router.ip(&["link", "set", &port, "up"]);
        room.ip(&["addr", "add", &format!("10.9.{n}.2/24"), "dev", "up0"]);
        room.ip(&["link", "set", "up0", "up"]);
        room.ip(&["route", "add", "default", "via", &format!("10.9.{n}.1")]);
        room
    }

    /// The first member; it is at 10.9.1.2.
    pub fn hub(&self) -> Member {
        Member::new(self, "h", self.prefix.hub(), HUB_PORT, Some(Room::new("hub")))
    }

    pub fn host(&self) -> Member {
        let id = HostId(Uuid::from_u128(0x5000_0000 + u128::from(number())));
        Member::new(self, "a", self.prefix.host(id), 0, None)
    }

    /// A hub and a host that know each other.
    pub fn pair(&self) -> (Member, Member) {
        let (hub, host) = (self.hub(), self.host());
        hub.act(|interface| interface.set_peers(&[host.peer()])).expect("peers");
        host.join(&hub);
        (hub, host)
    }
}

pub fn hub_peer(hub: &Member) -> Peer {
    let endpoint = Some(([10, 9, 1, 2], HUB_PORT).into());
    Peer { endpoint, keepalive_s: Some(15), ..hub.peer() }
}
