//! Hub and hosts in namespaces of their own, with real packets between them.

mod lab;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    net::{Ipv6Addr, SocketAddr},
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    thread,
};

use lab::{HUB_PORT, Lab, Member, Room, SILENCE, can_run, eventually, hub_peer, program, run};
use nave_domain::{
    LeaseId,
    mesh::{MTU_MAX, Prefix},
};
use nave_mesh::{
    Backend, Error, Interface, Namespace, Options, Peer, PrivateKey, clean_up,
    guard::{self, Door, Pair},
    tunnel,
};
use uuid::Uuid;

/// No test: what [`program`] runs as the process of a tunnel.
#[test]
#[ignore = "started by the other tests"]
fn tunnel_process() {
    let args: Vec<String> = std::env::args().skip_while(|arg| arg != "--nocapture").skip(1).collect();
    if let Some(name) = args.first() {
        tunnel::run(name, args.get(1).map(String::as_str)).expect("a tunnel");
    }
}

/// No test: a process that needs a tunnel and is killed.
#[test]
#[ignore = "started by the other tests"]
fn parent_process() {
    let Some(name) = std::env::args().skip_while(|arg| arg != "--nocapture").nth(1) else { return };
    let prefix = Prefix::of_market(&[0; 32]);
    let interface = Interface::up(Options {
        name: name.parse().expect("a name"),
        namespace: None,
        address: prefix.hub(),
        prefix,
        mtu: MTU_MAX,
        port: 0,
        private_key: PrivateKey::generate(),
        backend: Backend::Userspace,
        program: program(),
    });
    println!("\nprocess {}", interface.expect("an interface").process().map_or(0, |process| process));
    thread::sleep(lab::PATIENCE);
}

#[test]
fn a_host_reaches_a_hub_that_shares_its_namespace_with_nobody() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let (hub, host) = lab.pair();
    hub.answer();
    assert!(host.reaches(host.address, hub.address));

    let links = hub.home().ip(&["-o", "link", "show"]);
    assert_eq!(links.lines().count(), 2, "loopback and the interface: {links}");
    let sockets =
        |room: &Room| room.inside(|| fs::read_to_string("/proc/thread-self/net/udp6")).expect("sockets");
    let port = format!(":{HUB_PORT:04X} ");
    assert!(sockets(&hub.underlay).contains(&port), "its socket is where the hosts find it");
    assert!(!sockets(hub.home()).contains(&port), "{}", sockets(hub.home()));

    let seen = hub.act(Interface::peers).expect("peers");
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].key, host.key.public());
    assert!(seen[0].handshake.is_some() && seen[0].rx_bytes > 0 && seen[0].tx_bytes > 0, "{seen:?}");
    assert_eq!(seen[0].endpoint, Some(([10, 9, 2, 2], host.act(Interface::port)).into()));
}

#[test]
fn a_peer_that_speaks_from_anothers_address_is_not_heard() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let hub = lab.hub();
    let (thief, victim) = (lab.host(), lab.host());
    hub.act(|interface| interface.set_peers(&[thief.peer(), victim.peer()])).expect("peers");
    thief.join(&hub);
    victim.join(&hub);
    let heard = hub.answer();
    assert!(thief.reaches(thief.address, hub.address) && victim.reaches(victim.address, hub.address));

    let stolen = format!("{}/128", victim.address);
    thief.home().ip(&["-6", "addr", "add", &stolen, "dev", &thief.link(), "nodad"]);
    let before = heard.load(Ordering::Relaxed);
    assert!(thief.cannot_reach(victim.address, hub.address));
    assert_eq!(heard.load(Ordering::Relaxed), before, "not one packet arrived");
}

#[test]
fn a_key_that_is_there_twice_is_refused_and_changes_nothing() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let (hub, host) = lab.pair();
    hub.answer();
    assert!(host.reaches(host.address, hub.address));
    let other = Ipv6Addr::from(u128::from(host.address) + 1);
    let twin = Peer { addresses: BTreeSet::from([other]), ..host.peer() };
    let refused = hub.act(|interface| interface.set_peers(&[host.peer(), twin]));
    assert!(matches!(refused, Err(Error::DuplicateKey(key)) if key == host.key.public()), "{refused:?}");
    assert!(host.reaches(host.address, hub.address));
    assert_eq!(hub.act(Interface::starts), 1, "nor is the tunnel disturbed");
}

