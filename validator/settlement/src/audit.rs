//! Computes a bundle's pay and weights again.

use std::{
    collections::{BTreeMap, btree_map},
    io::BufRead,
};

use serde::Serialize;

use crate::{
    Error, Settlement, Settling,
    bundle::{Difference, ReadError, Reader},
    evidence::{Header, Miner, Pay, Record, Totals},
    params::Params,
};

/// What a bundle says that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Which epoch of which market.
    pub header: Header,
    /// By which parameters.
    pub params: Params,
    /// What came of each miner.
    pub pays: BTreeMap<String, Pay>,
    /// The sums, and the weights.
    pub result: Totals,
    /// The lines of the bundle.
    pub lines: i64,
    /// The SHA-256 of its last line.
    pub head: String,
}

/// Reads a bundle, computes what follows from its evidence, and compares; with the report of the epoch before also
/// whether it goes on from there.
///
/// # Errors
/// The first difference, or what kept the bundle from being read.
pub fn audit(input: impl BufRead, before: Option<&Report>) -> Result<Report, ReadError> {
    let mut reader = Reader::new(input, before.map(|report| report.head.as_str()));
    let mut audit = Audit::new(before);
    while let Some(record) = reader.read()? {
        audit.line = reader.lines();
        audit.record = record.name();
        audit.take(record)?;
    }
    let (Some(header), Some(params), Some(result)) = (audit.header, audit.params, audit.result) else {
        return Err(Difference::line(reader.lines(), String::new(), "the bundle is not whole").into());
    };
    let head = reader.head().to_owned();
    Ok(Report { header, params, pays: audit.pays, result, lines: reader.lines(), head })
}

struct Audit<'a> {
    line: i64,
    record: String,
    before: Option<&'a Report>,
    /// The miners of the epoch before that have not come yet.
    expected: BTreeMap<&'a str, &'a Pay>,
    header: Option<Header>,
    params: Option<Params>,
    settling: Option<Settling>,
    /// What follows and has not come yet.
    following: Option<(btree_map::IntoIter<String, Pay>, Totals)>,
    pays: BTreeMap<String, Pay>,
    result: Option<Totals>,
}

impl<'a> Audit<'a> {
    fn new(before: Option<&'a Report>) -> Self {
        let pays = before.map(|report| &report.pays).into_iter().flatten();
        let expected = pays.filter(|(_, pay)| state(pay) != Miner::default());
        Self {
            line: 0,
            record: String::new(),
            before,
            expected: expected.map(|(hotkey, pay)| (hotkey.as_str(), pay)).collect(),
            header: None,
            params: None,
            settling: None,
            following: None,
            pays: BTreeMap::new(),
            result: None,
        }
    }

    fn take(&mut self, record: Record) -> Result<(), Difference> {
        match record {
            Record::Header(header) => self.header(header),
            Record::Params(params) => self.params(params),
            Record::Miner(miner) => self.miner(&miner),
            Record::Class(class) => self.settle(|settling| settling.class(&class)),
            Record::Event(event) => self.settle(|settling| settling.event(&event)),
            Record::Lease(lease) => self.settle(|settling| settling.lease(&lease).map(|_| ())),
            Record::Idle(idle) => self.settle(|settling| settling.idle(&idle)),
            Record::Pay(pay) => self.pay(pay),
            Record::Result(result) => self.result(result),
            Record::Verdict(_) | Record::Seal(_) => Ok(()),
        }
    }

    fn header(&mut self, header: Header) -> Result<(), Difference> {
        if let Some(before) = self.before.map(|report| &report.header) {
            self.same("epoch", &header.epoch, &(before.epoch.saturating_add(1)))?;
            self.same("market", &header.market, &before.market)?;
            self.same("opened_ms", &header.opened_ms, &header.opened_ms.max(before.closed_ms))?;
        }
        self.header = Some(header);
        Ok(())
    }

    fn params(&mut self, params: Params) -> Result<(), Difference> {
        let Some(header) = &self.header else { return Ok(()) };
        if let Some(before) = self.before {
            let mut emissions = before.header.emissions.clone();
            emissions.push(before.header.emission);
            let kept = usize::try_from(params.smoothing - 1).unwrap_or(usize::MAX).min(emissions.len());
            self.same("emissions", &header.emissions, &emissions.split_off(emissions.len() - kept))?;
            if params.version == before.params.version {
                self.compare(&params, &before.params)?;
            }
        }
        self.settling = Some(Settling::new(header, &params).map_err(|error| self.error(&error))?);
        self.params = Some(params);
        Ok(())
    }

