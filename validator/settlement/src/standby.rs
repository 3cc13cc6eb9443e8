//! What idle devices earn.

use std::collections::BTreeMap;

use crate::{
    Error,
    evidence::{Class, Header, Idle},
    exact::{MILLION, fit, ratio},
    miner::Book,
    params::Params,
};

/// A class, and the sums of its settled leases.
#[derive(Debug)]
pub(crate) struct ClassBook {
    pub class: Class,
    /// GPU time.
    pub device_ms: i128,
    /// Pay for use.
    pub used: i128,
}

impl ClassBook {
    /// What an hour of an idle device is worth at most.
    fn rate(&self, params: &Params) -> Result<i64, Error> {
        let (Some(baseline), 1..) = (self.class.baseline, self.class.devices) else { return Ok(0) };
        let utilisation = i128::from(self.class.leased_milli) * 1_000 / i128::from(self.class.devices);
        let (from, until) = (i128::from(params.standby_from_ppm), i128::from(params.standby_until_ppm));
        let above = (utilisation.min(until) - from).max(0);
        let most = i128::from(baseline) * i128::from(params.standby_top_ppm);
        fit(most * above / ((until - from) * i128::from(MILLION)))
    }

    /// What there is between the baseline of what was delivered and what was paid for it.
    fn room(&self) -> Result<i128, Error> {
        let (device_ms, used) = (fit(self.device_ms)?, fit(self.used)?);
        let most = i128::from(self.class.baseline.unwrap_or(0)) * i128::from(device_ms) / 3_600_000;
        Ok((most - i128::from(used)).max(0))
    }
}

/// How much of the standby rate a price earns, in ppm: nothing at the baseline, all of it a band below.
fn factor(baseline: i64, gpu_hour: i64, params: &Params) -> Result<i64, Error> {
    let below = (i128::from(baseline) - i128::from(gpu_hour)).max(0);
    if below == 0 {
        return Ok(0);
    }
    let band = i128::from(baseline) * i128::from(params.price_band_ppm);
    fit((below * 1_000_000_000_000 / band).min(MILLION.into()))
}

/// Idle devices that have kept their obligations.
#[derive(Debug)]
pub(crate) struct Counted {
    pub hotkey: String,
    pub device_ms: i64,
    pub gpu_hour: i64,
}

/// Whether an idle line counts, if its miner gets standby at all.
pub(crate) fn counts(idle: &Idle, obliged_since_ms: i64, header: &Header, params: &Params) -> bool {
    let since = idle.obliged_since_ms.max(obliged_since_ms);
    i128::from(since) + i128::from(params.obliged_ms) <= i128::from(header.closed_ms)
}

/// Adds what the idle devices of one class earn to the books of their miners.
///
/// # Errors
/// [`Error::Overflow`].
pub(crate) fn share(
    class: &ClassBook,
    idle: &[Counted],
    books: &mut BTreeMap<String, Book>,
    header: &Header,
    params: &Params,
) -> Result<(), Error> {
    let room = class.room()?;
    let (Some(baseline), Some(target)) = (class.class.baseline, params.standby_target(&class.class.class))
    else {
        return Ok(());
    };
    let most = ratio(&[target, header.closed_ms - header.opened_ms], 1)?;
    let all = fit(idle.iter().map(|line| i128::from(line.device_ms)).sum())?;
    let rate = class.rate(params)?;
    let mut earned = Vec::new();
    for line in idle {
        let time = if all > most { ratio(&[line.device_ms, most], all)? } else { line.device_ms };
        let factor = factor(baseline, line.gpu_hour, params)?;
        earned.push(ratio(&[time, rate, factor], 3_600_000 * MILLION)?);
    }
    let sum = fit(earned.iter().map(|line| i128::from(*line)).sum())?;
    for (line, earned) in idle.iter().zip(earned) {
        let earned = if i128::from(sum) > room { ratio(&[earned, fit(room)?], sum)? } else { earned };
        if let Some(book) = books.get_mut(&line.hotkey) {
            book.standby = fit(i128::from(book.standby) + i128::from(earned))?;
        }
    }
    Ok(())
}
