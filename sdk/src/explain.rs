//! Verdicts in words: what was tested, what came of it, and what to do about it.

use std::fmt::Write as _;

use nave_domain::{
    MilliCpu, Millis,
    verdict::{Cause, Kind},
};

use crate::wire::{
    proof::{DeviceProven, Proven, Reason},
    verdict::{HostVerdict, Ruling},
};

/// What the owner of a host can do about a failure.
#[must_use]
pub fn remedy(reason: Reason) -> &'static str {
    match reason {
        Reason::CpuOverclaimed => {
            "offer fewer cores (`miner-agent run --cpu`), end what else computes on this machine, and see that it is not \
             throttled"
        }
        Reason::MemoryMissing => {
            "offer less memory (`miner-agent run --memory`), and see that none of it is swap, compressed or on another machine"
        }
        Reason::MemoryUnavailable => {
            "offer less memory (`miner-agent run --memory`), or end what else holds it; look for a limit on the agent's service"
        }
        Reason::EvidenceWrong => {
            "check the hardware: memory errors and unstable clocks give wrong results (ECC counters, `dmesg`), then judge the \
             evidence again with `nave judge`; if the judge is wrong, appeal"
        }
        Reason::EvidenceMalformed => {
            "install the agent and its nave-prover from the same release; if they are, appeal"
        }
        Reason::BindingWrong => {
            "let one agent only run for this host, with its own data directory; an answer for another challenge proves nothing"
        }
        Reason::TooLate => {
            "see that the machine is on, not overloaded and reaches the market: `miner-agent status` shows when it was heard"
        }
        Reason::Aborted => {
            "look into the agent's log for what ended its nave-prover: too little memory, or a missing program (`miner-agent \
             doctor`)"
        }
        Reason::VersionUnknown => "update the agent: the market tests in a way that this one does not know",
        Reason::DeviceUnavailable => {
            "make `nvidia-smi` work: install a driver the agent supports, look for Xid and ECC errors in `dmesg`, or take the \
             GPU out; start the agent again after MIG was switched or slices were made (`miner-agent doctor`)"
        }
        Reason::DeviceMismatch => {
            "give the GPUs power, cooling and their usual clocks, let nothing else compute on them, and claim only what is there"
        }
        Reason::DeviceThrottled => {
            "let a job's GPUs have all their power, cooling and clocks, and nothing else compute on them; the host takes jobs again \
             once it has proven itself while it is free"
        }
        Reason::DeviceElsewhere => {
            "let the host that holds this GPU leave first (`nave miner leave`); a GPU belongs to one host at a time"
        }
        Reason::DeviceBusy => "end the program that holds the GPU's memory: `nvidia-smi` lists it",
        Reason::VramMissing => {
            "let nothing else use the GPUs' memory, and see that ECC and MIG settings leave what is claimed"
        }
        Reason::ReturnTooSlow => {
            "see that every GPU has its full PCIe link (`nvidia-smi -q`, link width and generation) and that host memory is not \
             swapped"
        }
        Reason::DiskMissing => {
            "free space below the agent's data directory, or offer less of it (`miner-agent run --disk`)"
        }
        Reason::DiskTooSlow => "put the agent's data directory on a local solid-state disk, not on a network",
        Reason::SoftwareOutdated => "update what is named: its versions have a flaw that is known",
        Reason::DriverTampered => {
            "remove what is named from /etc/ld.so.preload, the agent's environment or the mounts over the driver, then restart \
             the agent"
        }
        Reason::RuntimeBroken => {
            "make the Docker Engine run a container, with GPUs where there are any: `miner-agent doctor` says what is missing"
        }
        Reason::TransferTooSlow => "see what else uses the network, and that nothing else slows it down",
        Reason::PortUnreachable => {
            "let nothing on this machine filter the mesh interface or hold ports 20000 to 29999 of it; no port to the outside \
             is needed"
        }
    }
}

/// The reason with this name.
#[must_use]
pub fn reason(code: &str) -> Option<Reason> {
    Reason::ALL.into_iter().find(|reason| reason.as_str() == code)
}

/// What was tested.
#[must_use]
pub fn tested(kind: Kind) -> &'static str {
    match kind {
        Kind::Cpu => "computing power",
        Kind::Memory => "memory",
        Kind::Devices => "GPUs",
        Kind::Storage => "disk",
        Kind::Software => "software",
        Kind::Transfer => "network",
    }
}

/// Why it was tested.
#[must_use]
pub fn because(cause: Cause) -> &'static str {
    match cause {
        Cause::Enrolment => "its claims were not proven yet",
        Cause::Identity => "it says that it is another machine than before",
        Cause::Random => "at a time nobody could foresee",
        Cause::Window => "at the same moment as all hosts with GPUs",
        Cause::LeaseStart => "a job with GPUs began",
        Cause::Lease => "beside a job, at a time nobody could foresee",
        Cause::LeaseEnd => "a job with GPUs ended",
        Cause::Appeal => "its owner was right to object",
        Cause::Operator => "the operator wanted it",
        Cause::Dispute => "a customer said that a result of it was wrong",
    }
}

/// What came of a test, in one sentence: `passed: 2.0 cores in 2.1 s`.
#[must_use]
pub fn outcome(verdict: &HostVerdict) -> String {
    verdict.ruling.as_ref().map_or_else(|| verdict.code.clone(), ruling)
}

/// A ruling in one sentence.
#[must_use]
pub fn ruling(ruling: &Ruling) -> String {
    match ruling {
        Ruling::Passed(None) => "passed".to_owned(),
        Ruling::Passed(Some(proven)) => format!("passed: {}", shown(proven)),
        Ruling::Failed(failure) => format!("{} ({})", failure.message, failure.code.as_str()),
        Ruling::Void(why) => format!("does not count: {why}"),
    }
}

