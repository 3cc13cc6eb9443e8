//! Jobs of a group on different hosts, and who is not in it.

use crate::support::{Market, succeed, wait_for};

/// Answers everyone, and says when its group has come and gone.
const SERVE: &str = "
import os, socket, threading, time
def peers(): return open(os.environ['NAVE_PEERS']).read().splitlines()
listener = socket.create_server((os.environ['NAVE_ADDRESS'], 4444), family=socket.AF_INET6)
def serve():
    while True: listener.accept()[0].sendall(b'hello')
threading.Thread(target=serve, daemon=True).start()
print(os.environ['NAVE_ADDRESS'], flush=True)
while not peers(): time.sleep(.05)
print('joined by', peers()[0].split()[1], flush=True)
while peers(): time.sleep(.05)
print('alone again', flush=True)
time.sleep(600)
";

/// Connects to its peer until it answers: the other host may learn of it a little later.
const CALL: &str = "
import os, socket, time
while True:
    for line in open(os.environ['NAVE_PEERS']):
        try:
            with socket.create_connection((line.split()[0], 4444), 5) as s:
                print(s.recv(9), line.split()[1], flush=True)
                raise SystemExit
        except OSError: pass
    time.sleep(.2)
";

/// Tries an address for a while.
const TRY: &str = "
import socket, sys, time
for _ in range(3):
    try: socket.create_connection((sys.argv[1], 4444), 2); print('REACHED')
    except OSError: print('refused')
";

#[test]
fn jobs_of_a_group_reach_one_another_from_host_to_host_and_nobody_else_does() {
    let Some(market) = Market::docker(&["--hosts", "2", "--report", "1s"]) else { return };
    let offered = market.all_hosts()[0]["inventory"]["milli_cpu"].as_i64().expect("cores");
    let cores = |fifths: i64| {
        let milli = offered * fifths / 5;
        format!("{}.{:03}", milli / 1_000, milli % 1_000)
    };
    // Two of these do not fit on one host.
    let (large, small) = (cores(3), cores(1));
    let group = ["--cpu", large.as_str(), "--memory", "64MiB", "--egress", "none", "--group", "pair"];
    let server = market.submit(&group, &["python3", "-c", SERVE]);
    let address = wait_for("the server to listen", || {
        let said = market.stdout(&server);
        said.lines().next().map(str::to_owned).filter(|_| said.contains('\n'))
    });
    let client = market.submit(&group, &["python3", "-c", CALL]);
    for other in [&["--group", "other"][..], &[]] {
        let small = [&["--cpu", small.as_str(), "--memory", "64MiB"][..], other].concat();
        let tried = market.run(&small, &["python3", "-c", TRY, &address]);
        let id = tried["job"].as_str().expect("an id");
        assert_eq!(market.stdout(id), "refused\n".repeat(3), "{other:?}: {tried}");
    }
    let done = market.await_final(&client);
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(market.stdout(&client), format!("b'hello' {server}\n"));
    let serving = market.job(&server);
    assert_ne!(done["attempts"][0]["host"], serving["attempts"][0]["host"], "they are on two hosts");
    wait_for("the server to be alone", || market.stdout(&server).contains("alone again").then_some(()));
    assert!(market.stdout(&server).contains(&format!("joined by {client}")));
    succeed(&mut market.nave(&["cancel", &server]));
    market.await_final(&server);
    market.audit();
}
