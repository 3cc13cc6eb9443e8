//! What stands in for the mesh: a link named like its interface, and the leases, hosts and
//! the hub behind it, all of which answer whoever gets through.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{Ipv6Addr, TcpListener, TcpStream},
    process::{Command, Output},
    thread,
};

use nave_domain::mesh::Prefix;
use nix::sched::{CloneFlags, setns};

/// Port on which everything listens.
const PORT: u16 = 4_444;

/// The far side of the mesh; it goes away with it.
pub struct Far {
    namespace: String,
    link: String,
}

impl Far {
    /// Builds it, with all these addresses on the far side.
    pub fn begin(link: &str, prefix: Prefix, addresses: &[Ipv6Addr]) -> Self {
        let far = Self { namespace: format!("nave-far-{link}"), link: link.to_owned() };
        far.remove();
        let namespace = &far.namespace;
        ip(&format!("netns add {namespace}"));
        ip(&format!("link add {link} type veth peer name far0 netns {namespace}"));
        ip(&format!("-6 address add fe80::1/64 dev {link} nodad"));
        ip(&format!("link set {link} up"));
        ip(&format!("-n {namespace} -6 address add fe80::2/64 dev far0 nodad"));
        ip(&format!("-n {namespace} link set far0 up"));
        ip(&format!("-n {namespace} link set lo up"));
        for address in addresses {
            ip(&format!("-n {namespace} -6 address add {address}/128 dev lo nodad"));
            // As the route of the whole market would, beside other tests.
            ip(&format!("-6 route add {address}/128 via fe80::2 dev {link}"));
        }
        ip(&format!("-n {namespace} -6 route add {prefix} via fe80::1 dev far0"));
        far.listen();
        far
    }

    /// Says where it is, then returns every byte.
    fn listen(&self) {
        let path = format!("/run/netns/{}", self.namespace);
        let listener = thread::spawn(move || {
            setns(File::open(path).expect("the namespace"), CloneFlags::CLONE_NEWNET).expect("entered");
            TcpListener::bind(("::", PORT)).expect("listening")
        });
        let listener = listener.join().expect("listening");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || echo(stream));
            }
        });
    }

    /// Whether somebody there can connect.
    pub fn reaches(&self, from: Ipv6Addr, to: Ipv6Addr) -> bool {
        let script = "import socket, sys; socket.create_connection((sys.argv[2], 4444), 2, (sys.argv[1], 0))";
        let (from, to) = (from.to_string(), to.to_string());
        let inside = ["netns", "exec", &self.namespace, "python3", "-c", script, &from, &to];
        Command::new("ip").args(inside).output().expect("python3 runs").status.success()
    }

    fn remove(&self) {
        let _ = quiet(&format!("link delete {}", self.link));
        let _ = quiet(&format!("netns delete {}", self.namespace));
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.remove();
    }
}

fn echo(mut stream: TcpStream) {
    let mut bytes = [0; 64];
    let _ = stream.write_all(b"far");
    while let Ok(length @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..length]).is_err() {
            return;
        }
    }
}

fn quiet(args: &str) -> std::io::Result<Output> {
    Command::new("ip").args(args.split(' ')).output()
}

fn ip(args: &str) {
    let output = quiet(args).expect("iproute2 is installed and the test runs as root");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}