#[test]
fn a_removed_peer_is_cut_off_at_once() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let (hub, host) = lab.pair();
    let heard = hub.answer();
    assert!(host.reaches(host.address, hub.address));

    hub.act(|interface| interface.set_peers(&[])).expect("no peers");
    // What had arrived before is answered before this.
    thread::sleep(SILENCE);
    let before = heard.load(Ordering::Relaxed);
    assert!(host.cannot_reach(host.address, hub.address));
    assert_eq!(heard.load(Ordering::Relaxed), before);

    hub.act(|interface| interface.set_peers(&[host.peer()])).expect("peers");
    host.act(Interface::renew).expect("renewed");
    assert!(host.reaches(host.address, hub.address), "and is welcome again when asked for");
}

#[test]
fn unchanged_peers_keep_their_sessions_when_others_come_and_go() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let (hub, host) = lab.pair();
    hub.answer();
    assert!(host.reaches(host.address, hub.address));
    let received = || {
        hub.act(Interface::peers)
            .expect("peers")
            .iter()
            .find(|seen| seen.key == host.key.public())
            .map(|seen| seen.rx_bytes)
    };
    let before = received().expect("a peer");
    assert!(before > 0);
    let other = Peer {
        key: PrivateKey::generate().public(),
        addresses: BTreeSet::from([Ipv6Addr::from(u128::from(host.address) + 1)]),
        endpoint: None,
        keepalive_s: None,
    };
    hub.act(|interface| interface.set_peers(&[host.peer(), other])).expect("peers");
    assert!(received() >= Some(before), "its counters go on");
    hub.act(|interface| interface.set_peers(&[host.peer()])).expect("peers");
    assert!(received() >= Some(before), "its counters go on");
    assert!(host.reaches(host.address, hub.address));
}

#[test]
fn a_killed_tunnel_comes_back_with_everything_it_had() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let (hub, host) = lab.pair();
    hub.answer();
    // Bound before the tunnel dies, like the listener of a gateway.
    hub.answer_tcp(7000);
    let service = SocketAddr::from((hub.address, 7000));
    assert!(host.transfers(service, 100_000));
    let port = host.act(Interface::port);
    for member in [&hub, &host] {
        let before = member.act(Interface::process);
        member.kill();
        eventually("another process serves it", || member.act(Interface::starts) == 2);
        assert_ne!(member.act(Interface::process), before);
        assert!(host.reaches(host.address, hub.address));
        assert!(host.transfers(service, 100_000));
    }
    assert_eq!(host.act(Interface::port), port, "behind the same hole in its NAT");
}

#[test]
fn an_interface_that_somebody_deletes_comes_back() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let (hub, host) = lab.pair();
    hub.answer();
    assert!(host.reaches(host.address, hub.address));
    host.home().ip(&["link", "delete", "dev", &host.link()]);
    eventually("another process serves it", || host.act(Interface::starts) == 2);
    assert!(host.reaches(host.address, hub.address));
}

#[test]
fn a_hub_that_forgot_where_its_hosts_are_hears_them_again() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    // Nobody asked the hub for its peers before it died.
    let (hub, host) = lab.pair();
    hub.answer();
    assert!(host.reaches(host.address, hub.address));
    hub.kill();
    eventually("another process serves it", || hub.act(Interface::starts) == 2);
    host.act(Interface::renew).expect("renewed");
    assert!(host.reaches(host.address, hub.address));
}

