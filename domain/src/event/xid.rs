//! Errors that NVIDIA's driver numbers, and whose they are.
//!
//! After NVIDIA's catalogue of Xids (docs.nvidia.com/deploy/xid-errors): what it says to do about one tells whose it is.
//! An application that is to be started again, or whose code is to be checked, has made it; a device that is to be reset,
//! repaired or looked at by somebody has; and what may be ignored has harmed nobody.

/// What an Xid says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// What ran on the device did something that it may not do.
    Application,
    /// The device, its driver or its links failed what ran there.
    Hardware,
    /// The device put something right by itself, or nobody knows what it says: nothing follows from it.
    Harmless,
}

/// Whose the error of this number is.
#[must_use]
pub fn fault(code: u32) -> Fault {
    match code {
        // Exceptions and page faults of kernels, channels that were stopped or cleaned up, and engines that were given
        // what they cannot do: copying, decoding, encoding.
        8
        | 11
        | 13
        | 24
        | 25
        | 31
        | 32
        | 37
        | 39..=41
        | 43
        | 45
        | 59
        | 66..=73
        | 82..=86
        | 88
        | 89
        | 96..=105
        | 109
        | 137 => Fault::Application,
        // Memory that lost what was in it or cannot be repaired, the bus, links between devices, power, the processors
        // inside of a device that run its firmware.
        38
        | 42
        | 46
        | 48
        | 54
        | 56..=58
        | 61
        | 62
        | 64
        | 65
        | 74
        | 79
        | 80
        | 94
        | 95
        | 110
        | 119
        | 120
        | 122..=126
        | 136
        | 140
        | 142
        | 143..=150
        | 155
        | 158
        | 162
        | 171
        | 172 => Fault::Hardware,
        // Rows of memory that were put aside in time, errors of one bit, and whatever came later than this.
        _ => Fault::Harmless,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_does_wrong_is_not_its_hosts_fault() {
        assert!([13, 31, 43, 45, 68].iter().all(|code| fault(*code) == Fault::Application));
    }

    #[test]
    fn a_device_that_fails_is_its_hosts() {
        assert!([48, 64, 74, 79, 94, 95, 119, 120].iter().all(|code| fault(*code) == Fault::Hardware));
    }

    #[test]
    fn what_the_device_repaired_and_what_nobody_knows_says_nothing() {
        assert!([0, 63, 92, 154, 999, u32::MAX].iter().all(|code| fault(*code) == Fault::Harmless));
    }
}
