//! What the outside sees of the mesh.

use std::{
    collections::BTreeSet,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::{
    net::if_::if_nametoindex,
    sys::{
        socket::{
            AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use crate::{
    TICKS,
    support::{Host, Market, succeed, wait_for},
    ticks,
};

/// Frames that pass the machine's end of a host's link, in both directions.
struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Vec<u8>>>,
}

impl Capture {
    fn of(host: &Host) -> Self {
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll);
        let socket = socket.expect("root may listen");
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).expect("a timeout");
        setsockopt(&socket, sockopt::RcvBuf, &(4 << 20)).expect("room");
        let link = if_nametoindex(host.link().as_str()).expect("a link") as usize;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        Self { stop, thread: thread::spawn(move || listen(&socket, link, &stopping)) }
    }

    fn end(self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a capture")
    }
}

fn listen(socket: &OwnedFd, link: usize, stopping: &AtomicBool) -> Vec<Vec<u8>> {
    let (mut frames, mut buffer) = (Vec::new(), vec![0; 65_536]);
    while !stopping.load(Ordering::Relaxed) {
        let Ok((length, Some(from))) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) else {
            continue;
        };
        if from.ifindex() == link {
            frames.push(buffer[..length].to_vec());
        }
    }
    frames
}

/// What a frame is, in words.
fn kind(frame: &[u8], port: u16) -> String {
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    match word(12) {
        0x0806 => "arp".to_owned(),
        0x0800 if frame[23] == 17 => {
            let header = usize::from(frame[14] & 15) * 4;
            let ports = [word(14 + header), word(16 + header)];
            if ports.contains(&port) { "wireguard".to_owned() } else { format!("udp {ports:?}") }
        }
        0x0800 => format!("ip protocol {}", frame[23]),
        other => format!("ethertype {other:#06x}"),
    }
}

#[test]
fn between_hosts_and_control_plane_there_is_wireguard_and_nothing_else() {
    let Some(market) = Market::docker(&["--hosts", "2", "--report", "1s"]) else { return };
    let host = market.hosts().remove(0);
    let capture = Capture::of(&host);
    // Larger than half of what is offered to both, so that one of them runs it and both do.
    let secret = "do-not-read-this";
    let program = format!("{TICKS}\nprint('{secret}')");
    let jobs = [0; 2].map(|_| market.submit(&["--cpu", "0.5"], &["python3", "-c", &program]));
    for job in &jobs {
        let done = market.await_final(job);
        assert_eq!(done["state"], "succeeded", "{done}");
        assert_eq!(market.stdout(job), format!("{}{secret}\n", ticks()));
    }
    let frames = capture.end();
    let kinds: BTreeSet<String> = frames.iter().map(|frame| kind(frame, market.hub_port())).collect();
    assert!(kinds.contains("wireguard"), "{kinds:?}");
    assert!(kinds.iter().all(|kind| ["wireguard", "arp"].contains(&kind.as_str())), "{kinds:?}");
    let shows = |frame: &[u8]| frame.windows(secret.len()).any(|piece| piece == secret.as_bytes());
    assert!(!frames.iter().any(|frame| shows(frame)), "nobody on the way reads what a job says");
}

#[test]
fn a_host_reaches_the_hub_and_neither_the_machine_nor_another_host() {
    let Some(market) = Market::simulated(&["--hosts", "2"]) else { return };
    let [one, two] = market.hosts().try_into().ok().expect("two hosts");
    let address = |host: &Host| {
        let shown = succeed(host.inside("ip").args(["-4", "-o", "address", "show", "dev", "eth0"]));
        let address = shown.split_whitespace().nth(3).expect("an address").split('/').next();
        address.expect("an address").to_owned()
    };
    let machine = address(&one).rsplit_once('.').expect("an address").0.to_owned() + ".1";
    // Somebody listens at each place, so only a filter can be in the way.
    let listener = std::net::TcpListener::bind((machine.as_str(), 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let serve = format!("import socket,time; s=socket.create_server(('0.0.0.0', {port})); time.sleep(600)");
    let mut served = two.inside("python3").args(["-c", &serve]).spawn().expect("run python3");
    let reaches = |from: &Host, to: &str| {
        let connect = format!("import socket; socket.create_connection(('{to}', {port}), timeout=1)");
        from.inside("python3").args(["-c", &connect]).output().expect("run python3").status.success()
    };
    wait_for("the other host to listen", || reaches(&two, &address(&two)).then_some(()));
    let reached = [reaches(&one, &machine), reaches(&one, &address(&two))];
    served.kill().expect("end it");
    served.wait().expect("its end");
    assert_eq!(reached, [false, false]);
}
