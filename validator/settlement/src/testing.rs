//! Epochs that are made of a seed, for tests and for comparisons with other implementations.

use nave_domain::host::Term;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

use crate::{
    Error, Settlement, Settling,
    bundle::{WriteError, Writer},
    evidence::{
        Blame, Class, Confirmation, Event, FORMAT, Header, Idle, Kind, Lease, Miner, Pay, Record, Verdict,
    },
    params::Params,
};

const HOUR: i64 = 3_600_000;
const DOLLAR: i64 = 1_000_000;
/// When the first epoch opens: 2026-01-01.
const OPENED: i64 = 1_767_225_600_000;

/// Signs as the market of tests.
///
/// # Panics
/// Never.
#[must_use]
pub fn sign(message: &[u8]) -> [u8; 64] {
    key().sign(message).as_ref().try_into().expect("64 bytes")
}

/// The market key of tests, in hexadecimal.
#[must_use]
pub fn market() -> String {
    hex::encode(key().public_key().as_ref())
}

fn key() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed is a key")
}

/// The evidence of an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is what its type says")]
pub struct Epoch {
    pub header: Header,
    pub params: Params,
    pub classes: Vec<Class>,
    pub miners: Vec<Miner>,
    pub verdicts: Vec<Verdict>,
    pub events: Vec<Event>,
    pub leases: Vec<Lease>,
    pub idle: Vec<Idle>,
}

impl Epoch {
    /// One in which nothing happened.
    #[must_use]
    pub fn empty() -> Self {
        let header = Header {
            chain: "local".into(),
            closed_ms: OPENED + HOUR,
            emission: 0,
            emission_source: "fixed".into(),
            emissions: Vec::new(),
            epoch: 1,
            format: FORMAT,
            market: market(),
            opened_ms: OPENED,
            sink: "sink".into(),
        };
        Self {
            header,
            params: Params::default(),
            classes: Vec::new(),
            miners: Vec::new(),
            verdicts: Vec::new(),
            events: Vec::new(),
            leases: Vec::new(),
            idle: Vec::new(),
        }
    }

    /// What comes of it.
    ///
    /// # Errors
    /// As [`Settling`].
    pub fn settle(&self) -> Result<Settlement, Error> {
        let mut settling = Settling::new(&self.header, &self.params)?;
        self.classes.iter().try_for_each(|class| settling.class(class))?;
        self.miners.iter().try_for_each(|miner| settling.miner(miner))?;
        self.events.iter().try_for_each(|event| settling.event(event))?;
        self.leases.iter().try_for_each(|lease| settling.lease(lease).map(|_| ()))?;
        self.idle.iter().try_for_each(|idle| settling.idle(idle))?;
        settling.finish()
    }

    /// Its evidence in the order of a bundle, each event signed.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        let mut all = self.clone();
        all.classes.sort_by(|a, b| a.class.cmp(&b.class));
        all.miners.sort_by(|a, b| a.hotkey.cmp(&b.hotkey));
        all.verdicts.sort_by(|a, b| a.verdict.cmp(&b.verdict));
        all.events.sort_by(|a, b| a.event.cmp(&b.event));
        all.leases.sort_by(|a, b| a.lease.cmp(&b.lease));
        all.idle.sort_by(|a, b| (&a.host, &a.class).cmp(&(&b.host, &b.class)));
        all.events.iter_mut().for_each(|event| event.sign(sign));
        let mut records = vec![Record::Header(all.header), Record::Params(all.params)];
        records.extend(all.classes.into_iter().map(Record::Class));
        records.extend(all.miners.into_iter().map(Record::Miner));
        records.extend(all.verdicts.into_iter().map(Record::Verdict));
        records.extend(all.events.into_iter().map(Record::Event));
        records.extend(all.leases.into_iter().map(Record::Lease));
        records.extend(all.idle.into_iter().map(Record::Idle));
        records
    }

    /// Its bundle after `head`, with what `settlement` says; and its own head.
    ///
    /// # Errors
    /// As [`Writer`].
    pub fn bundle(&self, head: &str, settlement: &Settlement) -> Result<(Vec<u8>, String), WriteError> {
        let mut records = self.records();
        records.extend(settlement.pays.values().cloned().map(Record::Pay));
        records.push(Record::Result(settlement.result.clone()));
        bundle(head, &records)
    }

    /// An epoch of a small market, made of `seed`; the one after `before`, if there is one.
    #[must_use]
    pub fn random(seed: u64, before: Option<(&Self, &Settlement)>) -> Self {
        Draw(seed).epoch(before)
    }
}

