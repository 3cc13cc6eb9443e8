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
    DeviceTask, DevicesTask, Failure, Fill, Gemm, Lanes, Message, Nonce, Proven, Reason, Spill, Stream, Task,
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

/// How a prover ends that has a fault: the failure at whatever step, or none.
fn end(mut process: Process, task: Task) -> Option<Failure> {
    let mut challenge = challenge(task);
    loop {
        process.tell(&challenge);
        match process.hear().message {
            Message::Commitment(_) => challenge.reveals.push(Nonce([challenge.step() as u8 + 4; 32])),
            Message::Opening(_) => return None,
            Message::Failed(failure) => {
                assert!(process.child.wait().unwrap().success(), "{failure:?}");
                return Some(failure);
            }
        }
    }
}

/// A task for so many GPUs, every phase of it quick.
fn quick(numbers: impl IntoIterator<Item = u8>) -> Task {
    let gemm = Gemm { m: 256, n: 256, k: 64, rounds: 1, samples: 4 };
    let device = |number| DeviceTask {
        lanes: Some(Lanes { lanes: 64, reads: 2, samples: 2 }),
        stream: Some(Stream { passes: 1, samples: 1 }),
        ..task(number, gemm)
    };
    devices(numbers.into_iter().map(device).collect())
}

fn broken(fault: &str) -> Process {
    prover(portable(), &[("EMULATED_FAULT", fault)])
}

/// What of it is told when this call of the driver ends with this error.
const FAULTS: [(&str, &str); 49] = [
    ("34@cuInit", "stub"),
    ("36@cuInit", "install 525"),
    ("100@cuInit", "MIG mode without slices"),
    ("304@cuInit", "/dev/nvidia*"),
    ("800@cuInit", "as root"),
    ("802@cuInit", "start nvidia-fabricmanager"),
    ("803@cuInit", "reboot"),
    ("804@cuInit", "remove cuda-compat"),
    ("919@cuInit", "start nvidia-fabricmanager"),
    ("999@cuInit", "nvidia-modprobe -u"),
    ("3@cuDeviceGetCount", "start the agent again"),
    ("101@cuDeviceGet#1", "off the bus"),
    ("101@cuDeviceGetUuid#1", "start the agent again"),
    ("999@cuDeviceGetAttribute#1", "Xid: 79"),
    ("2@cuDevicePrimaryCtxRetain#1", "who holds it"),
    ("46@cuDevicePrimaryCtxRetain#1", "exclusive compute mode"),
    ("102@cuDevicePrimaryCtxRetain#1", "licence"),
    ("214@cuDevicePrimaryCtxRetain#1", "ECC"),
    ("801@cuDevicePrimaryCtxRetain#1", "virtual machine"),
    ("805@cuDevicePrimaryCtxRetain#1", "daemon of MPS"),
    ("916@cuDevicePrimaryCtxRetain#1", "confidential computing"),
    ("201@cuCtxSetCurrent#1", "MIG switched"),
    ("209@cuModuleLoadData#1", "install 525"),
    ("218@cuModuleLoadData#1", "install 525"),
    ("221@cuModuleLoadData#1", "install 525"),
    ("222@cuModuleLoadData#1", "install 525"),
    ("302@cuModuleLoadData#1", "install the driver anew"),
    ("500@cuModuleGetFunction#1", "install 525"),
    ("1@cuFuncSetAttribute#1", "report it"),
    ("2@cuStreamCreateWithPriority#1", "who holds it"),
    ("2@cuMemAlloc#1", "are free"),
    ("701@cuLaunchKernel#1", "limit of MPS"),
    ("709@cuLaunchKernel#1", "was it reset"),
    ("205@cuMemHostAlloc#1", "ulimit -l"),
    ("2@cuMemHostAlloc#1", "of the host's memory"),
    ("700@cuMemHostAlloc#1", "Xid"),
    ("400@cuEventRecord#1", "was it reset"),
    ("214@cuStreamSynchronize#1", "ECC"),
    ("220@cuStreamSynchronize#1", "nvidia-smi nvlink"),
    ("226@cuStreamSynchronize#1", "ECC"),
    ("700@cuStreamSynchronize#1", "79 is a GPU that fell off the bus"),
    ("702@cuStreamSynchronize#1", "no display"),
    ("715@cuStreamSynchronize#1", "Xid"),
    ("719@cuStreamSynchronize#1", "nvidia-smi -r"),
    ("909@cuStreamSynchronize#1", "took too long"),
    ("911@cuStreamSynchronize#1", "nvidia-smi -r"),
    ("999@cuMemcpyDtoH#1", "does nvidia-smi still see the GPU"),
    ("4@cuMemcpyHtoD#1", "was it reset"),
    // One that nobody knows a remedy for.
    ("711@cuStreamWaitEvent#1", "dmesg, for Xid"),
];