/// What followed from a verdict beside its ruling: `means nothing for the host`, a ban, an appeal.
#[must_use]
pub fn consequences(verdict: &HostVerdict) -> Vec<String> {
    let mut said = Vec::new();
    if verdict.shadow {
        said.push("this test is being tried itself and means nothing for the host".to_owned());
    }
    if let Some(ban) = &verdict.ban {
        let end = match (ban.is_over, ban.lifted_by.as_deref()) {
            (_, Some("appeal")) => "; taken back on appeal",
            (_, Some(_)) => "; taken back by the operator",
            (true, None) => "; it is over",
            (false, None) => "",
        };
        said.push(format!("a ban of {} followed{end}", span(ban.span_ms)));
    }
    if let Some(appeal) = &verdict.appeal {
        said.push(match &appeal.ruling {
            Some(again) => format!("judged again on appeal: {}", ruling(again)),
            None => "an appeal waits to be judged".to_owned(),
        });
    }
    said
}

/// What was measured, in words.
#[must_use]
pub fn shown(proven: &Proven) -> String {
    match proven {
        Proven::Cpu { milli_cpu, elapsed_ms, steps_per_s } => {
            format!("{} cores, {}, in {elapsed_ms}", cores(*milli_cpu), rate(*steps_per_s, "steps/s"))
        }
        Proven::Memory { memory, fill_ms, reads_ms, reads_per_s } => {
            format!("{memory} filled in {fill_ms} and read in {reads_ms}, {}", rate(*reads_per_s, "reads/s"))
        }
        Proven::Devices(devices) => devices.iter().map(device).collect::<Vec<_>>().join("; "),
        Proven::Storage { written, write_ms, reads_ms, reads_per_s } => {
            let reads = rate(*reads_per_s, "reads/s");
            format!("{written} written in {write_ms} and read in {reads_ms}, {reads}")
        }
        Proven::Software(found) => format!("kernel {}, nothing that is refused", found.kernel),
        Proven::Transfer { bytes, elapsed_ms, bytes_per_s } => {
            format!("{bytes} bytes in {elapsed_ms}, {}, measured and not proven", rate(*bytes_per_s, "B/s"))
        }
    }
}

fn device(device: &DeviceProven) -> String {
    let mut text = device.uuid.clone();
    if let Some(vram) = device.vram {
        // Writing to a string cannot fail.
        let _ = write!(text, ", {vram} filled");
    }
    let rates = [
        (device.ops_per_s, "OPS"),
        (device.bytes_per_s, "B/s of its memory"),
        (device.reads_per_s, "reads/s"),
        (device.hashes_per_s, "hashes/s"),
        (device.return_bytes_per_s, "B/s from the host's memory"),
    ];
    for (measured, unit) in rates {
        if let Some(measured) = measured {
            let _ = write!(text, ", {}", rate(measured, unit));
        }
    }
    text
}

/// A rate with a decimal prefix: `38.20 M steps/s`, `25.00 GB/s`.
fn rate(number: u64, unit: &str) -> String {
    let steps = [(1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    let gap = if unit.starts_with(char::is_uppercase) { "" } else { " " };
    match steps.into_iter().find(|(step, _)| number >= *step) {
        Some((step, prefix)) => {
            format!("{}.{:02} {prefix}{gap}{unit}", number / step, number % step / (step / 100))
        }
        None => format!("{number} {unit}"),
    }
}

/// `1.9`: tenths, rounded down.
fn cores(milli: MilliCpu) -> String {
    format!("{}.{}", milli.0 / 1_000, milli.0 % 1_000 / 100)
}

/// `6 h`, `30 min`, `45 s`: whole units, rounded down.
#[must_use]
pub fn span(span: Millis) -> String {
    let s = span.0 / 1_000;
    match s {
        172_800.. => format!("{} days", s / 86_400),
        7_200.. => format!("{} h", s / 3_600),
        120.. => format!("{} min", s / 60),
        _ => format!("{s} s"),
    }
}

#[cfg(test)]
mod tests {
    use nave_domain::Bytes;

    use super::*;

    #[test]
    fn every_reason_has_a_name_and_something_to_do_about_it() {
        for one in Reason::ALL {
            assert_eq!(reason(one.as_str()), Some(one));
            assert!(remedy(one).len() > 20 && !remedy(one).ends_with('.'), "{one:?}");
        }
        assert_eq!(reason("passed"), None);
    }

    #[test]
    fn measurements_are_told_with_units_a_person_reads() {
        let cpu =
            Proven::Cpu { milli_cpu: MilliCpu(1_900), steps_per_s: 38_000_000, elapsed_ms: Millis(2_100) };
        assert_eq!(shown(&cpu), "1.9 cores, 38.00 M steps/s, in 2.100 s");
        let gpu = DeviceProven {
            uuid: "GPU-1".into(),
            ops_per_s: Some(1_234_000_000_000_000),
            vram: Some(Bytes(80 << 30)),
            hashes_per_s: None,
            reads_per_s: Some(999),
            bytes_per_s: None,
            return_bytes_per_s: Some(25_000_000_000),
        };
        assert_eq!(
            shown(&Proven::Devices(vec![gpu])),
            "GPU-1, 80 GiB filled, 1234.00 TOPS, 999 reads/s, 25.00 GB/s from the host's memory"
        );
    }

    #[test]
    fn a_span_is_told_in_its_largest_unit() {
        let spans = [45_000, 120_000, 3_600_000, 6 * 3_600_000, 30 * 86_400_000].map(|ms| span(Millis(ms)));
        assert_eq!(spans, ["45 s", "2 min", "60 min", "6 h", "30 days"]);
    }
}
