//! The invariants of the architecture that no compiler checks, as tests over the sources.
//!
//! Nothing here needs a network. Each message says what to do.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

/// Which crates of this workspace each one may depend on.
const ARROWS: [(&str, &[&str]); 17] = [
    ("domain", &[]),
    ("crash-point", &[]),
    ("mesh", &["nave-domain"]),
    ("sdk", &["nave-domain", "nave-proof", "nave-rules", "nave-settlement"]),
    ("store", &["nave-domain", "nave-crash-point"]),
    ("scheduler", &["nave-domain", "nave-store", "nave-crash-point", "nave-clouds"]),
    ("scheduler/clouds", &["nave-domain"]),
    ("validator/settlement", &["nave-domain"]),
    ("validator/economy", &["nave-domain", "nave-settlement"]),
    ("validator", &["nave-domain", "nave-settlement", "nave-store", "nave-crash-point"]),
    ("api-gateway", &["nave-domain", "nave-store", "nave-sdk", "nave-crash-point"]),
    ("miner-agent", &["nave-domain", "nave-mesh", "nave-sdk", "nave-crash-point"]),
    ("miner-agent/prover", &["nave-domain", "nave-proof"]),
    ("verifier/proof", &["nave-domain"]),
    ("verifier/rules", &["nave-domain", "nave-proof"]),
    ("verifier", &["nave-domain", "nave-store", "nave-proof", "nave-rules", "nave-crash-point"]),
    (
        "nave",
        &[
            "nave-domain",
            "nave-crash-point",
            "nave-mesh",
            "nave-proof",
            "nave-rules",
            "nave-sdk",
            "nave-store",
            "nave-scheduler",
            "nave-clouds",
            "nave-validator",
            "nave-verifier",
            "nave-gateway",
            "nave-miner-agent",
        ],
    ),
];

/// Doors to the outside world, and the one crate that may open each.
const DOORS: [(&str, &str); 7] = [
    ("sqlx", "store"),
    ("axum", "api-gateway"),
    ("oci-client", "api-gateway"),
    ("bollard", "miner-agent"),
    ("nvml-wrapper", "miner-agent/prover"),
    ("gotatun", "mesh"),
    ("wireguard-control", "mesh"),
];

/// Crates in which money, capacity and usage are integers.
const EXACT: [&str; 10] = [
    "domain/src",
    "store/src",
    "scheduler/src",
    "scheduler/clouds/src",
    "validator/src",
    "validator/settlement/src",
    "validator/economy/src",
    "verifier/src",
    "verifier/proof/src",
    "verifier/rules/src",
];

/// Code that is a function of its arguments.
const PURE: [&str; 21] = [
    "domain/src",
    "verifier/proof/src",
    "verifier/rules/src",
    "validator/settlement/src",
    "scheduler/src/planner.rs",
    "scheduler/src/planner",
    "scheduler/src/fit.rs",
    "scheduler/src/wait.rs",
    "scheduler/src/fleet",
    "scheduler/src/watch.rs",
    "scheduler/src/demand.rs",
    "scheduler/src/demand",
    "scheduler/clouds/src/machine.rs",
    "scheduler/clouds/src/baseline.rs",
    "scheduler/clouds/src/classes.rs",
    "scheduler/clouds/src/money.rs",
    "verifier/src/decide.rs",
    "verifier/src/draw.rs",
    "verifier/src/schedule.rs",
    "verifier/src/transfer.rs",
    "miner-agent/src/core.rs",
];

/// What each of our things is called instead is in `docs/glossary.md`.
const BANNED_WORDS: [&str; 7] = ["node", "worker", "instance", "manager", "helper", "util", "utils"];

/// Names that other people's interfaces force on us.
const FORCED_NAMES: [&str; 5] = [
    "worker_threads",
    "futures_util",
    "hyper_util",
    "compute_instance_slice_count",
    "gpu_instance_slice_count",
];

const FILE_LINES_MAX: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above this crate")
}

/// A file of the repository.
struct Source {
    /// From the root, with slashes.
    path: String,
    text: String,
}

impl Source {
    fn is(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|found| found == extension)
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| Path::new(&self.path).starts_with(place))
    }

    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("/tests.rs") || self.path.ends_with("testing.rs")
    }

    /// The text without the unit tests at its end.
    fn without_tests(&self) -> &str {
        self.text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
    }
}

