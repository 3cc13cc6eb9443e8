//! `nave audit`: an epoch's pay and weights computed again from its bundle.

use std::{
    fmt::Write as _,
    fs,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use flate2::bufread::MultiGzDecoder;
use nave_domain::MicroUsd;
use nave_sdk::earnings::sums;
use nave_settlement::{
    audit::{self, Report},
    bundle::ReadError,
    evidence::Pay,
};
use serde_json::json;

use super::{
    args::AuditArgs,
    failure::{Failure, exit},
    output,
    table::{clean, table},
};

/// How a gzip file begins.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Audits the bundles in the order they are given in, which is that of their epochs.
///
/// # Errors
/// [`Failure`] where a bundle cannot be read; one that is wrong is an exit code.
pub fn audit(args: &AuditArgs, json: bool) -> Result<u8, Failure> {
    let mut before = None;
    for bundle in &args.bundles {
        let name = clean(&bundle.display().to_string());
        let unread =
            |error: &dyn std::error::Error| Failure::local(&format!("read {name}"), &in_full(error), "");
        let input = open(bundle).map_err(|error| unread(&error))?;
        let report = match audit::audit(input, before.as_ref()) {
            Ok(report) => report,
            Err(ReadError::Difference(difference)) => {
                if json {
                    output::print_json(
                        &json!({ "agrees": false, "bundle": name, "difference": difference }),
                    )?;
                } else {
                    output::print(&format!("{name}: {}\n", clean(&difference.to_string())))?;
                }
                return Ok(exit::DIFFERS);
            }
            Err(error @ ReadError::Io(_)) => return Err(unread(&error)),
        };
        if let Some(wrong) = stranger(args, &report) {
            return Err(Failure::local(&format!("believe {name}"), &wrong, "").exiting(exit::DIFFERS));
        }
        if json {
            output::print_json(&as_document(&name, &report))?;
        } else {
            output::print(&in_words(&report, args.miner.as_deref()))?;
        }
        before = Some(report);
    }
    Ok(0)
}

/// What the bundle is not that it was to be; its own word is no proof of whose it is.
fn stranger(args: &AuditArgs, report: &Report) -> Option<String> {
    let market = args.market_key.map(|key| key.to_string());
    if let Some(market) = market.filter(|market| *market != report.header.market) {
        return Some(format!("it is of the market {}, not {market}", clean(&report.header.market)));
    }
    let head = args.head.as_ref().filter(|head| !head.eq_ignore_ascii_case(&report.head))?;
    Some(format!("its head is {}, not {}", report.head, clean(head)))
}

/// The bundle's lines, whether they are packed or not.
fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    let raw: Box<dyn Read> =
        if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(fs::File::open(path)?) };
    let mut raw = BufReader::with_capacity(1 << 16, raw);
    if raw.fill_buf()?.starts_with(&GZIP) {
        return Ok(Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(raw))));
    }
    Ok(Box::new(raw))
}

fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

fn as_document(name: &str, report: &Report) -> serde_json::Value {
    json!({
        "agrees": true, "bundle": name, "market": report.header.market, "epoch": report.header.epoch,
        "lines": report.lines, "head": report.head, "params": report.params.version,
        "result": report.result, "pays": report.pays,
    })
}

/// What was found, for a person; of one miner every sum.
#[must_use]
pub fn in_words(report: &Report, miner: Option<&str>) -> String {
    let header = &report.header;
    let mut text = format!(
        "epoch {} of market {}: {} lines; every hash and signature fits, and pay and weights follow\nhead     {}\n",
        header.epoch,
        clean(&header.market),
        report.lines,
        report.head
    );
    let totals = [
        ("emission", report.result.smoothed),
        ("used", report.result.used),
        ("standby", report.result.granted),
        ("cash", report.result.cash),
        ("credits", report.result.credits),
        ("sink", report.result.sink),
    ];
    for (name, amount) in totals {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<9}{}", MicroUsd(amount));
    }
    let rows: Vec<Vec<String>> =
        report.result.weights.iter().map(|(hotkey, weight)| row(report, hotkey, *weight)).collect();
    text += &table(&["WEIGHT>", "USED>", "STANDBY>", "PENALTY>", "CARRY>", "HOTKEY"], &rows);
    match miner.map(|hotkey| (hotkey, report.pays.get(hotkey))) {
        None => {}
        Some((hotkey, None)) => text += &format!("\n{} is not in this epoch\n", clean(hotkey)),
        Some((hotkey, Some(pay))) => text += &format!("\n{}\n{}", clean(hotkey), sums(pay)),
    }
    text
}

