//! The other implementation, in Python, reads what this one reads and says the same, to the word.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use nave_settlement::{
    audit,
    bundle::{Difference, NO_HEAD, ReadError},
    testing::{Draw, Epoch, sign},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::golden::folder;

/// Audits every file of a directory by itself, and prints a line of JSON for each, in the order of names.
const EACH: &str = r#"
import json, os, sys
sys.path.insert(0, sys.argv[1])
import nave_audit
for name in sorted(os.listdir(sys.argv[2])):
    try:
        nave_audit.Audit(os.path.join(sys.argv[2], name))
        print(json.dumps([name, None]))
    except nave_audit.Difference as difference:
        print(json.dumps([name, dict(zip(("line", "record", "field", "says", "follows"), difference.args))]))
"#;

/// Vectors 1 to 3 of RFC 8032, 7.1, each also with another message, key and signature, and with S + L.
const SIGNATURES: &str = r#"
import sys
sys.path.insert(0, sys.argv[1])
from nave_audit import Key, ORDER
VECTORS = [
    ("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
    ("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"),
    ("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"),
]
for key, message, signature in VECTORS:
    key, message, signature = (bytes.fromhex(text) for text in (key, message, signature))
    assert Key(key).signed(signature, message)
    assert not Key(key).signed(signature, message + b"x")
    for at in range(64):
        assert not Key(key).signed(signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1:], message)
    assert not Key(bytes([key[0] ^ 1]) + key[1:]).signed(signature, message)
    large = int.from_bytes(signature[32:], "little") + ORDER
    assert not Key(key).signed(signature[:32] + large.to_bytes(32, "little"), message)
    assert not Key(key).signed(signature[:63], message) and not Key(b"").signed(signature, message)
"#;

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sdk/python/nave_audit.py")
}

fn python(program: &str, arguments: &[&Path]) -> Output {
    let modules = script().parent().expect("a folder").to_owned();
    Command::new("python3")
        .args(["-B", "-c", program])
        .arg(modules)
        .args(arguments)
        .output()
        .expect("python3 is installed")
}

/// What the command says of a chain of bundles.
fn command(bundles: &[PathBuf]) -> Output {
    Command::new("python3").arg("-B").arg(script()).args(bundles).output().expect("python3 is installed")
}