/// Every text file below the root that belongs to the project.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    let mut todo = vec![root().to_owned()];
    while let Some(dir) = todo.pop() {
        // What this account may not read, such as the data of a market, is not ours.
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let hidden = name.starts_with('.') && ![".ci", ".cargo"].contains(&name.as_str());
            if hidden || name == "target" || path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                todo.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                let below = path.strip_prefix(root()).expect("below the root");
                found.push(Source { path: below.to_string_lossy().into_owned(), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn rust() -> Vec<Source> {
    sources().into_iter().filter(|source| source.is("rs")).collect()
}

/// Fails with every place where a rule is broken and with what to do about it.
fn assert_none(broken: &[String], what_to_do: &str) {
    assert!(broken.is_empty(), "{what_to_do}\n  {}", broken.join("\n  "));
}

/// `path:line: text` of each line that a rule refuses.
fn lines(source: &Source, text: &str, refused: impl Fn(&str) -> bool) -> Vec<String> {
    let numbered = text.lines().enumerate().filter(|(_, line)| refused(line));
    numbered.map(|(number, line)| format!("{}:{}: {}", source.path, number + 1, line.trim())).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

fn manifest(place: &str) -> toml::Table {
    let path = root().join(place).join("Cargo.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("parse {}: {error}", path.display()))
}

fn dependencies(manifest: &toml::Table, section: &str) -> BTreeSet<String> {
    let table = manifest.get(section).and_then(toml::Value::as_table);
    table.into_iter().flat_map(toml::Table::keys).cloned().collect()
}

fn members() -> Vec<String> {
    let workspace = manifest("");
    let members = workspace["workspace"]["members"].as_array().expect("members");
    members.iter().map(|member| member.as_str().expect("a folder").to_owned()).collect()
}

#[test]
fn crates_depend_only_on_those_below_them() {
    let known: BTreeSet<&str> = ARROWS.iter().map(|(place, _)| *place).collect();
    let all = members();
    let unknown: Vec<String> =
        all.iter().filter(|member| !known.contains(member.as_str())).cloned().collect();
    assert_none(&unknown, "Decide what this crate may depend on: add it to ARROWS in nave/tests/tidy.rs.");
    let mut broken = Vec::new();
    for (place, allowed) in ARROWS {
        let manifest = manifest(place);
        let own = dependencies(&manifest, "dependencies");
        let build = dependencies(&manifest, "build-dependencies");
        let ours = own.union(&build).filter(|name| name.starts_with("nave-"));
        broken.extend(
            ours.filter(|name| !allowed.contains(&name.as_str())).map(|name| format!("{place} -> {name}")),
        );
    }
    assert_none(
        &broken,
        "Roles meet in Postgres rows, not in each other: move what both need down to domain or store.",
    );
}

#[test]
fn each_door_to_the_outside_is_opened_by_one_crate() {
    let mut broken = Vec::new();
    for place in members() {
        let names = dependencies(&manifest(&place), "dependencies");
        broken.extend(
            DOORS
                .iter()
                .filter(|(door, owner)| names.contains(*door) && place != *owner)
                .map(|(door, owner)| format!("{place} uses {door}, which is {owner}'s")),
        );
    }
    assert_none(&broken, "Put the call behind a function of the crate that owns the door.");
}

#[test]
fn every_crash_point_is_one_line_and_is_on_the_list() {
    let mut used: Vec<String> = Vec::new();
    for source in rust().iter().filter(|source| !source.is_in(&["crash-point"]) && !source.is_test()) {
        let calls = source.without_tests().split("crash_point!(\"").skip(1);
        used.extend(calls.filter_map(|rest| rest.split('"').next()).map(str::to_owned));
    }
    let count = |name: &str| used.iter().filter(|used| *used == name).count();
    let listed = nave_crash_point::POINTS.iter().filter(|name| count(name) != 1);
    let unlisted = used.iter().filter(|name| !nave_crash_point::POINTS.contains(&name.as_str()));
    let listed = listed.map(|name| format!("{name} is on the list and stands in {} lines", count(name)));
    let broken: Vec<String> =
        listed.chain(unlisted.map(|name| format!("{name} is not on the list"))).collect();
    assert_none(&broken, "One name for one line: put it there, or take it out of crash-point/src/points.rs.");
}

#[test]
fn what_others_link_against_reaches_no_copyleft_code() {
    let mut reached = BTreeSet::from(["nave-sdk".to_owned()]);
    let mut todo = vec!["sdk".to_owned()];
    let places: Vec<(String, String)> = members()
        .into_iter()
        .map(|place| (manifest(&place)["package"]["name"].as_str().expect("a name").to_owned(), place))
        .collect();
    while let Some(place) = todo.pop() {
        for name in dependencies(&manifest(&place), "dependencies") {
            let ours = places.iter().find(|(ours, _)| *ours == name);
            if reached.insert(name.clone()) {
                todo.extend(ours.map(|(_, place)| place.clone()));
            }
        }
    }
    let copyleft = ["wireguard-control", "gotatun"].map(str::to_owned);
    let broken: Vec<String> = copyleft.into_iter().filter(|name| reached.contains(name)).collect();
    assert_none(&broken, "Customers and miners link the sdk: keep LGPL and MPL code behind nave-mesh.");
}

#[test]
fn sql_is_only_in_store() {
    let in_manifests = members().into_iter().filter(|place| place != "store").filter(|place| {
        let manifest = manifest(place);
        ["dependencies", "dev-dependencies", "build-dependencies"]
            .iter()
            .any(|section| dependencies(&manifest, section).contains("sqlx"))
    });
    let in_files = sources().into_iter().filter(|source| source.is("sql") && !source.is_in(&["migrations"]));
    let broken: Vec<String> = in_manifests.chain(in_files.map(|source| source.path)).collect();
    assert_none(&broken, "Give store a function `noun_verb` for it, and call that.");
}

#[test]
fn every_crate_takes_the_workspaces_lints() {
    let broken: Vec<String> = members()
        .into_iter()
        .filter(|place| {
            let manifest = manifest(place);
            let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
            lints.and_then(toml::Value::as_bool) != Some(true)
        })
        .collect();
    assert_none(&broken, "Add `[lints] workspace = true` to its Cargo.toml.");
}

#[test]
fn money_capacity_and_usage_are_never_floats() {
    let refused = |line: &str| words(&code(line)).any(|word| word == "f32" || word == "f64");
    let broken: Vec<String> = rust()
        .iter()
        .filter(|source| source.is_in(&EXACT))
        .flat_map(|source| lines(source, &source.text, refused))
        .collect();
    assert_none(&broken, "Use an integer unit of nave_domain::units and say how it is rounded.");
}

/// Addresses are values; sockets are not.
fn opens_sockets(line: &str) -> bool {
    ["TcpStream", "TcpListener", "UdpSocket", "ToSocketAddrs"].iter().any(|name| line.contains(name))
}

#[test]
fn pure_code_reads_no_clock_and_walks_nothing_unordered() {
    let refused = |line: &str| {
        let line = code(line);
        let named = words(&line).any(|word| ["SystemTime", "Instant", "HashMap", "HashSet"].contains(&word));
        named || line.contains("now_utc") || line.contains("std::fs") || opens_sockets(&line)
    };
    let broken: Vec<String> = rust()
        .iter()
        .filter(|source| source.is_in(&PURE))
        .flat_map(|source| lines(source, source.without_tests(), refused))
        .collect();
    assert_none(&broken, "Take the time and what was read as arguments; use BTreeMap and BTreeSet.");
}

#[test]
fn nothing_is_run_through_a_shell() {
    let shells = ["sh", "bash", "dash", "/bin/sh", "/bin/bash", "/usr/bin/bash"];
    let refused = |line: &str| {
        shells.iter().any(|shell| line.contains(&format!("Command::new(\"{shell}\")")))
            || shells.iter().any(|shell| line.contains(&format!("\"{shell}\", \"-c\"")))
    };
    let broken: Vec<String> = rust()
        .iter()
        .filter(|source| !source.is_test())
        .flat_map(|source| lines(source, source.without_tests(), refused))
        .collect();
    assert_none(&broken, "Run the program itself with an argument vector.");
}

#[test]
fn one_word_per_thing() {
    let mut broken = Vec::new();
    for source in sources() {
        let name = Path::new(&source.path).file_stem().unwrap_or_default().to_string_lossy();
        if is_banned(&name) {
            broken.push(format!("{}: its name", source.path));
        }
        if !source.is("rs") {
            continue;
        }
        let code = code(&source.text);
        let names: BTreeSet<&str> =
            words(&code).filter(|name| is_banned(name) && !FORCED_NAMES.contains(name)).collect();
        broken.extend(names.into_iter().map(|name| format!("{}: {name}", source.path)));
    }
    assert_none(
        &broken,
        "Use the word of docs/glossary.md, or say what it does; a name that another interface forces goes \
         to FORCED_NAMES in nave/tests/tidy.rs.",
    );
}

/// Whether one of the words of an identifier is banned, in the singular or the plural.
fn is_banned(name: &str) -> bool {
    let mut spaced = String::new();
    for c in name.chars() {
        if c.is_uppercase() {
            spaced.push('_');
        }
        spaced.extend(c.to_lowercase());
    }
    spaced.split(['_', '-', '.']).any(|part| {
        let singular = part.strip_suffix('s').unwrap_or(part);
        BANNED_WORDS.contains(&part) || BANNED_WORDS.contains(&singular)
    })
}

#[test]
fn a_file_is_read_in_one_sitting() {
    let broken: Vec<String> = rust()
        .iter()
        .filter(|source| !source.is_test())
        .map(|source| (source, source.without_tests().lines().count()))
        .filter(|(_, count)| *count > FILE_LINES_MAX)
        .map(|(source, count)| format!("{}: {count} lines", source.path))
        .collect();
    assert_none(&broken, "It is telling you something: find the second thing it does and move that out.");
}

#[test]
fn nothing_is_left_for_later() {
    // Written apart, so that this file does not break its own rule.
    let marks =
        [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("FIX", "ME"), concat!("XX", "X:")];
    let broken: Vec<String> = sources()
        .iter()
        .filter(|source| ["rs", "sql", "toml", "md"].iter().any(|extension| source.is(extension)))
        .flat_map(|source| lines(source, &source.text, |line| marks.iter().any(|mark| line.contains(mark))))
        .collect();
    assert_none(&broken, "Do it now, or open an issue and say in a comment what holds meanwhile.");
}

#[test]
fn nothing_names_the_place_where_it_was_written() {
    let here = root().to_string_lossy().into_owned();
    if root().components().count() < 3 {
        return;
    }
    let goes_on = |c: char| c.is_alphanumeric() || "._-".contains(c);
    let refused =
        |line: &str| line.match_indices(&here).any(|(at, _)| !line[at + here.len()..].starts_with(goes_on));
    let broken: Vec<String> =
        sources().iter().flat_map(|source| lines(source, &source.text, refused)).collect();
    assert_none(&broken, "A clone lies somewhere else: use a path relative to the repository.");
}

#[test]
fn documents_lead_to_files_that_are_there() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| source.is("md")) {
        let dir = Path::new(&source.path).parent().unwrap_or(Path::new(""));
        for link in links(&source.text) {
            let inside = resolve(&dir.join(link));
            if !inside.is_some_and(|path| root().join(path).exists()) {
                broken.push(format!("{}: {link}", source.path));
            }
        }
    }
    assert_none(&broken, "Correct the link, or drop it.");
}

#[test]
fn attacks_are_refused_by_tests_that_are_there() {
    let named = |line: &str| {
        let (file, test) = line.strip_prefix("- `")?.strip_suffix('`')?.split_once(" :: ")?;
        Some((file.to_owned(), test.to_owned()))
    };
    let all = sources();
    let document =
        all.iter().find(|source| source.path == "docs/security/attacks.md").expect("the list of attacks");
    let tests: Vec<(String, String)> = document.text.lines().filter_map(named).collect();
    assert!(tests.len() > 100, "{} tests are not all that there are", tests.len());
    let is_missing = |(file, test): &&(String, String)| {
        let source = all.iter().find(|source| source.path == *file);
        !source.is_some_and(|source| source.text.contains(&format!("fn {test}(")))
    };
    let broken: Vec<String> =
        tests.iter().filter(is_missing).map(|(file, test)| format!("{file} :: {test}")).collect();
    assert_none(&broken, "Name the test as it is called now; scripts/attacks runs it.");
}

/// The targets of a document's links to files, and whatever else leads upwards.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let files = targets.filter(|target| !target.contains(':') && !target.starts_with('#'));
    let files = files.map(|target| target.split('#').next().unwrap_or(target));
    let bare = text.split(|c: char| c.is_whitespace() || "`()<>\"',;".contains(c));
    files.chain(bare.filter(|word| word.starts_with("../")))
}

/// The path without `..`; `None` when it leads out of the repository.
fn resolve(path: &Path) -> Option<PathBuf> {
    let mut inside = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                if !inside.pop() {
                    return None;
                }
            }
            Component::Normal(name) => inside.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(inside)
}

#[test]
fn every_table_and_column_says_what_it_is() {
    let migrations: String =
        sources().into_iter().filter(|source| source.is("sql")).map(|source| source.text).collect();
    let broken: Vec<String> = declared(&migrations)
        .into_iter()
        .filter(|name| {
            let kind = if name.contains('.') { "column" } else { "table" };
            !migrations.contains(&format!("comment on {kind} {name} is '"))
        })
        .collect();
    assert_none(&broken, "Add `comment on ... is '...'` beside it in its migration.");
}

/// Every `table` and `table.column` that migrations make.
fn declared(sql: &str) -> Vec<String> {
    let mut names = Vec::new();
    for table in sql.split("create table ").skip(1) {
        let (name, rest) = table.split_once(" (").expect("a table has columns");
        names.push(name.to_owned());
        let body = rest.split("\n);").next().unwrap_or_default();
        let columns = body.lines().filter_map(|line| line.strip_prefix("    "));
        let columns = columns.filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
        let columns = columns.filter_map(|line| line.split(' ').next());
        let constraints = ["constraint", "primary", "unique", "check", "foreign"];
        names.extend(
            columns.filter(|column| !constraints.contains(column)).map(|column| format!("{name}.{column}")),
        );
    }
    for change in sql.split("alter table ").skip(1) {
        let statement = change.split(';').next().unwrap_or_default();
        let name = words(statement).next().unwrap_or_default();
        let added = statement.split("add column ").skip(1).filter_map(|rest| rest.split(' ').next());
        names.extend(added.map(|column| format!("{name}.{column}")));
    }
    names
}

/// Rust without its comments and the contents of its strings; line breaks stay.
fn code(text: &str) -> String {
    let mut rest = text;
    let mut kept = String::new();
    while let Some(c) = rest.chars().next() {
        let skipped = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '"' => string_length(rest),
            'r' if raw_quote(rest).is_some()
                && !kept.ends_with(|c: char| c.is_alphanumeric() || c == '_') =>
            {
                let quote = raw_quote(rest).unwrap_or_default();
                let opened = quote.len() + 1;
                let close: String = quote.chars().rev().collect();
                rest[opened..].find(&close).map_or(rest.len(), |end| opened + end + close.len())
            }
            '\'' if rest.starts_with("'\"'") => 3,
            '\'' if rest.starts_with("'\\") => rest[2..].find('\'').map_or(rest.len(), |end| end + 3),
            _ => 0,
        };
        if skipped == 0 {
            kept.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            kept.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
            kept.push(' ');
            rest = &rest[skipped..];
        }
    }
    kept
}

/// Length of the string literal that a text begins with.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The `#`s and the quote that open the raw string a text begins with.
fn raw_quote(text: &str) -> Option<&str> {
    let after = text.strip_prefix('r')?;
    let marks = after.len() - after.trim_start_matches('#').len();
    after[marks..].starts_with('"').then(|| &after[..=marks])
}

#[test]
fn the_rules_see_code_and_not_what_is_written_about_it() {
    let seen = code(
        "let a = \"node \\\" f64\"; // worker\nlet b = r#\"util \" f32\"#; /* helper */ let c = '\"'; node()",
    );
    assert_eq!(words(&seen).collect::<Vec<_>>(), ["let", "a", "let", "b", "let", "c", "node"]);
    assert!(["node", "NodeList", "job_helpers", "utils"].into_iter().all(is_banned));
    assert!(!["nodding", "futile", "unused"].into_iter().any(is_banned));
    assert_eq!(resolve(Path::new("docs/../README.md")), Some("README.md".into()));
    assert_eq!(resolve(Path::new("docs/../../shared")), None);
    let sql = "create table a (\n    b bigint,\n    constraint c check (b > 0)\n);\nalter table a add column d text;";
    assert_eq!(declared(sql), ["a", "a.b", "a.d"]);
}
