//! The end of an epoch: what happened goes through the real settlement, and what comes of it to whoever it is for.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::host::Term;
use nave_settlement::{
    Error, Settlement, Settling,
    evidence::{Class, Event, FORMAT, Header, Idle, Lease},
};
use serde::Serialize;

use crate::{
    draw::Draws,
    scenario::{Hardware, Rules},
    world::{DAY_MS, EPOCH_MS, HOUR_MS, PPM, World, part},
};

/// Who gets what nobody earned.
const SINK: &str = "sink";
/// The whole of a weight vector.
const WHOLE: i64 = 65_535;
/// With a bounded sink, its part at most.
const SINK_PPM: i64 = 100_000;
/// Weights of so many epochs are not compared with those before: a market that begins changes much.
const WARM_UP: i64 = 10;

/// Income and cost, in micro-USD.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Purse {
    /// From weights, in cash and in credits, less collateral that was taken and what was paid for leases.
    pub income: i64,
    /// Of the hosts.
    pub cost: i64,
}

impl Purse {
    /// Income for a dollar of cost, in ppm.
    #[must_use]
    pub fn return_ppm(self) -> i64 {
        ratio_ppm(self.income, self.cost)
    }
}

/// `value / of` in ppm, rounded toward zero; nothing of nothing is nothing.
#[must_use]
pub fn ratio_ppm(value: i64, of: i64) -> i64 {
    let exact = i128::from(value) * i128::from(PPM) / i128::from(of.max(1));
    i64::try_from(exact).unwrap_or(i64::MAX)
}

/// A class over all epochs, in micro-USD.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct ClassPay {
    /// From weights and in cash, without what customers bid above the baseline.
    pub paid: i64,
    /// What customers bid above the baseline and miners got.
    pub bids: i64,
    /// What the delivered hours cost at the baseline.
    pub at_baseline: i64,
}

/// What a run comes to.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    /// The miner under study.
    pub seat: Purse,
    /// Honest miners of its class with sound hosts.
    pub sound: Purse,
    /// Honest miners of its class whose hosts are reclaimed now and then.
    pub reclaimed: Purse,
    /// By class.
    pub classes: BTreeMap<&'static str, ClassPay>,
    /// Emission over all epochs.
    pub emission: i64,
    /// What of it went to the sink.
    pub burned: i64,
    /// How far the weights of an epoch are from those before, summed, in 1/65535.
    pub moved: i64,
    /// How far they are from those two epochs before.
    pub moved_in_two: i64,
    /// Epochs over which both were summed.
    pub compared: i64,
}

/// What is kept from epoch to epoch.
pub struct Books {
    emissions: Vec<i64>,
    walk_ppm: i64,
    chance: Draws,
    epoch: i64,
    /// The last two vectors, the latest last.
    vectors: Vec<BTreeMap<String, u16>>,
    /// What is in it so far.
    pub outcome: Outcome,
}

impl Books {
    /// Empty ones.
    #[must_use]
    pub fn new(world: &World) -> Self {
        Self {
            emissions: Vec::new(),
            walk_ppm: PPM,
            chance: Draws::of(world.scenario.seed, 5),
            epoch: 0,
            vectors: Vec::new(),
            outcome: Outcome::default(),
        }
    }

    /// The value of this epoch's emission: it wanders, and once falls by a third for ten days.
    fn emission(&mut self, world: &World) -> i64 {
        self.walk_ppm =
            part(self.walk_ppm, PPM + self.chance.between(-20_000..=20_000)).clamp(700_000, 1_300_000);
        let crash = if (100..140).contains(&self.epoch) { 667_000 } else { PPM };
        let capacity: i64 = world
            .classes
            .iter()
            .map(|class| class.intended * class.honest_baseline * (EPOCH_MS / HOUR_MS))
            .sum();
        let usual = part(capacity, world.scenario.regime.demand().emission_ppm);
        part(part(usual, self.walk_ppm), crash)
    }

    /// Closes an epoch.
    ///
    /// # Errors
    /// Where settlement refuses the evidence.
    pub fn close(&mut self, world: &mut World) -> Result<(), Error> {
        let emission = self.emission(world);
        world.back_offers();
        let header = Header {
            chain: "simulated".to_owned(),
            closed_ms: world.now_ms,
            emission,
            emission_source: "simulated".to_owned(),
            emissions: self.emissions.clone(),
            epoch: self.epoch,
            format: FORMAT,
            market: "0".repeat(64),
            opened_ms: world.opened_ms,
            sink: SINK.to_owned(),
        };
        let leases = std::mem::take(&mut world.leases);
        let events = world.decided_events(&leases);
        let (settlement, credits) = settle(world, &header, &leases, &events)?;
        self.pay(world, &header, &settlement, credits);
        self.deliver(world, &leases);
        self.compare(&settlement);
        self.emissions.push(emission);
        let kept = usize::try_from(world.params.smoothing - 1).unwrap_or(0);
        self.emissions.drain(..self.emissions.len().saturating_sub(kept));
        self.epoch += 1;
        world.next_epoch();
        Ok(())
    }

