//! What a record must be like before anything is computed with it.

use crate::{
    Error,
    evidence::{Class, Event, FORMAT, Header, Idle, Lease, Miner, Pay, Seal, Totals, Verdict},
};

fn sound(name: &'static str, ok: bool) -> Result<(), Error> {
    if ok { Ok(()) } else { Err(Error::Unsound(name)) }
}

/// Whether none is negative.
fn natural(numbers: &[i64]) -> bool {
    numbers.iter().all(|number| *number >= 0)
}

/// Whether no number is negative, and days come in order.
fn days_are_sound(days: &[[i64; 3]]) -> bool {
    days.iter().all(|day| natural(day)) && days.is_sorted_by(|a, b| a[0] < b[0])
}

/// Whether no number is negative, each takes time to vest, and no more has vested than there is.
fn vesting_is_sound(vesting: &[[i64; 4]]) -> bool {
    vesting.iter().all(|entry| {
        let [from, until, amount, vested] = *entry;
        natural(entry) && from < until && vested <= amount
    })
}

impl Header {
    /// Whether it is what a header can be.
    ///
    /// # Errors
    /// [`Error::Unsound`], here and below.
    pub fn check(&self) -> Result<(), Error> {
        let numbers = [self.closed_ms, self.emission, self.epoch, self.opened_ms];
        let ok = natural(&numbers) && natural(&self.emissions) && self.opened_ms <= self.closed_ms;
        sound("header", ok && self.format == FORMAT)
    }
}

impl Class {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let known = self.baseline.is_some();
        let alike = known == self.baseline_at_ms.is_some() && known == self.baseline_source.is_some();
        let baseline = [self.baseline.unwrap_or(0), self.baseline_at_ms.unwrap_or(0)];
        sound("class", alike && natural(&baseline) && natural(&[self.devices, self.leased_milli]))
    }
}

impl Miner {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let ok = natural(&[self.collateral, self.demoted_until_ms, self.verified_hosts]);
        sound("miner", ok && days_are_sound(&self.days) && vesting_is_sound(&self.vesting))
    }
}

impl Verdict {
    pub(crate) fn check(&self) -> Result<(), Error> {
        sound("verdict", self.at_ms >= 0 && self.passed == self.reason.is_none())
    }
}

impl Event {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let ok = natural(&[self.at_ms, self.from_ms, self.until_ms]);
        sound("event", ok && self.from_ms <= self.until_ms)
    }
}

impl Lease {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let price = [self.gpu_hour, self.vcpu_hour, self.gib_hour, self.baseline.unwrap_or(0), self.charged];
        let size = [self.milli_gpu, self.milli_cpu, self.memory];
        let times = [self.placed_ms, self.closed_ms, self.used_ms];
        sound(
            "lease",
            natural(&price) && natural(&size) && natural(&times) && self.placed_ms <= self.closed_ms,
        )
    }
}

impl Idle {
    pub(crate) fn check(&self) -> Result<(), Error> {
        sound("idle", natural(&[self.device_ms, self.gpu_hour, self.obliged_since_ms]))
    }
}

impl Pay {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let paid = [self.bids, self.cash, self.granted, self.realised, self.standby, self.used, self.vested];
        let taken =
            [self.penalty, self.penalty_collateral, self.penalty_held, self.forfeited, self.collateral];
        let rest = [self.bound_ppm, self.breaches, self.demoted_until_ms];
        let ok = natural(&paid) && natural(&taken) && natural(&rest);
        sound("pay", ok && days_are_sound(&self.days) && vesting_is_sound(&self.vesting))
    }
}

impl Totals {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let sums = [self.cash, self.credits, self.granted, self.sink, self.smoothed, self.used, self.vested];
        sound("result", natural(&sums))
    }
}

impl Seal {
    pub(crate) fn check(&self) -> Result<(), Error> {
        sound("seal", natural(&[self.epoch, self.lines]))
    }
}
