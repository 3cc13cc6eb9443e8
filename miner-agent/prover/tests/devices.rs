//! What is listed of GPUs whose driver is emulated, and heard of them.

#![allow(clippy::unwrap_used, reason = "a test that panics at the unexpected says where")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

/// A directory with an NVML for emulated devices.
fn nvml() -> &'static Path {
    static COMPILED: OnceLock<PathBuf> = OnceLock::new();
    COMPILED.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nvml");
        fs::create_dir_all(&directory).unwrap();
        let mut compiler = Command::new("g++");
        compiler.args(["-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]);
        compiler.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/emulation/nvml.cpp"));
        compiler.arg("-o").arg(directory.join("libnvidia-ml.so.1"));
        let status =
            compiler.status().expect("g++ is missing: scripts/install installs it (Debian's package g++)");
        assert!(status.success());
        directory
    })
}

/// A prover on a machine with two GPUs.
fn prover(variables: &[(&str, &str)]) -> Command {
    let mut prover = Command::new(env!("CARGO_BIN_EXE_nave-prover"));
    prover
        .env_clear()
        .env("LD_LIBRARY_PATH", nvml())
        .env("EMULATED_DEVICES", "2")
        .envs(variables.iter().copied());
    prover
}

fn listed(variables: &[(&str, &str)]) -> Value {
    serde_json::from_slice(&prover(variables).output().unwrap().stdout).unwrap()
}

fn uuids(listed: &Value) -> Vec<&str> {
    listed["devices"].as_array().unwrap().iter().map(|device| device["uuid"].as_str().unwrap()).collect()
}

const BOTH: [&str; 2] =
    ["GPU-e0e0e0e0-e0e0-e0e0-e0e0-e0e0e0e0e000", "GPU-e0e0e0e0-e0e0-e0e0-e0e0-e0e0e0e0e001"];

#[test]
fn all_gpus_that_there_are_kernels_for_are_listed() {
    let listed = listed(&[]);
    assert_eq!((uuids(&listed).as_slice(), &listed["left_out"]), (&BOTH[..], &Value::Array(vec![])));
}

#[test]
fn a_gpu_that_there_are_no_kernels_for_is_left_out_and_named_and_the_other_one_is_listed() {
    let listed = listed(&[("EMULATED_OLD", "0")]);
    assert_eq!(uuids(&listed), BOTH[1..]);
    let why = "this device's compute capability 7.5 has no kernel; supported from 8.0";
    assert_eq!(listed["left_out"][0], format!("GPU 0 (Tesla T4, {}): {why}", BOTH[0]));
}

#[test]
fn a_gpu_that_is_lost_or_broken_is_left_out_with_a_remedy_and_the_other_one_is_listed() {
    for (code, remedy) in
        [("15", "Xid 79"), ("16", "nvidia-smi -r"), ("14", "take it out"), ("17", "/dev/nvidia*")]
    {
        let listed = listed(&[("EMULATED_LOST", "1"), ("EMULATED_CODE", code)]);
        assert_eq!(uuids(&listed), BOTH[..1]);
        let why = listed["left_out"][0].as_str().unwrap();
        assert!(why.starts_with("GPU 1: NVML: ") && why.contains(remedy), "{why}");
    }
}

#[test]
fn where_there_is_no_driver_the_reason_says_what_to_install() {
    let output = Command::new(env!("CARGO_BIN_EXE_nave-prover")).env_clear().output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    // A machine that runs this test may have a GPU.
    let error = answer["error"].as_str();
    assert!(error.is_none_or(|error| error.contains("install NVIDIA's driver")), "{error:?}");
}

/// A prover that listens, ended with the test.
struct Listening(Child);

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The first lines that a prover says while these errors come.
fn heard(lines: usize, xids: &str, variables: &[(&str, &str)]) -> Vec<Value> {
    let mut command = prover(variables);
    command.arg("xids").env("EMULATED_XIDS", xids).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut listening = Listening(command.spawn().unwrap());
    let said = BufReader::new(listening.0.stdout.take().unwrap());
    let (tell, told) = mpsc::channel();
    thread::spawn(move || said.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
    let next = |_| told.recv_timeout(Duration::from_secs(60)).expect("one more line");
    let heard = (0..lines).map(next).map(|line| serde_json::from_str(&line).unwrap()).collect();
    // It ends with its input.
    drop(listening.0.stdin.take());
    assert!(listening.0.wait().unwrap().success());
    heard
}

fn xid(code: u32, device: usize) -> Value {
    json!({ "xid": { "code": code, "device": BOTH[device] } })
}

#[test]
fn a_gpu_that_falls_off_the_bus_is_named_and_the_other_one_is_heard_further() {
    assert_eq!(heard(3, "31#1,79#1,48#0", &[]), [xid(31, 1), xid(79, 1), xid(48, 0)]);
}

#[test]
fn a_gpu_that_comes_back_is_heard_again() {
    assert_eq!(heard(2, "79#1,31#1", &[("EMULATED_BACK", "2")]), [xid(79, 1), xid(31, 1)]);
}

#[test]
fn a_gpu_that_was_lost_before_is_asked_for_rarely_and_the_other_one_is_heard() {
    let lost = [("EMULATED_LOST", "1"), ("EMULATED_CODE", "16")];
    assert_eq!(heard(8, &["31#0"; 8].join(","), &lost), vec![xid(31, 0); 8]);
}
