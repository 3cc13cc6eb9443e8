//! Settles an epoch that is closed: what stands still of it goes line by line into its bundle and into the settlement, and
//! what comes of that is written, all of it or nothing. The same rows give the same bytes.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use flate2::{Compression, write::GzEncoder};
use nave_crash_point::crash_point;
use nave_domain::{LeaseId, MicroUsd};
use nave_settlement::{
    LeasePay, Settling,
    bundle::{NO_HEAD, Writer},
    evidence::{Class, Event, FORMAT, Header, Idle, Lease, Miner, Pay, Record, Verdict},
    params::Params,
};
use nave_store::{
    ClassEvidence, EpochResult, EventEvidence, IdleEvidence, LeaseCredit, LeaseEvidence, LeaseResult,
    MinerEvidence, MinerResult, Settlement, Store, VerdictEvidence,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::key::MarketKey;

/// The most bytes of a piece of a bundle.
const PIECE_BYTES: usize = 1 << 20;

/// Bytes on their way from the writer of a bundle into rows.
#[derive(Debug, Clone, Default)]
struct Packed(Arc<Mutex<Vec<u8>>>);

impl Packed {
    fn with<T>(&self, act: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Packed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with(|packed| packed.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An epoch on its way from evidence to pay.
struct Pass<'a> {
    settlement: Settlement,
    settling: Settling,
    writer: Writer<GzEncoder<Packed>>,
    /// How many it has written.
    lines: i64,
    packed: Packed,
    key: &'a MarketKey,
    header: Header,
    /// Until when each miner was demoted before.
    demoted: BTreeMap<String, i64>,
    credits: Vec<LeaseCredit>,
}

/// Settles an epoch that is closed and whose predecessors are settled.
///
/// # Errors
/// When the database does not answer, or the evidence is not sound; nothing has happened then.
pub async fn settle(store: &Store, epoch: i64, sink: &str, key: &MarketKey) -> anyhow::Result<()> {
    let mut pass = Pass::begin(store.settlement_begin(epoch).await?, sink, key)?;
    pass.classes().await?;
    pass.miners().await?;
    pass.verdicts().await?;
    pass.events().await?;
    crash_point!("validator.settle.before_leases");
    pass.leases().await?;
    pass.idle().await?;
    pass.finish().await
}

impl<'a> Pass<'a> {
    fn begin(settlement: Settlement, sink: &str, key: &'a MarketKey) -> anyhow::Result<Self> {
        let frame = &settlement.frame;
        let params: Params = read("the parameters", &frame.params)?;
        let mut emissions: Vec<i64> = frame.emissions.iter().map(|value| value.0).collect();
        let kept =
            usize::try_from(params.smoothing.saturating_sub(1)).unwrap_or(usize::MAX).min(emissions.len());
        let header = Header {
            chain: frame.chain.clone(),
            closed_ms: frame.closed_at.0,
            // A chain of its own would say what it emitted; the local one does not emit anything.
            emission: params.local_emission,
            emission_source: "parameters".into(),
            emissions: emissions.split_off(emissions.len() - kept),
            epoch: frame.epoch,
            format: FORMAT,
            market: key.public().to_owned(),
            opened_ms: frame.opened_at.0,
            sink: sink.to_owned(),
        };
        let settling = Settling::new(&header, &params).context("begin the settlement")?;
        let packed = Packed::default();
        let head = frame.head_before.as_deref().unwrap_or(NO_HEAD);
        let writer = Writer::new(GzEncoder::new(packed.clone(), Compression::fast()), head);
        let (demoted, credits) = (BTreeMap::new(), Vec::new());
        let first = Record::Header(header.clone());
        let mut pass = Self { settlement, settling, writer, lines: 0, packed, key, header, demoted, credits };
        pass.push(&first)?;
        pass.push(&Record::Params(params))?;
        Ok(pass)
    }

    fn push(&mut self, record: &Record) -> anyhow::Result<()> {
        self.lines += 1;
        self.writer.push(record).with_context(|| format!("write line {} of the bundle", self.lines))
    }

    async fn classes(&mut self) -> anyhow::Result<()> {
        for row in self.settlement.classes().await? {
            let class = class(row);
            self.settling.class(&class)?;
            self.push(&Record::Class(class))?;
        }
        Ok(())
    }

    async fn miners(&mut self) -> anyhow::Result<()> {
        for row in self.settlement.miners().await? {
            let miner = miner(row)?;
            self.settling.miner(&miner).with_context(|| format!("take miner {}", miner.hotkey))?;
            self.demoted.insert(miner.hotkey.clone(), miner.demoted_until_ms);
            self.push(&Record::Miner(miner))?;
        }
        Ok(())
    }

    async fn verdicts(&mut self) -> anyhow::Result<()> {
        let mut after = None;
        loop {
            let rows = self.settlement.verdicts(after).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some(last.challenge);
            for row in rows {
                self.push(&Record::Verdict(verdict(row)))?;
            }
            self.drain(PIECE_BYTES).await?;
        }
    }

    async fn events(&mut self) -> anyhow::Result<()> {
        let mut after = None;
        loop {
            let rows = self.settlement.events(after).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some(last.event);
            for row in rows {
                let event = event(row)?;
                self.settling.event(&event).with_context(|| format!("take {}", event.event))?;
                self.push(&Record::Event(event))?;
            }
            self.drain(PIECE_BYTES).await?;
        }
    }

    async fn leases(&mut self) -> anyhow::Result<()> {
        let mut after: Option<LeaseId> = None;
        loop {
            let rows = self.settlement.leases(after).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some(last.lease);
            let mut paid = Vec::with_capacity(rows.len());
            for row in rows {
                paid.push(self.lease(row)?);
            }
            self.settlement.leases_paid(&paid).await?;
            self.drain(PIECE_BYTES).await?;
        }
    }

    fn lease(&mut self, row: LeaseEvidence) -> anyhow::Result<LeaseResult> {
        let (id, job, customer) = (row.lease, row.job, row.customer);
        let lease = lease(row)?;
        let pay = self.settling.lease(&lease).with_context(|| format!("settle {id}"))?;
        if pay.credit > 0 {
            self.credits.push(LeaseCredit { lease: id, job, customer, amount: MicroUsd(pay.credit) });
        }
        let result = lease_result(id, &lease.hotkey, &pay)?;
        self.push(&Record::Lease(lease))?;
        Ok(result)
    }

    async fn idle(&mut self) -> anyhow::Result<()> {
        let mut after = None;
        loop {
            let before = after.as_ref().map(|(host, class): &(_, String)| (*host, class.as_str()));
            let rows = self.settlement.idle(before).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some((last.host, last.class.clone()));
            for row in rows {
                let idle = idle(row);
                self.settling.idle(&idle).with_context(|| format!("take idle devices of {}", idle.host))?;
                self.push(&Record::Idle(idle))?;
            }
            self.drain(PIECE_BYTES).await?;
        }
    }

    async fn finish(mut self) -> anyhow::Result<()> {
        let done = self.settling.finish().context("close the books")?;
        for pay in done.pays.values() {
            self.writer.push(&Record::Pay(pay.clone()))?;
        }
        self.writer.push(&Record::Result(done.result.clone()))?;
        // With the result and the seal.
        let lines = self.lines + i64::try_from(done.pays.len())? + 2;
        let (packer, head) = self.writer.seal(|bytes| self.key.sign(bytes))?;
        packer.finish()?;
        drain(&mut self.settlement, &self.packed, 1).await?;
        let miners = done.pays.into_values().map(|pay| miner_result(&pay, &self.demoted));
        let result = EpochResult {
            emission: MicroUsd(self.header.emission),
            emission_source: self.header.emission_source,
            emissions: self.header.emissions,
            head,
            lines,
            result: serde_json::to_value(&done.result)?,
            weights: done.result.weights.into_iter().collect(),
            miners: miners.collect::<Result<_, _>>()?,
            credits: self.credits,
        };
        crash_point!("validator.settle.before_advance");
        Ok(self.settlement.finish(&result).await?)
    }

    /// Writes pieces down while there are `least` bytes.
    async fn drain(&mut self, least: usize) -> anyhow::Result<()> {
        drain(&mut self.settlement, &self.packed, least).await
    }
}

async fn drain(settlement: &mut Settlement, packed: &Packed, least: usize) -> anyhow::Result<()> {
    loop {
        let piece: Vec<u8> = packed.with(|packed| match packed.len() < least {
            true => Vec::new(),
            false => packed.drain(..packed.len().min(PIECE_BYTES)).collect(),
        });
        if piece.is_empty() {
            return Ok(());
        }
        settlement.bundle_write(&piece).await?;
    }
}

fn read<T: DeserializeOwned>(what: &str, value: &Value) -> anyhow::Result<T> {
    serde_json::from_value(value.clone()).with_context(|| format!("read {what}"))
}

fn name<T: DeserializeOwned>(what: &str, name: String) -> anyhow::Result<T> {
    read(what, &Value::String(name))
}

fn class(row: ClassEvidence) -> Class {
    Class {
        baseline: row.baseline,
        baseline_at_ms: row.fetched_at_ms,
        baseline_source: row.source,
        class: row.class,
        devices: row.devices,
        leased_milli: row.leased_milli,
    }
}

fn miner(row: MinerEvidence) -> anyhow::Result<Miner> {
    let before: Pay = match &row.before {
        Some(pay) => read("what the epoch before left", pay)?,
        None => Pay::default(),
    };
    let collateral = MicroUsd(before.collateral).plus(row.moved).context("add up collateral")?;
    Ok(Miner {
        banned: row.banned,
        carry: before.carry,
        collateral: collateral.0,
        days: before.days,
        demoted_until_ms: before.demoted_until_ms,
        hotkey: row.hotkey,
        verified_hosts: row.verified_hosts,
        vesting: before.vesting,
        weight: before.weight,
    })
}

fn verdict(row: VerdictEvidence) -> Verdict {
    let passed = row.code == "passed";
    Verdict {
        at_ms: row.at.0,
        host: row.host.to_string(),
        hotkey: row.hotkey,
        passed,
        reason: (!passed).then_some(row.code),
        task: row.task,
        verdict: row.challenge.to_string(),
    }
}

fn event(row: EventEvidence) -> anyhow::Result<Event> {
    Ok(Event {
        at_ms: row.at.0,
        blame: name("whose fault an event was", row.blame)?,
        confirmed_by: row.confirmed_by.map(|by| name("what shows an event", by)).transpose()?,
        detail: row.detail,
        event: row.event.to_string(),
        from_ms: row.from.0,
        host: row.host.to_string(),
        hotkey: row.hotkey,
        kind: name("a kind of event", row.kind)?,
        lease: row.lease.map(|lease| lease.to_string()),
        signature: row.signature,
        until_ms: row.until.0,
    })
}

fn lease(row: LeaseEvidence) -> anyhow::Result<Lease> {
    Ok(Lease {
        baseline: row.baseline,
        charged: row.charged.0,
        class: row.class,
        closed_ms: row.closed_at.0,
        customer: row.customer.to_string(),
        gib_hour: row.gib_hour,
        gpu_hour: row.gpu_hour,
        host: row.host.to_string(),
        hotkey: row.hotkey,
        job: row.job.to_string(),
        lease: row.lease.to_string(),
        memory: row.memory,
        milli_cpu: row.milli_cpu,
        milli_gpu: row.milli_gpu,
        outcome: row.outcome,
        placed_ms: row.placed_at.0,
        related: row.related,
        term: name("a term", row.term)?,
        used_ms: row.used.0,
        vcpu_hour: row.vcpu_hour,
    })
}

fn idle(row: IdleEvidence) -> Idle {
    Idle {
        class: row.class,
        device_ms: row.device.0,
        gpu_hour: row.gpu_hour.0,
        host: row.host.to_string(),
        hotkey: row.hotkey,
        obliged_since_ms: row.obliged_since.0,
    }
}

fn lease_result(lease: LeaseId, hotkey: &str, pay: &LeasePay) -> anyhow::Result<LeaseResult> {
    Ok(LeaseResult {
        lease,
        hotkey: hotkey.to_owned(),
        breaches: i32::try_from(pay.breaches)?,
        adherence_ppm: i32::try_from(pay.adherence_ppm)?,
        used: MicroUsd(pay.used),
        bid: MicroUsd(pay.bid),
        credit: MicroUsd(pay.credit),
        penalty: MicroUsd(pay.penalty),
    })
}

fn miner_result(pay: &Pay, demoted: &BTreeMap<String, i64>) -> anyhow::Result<MinerResult> {
    Ok(MinerResult {
        hotkey: pay.hotkey.clone(),
        pay: serde_json::to_value(pay)?,
        cash: MicroUsd(pay.cash),
        penalty_collateral: MicroUsd(pay.penalty_collateral),
        is_demoted: demoted.get(&pay.hotkey).is_none_or(|before| *before < pay.demoted_until_ms),
    })
}
