//! One TCP stream through the mesh, beside the same tunnel set up by hand and a plain veth.
//!
//! ```console
//! $ scripts/measure-mesh [RUNS [SECONDS]]
//! ```
//!
//! All three lie between the same two namespaces. The mesh has everything a market
//! gives it: a supervisor, guards on both sides, a namespace of its own for the hub. By hand
//! is gotatun alone, started with the same options, and `ip`. Each run is one stream over
//! each of them, in an order that changes, so that what else the machine does hits all alike.

use std::{
    collections::BTreeSet,
    error::Error,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use gotatun::{
    device::{self, Peer as HandPeer},
    x25519::{PublicKey, StaticSecret},
};
use nave_domain::{
    HostId,
    mesh::{MTU_MAX, Prefix},
};
use nave_mesh::{Backend, Interface, Namespace, Options, Peer, PrivateKey, Program, guard, tunnel};
use uuid::Uuid;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const HUB_UNDERLAY: [u8; 4] = [10, 8, 0, 1];
const MESH_PORT: u16 = 51820;
const HAND_PORT: u16 = 51821;
const HAND_HUB: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1);
const HAND_HOST: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 2);
const HAND_KEYS: [u8; 2] = [7, 9];

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["tunnel", name] => tunnel::run(name, None)?,
        ["tunnel", name, namespace] => tunnel::run(name, Some(namespace))?,
        ["by-hand", name, side] => by_hand(name, side == "hub")?,
        [] => measure(9, 3)?,
        [runs] => measure(runs.parse()?, 3)?,
        [runs, seconds] => measure(runs.parse()?, seconds.parse()?)?,
        _ => return Err("usage: throughput [RUNS [SECONDS]]".into()),
    }
    Ok(())
}

/// gotatun alone, until its standard input ends.
fn by_hand(name: &str, is_hub: bool) -> Outcome<()> {
    let secret = |side: usize| StaticSecret::from([HAND_KEYS[side]; 32]);
    let (own, other) = if is_hub { (0, 1) } else { (1, 0) };
    let peer = HandPeer::new(PublicKey::from(&secret(other)));
    let peer = if is_hub {
        peer.with_allowed_ip(format!("{HAND_HOST}/128").parse()?)
    } else {
        peer.with_allowed_ip(format!("{HAND_HUB}/128").parse()?)
            .with_endpoint((HUB_UNDERLAY, HAND_PORT).into())
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let device = device::build()
            .with_default_udp()
            .create_tun(name)?
            .with_private_key(secret(own))
            .with_listen_port(if is_hub { HAND_PORT } else { 0 });
        let _device = device.with_peer(peer).build().await?;
        tokio::task::spawn_blocking(|| io::copy(&mut io::stdin(), &mut io::sink())).await??;
        Ok(())
    })
}

/// Taken away at the end, however it comes.
struct Room(Namespace);

impl Room {
    fn new(name: &str) -> Outcome<Self> {
        Ok(Self(Namespace::ensure(&format!("nave_bench_{name}_{}", process::id()))?))
    }

