//! Wishes: which devices of which hosts will do for a job, from one look to the next.
//!
//! A wish is asked of hosts that are alike only once where its price decides nothing, and afterwards of those alone that
//! have changed.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    Bytes, MicroUsd, Millis,
    fraction::{Division, Fraction},
    host::{Device, Term, Trust},
    job::{Egress, TermWish},
    rate::Rate,
    wish::Region,
};
use nave_store::{QueuedJob, SupplyHost};

use super::{
    load::{Slot, plain, share},
    money::pays,
};
use crate::{
    fit::{Meant, Names, Supply, fraction, lack_for_ever},
    fleet::{ANY, Fleet, Gpus, Handle, Mask, Wish},
};

/// Wishes beyond which those that nobody has any more are forgotten.
const WISHES_MAX: usize = 1_024;

/// All of a request that decides which devices of which hosts would do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    egress: Egress,
    grouped: bool,
    region: Option<Region>,
    term: TermWish,
    trust: BTreeSet<Trust>,
    most: Option<MicroUsd>,
    /// What decides the price of an hour, where that matters.
    size: Option<(i64, i64, i64)>,
    gpu: Option<(Bytes, Option<Bytes>, Option<Meant>)>,
    /// What is taken of devices where a fraction suffices, and the fraction, to the byte.
    divisible: Option<(Gpus, Option<Fraction>)>,
    /// What is left of its spend cap and how long it may run, where some host is too dear for that.
    short: Option<(MicroUsd, Millis)>,
    /// How long it may take, where hosts end.
    longest: Option<Millis>,
    otherwise: u32,
}

/// A wish as the fleet knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wished {
    /// Its number.
    pub number: u32,
    /// The classes that it accepts.
    pub classes: u64,
    /// What is taken of devices.
    pub gpus: Gpus,
}

/// What is asked of a host.
#[derive(Debug, Clone)]
struct Asked {
    job: QueuedJob,
    model: Option<Meant>,
    part: Option<Fraction>,
    /// Whether a host may be too dear for what is left of its spend cap.
    is_short: bool,
}

/// What is known of a wish.
#[derive(Debug, Clone)]
struct Answer {
    asked: Asked,
    /// How the fleet knows it; none where no host has such a part, so that the wish is the one after it.
    number: Option<u32>,
    /// The classes that itself accepts.
    classes: u64,
    /// Whether hosts have changed that it may be about.
    is_stale: bool,
    /// The look in which it was wished last.
    look: u64,
}

/// What decides, beside its rate, for whom a host would do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Traits {
    egress: Vec<Egress>,
    term: Term,
    region: Option<Region>,
    trust: Trust,
    devices: Vec<(Bytes, bool, usize, Option<MicroUsd>)>,
}

/// Hosts that are alike in their traits.
#[derive(Debug, Clone, Default)]
struct Sorts {
    numbers: BTreeMap<Traits, usize>,
    /// Of each sort one that costs nothing, and one that costs more than any.
    examples: Vec<(Supply, Supply)>,
}

/// The wishes that are known.
#[derive(Debug, Clone, Default)]
pub(super) struct Wishes {
    known: BTreeMap<Wanted, Answer>,
    sorts: Sorts,
    /// Rates that no host exceeds.
    dearest: Rate,
    /// Whether there are hosts that end.
    any_ends: bool,
    look: u64,
}

impl Wishes {
    /// Forgets wishes that nobody had in the last look, where there are many.
    pub fn begin(&mut self, fleet: &mut Fleet) {
        if self.known.len() > WISHES_MAX {
            let last = self.look;
            let forgotten = self.known.extract_if(.., |_, answer| answer.look < last);
            fleet.forget_wishes(&forgotten.filter_map(|(_, answer)| answer.number).collect());
        }
        self.look += 1;
    }

    /// Forgets everything, also which hosts are alike.
    pub fn clear(&mut self) {
        *self = Self { dearest: self.dearest, any_ends: self.any_ends, look: self.look, ..Self::default() };
    }