#[test]
fn a_tunnel_ends_with_the_process_that_needs_it() {
    if !can_run() {
        return;
    }
    struct Killed(Child);
    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let room = Room::new("k");
    let name = room.0.name().to_owned();
    let mut parent = room.inside(|| {
        let mut command = Command::new("/proc/self/exe");
        command.args(["parent_process", "--exact", "--ignored", "--nocapture", &name]);
        Killed(command.stdout(Stdio::piped()).spawn().expect("started"))
    });
    let lines = BufReader::new(parent.0.stdout.take().expect("piped")).lines();
    let process =
        lines.map_while(Result::ok).find_map(|line| line.strip_prefix("process ").map(str::to_owned));
    let process = process.expect("the parent says which process it has");
    assert!(fs::exists(format!("/proc/{process}")).expect("a folder"));
    parent.0.kill().expect("killed");
    let gone = || {
        let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        status.is_empty() || status.contains(") Z ")
    };
    eventually("the tunnel's process is gone", gone);
    eventually("its interface is gone", || !room.ip(&["-o", "link", "show"]).contains(&name));
    room.inside(|| clean_up(&name.parse().expect("a name"), None)).expect("cleaned up");
    assert!(!fs::exists(format!("/run/wireguard/{name}.sock")).expect("a folder"));
}

#[test]
fn a_host_that_moves_to_another_address_goes_on() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let (hub, host) = lab.pair();
    hub.answer();
    assert!(host.reaches(host.address, hub.address));
    host.underlay.ip(&["addr", "del", "10.9.2.2/24", "dev", "up0"]);
    host.underlay.ip(&["addr", "add", "10.9.2.77/24", "dev", "up0"]);
    host.underlay.ip(&["route", "replace", "default", "via", "10.9.2.1"]);
    assert!(host.reaches(host.address, hub.address));
    let endpoint = hub.act(Interface::peers).expect("peers")[0].endpoint;
    assert_eq!(endpoint.map(|endpoint| endpoint.ip().to_string()).as_deref(), Some("10.9.2.77"));
}

#[test]
fn a_new_private_key_is_spoken_when_the_hub_knows_it() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let (hub, host) = lab.pair();
    hub.answer();
    assert!(host.reaches(host.address, hub.address));
    let next = PrivateKey::generate();
    host.act(|interface| interface.set_private_key(&next)).expect("another key");
    assert!(host.cannot_reach(host.address, hub.address), "the hub does not know it yet");
    let peer = Peer { key: next.public(), ..host.peer() };
    hub.act(|interface| interface.set_peers(&[peer])).expect("peers");
    assert!(host.reaches(host.address, hub.address));
    host.act(|interface| interface.set_private_key(&host.key)).expect("the old key");
    assert!(host.cannot_reach(host.address, hub.address), "the old one is worth nothing any more");
}

/// Two hosts with a lease each, whose packets the hub may or may not pass on.
struct Group {
    hub: Member,
    hosts: [Member; 2],
    leases: [Ipv6Addr; 2],
}

impl Group {
    fn new(lab: &Lab) -> Self {
        let hub = lab.hub();
        let hosts = [lab.host(), lab.host()];
        let leases = [1, 2].map(|id| lab.prefix.lease(LeaseId(Uuid::from_u128(id))));
        let with_lease = |member: &Member, lease| {
            let mut peer = member.peer();
            peer.addresses.insert(lease);
            peer
        };
        let peers = [with_lease(&hosts[0], leases[0]), with_lease(&hosts[1], leases[1])];
        hub.act(|interface| interface.set_peers(&peers)).expect("peers");
        for (host, [own, other]) in hosts.iter().zip([leases, [leases[1], leases[0]]]) {
            let mut peer = hub_peer(&hub);
            peer.addresses.insert(other);
            // The address of the other host as well: what it is refused is the hub's doing.
            peer.addresses
                .extend(hosts.iter().map(|member| member.address).filter(|address| *address != host.address));
            host.act(|interface| interface.set_peers(&[peer])).expect("peers");
            host.home().ip(&["-6", "addr", "add", &format!("{own}/128"), "dev", "lo", "nodad"]);
            host.answer();
            host.answer_at(own);
        }
        hub.answer();
        for host in &hosts {
            assert!(host.reaches(host.address, hub.address));
        }
        Self { hub, hosts, leases }
    }