    fn ip(&self, args: &str) -> Outcome<()> {
        let status = Command::new("ip").args(["-n", self.0.name()]).args(args.split(' ')).status()?;
        if status.success() { Ok(()) } else { Err(format!("ip {args}: {status}").into()) }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = self.0.delete();
    }
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure(runs: usize, seconds: u64) -> Outcome<()> {
    let (underlay, host, room) = (Room::new("hub")?, Room::new("host")?, Room::new("room")?);
    underlay.ip(&format!("link add v0 type veth peer name v0 netns {}", host.0.name()))?;
    for (side, address) in [(&underlay, "10.8.0.1/24"), (&host, "10.8.0.2/24")] {
        side.ip(&format!("addr add {address} dev v0"))?;
        side.ip("link set v0 up")?;
    }
    let (hub_interface, host_interface) = mesh(&underlay, &host, &room)?;
    let _by_hand = [hand(&underlay, "hub", HAND_HUB)?, hand(&host, "host", HAND_HOST)?];
    let hub_address = Prefix::of_market(&[0; 32]).hub();
    let paths: [(&str, SocketAddr); 3] = [
        ("mesh", serve(&room, hub_address.into())?),
        ("by hand", serve(&underlay, HAND_HUB.into())?),
        ("veth", serve(&underlay, IpAddr::from(HUB_UNDERLAY))?),
    ];
    let mut rates: [Vec<u64>; 3] = Default::default();
    // The first stream over each path waits for its handshake and is not counted.
    for run in 0..=runs {
        for turn in 0..paths.len() {
            let at = (run + turn) % paths.len();
            let rate = host.0.enter(|| stream(paths[at].1, Duration::from_secs(seconds)))??;
            if run > 0 {
                rates[at].push(rate);
            }
        }
    }
    report(&paths.map(|(name, _)| name), &mut rates);
    drop((hub_interface, host_interface));
    Ok(())
}

fn report(names: &[&str; 3], rates: &mut [Vec<u64>; 3]) {
    // Of each run by itself: what its two streams had in common cancels out.
    let against = |other: usize| {
        let pairs = rates[0].iter().zip(&rates[other]);
        let mut ratios: Vec<u64> = pairs.map(|(mesh, other)| mesh * 1000 / other.max(&1)).collect();
        ratios.sort_unstable();
        ratios[ratios.len() / 2]
    };
    let (by_hand, veth) = (against(1), against(2));
    println!("| path | median Mbit/s | least | most |\n|---|---|---|---|");
    for (name, rates) in names.iter().zip(rates.iter_mut()) {
        rates.sort_unstable();
        let [least, most] = [rates.first(), rates.last()].map(|rate| rate.copied().unwrap_or(0));
        println!("| {name} | {} | {least} | {most} |", rates[rates.len() / 2]);
    }
    println!("median of mesh / by hand: {by_hand} permille");
    println!("median of mesh / veth: {veth} permille");
}

/// The mesh as a market makes it.
fn mesh(underlay: &Room, host: &Room, room: &Room) -> Outcome<(Interface, Interface)> {
    let prefix = Prefix::of_market(&[0; 32]);
    let host_address = prefix.host(HostId(Uuid::from_u128(1)));
    let up = |at: &Room, name: String, namespace, address, port| {
        let options = Options {
            name: name.parse()?,
            namespace,
            address,
            prefix,
            mtu: MTU_MAX,
            port,
            private_key: PrivateKey::generate(),
            backend: Backend::Any,
            program: Program::this(),
        };
        at.0.enter(|| Interface::up(options))?
    };
    let hub = up(underlay, format!("nbh{}", process::id()), Some(room.0.clone()), prefix.hub(), MESH_PORT)?;
    let guest = up(host, format!("nba{}", process::id()), None, host_address, 0)?;
    let pair = guard::Pair { from: prefix.hub(), to: host_address };
    guard::hub(hub.name(), &room.0, &[pair])?;
    host.0.enter(|| guard::host(guest.name(), None, &[pair], &[]))??;
    let peer = |key, address, endpoint| Peer {
        key,
        addresses: BTreeSet::from([address]),
        endpoint,
        keepalive_s: Some(15),
    };
    hub.set_peers(&[peer(guest.public_key(), host_address, None)])?;
    let endpoint = Some((HUB_UNDERLAY, MESH_PORT).into());
    host.0.enter(|| guest.set_peers(&[peer(hub.public_key(), prefix.hub(), endpoint)]))??;
    Ok((hub, guest))
}

/// The same without any of ours.
fn hand(room: &Room, side: &str, address: Ipv6Addr) -> Outcome<Ended> {
    let name = format!("hand{}", side.len());
    let started = room.0.enter(|| {
        let mut command = Command::new("/proc/self/exe");
        command.args(["by-hand", &name, side]).stdin(Stdio::piped()).spawn()
    })?;
    let child = Ended(started?);
    let since = Instant::now();
    while room.ip(&format!("link set {name} mtu {MTU_MAX} up")).is_err() {
        if since.elapsed() > Duration::from_secs(10) {
            return Err(format!("no interface {name}").into());
        }
        thread::sleep(Duration::from_millis(100));
    }
    room.ip(&format!("addr add {address}/64 dev {name} nodad"))?;
    Ok(child)
}

/// Takes streams in and says how many bytes each had.
fn serve(room: &Room, address: IpAddr) -> Outcome<SocketAddr> {
    let listener = room.0.enter(|| TcpListener::bind((address, 0)))??;
    let bound = listener.local_addr()?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let taken = take(&mut stream);
            let _ = taken.and_then(|bytes| stream.write_all(&bytes.to_be_bytes()));
        }
    });
    Ok(bound)
}

fn take(stream: &mut TcpStream) -> io::Result<u64> {
    let (mut buffer, mut bytes) = (vec![0; 1 << 17], 0);
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(bytes),
            length => bytes += length as u64,
        }
    }
}

/// Sends for a while and returns what arrived, in Mbit/s.
fn stream(to: SocketAddr, span: Duration) -> io::Result<u64> {
    let mut stream = TcpStream::connect(to)?;
    let buffer = vec![0x5a; 1 << 17];
    let since = Instant::now();
    while since.elapsed() < span {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut arrived = [0; 8];
    stream.read_exact(&mut arrived)?;
    let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
    Ok(u64::from_be_bytes(arrived) * 8 / micros.max(1))
}
