//! What the driver's errors mean for whoever owns the machine, and what to do about each.

use cudarc::driver::sys::CUresult::{self as E};
use nave_proof::{Failure, Reason};

/// Errors that have the same cause on a host, and what to do about them.
struct Remedy {
    errors: &'static [E],
    code: Reason,
    text: &'static str,
}

const fn remedy(errors: &'static [E], text: &'static str) -> Remedy {
    Remedy { errors, code: Reason::DeviceUnavailable, text }
}

/// An error that stands nowhere here.
const UNKNOWN: &str = "the kernel's log may say more: dmesg, for Xid";

const OLD: &str = "the driver is too old, or not whole: install 525 or a newer one";
const LOG: &str = "its work broke off. See dmesg for Xid: 79 is a GPU that fell off the bus, 48, 63, 64, 94 and 95 are its memory, \
                   74 its links. Reset it (nvidia-smi -r) or reboot; if it comes again, take it out";
const MEMORY: &str = "its memory has errors: see nvidia-smi -q -d ECC,ROW_REMAPPER, and reset it (nvidia-smi -r) or reboot; if \
                      they come again, take it out";
const FABRIC: &str = "its fabric is not ready: start nvidia-fabricmanager, of the driver's version, where there are NVSwitches, and \
                      wait until nvidia-smi -q says that the fabric's state is Completed";
const GONE: &str =
    "was it reset, or MIG switched, while it was used? See nvidia-smi -L, and start the agent again";
const MPS: &str =
    "a daemon of MPS that is not the agent's stands before it: end it (nvidia-cuda-mps-control, quit)";

