//! The truth behind a double: machines, prices, and what goes wrong.

use std::collections::BTreeMap;

use nave_domain::{MicroUsd, Millis, Timestamp};

use super::Numbers;
use crate::{
    machine::cost,
    provider::{Cloud, Owner},
};

/// How often what goes wrong, in a thousand calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Calls that fail with a status of 5xx, half of them after they had their effect.
    pub failed: u64,
    /// Calls that are answered rightly, and only after 20 to 59 seconds.
    pub slow: u64,
    /// Calls before which the price of what is offered moves.
    pub moved: u64,
    /// Calls that get no answer, half of them after they had their effect.
    pub silent: u64,
    /// Calls that are refused since there were too many.
    pub rate_limited: u64,
    /// Answers that nobody can read, after the call had its effect.
    pub garbled: u64,
    /// Launches that are refused for want of stock, quota or balance.
    pub refused: u64,
    /// Launches at a price that has risen since it was quoted.
    pub dearer: u64,
    /// Launches that make two machines.
    pub twice: u64,
    /// Deletions that are accepted and forgotten.
    pub forgotten: u64,
    /// Machines that the list shows late.
    pub late: u64,
    /// Machines that the list shows later than it may: only once their launch must have come to nothing.
    pub overdue: u64,
    /// Machines that the cloud tells lies about for a while.
    pub lied_about: u64,
    /// Machines that break or are taken away.
    pub lost: u64,
}

impl Faults {
    /// As bad as it gets.
    pub const MANY: Self = Self {
        failed: 60,
        slow: 40,
        moved: 60,
        silent: 60,
        rate_limited: 30,
        garbled: 20,
        refused: 120,
        dearer: 80,
        twice: 60,
        forgotten: 60,
        late: 500,
        overdue: 200,
        lied_about: 250,
        lost: 60,
    };
}

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A status of 5xx.
    Failed,
    /// No answer.
    Silent,
    /// Too many calls.
    RateLimited,
    /// An answer that nobody can read.
    Garbled,
    /// Nothing is left.
    OutOfStock,
    /// We may not have more.
    Quota,
    /// We have not paid.
    NoBalance,
    /// It costs more than it did.
    Dearer,
    /// The machine is being made and cannot be deleted.
    Provisioning,
    /// There is no such machine.
    NotFound,
    /// The key is wrong, or the session over.
    Unauthorised,
}

impl Fault {
    /// For sums.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Silent => "silent",
            Self::RateLimited => "rate_limited",
            Self::Garbled => "garbled",
            Self::OutOfStock => "out_of_stock",
            Self::Quota => "quota",
            Self::NoBalance => "no_balance",
            Self::Dearer => "dearer",
            Self::Provisioning => "provisioning",
            Self::NotFound => "not_found",
            Self::Unauthorised => "unauthorised",
        }
    }
}

/// What a cloud says of a machine that is not so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// That it is no more.
    Gone,
    /// Nothing at all, as if it had never been.
    Missing,
    /// That it runs.
    Runs,
}

/// A machine as it really is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Real {
    /// The cloud's number for it.
    pub number: u64,
    /// Its name.
    pub name: String,
    /// What it costs in an hour.
    pub price: MicroUsd,
    /// Since when it is paid for.
    pub created_at: Timestamp,
    /// When the list shows it.
    pub listed_at: Timestamp,
    /// When it runs.
    pub ready_at: Timestamp,
    /// When its dead-man switch deletes it.
    pub dead_man: Option<Timestamp>,
    /// Since when it is being deleted, and when it is gone.
    pub deleting: Option<(Timestamp, Timestamp)>,
    /// Since when it is no more, and not paid for.
    pub gone_at: Option<Timestamp>,
    /// Whether it is broken.
    pub is_broken: bool,
    /// What is said of it that is not so, and from when to when.
    pub lie: Option<(Timestamp, Timestamp, Lie)>,
}

/// What the cloud shows of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// It is being made.
    Starting,
    /// It runs.
    Running,
    /// It broke.
    Failed,
    /// It is being deleted.
    Deleting,
    /// It is no more.
    Gone,
}

/// A cloud: its machines and its clock.
#[derive(Debug, Clone)]
pub struct Site {
    /// Which one.
    pub cloud: Cloud,
    /// Its time, which is everybody's.
    pub now: Timestamp,
    /// What goes wrong.
    pub faults: Faults,
    /// What goes wrong with the next launches, before chance says; and whether they have their effect all the same.
    pub script: Vec<(Fault, bool)>,
    /// Machines by number, also those that are gone.
    pub machines: BTreeMap<u64, Real>,
    /// What a machine costs in an hour.
    pub price: MicroUsd,
    /// How many launches were asked for under each name.
    pub launches: BTreeMap<String, u32>,
    /// For how many seconds it wants to be left alone, from and to.
    pub pause: (i64, i64),
    /// What should not have been asked.
    pub wrongs: Vec<String>,
    /// What has gone wrong, and how often.
    pub given: BTreeMap<&'static str, u64>,
    numbers: Numbers,
}

