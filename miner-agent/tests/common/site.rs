//! A machine's surroundings in network namespaces: an internet that answers, and
//! things near the host that a job must not reach although routes lead there.

use std::{
    fs::File,
    io::Write as _,
    net::{TcpListener, UdpSocket},
    process::Command,
    sync::{Mutex, MutexGuard, Once, PoisonError},
    thread,
};

use nix::sched::{CloneFlags, setns};

/// Port on which everything listens.
const PORT: u16 = 4_444;

/// Listens on every address, says which ones, then `ready`.
pub const SERVE: &str = "import socket, threading, time
def serve(family):
    s = socket.socket(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind(('', 4444)); s.listen()
    while True: s.accept()[0].sendall(b'near')
for family in (socket.AF_INET, socket.AF_INET6):
    threading.Thread(target=serve, args=(family,), daemon=True).start()
print(socket.gethostbyname(socket.gethostname()))
for line in open('/proc/net/if_inet6'):
    digits, _, _, scope, _, name = line.split()
    if name != 'lo' and scope == '00':
        print(':'.join(digits[i:i + 4] for i in range(0, 32, 4)))
print('ready', flush=True)
time.sleep(600)
";

/// Connects to all arguments at once: those before `--` are near, those after far.
/// What is near is also tried over the gateway's link-local address.
pub const PROBE: &str = "import socket, sys, threading, time
split = sys.argv.index('--')
near, far = sys.argv[1:split], sys.argv[split + 1:]
for line in open('/proc/net/route').read().splitlines()[1:]:
    fields = line.split()
    if fields[1] == '00000000':
        near.append(socket.inet_ntoa(bytes.fromhex(fields[2])[::-1]))
for line in open('/proc/net/ipv6_route'):
    fields = line.split()
    if fields[0] == '0' * 32 and fields[9] != 'lo':
        near.append(':'.join(fields[4][i:i + 4] for i in range(0, 32, 4)))
near.append('fe80::1%eth0')
def probe(kind, target):
    for attempt in range(4 if kind == 'far' else 1):
        try:
            info = socket.getaddrinfo(target, 4444, type=socket.SOCK_STREAM)[0]
            s = socket.socket(info[0]); s.settimeout(3); s.connect(info[4])
            print('REACHED', kind, target, s.recv(9), flush=True)
            return
        except OSError as e:
            print('refused', kind, target, e, flush=True)
            if kind == 'far': time.sleep(0.3)
threads = [threading.Thread(target=probe, args=('near', t)) for t in near]
threads += [threading.Thread(target=probe, args=('far', t)) for t in far]
for t in threads: t.start()
for t in threads: t.join()
";

/// The surroundings; they go away with it.
pub struct Site {
    namespace: String,
    link: String,
    /// Its addresses are there once.
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl Site {
    /// Builds them when there are no others; `letter` keeps apart what earlier ones left.
    pub fn begin(letter: char) -> Self {
        let pid = std::process::id();
        let site = Self {
            namespace: format!("nave-test-{letter}{pid}"),
            link: format!("nts{letter}{pid}"),
            _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner),
        };
        site.remove();
        let (namespace, link) = (&site.namespace, &site.link);
        let peer = format!("{link}p");
        ip(&format!("netns add {namespace}"));
        ip(&format!("link add {link} type veth peer name {peer}"));
        ip(&format!("link set {peer} netns {namespace}"));
        ip(&format!("address add 203.0.113.1/30 dev {link}"));
        ip(&format!("address add 2001:db8:ff::1/64 dev {link} nodad"));
        ip(&format!("link set {link} up"));
        ip(&format!("-n {namespace} address add 203.0.113.2/30 dev {peer}"));
        ip(&format!("-n {namespace} address add 2001:db8:ff::2/64 dev {peer} nodad"));
        ip(&format!("-n {namespace} link set {peer} up"));
        ip(&format!("-n {namespace} link set lo up"));
        for address in ["198.51.100.7", "10.99.99.99", "100.64.9.9"] {
            ip(&format!("-n {namespace} address add {address}/32 dev lo"));
            ip(&format!("route add {address}/32 via 203.0.113.2"));
        }
        for address in ["2001:db8:1::7", "fdaa::7"] {
            ip(&format!("-n {namespace} address add {address}/128 dev lo nodad"));
            ip(&format!("-6 route add {address}/128 via 2001:db8:ff::2"));
        }
        site.listen();
        site
    }

    /// Listens in the surroundings and on the host.
    fn listen(&self) {
        let path = format!("/run/netns/{}", self.namespace);
        let inside = thread::spawn(move || {
            let file = File::open(path).expect("the namespace");
            setns(file, CloneFlags::CLONE_NEWNET).expect("entered");
            (TcpListener::bind(("::", PORT)).expect("listening"), "far")
        });
        let (listener, word) = inside.join().expect("listening");
        answer(listener, word);
        // It outlives the site, and serves the next one as well.
        static HOST: Once = Once::new();
        HOST.call_once(|| answer(TcpListener::bind(("::", PORT)).expect("listening on the host"), "near"));
    }

    /// What a job may reach.
    pub fn far(&self) -> Vec<String> {
        ["198.51.100.7", "2001:db8:1::7"].map(str::to_owned).to_vec()
    }

    /// What a job must not reach: the host by each of its addresses, its
    /// neighbours on the link, private addresses with a route, metadata.
    pub fn near(&self) -> Vec<String> {
        let mut near = [
            "203.0.113.1",
            "203.0.113.2",
            "10.99.99.99",
            "100.64.9.9",
            "169.254.169.254",
            "2001:db8:ff::1",
            "2001:db8:ff::2",
            "fdaa::7",
            "fd00:ec2::254",
        ]
        .map(str::to_owned)
        .to_vec();
        near.extend(own_address());
        near
    }

    fn remove(&self) {
        let _ = quiet(&format!("link delete {}", self.link));
        let _ = quiet(&format!("netns delete {}", self.namespace));
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The address with which this machine speaks to the world, where it does.
fn own_address() -> Option<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.255:9").ok()?;
    Some(socket.local_addr().ok()?.ip().to_string())
}

fn answer(listener: TcpListener, word: &'static str) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(word.as_bytes()));
        }
    });
}

fn quiet(args: &str) -> std::io::Result<std::process::Output> {
    Command::new("ip").args(args.split(' ')).output()
}

fn ip(args: &str) {
    let output = quiet(args).expect("iproute2 is installed and the test runs as root");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}