/// What both say of each of `bundles`, which has to be the same; how many of them they refuse.
fn both(bundles: &[Vec<u8>]) -> usize {
    let here = tempfile::tempdir().expect("a directory");
    for (number, bytes) in bundles.iter().enumerate() {
        fs::write(here.path().join(format!("{number:05}.jsonl")), bytes).expect("written");
    }
    let output = python(EACH, &[here.path()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).expect("text");
    assert_eq!(said.lines().count(), bundles.len());
    let mut refused = 0;
    for (line, bytes) in said.lines().zip(bundles) {
        let (name, theirs): (String, Option<Difference>) = serde_json::from_str(line).expect("JSON");
        let ours = match audit(bytes.as_slice(), None) {
            Ok(_) => None,
            Err(ReadError::Difference(difference)) => Some(difference),
            Err(ReadError::Io(error)) => panic!("{name}: {error}"),
        };
        assert_eq!(theirs, ours, "{name}: {}", String::from_utf8_lossy(bytes));
        refused += usize::from(ours.is_some());
    }
    refused
}

fn bundles(seeds: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    let bundle = |seed| {
        let epoch = Epoch::random(seed, None);
        let settlement = epoch.settle().expect("settled");
        epoch.bundle(NO_HEAD, &settlement).expect("written").0
    };
    seeds.map(bundle).collect()
}

/// A bundle with one byte or one line that is not as it was.
fn with_other_bytes(draw: &mut Draw, bundle: &[u8]) -> Vec<u8> {
    let mut bytes = bundle.to_vec();
    let at = below(draw, bytes.len());
    let mut lines: Vec<&[u8]> = bundle.split_inclusive(|byte| *byte == b'\n').collect();
    let line = below(draw, lines.len());
    match draw.below(8) {
        0 => bytes[at] ^= 1 << draw.below(8),
        1 => bytes[at] = b"0123456789abcdef\"\\ {}[],:\n-"[below(draw, 27)],
        2 => drop(bytes.remove(at)),
        3 => bytes.insert(at, bundle[below(draw, bundle.len())]),
        4 => bytes.truncate(at),
        5 => {
            lines.remove(line);
            bytes = lines.concat();
        }
        6 => {
            lines.insert(below(draw, lines.len()), lines[line]);
            bytes = lines.concat();
        }
        _ => {
            lines.swap(line, below(draw, bundle.split(|byte| *byte == b'\n').count() - 1));
            bytes = lines.concat();
        }
    }
    bytes
}

fn below(draw: &mut Draw, end: usize) -> usize {
    usize::try_from(draw.below(i64::try_from(end).expect("small"))).expect("small")
}

/// A bundle that says something else and is whole: hashes and signatures are made anew.
fn with_another_value(draw: &mut Draw, bundle: &[u8]) -> Vec<u8> {
    let parsed = bundle.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let mut lines: Vec<Value> = parsed.map(|line| serde_json::from_slice(line).expect("JSON")).collect();
    let number = below(draw, lines.len());
    let body = lines[number]["body"].as_object_mut().expect("an object");
    let names: Vec<String> = body.keys().cloned().collect();
    let name = &names[below(draw, names.len())];
    if draw.below(12) == 0 {
        body.remove(name);
    } else {
        change(draw, body.get_mut(name).expect("it is there"));
    }
    seal(&mut lines)
}

fn change(draw: &mut Draw, value: &mut Value) {
    match value {
        Value::Number(number) => {
            let was = number.as_i64().unwrap_or(0);
            let others =
                [0, 1, -1, was - 1, was + 1, was / 2, was.saturating_mul(2), i64::MAX, 1 << 62, 70_000];
            *value = json!(others[below(draw, others.len())]);
        }
        Value::String(text) => {
            let others = ["", "x", "\u{1}\n", "host", "ü", "999", "zz"];
            let other = others[below(draw, others.len())];
            *value = json!(if draw.below(2) == 0 { format!("{text}{other}") } else { other.to_owned() });
        }
        Value::Array(items) if !items.is_empty() => match draw.below(4) {
            0 => drop(items.remove(0)),
            1 => items.reverse(),
            _ => {
                let at = below(draw, items.len());
                change(draw, &mut items[at]);
            }
        },
        Value::Array(_) | Value::Null | Value::Object(_) => *value = json!([[1, 2, 3]]),
        Value::Bool(was) => *value = json!(!*was),
    }
}

/// Lines as the market would have written them.
fn seal(lines: &mut [Value]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut prev = NO_HEAD.to_owned();
    for line in lines {
        line["prev"] = json!(prev);
        let kind = line["kind"].as_str().expect("a kind").to_owned();
        let body = line["body"].as_object_mut().expect("an object");
        let was = body.remove("signature");
        let text = match kind.as_str() {
            "event" => format!("nave event 1\n{}", Value::Object(body.clone())),
            _ => format!(
                "nave evidence 1\n{}\n{}\n{}\n{prev}",
                body.get("market").and_then(Value::as_str).unwrap_or_default(),
                body.get("epoch").unwrap_or(&Value::Null),
                body.get("lines").unwrap_or(&Value::Null)
            ),
        };
        if was.is_some() {
            body.insert("signature".to_owned(), json!(hex::encode(sign(text.as_bytes()))));
        }
        let text = line.to_string();
        prev = hex::encode(Sha256::digest(text.as_bytes()));
        bytes.extend(text.into_bytes());
        bytes.push(b'\n');
    }
    bytes
}

#[test]
fn signatures_of_rfc_8032_are_taken_and_no_others() {
    let output = python(SIGNATURES, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn golden_epochs_follow_in_python_too() {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder()).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let golden: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).expect("a bundle")).collect();
    assert!(golden.len() > 5);
    assert_eq!(both(&golden), 0);
}

#[test]
fn both_compute_the_same_of_random_epochs() {
    assert_eq!(both(&bundles(0..240)), 0);
}

#[test]
fn both_name_the_same_byte_that_was_changed() {
    let whole = bundles(1_000..1_040);
    let mut draw = Draw(8);
    let changed: Vec<Vec<u8>> =
        (0..400).map(|number| with_other_bytes(&mut draw, &whole[number % whole.len()])).collect();
    assert!(both(&changed) > 350);
}

#[test]
fn both_name_the_same_value_that_does_not_follow() {
    let whole = bundles(2_000..2_040);
    let mut draw = Draw(9);
    let changed: Vec<Vec<u8>> =
        (0..800).map(|number| with_another_value(&mut draw, &whole[number % whole.len()])).collect();
    assert!(both(&changed) > 300);
}

#[test]
fn both_follow_a_chain_and_see_where_it_breaks() {
    let here = tempfile::tempdir().expect("a directory");
    let (mut before, mut head, mut paths) = (None, NO_HEAD.to_owned(), Vec::new());
    for number in 0..6 {
        let so_far = before.as_ref().map(|(epoch, settlement)| (epoch, settlement));
        let epoch = Epoch::random(77 + number, so_far);
        let settlement = epoch.settle().expect("settled");
        let (bytes, next) = epoch.bundle(&head, &settlement).expect("written");
        let path = here.path().join(format!("{number}.jsonl"));
        fs::write(&path, bytes).expect("written");
        paths.push(path);
        (before, head) = (Some((epoch, settlement)), next);
    }
    assert_eq!(command(&paths).status.code(), Some(0));
    let gap = [paths[0].clone(), paths[2].clone()];
    let output = command(&gap);
    let first = audit(fs::read(&gap[0]).expect("read").as_slice(), None).expect("it follows");
    let ours = audit(fs::read(&gap[1]).expect("read").as_slice(), Some(&first)).expect_err("a gap");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.lines().nth(1), Some(format!("{}: {ours}", gap[1].display()).as_str()));
    assert_eq!(command(&[here.path().join("none")]).status.code(), Some(2));
    assert_eq!(command(&[]).status.code(), Some(2));
}