    /// Who got what, and the state that everyone takes into the next epoch.
    fn pay(&mut self, world: &mut World, header: &Header, settlement: &Settlement, credits: i64) {
        let bonus = self.bounded(world.scenario.rules, header.emission);
        let outcome = &mut self.outcome;
        outcome.emission += header.emission;
        let burned = self.vectors.last().and_then(|vector| vector.get(SINK)).copied().unwrap_or(0);
        outcome.burned += header.emission * i64::from(burned) / WHOLE - bonus.values().sum::<i64>();
        for miner in &mut world.miners {
            let Some(pay) = settlement.pays.get(&miner.state.hotkey) else { continue };
            let extra = bonus.get(&miner.state.hotkey).copied().unwrap_or(0);
            let emitted = pay.realised + extra;
            let income = emitted + pay.cash - pay.penalty_collateral;
            let class = outcome.classes.entry(world.classes[miner.class].name).or_default();
            class.paid += emitted + pay.cash - pay.bids;
            class.bids += pay.bids;
            if miner.seat {
                outcome.seat.income += income;
            } else if miner.class == world.seat_class {
                match miner.hardware {
                    Hardware::Reclaimed => outcome.reclaimed.income += income,
                    Hardware::Sound | Hardware::Flaky | Hardware::Fake => outcome.sound.income += income,
                }
            }
            miner.state.carry = pay.carry;
            miner.state.collateral = pay.collateral;
            miner.state.days.clone_from(&pay.days);
            miner.state.demoted_until_ms = pay.demoted_until_ms;
            miner.state.vesting.clone_from(&pay.vesting);
            miner.state.weight = pay.weight;
        }
        outcome.seat.income += credits - std::mem::take(&mut world.seat_paid);
    }

    /// What miners get beyond what they are owed where the sink is bounded.
    fn bounded(&self, rules: Rules, emission: i64) -> BTreeMap<String, i64> {
        let Some(vector) = self.vectors.last().filter(|_| rules == Rules::BoundedSink) else {
            return BTreeMap::new();
        };
        let of_sink = i64::from(vector.get(SINK).copied().unwrap_or(0));
        let too_much = emission * of_sink / WHOLE - part(emission, SINK_PPM);
        let miners = WHOLE - of_sink;
        if too_much <= 0 || miners == 0 {
            return BTreeMap::new();
        }
        let earning = vector.iter().filter(|(hotkey, _)| *hotkey != SINK);
        earning.map(|(hotkey, weight)| (hotkey.clone(), too_much * i64::from(*weight) / miners)).collect()
    }

    /// What was delivered in each class.
    fn deliver(&mut self, world: &World, leases: &[Lease]) {
        for class in &world.classes {
            let of_class = leases.iter().filter(|lease| lease.class.as_deref() == Some(class.name));
            let at_baseline: i128 = of_class
                .map(|lease| i128::from(lease.used_ms) * i128::from(lease.baseline.unwrap_or(0)))
                .sum();
            self.outcome.classes.entry(class.name).or_default().at_baseline +=
                i64::try_from(at_baseline / i128::from(HOUR_MS)).unwrap_or(i64::MAX);
        }
    }

    /// How far the weights moved.
    fn compare(&mut self, settlement: &Settlement) {
        let vector: BTreeMap<String, u16> = settlement.result.weights.iter().cloned().collect();
        if self.epoch >= WARM_UP && self.vectors.len() == 2 {
            self.outcome.moved += distance(&vector, &self.vectors[1]);
            self.outcome.moved_in_two += distance(&vector, &self.vectors[0]);
            self.outcome.compared += 1;
        }
        self.vectors.push(vector);
        self.vectors.drain(..self.vectors.len().saturating_sub(2));
    }

    /// The costs of the whole run, once it is over.
    #[must_use]
    pub fn finish(mut self, world: &World) -> Outcome {
        for (miner, cost) in world.miners.iter().zip(&world.costs) {
            let cost = i64::try_from(cost / i128::from(PPM)).unwrap_or(i64::MAX);
            if miner.seat {
                self.outcome.seat.cost += cost;
            } else if miner.class == world.seat_class {
                match miner.hardware {
                    Hardware::Reclaimed => self.outcome.reclaimed.cost += cost,
                    Hardware::Sound | Hardware::Flaky | Hardware::Fake => self.outcome.sound.cost += cost,
                }
            }
        }
        self.outcome
    }
}