fn row(report: &Report, hotkey: &str, weight: u16) -> Vec<String> {
    let pay = report.pays.get(hotkey);
    let amount = |of: fn(&Pay) -> i64| pay.map_or_else(String::new, |pay| MicroUsd(of(pay)).to_string());
    let sink = if hotkey == report.header.sink { " (sink)" } else { "" };
    vec![
        weight.to_string(),
        amount(|pay| pay.used),
        amount(|pay| pay.granted),
        amount(|pay| pay.penalty),
        amount(|pay| pay.carry),
        format!("{}{sink}", clean(hotkey)),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use nave_settlement::{
        evidence::{Header, Totals},
        params::Params,
    };

    use super::{super::golden, *};

    fn report() -> Report {
        let header = Header {
            format: 1,
            market: "ab".repeat(32),
            epoch: 7,
            opened_ms: 1_790_000_000_000,
            closed_ms: 1_790_004_320_000,
            chain: "local".to_owned(),
            sink: "sink".to_owned(),
            emission: 2_000_000,
            emission_source: "parameters".to_owned(),
            emissions: vec![2_000_000],
        };
        let pay = Pay {
            hotkey: "5Miner".to_owned(),
            used: 900_000,
            realised: 450_000,
            penalty: 120_000,
            penalty_held: 120_000,
            carry: 780_000,
            breaches: 1,
            bound_ppm: 388,
            weight: 25_558,
            ..Pay::default()
        };
        let result = Totals {
            cash: 0,
            credits: 40_000,
            granted: 0,
            sink: 1_220_000,
            smoothed: 2_000_000,
            used: 900_000,
            vested: 0,
            weights: vec![("5Miner".to_owned(), 25_558), ("sink".to_owned(), 39_977)],
        };
        let pays = BTreeMap::from([(pay.hotkey.clone(), pay)]);
        Report { header, params: Params::default(), pays, result, lines: 12, head: "cd".repeat(32) }
    }

    #[test]
    fn an_audited_epoch_is_shown_with_its_weights_and_one_miners_sums() {
        golden::check("audit.txt", &in_words(&report(), None));
        golden::check("audit-miner.txt", &in_words(&report(), Some("5Miner")));
        assert!(in_words(&report(), Some("5Other")).ends_with("5Other is not in this epoch\n"));
    }

    #[test]
    fn a_bundle_of_another_market_or_head_is_not_believed() {
        let args = |market_key: Option<&str>, head: Option<&str>| AuditArgs {
            bundles: Vec::new(),
            market_key: market_key.map(|key| key.parse().expect("a key")),
            head: head.map(str::to_owned),
            miner: None,
        };
        let wrong = |market, head| stranger(&args(market, head), &report());
        let (ours, other, head) = ("ab".repeat(32), "ac".repeat(32), "CD".repeat(32));
        assert_eq!(wrong(None, None), None);
        assert_eq!(wrong(Some(&ours), Some(&head)), None);
        assert!(wrong(Some(&other), None).is_some_and(|why| why.contains("not acac")));
        assert!(wrong(None, Some("00")).is_some_and(|why| why.contains("its head is cdcd")));
    }

    #[test]
    fn a_packed_bundle_reads_as_the_same_lines() {
        use std::io::Write as _;
        let dir = tempfile::tempdir().expect("a directory");
        let (plain, packed) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&plain, "a line\n").expect("write");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"a line\n").expect("pack");
        fs::write(&packed, gzip.finish().expect("pack")).expect("write");
        for path in [plain, packed] {
            let mut text = String::new();
            open(&path).expect("open").read_to_string(&mut text).expect("read");
            assert_eq!(text, "a line\n");
        }
    }
}
