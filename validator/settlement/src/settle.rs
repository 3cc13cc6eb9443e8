//! Evidence in, pay and weights out.

use std::collections::BTreeMap;

use nave_domain::{MicroUsd, epoch};

use crate::{
    Error,
    evidence::{Class, Event, Header, Idle, Lease, Miner, Pay, Totals},
    exact::{MILLION, fit, ratio},
    lease::{self, Faults, LeasePay},
    miner::Book,
    params::Params,
    standby::{self, ClassBook, Counted},
};

/// An epoch while its evidence comes in.
///
/// Classes and miners come first, events before their leases. What is kept does not grow with the number of leases.
#[derive(Debug)]
pub struct Settling {
    header: Header,
    params: Params,
    smoothed: i64,
    classes: BTreeMap<String, ClassBook>,
    books: BTreeMap<String, Book>,
    /// Of leases that have not come yet.
    faults: BTreeMap<String, LeaseFaults>,
    /// When a host last broke its obligations.
    broken_ms: BTreeMap<String, i64>,
    idle: BTreeMap<String, Vec<Counted>>,
    credits: i128,
}

#[derive(Debug)]
struct LeaseFaults {
    host: String,
    hotkey: String,
    faults: Faults,
}

/// What an epoch comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// What comes of each miner.
    pub pays: BTreeMap<String, Pay>,
    /// The sums, and the weights.
    pub result: Totals,
}

impl Settling {
    /// An epoch without evidence.
    ///
    /// # Errors
    /// Where header or parameters are not sound.
    pub fn new(header: &Header, params: &Params) -> Result<Self, Error> {
        header.check()?;
        params.check()?;
        if params.effective_epoch > header.epoch {
            return Err(Error::TooEarly);
        }
        let count = i64::try_from(header.emissions.len()).map_err(|_| Error::Overflow)? + 1;
        if count > params.smoothing {
            return Err(Error::TooManyEmissions);
        }
        let sum: i128 = header.emissions.iter().copied().map(i128::from).sum();
        let smoothed = fit((sum + i128::from(header.emission)) / i128::from(count))?;
        Ok(Self {
            header: header.clone(),
            params: params.clone(),
            smoothed,
            classes: BTreeMap::new(),
            books: BTreeMap::new(),
            faults: BTreeMap::new(),
            broken_ms: BTreeMap::new(),
            idle: BTreeMap::new(),
            credits: 0,
        })
    }

    /// Adds a class.
    ///
    /// # Errors
    /// Where it is not sound, or there already.
    pub fn class(&mut self, class: &Class) -> Result<(), Error> {
        class.check()?;
        let book = ClassBook { class: class.clone(), device_ms: 0, used: 0 };
        match self.classes.insert(class.class.clone(), book) {
            None => Ok(()),
            Some(_) => Err(Error::Twice(class.class.clone())),
        }
    }

    /// Adds a miner.
    ///
    /// # Errors
    /// Where it is not sound, or there already.
    pub fn miner(&mut self, miner: &Miner) -> Result<(), Error> {
        miner.check()?;
        let book = Book { miner: miner.clone(), ..Book::default() };
        match self.books.insert(miner.hotkey.clone(), book) {
            None => Ok(()),
            Some(_) => Err(Error::Twice(miner.hotkey.clone())),
        }
    }

    /// Adds an event.
    ///
    /// # Errors
    /// Where it is not sound, its miner is not there, or its lease has events of another host.
    pub fn event(&mut self, event: &Event) -> Result<(), Error> {
        event.check()?;
        let book = book(&mut self.books, &event.hotkey)?;
        if event.counts() && event.is_breach() {
            if event.lease.is_none() {
                book.breaks(&event.host, MILLION);
            }
            let broken = self.broken_ms.entry(event.host.clone()).or_default();
            *broken = event.at_ms.max(*broken);
        }
        let Some(lease) = &event.lease else { return Ok(()) };
        let known = self.faults.entry(lease.clone()).or_insert_with(|| LeaseFaults {
            host: event.host.clone(),
            hotkey: event.hotkey.clone(),
            faults: Faults::default(),
        });
        if (&known.host, &known.hotkey) != (&event.host, &event.hotkey) {
            return Err(Error::OtherHost(lease.clone()));
        }
        known.faults.add(event)
    }

    /// Settles a lease.
    ///
    /// # Errors
    /// Where it is not sound, its miner is not there, its events are of another host, or [`Error::Overflow`].
    pub fn lease(&mut self, lease: &Lease) -> Result<LeasePay, Error> {
        lease.check()?;
        let book = book(&mut self.books, &lease.hotkey)?;
        let faults = match self.faults.remove(&lease.lease) {
            None => Faults::default(),
            Some(known) if known.host == lease.host && known.hotkey == lease.hotkey => known.faults,
            Some(_) => return Err(Error::OtherHost(lease.lease.clone())),
        };
        let pay = lease::settle(lease, &faults, &self.params)?;
        book.penalty += i128::from(pay.penalty);
        if pay.breaches > 0 {
            book.breaks(&lease.host, pay.breaches * lease::device_part(lease));
        }
        if lease.related.is_some() {
            return Ok(pay);
        }
        book.used += i128::from(pay.used);
        book.bids += i128::from(pay.bid);
        book.device_ms += i128::from(lease::device_ms(lease)?);
        self.credits += i128::from(pay.credit);
        let class = lease.class.as_ref().and_then(|class| self.classes.get_mut(class));
        if let Some(class) = class {
            class.device_ms += i128::from(ratio(&[lease.used_ms, lease.milli_gpu], 1_000)?);
            class.used += i128::from(pay.used);
        }
        Ok(pay)
    }