/// What of one vector is elsewhere in the other.
fn distance(a: &BTreeMap<String, u16>, b: &BTreeMap<String, u16>) -> i64 {
    let hotkeys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let weight = |vector: &BTreeMap<String, u16>, hotkey| i64::from(vector.get(hotkey).copied().unwrap_or(0));
    hotkeys.into_iter().map(|hotkey| (weight(a, hotkey) - weight(b, hotkey)).abs()).sum::<i64>() / 2
}

/// The settlement, and the credits of the miner under study as a customer.
fn settle(
    world: &World,
    header: &Header,
    leases: &[Lease],
    events: &[Event],
) -> Result<(Settlement, i64), Error> {
    let mut settling = Settling::new(header, &world.params)?;
    for class in &world.classes {
        settling.class(&Class {
            baseline: Some(class.baseline),
            baseline_at_ms: Some(header.opened_ms),
            baseline_source: Some("simulated".to_owned()),
            class: class.name.to_owned(),
            devices: class.devices,
            leased_milli: class.leased_milli,
        })?;
    }
    for miner in &world.miners {
        settling.miner(&miner.state)?;
    }
    for event in events {
        settling.event(event)?;
    }
    let mut credits = 0;
    for lease in leases {
        let pay = settling.lease(lease)?;
        if lease.customer != "public" {
            credits += pay.credit.max(promised(world.scenario.rules, lease, events));
        }
    }
    for idle in world.idle_lines() {
        settling.idle(&idle)?;
    }
    Ok((settling.finish()?, credits))
}

/// What the time that a lease lost would have cost, where that is what customers get.
fn promised(rules: Rules, lease: &Lease, events: &[Event]) -> i64 {
    if rules != Rules::CreditAbovePayment || lease.related.is_some() {
        return 0;
    }
    let of_lease = events.iter().filter(|event| event.counts() && event.lease.as_ref() == Some(&lease.lease));
    let lost: i64 = of_lease.map(|event| event.until_ms - event.from_ms).sum();
    let cost = i128::from(lost) * i128::from(lease.gpu_hour) / i128::from(HOUR_MS);
    i64::try_from(cost).unwrap_or(i64::MAX)
}

impl World {
    /// Fills up collateral, and notes what is so at the end of the epoch.
    fn back_offers(&mut self) {
        for number in 0..self.miners.len() {
            let hosts: Vec<usize> = (0..self.hosts.len())
                .filter(|host| self.hosts[*host].miner == number && !self.hosts[*host].gone)
                .collect();
            let hours = self.params.collateral_ms / HOUR_MS;
            let needed: i64 = hosts.iter().map(|host| self.list_price(*host) * hours).sum();
            let verified = hosts.iter().filter(|host| self.is_verified(**host)).count();
            let (now_ms, opened_ms) = (self.now_ms, self.opened_ms);
            let miner = &mut self.miners[number];
            if miner.backed && miner.wants == Term::OnDemand && !miner.gone {
                miner.state.collateral = miner.state.collateral.max(needed);
            }
            miner.state.verified_hosts = i64::try_from(verified).unwrap_or(i64::MAX);
            miner.state.banned =
                miner.banned_until_ms > opened_ms && miner.banned_until_ms <= now_ms + 7 * DAY_MS;
        }
    }

    /// The events that can be settled: those of open leases wait for them.
    fn decided_events(&mut self, leases: &[Lease]) -> Vec<Event> {
        let closed: BTreeSet<&str> = leases.iter().map(|lease| lease.lease.as_str()).collect();
        let events = std::mem::take(&mut self.events);
        let (decided, open) = events
            .into_iter()
            .partition(|event| event.lease.as_ref().is_none_or(|lease| closed.contains(lease.as_str())));
        self.events = open;
        decided
    }

    /// Idle devices of this epoch.
    fn idle_lines(&self) -> Vec<Idle> {
        let anyone = self.scenario.rules == Rules::StandbyForAnyone;
        let idle = self.hosts.iter().enumerate().filter(|(_, host)| host.idle_ms > 0);
        idle.map(|(number, host)| Idle {
            class: self.classes[self.miners[host.miner].class].name.to_owned(),
            device_ms: host.idle_ms,
            gpu_hour: self.price(number),
            host: host.id.clone(),
            hotkey: self.miners[host.miner].state.hotkey.clone(),
            obliged_since_ms: if anyone { 0 } else { host.obliged_since_ms },
        })
        .collect()
    }

    /// Begins to count anew.
    fn next_epoch(&mut self) {
        self.opened_ms = self.now_ms;
        for class in &mut self.classes {
            (class.devices, class.leased_milli) = (0, 0);
        }
        for host in &mut self.hosts {
            host.idle_ms = 0;
        }
    }
}
