//! How bad failures are. Pure.

use nave_proof::Reason;

/// How bad a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gravity {
    /// It happens to honest hosts.
    Trouble,
    /// It happens to honest hosts, but not twice in a row.
    Doubt,
    /// It does not happen by accident.
    Cheating,
}

/// How bad a failure is.
#[must_use]
pub fn gravity(code: Reason) -> Gravity {
    match code {
        Reason::EvidenceWrong | Reason::EvidenceMalformed | Reason::BindingWrong => Gravity::Cheating,
        Reason::DeviceMismatch | Reason::VramMissing => Gravity::Doubt,
        Reason::CpuOverclaimed
        | Reason::MemoryMissing
        | Reason::MemoryUnavailable
        | Reason::TooLate
        | Reason::Aborted
        | Reason::VersionUnknown
        | Reason::DeviceUnavailable
        // What a customer's job does with the device has a part in it.
        | Reason::DeviceThrottled
        // An owner who installs a machine anew meets the host that it was before.
        | Reason::DeviceElsewhere
        | Reason::DeviceBusy
        | Reason::ReturnTooSlow
        | Reason::DiskMissing
        | Reason::DiskTooSlow
        | Reason::SoftwareOutdated
        // Who says so of their own host does not hide it, and some systems preload by themselves.
        | Reason::DriverTampered
        | Reason::RuntimeBroken
        | Reason::TransferTooSlow
        | Reason::PortUnreachable => Gravity::Trouble,
    }
}

/// Whether a job that uses the GPUs of a host at the same time can be why it fails so: it may keep them busy, or hold
/// all that there is of something.
#[must_use]
pub fn may_be_a_jobs_doing(code: Reason) -> bool {
    match code {
        Reason::TooLate
        | Reason::Aborted
        | Reason::DeviceUnavailable
        | Reason::DeviceThrottled
        | Reason::DeviceBusy => true,
        Reason::CpuOverclaimed
        | Reason::MemoryMissing
        | Reason::MemoryUnavailable
        | Reason::EvidenceWrong
        | Reason::EvidenceMalformed
        | Reason::BindingWrong
        | Reason::VersionUnknown
        | Reason::DeviceMismatch
        | Reason::VramMissing
        | Reason::DeviceElsewhere
        | Reason::ReturnTooSlow
        | Reason::DiskMissing
        | Reason::DiskTooSlow
        | Reason::SoftwareOutdated
        | Reason::DriverTampered
        | Reason::RuntimeBroken
        | Reason::TransferTooSlow
        | Reason::PortUnreachable => false,
    }
}

/// What is made of a failure that a host tells of itself: never that it cheats, since who says so wants
/// others to suffer for it.
#[must_use]
pub fn told(code: Reason) -> Reason {
    match gravity(code) {
        Gravity::Trouble => code,
        Gravity::Doubt | Gravity::Cheating => Reason::Aborted,
    }
}
