//! The kernels of the proofs, run on a CPU, compute what the reference in another language does.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    slice,
};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

#[path = "../kernels/embedded.rs"]
mod embedded;

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The same as `compile.py` computes: over names and bytes, with their lengths before them.
fn sources_sha256() -> String {
    let is_source = |name: &str| name.ends_with(".cuh") || ["kernels.cu", "compile.py"].contains(&name);
    let names = fs::read_dir(kernels()).expect("the kernels are there").map(|entry| {
        let name = entry.expect("the directory can be read").file_name();
        name.into_string().expect("names are UTF-8")
    });
    let mut names: Vec<String> = names.filter(|name| is_source(name)).collect();
    names.sort();
    let mut hasher = Sha256::new();
    for name in names {
        let bytes = fs::read(kernels().join(&name)).expect("a source can be read");
        for part in [name.as_bytes(), &bytes] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    hex::encode(hasher.finalize())
}

#[test]
fn what_is_embedded_was_made_of_these_sources() {
    let made_of = embedded::SOURCES_SHA256;
    assert_eq!(made_of, sources_sha256(), "run scripts/kernels, and commit what it makes with the change");
    for artefact in &embedded::ARTEFACTS {
        let embedded::Artefact { name, lowest, highest, gemm_threads, gemm_shared, sha256: expected, image } =
            artefact;
        assert_eq!(&sha256(image), expected, "{name} is not what scripts/kernels made");
        assert!(
            lowest <= highest && gemm_threads % 32 == 0 && *gemm_shared > 48 << 10,
            "{name} cannot be launched"
        );
    }
}

#[test]
fn every_device_from_compute_capability_8_on_finds_kernels() {
    let fits = |name: &str, capability| {
        let fitting =
            embedded::ARTEFACTS.iter().filter(|a| a.lowest <= capability && capability <= a.highest);
        fitting.map(|artefact| artefact.name).next() == Some(name)
    };
    let devices = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (13, 0)];
    let kernels = ["sm_80", "sm_86", "sm_86", "sm_90a", "sm_100", "sm_120", "portable"];
    for (capability, name) in devices.into_iter().zip(kernels) {
        let kind = if name == "portable" { "ptx" } else { "cubin" };
        assert!(fits(&format!("{name}.{kind}"), capability), "{capability:?} does not find {name}");
    }
}

/// The kernels as a program for this machine.
struct Double {
    program: PathBuf,
    _directory: tempfile::TempDir,
}

impl Double {
    fn compiled(options: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("there is room for a program");
        let program = directory.path().join("kernels");
        let compiled = Command::new("g++")
            .args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-DEMULATED"])
            .args(options)
            .arg(kernels().join("emulation/run.cpp"))
            .arg("-o")
            .arg(&program)
            .output()
            .expect("g++ is missing: scripts/install installs it (Debian's package g++)");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        Self { program, _directory: directory }
    }

    /// What it answers, by name. `chance` decides in which order things happen that have none.
    fn ask(&self, chance: u64, request: &str) -> BTreeMap<String, Vec<u8>> {
        let mut child = Command::new(&self.program)
            .arg(chance.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program that was compiled runs");
        let mut input = child.stdin.take().expect("it has an input");
        writeln!(input, "{request}").expect("it reads its input");
        drop(input);
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{request}: the program says what is wrong above");
        let text = String::from_utf8(output.stdout).expect("answers are text");
        let answers = text.lines().filter_map(|line| line.split_once(' '));
        answers
            .map(|(name, bytes)| (name.to_owned(), hex::decode(bytes).expect("bytes are in hexadecimal")))
            .collect()
    }

    /// Asks for what `fields` of `case` say, and compares answers with more of its fields.
    fn check(&self, chance: u64, what: &str, case: &Value, fields: &[&str], expected: &[(&str, &str)]) {
        let words = fields.iter().map(|field| match &case[field] {
            Value::String(text) => text.clone(),
            Value::Array(numbers) => numbers.iter().map(Value::to_string).collect::<Vec<_>>().join(" "),
            number @ (Value::Number(_) | Value::Null | Value::Bool(_) | Value::Object(_)) => {
                number.to_string()
            }
        });
        let request = format!("{what} {}", words.collect::<Vec<_>>().join(" "));
        let answers = self.ask(chance, &request);
        for (name, field) in expected {
            let answer = &answers[*name];
            let answer = if field.ends_with("sha256") { sha256(answer) } else { hex::encode(answer) };
            let digests = case[field].as_array().map_or(slice::from_ref(&case[field]), Vec::as_slice);
            let wanted: String = digests.iter().filter_map(Value::as_str).collect();
            assert!(
                answer == wanted,
                "{request}: {name} is not what the reference has as {field} (chance {chance})"
            );
        }
    }
}

fn vectors() -> Value {
    let text = fs::read(kernels().join("vectors.json")).expect("the vectors are there");
    serde_json::from_slice(&text).expect("the vectors are JSON")
}

fn cases<'a>(vectors: &'a Value, kind: &str) -> &'a [Value] {
    vectors[kind].as_array().unwrap_or_else(|| panic!("there are no vectors for {kind}"))
}

fn multiplies_as_the_reference_does(double: &Double) {
    let all = vectors();
    for (case, chance) in cases(&all, "gemm").iter().flat_map(|case| [(case, 1), (case, 2)]) {
        let expected = [
            ("a", "last_row_of_a"),
            ("b", "last_but_one_column_of_b"),
            ("c", "c_sha256"),
            ("leaves", "leaves_sha256"),
            ("level8", "level8"),
            ("root", "root"),
        ];
        double.check(chance, "gemm", case, &["seed", "m", "n", "k"], &expected);
        let rows = ["seed", "n", "k", "picked_rows"];
        double.check(chance, "rows", case, &rows, &[("c", "picked_c_sha256")]);
    }
}

#[test]
fn the_kernels_for_sm_90a_multiply_as_the_reference_does() {
    multiplies_as_the_reference_does(&Double::compiled(&["-DWGMMA"]));
}

#[test]
fn the_portable_kernels_compute_what_the_reference_does() {
    let double = Double::compiled(&[]);
    multiplies_as_the_reference_does(&double);
    fills_and_reads_as_the_reference_does(&double);
}

fn fills_and_reads_as_the_reference_does(double: &Double) {
    let all = vectors();
    for case in cases(&all, "tree") {
        double.check(1, "tree", case, &["seed", "count"], &[("level8", "level8"), ("root", "root")]);
    }
    for case in cases(&all, "fill") {
        double.check(1, "fill", case, &["seed", "blocks", "depth"], &[("fill", "fill_sha256")]);
    }
    for case in cases(&all, "lanes") {
        let fields = ["fill_seed", "depth", "blocks", "seed", "lanes", "reads"];
        let leaves =
            [("leaves", "leaves_sha256"), ("again", "leaves_sha256"), ("level8", "level8"), ("root", "root")];
        double.check(1, "lanes", case, &fields, &leaves);
    }
    for case in cases(&all, "stream") {
        let fields = ["fill_seed", "depth", "seed", "first", "chunks"];
        let from_first = [("leaves", "leaves_from_first_sha256"), ("root", "root_from_first")];
        double.check(1, "stream", case, &fields, &[&from_first[..], &[("again", "leaves_sha256")]].concat());
    }
}