    fn miner(&mut self, miner: &Miner) -> Result<(), Difference> {
        if self.before.is_some() {
            let left = self.expected.remove(miner.hotkey.as_str()).map(state).unwrap_or_default();
            self.same("carry", &miner.carry, &left.carry)?;
            self.same("days", &miner.days, &left.days)?;
            self.same("demoted_until_ms", &miner.demoted_until_ms, &left.demoted_until_ms)?;
            self.same("vesting", &miner.vesting, &left.vesting)?;
            self.same("weight", &miner.weight, &left.weight)?;
        }
        self.settle(|settling| settling.miner(miner))
    }

    fn settle(&mut self, with: impl FnOnce(&mut Settling) -> Result<(), Error>) -> Result<(), Difference> {
        let taken = self.settling.as_mut().map_or(Ok(()), with);
        taken.map_err(|error| self.error(&error))
    }

    /// Closes the books where all evidence has come.
    fn finish(&mut self) -> Result<(), Difference> {
        let Some(settling) = self.settling.take() else { return Ok(()) };
        if let Some(hotkey) = self.expected.keys().next() {
            return Err(self.wrong(format!("comes, and the miner {hotkey} of the epoch before did not")));
        }
        let Settlement { pays, result } = settling.finish().map_err(|error| self.error(&error))?;
        self.following = Some((pays.into_iter(), result));
        Ok(())
    }

    fn pay(&mut self, pay: Pay) -> Result<(), Difference> {
        self.finish()?;
        match self.following.as_mut().and_then(|(pays, _)| pays.next()) {
            None => Err(self.wrong("is of no miner")),
            Some((_, follows)) => {
                self.same("hotkey", &pay.hotkey, &follows.hotkey)?;
                self.compare(&pay, &follows)?;
                self.pays.insert(pay.hotkey.clone(), pay);
                Ok(())
            }
        }
    }

    fn result(&mut self, result: Totals) -> Result<(), Difference> {
        self.finish()?;
        let Some((mut pays, follows)) = self.following.take() else { return Ok(()) };
        if let Some((hotkey, _)) = pays.next() {
            return Err(self.wrong(format!("comes before the pay of {hotkey}")));
        }
        self.compare(&result, &follows)?;
        self.result = Some(result);
        Ok(())
    }

    fn same<T: Serialize + PartialEq>(&self, field: &str, says: &T, follows: &T) -> Result<(), Difference> {
        if says == follows {
            return Ok(());
        }
        let text = |value: &T| serde_json::to_string(value).unwrap_or_default();
        Err(Difference {
            says: text(says),
            follows: text(follows),
            field: field.to_owned(),
            ..self.wrong("")
        })
    }

    /// The first field, in their order, in which two records of one kind differ.
    fn compare<T: Serialize + PartialEq>(&self, says: &T, follows: &T) -> Result<(), Difference> {
        if says == follows {
            return Ok(());
        }
        let fields = |record: &T| match serde_json::to_value(record) {
            Ok(serde_json::Value::Object(fields)) => fields.into_iter().collect::<BTreeMap<_, _>>(),
            Ok(_) | Err(_) => BTreeMap::new(),
        };
        let (said, following) = (fields(says), fields(follows));
        said.iter().try_for_each(|(field, value)| {
            self.same(field, value, following.get(field).unwrap_or(&serde_json::Value::Null))
        })
    }

    fn error(&self, error: &Error) -> Difference {
        self.wrong(error.to_string())
    }

    fn wrong(&self, what: impl Into<String>) -> Difference {
        Difference::line(self.line, self.record.clone(), what)
    }
}

/// What an epoch leaves of a miner, its collateral aside: owners pay that in and call it back.
fn state(pay: &Pay) -> Miner {
    Miner {
        carry: pay.carry,
        days: pay.days.clone(),
        demoted_until_ms: pay.demoted_until_ms,
        vesting: pay.vesting.clone(),
        weight: pay.weight,
        ..Miner::default()
    }
}
