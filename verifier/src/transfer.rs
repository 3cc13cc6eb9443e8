//! Who fetches from whom, and when a host is slow. Pure.
//!
//! One transfer says nothing about which of its two hosts was slow, or silent, or lied. So nothing
//! follows from one: a host is slow when its last transfers with several others were, in the
//! same direction, and cannot be reached when hosts of several miners could not connect to it, one
//! after the other. And all of it is measured through the hub, and not proven.

use std::collections::BTreeSet;

use nave_domain::HostId;
use nave_proof::{Failure, Proven, Reason};
use nave_store::{LinkedHost, Measured, Transfer};

use crate::decide::Ruling;

/// With how many others a host must be slow; with all, where there are fewer.
const PARTNERS: usize = 3;
/// With fewer nobody can tell which of two hosts is slow.
const PARTNERS_MIN: usize = 2;
/// Hosts of how many miners, beside its own, must have failed to connect to one that cannot be reached.
const VANTAGES: usize = 2;
/// Ports that hosts serve at: none that programs are given by chance, and few services have one.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// A transfer to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// Who fetches.
    pub host: HostId,
    /// Who sends.
    pub source: HostId,
}

/// Which way the bytes go, seen from one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

/// The hosts that a host transfers with: those of other owners, and where there are none, its owner's
/// others.
fn partners<'a>(hosts: &'a [LinkedHost], host: &LinkedHost) -> Vec<&'a LinkedHost> {
    let others = || hosts.iter().filter(|other| other.host != host.host);
    let strangers: Vec<&LinkedHost> = others().filter(|other| other.hotkey != host.hotkey).collect();
    if strangers.is_empty() { others().collect() } else { strangers }
}

/// The transfers to ask for now. Each host has a part in one at a time, and fetches from the partner that it has not
/// fetched from for longest; `draw` gives a number of which nobody knows anything.
pub fn plan(hosts: &[LinkedHost], recent: &[Transfer], draw: &mut dyn FnMut() -> u64) -> Vec<Fetch> {
    let mut fetches: Vec<Fetch> = Vec::new();
    let mut busy: BTreeSet<HostId> =
        hosts.iter().filter(|host| !host.is_free).map(|host| host.host).collect();
    for host in hosts.iter().filter(|host| host.is_due) {
        if busy.contains(&host.host) {
            continue;
        }
        let partners = partners(hosts, host);
        let last = last_sources(recent, host.host, partners.len().min(PARTNERS).saturating_sub(1));
        let is_free = |partner: &&LinkedHost| !busy.contains(&partner.host) && !last.contains(&partner.host);
        let free = partners.into_iter().filter(is_free);
        // The newest comes first: what stands further behind is longer ago.
        let ago = |source: HostId| {
            let last = recent.iter().position(|past| past.host == host.host && past.source == source);
            last.unwrap_or(usize::MAX)
        };
        let ranked = free.map(|partner| (ago(partner.host), draw(), partner.host)).max();
        if let Some((.., source)) = ranked {
            busy.extend([host.host, source]);
            fetches.push(Fetch { host: host.host, source });
        }
    }
    fetches
}

/// The different hosts that a host has fetched from last: it waits for others, however busy those are, so that
/// what is known of it is never from one partner alone.
fn last_sources(recent: &[Transfer], host: HostId, count: usize) -> BTreeSet<HostId> {
    let mut last = BTreeSet::new();
    for past in recent.iter().filter(|past| past.host == host) {
        if last.len() == count {
            break;
        }
        last.insert(past.source);
    }
    last
}

/// The port that a number of which nobody knows anything chooses.
#[must_use]
pub fn port(drawn: u64) -> u16 {
    let count = u64::from(PORTS.end - PORTS.start);
    PORTS.start + u16::try_from(drawn % count).unwrap_or(0)
}

/// What came of a transfer: nothing in a second, where it failed.
#[must_use]
pub fn measured(ruling: &Ruling) -> Measured {
    match ruling {
        Ruling::Passed(Proven::Transfer { bytes_per_s, .. }) => {
            Measured { bytes_per_s: Some(*bytes_per_s), is_reached: Some(true) }
        }
        Ruling::Failed(failure) => {
            let is_reached = (failure.code == Reason::PortUnreachable).then_some(false);
            Measured { bytes_per_s: Some(0), is_reached }
        }
        Ruling::Passed(
            Proven::Cpu { .. }
            | Proven::Memory { .. }
            | Proven::Storage { .. }
            | Proven::Devices(_)
            | Proven::Software(_),
        )
        | Ruling::Void(_) => Measured::default(),
    }
}

/// What is written down of a transfer: that it passed or says nothing about its host, unless by its
/// `recent` ones, the newest first and this among them, the host cannot be reached or is slow.
#[must_use]
pub fn settle(ruling: Ruling, host: HostId, hosts: &[LinkedHost], recent: &[Transfer], least: u64) -> Ruling {
    if measured(&ruling).bytes_per_s.is_none() {
        return ruling;
    }
    if is_unreachable(host, recent) {
        let message =
            format!("hosts of {VANTAGES} other miners could not connect to what it was to serve in the mesh");
        return Ruling::Failed(Failure { code: Reason::PortUnreachable, message });
    }
    let others = match hosts.iter().find(|linked| linked.host == host) {
        Some(linked) => partners(hosts, linked).len(),
        None => hosts.len(),
    };
    let slow = [Way::In, Way::Out].into_iter().find_map(|way| slow_with(host, recent, way, others, least));
    match (slow, ruling) {
        (Some((count, way)), _) => {
            let direction = match way {
                Way::In => "to",
                Way::Out => "from",
            };
            let message = format!(
                "the last transfers {direction} it with {count} other hosts carried less than {least} bytes in a second, \
                 as measured through the hub"
            );
            Ruling::Failed(Failure { code: Reason::TransferTooSlow, message })
        }
        (None, Ruling::Failed(failure)) => {
            let why = format!("one transfer does not say whose fault it is: {}", failure.message);
            Ruling::Void(why)
        }
        (None, ruling @ (Ruling::Passed(_) | Ruling::Void(_))) => ruling,
    }
}

/// Whether the last hosts of different miners that were to fetch from a host could not connect to it. What its
/// own miner's hosts say does not count, either way.
fn is_unreachable(host: HostId, recent: &[Transfer]) -> bool {
    let of_others = recent.iter().filter(|past| past.source == host && past.hotkey != past.source_hotkey);
    let known = of_others.filter_map(|past| Some((past.hotkey.as_str(), past.measured.is_reached?)));
    let in_vain = known.take_while(|(_, is_reached)| !is_reached).map(|(miner, _)| miner);
    in_vain.collect::<BTreeSet<_>>().len() >= VANTAGES
}

/// With how many others a host is slow one way, if it is with the last of them all.
fn slow_with(host: HostId, recent: &[Transfer], way: Way, others: usize, least: u64) -> Option<(usize, Way)> {
    let needed = others.min(PARTNERS);
    let mut seen = BTreeSet::new();
    let with = recent.iter().filter_map(|past| {
        let (own, partner) = match way {
            Way::In => (past.host, past.source),
            Way::Out => (past.source, past.host),
        };
        let rate = past.measured.bytes_per_s.filter(|_| own == host)?;
        seen.insert(partner).then_some(rate)
    });
    let rates: Vec<u64> = with.take(needed).collect();
    let all_slow = rates.len() == needed && rates.iter().all(|rate| *rate < least);
    (all_slow && needed >= PARTNERS_MIN).then_some((needed, way))
}