    fn guard(&self, pairs: &[Pair]) {
        let name = self.hub.act(|interface| interface.name().clone());
        guard::hub(&name, &self.hub.home().0, pairs).expect("a guard");
    }
}

#[test]
fn no_host_reaches_another_through_the_hub_unless_their_pair_is_allowed() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let group = Group::new(&lab);
    let ([first, second], [a, b]) = (&group.hosts, group.leases);
    let forwarding = || {
        let path = "/proc/sys/net/ipv6/conf/all/forwarding";
        group.hub.home().inside(|| fs::read_to_string(path)).expect("a switch").trim().to_owned()
    };
    group.guard(&[]);
    assert_eq!(forwarding(), "0");
    assert!(first.cannot_reach(a, b) && first.cannot_reach(first.address, second.address));

    let both = [Pair { from: a, to: b }, Pair { from: b, to: a }];
    group.guard(&both);
    assert!(first.reaches(a, b) && second.reaches(b, a));
    assert!(first.cannot_reach(first.address, second.address), "the hosts themselves are no pair");
    assert!(first.cannot_reach(first.address, b), "nor a host and a lease");

    group.guard(&both[..1]);
    assert!(first.cannot_reach(a, b), "answers are a direction of their own");
    group.guard(&[]);
    assert_eq!(forwarding(), "0");
    assert!(first.cannot_reach(a, b));
    assert!(first.reaches(first.address, group.hub.address), "and the hub is reached throughout");
}

#[test]
fn the_mesh_reaches_nothing_on_a_host_but_answers_and_echoes() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let (hub, host) = lab.pair();
    let heard = host.answer();
    hub.answer();
    assert!(host.reaches(host.address, hub.address) && hub.reaches(hub.address, host.address));
    let name = host.act(|interface| interface.name().clone());
    for _ in 0..2 {
        host.underlay.inside(|| guard::host(&name, None, &[], &[])).expect("a guard");
    }
    let before = heard.load(Ordering::Relaxed);
    assert!(hub.cannot_reach(hub.address, host.address));
    assert_eq!(heard.load(Ordering::Relaxed), before);
    assert!(host.reaches(host.address, hub.address), "answers come in");
    let found = hub.act(|interface| interface.find_mtu(host.address)).expect("probed");
    assert_eq!(found, Some(MTU_MAX), "and echoes");
    host.underlay.inside(|| guard::remove(&name, None)).expect("removed");
    assert!(hub.reaches(hub.address, host.address));
}

#[test]
fn a_host_passes_packets_on_only_for_its_leases() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let group = Group::new(&lab);
    let ([first, second], [a, b]) = (&group.hosts, group.leases);
    group.guard(&[Pair { from: a, to: b }, Pair { from: b, to: a }]);
    // The lease of the second host moves behind it, as into a container.
    let container = Room::new("c");
    let home = second.home();
    home.ip(&["-6", "addr", "del", &format!("{b}/128"), "dev", "lo"]);
    home.ip(&["link", "add", "c0", "type", "veth", "peer", "name", "up0", "netns", container.0.name()]);
    home.ip(&["-6", "addr", "add", "fd77::1/64", "dev", "c0", "nodad"]);
    home.ip(&["link", "set", "c0", "up"]);
    container.ip(&["-6", "addr", "add", "fd77::2/64", "dev", "up0", "nodad"]);
    container.ip(&["-6", "addr", "add", &format!("{b}/128"), "dev", "up0", "nodad"]);
    container.ip(&["link", "set", "up0", "up"]);
    container.ip(&["-6", "route", "add", "default", "via", "fd77::1", "src", &b.to_string()]);
    home.ip(&["-6", "route", "add", &format!("{b}/128"), "via", "fd77::2", "dev", "c0"]);
    home.inside(|| fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")).expect("forwarding");
    let answers = container.inside(|| std::net::UdpSocket::bind((b, 7))).expect("bound");
    thread::spawn(move || {
        let mut message = [0; 64];
        while let Ok((length, from)) = answers.recv_from(&mut message) {
            let _ = answers.send_to(&message[..length], from);
        }
    });
    assert!(first.reaches(a, b));
    let name = second.act(|interface| interface.name().clone());
    let guard =
        |pairs: &[Pair]| second.underlay.inside(|| guard::host(&name, None, pairs, &[])).expect("a guard");
    guard(&[]);
    assert!(first.cannot_reach(a, b));
    guard(&[Pair { from: a, to: b }, Pair { from: b, to: a }]);
    assert!(first.reaches(a, b));
    assert!(first.cannot_reach(first.address, b));
}

