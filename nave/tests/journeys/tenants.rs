//! What a customer's job tries to reach from inside a real market.

use std::process::{Child, Stdio};

use crate::support::{Host, Market, succeed, wait_for};

/// Where the metadata of a rented machine is.
const METADATA: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];

/// Listens on every address of its network.
const SERVE: &str = "
import os, socket, threading, time
def serve(family):
    s = socket.socket(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind(('', 4444)); s.listen()
    while True: s.accept()[0].sendall(b'hello')
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

/// Connects to every `address port` at once and says what answered.
const PROBE: &str = "
import socket, sys, threading
def probe(target):
    address, port = target.split()
    try:
        socket.create_connection((address, int(port)), 4)
        print('REACHED', target, flush=True)
    except OSError as e: print('refused', target, e, flush=True)
threads = [threading.Thread(target=probe, args=(t,)) for t in sys.argv[1:]]
for t in threads: t.start()
for t in threads: t.join()
print('done')
";

/// A program inside a host's network, ended with the test.
struct Inside(Child);

impl Drop for Inside {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The addresses of a host's interface.
fn addresses(host: &Host, interface: &str) -> Vec<String> {
    let shown =
        succeed(host.inside("ip").args(["-o", "address", "show", "scope", "global", "dev", interface]));
    let addresses = shown.lines().filter_map(|line| line.split_whitespace().nth(3)?.split('/').next());
    addresses.map(str::to_owned).collect()
}

/// Whether a program on the host itself connects.
fn host_reaches(host: &Host, target: &str) -> bool {
    let said = succeed(host.inside("python3").args(["-c", PROBE, target]));
    said.contains("REACHED")
}

#[test]
fn a_job_reaches_no_tenant_no_host_no_mesh_and_no_metadata_though_its_host_does() {
    let Some(market) = Market::docker(&["--hosts", "2", "--report", "1s"]) else { return };
    let hosts = market.hosts();
    let mut serving = Vec::new();
    let mut near: Vec<String> = METADATA.map(|address| format!("{address} 4444")).into();
    for host in &hosts {
        // Metadata services that would answer, since routes lead to them.
        for (address, bits) in METADATA.iter().zip(["32", "128"]) {
            succeed(host.inside("ip").args(["address", "add", &format!("{address}/{bits}"), "dev", "lo"]));
        }
        let mut serve = host.inside("python3");
        serve.args(["-c", SERVE]).stdout(Stdio::null());
        serving.push(Inside(serve.spawn().expect("run python3")));
        let mesh = addresses(host, &host.link().replacen("_u", "_h", 1));
        assert_eq!(mesh.len(), 1, "{mesh:?}");
        let hub = format!("{}::1", mesh[0].split(':').take(3).collect::<Vec<_>>().join(":"));
        near.push(format!("{hub} 7461"));
        near.extend(mesh.into_iter().map(|address| format!("{address} 4444")));
        let link = addresses(host, "eth0");
        near.push(format!("{}.1 22", link[0].rsplit_once('.').expect("an address").0));
        near.extend(link.into_iter().map(|address| format!("{address} 4444")));
        wait_for("its metadata service", || host_reaches(host, &near[1]).then_some(()));
        for target in [&near[0], &format!("{hub} 7461")] {
            assert!(host_reaches(host, target), "the host itself reaches {target}");
        }
    }
    let small = ["--cpu", "0.1", "--memory", "64MiB", "--egress", "public"];
    let tenant = market.submit(&small, &["python3", "-c", SERVE]);
    let said = wait_for("another tenant to listen", || {
        Some(market.stdout(&tenant)).filter(|said| said.contains("ready"))
    });
    let of_tenant: Vec<&str> = said.lines().filter(|line| *line != "ready").collect();
    let [own4, own6] = [".", ":"].map(|mark| of_tenant.iter().any(|address| address.contains(mark)));
    assert!(own4 && own6 && !said.contains("127.0"), "it has both kinds of address: {said}");
    near.extend(of_tenant.iter().map(|address| format!("{address} 4444")));

    let argv: Vec<&str> =
        ["python3", "-c", PROBE].into_iter().chain(near.iter().map(String::as_str)).collect();
    let probe = market.run(&small, &argv);
    let id = probe["job"].as_str().expect("an id");
    let said = market.stdout(id);
    assert_eq!(probe["state"], "succeeded", "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("refused")).count(), near.len(), "{said}");
    let other = market.job(&tenant);
    assert_eq!(other["state"], "running", "nobody disturbed it: {other}");
    assert_eq!(other["attempts"][0]["host"], probe["attempts"][0]["host"], "they are neighbours");
    succeed(&mut market.nave(&["cancel", &tenant]));
    market.await_final(&tenant);
}
