//! What is wrong with a GPU, or with all of them, when NVML does not answer for it, and what to do about that.

use nvml_wrapper::error::NvmlError as E;

/// What to tell whoever owns the machine.
pub fn told(error: &E) -> String {
    let remedies = [
        (
            matches!(error, E::LibloadingError(_) | E::LibraryNotFound),
            "install NVIDIA's driver, if this machine has a GPU",
        ),
        (
            matches!(error, E::DriverNotLoaded | E::Uninitialized),
            "load the driver's modules (modprobe nvidia), and see dmesg where that fails",
        ),
        (
            matches!(error, E::LibRmVersionMismatch),
            "the driver's module and its libraries are of different versions: reboot, or load its modules anew",
        ),
        (
            matches!(error, E::FailedToLoadSymbol(_) | E::FunctionNotFound),
            "the driver is too old: install 525 or newer",
        ),
        (
            matches!(error, E::GpuLost),
            "see dmesg for Xid 79, reboot, and look at its seat, its power and its cables if it comes again",
        ),
        (matches!(error, E::ResetRequired), "reset it (nvidia-smi -r) or reboot"),
        (matches!(error, E::CorruptedInfoROM), "its firmware is damaged: take it out"),
        (matches!(error, E::InsufficientPower), "connect its power cables"),
        (
            matches!(error, E::IrqIssue),
            "no interrupts come from it: see dmesg, and whether its slot shares one",
        ),
        (
            matches!(error, E::OperatingSystem | E::NoPermission),
            "the agent must run as root, and where its control group may open /dev/nvidia*",
        ),
        (matches!(error, E::Unknown | E::Timeout), "see dmesg for Xid, reset it (nvidia-smi -r) or reboot"),
    ];
    match remedies.iter().find(|(fits, _)| *fits) {
        Some((_, remedy)) => format!("NVML: {error}; {remedy}"),
        None => format!("NVML: {error}; nvidia-smi may say more"),
    }
}