    /// Notes what no host exceeds, and whether any ends.
    pub fn bound(&mut self, dearest: Rate, any_ends: bool) {
        self.any_ends = any_ends;
        if self.dearest != dearest {
            self.dearest = dearest;
            self.sorts.examples.iter_mut().for_each(|(_, dear)| dear.host.rate = dearest);
        }
    }

    /// The number of those that a host is alike; none for one that ends, which is like no other for long.
    pub fn sort(&mut self, supply: &Supply) -> Option<usize> {
        let host = &supply.host;
        if host.lasts.is_some() {
            return None;
        }
        let device = |device: &Device| (device.vram, device.division == Division::Shares);
        let traits = Traits {
            egress: host.inventory.egress.clone(),
            term: host.terms.term,
            region: host.terms.region.clone(),
            trust: host.terms.trust,
            devices: supply
                .devices
                .iter()
                .map(|offered| {
                    let (vram, shares) = device(&offered.device);
                    (vram, shares, offered.known, offered.clouds)
                })
                .collect(),
        };
        let sorts = &mut self.sorts;
        let next = sorts.examples.len();
        let number = *sorts.numbers.entry(traits).or_insert(next);
        if number == next {
            let at = |rate| {
                let empty = supply.emptied();
                Supply { host: SupplyHost { rate, ..empty.host }, ..empty }
            };
            sorts.examples.push((at(Rate::default()), at(self.dearest)));
        }
        Some(number)
    }

    /// Asks of hosts that have changed again.
    pub fn ask_again(&mut self, fleet: &mut Fleet, slots: &[Slot], changed: &[Handle]) {
        if changed.len() > slots.len() / 8 {
            let known = std::mem::take(&mut self.known);
            return fleet.forget_wishes(&known.into_values().filter_map(|answer| answer.number).collect());
        }
        for answer in self.known.values_mut() {
            let Some(number) = answer.number else {
                answer.is_stale |= !changed.is_empty();
                continue;
            };
            for handle in changed {
                let supply = slots.get(handle.index()).and_then(|slot| slot.supply.as_deref());
                fleet.wish_again(number, *handle, supply.map_or(0, |supply| answer.asked.mask(supply)));
                answer.is_stale = true;
            }
        }
    }

    /// What a job wishes first: a share where one suffices and there are any, of its models in their order, and only then
    /// whole devices.
    pub fn of(&mut self, fleet: &mut Fleet, slots: &[Slot], names: &Names, job: &QueuedJob) -> Wished {
        let choices = names.choices(&job.request);
        let whole = choices.iter().rev().map(|model| (model.as_ref(), None));
        let part = fraction(&job.request).map(|(_, part)| part);
        let shares = choices.iter().rev().filter_map(|model| Some((model.as_ref(), Some(part?))));
        let none = Wished { number: 0, classes: 0, gpus: Gpus::None };
        whole
            .chain(shares)
            .fold(none, |otherwise, (model, part)| self.one_of(fleet, slots, job, model, part, otherwise))
    }

    fn one_of(
        &mut self,
        fleet: &mut Fleet,
        slots: &[Slot],
        job: &QueuedJob,
        model: Option<&Meant>,
        part: Option<Fraction>,
        otherwise: Wished,
    ) -> Wished {
        let gpus = part.map_or(plain(&job.request).gpus, |part| {
            let (milli, vram_mib) = share(part, None);
            Gpus::Share { milli, vram_mib }
        });
        let wanted = self.wanted(job, model, part, gpus, otherwise.number);
        let known = self.known.remove(&wanted).and_then(|answer| fresh(answer, fleet, slots));
        let mut answer = known.unwrap_or_else(|| {
            let asked =
                Asked { job: job.clone(), model: model.cloned(), part, is_short: wanted.short.is_some() };
            let taken = wanted.divisible.map(|(gpus, _)| gpus);
            let masks = self.masks(slots, &asked);
            let classes = classes(&masks, slots);
            let is_nowhere = part.is_some() && masks.iter().all(|mask| *mask == 0);
            let wish = Wish { masks, gpus: taken, otherwise: otherwise.number };
            let number = (!is_nowhere).then(|| fleet.wish(wish));
            Answer { asked, number, classes, is_stale: false, look: 0 }
        });
        answer.look = self.look;
        let (number, classes) = (answer.number, answer.classes | otherwise.classes);
        self.known.insert(wanted, answer);
        number.map_or(otherwise, |number| Wished { number, classes, gpus })
    }

