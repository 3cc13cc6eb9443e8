//! Whatever a cloud sends is read or refused: it breaks nothing, takes no more memory than its length
//! explains, and no part of it passes for an id, a price or an explanation that it is not.
//!
//! A fuzzer of mutations with a fixed budget: the same inputs in every run, made from honest answers.

#![allow(clippy::unwrap_used, reason = "a test that panics at the unexpected says where")]

#[path = "clouds/market.rs"]
mod market;

use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use nave_clouds::{
    adapters::open,
    error::CloudError,
    http::{Broken, Reply, Request, Sent, Transport},
    provider::{Cloud, CloudId, Launch, Machine, MachineId, Provider},
    secret::Secret,
    testing::{Faults, Fuse, KEY, Numbers, Wire},
};
use nave_domain::{Bytes, MicroUsd, MilliCpu, Millis};
use uuid::Uuid;

use market::{BEGIN, Market, owner, settings};

/// Rounds of all five calls for each cloud.
const BUDGET: usize = 700;
/// What may be allocated beside what honest answers took.
const GROWTH_KIB_MAX: u64 = 64 << 10;
/// What numbers and words become.
const EXTREMES: [&str; 16] = [
    "0",
    "-1",
    "1e9",
    "1e400",
    "1e-400",
    "0.0000000001",
    "9223372036854775807",
    "18446744073709551616",
    "null",
    "true",
    "\"\"",
    "\"../../x\"",
    "\"a b\"",
    "[]",
    "{}",
    "\"\\u0000\"",
];

/// A cloud whose answers are changed on their way.
struct Foreign {
    wire: Wire,
    numbers: Mutex<Numbers>,
    other: Mutex<Vec<u8>>,
}

fn below(numbers: &mut Numbers, count: usize) -> usize {
    numbers.below(count as u64) as usize
}

/// Changes bytes in a few places: bits, lengths, repetitions, and pieces of another answer.
fn mutated(numbers: &mut Numbers, original: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..=numbers.below(3) {
        let (at, end) = (below(numbers, bytes.len()), below(numbers, bytes.len() + 1));
        let range = at.min(end)..at.max(end).min(at.min(end) + 200);
        match numbers.below(7) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << numbers.below(8),
            1 if !bytes.is_empty() => bytes[at] = numbers.draw() as u8,
            2 => drop(bytes.drain(range)),
            3 => {
                let piece = bytes[range].to_vec();
                bytes.splice(at..at, piece);
            }
            4 => bytes.truncate(at),
            5 => {
                let from = below(numbers, other.len());
                let piece = other[from..other.len().min(from + 64)].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes.resize(bytes.len() + below(numbers, 96), numbers.draw() as u8),
        }
    }
    bytes
}

/// Replaces one value of JSON by something that a reader may stumble over.
fn rewritten(numbers: &mut Numbers, original: &[u8]) -> Vec<u8> {
    let starts: Vec<usize> = (1..original.len()).filter(|at| b":[".contains(&original[at - 1])).collect();
    if starts.is_empty() {
        return mutated(numbers, original, original);
    }
    let start = starts[below(numbers, starts.len())];
    let end = match original[start] {
        b'"' => start + 1 + original[start + 1..].iter().take_while(|byte| **byte != b'"').count() + 1,
        _ => start + original[start..].iter().take_while(|byte| !b",]}".contains(byte)).count(),
    };
    let mut bytes = original.to_vec();
    bytes.splice(start..end.min(original.len()), EXTREMES[below(numbers, EXTREMES.len())].bytes());
    bytes
}

impl Foreign {
    fn change(&self, reply: Reply) -> Reply {
        let mut numbers = self.numbers.lock().expect("nobody panicked");
        let mut other = self.other.lock().expect("nobody panicked");
        let body = match numbers.below(8) {
            0..=3 => rewritten(&mut numbers, &reply.body),
            4..=6 => mutated(&mut numbers, &reply.body, &other),
            _ => reply.body.clone(),
        };
        *other = reply.body;
        let statuses = [reply.status, reply.status, reply.status, reply.status, 200, 400, 404, 429, 500];
        Reply { status: statuses[below(&mut numbers, statuses.len())], retry_after: reply.retry_after, body }
    }
}

impl Transport for Foreign {
    fn send(&self, request: Request) -> Sent<'_> {
        Box::pin(async move {
            let answered: Result<Reply, Broken> = self.wire.double().answer(&request);
            answered.map(|reply| self.change(reply))
        })
    }
}

/// The most memory that this process had so far.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

fn sane_error(error: &CloudError) {
    assert!(error.message.chars().count() <= 300 && error.code.chars().count() <= 300);
    assert!(!format!("{error:?}").contains(KEY));
}

