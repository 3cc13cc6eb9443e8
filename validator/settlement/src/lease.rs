//! What a lease pays its miner, and what it gives back to its customer.

use nave_domain::{
    Bytes, MicroUsd, MilliCpu, MilliGpu, Millis,
    host::Term,
    rate::{Rate, Size, charge},
};

use crate::{
    Error,
    evidence::{Event, Lease},
    exact::{MILLION, fit, part, ratio},
    params::Params,
};

/// What a lease's miner answers for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// Time that was lost.
    pub lost_ms: i64,
    /// Confirmed breaches.
    pub breaches: i64,
    /// The events that both are from.
    pub why: Vec<String>,
}

impl Faults {
    /// Adds an event, if it is confirmed and the host's.
    ///
    /// # Errors
    /// [`Error::Overflow`].
    pub fn add(&mut self, event: &Event) -> Result<(), Error> {
        if !event.counts() {
            return Ok(());
        }
        let lost = i128::from(event.until_ms) - i128::from(event.from_ms);
        self.lost_ms = fit(i128::from(self.lost_ms) + lost)?;
        self.breaches += i64::from(event.is_breach());
        self.why.push(event.event.clone());
        Ok(())
    }
}

/// What comes of a lease, in micro-USD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeasePay {
    /// What was delivered of what was promised, less what breaches take, in ppm.
    pub adherence_ppm: i64,
    /// What its use was worth: what it cost, but no more than the baseline.
    pub worth: i64,
    /// What the customer gets back.
    pub credit: i64,
    /// Pay for use.
    pub used: i64,
    /// What the customer bid above the baseline, less the margin.
    pub bid: i64,
    /// What its breaches cost its miner.
    pub penalty: i64,
    /// Its confirmed breaches.
    pub breaches: i64,
    /// The events that lowered its adherence.
    pub why: Vec<String>,
}

/// Settles one lease.
///
/// # Errors
/// [`Error::Overflow`].
pub fn settle(lease: &Lease, faults: &Faults, params: &Params) -> Result<LeasePay, Error> {
    let adherence_ppm = adherence(lease, faults, params)?;
    let worth_used = worth(lease, lease.used_ms, params)?;
    let penalty = match faults.breaches {
        0 => 0,
        breaches => fit(i128::from(worth(lease, params.penalty_ms, params)?) * i128::from(breaches))?,
    };
    let pay = LeasePay {
        adherence_ppm,
        worth: worth_used,
        penalty,
        breaches: faults.breaches,
        why: faults.why.clone(),
        ..LeasePay::default()
    };
    if lease.related.is_some() {
        return Ok(pay);
    }
    let kept = part(lease.charged, adherence_ppm)?;
    let earned = part(worth_used, adherence_ppm)?.min(kept);
    let less_margin = MILLION - params.margin_ppm;
    Ok(LeasePay {
        credit: lease.charged - kept,
        used: part(earned, less_margin)?,
        bid: part(kept - earned, less_margin)?,
        ..pay
    })
}

/// What was delivered of what was promised, in ppm, less what breaches of its term take.
fn adherence(lease: &Lease, faults: &Faults, params: &Params) -> Result<i64, Error> {
    let promised = i128::from(lease.used_ms) + i128::from(faults.lost_ms);
    let whole = i128::from(MILLION);
    let delivered = if promised == 0 { whole } else { i128::from(lease.used_ms) * whole / promised };
    let breach = match lease.term {
        Term::OnDemand => params.breach_on_demand_ppm,
        Term::Spot => params.breach_spot_ppm,
    };
    fit((delivered - i128::from(faults.breaches) * i128::from(breach)).max(0))
}

/// Thousandths of a vCPU that count as much as a device.
const MILLI_CPU_OF_DEVICE: i64 = 16_000;

/// The time that devices were used, which breaches are seen in relation to: no more than there are, whatever the
/// number of leases.
pub(crate) fn device_ms(lease: &Lease) -> Result<i64, Error> {
    match lease.milli_gpu {
        0 => ratio(&[lease.used_ms, lease.milli_cpu], MILLI_CPU_OF_DEVICE),
        milli_gpu => ratio(&[lease.used_ms, milli_gpu], 1_000),
    }
}

/// The part of a device that a breach of it counts for, in ppm: one device at most.
pub(crate) fn device_part(lease: &Lease) -> i64 {
    match lease.milli_gpu {
        0 => lease.milli_cpu.min(MILLI_CPU_OF_DEVICE) * MILLION / MILLI_CPU_OF_DEVICE,
        milli_gpu => milli_gpu.min(1_000) * 1_000,
    }
}

/// What so much time of a lease is worth: what it costs, but no more than the baseline.
///
/// # Errors
/// [`Error::Overflow`].
pub fn worth(lease: &Lease, ms: i64, params: &Params) -> Result<i64, Error> {
    let size = Size {
        milli_gpu: MilliGpu(lease.milli_gpu),
        milli_cpu: MilliCpu(lease.milli_cpu),
        memory: Bytes(lease.memory),
    };
    let rate = Rate {
        gpu_hour: MicroUsd(lease.gpu_hour),
        vcpu_hour: MicroUsd(lease.vcpu_hour),
        gib_hour: MicroUsd(lease.gib_hour),
    };
    let cost = |size, rate| charge(size, Millis(ms), rate).map(|cost| cost.0).map_err(|_| Error::Overflow);
    match lease.baseline.filter(|_| lease.milli_gpu > 0) {
        Some(baseline) => {
            let gpus = Size { milli_gpu: size.milli_gpu, ..Size::default() };
            let most = cost(gpus, Rate { gpu_hour: MicroUsd(baseline), ..Rate::default() })?;
            Ok(cost(size, rate)?.min(most))
        }
        None => {
            let known = Rate {
                gpu_hour: MicroUsd(0),
                vcpu_hour: rate.vcpu_hour.min(MicroUsd(params.vcpu_hour)),
                gib_hour: rate.gib_hour.min(MicroUsd(params.gib_hour)),
            };
            cost(size, known)
        }
    }
}
