//! What is listed of GPUs whose driver is emulated.

#![allow(clippy::unwrap_used, reason = "a test that panics at the unexpected says where")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use serde_json::Value;

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

fn listed(variables: &[(&str, &str)]) -> Value {
    let mut prover = Command::new(env!("CARGO_BIN_EXE_nave-prover"));
    prover
        .env_clear()
        .env("LD_LIBRARY_PATH", nvml())
        .env("EMULATED_DEVICES", "2")
        .envs(variables.iter().copied());
    serde_json::from_slice(&prover.output().unwrap().stdout).unwrap()
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
