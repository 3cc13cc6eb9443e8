//! Transfers between hosts: what is measured, and that nothing else gets through.

use std::process::Command;

use serde_json::Value;

use crate::support::{Host, Market, succeed, wait_for};

/// Tries one address and port for a second.
const CONNECT: &str = "
import socket, sys
try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 1); print('REACHED')
except OSError: print('refused')
";

/// A host's address in the mesh.
fn address(host: &Host) -> String {
    let listed = succeed(host.inside("ip").args(["-6", "-o", "addr", "show", "scope", "global"]));
    let words = listed.split_whitespace().skip_while(|word| *word != "inet6").nth(1);
    words.and_then(|word| word.split('/').next()).expect("an address").to_owned()
}

/// Who may connect to which port of a host now.
fn door(host: &Host) -> Option<(String, String)> {
    let rules = succeed(host.inside("nft").args(["list", "ruleset"]));
    let (_, set) = rules.split_once("set doors {")?;
    let (_, elements) = set.split_once('}').map_or(set, |(set, _)| set).split_once("elements = {")?;
    let (from, port) = elements.trim().split_once(" . ")?;
    Some((from.to_owned(), port.to_owned()))
}

/// Whether the hub passes packets from any host to another.
fn is_way(of: &Host) -> bool {
    let (market, _) = of.namespace().rsplit_once('-').expect("a host of a market");
    let mut nft = Command::new("nsenter");
    nft.arg(format!("--net=/run/netns/{market}-hub")).args(["--", "nft", "list", "ruleset"]);
    succeed(&mut nft).contains("elements = {")
}

fn transfer(market: &Market, host: &Host) -> Option<Value> {
    let verdicts = market.json(&["hosts", "verdicts", host.id()]);
    let items = verdicts["items"].as_array().expect("a page").clone();
    items.into_iter().find(|verdict| verdict["kind"] == "transfer" && verdict["code"] == "passed")
}

#[test]
fn hosts_fetch_from_one_another_no_third_gets_in_and_nothing_is_left_of_it() {
    // Often enough to be seen, and seldom enough that there are moments without any.
    let arguments = ["--hosts", "3", "--report", "1s", "--transfer-every", "20s"];
    let Some(market) = Market::simulated(&arguments) else { return };
    let hosts = market.hosts();
    for host in &hosts {
        market.await_host(host.id(), "ready");
    }
    let (source, (from, port)) =
        wait_for("a transfer to be open", || hosts.iter().find_map(|host| Some((host, door(host)?))));
    let others = hosts.iter().filter(|host| host.id() != source.id());
    let third = others.clone().find(|host| address(host) != from).expect("three hosts");
    let to = address(source);
    let tried = succeed(third.inside("python3").args(["-c", CONNECT, &to, &port]));
    assert_eq!(tried.trim(), "refused", "{to} is for {from}");

    for host in &hosts {
        let verdict = wait_for("a transfer to be measured", || transfer(&market, host));
        let rate = verdict["ruling"]["passed"]["transfer"]["bytes_per_s"].as_u64();
        assert!(rate.is_some_and(|rate| rate > 0), "{verdict}");
        assert_eq!(verdict["shadow"], true, "it refuses nobody: {verdict}");
    }
    wait_for("that door to be closed", || door(source).is_none_or(|(_, now)| now != port).then_some(()));
    let is_open = |host: &Host| door(host).is_some() || is_way(host);
    wait_for("no host to reach another", || (!hosts.iter().any(is_open)).then_some(()));
    market.audit();
}