/// The longest that a list is late, or a lie lasts: less than a list may take to settle.
const LATE_MAX_MS: i64 = 200_000;
/// How late a list is at the least and at the most that is later than it may be.
const OVERDUE_MS: (i64, i64) = (300_000, 900_000);

impl Site {
    /// What a machine costs in an hour, as long as prices do not move.
    pub const PRICE: MicroUsd = MicroUsd(2_000_000);
    /// What prices move to. The last is more than anybody here wants to pay.
    const PRICES: [MicroUsd; 5] =
        [Self::PRICE, Self::PRICE, MicroUsd(1_500_000), MicroUsd(2_600_000), MicroUsd(3_400_000)];
    /// The most that a machine costs in an hour: one that is launched at twice the highest price.
    pub const PRICE_MAX: MicroUsd = MicroUsd(6_800_000);

    /// A cloud in which two machines of others run.
    #[must_use]
    pub fn new(cloud: Cloud, seed: u64, faults: Faults, now: Timestamp) -> Self {
        let mut site = Self {
            cloud,
            now,
            faults: Faults::default(),
            script: Vec::new(),
            machines: BTreeMap::new(),
            price: Self::PRICE,
            launches: BTreeMap::new(),
            pause: (1, 45),
            wrongs: Vec::new(),
            given: BTreeMap::new(),
            numbers: Numbers::new(seed),
        };
        site.make("someone-elses", None, site.price);
        site.make("nave-other-00000000000000000000000000000001", None, site.price);
        site.faults = faults;
        site
    }

    /// Time passes.
    pub fn pass(&mut self, span: Millis) {
        self.now = self.now.after(span);
        for real in self.machines.values_mut().filter(|real| real.gone_at.is_none()) {
            let ends = [real.deleting.map(|(_, end)| end), real.dead_man];
            real.gone_at = ends.into_iter().flatten().filter(|end| *end <= self.now).min();
        }
    }

    /// Counts something that goes wrong.
    pub fn give(&mut self, what: &'static str) {
        *self.given.entry(what).or_default() += 1;
    }

    /// How long a call takes until it has its effect, and how long from then until it is answered.
    pub fn takes(&mut self) -> (Millis, Millis) {
        if !self.numbers.permille(self.faults.slow) {
            return (Millis(self.numbers.between(50, 2_000)), Millis(0));
        }
        self.give("slow");
        let all = self.numbers.between(20_000, 59_000);
        let until = self.numbers.between(0, all);
        (Millis(until), Millis(all - until))
    }

    /// The price may move: between a quote and its launch, too.
    pub fn move_price(&mut self) {
        if self.numbers.permille(self.faults.moved) {
            let to = usize::try_from(self.numbers.below(5)).unwrap_or(0);
            self.price = Self::PRICES.get(to).copied().unwrap_or(Self::PRICE);
            self.give("moved");
        }
    }

    /// Whether and what goes wrong with a call, and whether it has its effect all the same.
    pub fn draw(&mut self, is_launch: bool) -> Option<(Fault, bool)> {
        let drawn = if is_launch && !self.script.is_empty() {
            Some(self.script.remove(0))
        } else {
            self.chance(is_launch)
        };
        if let Some((fault, _)) = drawn {
            self.give(fault.name());
        }
        drawn
    }

    fn chance(&mut self, is_launch: bool) -> Option<(Fault, bool)> {
        let (faults, after) = (self.faults, self.numbers.permille(500));
        let refusals = [Fault::OutOfStock, Fault::OutOfStock, Fault::Quota, Fault::NoBalance];
        let refusal = refusals.get(usize::try_from(self.numbers.below(4)).unwrap_or(0)).copied();
        if self.numbers.permille(faults.silent) {
            return Some((Fault::Silent, after));
        }
        if self.numbers.permille(faults.failed) {
            return Some((Fault::Failed, after));
        }
        if self.numbers.permille(faults.rate_limited) {
            return Some((Fault::RateLimited, false));
        }
        if self.numbers.permille(faults.garbled) {
            return Some((Fault::Garbled, true));
        }
        if is_launch && self.numbers.permille(faults.refused) {
            return refusal.map(|refusal| (refusal, false));
        }
        None
    }

    /// Launches a machine, or by mistake two; the first is answered with.
    pub fn launch(&mut self, name: &str, dead_man: Option<Timestamp>) -> Real {
        let mut price = self.price;
        if self.numbers.permille(self.faults.dearer) {
            price = MicroUsd(price.0 * 2);
            self.give(Fault::Dearer.name());
        }
        if self.numbers.permille(self.faults.twice) {
            self.make(name, dead_man, price);
            self.give("twice");
        }
        self.make(name, dead_man, price)
    }