#[test]
fn the_largest_packet_is_found_behind_a_black_hole() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let (hub, host) = lab.pair();
    hub.answer_tcp(7000);
    assert_eq!(host.act(|interface| interface.find_mtu(hub.address)).expect("probed"), Some(MTU_MAX));

    // 60 bytes of a packet of 1400 are WireGuard's, UDP's and IPv4's; data is padded to a
    // multiple of 16, so 1328 is the largest that certainly fits.
    lab.router.nft(&format!(
        "table inet hole {{ chain forward {{ type filter hook forward priority filter; policy accept;\n\
         udp dport {HUB_PORT} meta length > 1400 drop\nudp sport {HUB_PORT} meta length > 1400 drop\n}}\n}}\n"
    ));
    assert_eq!(host.act(|interface| interface.find_mtu(hub.address)).expect("probed"), Some(1328));
    assert!(host.home().ip(&["link", "show", "dev", &host.link()]).contains("mtu 1328"));
    assert!(host.transfers((hub.address, 7000).into(), 1_000_000), "and with it whole streams pass");
}

#[test]
fn the_underlay_carries_nothing_but_wireguard() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    lab.router.nft(&format!(
        "table inet count {{ counter wireguard {{ }}\ncounter other {{ }}\n\
         chain forward {{ type filter hook forward priority filter; policy accept;\n\
         udp dport {HUB_PORT} counter name wireguard accept\nudp sport {HUB_PORT} counter name wireguard accept\n\
         counter name other\n}}\n}}\n"
    ));
    let (hub, host) = lab.pair();
    hub.answer_tcp(7000);
    assert!(host.transfers((hub.address, 7000).into(), 300_000));
    // An address of the market that nobody has leaves no trace outside either.
    assert!(host.cannot_reach(host.address, lab.prefix.lease(LeaseId(Uuid::from_u128(9)))));
    let packets = |counter: &str| {
        let listed = lab.router.inside(|| run("nft", &["list", "counter", "inet", "count", counter]));
        let mut words = listed.split_whitespace().skip_while(|word| *word != "packets").skip(1);
        words.next().and_then(|count| count.parse::<u64>().ok()).expect("a count")
    };
    assert!(packets("wireguard") > 400);
    assert_eq!(packets("other"), 0);
}

#[test]
fn nothing_is_left_of_an_interface_that_was_taken_down() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let (mut hub, _host) = lab.pair();
    let room = hub.home().0.clone();
    let interface = hub.take();
    let name = interface.name().clone();
    guard::hub(&name, &room, &[]).expect("a guard");
    hub.underlay.inside(|| interface.down()).expect("down");
    let left = |program: &str, args: &[&str]| room.enter(|| run(program, args)).expect("entered");
    assert!(!left("ip", &["link", "show"]).contains(name.as_str()));
    assert!(!left("nft", &["list", "tables"]).contains(name.as_str()));
    assert!(!fs::exists(format!("/run/wireguard/{name}.sock")).expect("a folder"));
    for _ in 0..2 {
        clean_up(&name, Some(&room)).expect("nothing to clean up is fine");
    }
    assert!(!room.path().exists());
}

#[test]
fn a_name_that_another_process_serves_is_not_taken_from_it() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host();
    let name = host.act(|interface| interface.name().clone());
    let elsewhere = Room::new("e");
    let second = elsewhere.inside(|| {
        Interface::up(Options {
            name,
            namespace: None,
            address: host.address,
            prefix: lab.prefix,
            mtu: MTU_MAX,
            port: 0,
            private_key: PrivateKey::generate(),
            backend: Backend::Userspace,
            program: program(),
        })
    });
    assert!(matches!(second, Err(Error::NameTaken(_))));
    assert!(host.act(Interface::peers).is_ok());
}