#[test]
fn whatever_the_driver_says_is_wrong_is_told_with_what_to_do_about_it() {
    for (fault, remedy) in FAULTS {
        let failure = end(broken(fault), quick(0..2)).unwrap_or_else(|| panic!("{fault} was overlooked"));
        let expected = match fault {
            "2@cuMemHostAlloc#1" => Reason::MemoryUnavailable,
            _ if fault.starts_with("2@") => Reason::DeviceBusy,
            _ => Reason::DeviceUnavailable,
        };
        assert_eq!(failure.code, expected, "{fault}: {}", failure.message);
        assert!(failure.message.contains(remedy), "{fault}: {}", failure.message);
        let slot = if fault.ends_with("#1") { "GPU 1 (GPU-" } else { "GPU 0 (GPU-" };
        assert!(failure.message.starts_with(slot), "{fault}: {}", failure.message);
    }
}

/// All that is called of a driver before its device is given back.
const CALLS: [&str; 25] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetUuid",
    "cuDevicePrimaryCtxRetain",
    "cuCtxSetCurrent",
    "cuCtxGetStreamPriorityRange",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuStreamCreate",
    "cuStreamCreateWithPriority",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventRecord",
    "cuMemAlloc",
    "cuMemHostAlloc",
    "cuMemcpyHtoD",
    "cuMemcpyHtoDAsync",
    "cuMemcpyDtoH",
    "cuMemcpyDtoHAsync",
    "cuLaunchKernel",
];

#[test]
fn whichever_call_fails_the_prover_says_so_and_ends() {
    for call in CALLS {
        let failure = end(broken(&format!("719@{call}")), quick(0..2));
        let message = failure.unwrap_or_else(|| panic!("{call} was overlooked")).message;
        assert!(message.contains("nvidia-smi -r"), "{call}: {message}");
    }
    for call in ["cuModuleUnload", "cuStreamDestroy", "cuEventDestroy", "cuMemFree", "cuMemFreeHost"] {
        assert_eq!(
            end(broken(&format!("400@{call}")), quick(0..2)),
            None,
            "{call} only gives something back"
        );
    }
}

#[test]
fn the_other_gpus_of_a_host_are_proven_when_they_are_asked_for_without_the_broken_one() {
    for fault in [
        "101@cuDeviceGet#1",
        "101@cuDeviceGetUuid#1",
        "214@cuDevicePrimaryCtxRetain#1",
        "719@cuLaunchKernel#1",
    ] {
        assert!(end(broken(fault), quick(0..2)).is_some(), "{fault}");
        assert_eq!(end(broken(fault), quick(0..1)), None, "{fault}");
    }
    let first_is_lost = broken("101@cuDeviceGetUuid#0");
    assert_eq!(
        end(first_is_lost, quick(1..2)),
        None,
        "one that does not say what it is called hides no other"
    );
}

#[test]
fn a_gpu_that_hangs_is_named_before_the_verifier_stops_waiting() {
    for call in ["cuDevicePrimaryCtxRetain", "cuStreamSynchronize"] {
        let Task::Devices(task) = quick(0..2) else { unreachable!() };
        let task = Task::Devices(DevicesTask { patience_ms: vec![Millis(8_000); 7], ..task });
        let failure = end(broken(&format!("hang@{call}#1")), task).unwrap();
        assert_eq!(failure.code, Reason::DeviceUnavailable);
        assert!(failure.message.starts_with("GPU 1 ") && failure.message.contains("it hangs"), "{failure:?}");
    }
}

#[test]
fn a_crash_in_the_driver_ends_the_process_of_one_slice_and_the_slice_is_named() {
    let Task::Devices(mut task) = quick(0..1) else { unreachable!() };
    task.devices[0].uuid = "MIG-0".into();
    let failure = end(broken("crash@cuLaunchKernel"), Task::Devices(task)).unwrap();
    assert_eq!(failure.code, Reason::DeviceUnavailable);
    assert!(failure.message.starts_with("GPU 0 (MIG-0)"), "{failure:?}");
}

#[test]
fn a_driver_that_is_too_old_is_named_before_anything_is_asked_of_it() {
    let process = prover(portable(), &[("EMULATED_DRIVER", "11040"), ("EMULATED_FAULT", "803@cuInit")]);
    let message = end(process, quick(0..1)).unwrap().message;
    assert!(message.contains("CUDA 11.4") && message.contains("install 525"), "{message}");
    let stub = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-stub");
    fs::create_dir_all(&stub).unwrap();
    let source = stub.join("stub.cpp");
    fs::write(&source, "extern \"C\" int cuInit(unsigned) { return 0; }\n").unwrap();
    let mut compiler = Command::new("g++");
    compiler.args(["-shared", "-fPIC"]).arg(source).arg("-o").arg(stub.join("libcuda.so"));
    assert!(compiler.status().unwrap().success());
    let message = end(prover(&stub, &[]), quick(0..1)).unwrap().message;
    assert!(message.contains("the driver's library has no cu"), "{message}");
}

#[test]
fn a_gpu_that_there_are_no_kernels_for_says_so() {
    let failure = end(prover(portable(), &[("EMULATED_OLD", "1")]), quick(0..2)).unwrap();
    let why = "this device's compute capability 7.5 has no kernel; supported from 8.0";
    assert_eq!(failure.code, Reason::DeviceUnavailable);
    assert_eq!(failure.message, format!("GPU 1 (GPU-e0e0e0e0…): {why}"));
    assert_eq!(end(prover(portable(), &[("EMULATED_OLD", "1")]), quick(0..1)), None);
}