    fn wanted(
        &self,
        job: &QueuedJob,
        model: Option<&Meant>,
        part: Option<Fraction>,
        gpus: Gpus,
        otherwise: u32,
    ) -> Wanted {
        let request = &job.request;
        let size = request.resources.size();
        let gpu = request.resources.gpu.as_ref();
        let short = (!pays(job, self.dearest)).then_some((job.left, request.limits.run_ms));
        let is_priced = request.max_price.is_some() || gpu.is_some() || short.is_some();
        Wanted {
            egress: request.egress,
            grouped: request.group.is_some(),
            region: request.region.clone(),
            term: request.term,
            trust: request.trust.clone(),
            most: request.max_price,
            size: is_priced.then_some((size.milli_gpu.0, size.milli_cpu.0, size.memory.0)),
            gpu: gpu.map(|gpu| (gpu.vram, gpu.vram_max, model.cloned())),
            divisible: fraction(request).map(|_| (gpus, part)),
            short,
            longest: self.any_ends.then(|| request.limits.longest()),
            otherwise,
        }
    }

    /// Which devices of each host will do.
    fn masks(&self, slots: &[Slot], asked: &Asked) -> Vec<Mask> {
        let mut of_sort: Vec<Option<Option<Mask>>> = vec![None; self.sorts.examples.len()];
        let mask = |slot: &Slot| {
            let Some(supply) = slot.supply.as_deref() else { return 0 };
            let all = slot.sort.and_then(|sort| {
                *of_sort[sort].get_or_insert_with(|| {
                    let (free, dear) = &self.sorts.examples[sort];
                    // Whatever would do for a price would do for any below it.
                    let (most, least) = (asked.mask(free), asked.mask(dear));
                    (most == least).then_some(most)
                })
            });
            all.unwrap_or_else(|| asked.mask(supply))
        };
        slots.iter().map(mask).collect()
    }
}

/// An answer that still holds, with the classes that it accepts now; none where it is to be found anew.
fn fresh(answer: Answer, fleet: &mut Fleet, slots: &[Slot]) -> Option<Answer> {
    if !answer.is_stale {
        return Some(answer);
    }
    let number = answer.number?;
    let masks = fleet.wished(number);
    if answer.asked.part.is_some() && masks.iter().all(|mask| *mask == 0) {
        fleet.forget_wishes(&BTreeSet::from([number]));
        return None;
    }
    Some(Answer { classes: classes(masks, slots), is_stale: false, ..answer })
}

fn classes(masks: &[Mask], slots: &[Slot]) -> u64 {
    let accepted = masks.iter().zip(slots).filter(|(mask, _)| **mask != 0);
    accepted.fold(0, |classes, (_, slot)| classes | 1 << slot.class)
}

impl Asked {
    /// Which devices of a host will do, or will do for a share of one.
    fn mask(&self, supply: &Supply) -> Mask {
        let Self { job, model, part, is_short } = self;
        let (host, model) = (&supply.host, model.as_ref());
        let will_do =
            |rate: Rate| lack_for_ever(host, &job.request, rate).is_none() && (!is_short || pays(job, rate));
        let bit = |place: usize| 1_u32.checked_shl(place as u32).unwrap_or(0);
        match (&job.request.resources.gpu, *part) {
            (Some(_), Some(part)) => {
                let rate = |device: &Device, part: Fraction| host.rate.for_part(part.priced(device.vram));
                let places = supply
                    .sharing(&job.request, part, model)
                    .filter(|(_, of, part)| will_do(rate(of, *part)));
                places.fold(0, |mask, (place, ..)| mask | bit(place))
            }
            _ if !will_do(host.rate) => 0,
            (None, _) => ANY,
            (Some(_), None) => {
                supply.fitting(&job.request, model).fold(0, |mask, (place, _)| mask | bit(place))
            }
        }
    }
}