#[test]
fn a_port_that_is_taken_is_an_error_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    let room = Room::new("t");
    let _taken = room.inside(|| std::net::UdpSocket::bind("[::]:51999")).expect("bound");
    let prefix = Prefix::of_market(&[0; 32]);
    let name = room.0.name().to_owned();
    let up = room.inside(|| {
        Interface::up(Options {
            name: name.parse().expect("a name"),
            namespace: None,
            address: prefix.hub(),
            prefix,
            mtu: MTU_MAX,
            port: 51999,
            private_key: PrivateKey::generate(),
            backend: Backend::Userspace,
            program: program(),
        })
    });
    assert!(matches!(up, Err(Error::Tunnel { .. })), "not as if nothing were");
    eventually("the interface is gone", || !room.ip(&["-o", "link", "show"]).contains(&name));
}

#[test]
fn a_namespace_is_made_once_and_survives_what_a_killed_program_left() {
    if !can_run() {
        return;
    }
    let room = Room::new("n");
    let again = Namespace::ensure(room.0.name()).expect("the same");
    let inode = |namespace: &Namespace| {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(namespace.path()).expect("a file").ino()
    };
    assert_eq!(inode(&again), inode(&room.0));
    let broken = Room::new("n");
    broken.0.delete().expect("deleted");
    fs::write(broken.0.path(), "").expect("a file with no namespace behind it");
    assert!(broken.0.enter(|| ()).is_err());
    Namespace::ensure(broken.0.name()).expect("made");
    assert!(broken.0.enter(|| ()).is_ok());
}

#[test]
fn a_door_is_open_to_one_host_at_one_port_and_only_while_the_hub_passes_the_two() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let hub = lab.hub();
    let [source, host, third] = [lab.host(), lab.host(), lab.host()];
    let members = [&source, &host, &third];
    hub.act(|interface| interface.set_peers(&members.map(Member::peer))).expect("peers");
    hub.answer();
    for member in members {
        // Each would send to every other: what it is refused is the doing of guards.
        let mut peer = hub_peer(&hub);
        peer.addresses
            .extend(members.iter().map(|other| other.address).filter(|other| *other != member.address));
        member.act(|interface| interface.set_peers(&[peer])).expect("peers");
        let name = member.act(|interface| interface.name().clone());
        member.underlay.inside(|| guard::host(&name, None, &[], &[])).expect("a guard");
        assert!(member.reaches(member.address, hub.address));
    }
    source.answer_tcp(7000);
    source.answer_tcp(7001);
    let both = |one: &Member, other: &Member| {
        let (one, other) = (one.address, other.address);
        [Pair { from: one, to: other }, Pair { from: other, to: one }]
    };
    let pass = |pairs: &[Pair]| {
        let name = hub.act(|interface| interface.name().clone());
        guard::hub(&name, &hub.home().0, pairs).expect("a guard");
    };
    let doors = |doors: &[Door]| {
        let name = source.act(|interface| interface.name().clone());
        source.underlay.inside(|| guard::host(&name, None, &[], doors)).expect("a guard");
    };
    let at = |port| (source.address, port).into();
    let door = Door { from: host.address, port: 7000 };

    doors(&[door]);
    pass(&[]);
    assert!(!host.connects(at(7000)), "a door alone is no way");
    pass(&both(&source, &host));
    assert!(host.transfers(at(7000), 300_000));
    assert!(!host.connects(at(7001)), "one port");
    assert!(!third.connects(at(7000)));
    pass(&[both(&source, &host), both(&source, &third)].concat());
    assert!(!third.connects(at(7000)), "one host, whomever the hub passes");
    doors(&[]);
    assert!(!host.connects(at(7000)), "a way alone is no door");

    doors(&[door]);
    let standing = host.stream(at(7000));
    assert!(host.echoes(&standing));
    doors(&[]);
    pass(&[]);
    assert!(!host.echoes(&standing), "what stands ends, too");
    assert!(!host.connects(at(7000)));
}
