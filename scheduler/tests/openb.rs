//! The program `openb` on a small trace that is made here.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A folder that is gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("openb-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("make a folder");
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).expect("write a file");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn hosts() -> String {
    let mut text = String::from("sn,cpu_milli,memory_mib,gpu,model\n");
    for at in 0..12 {
        let (gpus, model) = [(8, "G2"), (2, "T4"), (4, "V100M16")][at % 3];
        writeln!(text, "host-{at},{},{},{gpus},{model}", 12_000 * gpus, 65_536 * gpus).expect("a string");
    }
    text
}

/// About as many pods as the hosts have room for, in all shapes.
fn pods() -> String {
    let mut text = String::from("name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n");
    for at in 0..90 {
        let (gpus, milli) = [(1, 1000), (1, 810), (1, 470), (0, 0), (2, 1000), (1, 160)][at % 6];
        let spec = ["", "", "T4", "", "G2|V100M16"][at % 5];
        let cpu = 1_000 * (2 + at % 11);
        writeln!(text, "pod-{at},{cpu},{},{gpus},{milli},{spec}", 4 * cpu).expect("a string");
    }
    text
}

fn openb(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_openb")).args(args).output().expect("run openb");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
fn every_policy_places_what_fits_and_nothing_twice() {
    let folder = Folder::new("bench");
    let (hosts, pods) = (folder.file("hosts.csv", &hosts()), folder.file("pods.csv", &pods()));
    // The command fails by itself where its referee objects to a placement or a refusal.
    let table = openb(&["bench", "--hosts", text(&hosts), "--seeds", "2", text(&pods)]);
    let last = table.lines().last().expect("a row for the trace");
    assert_eq!(last.matches('/').count(), 8, "eight policies: {table}");
}

#[test]
fn the_log_has_a_row_for_each_placed_pod_in_the_order_of_the_file() {
    let folder = Folder::new("log");
    let (hosts, pods) = (folder.file("hosts.csv", &hosts()), folder.file("pods.csv", &pods()));
    let ranks: String = (0..12).map(|at| format!("host-{at},{}\n", 11 - at)).collect();
    let ranks = folder.file("ranks.csv", &format!("node_name,tie_rank\n{ranks}"));
    let log = folder.0.join("log.csv");
    let given = ["--hosts", text(&hosts), "--pods", text(&pods), "--log", text(&log)];
    openb(&[&given[..], &["--history", text(&pods), "--host-order", text(&ranks)]].concat());
    let with_history = fs::read_to_string(&log).expect("a log");
    check(&with_history);
    // Without a history it learns as it goes, and without ranks the first host is first.
    openb(&given);
    check(&fs::read_to_string(&log).expect("a log"));
    openb(&[&given[..], &["--history", text(&pods), "--host-order", text(&ranks)]].concat());
    assert_eq!(fs::read_to_string(&log).expect("a log"), with_history, "the same again");
}

fn check(log: &str) {
    let mut lines = log.lines();
    assert_eq!(lines.next(), Some("pod_index,node_name,gpu_indices"));
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    let pods: Vec<usize> = rows.iter().map(|row| row[0].parse().expect("an index")).collect();
    assert!(pods.is_sorted_by(|a, b| a < b) && pods.len() > 40);
    let mut whole: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (row, pod) in rows.iter().zip(&pods) {
        let gpus: Vec<&str> = row[2].split('-').filter(|gpu| !gpu.is_empty()).collect();
        assert_eq!(gpus.len(), [1, 1, 1, 0, 2, 1][pod % 6], "pod {pod}");
        if [0, 4].contains(&(pod % 6)) {
            gpus.iter().for_each(|gpu| *whole.entry((row[1], gpu)).or_default() += 1);
        }
    }
    assert!(whole.values().all(|count| *count == 1), "a whole GPU has one pod");
}
