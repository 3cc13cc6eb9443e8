//! What a miner's epoch adds up to: its record of breaches, what vests, and its balance.

use std::collections::BTreeMap;

use crate::{
    Error,
    evidence::{Header, Miner, Pay},
    exact::{MILLION, fit, ratio},
    params::Params,
};

/// A miner and the sums of its evidence.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub miner: Miner,
    pub used: i128,
    pub bids: i128,
    pub penalty: i128,
    pub standby: i64,
    pub device_ms: i128,
    /// What breaches of each host come to, in millionths of a device.
    pub broken: BTreeMap<String, i128>,
}

impl Book {
    /// Whether it gets no standby, and loses what has not vested.
    pub fn forfeits(&self) -> bool {
        self.miner.banned || self.miner.verified_hosts == 0
    }

    /// Adds breaches of a host that come to so many millionths of a device.
    pub fn breaks(&mut self, host: &str, devices_ppm: i64) {
        *self.broken.entry(host.to_owned()).or_default() += i128::from(devices_ppm);
    }

    /// What breaches of each host come to in devices, rounded up: a crash is no more breaches for being cut into many
    /// leases.
    fn breaches(&self) -> Result<i64, Error> {
        fit(self.broken.values().map(|ppm| (ppm + i128::from(MILLION) - 1) / i128::from(MILLION)).sum())
    }

    /// Its pay as far as it does not depend on others: `granted`, `cash` and `weight` come later, and `carry` is
    /// the balance before them.
    ///
    /// # Errors
    /// [`Error::Overflow`].
    pub fn pay(&self, header: &Header, params: &Params) -> Result<Pay, Error> {
        let miner = &self.miner;
        let breaches = self.breaches()?;
        let days = self.days(breaches, header, params)?;
        let bound_ppm = bound(&days, params)?;
        let demoted_until_ms = match bound_ppm > params.demotion_ppm {
            true => miner
                .demoted_until_ms
                .max(fit(i128::from(header.closed_ms) + i128::from(params.demotion_ms))?),
            false => miner.demoted_until_ms,
        };
        let realised = ratio(&[i64::from(miner.weight), header.emission], i64::from(u16::MAX))?;
        let (used, penalty) = (fit(self.used)?, fit(self.penalty)?);
        let mut balance = i128::from(miner.carry) - i128::from(realised) + self.used;
        let penalty_held = fit(self.penalty.min(balance.max(0)))?;
        let penalty_collateral = (penalty - penalty_held).min(miner.collateral);
        balance -= i128::from(penalty - penalty_collateral);
        let (mut vested, forfeited, mut vesting) = self.vest(header)?;
        let settles = i128::from(vested).min((-balance).max(0));
        balance += settles;
        vested = fit(i128::from(vested) - settles)?;
        if self.standby > 0 {
            let until = fit(i128::from(header.closed_ms) + i128::from(params.vest_ms))?;
            vesting.push([header.closed_ms, until, self.standby, 0]);
        }
        Ok(Pay {
            bids: fit(self.bids)?,
            bound_ppm,
            breaches,
            carry: fit(balance)?,
            collateral: miner.collateral - penalty_collateral,
            days,
            demoted_until_ms,
            forfeited,
            hotkey: miner.hotkey.clone(),
            penalty,
            penalty_collateral,
            penalty_held,
            realised,
            standby: self.standby,
            used,
            vested,
            vesting,
            ..Pay::default()
        })
    }

    /// The days of the window, with this epoch's.
    fn days(&self, breaches: i64, header: &Header, params: &Params) -> Result<Vec<[i64; 3]>, Error> {
        let today = header.closed_ms / 86_400_000;
        let old = today.saturating_sub(params.window_days);
        let kept = self.miner.days.iter().filter(|day| day[0] > old);
        let mut days: BTreeMap<i64, [i64; 3]> = kept.map(|day| (day[0], *day)).collect();
        if self.device_ms > 0 || breaches > 0 {
            let day = days.entry(today).or_insert([today, 0, 0]);
            day[1] = fit(i128::from(day[1]) + self.device_ms)?;
            day[2] = fit(i128::from(day[2]) + i128::from(breaches))?;
        }
        Ok(days.into_values().collect())
    }

    /// What of its standby is due now, what is lost, and what goes on vesting.
    fn vest(&self, header: &Header) -> Result<(i64, i64, Vec<[i64; 4]>), Error> {
        let (mut due, mut lost, mut left) = (0_i128, 0_i128, Vec::new());
        for [from, until, amount, vested] in self.miner.vesting.iter().copied() {
            if self.forfeits() {
                lost += i128::from(amount - vested);
                continue;
            }
            let passed = (header.closed_ms.min(until) - from).max(0);
            let so_far = ratio(&[amount, passed], until - from)?.max(vested);
            due += i128::from(so_far - vested);
            if header.closed_ms < until {
                left.push([from, until, amount, so_far]);
            }
        }
        Ok((fit(due)?, fit(lost)?, left))
    }
}

/// The lower 5 % point of the rate of breaches per device-hour, in ppm, where one more breach in
/// `prior_device_ms` is supposed.
///
/// The square root approximates quantiles of the Poisson distribution: 1.645² = 2.706 025.
fn bound(days: &[[i64; 3]], params: &Params) -> Result<i64, Error> {
    let sum = |column: usize| days.iter().map(|day| i128::from(day[column])).sum::<i128>();
    let (device_ms, breaches) = (sum(1), sum(2) + 1);
    let low = breaches * 1_000_000 + 568_700 - (breaches * 2_706_025_000_000).isqrt();
    fit(low.max(0) * 3_600_000 / (device_ms + i128::from(params.prior_device_ms)))
}
