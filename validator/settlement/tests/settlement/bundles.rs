//! Bundles: what is written is read again, and nothing else is.

use nave_settlement::{
    Report, audit,
    bundle::{Difference, NO_HEAD, ReadError, Reader, WriteError, Writer},
    evidence::{Record, Seal},
    testing::{Epoch, bundle, sign},
};
use proptest::prelude::*;
use serde_json::Value;

/// A small epoch with a record of every kind.
fn small() -> Epoch {
    let mut epoch = (0..)
        .map(|seed| Epoch::random(seed, None))
        .find(|epoch| epoch.events.len() > 2 && !epoch.idle.is_empty() && !epoch.verdicts.is_empty())
        .expect("there is one");
    epoch.events.truncate(1);
    let lease = epoch.events[0].lease.clone();
    let place =
        epoch.leases.iter().position(|other| lease.as_ref().is_none_or(|lease| other.lease == *lease));
    epoch.leases.swap(0, place.expect("its lease"));
    epoch.leases.truncate(2);
    epoch.idle.truncate(2);
    epoch.verdicts.truncate(1);
    epoch
}

fn written(epoch: &Epoch) -> Vec<u8> {
    epoch.bundle(NO_HEAD, &epoch.settle().expect("settled")).expect("written").0
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

fn difference(result: Result<Report, ReadError>) -> Difference {
    match result {
        Err(ReadError::Difference(difference)) => difference,
        other => panic!("a difference was expected: {other:?}"),
    }
}

fn found(bytes: &[u8]) -> Difference {
    difference(audit(bytes, None))
}

/// The bundle of a market that lies: its records, changed, under hashes and a seal that fit them.
fn lie(epoch: &Epoch, change: impl FnOnce(&mut Vec<Record>)) -> Vec<u8> {
    let settled = epoch.settle().expect("settled");
    let mut records = epoch.records();
    records.extend(settled.pays.values().cloned().map(Record::Pay));
    records.push(Record::Result(settled.result));
    change(&mut records);
    bundle(NO_HEAD, &records).expect("written").0
}

#[test]
fn a_bundle_holds_what_was_written() {
    let epoch = small();
    let bytes = written(&epoch);
    let mut reader = Reader::new(bytes.as_slice(), Some(NO_HEAD));
    let mut read = Vec::new();
    while let Some(record) = reader.read().expect("as it was written") {
        read.push(record);
    }
    assert_eq!(read[..epoch.records().len()], epoch.records());
    let report = audit(bytes.as_slice(), None).expect("it follows");
    assert_eq!((report.lines, report.head.as_str()), (reader.lines(), reader.head()));
    assert_eq!(report.pays, epoch.settle().expect("settled").pays);
}

#[test]
fn lines_are_in_canonical_form() {
    for seed in 0..20 {
        for line in text(&written(&Epoch::random(seed, None))).lines() {
            let value: Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(value.to_string(), line, "keys are sorted");
        }
    }
}

#[test]
fn every_flipped_byte_is_found() {
    let bytes = written(&small());
    for at in 0..bytes.len() {
        for mask in [1, 0x20, 0x80] {
            let mut other = bytes.clone();
            other[at] ^= mask;
            assert!(audit(other.as_slice(), None).is_err(), "byte {at} with {mask}");
        }
    }
}

#[test]
fn a_bundle_that_ends_early_or_goes_on_is_found() {
    let bytes = written(&small());
    for end in 0..bytes.len() {
        assert!(audit(&bytes[..end], None).is_err(), "{end} bytes");
    }
    let more = [bytes.as_slice(), b"\n"].concat();
    assert_eq!(found(&more).follows, "comes after the seal");
    assert_eq!(found(&bytes[..bytes.len() - 1]).follows, "has no end");
    assert_eq!(found(b"").to_string(), "line 1: the bundle ends without a seal");
}

#[test]
fn what_means_the_same_and_is_written_differently_is_refused() {
    let bytes = text(&written(&small()));
    let ways = [
        ("{\"body\"", "{ \"body\""),
        ("\"format\":1", "\"format\":1.0"),
        ("\"format\":1", "\"format\":01"),
        ("\"chain\":\"local\"", "\"chain\":\"loc\\u0061l\""),
        ("\"seq\":0}", "\"seq\":0,\"more\":1}"),
        ("\"seq\":0}", "\"seq\":0}\r"),
        ("\"chain\":\"local\",", "\"chain\":\"local\",\"chain\":\"local\","),
        ("\"format\":1", "\"format\":2"),
        ("\"emission\":", "\"emission\":-"),
        ("\"kind\":\"header\"", "\"kind\":\"heading\""),
    ];
    for (one, other) in ways {
        let changed = bytes.replacen(one, other, 1);
        assert_ne!(changed, bytes, "{one}");
        assert_eq!(found(changed.as_bytes()).to_string(), "line 1: is not the canonical form of a record");
    }
}

#[test]
fn lines_come_in_order_and_once() {
    let epoch = small();
    let records = epoch.records();
    for (at, record) in records.iter().enumerate().skip(1) {
        let mut writer = Writer::new(Vec::new(), NO_HEAD);
        records[..=at].iter().for_each(|record| writer.push(record).expect("in order"));
        for earlier in &records[..=at] {
            assert!(matches!(writer.push(earlier), Err(WriteError::Order(_))), "{}", record.name());
        }
    }
    let mut writer = Writer::new(Vec::new(), NO_HEAD);
    assert!(matches!(writer.push(&records[1]), Err(WriteError::Order(_))), "the header comes first");
    writer.push(&records[0]).expect("the header");
    assert!(matches!(writer.push(&records[2]), Err(WriteError::Order(_))), "parameters come second");
    writer.push(&records[1]).expect("parameters");
    let seal = Seal { epoch: 1, lines: 2, market: String::new(), signature: String::new() };
    assert!(matches!(writer.push(&Record::Seal(seal)), Err(WriteError::Order(_))), "a result comes before");
}

#[test]
fn a_line_that_was_moved_is_named() {
    let bytes = text(&written(&small()));
    let mut lines: Vec<&str> = bytes.lines().collect();
    lines.swap(3, 4);
    let difference = found(format!("{}\n", lines.join("\n")).as_bytes());
    assert_eq!((difference.line, difference.field.as_str()), (4, "seq"));
    assert_eq!((difference.says.as_str(), difference.follows.as_str()), ("4", "3"));
}

#[test]
fn a_market_that_pays_otherwise_than_it_should_is_found() {
    let epoch = small();
    let hotkey = epoch.miners[0].hotkey.clone();
    let bytes = lie(&epoch, |records| {
        for record in records {
            if let Record::Pay(pay) = record
                && pay.hotkey == hotkey
            {
                pay.carry += 1;
            }
        }
    });
    let difference = found(&bytes);
    assert_eq!((difference.record.as_str(), difference.field.as_str()), (&*format!("pay {hotkey}"), "carry"));
    let carry = epoch.settle().expect("settled").pays[&hotkey].carry;
    assert_eq!((difference.says, difference.follows), ((carry + 1).to_string(), carry.to_string()));
}

#[test]
fn a_market_that_hides_or_changes_evidence_is_found() {
    let epoch = small();
    let without =
        |kind: &'static str| move |records: &mut Vec<Record>| records.retain(|record| record.kind() != kind);
    let nobody = found(&lie(&epoch, without("miner")));
    assert_eq!(nobody.follows, format!("there is no miner {}", epoch.events[0].hotkey));
    assert_eq!(found(&lie(&epoch, without("pay"))).record, "result");
    let weights = found(&lie(&epoch, |records| {
        if let Some(Record::Result(result)) = records.last_mut() {
            result.weights[0].1 -= 1;
        }
    }));
    assert_eq!((weights.record.as_str(), weights.field.as_str()), ("result", "weights"));
    let mut event = epoch.clone();
    event.events[0].lease = Some("nowhere".into());
    assert!(event.settle().is_err(), "events come with their lease");
    let forged = lie(&epoch, |records| {
        for record in records {
            if let Record::Event(event) = record {
                event.until_ms += 1;
            }
        }
    });
    assert_eq!(found(&forged).follows, "is not signed by the market");
}

#[test]
fn a_bundle_that_somebody_else_sealed_is_found() {
    let epoch = small();
    let mut records = epoch.records();
    let settled = epoch.settle().expect("settled");
    records.extend(settled.pays.values().cloned().map(Record::Pay));
    records.push(Record::Result(settled.result));
    let mut writer = Writer::new(Vec::new(), NO_HEAD);
    records.iter().for_each(|record| writer.push(record).expect("in order"));
    let (bytes, _) = writer.seal(|_| sign(b"something else")).expect("written");
    assert_eq!(found(&bytes).to_string().split(", ").nth(1), Some("seal: is not signed by the market"));
}

#[test]
fn an_epoch_has_to_go_on_from_the_one_before() {
    let first =
        (0..).map(|seed| Epoch::random(seed, None)).find(|epoch| epoch.leases.len() > 9).expect("one");
    let settled = first.settle().expect("settled");
    let (bytes, head) = first.bundle(NO_HEAD, &settled).expect("written");
    let report = audit(bytes.as_slice(), None).expect("it follows");
    assert_eq!(report.head, head);
    let second = Epoch::random(77, Some((&first, &settled)));
    let after = |epoch: &Epoch, head: &str| {
        let settled = epoch.settle().expect("settled");
        audit(epoch.bundle(head, &settled).expect("written").0.as_slice(), Some(&report))
    };
    assert!(after(&second, &head).is_ok());
    assert_eq!(difference(after(&second, NO_HEAD)).field, "prev");
    let changed = |change: fn(&mut Epoch)| {
        let mut epoch = second.clone();
        change(&mut epoch);
        difference(after(&epoch, &head))
    };
    assert_eq!(changed(|epoch| epoch.miners[0].carry += 1).field, "carry");
    assert_eq!(changed(|epoch| epoch.miners[0].weight ^= 1).field, "weight");
    assert_eq!(changed(|epoch| epoch.miners[0].demoted_until_ms += 1).field, "demoted_until_ms");
    assert_eq!(changed(|epoch| epoch.header.epoch += 1).field, "epoch");
    assert_eq!(changed(|epoch| epoch.header.opened_ms -= 1).field, "opened_ms");
    assert_eq!(changed(|epoch| epoch.header.emissions.clear()).field, "emissions");
    assert_eq!(changed(|epoch| epoch.params.notice_epochs += 1).field, "notice_epochs");
    let mut paid_in = second.clone();
    paid_in.miners[0].collateral += 1;
    assert!(after(&paid_in, &head).is_ok(), "owners pay collateral in");
    let quiet =
        |epoch: &Epoch| Epoch { miners: vec![], ..Epoch { header: epoch.header.clone(), ..Epoch::empty() } };
    let empty = Epoch { params: second.params.clone(), ..quiet(&second) };
    assert!(difference(after(&empty, &head)).follows.starts_with("comes, and the miner "));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn a_reader_takes_any_bytes_without_a_panic(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..5),
    ) {
        let bytes = written(&small());
        let mut other = bytes.clone();
        for (at, byte, way) in cuts {
            let at = at.index(other.len());
            match way {
                0 => other[at] = byte,
                1 => other.insert(at, byte),
                2 => drop(other.remove(at)),
                _ => other.truncate(at + 1),
            }
        }
        prop_assert_eq!(audit(other.as_slice(), None).is_ok(), other == bytes);
    }
}