fn sane_machine(machine: &Machine) {
    assert_eq!(CloudId::new(machine.id.as_str()).as_ref(), Some(&machine.id));
    assert!(machine.price.is_none_or(|price| (MicroUsd::ZERO..=MicroUsd(80_000_000_000)).contains(&price)));
    assert!(machine.address.as_ref().is_none_or(|address| !address.contains(char::is_whitespace)));
}

fn offers(provider: &dyn Provider) -> usize {
    match provider.list_offers(BEGIN).now_or_never().unwrap() {
        Ok(offers) => {
            for offer in &offers {
                assert!(offer.price >= MicroUsd::ZERO && offer.price.0 < 80_000_000_000_000, "{offer:?}");
                assert!(
                    offer.memory >= Bytes::ZERO && offer.disk >= Bytes::ZERO && offer.cpu >= MilliCpu::ZERO
                );
                assert!(offer.raw.len() <= 8 << 10);
            }
            offers.len()
        }
        Err(error) => {
            sane_error(&error);
            0
        }
    }
}

fn round(provider: &dyn Provider, launch: &Launch, id: &CloudId) -> (usize, usize) {
    let offers = offers(provider);
    let mut read = 0;
    match provider.list_ours().now_or_never().unwrap() {
        Ok(machines) => {
            machines.iter().for_each(sane_machine);
            read += machines.len();
        }
        Err(error) => sane_error(&error),
    }
    match provider.get(id).now_or_never().unwrap() {
        Ok(machine) => machine.iter().for_each(sane_machine),
        Err(error) => sane_error(&error),
    }
    match provider.launch(launch, BEGIN).now_or_never().unwrap() {
        Ok(launched) => assert_eq!(CloudId::new(launched.as_str()), Some(launched)),
        Err(error) => sane_error(&error),
    }
    if let Err(error) = provider.delete(id).now_or_never().unwrap() {
        sane_error(&error);
    }
    (offers, read)
}

#[test]
fn what_clouds_send_is_read_or_refused_and_passes_for_nothing_else() {
    let mut before = 0;
    for cloud in Cloud::ALL {
        let market = Market::new(cloud, 21, Faults::default());
        let offer = market.provider().list_offers(BEGIN).now_or_never().unwrap().unwrap().remove(0);
        let launch = Launch {
            tag: owner().tag(MachineId(Uuid::from_u128(1))),
            offer,
            boot: Secret::new("join"),
            dead_man: BEGIN.after(Millis(3_600_000)),
            price_max: MicroUsd(2_000_000),
        };
        let id = market.provider().list_ours().now_or_never().unwrap().unwrap().remove(0).id;
        let foreign = Foreign {
            wire: market.wire(&Arc::new(Fuse::whole())),
            numbers: Mutex::new(Numbers::new(0x6e61_7665)),
            other: Mutex::default(),
        };
        let provider = open(cloud, settings("http://double"), Arc::new(foreign));
        if before == 0 {
            before = peak_kib();
        }
        let (mut offers, mut machines) = (0, 0);
        for _ in 0..BUDGET {
            let found = round(provider.as_ref(), &launch, &id);
            (offers, machines) = (offers + found.0, machines + found.1);
            // Launches that had their effect would only make lists longer.
            market.double().site.machines.retain(|number, _| *number <= 2);
        }
        assert!(
            offers > BUDGET / 20 && machines > BUDGET / 30,
            "{cloud}: {offers} offers and {machines} machines were read"
        );
    }
    let growth = peak_kib() - before;
    assert!(growth <= GROWTH_KIB_MAX, "{growth} KiB more than before");
}

#[test]
fn a_list_with_a_machine_that_cannot_be_read_is_no_list() {
    for cloud in Cloud::ALL {
        let market = Market::new(cloud, 22, Faults::default());
        let foreign = Once { wire: market.wire(&Arc::new(Fuse::whole())) };
        let provider = open(cloud, settings("http://double"), Arc::new(foreign));
        assert!(provider.list_ours().now_or_never().unwrap().is_err(), "{cloud}");
    }
}

/// A cloud whose machines all have a status that is no word.
struct Once {
    wire: Wire,
}

impl Transport for Once {
    fn send(&self, request: Request) -> Sent<'_> {
        Box::pin(async move {
            let mut reply = self.wire.double().answer(&request)?;
            let text = String::from_utf8(reply.body).unwrap();
            let text = text.replacen("\"status\":\"", "\"status\":7,\"was\":\"", 1);
            reply.body = text.replacen("\"cur_state\":\"", "\"cur_state\":7,\"was\":\"", 1).into_bytes();
            Ok(reply)
        })
    }
}