    /// Adds idle devices.
    ///
    /// # Errors
    /// Where it is not sound, or its miner is not there.
    pub fn idle(&mut self, idle: &Idle) -> Result<(), Error> {
        idle.check()?;
        let book = book(&mut self.books, &idle.hotkey)?;
        book.device_ms += i128::from(idle.device_ms);
        let broken_ms = self.broken_ms.get(&idle.host).copied().unwrap_or(0);
        if !book.forfeits() && standby::counts(idle, broken_ms, &self.header, &self.params) {
            let counted =
                Counted { hotkey: idle.hotkey.clone(), device_ms: idle.device_ms, gpu_hour: idle.gpu_hour };
            self.idle.entry(idle.class.clone()).or_default().push(counted);
        }
        Ok(())
    }

    /// Closes the books.
    ///
    /// # Errors
    /// Where there are events of a lease that did not come, or [`Error::Overflow`].
    pub fn finish(mut self) -> Result<Settlement, Error> {
        if let Some(lease) = self.faults.into_keys().next() {
            return Err(Error::NoLease(lease));
        }
        for (name, class) in &self.classes {
            let idle = self.idle.get(name).map(Vec::as_slice).unwrap_or_default();
            standby::share(class, idle, &mut self.books, &self.header, &self.params)?;
        }
        let mut shares = Vec::new();
        for book in self.books.values() {
            let pay = book.pay(&self.header, &self.params)?;
            let owed = if book.miner.verified_hosts == 0 { 0 } else { pay.carry.max(0) };
            shares.push(Share { pay, owed, part: 0 });
        }
        share_out(&mut shares, self.smoothed)?;
        settlement(shares, self.smoothed, &self.header.sink, self.credits)
    }
}

fn book<'a>(books: &'a mut BTreeMap<String, Book>, hotkey: &str) -> Result<&'a mut Book, Error> {
    books.get_mut(hotkey).ok_or_else(|| Error::NoMiner(hotkey.to_owned()))
}

/// A miner's share in the emission.
struct Share {
    pay: Pay,
    owed: i64,
    part: i64,
}

/// Used pay first, standby from the rest, cash where the emission does not do.
fn share_out(shares: &mut [Share], smoothed: i64) -> Result<(), Error> {
    let owed: i128 = shares.iter().map(|share| i128::from(share.owed)).sum();
    let vested: i128 = shares.iter().map(|share| i128::from(share.pay.vested)).sum();
    let rest = i128::from(smoothed) - owed;
    for Share { pay, owed: own, part } in shares {
        let mut cash = 0;
        if rest >= 0 {
            *part = *own;
            let due = i128::from(pay.vested);
            pay.granted = fit(if vested <= rest { due } else { due * rest / vested })?;
        } else {
            *part = fit(i128::from(*own) * i128::from(smoothed) / owed)?;
            cash = (*own - *part).min(pay.used);
        }
        pay.carry = fit(i128::from(pay.carry) + i128::from(pay.granted) - i128::from(cash))?;
        pay.cash = fit(i128::from(pay.bids) + i128::from(cash))?;
    }
    Ok(())
}

/// Weights of the values, and the sums.
fn settlement(shares: Vec<Share>, smoothed: i64, sink: &str, credits: i128) -> Result<Settlement, Error> {
    let mut values: BTreeMap<String, MicroUsd> = BTreeMap::new();
    let mut left = i128::from(smoothed);
    for Share { pay, part, .. } in &shares {
        let value = fit(i128::from(*part) + i128::from(pay.granted))?;
        left -= i128::from(value);
        values.insert(pay.hotkey.clone(), MicroUsd(value));
    }
    let left = fit(left)?;
    let of_sink = values.entry(sink.to_owned()).or_default();
    *of_sink = of_sink.plus(MicroUsd(left)).map_err(|_| Error::Overflow)?;
    let weights = epoch::weights(&values, sink);
    let pays: BTreeMap<String, Pay> = shares
        .into_iter()
        .map(|Share { mut pay, .. }| {
            pay.weight = weights.get(&pay.hotkey).copied().unwrap_or(0);
            (pay.hotkey.clone(), pay)
        })
        .collect();
    let sum = |of: fn(&Pay) -> i64| fit(pays.values().map(|pay| i128::from(of(pay))).sum());
    let result = Totals {
        cash: sum(|pay| pay.cash)?,
        credits: fit(credits)?,
        granted: sum(|pay| pay.granted)?,
        sink: left,
        smoothed,
        used: sum(|pay| pay.used)?,
        vested: sum(|pay| pay.vested)?,
        weights: weights.into_iter().collect(),
    };
    Ok(Settlement { pays, result })
}
