//! The prover on GPUs whose driver is emulated: kernels, launches and their order are the real ones.

#![allow(clippy::unwrap_used, reason = "a test that panics at the unexpected says where")]

mod process;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use nave_domain::Millis;
use nave_proof::{
    DeviceTask, DevicesTask, Failure, Fill, Gemm, Lanes, Message, Proven, Reason, Spill, Stream, Task,
    Verdict, device::CHUNK,
};
use process::{Process, challenge, verdict_of};

/// A directory with a driver for emulated devices of compute capability 8.0, or of 9.0.
fn driver(name: &str, options: &[&str]) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&directory).unwrap();
    let done = Command::new("g++")
        .args(["-std=c++17", "-O2", "-shared", "-fPIC", "-Wno-unknown-pragmas", "-DEMULATED"])
        .args(options)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/emulation/driver.cpp"))
        .arg("-o")
        .arg(directory.join("libcuda.so"))
        .output()
        .expect("g++ is missing: scripts/install installs it (Debian's package g++)");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    directory
}

fn portable() -> &'static Path {
    static COMPILED: OnceLock<PathBuf> = OnceLock::new();
    COMPILED.get_or_init(|| driver("cuda-80", &[]))
}

fn sm_90a() -> &'static Path {
    static COMPILED: OnceLock<PathBuf> = OnceLock::new();
    COMPILED.get_or_init(|| driver("cuda-90", &["-DWGMMA"]))
}

fn prover(driver: &Path, more: &[(&str, &str)]) -> Process {
    let mut variables = vec![("LD_LIBRARY_PATH", driver.to_str().unwrap()), ("EMULATED_DEVICES", "2")];
    variables.extend(more);
    Process::start_in(&[], &variables)
}

fn uuid(number: u8) -> String {
    format!("GPU-e0e0e0e0-e0e0-e0e0-e0e0-e0e0e0e0e0{number:02x}")
}

/// Sizes that are no powers of two: odd levels, subtrees across rows and bands. Every lane and chunk is looked at, and so
/// many entries that no tile is left out.
fn task(number: u8, gemm: Gemm) -> DeviceTask {
    DeviceTask {
        uuid: uuid(number),
        fill: Some(Fill { bytes: 5 * CHUNK, depth: 2 }),
        gemm: Some(gemm),
        lanes: Some(Lanes { lanes: 700, reads: 9, samples: 700 }),
        stream: Some(Stream { passes: 2, samples: 10 }),
        spill: Some(Spill { bytes: 3 * CHUNK, samples: 3 }),
    }
}

fn devices(devices: Vec<DeviceTask>) -> Task {
    Task::Devices(DevicesTask { devices, patience_ms: vec![Millis(60_000); 7] })
}

fn both() -> Task {
    let small = Gemm { m: 256, n: 768, k: 192, rounds: 2, samples: 900 };
    let other = Gemm { m: 512, n: 256, k: 64, rounds: 1, samples: 600 };
    devices(vec![task(0, small), task(1, other)])
}

fn assert_both_prove(driver: &Path) {
    let verdict = verdict_of(prover(driver, &[]), challenge(both()));
    let Verdict::Passed(Proven::Devices(proven)) = verdict else { panic!("{verdict:?}") };
    assert_eq!(proven.iter().map(|device| device.uuid.clone()).collect::<Vec<_>>(), [uuid(0), uuid(1)]);
}

#[test]
fn two_gpus_prove_everything_at_once() {
    assert_both_prove(portable());
}

#[test]
fn two_gpus_of_compute_capability_9_prove_everything_with_their_own_kernels() {
    assert_both_prove(sm_90a());
}

#[test]
fn slices_prove_everything_at_once_each_in_a_process_that_sees_no_other() {
    let Task::Devices(mut task) = both() else { unreachable!() };
    for (number, device) in task.devices.iter_mut().enumerate() {
        device.uuid = format!("MIG-{number}");
    }
    let verdict = verdict_of(prover(portable(), &[]), challenge(Task::Devices(task)));
    let Verdict::Passed(Proven::Devices(proven)) = verdict else { panic!("{verdict:?}") };
    assert_eq!(proven.iter().map(|device| device.uuid.as_str()).collect::<Vec<_>>(), ["MIG-0", "MIG-1"]);
}

fn failure(mut process: Process, task: Task) -> Failure {
    process.tell(&challenge(task));
    match process.hear().message {
        Message::Failed(failure) => failure,
        other @ (Message::Commitment(_) | Message::Opening(_)) => panic!("{other:?}"),
    }
}

#[test]
fn a_gpu_with_less_memory_than_it_claims_says_how_much_is_free() {
    let failure = failure(prover(portable(), &[("EMULATED_MEMORY", "65536")]), both());
    assert!([Reason::DeviceUnavailable, Reason::DeviceBusy].contains(&failure.code), "{failure:?}");
    assert!(failure.message.contains("are free"), "{}", failure.message);
}

#[test]
fn a_gpu_that_the_driver_does_not_know_is_unavailable() {
    let failure = failure(prover(portable(), &[("EMULATED_DEVICES", "1")]), both());
    assert_eq!(failure.code, Reason::DeviceUnavailable);
    assert!(failure.message.starts_with("GPU 1 "), "{}", failure.message);
}

#[test]
fn without_a_driver_the_reason_says_what_to_install() {
    let failure = failure(Process::start(), both());
    assert_eq!(failure.code, Reason::DeviceUnavailable);
    assert!(failure.message.contains("install NVIDIA's driver"), "{}", failure.message);
}