/// The bundle of `records`, and its head.
///
/// # Errors
/// As [`Writer`].
pub fn bundle(head: &str, records: &[Record]) -> Result<(Vec<u8>, String), WriteError> {
    let mut writer = Writer::new(Vec::new(), head);
    records.iter().try_for_each(|record| writer.push(record))?;
    writer.seal(sign)
}

/// Numbers that follow from a seed (SplitMix64).
#[derive(Debug)]
pub struct Draw(pub u64);

const CLASSES: [&str; 3] = ["a100-80g", "h100-80g", "rtx-4090"];
const KINDS: [Kind; 8] = [
    Kind::StartLate,
    Kind::HeartbeatGap,
    Kind::Xid,
    Kind::FailedRetest,
    Kind::EarlyReclaim,
    Kind::BelowBand,
    Kind::Unreachable,
    Kind::HostLost,
];
/// Texts that are written in different ways.
const TEXTS: [&str; 5] =
    ["", "plain", "a \"quote\" and a \\", "line\nfeed\ttab\u{1}\u{1f}\u{7f}", "größer ≥ 🚀"];

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to `end`, which is left out.
    pub fn below(&mut self, end: i64) -> i64 {
        let end = u64::try_from(end).unwrap_or(1).max(1);
        i64::try_from(self.next() % end).unwrap_or(0)
    }

    fn one_in(&mut self, n: i64) -> bool {
        self.below(n) == 0
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        let at = self.below(i64::try_from(all.len()).unwrap_or(1));
        all[usize::try_from(at).unwrap_or(0)]
    }

    fn id(&mut self) -> String {
        format!("{:016x}", self.next())
    }

    fn text(&mut self) -> String {
        self.of(&TEXTS).to_owned()
    }

    fn epoch(&mut self, before: Option<(&Epoch, &Settlement)>) -> Epoch {
        let mut epoch = Epoch::empty();
        epoch.params = before.map_or_else(|| self.params(), |(before, _)| before.params.clone());
        self.header(&mut epoch, before.map(|(before, _)| before));
        epoch.classes = CLASSES.iter().map(|class| self.class(class)).collect();
        epoch.miners = self.miners(&epoch, before.map(|(_, settlement)| settlement));
        for _ in 0..self.below(40) {
            let lease = self.lease(&epoch);
            self.events(&mut epoch, &lease);
            epoch.leases.push(lease);
        }
        let hosts: Vec<String> = (0..self.below(12)).map(|_| self.id()).collect();
        for host in hosts {
            let idle = self.idle(&epoch, host);
            epoch.idle.extend(idle);
        }
        for _ in 0..self.below(4) {
            let verdict = self.verdict(&epoch);
            epoch.verdicts.push(verdict);
        }
        epoch
    }

    fn params(&mut self) -> Params {
        let usual = Params {
            standby_targets: vec![("a100-80g".into(), self.below(4)), ("h100-80g".into(), self.below(20))],
            ..Params::default()
        };
        if self.one_in(2) {
            return usual;
        }
        let from = self.below(900_000);
        Params {
            margin_ppm: self.below(1_000_001),
            breach_spot_ppm: self.below(1_000_001),
            demotion_ppm: self.below(40_000),
            prior_device_ms: 1 + self.below(500 * HOUR),
            window_days: 1 + self.below(30),
            price_band_ppm: 1 + self.below(1_000_000),
            standby_from_ppm: from,
            standby_until_ppm: from + 1 + self.below(1_000_000 - from),
            standby_top_ppm: self.below(1_000_001),
            vest_ms: 1 + self.below(200 * HOUR),
            version: 1,
            ..usual
        }
    }

    fn header(&mut self, epoch: &mut Epoch, before: Option<&Epoch>) {
        let header = &mut epoch.header;
        header.emission = match self.below(5) {
            0 => 0,
            1 => self.below(100),
            2 => self.below(1_000 * DOLLAR),
            _ => self.below(60 * DOLLAR),
        };
        header.emission_source = self.text();
        let Some(before) = before.map(|epoch| &epoch.header) else {
            header.emissions = (0..self.below(5)).map(|_| self.below(60 * DOLLAR)).collect();
            return;
        };
        header.epoch = before.epoch + 1;
        header.opened_ms = before.closed_ms;
        header.closed_ms = header.opened_ms + 1 + self.below(30 * HOUR);
        let mut emissions = before.emissions.clone();
        emissions.push(before.emission);
        let kept = usize::try_from(epoch.params.smoothing - 1).unwrap_or(0).min(emissions.len());
        header.emissions = emissions.split_off(emissions.len() - kept);
    }

    fn class(&mut self, name: &str) -> Class {
        let baseline = (!self.one_in(5)).then(|| 1 + self.below(4 * DOLLAR));
        let devices = self.below(40) * 60;
        Class {
            baseline,
            baseline_at_ms: baseline.map(|_| OPENED),
            baseline_source: baseline.map(|_| "median of three".to_owned()),
            class: name.to_owned(),
            devices,
            leased_milli: devices * (400 + self.below(610)),
        }
    }

    fn miners(&mut self, epoch: &Epoch, before: Option<&Settlement>) -> Vec<Miner> {
        let mut miners: Vec<Miner> = match before {
            None => (0..1 + self.below(6)).map(|_| self.miner(epoch)).collect(),
            Some(before) => before.pays.values().map(after).collect(),
        };
        for miner in &mut miners {
            miner.verified_hosts = self.below(6);
            miner.banned = self.one_in(12);
        }
        if self.one_in(20) {
            miners.push(Miner { hotkey: epoch.header.sink.clone(), verified_hosts: 1, ..Miner::default() });
        }
        miners.sort_by(|a, b| a.hotkey.cmp(&b.hotkey));
        miners.dedup_by(|a, b| a.hotkey == b.hotkey);
        miners
    }

    fn miner(&mut self, epoch: &Epoch) -> Miner {
        let mut miner = Miner { hotkey: self.id(), ..Miner::default() };
        if self.one_in(3) {
            return miner;
        }
        miner.carry = self.below(20 * DOLLAR) - 5 * DOLLAR;
        miner.collateral = self.of(&[0, DOLLAR, 500 * DOLLAR]);
        miner.weight = u16::try_from(self.below(65_536)).unwrap_or(0) / 8;
        let closed = epoch.header.closed_ms;
        for _ in 0..self.below(4) {
            let from = closed - self.below(80 * HOUR);
            let amount = self.below(3 * DOLLAR);
            miner.vesting.push([from, from + 1 + self.below(80 * HOUR), amount, self.below(amount + 1) / 3]);
        }
        let mut day = closed / (24 * HOUR) - 35;
        while self.below(6) > 0 {
            miner.days.push([day, self.below(200 * HOUR), self.below(4) / 2]);
            day += 1 + self.below(12);
        }
        miner
    }

    fn hotkey(&mut self, epoch: &Epoch) -> String {
        let at = self.below(i64::try_from(epoch.miners.len()).unwrap_or(1));
        epoch.miners[usize::try_from(at).unwrap_or(0)].hotkey.clone()
    }

    /// A lease at a price somewhere around its baseline.
    pub fn lease(&mut self, epoch: &Epoch) -> Lease {
        let has_gpus = !self.one_in(4);
        let baseline = (has_gpus && !self.one_in(4)).then(|| 1 + self.below(4 * DOLLAR));
        let gpu_hour = if has_gpus { self.below(4 * DOLLAR) } else { 0 };
        let used_ms = self.below(40 * HOUR);
        let closed_ms = epoch.header.opened_ms + self.below(epoch.header.closed_ms - epoch.header.opened_ms);
        let (milli_gpu, milli_cpu) = (self.of(&[250, 500, 1_000, 8_000]), self.of(&[250, 4_000, 64_000]));
        let cost = i128::from(used_ms) * i128::from(gpu_hour) * i128::from(milli_gpu) / 3_600_000_000;
        let cost = i64::try_from(cost).unwrap_or(0);
        let hotkey = self.hotkey(epoch);
        let host = if self.one_in(2) { format!("host-of-{hotkey}") } else { self.id() };
        Lease {
            baseline,
            charged: if self.one_in(8) { 0 } else { cost + self.below(DOLLAR) },
            class: has_gpus.then(|| self.of(&CLASSES).to_owned()),
            closed_ms,
            customer: self.id(),
            gib_hour: self.below(10_000),
            gpu_hour,
            host,
            hotkey,
            job: self.id(),
            lease: self.id(),
            memory: self.below(64) << 30,
            milli_cpu,
            milli_gpu: if has_gpus { milli_gpu } else { 0 },
            outcome: "exited".into(),
            placed_ms: closed_ms - used_ms,
            related: self.one_in(10).then(|| "same key".to_owned()),
            term: self.of(&[Term::OnDemand, Term::Spot]),
            used_ms,
            vcpu_hour: self.below(80_000),
        }
    }

    /// Events of a lease, and some of its host without a lease.
    fn events(&mut self, epoch: &mut Epoch, lease: &Lease) {
        let count = (self.below(8) - 4).max(0);
        for _ in 0..count {
            let at_ms = lease.closed_ms;
            let confirmed = self.of(&[
                None,
                Some(Confirmation::Report),
                Some(Confirmation::Retest),
                Some(Confirmation::Absence),
            ]);
            epoch.events.push(Event {
                at_ms,
                blame: self.of(&[Blame::Host, Blame::Host, Blame::Platform, Blame::Customer]),
                confirmed_by: confirmed,
                detail: self.text(),
                event: self.id(),
                from_ms: at_ms - self.below(HOUR),
                host: lease.host.clone(),
                hotkey: lease.hotkey.clone(),
                kind: self.of(&KINDS),
                lease: (!self.one_in(4)).then(|| lease.lease.clone()),
                signature: String::new(),
                until_ms: at_ms,
            });
        }
    }

    fn idle(&mut self, epoch: &Epoch, host: String) -> Vec<Idle> {
        let hotkey = self.hotkey(epoch);
        let mut of = |class: &str| Idle {
            class: class.to_owned(),
            device_ms: self.below(16 * HOUR),
            gpu_hour: self.below(3 * DOLLAR),
            host: host.clone(),
            hotkey: hotkey.clone(),
            obliged_since_ms: epoch.header.closed_ms - self.below(200 * HOUR),
        };
        CLASSES.iter().map(|class| of(class)).collect()
    }

    fn verdict(&mut self, epoch: &Epoch) -> Verdict {
        let passed = self.one_in(2);
        Verdict {
            at_ms: epoch.header.opened_ms,
            host: self.id(),
            hotkey: self.hotkey(epoch),
            passed,
            reason: (!passed).then(|| self.text()),
            task: "devices".into(),
            verdict: self.id(),
        }
    }
}

/// A miner as the next epoch finds it.
#[must_use]
pub fn after(pay: &Pay) -> Miner {
    Miner {
        carry: pay.carry,
        collateral: pay.collateral,
        days: pay.days.clone(),
        demoted_until_ms: pay.demoted_until_ms,
        hotkey: pay.hotkey.clone(),
        vesting: pay.vesting.clone(),
        weight: pay.weight,
        ..Miner::default()
    }
}