    fn make(&mut self, name: &str, dead_man: Option<Timestamp>, price: MicroUsd) -> Real {
        let number = u64::try_from(self.machines.len()).unwrap_or(0) + 1;
        let faults = self.faults;
        let is_overdue = self.numbers.permille(faults.overdue);
        let late = match self.numbers.permille(faults.late) {
            _ if is_overdue => self.numbers.between(OVERDUE_MS.0, OVERDUE_MS.1),
            true => self.numbers.between(0, LATE_MAX_MS),
            false => 0,
        };
        let begins = self.now.after(Millis(self.numbers.between(0, 900_000)));
        let ends = begins.after(Millis(self.numbers.between(1_000, LATE_MAX_MS)));
        let lies = [Lie::Gone, Lie::Missing, Lie::Missing, Lie::Runs];
        let lie = lies.get(usize::try_from(self.numbers.below(4)).unwrap_or(0)).copied();
        let lost_at = self.now.after(Millis(self.numbers.between(60_000, 900_000)));
        let (is_lost, is_taken) = (self.numbers.permille(faults.lost), self.numbers.permille(500));
        let lie = lie.filter(|_| self.numbers.permille(faults.lied_about));
        for (what, is_so) in [
            ("late", late > 0),
            ("overdue", is_overdue),
            ("broken", is_lost && !is_taken),
            ("taken", is_lost && is_taken),
            ("lied_about", lie.is_some()),
        ] {
            if is_so {
                self.give(what);
            }
        }
        let real = Real {
            number,
            name: name.to_owned(),
            price,
            created_at: self.now,
            listed_at: self.now.after(Millis(late)),
            ready_at: self.now.after(Millis(self.numbers.between(0, 180_000))),
            dead_man,
            deleting: (is_lost && is_taken).then_some((lost_at, lost_at)),
            gone_at: None,
            is_broken: is_lost && !is_taken,
            lie: lie.map(|lie| (begins, ends, lie)),
        };
        self.machines.insert(number, real.clone());
        real
    }

    /// Deletes a machine, unless it cannot be now.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn delete(&mut self, number: u64, ours: &dyn Fn(&str) -> bool) -> Result<(), Fault> {
        let ends = self.now.after(Millis(self.numbers.between(0, 90_000)));
        let (is_forgotten, is_strict) =
            (self.numbers.permille(self.faults.forgotten), self.numbers.permille(700));
        let Some(real) = self.machines.get_mut(&number).filter(|real| real.gone_at.is_none()) else {
            return Err(Fault::NotFound);
        };
        if !ours(&real.name) {
            self.wrongs.push(format!("{} is not ours and was deleted", real.name));
        }
        if self.now < real.ready_at && is_strict {
            *self.given.entry(Fault::Provisioning.name()).or_default() += 1;
            return Err(Fault::Provisioning);
        }
        if is_forgotten {
            *self.given.entry("forgotten").or_default() += 1;
        } else if real.deleting.is_none_or(|(since, _)| since > self.now) {
            real.deleting = Some((self.now, ends));
        }
        Ok(())
    }

    /// What the list shows, or with its number what is shown of one machine.
    #[must_use]
    pub fn shown(&self, real: &Real, in_list: bool) -> Option<Shown> {
        if let Some((_, _, lie)) =
            real.lie.filter(|(from, to, _)| *from <= self.now && self.now < *to && real.gone_at.is_none())
        {
            return match lie {
                Lie::Gone => Some(Shown::Gone).filter(|_| !in_list),
                Lie::Missing => None,
                Lie::Runs => Some(Shown::Running),
            };
        }
        if real.gone_at.is_some() || self.now < real.listed_at {
            return None;
        }
        Some(match real.deleting {
            Some((since, _)) if since <= self.now => Shown::Deleting,
            _ if self.now < real.ready_at => Shown::Starting,
            _ if real.is_broken => Shown::Failed,
            _ => Shown::Running,
        })
    }

    /// A number of the site's own luck.
    pub fn numbers(&mut self) -> &mut Numbers {
        &mut self.numbers
    }

    /// What all machines of an owner have really cost.
    #[must_use]
    pub fn cost(&self, owner: &Owner) -> MicroUsd {
        let ours = self.machines.values().filter(|real| owner.reads(&real.name).is_some());
        let billing = self.cloud.terms().billing;
        let each = ours
            .map(|real| cost(real.price, real.gone_at.unwrap_or(self.now).since(real.created_at), billing).0);
        MicroUsd(each.sum())
    }

    /// The machines of an owner that are there.
    #[must_use]
    pub fn living(&self, owner: &Owner) -> Vec<&Real> {
        let is_ours = |real: &&Real| owner.reads(&real.name).is_some() && real.gone_at.is_none();
        self.machines.values().filter(is_ours).collect()
    }
}