const REMEDIES: [Remedy; 25] = [
    Remedy {
        errors: &[E::CUDA_ERROR_OUT_OF_MEMORY],
        code: Reason::DeviceBusy,
        text: "there is not even memory to begin with: nvidia-smi lists who holds it",
    },
    remedy(
        &[E::CUDA_ERROR_STUB_LIBRARY],
        "libcuda.so is a toolkit's stub: take its directory out of /etc/ld.so.conf.d, and run ldconfig",
    ),
    remedy(
        &[
            E::CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER,
            E::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
            E::CUDA_ERROR_NO_BINARY_FOR_GPU,
            E::CUDA_ERROR_INVALID_IMAGE,
            E::CUDA_ERROR_INVALID_PTX,
            E::CUDA_ERROR_INSUFFICIENT_LOADER_VERSION,
            E::CUDA_ERROR_JIT_COMPILER_NOT_FOUND,
            E::CUDA_ERROR_JIT_COMPILATION_DISABLED,
            E::CUDA_ERROR_NOT_FOUND,
        ],
        OLD,
    ),
    remedy(
        &[E::CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND, E::CUDA_ERROR_SHARED_OBJECT_INIT_FAILED],
        "the driver's libraries are not all there, or of several versions: install the driver anew",
    ),
    remedy(
        &[E::CUDA_ERROR_NO_DEVICE],
        "the driver sees no GPU: is its module loaded (lsmod), did the GPU fall off the bus (dmesg, Xid 79), or is it in MIG \
         mode without slices? See nvidia-smi -L",
    ),
    remedy(
        &[E::CUDA_ERROR_INVALID_DEVICE],
        "it was there a moment ago: did it fall off the bus (dmesg, Xid 79), or was MIG switched? See nvidia-smi -L, and start \
         the agent again",
    ),
    remedy(
        &[E::CUDA_ERROR_DEVICE_NOT_LICENSED],
        "it is a part of a virtual GPU without a licence: see nvidia-smi -q",
    ),
    remedy(
        &[E::CUDA_ERROR_DEVICE_UNAVAILABLE],
        "is it in an exclusive compute mode (nvidia-smi -q -d COMPUTE), held by another program, or in MIG mode, where only \
         its slices compute?",
    ),
    remedy(&[E::CUDA_ERROR_ECC_UNCORRECTABLE, E::CUDA_ERROR_CONTAINED], MEMORY),
    remedy(
        &[E::CUDA_ERROR_NVLINK_UNCORRECTABLE],
        "its links to other GPUs have errors: see nvidia-smi nvlink -e, and reset it (nvidia-smi -r) or reboot",
    ),
    remedy(
        &[E::CUDA_ERROR_OPERATING_SYSTEM],
        "the system refused: are all of /dev/nvidia* there, with nvidia-uvm (nvidia-modprobe -u -c=0), and may the agent open \
         them and lock memory (ulimit -l)?",
    ),
    remedy(
        &[E::CUDA_ERROR_NOT_SUPPORTED],
        "the driver, or the virtual machine that it is in, does not give what proofs need: install 525 or newer, and hand the \
         whole GPU through",
    ),
    remedy(
        &[E::CUDA_ERROR_NOT_PERMITTED],
        "the agent may not do that: does it run as root, outside of a container?",
    ),
    remedy(
        &[
            E::CUDA_ERROR_NOT_INITIALIZED,
            E::CUDA_ERROR_DEINITIALIZED,
            E::CUDA_ERROR_INVALID_CONTEXT,
            E::CUDA_ERROR_CONTEXT_IS_DESTROYED,
            E::CUDA_ERROR_INVALID_HANDLE,
        ],
        GONE,
    ),
    remedy(
        &[
            E::CUDA_ERROR_ILLEGAL_ADDRESS,
            E::CUDA_ERROR_ASSERT,
            E::CUDA_ERROR_HARDWARE_STACK_ERROR,
            E::CUDA_ERROR_ILLEGAL_INSTRUCTION,
            E::CUDA_ERROR_MISALIGNED_ADDRESS,
            E::CUDA_ERROR_INVALID_ADDRESS_SPACE,
            E::CUDA_ERROR_INVALID_PC,
            E::CUDA_ERROR_LAUNCH_FAILED,
            E::CUDA_ERROR_EXTERNAL_DEVICE,
        ],
        LOG,
    ),
    remedy(
        &[E::CUDA_ERROR_LAUNCH_TIMEOUT, E::CUDA_ERROR_TIMEOUT],
        "it was stopped because it took too long: let no display use it, and see dmesg for Xid 8 and 109",
    ),
    remedy(
        &[E::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, E::CUDA_ERROR_INVALID_CLUSTER_SIZE],
        "it has less than its compute capability promises: is another program tracing it, or a limit of MPS set for it?",
    ),
    remedy(&[E::CUDA_ERROR_SYSTEM_NOT_READY, E::CUDA_ERROR_FABRIC_NOT_READY], FABRIC),
    remedy(
        &[E::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH],
        "the driver's module and its libraries are of different versions: reboot, or load its modules anew",
    ),
    remedy(
        &[E::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE],
        "a package of CUDA's forward compatibility stands before the driver's library, and this GPU does not take it: remove \
         cuda-compat",
    ),
    remedy(
        &[
            E::CUDA_ERROR_MPS_CONNECTION_FAILED,
            E::CUDA_ERROR_MPS_RPC_FAILURE,
            E::CUDA_ERROR_MPS_SERVER_NOT_READY,
            E::CUDA_ERROR_MPS_MAX_CLIENTS_REACHED,
            E::CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED,
            E::CUDA_ERROR_MPS_CLIENT_TERMINATED,
        ],
        MPS,
    ),
    remedy(
        &[E::CUDA_ERROR_KEY_ROTATION],
        "its keys of confidential computing are being changed: it can be tried again",
    ),
    remedy(
        &[E::CUDA_ERROR_MAP_FAILED, E::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED],
        "memory of the host could not be mapped: may the agent lock memory (ulimit -l), and is there an IOMMU in the way?",
    ),
    remedy(
        &[E::CUDA_ERROR_INVALID_VALUE],
        "this is a fault of the prover, or of the driver: report it, with the driver's version",
    ),
    remedy(
        &[E::CUDA_ERROR_UNKNOWN],
        "is nvidia-uvm loaded (nvidia-modprobe -u -c=0), and does nvidia-smi still see the GPU? See dmesg for Xid: 79 is a GPU \
         that fell off the bus",
    ),
];

/// What to tell whoever owns the machine: what was done, what the driver said, what to do.
pub(super) fn failure(deed: &str, error: E, words: &str) -> Failure {
    let known = REMEDIES.iter().find(|remedy| remedy.errors.contains(&error));
    let (code, text) =
        known.map_or((Reason::DeviceUnavailable, UNKNOWN), |remedy| (remedy.code, remedy.text));
    Failure { code, message: format!("{deed}: {words}; {text}") }
}

#[cfg(test)]
mod tests {
    use nave_proof::EXPLANATION_MAX;

    use super::*;

    #[test]
    fn every_error_has_one_remedy_that_fits_into_a_report() {
        // The name of a GPU, what was done and the driver's own words stand before it.
        let room = EXPLANATION_MAX - 200;
        let mut seen: Vec<E> = Vec::new();
        for remedy in &REMEDIES {
            assert!(remedy.text.len() <= room, "{}", remedy.text);
            for error in remedy.errors {
                assert!(!seen.contains(error), "{error:?} stands there twice");
                seen.push(*error);
            }
        }
        assert!(UNKNOWN.len() <= room);
    }
}
